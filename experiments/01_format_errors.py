"""
Do format errors vanish within a few steps, while wrong answers stay?

Logic-RL in miniature: GRPO with its reward, from a start of which a quarter of the responses break the format.
"""
from experiments.harness import Claim, arm, late, main, steps_until

SECTION = "3.2.3"
SURVEY = "Format errors fall below 5 % within a few steps; wrong answers stay at 60 to 70 %."
FIGURE = "3.2.3(2), stage 1"
SHOWN = ("format_error", "wrong_answer")
ARMS = {"logic_rl": arm("knights")}


def halving(runs, column):
    values = runs["logic_rl"][column]
    return steps_until(values, lambda value: value <= values[0] / 2)


ADDED = [Claim("wrong answers at the end, %", lambda runs: 100 * late(runs["logic_rl"]["wrong_answer"], 5), above=50.0)]
CLAIMS = [
    Claim("format errors at the end, %", lambda runs: 100 * late(runs["logic_rl"]["format_error"], 5), below=5.0),
    Claim("steps to halve wrong answers, less those to halve format errors",
          lambda runs: halving(runs, "wrong_answer") - halving(runs, "format_error"), above=0.0),
]

NOTE = """
The start decides. In pilots (seed 100) and first runs (seed 0, thrown away) from a start with half the fine-tuning,
which often copied a statement wrongly, format errors fell from 30 to 2 % in 28 steps while success stayed at 15 to 20
%: the survey's picture. From this start the task can be learned, and wrong answers vanish as well. The survey's
"within a few steps" is not tested by a bound: look at the curve. A step count of one more than the run has steps
means "never halved".
"""

if __name__ == "__main__":
    main(__spec__.name)
