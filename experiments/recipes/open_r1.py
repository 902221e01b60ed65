"""open-r1 in miniature: GRPO with accuracy + format, its answer form, KL in the loss, on boxed arithmetic."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_grpo.py"

name = "open_r1"
template = "{prompt_think_answer}"
reward = "open_r1_math"               # accuracy 1 + format 1
group_size = 8                        # 7 there
temperature = 0.9
adv_std = True
adv_eps = 1e-4
loss_agg = "seq_mean"
kl_in = "loss_k3"
kl_coef = 0.04
