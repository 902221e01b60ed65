"""
What is asked and what is right. A task is a file; TASKS maps what its rows hold, and rewards read, to the module.

Each module has
    SOURCES                          {name of `data`: Source} of what it generates
    SLOTS                            {slot of a prompt template: (fields of a row, how to write the value)}
    holds(row)                       whether the row is the task's
    generate(name, argument, split, limit)   -> rows of a generated source
    clean(row, source)               -> a row of a file in our form, or BadRow
    answer_of(row), check_answer(answer)     what a reward compares with, and ValueError where it is not that
    perfect_answer(answer)           -> a text that is right, for --check and the test of a run's golds
    problem_key(row)                 -> what makes two rows the same problem
"""

from tasks import countdown, knights_and_knaves, math_problems

TASKS = {"countdown": countdown, "kk": knights_and_knaves, "math": math_problems}


def task_of(row):
    """Return (name, module) of the task that a row belongs to: the first that holds it, math last."""
    return next((name, task) for name, task in TASKS.items() if task.holds(row))
