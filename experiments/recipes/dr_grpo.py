"""Oat-Zero / Dr. GRPO in miniature: no division by std or length, the R1 prompt, 1 / 0, on boxed arithmetic."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_grpo.py"

name = "dr_grpo"
template = "{prompt_r1}"
reward = "dr_grpo_r1"
adv_std = False
loss_agg = "constant"
updates_per_step = 2                  # 8 there
lr = 3e-4
