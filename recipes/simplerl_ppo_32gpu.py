"""
SimpleRL-Zero (v0) on 4 nodes of 8 GPUs, as published: the same settings, four times the machines.

Source    as in simplerl_ppo.py; the README's four-node launch
Launch    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 train_ppo.py
          recipes/simplerl_ppo_32gpu.py          (the same command on every node)
Published as in simplerl_ppo.py: 1.5 days for 120 steps on 32 H/A100-80G.
Changed   as in simplerl_ppo.py; 32 engines of one GPU each beside the trainer instead of 16 on their own GPUs. Weights
          are sharded over all 32 (ZeRO-3 there); --shard_size 8 keeps that traffic inside each node.
"""
from recipes.simplerl_ppo import *  # noqa: F403

_script = "train_ppo.py"

name = "simplerl_ppo_32gpu"
