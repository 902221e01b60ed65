"""A learning rate that is thirty times too high."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "too_fast"
lr = 30 * 3e-4
