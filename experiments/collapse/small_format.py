"""Division by the std of the group: where all answers are wrong, the 0.1 of a good format counts as much as 1."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "small_format"
adv_std = True
