"""
How the trainer step scales: seconds and peak memory against tokens, vocabulary, group size and ranks, on a small
random Llama.

    python bench/scaling.py [--tokens 8192 16384 32768 65536] [--hidden 256] [--layers 2] [--out results/X]

Each row is a process of its own (or two): forward, loss, backward, clip, AdamW; the second of two steps is timed. A
micro-batch holds all tokens, sequences have 256. "Beside weights" is the peak less what was there before the first step
(imports, weights) and less gradient and Adam. Expected: seconds linear in tokens; memory beside weights linear in tokens
and without a (tokens x vocabulary) part: logits of 8,192 tokens would be 1 GB at a vocabulary of 32,000 and 5 GB at
152,000, and as much again for their gradient; two ranks on two cores take about half the time of one (one process is not
wrapped by FSDP, two are).
"""

import argparse
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.trainer import make_rollouts  # noqa: E402

SEQUENCE, PROMPT = 256, 64


def worker(num_tokens, vocab, group_size, hidden, layers):
    import resource

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from onebox import distributed
    import policy as model
    from train_grpo import group_advantages, policy_loss, token_weights

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world, device = distributed.init_distributed()
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            attn_implementation="packed",
            tie_word_embeddings=True,
        )
    )
    policy = model.shard(model.Policy(hf), hf.get_decoder(), device, "float32")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    rollouts = make_rollouts([SEQUENCE - PROMPT] * (num_tokens // SEQUENCE), vocab)
    rewards = torch.arange(len(rollouts)).remainder(2).reshape(-1, group_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        start = time.perf_counter()
        advantages_R = group_advantages(rewards, True).flatten()
        lens = torch.tensor([len(r.response_ids) for r in rollouts])
        weights_R = token_weights(lens, len(lens), int(lens.sum()), "token_mean", 0)
        for batch in model.pack(rollouts, range(len(rollouts)), num_tokens, rank, world, device):
            logprobs, _ = model.token_logprobs(policy, batch, 1.0)
            loss = policy_loss(logprobs, logprobs.detach(), advantages_R[batch.response_index], 0.2, 0.2)
            ((weights_R[batch.response_index] * loss).sum() * world).backward()
        model.clip_and_step(policy, optimizer, 1.0, 1e-6)
        seconds = time.perf_counter() - start
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        weights = sum(p.numel() for p in policy.parameters()) * 16 / world
        print(
            json.dumps(
                {"seconds": seconds, "peak_gb": peak / 1e6, "loaded_gb": before / 1e6, "weights_gb": weights / 1e9}
            )
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--vocabs", type=int, nargs="+", default=[32_000, 64_000, 152_000])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", default="", help="X: X.md gets the table, X.json every number")
    parser.add_argument("--worker", type=int, nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    base, vocab, group = (
        args.tokens[0],
        args.vocabs[0],
        args.groups[-1] if args.tokens[0] >= SEQUENCE * args.groups[-1] else 2,
    )
    cases = [("tokens", n, vocab, group, 1) for n in args.tokens] + [
        ("vocabulary", base, v, group, 1) for v in args.vocabs[1:]
    ]
    cases += [("group size", args.tokens[1], vocab, g, 1) for g in args.groups] + [
        ("ranks", args.tokens[-1], vocab, group, 2)
    ]
    lines = [
        "| varied | tokens | vocabulary | group | ranks | seconds | tokens/s | peak GB (rank 0) | weights, gradient, Adam GB | beside weights GB |",
        "|" + "---|" * 10,
    ]
    raw = []
    for name, tokens, v, g, ranks in cases:
        launch = (
            [sys.executable]
            if ranks == 1
            else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        )
        arguments = [str(x) for x in (tokens, v, g, args.hidden, args.layers)]
        done = subprocess.run(
            [*launch, __file__, "--worker", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        raw.append({"varied": name, "tokens": tokens, "vocabulary": v, "group": g, "ranks": ranks, **found})
        lines.append(
            f"| {name} | {tokens} | {v} | {g} | {ranks} | {found['seconds']:.2f} | {tokens / found['seconds']:.0f} | "
            f"{found['peak_gb']:.2f} | {found['weights_gb']:.2f} | "
            f"{found['peak_gb'] - found['loaded_gb'] - 0.75 * found['weights_gb']:.2f} |"
        )
        print(lines[-1], flush=True)
    if args.out:
        with open(args.out + ".json", "w") as f:
            json.dump(raw, f)
        with open(args.out + ".md", "w") as f:
            f.write(
                f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, one thread a rank, fp32, {args.layers} layers "
                f"of {args.hidden}\n\n" + "\n".join(lines) + "\n"
            )


if __name__ == "__main__":
    main()
