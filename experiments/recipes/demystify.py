"""Demystify in miniature: PPO with the cosine reward, its exceed value of -10 and the repetition penalty."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_ppo.py"
del adv_std  # noqa: F821

name = "demystify"
reward = "demystify_cosine"           # right 2 -> 1, wrong -10 -> 0, cut off -10
repetition_coef = 0.05
repetition_ngram = 12                 # 40 there: of responses of 14,336 tokens
gammas = {"task": 1.0, "repetition": 0.99}
prompts_per_step = 16                 # 512 there
group_size = 8                        # 16 there
updates_per_step = 2                  # 16 there
loss_agg = "seq_mean"
kl_in = "reward_k1"
kl_coef = 0.01
lr = 3e-4
critic_lr = 2e-3
critic_warmup_steps = 2               # ours
value_clip = 0.2
