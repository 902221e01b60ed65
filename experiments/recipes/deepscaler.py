"""DeepScaleR in miniature, stage 1: a limit that cuts most of the long solutions; later stages raise it."""
from experiments.recipes.arithmetic import *  # noqa: F403

_script = "train_grpo.py"

name = "deepscaler"
data = {"custom:4": 0.5, "custom:9": 0.5}
data_path = {"custom:4": "out/world/data/arithmetic_4_train.jsonl",
             "custom:9": "out/world/data/arithmetic_9_train.jsonl"}
eval_path = {"custom:4": "out/world/data/arithmetic_4_test.jsonl",
             "custom:9": "out/world/data/arithmetic_9_test.jsonl"}
template = "{prompt_think_boxed}"
reward = "deepscaler_math"
max_response_len = 36                 # 8,192 there: nine operations take 54 tokens and the answer
adv_std = True
kl_in = "loss_k3"
kl_coef = 0.001
entropy_coef = 0.001
num_steps = 20
