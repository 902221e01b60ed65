"""
Dr. GRPO with the R1 template: MATH level 3 to 5 from Qwen2.5-Math-7B.

Source    sail-sg/understand-r1-zero @dfca49d examples/qwen2.5-math-7b.sh, first run; paper arXiv 2503.20783
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/dr_grpo_r1.py
Published no row of its own in the README (the Qwen-Math template: dr_grpo_qwen_math.py); 8 A100-40G.
Changed   as in dr_grpo_qwen_math.py.
"""
from recipes.dr_grpo_qwen_math import *  # noqa: F403

_script = "train_grpo.py"

name = "dr_grpo_r1"
template = "dr_grpo_r1"               # --prompt_template r1: prefills <think>
reward = "dr_grpo_r1"                 # answer_tag_reward_fn: "</think> <answer>" with exactly one space, 1 / 0
stop = ("</answer>",)                 # generation stops there, included
