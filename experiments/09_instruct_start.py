"""
Does a start that answers at once (as instruct models do) end where a searching start ends, after breaking its habit?
"""
from experiments.harness import Claim, arm, early, late, main, steps_until

SECTION = "3.2.3"
SURVEY = "Base and instruct end at about the same success (base slightly ahead); instruct starts slower and grows " \
         "more: first break, then build."
FIGURE = "3.2.3(5)"
SHOWN = ("correct", "response_len")
ARMS = {"search": arm("countdown", num_steps=64),
        "instruct": arm("countdown", num_steps=64, model="out/world-countdown_instruct/model")}


def half_way(run):
    values = run["correct"]
    half = (early(values, 2) + late(values, 5)) / 2
    return steps_until(values, lambda value: value >= half)


def growth(run):
    return late(run["response_len"]) / early(run["response_len"], 2)


CLAIMS = [
    Claim("final held-out success, instruct less search, points",
          lambda runs: 100 * (runs["instruct"].eval()[-1] - runs["search"].eval()[-1]), within=8.0),
    Claim("steps to half of its gain, instruct less search",
          lambda runs: half_way(runs["instruct"]) - half_way(runs["search"]), above=0.0),
    Claim("growth of the length (times), instruct less search",
          lambda runs: growth(runs["instruct"]) - growth(runs["search"]), above=0.0, form="{:.2f}"),
]

NOTE = """
The survey's finding is of stage 3 of Knights and Knaves; this is Countdown, and one run of 64 steps.
"""

if __name__ == "__main__":
    main(__spec__.name)
