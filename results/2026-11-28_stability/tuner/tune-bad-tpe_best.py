"""
Found by python -m tools.tune experiments/collapse/healthy.py: trial tune-bad-tpe-t002.
After step 24 held-out 53.5 %, score 47.9.
"""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"
name = "tune-bad-tpe-best"
num_steps = 24  # given to the search
eval_prompts = 200  # given to the search
eval_samples = 2  # given to the search
lr = 0.000364  # instead of 0.009
adv_std = True  # instead of False
entropy_target = 0.2  # instead of 0.0
