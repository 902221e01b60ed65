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

# Tried with seed 0, held-out success before 37 %. One update a step: 5e-4 constant, 93.5 % at step 12; 5e-4, 7e-4, 1e-3 falling
# linearly to 0 over 14 to 16 steps, 93.2, 93.5, 90.6 %; 1e-4 constant needs 80 steps. Two updates, 4e-4, 16 steps: 95.4 %.
# Four updates, 3e-4, 16 steps: 94.9 % at step 8, 95.6 % at the end.
num_steps = 10
eval_every = 5
save_every = 0
eval_prompts = 200
eval_samples = 4

prompts_per_step = 16
group_size = 16
max_prompt_len = 16
max_response_len = 200
updates_per_step = 4          # sampling costs more than training here: the same rollouts, four times as many updates
lr = 3e-4
lr_schedule = "linear"
adv_std = False               # with it a truncated answer's lost 0.1 would weigh as much as a success
loss_agg = "token_mean"
weight_decay = 0.0
checkpointing = False
max_tokens_per_gpu = 8192

