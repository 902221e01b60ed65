"""Logic-RL in miniature on four people, more samples of each prompt."""
from experiments.recipes.knights import *  # noqa: F403

_script = "train_grpo.py"

name = "knights_hard"
data = "kk:4"
data_path = "out/world/data/knights_4_train.jsonl"
eval_data = "kk:4"
eval_path = "out/world/data/knights_4_test.jsonl"
prompts_per_step = 8
group_size = 12
max_response_len = 440
num_steps = 30
