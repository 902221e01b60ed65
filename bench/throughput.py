"""
Generators/s, SFT tokens/s and weight sync GB/s on one core. (rewards/s: bench/rewards.py)

    python bench/throughput.py --model out/smollm2 [--no_engine] [--out results/X]

generators: puzzles made in one call. SFT: forward, loss, backward, clip, AdamW on 8 x 256 tokens, median of 3. Sync:
the policy's weights into a running engine, one tensor at a time, median of 5, beside a plain copy of as many bytes.
"""

import argparse
import os
import platform
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.trainer import make_rollouts  # noqa: E402


def seconds_of(function, repeats):
    function()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/smollm2")
    parser.add_argument("--no_engine", action="store_true", help="leave out the weight sync")
    parser.add_argument("--out", default="", help="X: X.md gets the table")
    args = parser.parse_args()
    import torch

    from onebox import distributed
    import policy as model
    from tasks import puzzles
    import rollout as sampler
    from eval import resolve_model

    torch.set_num_threads(1)
    lines = ["| what | measured |", "|---|---|"]

    def add(what, measured):
        lines.append(f"| {what} | {measured} |")
        print(lines[-1], flush=True)

    for name, make, count in (
        ("Countdown", lambda n: puzzles.countdown(n, seed=0), 2000),
        ("the demo's Countdown", lambda n: puzzles.tiny_countdown(n, seed=0), 2000),
    ):
        start = time.perf_counter()
        made = len(list(make(count)))
        add(f"generator: {name}", f"{made / (time.perf_counter() - start):,.0f} problems/s")

    device = distributed.init_distributed()[2]
    path, config, _, _ = resolve_model(args.model, 512)
    policy = model.load_policy(path, device, "float32")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    rollouts = make_rollouts([192] * 8, config.vocab_size)

    def sft_step():
        (batch,) = model.pack(rollouts, range(8), 4096, 0, 1, device)
        (-model.token_logprobs(policy, batch, 1.0)[0].sum() / (8 * 192)).backward()
        model.clip_and_step(policy, optimizer, 1.0, 1e-6)

    add(f"SFT, {args.model}, fp32", f"{8 * 256 / seconds_of(sft_step, 3):,.0f} tokens/s")
    if not args.no_engine:
        engine = sampler.make_engine(
            path,
            config=config,
            dtype="float32",
            prompt_len=64,
            response_len=64,
            max_num_seqs=8,
            kv_cache_gb=0,
            tensor_parallel=1,
            seed=0,
            rank=0,
            device=device,
            stop_strings=False,
        )
        gigabytes = sum(p.numel() for p in policy.parameters()) * 4 / 1e9
        flat = torch.ones(int(gigabytes * 0.25e9))
        sync = seconds_of(lambda: sampler.sync_weights(policy.hf, engine, torch.float32, 0), 5)
        copy = seconds_of(flat.clone, 5)
        add(
            f"weight sync, {gigabytes:.2f} GB", f"{gigabytes / sync:.2f} GB/s; a plain copy {gigabytes / copy:.2f} GB/s"
        )
    if args.out:
        with open(args.out + ".md", "w") as f:
            f.write(
                f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread, torch "
                f"{torch.__version__}\n\n" + "\n".join(lines) + "\n"
            )


if __name__ == "__main__":
    main()
