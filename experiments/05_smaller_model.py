"""
Does a smaller model need more steps, and does it end with longer responses?
"""
from experiments.harness import Claim, arm, late, main, steps_until

SECTION = "3.2.4"
SURVEY = "3B needs about 500 steps for what 7B has after 200, and its final responses are longer."
FIGURE = "3.2.4(1)"
SHOWN = ("correct", "response_len")
ARMS = {"0.9M": arm("countdown"), "0.3M": arm("countdown", model="out/world-countdown_small/model")}


def reaching(runs, name):
    goal = 0.9 * late(runs["0.9M"]["correct"], 5)  # of what the larger model has in the end
    return steps_until(runs[name]["correct"], lambda value: value >= goal)


CLAIMS = [
    Claim("steps to 90 % of the larger model's final success, smaller less larger",
          lambda runs: reaching(runs, "0.3M") - reaching(runs, "0.9M"), above=0.0),
    Claim("final length, smaller less larger, tokens",
          lambda runs: late(runs["0.3M"]["response_len"]) - late(runs["0.9M"]["response_len"]), above=0.0),
]

NOTE = """
A step count of 33 means "not reached in 32 steps", so the difference is a lower bound there. The survey compares
lengths after convergence and with PPO; ours are those of step 32 of GRPO.
"""

if __name__ == "__main__":
    main(__spec__.name)
