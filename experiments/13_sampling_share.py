"""
Does sampling take more than 80 % of the time?

On a CPU with a small model; a GPU's share depends on the model and the length of the responses.
"""
from experiments.harness import Claim, arm, main

SECTION = "3.2.1"
SURVEY = "Sampling takes more than 80 % of the time."
FIGURE = "none"
SHOWN = ("seconds_rollout", "seconds_train")
ARMS = {"countdown": arm("countdown"), "knights": arm("knights")}


def share(name):
    def measure(runs):
        run = runs[name]
        spent = sum(run["seconds_step"]) - sum(run["seconds_eval"]) - sum(run["seconds_save"])
        return 100 * sum(run["seconds_rollout"]) / spent
    return measure


CLAIMS = [Claim(f"{name}: share of a step spent sampling, %", share(name), above=80.0) for name in ARMS]

if __name__ == "__main__":
    main(__spec__.name)
