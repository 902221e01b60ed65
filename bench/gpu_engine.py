"""
The engine's cells of bench/gpu.py: a rollout with and without a seed per request, the weight sync in its parts, and a
whole GRPO step with made-up rewards. Nothing where vLLM is not installed.
"""

import contextlib
import inspect
import statistics
import tempfile
import time

import numpy as np
import torch
from gpu_common import Bench, Switches, micro_batch, said, train_once, write

import rollout as rollout_module
from onebox.distributed import stable_seed
from onebox.flops import forward_flops
from onebox.vllm_start import make_engine
from policy import make_adam, optimizer_step, pack, token_logprobs
from rollout import generate, sleep, wake_and_sync
from tools.efficiency import decode_work
from train_grpo import Config, group_advantages, token_loss


def engine(args, name):
    try:
        import vllm
    except ImportError as error:
        return write(args, "all", note=f"skipped: vLLM is not installed ({error})")
    bench = Bench(args, name)
    prompt_len, response_len, prompts, group = (8, 16, 2, 4) if args.smoke else (256, 512, 32, 8)
    policy = bench.policy(checkpointing=True)
    bench.config.architectures, bench.config.dtype = [type(policy.hf).__name__], "bfloat16"

    class Dummy(vllm.LLM):  # draws weights of its own, which the first sync replaces
        def __init__(self, **settings):
            super().__init__(**settings, load_format="dummy")

    vllm.LLM, start = Dummy, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench.config.save_pretrained(folder)
        llm = make_engine(folder, config=bench.config, dtype=bench.dtype, prompt_len=prompt_len,
                          response_len=response_len, max_num_seqs=prompts * group, kv_cache_gb=0, tensor_parallel=1,
                          seed=0, rank=0, device=bench.device)
    write(args, "start of the engine", seconds=time.perf_counter() - start)
    sampler = Sampler(bench, llm, policy, prompts, group, prompt_len, response_len)
    for cell, needed in ((syncs, 8), (whole_step, 20), (seeds, 12)):
        if bench.left() < (2 if args.smoke else needed):
            write(args, cell.__name__, note=f"not run: {bench.left():.0f} s left of its part")
            continue
        try:
            sampler.make_ready()
            cell(args, bench, sampler)
        except Exception as error:  # said, and on: the next cell finds the engine awake, whatever this one left
            write(args, cell.__name__, note=said(error))
        policy.zero_grad(set_to_none=True)
        bench.free()


TAGS = ("weights", "kv_cache")  # what of the engine sleeps and wakes on its own


class Sampler:
    """The engine with its prompts; knows the number of the weights that it has, and what of it is awake."""

    def __init__(self, bench, llm, policy, prompts, group, prompt_len, response_len):
        self.bench, self.llm, self.policy, self.group, self.response_len = bench, llm, policy, group, response_len
        vocab, self.version = bench.shape.vocab, -1
        self.asked = [(i, [(i * 31 + j * 7) % vocab for j in range(prompt_len)]) for i in range(prompts)]
        self.first, self.awake, wake_up = None, set(TAGS), llm.wake_up

        def noted(tags):
            wake_up(tags=tags)
            self.awake |= set(tags)

        llm.wake_up = noted
        self.sleep()

    def sleep(self):
        sleep(self.llm, self.bench.device)
        self.awake = set()

    def make_ready(self):
        """Wake the engine with the policy's weights, unless it is; a cell that failed may have left half of it."""
        if len(self.awake) == 1:
            self.llm.wake_up(tags=[tag for tag in TAGS if tag not in self.awake])
            self.sleep()
        if not self.awake:
            parts = self.sync()
            self.first = self.first or parts

    def sync(self):
        """Wake the engine with the policy's weights; return the seconds of its parts."""
        self.version += 1
        dtype = getattr(torch, self.bench.dtype)
        with timed_parts(self.llm, self.bench) as parts:
            start = self.bench.now()
            wake_and_sync(self.policy.hf, self.llm, dtype, self.version, self.bench.device)
            parts["whole"] = self.bench.now() - start
        return parts

    def sample(self, seeded, response_len=0):
        """Sample all prompts; return (rollouts in order, seconds)."""
        asked = [(i, k, ids, stable_seed(0, self.version, i, k) if seeded else None)
                 for i, ids in self.asked for k in range(self.group)]
        if "seeds" in inspect.signature(generate).parameters:  # before requests were dealt one by one
            n = self.group
            asked = self.asked, [[seed for *_, seed in asked[i * n:(i + 1) * n]] for i in range(len(self.asked))]
        else:
            asked = (asked,)
        start = self.bench.now()
        found = sorted(generate(self.llm, *asked, temperature=1.0, stop_ids=[], deadline_s=120,
                                max_tokens=response_len or self.response_len, version=self.version,
                                vocab_size=self.bench.shape.vocab), key=lambda r: (r.prompt, r.sample))
        return found, self.bench.now() - start

    def write(self, args, cell, found, seconds, **numbers):
        lens, peaks = [len(r.response_ids) for r in found], self.bench.peaks
        tokens, prompts = sum(lens), [len(r.prompt_ids) for r in found]
        read, _ = decode_work(self.bench.shape, prompts, lens, len(found), 2 if self.bench.on_gpu else 4)
        write(args, cell, tokens=tokens, seconds=seconds, tokens_per_second=tokens / seconds,
              mbu=read / seconds / peaks.bandwidth if peaks else None, **numbers)


