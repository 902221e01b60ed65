"""Boxed arithmetic with GRPO: what the systems trained on math have in common, before each one's reward and prompt."""
from experiments.recipes.countdown import *  # noqa: F403

_script = "train_grpo.py"

name = "arithmetic"
model = "out/world-arithmetic/model"
data = {"custom:6": 0.5, "custom:8": 0.5}
data_path = {"custom:6": "out/world/data/arithmetic_6_train.jsonl",
             "custom:8": "out/world/data/arithmetic_8_train.jsonl"}
eval_path = {"custom:6": "out/world/data/arithmetic_6_test.jsonl",
             "custom:8": "out/world/data/arithmetic_8_test.jsonl"}
template = "{prompt_boxed}"
reward = "math"
max_response_len = 80
eval_prompts = 100                    # of each source
num_steps = 28
eval_every = 14
