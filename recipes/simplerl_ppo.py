"""
SimpleRL-Zero (v0): PPO on 8K problems of MATH level 3 to 5, from Qwen2.5-Math-7B base, on one node of 8 GPUs.

Source    hkust-nlp/simpleRL-reason @2702a87 (branch v0) train/examples/script/train_ppo_qwen_base_math_lv35_new.sh
Launch    torchrun --standalone --nproc-per-node=8 train_ppo.py recipes/simplerl_ppo.py
Published AIME24 33.3, MATH500 77.2, AMC23 62.5, Minerva 33.5, OlympiadBench 37.6 (base 16.7 / 52.4 / 52.5 / 12.9 /
          16.4) after 120 steps, 1.5 days on 32 H/A100-80G (simplerl_ppo_32gpu.py); 60 steps suffice. An independent
          re-run found 8 GPUs equal in quality and 3.2 times slower.
Changed   500 and 0.05 are not accepted for 5; a box is a closed \\boxed{...}; truncated: -1; log-probs at the sampling
          temperature 0.6 (the original never divides by it).
Not reproduced  EOS written onto truncated responses; 16 separate engines; test sets gaokao2023en and college_math.
"""
_script = "train_ppo.py"

name = "simplerl_ppo"
model = "Qwen/Qwen2.5-Math-7B"        # --pretrain
critic_model = ""                     # critic from the same weights
data = "math_lvl3to5"                 # math_level3to5_data_processed_with_qwen_prompt.json, 8,523 rows
_boxed, _boxed_eval = "simplerl_qwen_boxed", "simplerl_qwen_boxed_eval"  # the latter with a newline after "assistant"
template = {"math_lvl3to5": _boxed, "gsm8k": _boxed_eval, "math500": _boxed_eval, "minerva_math": _boxed_eval,
            "olympiadbench": _boxed_eval, "aime24": _boxed_eval, "amc23": _boxed_eval}  # column input; eval/utils.py
reward = "simplerl_math"              # +1 / -0.5 / -1
max_prompt_len = 1024                 # --prompt_max_len

num_steps = 160                       # --num_episodes 20 x 8 rollouts of 1,024 of the 8,523 prompts
prompts_per_step = 1024               # --rollout_batch_size
group_size = 8                        # --n_samples_per_prompt
max_response_len = 3000               # --generate_max_len
temperature = 0.6                     # --temperature
top_p = 1.0                           # --top_p

estimator = "gae"                     # OpenRLHF default
gamma = 1.0                           # --gamma
lam = 0.95                            # --lambd
critic_lam = 0.95                     # the same lambda for the critic's returns
whiten = True                         # over the whole rollout buffer, on all ranks
updates_per_step = 64                 # --train_batch_size 128 of 8,192 responses
epochs_per_step = 1                   # --max_epochs
clip_low = 0.2                        # --eps_clip, default
clip_high = 0.2
value_clip = 0.2                      # --value_clip, default
loss_agg = "seq_mean"                 # OpenRLHF's PolicyLoss: a mean of per-sequence means
kl_in = "reward_k1"                   # per token
kl_coef = 0.01                        # --init_kl_coef
kl_target = 0.0                       # fixed
truncation_bootstrap = "zero"         # nothing follows the last token
dual_clip = 0.0                       # none
entropy_coef = 0.0                    # none in this OpenRLHF

lr = 5e-7                             # --actor_learning_rate
critic_lr = 9e-6                      # --critic_learning_rate
critic_warmup_steps = 0               # --freezing_actor_steps, default
lr_schedule = "cosine"                # cosine_with_min_lr
lr_min_ratio = 0.1                    # to 10 %
critic_lr_schedule = "cosine"         # the same scheduler for both
warmup_steps = 5                      # 3 % of 10,640 optimizer steps = 319, 64 to a step
adam_beta1 = 0.9                      # OpenRLHF default
adam_beta2 = 0.95                     # OpenRLHF default
weight_decay = 0.0                    # --l2, default
grad_clip = 1.0                       # --max_norm, default

eval_every = 4                        # ours
save_every = 20                       # ours
eval_data = {"gsm8k": 1, "math500": 1, "minerva_math": 1, "olympiadbench": 1, "aime24": 1, "amc23": 1}  # eval/
eval_prompts = 2000                   # at most, of each set: all
eval_samples = 0                      # greedy, one sample, 3,000 tokens
