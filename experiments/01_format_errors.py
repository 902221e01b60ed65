"""
Do format errors vanish within a few steps, while wrong answers stay?

Logic-RL in miniature: GRPO with its reward, from a start of which a quarter of the responses break the format.
"""
from experiments.harness import Claim, arm, late, main, steps_until

SECTION = "3.2.3"
SURVEY = "Format errors fall below 5 % within a few steps; wrong answers stay at 60 to 70 %."
FIGURE = "3.2.3(2)"
SHOWN = ("format_error", "wrong_answer")
ARMS = {"logic_rl": arm("knights")}


def halving(runs, column):
    values = runs["logic_rl"][column]
    return steps_until(values, lambda value: value <= values[0] / 2)


CLAIMS = [
    Claim("format errors at the end, %", lambda runs: 100 * late(runs["logic_rl"]["format_error"], 5), below=5.0),
    Claim("steps to halve wrong answers, less those to halve format errors",
          lambda runs: halving(runs, "wrong_answer") - halving(runs, "format_error"), above=0.0),
]

if __name__ == "__main__":
    main(__spec__.name)
