"""The demo's cold start: train the untrained model of tools/tiny.py on search traces that give up early."""
_script = "sft.py"

name = "demo-base"
model = "out/tiny-0/model"
data = "out/tiny-0/traces.jsonl"

num_steps = 1000
tokens_per_step = 4096
max_tokens_per_gpu = 4096
max_len = 512
lr = 3e-3
warmup_steps = 20
checkpointing = False
