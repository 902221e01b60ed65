"""
TinyZero, the published run: Countdown with PPO from Qwen2.5-3B base.

Source    Jiayi-Pan/TinyZero @95df88f scripts/train_tiny_zero.sh; unnamed values are the defaults of the verl inside it
Launch    torchrun --standalone --nproc-per-node=2 train_ppo.py recipes/tinyzero_ppo.py
Published 3B learns to search and check itself (0.5B does not), "< $30" on 2 GPUs; no results table. An independent
          re-run saw the length fall until step 24 and level off near step 120, and 3B at step 500 equal 7B at step 200.
Changed   data generated here by the rule behind the published set (its rows: --data_path, with 327,680 + 1,024 in one
          file); the answer may span lines or be followed by a newline; exact arithmetic instead of eval; one <answer>,
          after </think>; a truncated response earns 0.
Not reproduced  token mean per micro-batch over a fixed accumulation count (a mean over the update's tokens here).
"""
_script = "train_ppo.py"

name = "tinyzero_ppo"
model = "Qwen/Qwen2.5-3B"             # actor_rollout_ref.model.path=$BASE_MODEL
critic_model = ""                     # critic.model.path=$BASE_MODEL: the same, with a value head
data = "countdown"                    # data.train_files: Countdown-Tasks-3to4, rows 0-327,679
template = "tinyzero_base"            # examples/data_preprocess/countdown.py, template_type=base
reward = "tinyzero_countdown"         # verl/utils/reward_score/countdown.py: 0 / 0.1 / 1
max_prompt_len = 256                  # data.max_prompt_length

num_steps = 500                       # trainer.total_epochs=15, nominally 19,200 steps; lr is constant: stop anywhere
prompts_per_step = 256                # data.train_batch_size
group_size = 1                        # rollout.n, default
max_response_len = 1024               # data.max_response_length
temperature = 1.0                     # rollout.temperature, default
top_p = 1.0                           # rollout.top_p, default

estimator = "gae"                     # algorithm.adv_estimator, default
gamma = 1.0                           # algorithm.gamma, default
lam = 1.0                             # algorithm.lam, default
critic_lam = 1.0                      # the same lambda for the critic's returns
whiten = True                         # advantages whitened once over the tokens of all 256 responses
updates_per_step = 4                  # actor.ppo_mini_batch_size=64 of 256
epochs_per_step = 1                   # actor.ppo_epochs, default
clip_low = 0.2                        # actor.clip_ratio, default
clip_high = 0.2
value_clip = 0.5                      # critic.cliprange_value, default
loss_agg = "token_mean"               # verl's masked mean
kl_in = "reward_k1"                   # algorithm.kl_penalty=kl, default: subtracted from the token rewards
kl_coef = 0.001                       # algorithm.kl_ctrl.kl_coef
kl_target = 0.0                       # algorithm.kl_ctrl.type=fixed, default
truncation_bootstrap = "zero"         # nothing follows the last token
dual_clip = 0.0                       # none
entropy_coef = 0.001                  # actor.entropy_coeff, default

lr = 1e-6                             # actor.optim.lr
critic_lr = 1e-5                      # critic.optim.lr
critic_warmup_steps = 0               # trainer.critic_warmup, default
lr_schedule = "constant"              # actor.optim.lr_warmup_steps_ratio=0, default
critic_lr_schedule = "constant"       # critic.optim.lr_warmup_steps_ratio=0, default
warmup_steps = 0                      # actor.optim.lr_warmup_steps_ratio=0, default
adam_beta1 = 0.9                      # verl default
adam_beta2 = 0.999                    # verl default
weight_decay = 0.01                   # verl default
grad_clip = 1.0                       # actor.grad_clip, default

eval_every = 100                      # trainer.test_freq
save_every = 100                      # trainer.save_freq
eval_data = "countdown"               # data.val_files: rows 327,680-328,703
eval_prompts = 1024                   # all 1,024 rows
eval_samples = 0                      # validation is greedy
