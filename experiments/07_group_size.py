"""
Do more samples of each prompt make GRPO steadier?

4, 8 and 24 samples of 8 prompts a step.
"""
from experiments.harness import Claim, arm, bends, main, percent_more, unrest

SECTION = "3.2.4"
SURVEY = "More rollouts of each prompt are needed for a good estimate of the group's advantage, and so for stability."
FIGURE = "3.2.4(7)"
SHOWN = ("response_len", "eval_response_len")
ARMS = {f"{size} samples": arm("countdown", prompts_per_step=8, group_size=size, eval_every=4) for size in (4, 24)}
ARMS["8 samples"] = arm("countdown", prompts_per_step=8, eval_every=4)


def less(of):
    """Return by how many % the curve of 24 samples jumps less than that of 4."""
    return lambda runs: -percent_more(unrest(of(runs["24 samples"])), unrest(of(runs["4 samples"])))


CLAIMS = [
    Claim("training length: smaller jumps with 24 than with 4 samples, %", less(lambda run: run["response_len"]),
          above=0.0),
    Claim("held-out length: the same, %", less(lambda run: run.eval("eval_response_len")), above=0.0),
    Claim("held-out success: the same, %", less(lambda run: run.eval("eval_correct")), above=0.0),
]

ADDED = [
    Claim("held-out success: smaller second differences with 24 samples, %",
          lambda runs: -percent_more(bends(runs["24 samples"].eval()), bends(runs["4 samples"].eval())), above=0.0),
    Claim("final held-out success, 24 less 4 samples, points",
          lambda runs: 100 * (runs["24 samples"].eval()[-1] - runs["4 samples"].eval()[-1]), above=0.0),
]

NOTE = """
24 samples are also 192 responses a step against 32, so the mean of a training step is steadier by arithmetic alone.
The survey compares no group sizes: its sentence is a suggestion. Jumps hold the trend too, and a run that has stopped
learning jumps little: second differences and final success stand beside them. 8 samples are shown, no claim is about
them.
"""

if __name__ == "__main__":
    main(__spec__.name)
