"""
The embedded world's baseline: GRPO with TinyZero's reward on Countdown, from a start that searches but gives up early.

The problems have four numbers, + and -.
"""
_script = "train_grpo.py"

name = "countdown"
model = "out/world-countdown/model"
data = "countdown:42"
data_path = "out/world/data/countdown_42_train.jsonl"
eval_path = "out/world/data/countdown_42_test.jsonl"
template = "{prompt_text}"
reward = "tinyzero_countdown"

num_steps = 32
eval_every = 16
save_every = 0
eval_prompts = 200
eval_samples = 2

prompts_per_step = 16
group_size = 8
max_prompt_len = 64
max_response_len = 160
lr = 5e-4
lr_schedule = "constant"
adv_std = False                       # with it, the 0.1 that a truncated answer loses would weigh as much as a success
loss_agg = "token_mean"
weight_decay = 0.0
checkpointing = False
max_tokens_per_gpu = 8192
keep_rollouts = 16
report_every = 0                      # python -m tools.report out/survey-RUN makes one
