"""Unsloth in miniature: GRPO with the five parts of its notebook and its answer form, on boxed arithmetic."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_grpo.py"

name = "unsloth"
template = "{prompt_reasoning}"
reward = "unsloth_gsm8k"              # xmlcount, soft, strict, integer 0.5 each, correctness 2
prompts_per_step = 16                 # 1 there: such a step would take no time here, and fluctuate
temperature = 0.9
adv_std = True
adv_eps = 1e-4
loss_agg = "seq_mean"
kl_in = "loss_k3"
kl_coef = 0.04
