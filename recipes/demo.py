"""
The demo: R1-Zero's phenomenon on a laptop, in minutes. Countdown with three small numbers, + and -, a model of 0.6
million parameters that was cold-started to search but gives up early, and GRPO with TinyZero's reward.
"""
_script = "train_grpo.py"

name = "demo"
model = "out/demo-base/model"
data = "tiny_countdown"
template = "tiny_countdown"
reward = "tinyzero_countdown"

num_steps = 80
eval_every = 10
save_every = 0
eval_prompts = 200
eval_samples = 4

prompts_per_step = 16
group_size = 16
max_prompt_len = 16
max_response_len = 200
lr = 1e-4
adv_std = False               # with it a truncated answer's lost 0.1 would weigh as much as a success
loss_agg = "token_mean"
weight_decay = 0.0
checkpointing = False
max_tokens_per_gpu = 8192

