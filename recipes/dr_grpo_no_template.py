"""
Dr. GRPO without a template: MATH-12K from Qwen2.5-Math-1.5B, which answers bare questions best.

Source    sail-sg/understand-r1-zero @dfca49d examples/qwen2.5-math-1.5b.sh, with train_zero_math.py
          apply_no_template; paper arXiv 2503.20783, section on templates and question sets
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/dr_grpo_no_template.py
Published the untrained model without a template: AIME24 16.7, AMC 43.4, MATH500 61.8, Minerva 15.1, OlympiadBench 28.4;
          Oat-Zero-1.5B (Qwen-Math template): 20.0 / 53.0 / 74.2 / 25.7 / 37.6.
Changed   as in dr_grpo_qwen_math.py. MATH-12K holds MATH-test problems outside MATH500.
"""
from recipes.dr_grpo_qwen_math import *  # noqa: F403

_script = "train_grpo.py"

name = "dr_grpo_no_template"
model = "Qwen/Qwen2.5-Math-1.5B"      # --pretrain
data = "math_12k"                     # --prompt_data ./datasets/train/math_12k, 12,000 rows
template = "no_template"              # apply_no_template: the question alone
num_steps = 1875                      # --num_prompt_epoch 20 x 12,000 / 128; lr is constant: stop anywhere
