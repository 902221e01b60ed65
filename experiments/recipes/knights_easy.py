"""Logic-RL in miniature, stage 1 of three: 2 and 3 people; held-out problems have four."""
from experiments.recipes.knights_hard import *  # noqa: F403

_script = "train_grpo.py"

name = "knights_easy"
data = {"kk:2": 0.3, "kk:3": 0.7}
data_path = {"kk:2": "out/world/data/knights_2_train.jsonl", "kk:3": "out/world/data/knights_3_train.jsonl"}
eval_data = "kk:4"
num_steps = 15
