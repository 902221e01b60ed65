"""
The run that every collapse is compared with: the world's baseline of Countdown, with a learning rate that stays well.
"""
from experiments.recipes.countdown import *  # noqa: F403

_script = "train_grpo.py"

name = "healthy"
num_steps = 42
eval_every = 6
eval_prompts = 128
lr = 3e-4                             # 5e-4, the baseline's, wanders after step 30
