"""
TinyZero's Countdown with GRPO from Qwen2.5-3B base.

Source    Jiayi-Pan/TinyZero @95df88f; its main branch ships PPO only, its branch det_ver @34e949c the same flags with
          adv_estimator=grpo but one sample per prompt, which is no group. Batch and group are those of an independent
          re-run on 8 GPUs (8 prompts x 24, about 5 epochs).
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo.py
Published the re-run calls it unstable, PPO steadier (tinyzero_ppo.py); larger batches: oat_zero_countdown.py.
Changed   the KL is a penalty: the verl inside TinyZero subtracts its KL term from the loss, which maximizes it. It
          is in the loss (k3), not in the reward before group normalization. Data and reward as in tinyzero_ppo.py.
Not reproduced  k3 clamped to [-10, 10].
"""
_script = "train_grpo.py"

name = "tinyzero_grpo"
model = "Qwen/Qwen2.5-3B"             # actor_rollout_ref.model.path=$BASE_MODEL
data = "countdown"                    # data.train_files: Countdown-Tasks-3to4, rows 0-327,679
template = "tinyzero_base"            # examples/data_preprocess/countdown.py, template_type=base
reward = "tinyzero_countdown"         # verl/utils/reward_score/countdown.py: 0 / 0.1 / 1
max_prompt_len = 256                  # data.max_prompt_length

num_steps = 500                       # ours: where the re-run compares 3B; lr is constant: stop anywhere
prompts_per_step = 8                  # re-run: train batch 8
group_size = 24                       # re-run: rollout.n
max_response_len = 1024               # data.max_response_length
temperature = 1.0                     # rollout.temperature, default
top_p = 1.0                           # rollout.top_p, default

updates_per_step = 1                  # 8 prompts are less than a mini batch
adv_std = True                        # algorithm.adv_estimator=grpo
adv_eps = 1e-6                        # verl/trainer/ppo/core_algos.py
loss_agg = "token_mean"               # verl's masked mean
clip_low = 0.2                        # actor.clip_ratio, default
clip_high = 0.2
kl_in = "loss_k3"                     # kl_loss_type=low_var_kl of verl's GRPO example in the repository
kl_coef = 0.001                       # kl_loss_coef of that example; kl_ctrl.kl_coef is 0.001 too
entropy_coef = 0.001                  # actor.entropy_coeff, default

lr = 1e-6                             # actor.optim.lr
lr_schedule = "constant"              # verl default
warmup_steps = 0                      # verl default
adam_beta1 = 0.9                      # verl default
adam_beta2 = 0.999                    # verl default
weight_decay = 0.01                   # verl default
grad_clip = 1.0                       # actor.grad_clip, default

eval_every = 100                      # trainer.test_freq
save_every = 100                      # trainer.save_freq
eval_data = "countdown"               # data.val_files: rows 327,680-328,703
eval_prompts = 1024                   # all 1,024 rows
eval_samples = 0                      # validation is greedy
