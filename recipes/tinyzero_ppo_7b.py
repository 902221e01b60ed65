"""
TinyZero with PPO from Qwen2.5-7B base: tinyzero_ppo.py with the larger model.

Source    Jiayi-Pan/TinyZero @95df88f scripts/train_tiny_zero.sh with BASE_MODEL=Qwen2.5-7B
Launch    torchrun --standalone --nproc-per-node=8 train_ppo.py recipes/tinyzero_ppo_7b.py
Published an independent re-run: 7B at step 200 about equals 3B at step 500. Cost not published.
Changed   as in tinyzero_ppo.py; 8 GPUs are our estimate, the repository names 2 for 3B and none for 7B.
"""
from recipes.tinyzero_ppo import *  # noqa: F403

_script = "train_ppo.py"

name = "tinyzero_ppo_7b"
model = "Qwen/Qwen2.5-7B"             # BASE_MODEL
num_steps = 200                       # as in the re-run; lr is constant: stop anywhere
