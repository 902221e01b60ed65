"""
TinyZero's Countdown with GRPO from Qwen2.5-3B-Instruct, with the chat form of the prompt.

Source    Jiayi-Pan/TinyZero @95df88f examples/data_preprocess/countdown.py --template_type=qwen-instruct; else as in
          tinyzero_grpo.py
Launch    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo_instruct.py
Published no table and no cost.
Changed   as in tinyzero_grpo.py; the reward reads the response alone, so an "Assistant:" in it changes nothing.
"""
from recipes.tinyzero_grpo import *  # noqa: F403

_script = "train_grpo.py"

name = "tinyzero_grpo_instruct"
model = "Qwen/Qwen2.5-3B-Instruct"    # BASE_MODEL
template = "tinyzero_instruct"        # template_type=qwen-instruct: raw text, no call of the chat template
