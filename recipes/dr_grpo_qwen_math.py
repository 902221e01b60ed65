"""
Dr. GRPO (Oat-Zero-7B): MATH level 3 to 5 from Qwen2.5-Math-7B with the Qwen-Math template.

Source    sail-sg/understand-r1-zero @dfca49d examples/qwen2.5-math-7b.sh, second run; paper arXiv 2503.20783
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/dr_grpo_qwen_math.py
Published AIME24 43.3, AMC 62.7, MATH500 80.0, Minerva 30.1, OlympiadBench 41.0, average 51.4 (the base model with this
          template 26.5); 27 h on 8 A100-40G.
Changed   truncated importance weights, cap 2, as oat has since 2025-08 (mismatch_cap = 0: as in the paper).
Not reproduced  the 1 s timeout of the grader; the average is over sets there, over all prompts in our log.
"""
_script = "train_grpo.py"

name = "dr_grpo_qwen_math"
model = "Qwen/Qwen2.5-Math-7B"        # --pretrain
data = "math_lvl3to5"                 # --prompt_data ./datasets/train/math_lvl3to5_8k, 8,523 rows
template = "dr_grpo_qwen_math"        # --prompt_template qwen_math
reward = "dr_grpo_math"               # --verifier_version math_verify ("full"): boxed_reward_fn, 1 / 0
max_prompt_len = 1024                 # --prompt_max_length

num_steps = 1331                      # --num_prompt_epoch 20 x 8,523 / 128; lr is constant: stop anywhere
prompts_per_step = 128                # --rollout_batch_size
group_size = 8                        # --num_samples
max_response_len = 3000               # --generate_max_length
temperature = 1.0                     # --temperature
top_p = 1.0                           # --top_p
stop = ()                             # the template's own EOS

updates_per_step = 8                  # --train_batch_size 128 of 1,024 responses; --num_ppo_epochs 1
adv_std = False                       # --critic_type drgrpo: the reward minus the group's mean
loss_agg = "constant"                 # sum over tokens / generate_max_length, then a mean over responses
clip_low = 0.2                        # --cliprange, default
clip_high = 0.2
kl_in = "none"                        # --beta 0
kl_coef = 0.0                         # --beta 0
entropy_coef = 0.0                    # none
mismatch_cap = 2.0                    # none in the paper; oat from f9adda7

lr = 1e-6                             # --learning_rate
lr_schedule = "constant"              # --lr_scheduler constant
warmup_steps = 0                      # --lr_scheduler constant
adam_beta1 = 0.9                      # oat default
adam_beta2 = 0.95                     # oat default
weight_decay = 0.0                    # oat default
grad_clip = 1.0                       # oat default

eval_every = 16                       # --eval_steps
save_every = 0                        # --save_steps -1
eval_data = {"aime24": 1, "amc23_83": 1, "math500": 1, "minerva_math": 1, "olympiadbench": 1}  # --eval_data
eval_prompts = 1000                   # at most, of each set: all
eval_samples = 0                      # --eval_temperature 0