@contextlib.contextmanager
def timed_parts(llm, bench):
    """Yield {"weights awake", "stream and reload", "cache awake"}: seconds, filled while the sync runs inside."""
    parts, originals = {}, (llm.wake_up, rollout_module.sync_weights)

    def timed(name, function):
        def call(*given, **named):
            start = bench.now()
            result = function(*given, **named)
            where = {"weights": "weights awake", "kv_cache": "cache awake"}.get((named.get("tags") or [""])[0], name)
            parts[where] = parts.get(where, 0.0) + bench.now() - start
            return result
        return call

    llm.wake_up, rollout_module.sync_weights = (timed(name, function) for name, function in
                                                zip(("all awake", "stream and reload"), originals, strict=True))
    try:
        yield parts
    finally:
        llm.wake_up, rollout_module.sync_weights = originals


def copy_gb_per_second(bench):
    """Measure how fast this device copies within its own memory: bytes copied, each once read and once written."""
    n = 2**30 if bench.on_gpu else 2**24
    source = torch.ones(n, dtype=torch.uint8, device=bench.device)
    target, spent = torch.empty_like(source), []
    for _ in range(5):
        start = bench.now()
        target.copy_(source)
        spent.append(bench.now() - start)
    return n / min(spent) / 1e9


def syncs(args, bench, sampler):
    """
    Four syncs after the one that made the engine ready; each part's median.

    The goal is of "stream and reload", which copies; "whole" is that and both wake-ups, and stands beside it.
    """
    size, rows, copies = bench.params * (2 if bench.on_gpu else 4) / 1e9, [], copy_gb_per_second(bench)
    for _ in range(4):
        sampler.sleep()
        rows.append(sampler.sync())
    middle = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
    for part, seconds in middle.items():
        rate = size / seconds if part in ("whole", "stream and reload") else None
        notes = [f"the first {sampler.first[part]:.3f} s"]
        notes += [f"ratio: to {copies:,.0f} GB/s, a copy on this device"] * bool(rate)
        notes += [f"whole sync with both wake-ups: {middle['whole']:.3f} s, {size / middle['whole']:.1f} GB/s"] * (
            part == "stream and reload")
        write(args, f"sync: {part}", seconds=seconds, gb_per_second=rate, raw=[row[part] for row in rows],
              ratio=rate / copies if rate else None, note="; ".join(notes))


