"""
What a seed per request costs the engine: the same rollout with and without seeds, in turn, medians.

    OMP_NUM_THREADS=1 python bench/seeds.py --vocab 32000 [--out results/X]       # appends to X/seeds.md

On a CPU this is vLLM's V1 runner, and CPU time of one thread; a GPU has another sampler: docs/gpus.md.
"""

import os
import statistics
import sys
import tempfile
import time

import torch
from common import command, llama, parser_of
from transformers import AutoConfig

import rollout
from onebox.distributed import init_distributed

PROMPTS, GROUP, TOKENS = 32, 8, 60


def main():
    parser = parser_of(__doc__, "a folder for seeds.md")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    _, _, device = init_distributed()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as path:
        model = llama(args.vocab, 64, 4)
        model.config.eos_token_id = model.generation_config.eos_token_id = None  # every sequence runs its full length
        model.save_pretrained(path)
        llm = rollout.make_engine(path, config=AutoConfig.from_pretrained(path), dtype="float32", prompt_len=8,
                                  response_len=TOKENS, max_num_seqs=PROMPTS * GROUP, kv_cache_gb=0, tensor_parallel=1,
                                  seed=0, rank=0, device=device)
    rollout.sync_weights(model, llm, torch.float32, 0)
    seconds = {True: [], False: []}
    for number in range(args.repeats + 1):
        for seeded in (True, False):
            seeds = [[1 + 1000 * number + GROUP * i + k if seeded else None for k in range(GROUP)]
                     for i in range(PROMPTS)]
            before = clock()
            found = list(rollout.generate(llm, [(i, [5 + i, 7 + number]) for i in range(PROMPTS)], seeds, stop_ids=[],
                                          temperature=1.0, max_tokens=TOKENS, deadline_s=600, version=0,
                                          vocab_size=args.vocab))
            assert sum(len(r.response_ids) for r in found) == PROMPTS * GROUP * TOKENS
            if number:  # the first warms up
                seconds[seeded].append(clock() - before)
    with_seeds, without = (statistics.median(seconds[seeded]) for seeded in (True, False))
    each = (with_seeds - without) / PROMPTS / GROUP / TOKENS * 1e6
    row = (f"- `{command()}`, {time.strftime('%Y-%m-%d')}: {PROMPTS * GROUP} sequences of {TOKENS} tokens, vocabulary "
           f"{args.vocab:,}: {with_seeds:.3f} s with seeds, {without:.3f} s without ({with_seeds / without:.2f} x, "
           f"{each:.1f} us a token); {', '.join(f'{s:.3f}' for s in seconds[True])} against "
           f"{', '.join(f'{s:.3f}' for s in seconds[False])}\n")
    print(row)
    if args.out:
        with open(os.path.join(args.out, "seeds.md"), "a") as f:
            f.write(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
