"""A KL penalty that is far too strong, in the form whose gradient is that of KL(reference || policy)."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "strong_kl"
kl_in = "loss_k3"
kl_coef = 1.0
