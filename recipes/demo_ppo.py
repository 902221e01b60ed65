"""
The demo's task and model with PPO: one sample of each prompt and a critic in place of GRPO's groups.
"""
_script = "train_ppo.py"

name = "demo-ppo"
model = "out/demo-base/model"
data = "tiny_countdown"
template = "tiny_countdown"
reward = "tinyzero_countdown"

num_steps = 30
eval_every = 10
save_every = 0
eval_prompts = 200
eval_samples = 4

prompts_per_step = 256
group_size = 1
updates_per_step = 4          # the critic starts from nothing: it needs the updates more than the policy does
max_prompt_len = 16
max_response_len = 200
lr = 1e-4
critic_lr = 3e-3
critic_warmup_steps = 5       # 20 updates of the critic
loss_agg = "token_mean"
weight_decay = 0.0
checkpointing = False
max_tokens_per_gpu = 8192
