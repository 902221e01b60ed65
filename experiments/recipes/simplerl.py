"""SimpleRL in miniature: PPO, +1 / -0.5 / -1, KL in the reward, lambda 0.95, on boxed arithmetic."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_ppo.py"
del adv_std  # noqa: F821

name = "simplerl"
reward = "simplerl_math"              # +1 / -0.5 / -1
prompts_per_step = 32                 # 1,024 there
group_size = 4                        # 8 there
updates_per_step = 2                  # 64 there
lam = 0.95
critic_lam = 0.95
loss_agg = "seq_mean"
kl_in = "reward_k1"
kl_coef = 0.01
lr = 3e-4
critic_lr = 2e-3
critic_warmup_steps = 2               # ours
value_clip = 0.2
