"""
Run a real pretrained model through the same script: SmolLM2-135M-Instruct (real BPE, chat template, grouped-query
attention, tied embeddings, pad == eos) on TinyZero's Countdown. A smoke test on a CPU: the model is not expected to
learn in these few steps, but engine and trainer must agree (mismatch_mean).
"""
_script = "train_grpo.py"

name = "demo-smollm"
model = "out/smollm2"
data = "countdown"
template = "tinyzero_instruct"      # the same <|im_start|> markers that SmolLM2's own chat template writes
reward = "tinyzero_countdown"
reward_parts = {"cosine": 1.0}      # by length: the model never solves the task, and equal rewards teach nothing

num_steps = 4
eval_every = 2
save_every = 0
eval_prompts = 8
eval_samples = 1
data_limit = 2000

prompts_per_step = 4
group_size = 4
max_prompt_len = 256
max_response_len = 96
max_num_seqs = 16
lr = 1e-6
checkpointing = False
max_tokens_per_gpu = 2048
