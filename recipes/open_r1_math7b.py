"""
open-r1's "simple RL": GRPO on MATH from Qwen2.5-Math-7B base.

Source    huggingface/open-r1 @571661a and later, February 2025, recipes/Qwen2.5-Math-7B/grpo/config_simple_rl.yaml,
          with TRL 0.14 / 0.15 (unnamed values are TRL's defaults)
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/open_r1_math7b.py
Published MATH500 69.4 after about 3 h on 8 H100 (7 train, 1 vLLM). An independent re-run of 400 steps: 74.4 at step
          100, 72.0 at step 400.
Changed   \\frac12 is accepted in gold and answer; the format regex must match the whole response; truncated: 0; rows
          whose gold cannot be parsed are dropped; log-probs at the sampling temperature (TRL of the time: at 1).
          Prompts up to 1,024 tokens: TRL cuts what exceeds 512 at the left, system prompt first. We never cut a prompt;
          a limit of 512 would refuse about 2 % of MATH.
Not reproduced  evaluation with lighteval at temperature 0.6, top_p 0.95, 32,768 tokens.
"""
_script = "train_grpo.py"

name = "open_r1_math7b"
model = "Qwen/Qwen2.5-Math-7B"        # model_name_or_path
data = "math"                         # dataset_name: DigitalLearningGmbH/MATH-lighteval
template = "open_r1_think_answer"     # grpo.py SYSTEM_PROMPT, through the chat template
reward = "open_r1_math"               # reward_funcs: accuracy, format; weight 1 each
max_prompt_len = 1024                 # max_prompt_length 512, see above

num_steps = 58                        # num_train_epochs: 1 = 7,500 / 128
prompts_per_step = 128                # per_device_train_batch_size 16 x gradient_accumulation_steps 8 x 7 GPUs / 7
group_size = 7                        # num_generations (571661a: 8)
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

lr = 3e-6                             # learning_rate
lr_schedule = "cosine"                # lr_scheduler_type
lr_min_ratio = 0.0                    # cosine: to 0
warmup_steps = 6                      # warmup_ratio: 0.1
adam_beta1 = 0.9                      # transformers default
adam_beta2 = 0.999                    # transformers default
weight_decay = 0.0                    # transformers default
grad_clip = 1.0                       # max_grad_norm, default

eval_every = 10                       # ours; eval_steps: 100 is never reached in one epoch
save_every = 0                        # save_strategy: "no"
eval_data = "math500"                 # MATH-500 of the README
eval_prompts = 500                    # all 500
eval_samples = 1                      # ours
