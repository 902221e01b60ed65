"""TinyZero in miniature with PPO: the baseline's problems, start and reward, a critic instead of groups."""
from experiments.recipes.countdown import *  # noqa: F403

_script = "train_ppo.py"
del adv_std  # noqa: F821  of groups

name = "countdown_ppo"
prompts_per_step = 128                # as many responses a step as the baseline
group_size = 1
updates_per_step = 2                  # ours: the critic starts from nothing
critic_lr = 2e-3
critic_warmup_steps = 2
lr = 3e-4                             # ours: two updates a step
kl_in = "none"                        # TinyZero has reward_k1 with 0.001
