"""
DeepScaleR, stage 1 of 3: context 8K, from DeepSeek-R1-Distill-Qwen-1.5B. A curriculum that grows the context.

Source    agentica-project/deepscaler @95ef74f scripts/train/run_deepscaler_1.5b_8k.sh
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/deepscaler_8k.py
Published after all three stages, 16 samples at 0.6: AIME24 43.1, MATH500 87.8, AMC 73.6, Minerva 30.2, OlympiadBench
          50.0, average 57.0 (start model 28.8 / 82.8 / 62.9 / 26.5 / 43.3, 48.9). Stage 1: 1,040 steps on 8 A100-80G.
Changed   a box is a closed \\boxed{...}.
"""
_script = "train_grpo.py"

name = "deepscaler_8k"
model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"  # MODEL_PATH
data = "deepscaler"                   # data.train_files: DeepScaleR-Preview-Dataset, 40,315 rows
template = "deepscaler"               # scripts/data/deepscaler_dataset.py: a suffix to the user's turn, no system turn
reward = "deepscaler_math"            # 1 / 0: the last box after </think>
max_prompt_len = 1024                 # data.max_prompt_length

num_steps = 1040                      # published: continued with 16K from step 1,040
prompts_per_step = 128                # data.train_batch_size
group_size = 8                        # rollout.n
max_response_len = 8192               # data.max_response_length
temperature = 0.6                     # rollout.temperature
top_p = 1.0                           # rollout.top_p, default

updates_per_step = 2                  # actor.ppo_mini_batch_size=64 of 128 prompts
adv_std = True                        # algorithm.adv_estimator=grpo
adv_eps = 1e-6                        # verl
loss_agg = "token_mean"               # verl's masked mean (inferred)
clip_low = 0.2                        # actor.clip_ratio, default
clip_high = 0.2
kl_in = "loss_k3"                     # actor.use_kl_loss=True, kl_loss_type=low_var_kl
kl_coef = 0.001                       # actor.kl_loss_coef
entropy_coef = 0.001                  # actor.entropy_coeff, default

lr = 1e-6                             # actor.optim.lr
lr_schedule = "constant"              # verl default
warmup_steps = 0                      # verl default
adam_beta1 = 0.9                      # verl default
adam_beta2 = 0.999                    # verl default
weight_decay = 0.01                   # verl default
grad_clip = 1.0                       # actor.grad_clip, default

eval_every = 10                       # trainer.test_freq
save_every = 10                       # trainer.save_freq
eval_data = "aime24"                  # data.val_files=data/aime.parquet
eval_prompts = 30                     # all of AIME24
eval_samples = 16                     # rollout.n_val, at val_temperature 0.6
