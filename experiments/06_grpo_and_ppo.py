"""
Does GRPO fluctuate more than PPO at small batches?

64 responses a step: 8 prompts x 8 samples with GRPO, 64 prompts x 1 with PPO. A training curve of 8 prompts jumps
because its prompts differ; the same 200 held-out prompts (two samples each) every 4 steps do
not have that share of it.
"""
from experiments.harness import Claim, arm, bends, main, percent_more, unrest

SECTION = "3.2.4"
SURVEY = "GRPO (batches of 8 prompts) is far less stable than PPO; its length fluctuates more."
FIGURE = "3.2.4(7)"
SHOWN = ("response_len", "eval_response_len")
ARMS = {"grpo": arm("countdown", prompts_per_step=8, eval_every=4),
        "ppo": arm("countdown_ppo", prompts_per_step=64, eval_every=4)}


def more(of):
    """Return by how many % GRPO's curve jumps more than PPO's."""
    return lambda runs: percent_more(unrest(of(runs["grpo"])), unrest(of(runs["ppo"])))


CLAIMS = [
    Claim("training length: jumps of GRPO over those of PPO, %", more(lambda run: run["response_len"]), above=0.0),
    Claim("held-out length: the same, %", more(lambda run: run.eval("eval_response_len")), above=0.0),
    Claim("held-out success: the same, %", more(lambda run: run.eval("eval_correct")), above=0.0),
]

ADDED = [
    Claim("held-out success: second differences of GRPO over those of PPO, %",
          lambda runs: percent_more(bends(runs["grpo"].eval()), bends(runs["ppo"].eval())), above=0.0),
    Claim("final held-out success, GRPO less PPO, points",
          lambda runs: 100 * (runs["grpo"].eval()[-1] - runs["ppo"].eval()[-1]), below=0.0),
]

NOTE = """
The arms differ in more than the algorithm: lr 5e-4 and one update a step against 3e-4 and two, whitened advantages
and two steps for the critic alone. The survey's GRPO had 8 prompts x 24 samples against PPO's 256 prompts, and
settings that it calls untuned. Jumps hold the trend too, and a run that has stopped learning jumps little: second
differences and final success stand beside them.
"""

if __name__ == "__main__":
    main(__spec__.name)
