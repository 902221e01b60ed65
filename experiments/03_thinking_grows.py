"""
Is it the thinking that grows, while the answer stays as long as it was?

From two starts: one that rambles after some answers, and one that answers at once and never does.
"""
from experiments.harness import Claim, arm, early, late, main

SECTION = "3.2.3, 3.2.4"
SURVEY = "The answer stays at 8 to 16 tokens; all change of length is in the thinking."
FIGURE = "3.2.3(8), 3.2.4(2)"
SHOWN = ("think_len", "answer_len")
ARMS = {"search": arm("countdown", num_steps=64),
        "instruct": arm("countdown", num_steps=64, model="out/world-countdown_instruct/model")}


def change(column, name):
    return lambda runs: late(runs[name][column]) - early(runs[name][column], 2)


CLAIMS = [claim for name in ARMS for claim in (
    Claim(f"{name}: growth of the thinking, tokens", change("think_len", name), above=5.0),
    Claim(f"{name}: change of the answer, tokens", change("answer_len", name), within=2.0))]

NOTE = """
Our column counts all that stands behind </think>, the survey what the tags hold. So a fall of the answer from the
start that rambles is the end of rambling, not a shorter answer. The survey's runs of 3.2.4 are PPO, ours GRPO.
"""

if __name__ == "__main__":
    main(__spec__.name)
