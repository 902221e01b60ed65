"""
Logic-RL, stage 2 of 3: 5 people, more samples, a higher temperature; starts from the model of stage 1.

Source    Unakar/Logic-RL, the maintainer's answers (issues 5, 33, 50, 51) as summarized there by a user
Launch    torchrun --standalone --nproc-per-node=4 train_grpo.py recipes/logic_rl_stage2.py      (after stage 1)
Published a temperature of 1.2 is fragile: an independent re-run with 32 samples collapsed near step 140 (no EOS any
          more). Watch the truncated share; the maintainer's later advice is logic_rl_one_stage.py.
Changed   as in stage 1; only the weights are taken over, the optimizer starts fresh.
"""
from recipes.logic_rl_stage1 import *  # noqa: F403

_script = "train_grpo.py"

name = "logic_rl_stage2"
model = "out/logic_rl_stage1/model"   # the model that stage 1 leaves
data = "kk:5"                         # 5 people
eval_data = "kk:5"                    # 5 people
num_steps = 225                       # two to three epochs: 2 x 900 / 8
group_size = 64                       # 32 -> 64
temperature = 1.2                     # "about 1.2"
lr = 4e-7                             # 4e-7 in stage 2
