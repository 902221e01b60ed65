"""
Unsloth's GRPO notebook: GSM8K with five reward functions, here by full fine-tuning of Qwen2.5-1.5B-Instruct.

Source    unslothai/notebooks @bdda2ef nb/Llama3.1_(8B)-GRPO.ipynb and the Qwen2.5-3B notebook; @add7e30 (2025-02-06)
Launch    torchrun --standalone --nproc-per-node=1 train_grpo.py recipes/unsloth_gsm8k.py
Published no benchmark; 250 steps on one T4 or L4.
Changed   full fine-tuning of a 1.5B model instead of LoRA (rank 64) on a 4-bit 3B model: both are out of scope here;
          the soft and strict format match across lines, so that a perfect response earns 4 (as published 3.5); 1,000 is
          1000; truncated: all parts 0.
Not reproduced  8-bit AdamW.
"""
_script = "train_grpo.py"

name = "unsloth_gsm8k"
model = "Qwen/Qwen2.5-1.5B-Instruct"  # ours; Llama-3.1-8B, Qwen2.5-3B, Phi-4 there
data = "gsm8k"                        # openai/gsm8k main
template = "unsloth_gsm8k"            # SYSTEM_PROMPT, through the chat template
reward = "unsloth_gsm8k"              # xmlcount 0.5, soft 0.5, strict 0.5, integer 0.5, correctness 2
max_prompt_len = 256                  # max_prompt_length

num_steps = 250                       # max_steps
prompts_per_step = 1                  # per_device_train_batch_size 1
group_size = 8                        # num_generations of the Qwen2.5-3B notebook (Llama and Phi-4: 6)
max_response_len = 200                # max_completion_length (768 at HEAD)
temperature = 0.9                     # TRL default of the time
top_p = 1.0                           # TRL default

updates_per_step = 1                  # TRL: one update a batch
adv_std = True                        # TRL: divided by the std of the group
adv_eps = 1e-4                        # TRL
loss_agg = "seq_mean"                 # TRL of the day: a mean of per-sequence means
clip_low = 0.2                        # without effect
clip_high = 0.2
kl_in = "loss_k3"                     # TRL
kl_coef = 0.04                        # beta, default
entropy_coef = 0.0                    # none in TRL of the time

lr = 5e-6                             # learning_rate (of LoRA)
lr_schedule = "cosine"                # lr_scheduler_type
lr_min_ratio = 0.0                    # cosine: to 0
warmup_steps = 25                     # warmup_ratio = 0.1
adam_beta1 = 0.9                      # adam_beta1
adam_beta2 = 0.99                     # adam_beta2
weight_decay = 0.1                    # weight_decay (0.001 at HEAD)
grad_clip = 0.1                       # max_grad_norm

eval_every = 50                       # ours: no evaluation there
save_every = 250                      # save_steps
eval_data = "gsm8k"                   # test split
eval_prompts = 200                    # ours
eval_samples = 1                      # ours
