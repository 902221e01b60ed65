"""The baseline on one easy kind of problem alone: three numbers, + and -."""
from experiments.recipes.countdown import *  # noqa: F403

_script = "train_grpo.py"

name = "countdown_easy"
data = "countdown:32"
data_path = "out/world/data/countdown_32_train.jsonl"
eval_data = {"countdown:32": 1, "countdown:52": 1}
eval_path = {"countdown:32": "out/world/data/countdown_32_test.jsonl",
             "countdown:52": "out/world/data/countdown_52_test.jsonl"}
eval_every = 20
eval_prompts = 100                    # of each source
num_steps = 50
