"""A temperature that is too high, with a long limit: a tail of ids that are never trained gets its share."""
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "too_hot"
temperature = 1.8
max_response_len = 320
