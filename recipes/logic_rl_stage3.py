"""
Logic-RL, stage 3 of 3: annealing. The data of stage 2, fewer samples, lower temperature and learning rate.

Source    Unakar/Logic-RL, the maintainer's answers (issues 5, 33, 50, 51) as summarized there by a user
Launch    torchrun --standalone --nproc-per-node=4 train_grpo.py recipes/logic_rl_stage3.py      (after stage 2)
Published about 600 steps in all three stages; the end result is in logic_rl_stage1.py.
Changed   as in stage 1. The cosine decay is real here; "cosine" in the verl of Logic-RL does nothing.
Not reproduced  the temperature falls from 1.2 to 0.9 within the stage; here it is 0.9 throughout.
"""
from recipes.logic_rl_stage2 import *  # noqa: F403

_script = "train_grpo.py"

name = "logic_rl_stage3"
model = "out/logic_rl_stage2/model"   # the model that stage 2 leaves
num_steps = 263                       # two to three epochs; 112 + 225 + 263 = 600 steps in all
group_size = 16                       # 64 -> 16
temperature = 0.9                     # 1.2 -> 0.9
lr = 4e-7                             # 4e-7 -> 2e-7
lr_schedule = "cosine"                # cosine decay
lr_min_ratio = 0.5                    # to 2e-7
