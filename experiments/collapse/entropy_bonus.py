"""An entropy bonus that runs away."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "entropy_bonus"
entropy_coef = 0.1
