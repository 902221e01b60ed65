"""
Logic-RL in one stage, as its maintainer advises instead of the three: lr 4e-7, temperature 0.7, 3,000 to 3,600 steps.

Source    Unakar/Logic-RL, the maintainer's answers (issues 5, 33, 50, 51); paper arXiv 2502.14768: 3,600 steps, batch
          8, 8 samples, lr 4e-7, temperature 0.7, KL 0.001, response 4,096
Launch    torchrun --standalone --nproc-per-node=4 train_grpo.py recipes/logic_rl_one_stage.py
Published README, official test with 2 to 8 people: .99 / .99 / .94 / .92 / .91 / .80 / .67 (the instruct model: .49 /
          .40 / .25 / .11 / .02 / .06 / .01), at temperature 1, 8,192 tokens, with a more lenient parser.
Changed   as in logic_rl_stage1.py; GRPO instead of the paper's REINFORCE++ (logic_rl_reinforce_pp.py).
"""
from recipes.logic_rl_stage1 import *  # noqa: F403

_script = "train_grpo.py"

name = "logic_rl_one_stage"
model = "Qwen/Qwen2.5-7B-Instruct"    # "from an instruct model"
data = "kk:3-7"                       # paper: 3 to 7 people, 4,500 rows
eval_data = "kk:5"                    # curriculum.sh: validation always on 5 people
num_steps = 3600                      # "one run of 3,000-3,600 steps"
prompts_per_step = 8                  # paper: batch 8
group_size = 8                        # paper
temperature = 0.7                     # issues and paper
max_prompt_len = 512                  # curriculum.sh
max_response_len = 4096               # paper, curriculum.sh
lr = 4e-7                             # issues and paper
save_every = 100                      # ours
eval_every = 50                       # ours
