"""Sixteen updates on one batch of rollouts, and no clip that keeps the policy near the one that sampled them."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "no_clip"
updates_per_step = 16
clip_low = 0.99
clip_high = 100.0
