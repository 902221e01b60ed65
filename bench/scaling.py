"""
How the trainer step scales: seconds and peak memory against tokens, vocabulary, group size and ranks, on a small
random Llama.

    python bench/scaling.py [--tokens 8192 16384 32768 65536] [--hidden 256] [--layers 2] [--out results/X]

Each row is a process of its own (or two): forward, loss, backward, clip, AdamW; the second of two steps is timed. A
micro-batch holds all tokens, sequences have 256. "Beside weights" is the peak less what was there before the first step
(imports, weights, Adam) and less the gradient. Expected: seconds linear in tokens; memory beside weights linear in
tokens and without a (tokens x vocabulary) part: logits of 8,192 tokens would be 1 GB at a vocabulary of 32,000 and 5 GB
at 152,000, and as much again for their gradient; two ranks on two cores take about half the time of one (one process is
not wrapped by FSDP, two are).
"""

import json
import os
import subprocess
import sys
import time

from common import PROMPT_LEN, llama, make_rollouts, parser_of, peak_gb, save, token_mean

SEQUENCE = 256


def worker(num_tokens, vocab, group_size, hidden, layers):
    import torch

    from onebox.distributed import init_distributed
    from policy import Policy, make_adam, optimizer_step, pack, shard, token_logprobs
    from train_grpo import group_advantages, policy_loss

    torch.set_num_threads(1)
    rank, world, device = init_distributed()
    hf = llama(vocab, hidden, layers, num_key_value_heads=hidden // 64, attn_implementation="packed")
    policy = shard(Policy(hf), hf.get_decoder(), device, "float32")
    optimizer = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)
    rollouts = make_rollouts([SEQUENCE - PROMPT_LEN] * (num_tokens // SEQUENCE), vocab)
    rewards = torch.arange(len(rollouts)).remainder(2).reshape(-1, group_size)
    before = peak_gb()
    for _ in range(2):
        start = time.perf_counter()
        advantages, loss_weights = group_advantages(rewards, True).flatten(), token_mean(rollouts)
        for batch in pack(rollouts, range(len(rollouts)), num_tokens, rank, world, device):
            logprobs, _ = token_logprobs(policy, batch, 1.0)
            loss = policy_loss(logprobs, logprobs.detach(), advantages[batch.response_index], 0.2, 0.2)
            ((loss_weights[batch.response_index] * loss).sum() * world).backward()
        optimizer_step(policy, optimizer, 1e-6, 1.0)
        seconds = time.perf_counter() - start
    if rank == 0:
        gradient_gb = sum(p.numel() for p in policy.parameters()) * 4 / world / 1e9
        print(json.dumps({"seconds": seconds, "peak_gb": peak_gb(), "loaded_gb": before, "gradient_gb": gradient_gb}))


def main():
    parser = parser_of(__doc__, "X.md gets the table, X.json every number")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--vocabs", type=int, nargs="+", default=[32_000, 64_000, 152_000])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    if args.worker:
        return worker(*map(int, args.worker))
    base, vocab = args.tokens[0], args.vocabs[0]
    group = args.groups[-1] if base >= SEQUENCE * args.groups[-1] else 2
    cases = [("tokens", n, vocab, group, 1) for n in args.tokens]
    cases += [("vocabulary", base, v, group, 1) for v in args.vocabs[1:]]
    cases += [("group size", args.tokens[1], vocab, g, 1) for g in args.groups]
    cases += [("ranks", args.tokens[-1], vocab, group, 2)]
    lines = ["| varied | tokens | vocabulary | group | ranks | seconds | tokens/s | peak GB (rank 0) | beside weights "
             "GB |",
             "|" + "---|" * 9]
    raw = []
    for name, tokens, v, g, ranks in cases:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        arguments = [str(x) for x in (tokens, v, g, args.hidden, args.layers)]
        done = subprocess.run([sys.executable, *torchrun, __file__, "--worker", *arguments], text=True, check=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        raw.append({"varied": name, "tokens": tokens, "vocabulary": v, "group": g, "ranks": ranks, **found})
        lines.append(f"| {name} | {tokens} | {v} | {g} | {ranks} | {found['seconds']:.2f} | "
                     f"{tokens / found['seconds']:.0f} | {found['peak_gb']:.2f} | "
                     f"{found['peak_gb'] - found['loaded_gb'] - found['gradient_gb']:.2f} |")
        print(lines[-1], flush=True)
    save(args.out, lines, f"one thread a rank, fp32, {args.layers} layers of {args.hidden}", raw)


if __name__ == "__main__":
    main()
