"""The easy problems of countdown_easy.py, mixed with hard ones: five numbers."""
from experiments.recipes.countdown_easy import *  # noqa: F403

_script = "train_grpo.py"

name = "countdown_mixed"
data = {"countdown:32": 0.5, "countdown:52": 0.5}
data_path = {"countdown:32": "out/world/data/countdown_32_train.jsonl",
             "countdown:52": "out/world/data/countdown_52_train.jsonl"}
