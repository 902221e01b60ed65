"""
TinyZero's Countdown with GRPO from Qwen2.5-7B base: tinyzero_grpo.py with the larger model.

Source    as in tinyzero_grpo.py
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo_7b.py
Published an independent re-run on 8 GPUs: 7B at step 200 about equals 3B at step 500 (PPO).
Changed   as in tinyzero_grpo.py.
"""
from recipes.tinyzero_grpo import *  # noqa: F403

_script = "train_grpo.py"

name = "tinyzero_grpo_7b"
model = "Qwen/Qwen2.5-7B"             # BASE_MODEL
num_steps = 200                       # ours: as in the re-run's comparison
