"""
Does a start that ignores the format never learn it, and does a model that is too small learn the format alone?

One response in 500 of the first start has the format; the second model has 1 layer of width 32.
"""
from experiments.harness import Claim, arm, late, main

SECTION = "3.2.2"
SURVEY = "DeepSeek-Distill-7B hardly ever meets the format; the 1.5B model meets it, but its accuracy does not rise."
FIGURE = "3.2.2(1)"
SHOWN = ("format_error", "correct")
ARMS = {"normal": arm("countdown"), "no format": arm("countdown", model="out/world-countdown_no_format/model"),
        "too small": arm("countdown", model="out/world-countdown_tiny/model")}


def gain(run):
    return 100 * (run.eval()[-1] - run.eval()[0])


CLAIMS = [
    Claim("start without format: format errors at the end, %",
          lambda runs: 100 * late(runs["no format"]["format_error"], 5), above=90.0),
    Claim("too small: format errors at the end, %",
          lambda runs: 100 * late(runs["too small"]["format_error"], 5), below=5.0),
    Claim("too small: gain in held-out success, points", lambda runs: gain(runs["too small"]), below=10.0),
    Claim("normal: gain in held-out success, points", lambda runs: gain(runs["normal"]), above=10.0),
]

NOTE = """
"Never" is decided by the length of the run: 32 steps. Look at the last steps of the curve.
"""

if __name__ == "__main__":
    main(__spec__.name)
