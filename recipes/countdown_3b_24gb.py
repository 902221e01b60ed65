"""
Countdown with GRPO from Qwen2.5-3B base, all parameters, on one GPU of 24 GB: tinyzero_grpo.py without a KL term.

Source    as in tinyzero_grpo.py
Launch    torchrun --standalone --nproc-per-node=1 --shutdown-timeout 600 train_grpo.py recipes/countdown_3b_24gb.py
Published nothing like it. Computed, not run: 24 of 24 GB, and 45 GB of the host's memory for weights, Adam, export:
          50 must be available, of which 90 % count. (python -m
          tools.plan recipes/countdown_3b_24gb.py --gpus 1 --gpu_memory_gb 24)
Changed   no KL term, so no reference model; no entropy bonus, so groups that agree need no gradient.
"""
from recipes.tinyzero_grpo import *  # noqa: F403

_script = "train_grpo.py"

name = "countdown_3b_24gb"
kl_in = "none"                        # ours: a reference would take 6 GB more of the host's memory
entropy_coef = 0.0                    # ours
offload = "optimizer"                 # ours: what "auto" finds too; 18 bytes a parameter would be 56 GB
kv_cache_gb = 5.0                     # ours: the default, 35 % of the GPU, does not fit beside both copies
save_every = 20                       # ours: a step takes a minute or so; Ctrl-C loses what came after a checkpoint
