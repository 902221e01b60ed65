"""
Logic-RL with REINFORCE++: Knights and Knaves from Qwen2.5-7B-Instruct, no critic and no group baseline.

Source    Unakar/Logic-RL @9d2c457 train_reinforce_plus (script): 16 prompts x 8, lr 1e-6, one epoch
Launch    torchrun --standalone --nproc-per-node=4 train_ppo.py recipes/logic_rl_reinforce_pp.py
Published the route of the paper (arXiv 2502.14768), whose results are in logic_rl_one_stage.py; 4 A100-80G.
Changed   truncated: -3; puzzles generated here; 3 people, as in the first stage of curriculum.sh.
"""
_script = "train_ppo.py"

name = "logic_rl_reinforce_pp"
model = "Qwen/Qwen2.5-7B-Instruct"    # MODEL_PATH
data = "kk:3"                         # data.train_files; the first stage of curriculum.sh
template = "logic_rl_instruct"        # examples/data_preprocess/kk.py, template_type=qwen-instruct
reward = "logic_rl_kk"                # 3 / -0.5 / -1 / -3, since e3e47ae
max_prompt_len = 512                  # data.max_prompt_length

num_steps = 56                        # trainer.total_epochs=1 = 900 / 16
prompts_per_step = 16                 # data.train_batch_size
group_size = 8                        # rollout.n
max_response_len = 2048               # data.max_response_length
temperature = 1.0                     # rollout.temperature
top_p = 1.0                           # rollout.top_p, default

estimator = "reinforce_pp"            # algorithm.adv_estimator=reinforce_plus_plus
gamma = 1.0                           # algorithm.gamma
lam = 1.0                             # return-to-go
whiten = True                         # returns whitened over all tokens of the batch
updates_per_step = 1                  # actor.ppo_mini_batch_size=256: the whole step
epochs_per_step = 1                   # actor.ppo_epochs, default
loss_agg = "token_mean"               # verl's masked mean
clip_low = 0.2                        # actor.clip_ratio, default
clip_high = 0.2
kl_in = "reward_k1"                   # KL in the token rewards
kl_coef = 0.001                       # algorithm.kl_ctrl.kl_coef
kl_target = 0.0                       # fixed
entropy_coef = 0.001                  # actor.entropy_coeff, default

lr = 1e-6                             # actor.optim.lr
lr_schedule = "constant"              # verl default
warmup_steps = 0                      # verl default
adam_beta1 = 0.9                      # verl default
adam_beta2 = 0.999                    # verl default
weight_decay = 0.01                   # verl default
grad_clip = 1.0                       # actor.grad_clip, default

eval_every = 10                       # trainer.test_freq
save_every = 10                       # trainer.save_freq
eval_data = "kk:5"                    # validation always on 5 people
eval_prompts = 100                    # all 100
eval_samples = 0                      # validation is greedy: the share of exactly 3
