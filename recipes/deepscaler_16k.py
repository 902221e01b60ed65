"""
DeepScaleR, stage 2 of 3: context 16K, 16 samples; starts from the model of the 8K stage.

Source    agentica-project/deepscaler @95ef74f scripts/train/run_deepscaler_1.5b_16k.sh
Launch    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 train_grpo.py
          recipes/deepscaler_16k.py          (after deepscaler_8k.py; one node works too, more slowly)
Published steps 1,040 to 1,520, on 32 A100-80G.
Changed   only the weights are taken over, the optimizer starts fresh.
"""
from recipes.deepscaler_8k import *  # noqa: F403

_script = "train_grpo.py"

name = "deepscaler_16k"
model = "out/deepscaler_8k/model"     # --model: the checkpoint of the 8K stage
num_steps = 480                       # 1,040 -> 1,520
group_size = 16                       # rollout.n
max_response_len = 16384              # data.max_response_length
