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
from sft import prepare


def host(args, name):
    bench = Bench(args, name)
    tokens, repeats = (256, 5) if args.smoke else (16384, 20)
    try:
        sft_loop(args, bench, tokens)
    except Exception as error:  # said: a part must end with its rows written
        write(args, "SFT, 60 tokens a sequence", note=said(error))
    for (kind, how), (count, spent) in rows(pack, tokens, bench.device, repeats).items():
        middle = statistics.median(spent)
        write(args, f"pack, {kind}, ids as {how}", tokens=tokens, seconds=middle / 1e3,
              note=f"{count} sequences, {middle:.2f} ms, least {min(spent):.2f} ms, onto {bench.device}")


def sft_loop(args, bench, tokens):
    """Run the loop of sft.py on random examples of about 60 tokens, one optimizer step each `tokens` tokens."""
    rng, vocab = np.random.default_rng(0), bench.shape.vocab
    examples = [tuple(rng.integers(3, vocab, n, dtype=np.int32) for n in (20, int(rng.integers(20, 61))))
                for _ in range(1000)]
    policy, cfg = bench.policy(checkpointing=False), SimpleNamespace(seed=0, tokens_per_step=tokens)
    switches, optimizer = Switches(policy), make_adam(policy, 1e-6, 0.9, 0.95, 0.0)
    for cell, settings in (("SFT, 60 tokens a sequence", {}),
                           ("SFT, 60 tokens a sequence, nothing compiled", dict(blocks=False, head=False))):
        if bench.left() < 3:
            write(args, cell, note=f"not run: {bench.left():.0f} s left of its part")
            continue
        try:
            switches.set(**settings)
            spent = sft_steps(bench, policy, optimizer, examples, cfg, 5 if args.smoke else 15)
        except Exception as error:
            write(args, cell, note=said(error))
            continue
        write(args, cell, tokens=spent[-1][1], seconds=statistics.median(s for s, _ in spent[3:]),
              tokens_per_second=statistics.median(taken / seconds for seconds, taken in spent[3:]),
              peak_gb=bench.peak_gb(), raw=[s for s, _ in spent],
              note=f"whole steps of the loop, with packing, clip and Adam; first step {spent[0][0]:.1f} s")


def sft_steps(bench, policy, optimizer, examples, cfg, count):
    """Return (seconds, tokens) of each step, which are in the order of sft.py: it packs the next one before Adam."""
    def following(seen):
        return prepare(examples, seen, cfg, cfg.tokens_per_step, 0, 1, bench.device)

    spent, (chosen, seen, batches) = [], following(0)
    for step in range(count):
        if step == 3:
            bench.reset_peak()  # after the warm-up, before what is timed
        start, num_tokens = bench.now(), sum(len(example.response_ids) for example in chosen)
        taken = sum(len(example.prompt_ids) for example in chosen) + num_tokens
        loss_sum = torch.zeros((), dtype=torch.float64, device=bench.device)
        for batch in batches:
            logprobs, _ = token_logprobs(policy, batch, temperature=1.0)
            loss = -logprobs.sum() / num_tokens
            loss.backward()
            loss_sum += loss.detach()
        chosen, seen, batches = following(seen)  # while a GPU still works on this step's
        optimizer_step(policy, optimizer, 1e-6, 1.0)  # waits for the GPU
        float(loss_sum)
        spent.append((bench.now() - start, taken))
    return spent
