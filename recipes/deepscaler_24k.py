"""
DeepScaleR, stage 3 of 3: context 24K; starts from the model of the 16K stage.

Source    agentica-project/deepscaler @95ef74f scripts/train/run_deepscaler_1.5b_24k.sh
Launch    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 train_grpo.py
          recipes/deepscaler_24k.py          (after deepscaler_16k.py; one node works too, more slowly)
Published from step 1,520 on, on 32 A100-80G; the results are in deepscaler_8k.py.
Changed   only the weights are taken over, the optimizer starts fresh.
"""
from recipes.deepscaler_16k import *  # noqa: F403

_script = "train_grpo.py"

name = "deepscaler_24k"
model = "out/deepscaler_16k/model"    # --model: the checkpoint of the 16K stage
num_steps = 240                       # ours: the script sets no end
max_response_len = 24576              # data.max_response_length
