"""
An example of a mixture: puzzles of two kinds and word problems in fixed shares, each with its own prompt and reward.

Source    none: our example of shares by task and difficulty ("kk:3-5" and "math@3-5" choose a range)
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/mixture_example.py
Note      any 10 draws in a row hold 5 Countdown, 3 Knights and Knaves and 2 GSM8K prompts; at no point is a data set a
          full draw off its share. The rewards have different ranges (0..1, -3..3, 0..4); dividing by the group's std
          makes them comparable.
          --data_path is for all sources: a directory with countdown_train.jsonl, kk_train.jsonl, gsm8k_train.jsonl ...
"""
_script = "train_grpo.py"

name = "mixture_example"
model = "Qwen/Qwen2.5-3B-Instruct"
data = {"countdown": 0.5, "kk:3": 0.3, "gsm8k": 0.2}
template = {"countdown": "tinyzero_instruct", "kk:3": "logic_rl_instruct", "gsm8k": "unsloth_gsm8k"}
reward = {"countdown": "tinyzero_countdown", "kk:3": "logic_rl_kk", "gsm8k": "unsloth_gsm8k"}
max_prompt_len = 512

num_steps = 200
prompts_per_step = 80
group_size = 8
max_response_len = 1024
temperature = 1.0

adv_std = True
loss_agg = "token_mean"
clip_low = 0.2
clip_high = 0.28
kl_in = "none"
lr = 1e-6

eval_every = 20
save_every = 100
eval_data = {"countdown": 1, "kk:3": 1, "gsm8k": 1}
eval_prompts = 100
eval_samples = 1
