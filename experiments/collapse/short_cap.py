"""A limit of tokens that cuts what has to be learned: a longer search."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "short_cap"
max_response_len = 40
