"""
The survey's shape of a collapse: a temperature that is too high, 32 samples, division by the std, and a long limit.
"""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "too_hot"
temperature = 1.5
group_size = 32
prompts_per_step = 4
adv_std = True
max_response_len = 320
