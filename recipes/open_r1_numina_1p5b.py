"""
open-r1's first GRPO recipe: NuminaMath-TIR from Qwen2.5-1.5B-Instruct.

Source    huggingface/open-r1, February 2025 (@52aa875 and neighbors), recipes/Qwen2.5-1.5B-Instruct/grpo, with
          TRL 0.14 / 0.15 (unnamed values are TRL's defaults)
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/open_r1_numina_1p5b.py
Published no result for this recipe; 8 H100 (7 train, 1 vLLM).
Changed   as in open_r1_math7b.py.
"""
_script = "train_grpo.py"

name = "open_r1_numina_1p5b"
model = "Qwen/Qwen2.5-1.5B-Instruct"  # model_name_or_path
data = "numina_tir"                   # dataset_name: AI-MO/NuminaMath-TIR, 72,441 rows; gold: the whole worked solution
template = "open_r1_think_answer"     # grpo.py SYSTEM_PROMPT, through the chat template
reward = "open_r1_math"               # reward_funcs: accuracy, format; weight 1 each
max_prompt_len = 1024                 # max_prompt_length 512, see above

num_steps = 282                       # num_train_epochs: 1 = 72,441 / 256
prompts_per_step = 256                # per_device_train_batch_size 16 x gradient_accumulation_steps 16 x 7 GPUs / 7
group_size = 7                        # num_generations (8 and 2 before)
max_response_len = 1024               # max_completion_length
temperature = 0.9                     # TRL default of the time
top_p = 1.0                           # TRL default

updates_per_step = 1                  # TRL 0.14: one update a batch, so that nothing is ever clipped
adv_std = True                        # TRL: divided by the std of the group
adv_eps = 1e-4                        # TRL
loss_agg = "seq_mean"                 # TRL 0.14: a mean of per-sequence means
clip_low = 0.2                        # without effect
clip_high = 0.2
kl_in = "loss_k3"                     # TRL
kl_coef = 0.04                        # beta, default
entropy_coef = 0.0                    # none in TRL of the time

lr = 2e-5                             # learning_rate
lr_schedule = "cosine"                # lr_scheduler_type
lr_min_ratio = 0.0                    # cosine: to 0
warmup_steps = 28                     # warmup_ratio: 0.1
adam_beta1 = 0.9                      # transformers default
adam_beta2 = 0.999                    # transformers default
weight_decay = 0.0                    # transformers default
grad_clip = 1.0                       # max_grad_norm, default

eval_every = 100                      # eval_steps
save_every = 0                        # save_strategy: "no"
eval_data = "math500"                 # MATH-500 of the README
eval_prompts = 500                    # all 500
eval_samples = 1                      # ours
