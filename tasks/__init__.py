"""
What is asked and what is right. A task is a file here with a line TASK = "name": what its rows hold, and rewards read.
TASKS maps these names to the modules.

Each module has
    TASK                             its name
    SOURCES                          {name of `data`: Source} of what it generates
    SLOTS                            {slot of a prompt template: (fields of a row, how to write the value)}
    holds(row)                       tell whether the row is the task's
    generate(name, argument, split, limit)   make the rows of a generated source: question, answer, level, subject, ...
    clean(row, source)               bring a row of a file into that form, or raise BadRow
    answer_of(row), check_answer(answer)     return the answer that rewards get; raise ValueError if it is malformed
    is_right(text, answer)           judge a response's answer, as the rewards of countdown and kk do; optional
    perfect_answer(answer)           write a text that is right, for --check and the test of a run's golds
    problem_key(row)                 return what makes two rows the same problem
"""

import importlib
import re
from pathlib import Path

TASKS = {}
for _file in sorted(Path(__file__).parent.glob("*.py"), key=lambda file: (file.stem == "math_problems", file.stem)):
    if _name := re.search(r'^TASK = "(\w+)"', _file.read_text(encoding="utf-8"), flags=re.MULTILINE):
        TASKS[_name[1]] = importlib.import_module(f"tasks.{_file.stem}")


def task_of(row):
    """Return (name, module) of the task that a row belongs to: the first that holds it, math last."""
    return next((name, task) for name, task in TASKS.items() if task.holds(row))
