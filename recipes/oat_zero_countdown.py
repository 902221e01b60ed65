"""
Oat-Zero's Countdown: GRPO from Qwen2.5-3B base with TinyZero's task, prompt and reward.

Source    sail-sg/oat-zero @2c1661b training/run_grpo.sh, with oat @56b9b57
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/oat_zero_countdown.py
Published self-reflection words exist at step 0; length follows the reward, not the amount of reflection; 8 GPUs.
Changed   top_p 1 instead of 0.9, which the original ignores in its log-probs; reward as in tinyzero_ppo.py; data
          generated here (published: lkevinzc/CountDownZero).
Not reproduced  advantages whitened a second time over the batch; the KL summed over tokens, so that 0.001 there is
          worth 0.001 x length here (a mean); the stop id 151645 (<|im_end|>). A response that ends in
          "\\nUser:" keeps it, which is text after the answer: 0.
"""
_script = "train_grpo.py"

name = "oat_zero_countdown"
model = "Qwen/Qwen2.5-3B"             # --pretrain
data = "countdown"                    # --prompt_data lkevinzc/CountDownZero
template = "tinyzero_base"            # TinyZero's
reward = "tinyzero_countdown"         # --oracle countdown
max_prompt_len = 256                  # --prompt_max_length

num_steps = 160                       # --num_prompt_epoch 1: of our 20,453 generated rows / 128
prompts_per_step = 128                # --rollout_batch_size
group_size = 8                        # --num_samples
max_response_len = 1024               # --generate_max_length
temperature = 1.0                     # --temperature
top_p = 1.0                           # --top_p 0.9 there
stop = ("\nUser:",)                   # stop strings of zero_countdown.py; the others are special tokens

updates_per_step = 8                  # --train_batch_size 128 of 1,024 responses
adv_std = True                        # --critic_type grpo
adv_eps = 1e-4                        # oat @56b9b57
loss_agg = "seq_mean"                 # oat: a mean of per-sequence means
clip_low = 0.2                        # --cliprange, default
clip_high = 0.2
kl_in = "loss_k3"                     # --beta; --kl_penalty_coef 0: none in the reward
kl_coef = 0.001                       # --beta
entropy_coef = 0.0                    # none

lr = 1e-6                             # --learning_rate
lr_schedule = "constant"              # ours: run_grpo.sh names none; --lr_warmup_ratio 0.0000001
warmup_steps = 0                      # --lr_warmup_ratio 0.0000001
adam_beta1 = 0.9                      # oat default
adam_beta2 = 0.95                     # oat default
weight_decay = 0.0                    # oat default
grad_clip = 1.0                       # oat default

eval_every = 8                        # --eval_steps
save_every = 0                        # --save_steps -1
eval_data = "countdown"               # --eval_split test
eval_prompts = 200                    # --eval_batch_size 200
eval_samples = 0                      # --eval_temperature 0