def seeds(args, bench, sampler):
    """
    The same rollout with a seed per request and without, in turn, as many pairs of at most three as the time allows.

    A short one of each warms up. The ratio is the median of the pairs' ratios, all of which stand in the note.
    """
    length, spent, found = sampler.response_len // 2, {False: [], True: []}, {}
    for seeded in (False, True):
        sampler.sample(seeded, 8)
    for pair in range(3):
        if pair and bench.left() < 3 + 1.2 * (spent[False][-1] + spent[True][-1]):
            break
        for seeded in (False, True) if pair % 2 == 0 else (True, False):
            found[seeded], seconds = sampler.sample(seeded, length)
            spent[seeded].append(seconds)
    ratios = [with_seeds / without for without, with_seeds in zip(spent[False], spent[True], strict=True)]
    for seeded in (False, True):
        ratio = statistics.median(ratios) if seeded else None
        note = f"{len(ratios)} pair(s) in turn" + "".join(f", {r:.3f}" for r in ratios) * seeded
        sampler.write(args, f"rollout, {len(found[seeded])} x {length}, {'a seed each' if seeded else 'no seeds'}",
                      found[seeded], statistics.median(spent[seeded]), ratio=ratio, raw=spent[seeded], note=note)


def whole_step(args, bench, sampler):
    """
    Sync, rollout without seeds, sleep, training in micro-batches of 16,384 tokens; recomputed only if the memory beside
    the engine does not suffice otherwise. Blocks are compiled if there is time for it.
    """
    sampler.sleep()
    switches, tokens = Switches(sampler.policy), 90 if args.smoke else 16384
    optimizer = make_adam(sampler.policy, 1e-6, 0.9, 0.999, 0.01)
    blocks = bench.left() > (5 if args.smoke else 45)  # 10 to 15 s for code that lies on the disk, 20 s for the step
    for checkpointing in (False, True):
        switches.set(blocks=blocks, checkpointing=checkpointing)
        cell, failed = f"whole GRPO step, checkpointing {checkpointing}", ""
        try:
            train_once(bench, sampler.policy, micro_batch(bench, tokens))  # compiles
            sampler.policy.zero_grad(set_to_none=True)
            one_step(args, bench, sampler, optimizer, tokens, cell, "" if blocks else "blocks not compiled; ")
        except torch.OutOfMemoryError as error:
            failed = said(error)
        if not failed:
            return
        write(args, cell, note=failed)
        sampler.policy.zero_grad(set_to_none=True)
        bench.free()
        if sampler.awake:
            sampler.make_ready()
            sampler.sleep()


def one_step(args, bench, sampler, optimizer, max_tokens, cell, note):
    policy, cfg = sampler.policy, Config()
    bench.reset_peak()
    marks = [bench.now()]
    sampler.sync()
    marks.append(bench.now())
    rollouts, seconds = sampler.sample(False)
    marks.append(bench.now())
    sampler.sleep()
    marks.append(bench.now())
    sampler.write(args, f"rollout, {len(rollouts)} x {sampler.response_len}, in the whole step", rollouts, seconds)
    rewards = torch.tensor([[float(np.sum(r.response_ids) % 2)] for r in rollouts]).reshape(-1, sampler.group)
    advantages = group_advantages(rewards, True).flatten().to(bench.device)
    gaps, tokens = [], sum(len(r.response_ids) for r in rollouts)
    batches = pack(rollouts, range(len(rollouts)), max_tokens, 0, 1, bench.device)
    for batch in batches:
        logprobs, entropy = token_logprobs(policy, batch, 1.0)
        batch.old_logprobs, batch.advantages = logprobs.detach(), advantages[batch.response_index]
        gaps.append((batch.old_logprobs - batch.rollout_logprobs).abs().mean())
        losses, _ = token_loss(logprobs, entropy, batch, cfg)
        (losses.sum() / tokens).backward()
    optimizer_step(policy, optimizer, 1e-6, 1.0)
    marks.append(bench.now())
    sync, sampling, asleep, train = (b - a for a, b in zip(marks, marks[1:], strict=False))
    lens, whole = [n for batch in batches for n in batch.lens], marks[-1] - marks[0]
    rate = 3 * forward_flops(bench.shape, lens, tokens) / train
    write(args, cell, tokens=sum(lens), seconds=whole, tokens_per_second=sum(lens) / whole, peak_gb=bench.peak_gb(),
          mfu=rate / bench.peaks.flops if bench.peaks else None,
          note=f"{note}one run: sync {sync:.2f}, rollout {sampling:.2f}, sleep {asleep:.2f}, train {train:.2f} s (its "
               f"MFU); gap to the engine {float(sum(gaps)) / len(gaps):.2g}")
