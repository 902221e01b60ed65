"""
Logic-RL, stage 1 of 3: Knights and Knaves with 3 people, GRPO from Qwen2.5-7B-Instruct.

Source    Unakar/Logic-RL @9d2c457 main_grpo.sh, batch and group as at @0863731 and in the maintainer's answers (issues
          5, 33, 50, 51): samples per prompt 32 -> 64 -> 16 over the stages, "rough experience values, not ablated"
Launch    torchrun --standalone --nproc-per-node=4 train_grpo.py recipes/logic_rl_stage1.py
Published 4 A100-80G; an instruct model starts near 45 % right, its length grows from 700 to 1,200 tokens. 7B after 400
          steps: .77 / .83 / .77 / .76 / .73 / .53 / .57 right on the official test with 2 to 8 people.
Changed   the KL is a penalty (@0863731 subtracts its KL term from the loss, which maximizes it); truncated: -3.
          Puzzles are generated here, equal to the published ones byte for byte (index 100-999 train, 1000-1099 test).
"""
_script = "train_grpo.py"

name = "logic_rl_stage1"
model = "Qwen/Qwen2.5-7B-Instruct"    # MODEL_PATH (README: Qwen2.5-7B-Instruct-1M)
data = "kk:3"                         # data.train_files=data/kk/instruct/3ppl/train.parquet, 900 rows
template = "logic_rl_instruct"        # examples/data_preprocess/kk.py, template_type=qwen-instruct
reward = "logic_rl_kk"                # 3 / -0.5 / -1 / -3, since e3e47ae
max_prompt_len = 400                  # data.max_prompt_length

num_steps = 112                       # issues: one epoch = 900 / 8
prompts_per_step = 8                  # data.train_batch_size
group_size = 32                       # issues: stage 1 (main_grpo.sh: 16)
max_response_len = 2048               # data.max_response_length
temperature = 1.0                     # rollout.temperature, default
top_p = 1.0                           # rollout.top_p, default

updates_per_step = 1                  # actor.ppo_mini_batch_size=256: the whole step
adv_std = True                        # algorithm.adv_estimator=grpo
adv_eps = 1e-6                        # verl/trainer/ppo/core_algos.py
loss_agg = "token_mean"               # verl's masked mean
clip_low = 0.2                        # actor.clip_ratio, default
clip_high = 0.2
kl_in = "loss_k3"                     # actor.use_kl_loss=True, kl_loss_type=low_var_kl
kl_coef = 0.001                       # actor.kl_loss_coef
entropy_coef = 0.001                  # actor.entropy_coeff, default

lr = 3e-7                             # actor.optim.lr
lr_schedule = "constant"              # verl default
warmup_steps = 0                      # verl default
adam_beta1 = 0.9                      # verl default
adam_beta2 = 0.999                    # verl default
weight_decay = 0.01                   # verl default
grad_clip = 1.0                       # actor.grad_clip, default

eval_every = 10                       # trainer.test_freq
save_every = 10                       # trainer.save_freq
eval_data = "kk:3"                    # data.val_files=data/kk/instruct/3ppl/test.parquet, 100 rows
eval_prompts = 100                    # all 100
eval_samples = 0                      # validation is greedy: the share of exactly 3
