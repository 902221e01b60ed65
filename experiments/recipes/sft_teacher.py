"""Some steps of fine-tuning on long, right searches: the cold start before RL."""
from experiments.recipes.start import *  # noqa: F403

_script = "sft.py"

name = "sft_teacher"
model = "out/world-countdown/model"
data = "out/world/data/countdown_teacher.jsonl"
num_steps = 12
lr = 1e-3
warmup_steps = 2
