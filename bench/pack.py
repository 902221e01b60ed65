"""
What packing costs the host: milliseconds of pack() for one micro-batch, where the GPU would wait for them.

    python bench/pack.py [--tokens 16384] [--repeats 30] [--threads 1] [--device cpu] [--repo FOLDER] [--out X]

Sequences of about 60 tokens, as in SFT, and of about 1,000, as in RL; ids as lists (what an engine's older rollouts
and sft.py hold) and as int32 arrays. Nothing else of the repository is used, so that --repo measures another commit of
it: `git worktree add ../old COMMIT`, then `python bench/pack.py --repo ../old`, in turn with this one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

KINDS = {"60 tokens": (20, 40), "1,000 tokens": (256, 744)}  # prompt, mean response


def make(tokens, prompt_len, response_len, as_arrays, vocab_size=49152):
    """Make rollouts of `tokens` packed tokens in all, with response lengths from half to one and a half of the mean."""
    rng, rollouts, left = np.random.default_rng(0), [], tokens
    while left > 0:
        n = min(left + 1, prompt_len + int(rng.integers(response_len // 2, response_len * 3 // 2 + 1)))
        ids = rng.integers(3, vocab_size, max(n, prompt_len + 1), dtype=np.int32)
        prompt, response = ids[:prompt_len], ids[prompt_len:]
        if not as_arrays:
            prompt, response = prompt.tolist(), response.tolist()
        rollouts.append(SimpleNamespace(prompt_ids=prompt, response_ids=response,
                                        rollout_logprobs=np.zeros(len(response), np.float32)))
        left -= len(ids) - 1
    return rollouts


def time_pack(pack, rollouts, tokens, device, repeats):
    """Return the milliseconds of each of `repeats` calls, after a warm-up; every call packs all rollouts."""
    import torch

    spent, limit = [], tokens + max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        batches = pack(rollouts, range(len(rollouts)), limit, 0, 1, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append((time.perf_counter() - start) * 1e3)
    assert len(batches) == 1 and sum(batches[0].lens) >= tokens, [sum(b.lens) for b in batches]
    return spent[1:]


def rows(pack, tokens, device, repeats):
    """Time each kind of rollouts, in turn; return {(kind, "lists" or "int32"): (sequences, milliseconds)}."""
    cases = {(kind, how): make(tokens, *sizes, how == "int32") for kind, sizes in KINDS.items()
             for how in ("lists", "int32")}
    found, rounds = {key: [] for key in cases}, 5
    for _ in range(rounds):
        for key, rollouts in cases.items():
            found[key] += time_pack(pack, rollouts, tokens, device, max(1, repeats // rounds))
    return {key: (len(cases[key]), spent) for key, spent in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repo", default=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--out", default="", help="a file to which the lines are added")
    args = parser.parse_args()
    sys.path.insert(0, os.path.abspath(args.repo))
    import torch

    from policy import pack

    torch.set_num_threads(args.threads)
    commit = subprocess.run(["git", "-C", args.repo, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    lines = [f"commit {commit.stdout.strip() or '?'}: {args.tokens:,} tokens, {args.device}, {args.threads} thread(s)"]
    for (kind, how), (count, spent) in rows(pack, args.tokens, torch.device(args.device), args.repeats).items():
        lines.append(f"{count:5d} sequences of {kind:12s} ids as {how:5s}  median {statistics.median(spent):7.2f} ms  "
                     f"least {min(spent):7.2f} ms")
    print("\n".join(lines))
    if args.out:
        with open(args.out, "a") as f:
            f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
