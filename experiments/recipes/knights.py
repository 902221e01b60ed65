"""Logic-RL in miniature, stage 1: GRPO with its reward on Knights and Knaves of 2 and 3 people."""
from experiments.recipes.countdown import *  # noqa: F403

_script = "train_grpo.py"

name = "knights"
model = "out/world-knights/model"
data = {"kk:2": 0.3, "kk:3": 0.7}
data_path = {"kk:2": "out/world/data/knights_2_train.jsonl",
             "kk:3": "out/world/data/knights_3_train.jsonl"}
eval_data = "kk:3"                    # of two people there are too few held-out puzzles
eval_path = "out/world/data/knights_3_test.jsonl"
reward = "logic_rl_kk"
max_response_len = 384                # eight cases take some 250 tokens
prompts_per_step = 12
num_steps = 28
eval_every = 14
eval_prompts = 100
adv_std = True
