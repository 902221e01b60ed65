"""
open-r1: NuminaMath-TIR from DeepSeek-R1-Distill-Qwen-7B.

Source    huggingface/open-r1, February 2025, recipes/DeepSeek-R1-Distill-Qwen-7B/grpo; settings as for 1.5B-Instruct
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/open_r1_numina_distill7b.py
Published an independent re-run of 400 steps: MATH500 89.6 -> 81.4, AIME24 26.7 -> 30.0; the model never
          learns the format.
Changed   as in open_r1_math7b.py, and: the model's chat template ends its generation prompt in <think>, so that no
          response can hold the opening tag and the format reward stays 0. Here that prefill is taken off (open-r1 later
          overrode the chat template for the same reason). 1,024 tokens cut most of this model's thinking, as published.
"""
from recipes.open_r1_numina_1p5b import *  # noqa: F403

_script = "train_grpo.py"

name = "open_r1_numina_distill7b"
model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"  # model_name_or_path
