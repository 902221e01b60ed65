"""
Countdown with GRPO from Qwen2.5-7B base, all parameters, on one GPU of 80 GB: tinyzero_grpo_7b.py without a KL term.

Source    as in tinyzero_grpo.py
Launch    torchrun --standalone --nproc-per-node=1 --shutdown-timeout 600 train_grpo.py recipes/countdown_7b_1gpu.py
Published nothing like it. Computed, not run: 57 of 80 GB, and 111 GB of the host's memory for weights, Adam, export:
          123 must be available, of which 90 % count. (python -m
          tools.plan recipes/countdown_7b_1gpu.py --gpus 1 --gpu_memory_gb 80)
Changed   no KL term, so no reference model; no entropy bonus, so groups that agree need no gradient.
"""
from recipes.tinyzero_grpo_7b import *  # noqa: F403

_script = "train_grpo.py"

name = "countdown_7b_1gpu"
kl_in = "none"                        # ours: a reference would take 15 GB more of the host's memory
entropy_coef = 0.0                    # ours
offload = "optimizer"                 # ours: what "auto" finds too; 18 bytes a parameter would be 137 GB
save_every = 20                       # ours: a step takes a minute or so; Ctrl-C loses what came after a checkpoint
