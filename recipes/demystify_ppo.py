"""
Demystify-long-CoT: PPO with the cosine length reward and the dense repetition penalty, each with its own discount.

Source    eddycmu/demystify-long-cot @e90cf9b openrlhf/scripts/section_4__impact_of_reward_design_on_long_cot/
          section_4.2__active_scaling_of_cot_length__cosine_repetition_penalty.sh; paper arXiv 2502.03373
Launch    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 train_ppo.py
          recipes/demystify_ppo.py
Published the cosine reward keeps the length stable, where a 1 / 0 reward lets it grow without limit; the policy
          exploits it by repetition unless that is penalized; 2 nodes actor, 2 nodes critic, 32 engines; no result table
          in the repository.
Changed   grading by the last closed \\boxed{} (there the best of five extractions from prompt and response); nothing is
          right at the length limit.
Not reproduced  the start model (redacted in the script): Llama-3.1-8B after long-CoT SFT on samples of QwQ; make one
          with sft.py from your own traces. EOS written onto truncated responses.
"""
_script = "train_ppo.py"

name = "demystify_ppo"
model = "out/demystify-sft/model"     # --pretrain: a long-CoT SFT model, see above
critic_model = ""                     # the critic starts from it too
data = "math"                         # --prompt_data: MATH train, 7,500
template = "chat"                     # --apply_chat_template, --input_key prompt
reward = "demystify_cosine"           # math_rule_cosine_scale: right 2 -> 1, wrong -10 -> 0, exceed -10
repetition_ngram = 40                 # --math_rule_common_repetition_ngram_size
repetition_coef = 0.05                # --math_rule_repetition_dense_penalty -0.05, at each repeated token
max_prompt_len = 2048                 # --prompt_max_len

num_steps = 112                       # --num_episodes 8 x 14 rollouts of 512 of the 7,500 prompts
prompts_per_step = 512                # --rollout_batch_size
group_size = 16                       # --n_samples_per_prompt
max_response_len = 14336              # --generate_max_len
temperature = 1.0                     # OpenRLHF default
top_p = 1.0                           # OpenRLHF default

estimator = "gae"                     # OpenRLHF default
gamma = 1.0                           # with gammas: unused
gammas = {"task": 1.0, "repetition": 0.99}  # --gamma 1,0.99
lam = 1.0                             # --lambd
critic_lam = 1.0                      # the same lambda for the critic's returns
whiten = True                         # OpenRLHF default
updates_per_step = 16                 # --train_batch_size 512 of 8,192 responses
epochs_per_step = 2                   # --max_epochs
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
warmup_steps = 3                      # 3 % of 112 steps
adam_beta1 = 0.9                      # OpenRLHF default
adam_beta2 = 0.95                     # OpenRLHF default
weight_decay = 0.0                    # --l2, default
grad_clip = 1.0                       # --max_norm, default

eval_every = 8                        # --save_steps; evaluation was offline
save_every = 8                        # --save_steps
eval_data = {"math500": 1, "aime24": 1}  # paper: also TheoremQA and MMLU-Pro-1k, which are not here
eval_prompts = 500                    # at most, of each set: all
eval_samples = 1                      # ours
