"""
The demo: R1-Zero's phenomenon on a laptop, in minutes. Countdown with three small numbers, + and -, a model of 0.6
million parameters that was cold-started to search but gives up early, and GRPO with TinyZero's reward.
"""
_script = "train_grpo.py"

name = "demo"
model = "./demo_base/model"
data = "tiny_countdown"
template = "tiny_countdown"
reward = "tinyzero_countdown"

# How lr and steps were found (held-out success, 37 to 41 % before; prompts x samples, updates a step, lr falling
# linearly to 0): 16 x 16, 1 update: 5e-4, 16 steps 93.2; 7e-4, 14 steps 93.5; 1e-3, 14 steps 90.6. 16 x 16, 4
# updates: 3e-4, 10 steps 93.4; 4e-4, 12 steps 90.6 and 92.8. Training success stood higher than that: more problems a
# step help. 64 x 4, 4 updates, 2e-4, 16 steps: 93.4, 94.8, 94.5 with seeds 0, 1, 2. 64 x 8, 8 updates, 2e-4, 10
# steps: 95.8, 95.0, 95.4, whose logs are in results/2026-11-27_demo; those of the trials before were not kept.
num_steps = 10
eval_every = 5
save_every = 5
eval_prompts = 200
eval_samples = 4

prompts_per_step = 64
group_size = 8
max_prompt_len = 16
max_response_len = 200
updates_per_step = 8
lr = 2e-4
lr_schedule = "linear"
adv_std = False               # with it a truncated answer's lost 0.1 would weigh as much as a success
loss_agg = "token_mean"
weight_decay = 0.0
checkpointing = False
max_tokens_per_gpu = 8192

