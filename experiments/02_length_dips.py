"""
Does the length first drop, then recover and stay?

The start searches too little and rambles on after one answer in seven: what is long at first is not what is needed.
"""
from experiments.harness import Claim, arm, early, late, main, mean, smooth

SECTION = "3.2.1, 3.2.4"
SURVEY = "The length falls sharply (steps 12 and 24), recovers (to step 72) and then stays about the same."
FIGURE = "3.2.1(1), 3.2.4(1)"
SHOWN = ("response_len",)
ARMS = {"tinyzero": arm("countdown"), "logic_rl": arm("knights")}


def lengths(runs):
    return runs["tinyzero"]["response_len"]


def lowest(runs):
    values = smooth(lengths(runs), 3)
    return min(values[:len(values) // 2])


def drift(runs):
    values = lengths(runs)
    before = mean(values[len(values) * 6 // 10: len(values) * 8 // 10])
    return 100 * (late(values) / before - 1)


CLAIMS = [
    Claim("drop from the first two steps to the lowest of the first half, %",
          lambda runs: 100 * (1 - lowest(runs) / early(lengths(runs), 2)), above=5.0),
    Claim("recovery from there to the end, %",
          lambda runs: 100 * (late(lengths(runs)) / lowest(runs) - 1), above=20.0),
    Claim("change from 60 to 80 % of the run to its end, %", drift, within=15.0),
]

if __name__ == "__main__":
    main(__spec__.name)
