"""
Does the length first drop, then recover and stay?

From two starts: one that goes on trying after one answer in seven, and one that does so after most. What such a start
has too much of is what the reward takes away first; then the search grows.
"""
from experiments.harness import Claim, arm, early, late, main, mean, percent_more, smooth

SECTION = "3.2.1, 3.2.4"
SURVEY = "The length falls sharply (steps 12 and 24) and recovers (to step 72); then it stays (3.2.1) or falls " \
         "slowly (3.2.4)."
FIGURE = "3.2.1(1), 3.2.4(1)"
SHOWN = ("response_len", "format_error")
ARMS = {"rambling": arm("countdown", model="out/world-countdown_rambling/model"), "search": arm("countdown")}


def lowest(values):
    return min(smooth(values[:len(values) // 2], 3))


def drop(name):
    return lambda runs: -percent_more(lowest(runs[name]["response_len"]), early(runs[name]["response_len"], 2))


def recovery(name):
    return lambda runs: percent_more(late(runs[name]["response_len"]), lowest(runs[name]["response_len"]))


def drift(name):
    """Return by how many % the last 10 steps are longer than the 10 before."""
    return lambda runs: percent_more(late(runs[name]["response_len"]), mean(runs[name]["response_len"][-20:-10]))


CLAIMS = [claim for name in ARMS for claim in (
    Claim(f"{name}: drop from the first two steps to the lowest of the first half, %", drop(name), above=5.0),
    Claim(f"{name}: recovery from there to the last 10 steps, %", recovery(name), above=20.0),
    Claim(f"{name}: change from the 10 steps before to the last 10, %", drift(name), within=15.0))]

NOTE = """
The survey's runs are SimpleRL and TinyZero with PPO, ours GRPO. A drop is measured to a minimum, so it is never below
0.
"""

if __name__ == "__main__":
    main(__spec__.name)
