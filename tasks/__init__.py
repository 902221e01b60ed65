"""
What is asked and what is right. A task is a file; TASKS maps what its rows hold, and rewards read, to the module.

Each module has
    SOURCES                          {name of `data`: Source} of what it generates
    SLOTS                            {slot of a prompt template: (fields of a row, how to write the value)}
    holds(row)                       tell whether the row is the task's
    generate(name, argument, split, limit)   make the rows of a generated source: question, answer, level, subject, ...
    clean(row, source)               bring a row of a file into that form, or raise BadRow
    answer_of(row), check_answer(answer)     return the answer that rewards get; raise ValueError if it is malformed
    is_right(text, answer)           judge a response's answer, as the rewards of countdown and kk do
    perfect_answer(answer)           write a text that is right, for --check and the test of a run's golds
    problem_key(row)                 return what makes two rows the same problem
"""

from tasks import countdown, knights_and_knaves, math_problems

TASKS = {"countdown": countdown, "kk": knights_and_knaves, "math": math_problems}


def task_of(row):
    """Return (name, module) of the task that a row belongs to: the first that holds it, math last."""
    return next((name, task) for name, task in TASKS.items() if task.holds(row))
