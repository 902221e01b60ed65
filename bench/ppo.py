"""
A PPO step against a GRPO step at the same tokens: seconds and peak memory, alternating, in one run, on fixed rollouts.

    python bench/ppo.py [--layers 8] [--repeats 3] [--out results/bench_ppo.md]

GRPO: forward, loss, backward, clip, AdamW of the policy (one update a step needs no old log-probs pass). PPO: the same, and
values, GAE and whitening on the host, the critic's forward, loss, backward, clip, AdamW. Random weights, shapes of SmolLM2.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bench.trainer import CASES, PROMPT_LEN, alternate, build, make_rollouts  # noqa: E402


def worker(kind, folder, case):
    """Answers `step` on stdin with the seconds of one step and `report` with the peak memory of this process."""
    import torch
    from transformers import AutoConfig

    import policy as model
    from onebox.distributed import init_distributed
    from train_ppo import gae, policy_loss, token_weights, value_loss, whiten

    torch.set_num_threads(1)
    device = init_distributed()[2]
    rollouts = make_rollouts(CASES[case], AutoConfig.from_pretrained(folder).vocab_size)
    policy = model.load_policy(folder, device, "float32")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    if kind == "ppo":
        critic = model.load_critic(folder, device, "float32")
        critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-5)
    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    weights_R = token_weights(lens, len(lens), int(lens.sum()), "token_mean", 0)
    scores = np.linspace(0, 1, len(rollouts))
    advantages_R = torch.tensor(scores - scores.mean(), dtype=torch.float32)

    def step():
        batches = model.pack(rollouts, range(len(rollouts)), 4096, 0, 1, device)
        if kind == "ppo":
            with torch.no_grad():
                for batch in batches:
                    batch.old_values = model.token_values(critic, batch)
            values = model.to_responses(batches, "old_values")
            advantages = {i: gae(np.append(np.zeros(len(v) - 1), scores[i]), v, 1.0, 0.95) for i, v in values.items()}
            returns = {i: advantages[i] + values[i] for i in values}
            advantages = whiten(advantages)
            for batch in batches:
                batch.advantages, batch.returns = (model.from_responses(batch, x) for x in (advantages, returns))
        for batch in batches:
            advantages = batch.advantages if kind == "ppo" else advantages_R[batch.response_index]
            logprobs, _ = model.token_logprobs(policy, batch, 1.0)
            loss = policy_loss(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
            (weights_R[batch.response_index] * loss).sum().backward()
            if kind == "ppo":
                loss = value_loss(model.token_values(critic, batch), batch.old_values, batch.returns, 0.5)
                (weights_R[batch.response_index] * loss).sum().backward()
        model.clip_and_step(policy, optimizer, 1.0, 1e-6)
        if kind == "ppo":
            model.clip_and_step(critic, critic_optimizer, 1.0, 1e-5)

    for line in sys.stdin:
        if line.strip() == "report":
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6), flush=True)
            continue
        start = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - start), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="", help="X: X.md gets the table and the raw seconds")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    folder = f"out/bench/llama-{args.layers}x576-v{args.vocab}"
    if not os.path.exists(os.path.join(folder, "config.json")):
        build(args.layers, args.vocab, folder)
    lines = [f"{args.layers} layers of 576, vocabulary {args.vocab}, fp32, one thread, medians of {args.repeats}", "",
             "| case | tokens | GRPO s | PPO s | ratio | GRPO peak GB | PPO peak GB |", "|---|---|---|---|---|---|---|"]
    raw = []
    for case, lens in CASES.items():
        commands = {kind: [sys.executable, __file__, "--worker", kind, folder, case] for kind in ("grpo", "ppo")}
        seconds, peak = alternate(commands, args.repeats, env=os.environ | {"OMP_NUM_THREADS": "1"})
        grpo, ppo = (statistics.median(seconds[kind]) for kind in ("grpo", "ppo"))
        lines.append(f"| {case} | {sum(lens) + PROMPT_LEN * len(lens)} | {grpo:.1f} | {ppo:.1f} | {ppo / grpo:.2f} x | "
                     f"{peak['grpo']:.2f} | {peak['ppo']:.2f} |")
        raw.append(f"{case}: seconds {json.dumps(seconds)}")
    text = "\n".join([*lines, "", *raw])
    print(text)
    if args.out:
        with open(args.out + ".md", "w") as f:
            f.write(f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}\n\n{text}\n")


if __name__ == "__main__":
    main()
