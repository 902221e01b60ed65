"""The cold start of an embedded model: experiments/world.py calls it with model, data, name and number of steps."""
_script = "sft.py"

tokens_per_step = 2048             # half as many would be noisier, twice as many slower: measured on countdown
max_tokens_per_gpu = 4096
max_len = 512
lr = 3e-3
warmup_steps = 20
checkpointing = False
