"""
Logic-RL from a base model: Knights and Knaves with GRPO from Qwen2.5-7B and the base prompt, in one stage.

Source    Unakar/Logic-RL @9d2c457 main_grpo.sh (as at HEAD: 64 prompts x 16), examples/data_preprocess/kk.py
          template_type=base
Launch    torchrun --standalone --nproc-per-node=4 train_grpo.py recipes/logic_rl_base.py
Published no table for the base model; the README's is in logic_rl_one_stage.py.
Changed   as in logic_rl_stage1.py; 3 to 7 people at once, as in the paper (the script names one size at a time).
"""
from recipes.logic_rl_stage1 import *  # noqa: F403

_script = "train_grpo.py"

name = "logic_rl_base"
model = "Qwen/Qwen2.5-7B"             # base
template = "logic_rl_base"            # template_type=base
data = "kk:3-7"                       # paper: fewer than 5,000 puzzles of 3 to 7 people; 4,500 rows
eval_data = "kk:5"                    # validation always on 5 people
num_steps = 350                       # trainer.total_epochs=5: 5 x 4,500 / 64
prompts_per_step = 64                 # data.train_batch_size
group_size = 16                       # rollout.n
updates_per_step = 2                  # actor.ppo_mini_batch_size=32 of 64 prompts (inferred: verl multiplies it by n)
lr = 3e-7                             # actor.optim.lr
