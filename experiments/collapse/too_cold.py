"""Entropy that vanishes: a temperature at which all responses to a prompt are the same."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "too_cold"
temperature = 0.1
