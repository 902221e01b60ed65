"""
A PPO step against a GRPO step at the same tokens: seconds and peak memory, alternating, in one run, on fixed rollouts.

    python bench/ppo.py [--layers 8] [--repeats 3] [--out results/bench_ppo]

GRPO: forward, loss, backward, clip, AdamW of the policy (one update a step needs no old log-probs pass). PPO: the same,
and values, GAE and whitening on the host, the critic's forward, loss, backward, clip, AdamW. Random weights, shapes of
SmolLM2.
"""

import os
import statistics
import sys

import numpy as np
from common import CASES, PROMPT_LEN, alternate, llama, make_rollouts, parser_of, peak_gb, save, serve, token_mean


def worker(kind, folder, case):
    import torch
    from transformers import AutoConfig

    from onebox.distributed import init_distributed
    from policy import (from_responses, load_critic, load_policy, make_adam, optimizer_step, pack, to_responses,
                        token_logprobs, token_values)
    from train_ppo import gae, policy_loss, value_loss, whiten

    torch.set_num_threads(1)
    device = init_distributed()[2]
    rollouts = make_rollouts(CASES[case], AutoConfig.from_pretrained(folder).vocab_size)
    policy = load_policy(folder, device, "float32")
    optimizer = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)
    if kind == "ppo":
        critic = load_critic(folder, device, "float32")
        critic_optimizer = make_adam(critic, 1e-5, 0.9, 0.999, 0.01)
    loss_weights = token_mean(rollouts)
    scores = np.linspace(0, 1, len(rollouts))
    advantages_R = torch.tensor(scores - scores.mean(), dtype=torch.float32)

    def step():
        batches = pack(rollouts, range(len(rollouts)), 4096, 0, 1, device)
        for batch in batches:
            batch.advantages = advantages_R[batch.response_index]
        if kind == "ppo":
            with torch.no_grad():
                for batch in batches:
                    batch.old_values = token_values(critic, batch)
            values = to_responses(batches, "old_values")
            advantages = {i: gae(np.append(np.zeros(len(v) - 1), scores[i]), v, 1.0, 0.95) for i, v in values.items()}
            returns = {i: advantages[i] + values[i] for i in values}
            advantages = whiten(advantages)
            for batch in batches:
                batch.advantages, batch.returns = (from_responses(batch, x) for x in (advantages, returns))
        for batch in batches:
            logprobs, _ = token_logprobs(policy, batch, 1.0)
            loss = policy_loss(logprobs, logprobs.detach(), batch.advantages, 0.2, 0.2)
            (loss_weights[batch.response_index] * loss).sum().backward()
            if kind == "ppo":
                loss = value_loss(token_values(critic, batch), batch.old_values, batch.returns, 0.5)
                (loss_weights[batch.response_index] * loss).sum().backward()
        optimizer_step(policy, optimizer, 1e-6, 1.0)
        if kind == "ppo":
            optimizer_step(critic, critic_optimizer, 1e-5, 1.0)

    serve(step, peak_gb)


def main():
    parser = parser_of(__doc__, "X.md gets the table and the raw seconds")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    folder = f"out/bench/llama-{args.layers}x576-v{args.vocab}"
    if not os.path.exists(os.path.join(folder, "config.json")):
        llama(args.vocab, layers=args.layers).save_pretrained(folder)
    lines = ["| case | tokens | GRPO s | PPO s | ratio | GRPO peak GB | PPO peak GB |", "|---|---|---|---|---|---|---|"]
    raw = []
    for case, lens in CASES.items():
        commands = {kind: [sys.executable, __file__, "--worker", kind, folder, case] for kind in ("grpo", "ppo")}
        seconds, peak = alternate(commands, args.repeats, env=os.environ | {"OMP_NUM_THREADS": "1"})
        grpo, ppo = (statistics.median(seconds[kind]) for kind in ("grpo", "ppo"))
        lines.append(f"| {case} | {sum(lens) + PROMPT_LEN * len(lens)} | {grpo:.1f} | {ppo:.1f} | {ppo / grpo:.2f} x | "
                     f"{peak['grpo']:.2f} | {peak['ppo']:.2f} |")
        raw.append(f"{case}: seconds {seconds}")
        print(lines[-1], flush=True)
    save(args.out, [*lines, "", *raw],
         f"{args.layers} layers of 576, vocabulary {args.vocab}, fp32, one thread, medians of {args.repeats}")


if __name__ == "__main__":
    main()
