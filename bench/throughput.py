"""
Generators/s, SFT tokens/s and weight sync GB/s on one core. (rewards/s: bench/rewards.py)

    python bench/throughput.py --model out/smollm2 [--no_engine] [--out results/X]

generators: puzzles made in one call. SFT: forward, loss, backward, clip, AdamW on 8 x 256 tokens, median of 3. Sync:
the policy's weights into a running engine, one tensor at a time, median of 5, beside a plain copy of as many bytes.
"""

import platform
import statistics
import time

from common import make_rollouts, parser_of, save


def seconds_of(function, repeats):
    function()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main():
    parser = parser_of(__doc__, "X.md gets the table")
    parser.add_argument("--model", default="out/smollm2")
    parser.add_argument("--no_engine", action="store_true", help="leave out the weight sync")
    args = parser.parse_args()
    import torch

    from onebox.distributed import init_distributed
    from onebox.models import resolve_model
    from onebox.vllm_start import make_engine
    from policy import load_policy, make_adam, optimizer_step, pack, token_logprobs
    from rollout import sync_weights
    from tasks.countdown import countdown, tiny_countdown

    torch.set_num_threads(1)
    lines = ["| what | measured |", "|---|---|"]

    def add(what, measured):
        lines.append(f"| {what} | {measured} |")
        print(lines[-1], flush=True)

    for name, generator in (("Countdown", countdown), ("the demo's Countdown", tiny_countdown)):
        start = time.perf_counter()
        made = len(list(generator(2000, seed=0)))
        add(f"generator: {name}", f"{made / (time.perf_counter() - start):,.0f} problems/s")

    rank, _, device = init_distributed()
    path, config, _, _ = resolve_model(args.model, 512)
    policy = load_policy(path, device, "float32")
    optimizer = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)
    rollouts = make_rollouts([192] * 8, config.vocab_size)

    def sft_step():
        (batch,) = pack(rollouts, range(8), 4096, 0, 1, device)
        (-token_logprobs(policy, batch, 1.0)[0].sum() / (8 * 192)).backward()
        optimizer_step(policy, optimizer, 1e-6, 1.0)

    add(f"SFT, {args.model}, fp32", f"{8 * 256 / seconds_of(sft_step, 3):,.0f} tokens/s")
    if not args.no_engine:
        engine = make_engine(path, config=config, dtype="float32", prompt_len=64, response_len=64, max_num_seqs=8,
                             kv_cache_gb=0, tensor_parallel=1, seed=0, rank=rank, device=device)
        gigabytes = sum(p.numel() for p in policy.parameters()) * 4 / 1e9
        flat = torch.ones(int(gigabytes * 0.25e9))
        sync = seconds_of(lambda: sync_weights(policy.hf, engine, torch.float32, 0), 5)
        add(f"weight sync, {gigabytes:.2f} GB",
            f"{gigabytes / sync:.2f} GB/s; a plain copy {gigabytes / seconds_of(flat.clone, 5):.2f} GB/s")
    save(args.out, lines, f"{platform.machine()}, one thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
