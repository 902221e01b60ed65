"""
Demystify-long-CoT with the sparse repetition penalty: one number per wrong response instead of one per token.

Source    eddycmu/demystify-long-cot @e90cf9b, math_rule_repetition (off by default there); else as in demystify_ppo.py
Launch    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 train_ppo.py
          recipes/demystify_ppo_sparse.py
Published nothing for this variant; the paper prefers the dense penalty.
Changed   as in demystify_ppo.py; the weight 1.0 (a response that only repeats itself: -1) is ours; 0 on text shorter
          than an n-gram, where the original divides by zero.
"""
from recipes.demystify_ppo import *  # noqa: F403

_script = "train_ppo.py"

name = "demystify_ppo_sparse"
repetition_coef = 0.0                 # no dense penalty
gamma = 1.0                           # one reward type, one discount
gammas = None                         # --gamma 1
reward_parts = {"sparse_repetition": 1.0}  # (1 - unique / all word 20-grams) x -1, wrong answers only
