"""
Found by python -m tools.tune experiments/collapse/healthy.py: trial tune-own-tpe-t000.
After step 24 held-out 48.2 %, score 42.8; the recipe as it is: held-out 48.2 %, score 42.8.
"""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"
name = "tune-own-tpe-best"
num_steps = 24  # given to the search
eval_prompts = 200  # given to the search
eval_samples = 2  # given to the search
