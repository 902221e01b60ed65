"""
The host's cells of bench/gpu.py: milliseconds of pack(), and SFT of a model so small that the host decides its speed.
"""

import statistics
from types import SimpleNamespace

import numpy as np
import torch
from gpu_common import Bench, Switches, said, write
from pack import rows

from policy import make_adam, optimizer_step, pack, token_logprobs
from tasks.order import prompt_order


def host(args, name):
    bench = Bench(args, name)
    tokens, repeats = (256, 5) if args.smoke else (16384, 20)
    for (kind, how), (count, spent) in rows(pack, tokens, bench.device, repeats).items():
        middle = statistics.median(spent)
        write(args, f"pack, {kind}, ids as {how}", tokens=tokens, seconds=middle / 1e3,
              note=f"{count} sequences, {middle:.2f} ms, least {min(spent):.2f} ms, onto {bench.device}")
    try:
        sft_loop(args, bench, tokens)
    except Exception as error:  # said: a part must end with its rows written
        write(args, "SFT, 60 tokens a sequence", note=said(error))


def sft_loop(args, bench, tokens):
    """Run the loop of sft.py on random examples of about 60 tokens, one optimizer step each `tokens` tokens."""
    rng, vocab = np.random.default_rng(0), bench.shape.vocab
    examples = [(rng.integers(3, vocab, 20).tolist(), rng.integers(3, vocab, int(rng.integers(20, 61))).tolist())
                for _ in range(1000)]
    policy = bench.policy(checkpointing=False)
    switches, optimizer = Switches(policy), make_adam(policy, 1e-6, 0.9, 0.95, 0.0)
    seen, count = 0, 2 if args.smoke else 12

    def step():
        nonlocal seen
        start, chosen, taken = bench.now(), [], 0
        while True:
            [(_, i)] = prompt_order([len(examples)], None, 0, seen, 1)
            prompt_ids, response_ids = examples[i]
            if taken + len(prompt_ids) + len(response_ids) > tokens:
                break
            chosen.append(SimpleNamespace(prompt_ids=prompt_ids, response_ids=response_ids,
                                          rollout_logprobs=np.zeros(len(response_ids), np.float32)))
            taken, seen = taken + len(prompt_ids) + len(response_ids), seen + 1
        num_tokens = sum(len(example.response_ids) for example in chosen)
        loss_sum = torch.zeros((), dtype=torch.float64, device=bench.device)
        for batch in pack(chosen, range(len(chosen)), tokens, 0, 1, bench.device):
            logprobs, _ = token_logprobs(policy, batch, 1.0)
            loss = -logprobs.sum() / num_tokens
            loss.backward()
            loss_sum += loss.detach()
        optimizer_step(policy, optimizer, 1e-6, 1.0)
        float(loss_sum)
        return bench.now() - start, taken

    for cell, settings in (("SFT, 60 tokens a sequence", {}),
                           ("SFT, 60 tokens a sequence, nothing compiled", dict(blocks=False, head=False))):
        try:
            switches.set(**settings)
            spent = [step() for _ in range(count + 3)]
        except Exception as error:
            write(args, cell, note=said(error))
            continue
        rates = [taken / seconds for seconds, taken in spent[3:]]
        bench.reset_peak()
        write(args, cell, tokens=spent[-1][1], seconds=statistics.median(s for s, _ in spent[3:]),
              tokens_per_second=statistics.median(rates), peak_gb=bench.peak_gb(), raw=[s for s, _ in spent],
              note=f"whole steps of the loop, with packing, clip and Adam; first step {spent[0][0]:.1f} s")
