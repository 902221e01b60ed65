"""
The trainer's cells of bench/gpu.py: forward + loss + backward of one micro-batch, what each change is worth, profiles,
recompilations, the optimizer with and without offload.

The blocks of a model share their compiled code, so the first call takes as long with one layer as with all: fewer
layers of a 3B would not make it shorter (tests/test_bench.py counts the graphs).
"""

import os
import re
import statistics
import time

import torch
from gpu_common import (Bench, Switches, attention_kernels, config_named, micro_batch, said, take_turns, train_once,
                        write)
from gpu_probe import probe
from torch._dynamo.utils import counters

from policy import make_adam, optimizer_step

ROUNDS = 5
WARM_S = 20  # what a first call may take whose code another process has left in the cache on disk
# the change that is left out or put in: what Switches.set is told. "best" is what all are compared with
ABLATIONS = {"blocks not compiled": dict(blocks=False), "head not compiled": dict(head=False),
             "head's gradient not in place": dict(in_place=False),
             "nothing compiled": dict(blocks=False, head=False), "selective, blocks not compiled":
             dict(blocks=False, checkpointing="selective"),
             "full recomputation, nothing compiled": dict(blocks=False, head=False, checkpointing=True)}
CLASSES = (("attention", re.compile(r"flash|fmha|attention|varlen_attn")),
           ("matrix", re.compile(r"gemm|nvjet|cutlass|cublas|splitk|(^|:)(add|b)?mm\b|linear", re.IGNORECASE)))


def trainer(args, name, what):
    """Run the cells of one model. what: names of the functions below, in the order of their worth."""
    tokens = 90 if args.smoke else 16384
    bench, what = Bench(args, name), list(what)
    if "probe" in what:
        what.remove("probe")
        write(args, "probe of addmm.dtype_out", note=probe(bench.device))
    masters = layers_that_fit(bench, tokens, 10) == bench.shape.layers  # else they lie on the host, as under offload
    bench = Bench(args, name, layers_that_fit(bench, tokens, 10 if masters else 6))
    bench.dtype = "bfloat16"  # on a CPU too: one process in bf16 has masters
    try:
        policy = bench.policy(masters=masters)
        batch, switches = micro_batch(bench, tokens), Switches(policy)
    except Exception as error:  # no memory for the model: said, and the part ends
        return write(args, "best", note=said(error))
    cells = {"table": table, "shapes": shapes, "ablations": ablations, "profiles": profiles, "attention": attention,
             "without_fsdp": without_fsdp, "optimizer": optimizer}
    for cell in what:
        if bench.left() < (2 if args.smoke else 6):
            write(args, cell, note="not run: out of time")
            continue
        try:
            cells[cell](bench, args, policy, switches, batch)
        except Exception as error:  # one cell must not take the next ones with it
            write(args, cell, note=said(error))
        policy.zero_grad(set_to_none=True)
        bench.free()


def variant(bench, switches, batch, settings):
    return lambda: switches.set(**settings), lambda: train_once(bench, switches.policy, batch)


def write_turns(bench, args, batch, found, against="best", note="", only=""):
    """Write a row a variant; ratio: its seconds over those of `against`, so that more than 1 is slower."""
    base = found[against]["seconds"]
    for cell, row in found.items():
        if only and cell != only:
            continue
        seconds, tokens = row["seconds"], sum(batch.lens)
        if seconds is None:
            write(args, cell, tokens=tokens, note=row.get("note", "not run"))
            continue
        notes = [note, f"first call {row['warm_up']:.1f} s", row.get("note", "")]
        write(args, cell, tokens=tokens, seconds=seconds, tokens_per_second=tokens / seconds,
              ratio=seconds / base if base else None, mfu=bench.mfu(batch, seconds), peak_gb=row["peak_gb"],
              note="; ".join(filter(None, notes)), raw=row["raw"])


def table(bench, args, policy, switches, batch):
    """The rows that have goals: everything compiled, nothing recomputed; and all of each block recomputed."""
    whole = config_named(bench.name).num_hidden_layers
    layers = f"{bench.shape.layers} of {whole} layers" if bench.shape.layers < whole else f"all {whole} layers"
    if not hasattr(next(policy.parameters()), "master"):
        layers += ", fp32 masters not on the GPU"
    found = {}
    for cell, settings in (("best", {}), ("full recomputation", dict(checkpointing=True))):
        found |= take_turns({cell: variant(bench, switches, batch, settings)}, ROUNDS, bench)
        write_turns(bench, args, batch, found, note=layers, only=cell)  # before the next one is begun


def shapes(bench, args, policy, switches, batch):
    """
    Count the graphs compiled so far, and how many more when the lengths change from one micro-batch to the next.

    The work on a chunk of logits is compiled for its first size, then once more for any size. After that: none.
    """
    switches.set()
    before, spent, more, tokens = counters["stats"]["unique_graphs"], [], [], sum(batch.lens)
    for share, longest in ((0.81, 3), (0.47, 9), (0.98, 2), (0.66, 17)):
        seen = counters["stats"]["unique_graphs"]
        other = micro_batch(bench, int(tokens * share), longest=max(4, tokens // longest // 2))
        spent.append([train_once(bench, policy, other), train_once(bench, policy, other)])
        more.append(counters["stats"]["unique_graphs"] - seen)
    write(args, "four other shapes", graphs=before + sum(more), recompiled=more, raw=spent,
          note=f"{before} graphs before; with each shape {', '.join(map(str, more))} more; first and second call: "
               + ", ".join(f"{a:.2f} {b:.2f}" for a, b in spent) + " s")


def ablations(bench, args, policy, switches, batch):
    variants = {"best again": variant(bench, switches, batch, {})}
    variants |= {cell: variant(bench, switches, batch, settings) for cell, settings in ABLATIONS.items()}
    write_turns(bench, args, batch, take_turns(variants, ROUNDS, bench, WARM_S), "best again")


def attention(bench, args, policy, switches, batch):
    """
    Each kernel that is here against the one that packed_attention takes by itself. The last cell of its part: a kernel
    that breaks the CUDA context takes all with it that comes after.
    """
    found, lacking = attention_kernels() if bench.on_gpu else ({}, {"kernels": "only on a GPU"})
    for name, why in lacking.items():
        write(args, f"attention: {name}", note=f"not run: {why}")
    variants = {"best once more": variant(bench, switches, batch, {})}
    variants |= {f"attention: {name}": variant(bench, switches, batch, dict(attention=name)) for name in found}
    write_turns(bench, args, batch, take_turns(variants, ROUNDS, bench, WARM_S), "best once more")


def without_fsdp(bench, args, policy, switches, batch):
    """One process as it is against the same one wrapped by FSDP2, as each of several ranks is."""
    wrapped = Switches(bench.policy(always_fsdp=True))
    variants = {"one process": variant(bench, switches, batch, {}),
                "one process in FSDP2": variant(bench, wrapped, batch, {}),
                "one process in FSDP2, nothing compiled": variant(bench, wrapped, batch,
                                                                  dict(blocks=False, head=False))}
    write_turns(bench, args, batch, take_turns(variants, ROUNDS, bench, WARM_S), "one process",
                note="two policies in memory")


# ---- where the time goes ---------------------------------------------------------------------------------------------


def class_of(kernel):
    return next((name for name, pattern in CLASSES if pattern.search(kernel)), "rest")


def profiles(bench, args, policy, switches, batch):
    """Milliseconds of the three classes of kernels in one step, compiled and eager; the ten largest of the rest."""
    for how, settings, needed in (("compiled", {}, WARM_S), ("eager", dict(blocks=False, head=False), 6)):
        if bench.left() < (2 if args.smoke else needed):
            write(args, f"profile, {how}", note=f"not run: {bench.left():.0f} s left of its part")
            continue
        switches.set(**settings)
        train_once(bench, policy, batch)
        plain = min(train_once(bench, policy, batch) for _ in range(3))
        rows = kernels_of(lambda: train_once(bench, policy, batch), bench.on_gpu)
        classes = {name: sum(ms for kernel, ms, _ in rows if class_of(kernel) == name)
                   for name in ("matrix", "attention", "rest")}
        total, count = sum(classes.values()), sum(n for _, _, n in rows)
        rest = sorted((row for row in rows if class_of(row[0]) == "rest"), key=lambda row: -row[1])[:10]
        write(args, f"profile, {how}", seconds=plain, classes_ms=classes, kernels=count,
              rest=[(kernel[:120], ms, n) for kernel, ms, n in rest],
              note=", ".join(f"{name} {ms:.1f} ms ({ms / total:.0%})" for name, ms in classes.items())
              + f"; {count} kernels, gaps {plain * 1e3 - total:.1f} ms")
        lines = [f"{args.part}, {how}: the ten largest of the rest ({classes['rest']:.1f} ms)"]
        lines += [f"  {ms:8.2f} ms  {n:5d} x  {kernel[:100]}" for kernel, ms, n in rest]
        print("\n".join(lines), flush=True)
        with open(os.path.join(args.out, "profiles.txt"), "a") as f:
            f.write("\n".join(lines) + "\n\n")


def kernels_of(step, on_gpu):
    """Return [(name, milliseconds, calls)] of the kernels that step() launches; on a CPU of its operators."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        step()
    rows = []
    for event in profiled.key_averages():
        if on_gpu:  # annotations span kernels that have rows of their own
            wanted = "CUDA" in str(event.device_type) and not getattr(event, "is_user_annotation", False)
            spent = event.self_device_time_total  # self_cuda_time_total before torch 2.11
        else:
            wanted, spent = event.key.startswith("aten::"), event.self_cpu_time_total
        if wanted and spent:
            rows.append((event.key, spent / 1e3, event.count))
    return rows


# ---- the optimizer ---------------------------------------------------------------------------------------------------


def optimizer(bench, args, policy, switches, batch):
    """Seconds of clipping and Adam with everything on the GPU."""
    switches.set()
    adam = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)
    bench.reset_peak()
    spent = [step_once(bench, policy, adam, batch)[1] for _ in range(4)]
    write(args, "clip and Adam", seconds=statistics.median(spent[1:]), peak_gb=bench.peak_gb(), raw=spent,
          note="peak with Adam's moments, weights and gradients")


def step_once(bench, policy, adam, batch):
    """Return the seconds of forward + backward and of the optimizer step after it."""
    trained, before = train_once(bench, policy, batch), bench.now()
    optimizer_step(policy, adam, 1e-6, 1.0)
    return trained, bench.now() - before


def offload(args, name, layers=0):
    """
    Masters, moments and Adam on the host: what the GPU holds, and the seconds of the optimizer step and of its parts.

    Each row is written before the next one is begun; the profiler comes last, since it costs most.
    """
    bench = Bench(args, name, layers)
    bench.dtype, needed, spent = "bfloat16", 2 if args.smoke else 6, []
    try:
        start = time.perf_counter()
        policy = bench.policy(checkpointing=True, offload=True)
        adam = make_adam(policy, 1e-6, 0.9, 0.999, 0.01)
        size = f"{bench.shape.layers} layers, {bench.params / 1e9:.2f} B parameters"
        write(args, "offload: model and optimizer made", seconds=time.perf_counter() - start, note=f"one run; {size}")
        batch = micro_batch(bench, 64 if args.smoke else 16384)
        bench.reset_peak()
        for cell in ("offload: first step", "optimizer step, offloaded"):
            count = 1 if not spent else 3
            while count and (not spent or bench.left() > needed):
                spent.append(step_once(bench, policy, adam, batch))
                count -= 1
            if cell != "offload: first step" and len(spent) == 1:
                write(args, cell, note=f"not run: {bench.left():.0f} s left of its part")
                break
            timed = [s for _, s in spent[1:]] or [spent[0][1]]
            seconds = statistics.median(timed)
            write(args, cell, seconds=seconds, peak_gb=bench.peak_gb(), raw=spent,
                  note=f"{len(timed)} run(s), {seconds / bench.params * 1e9:.2f} s a 1e9 parameters; forward and "
                       f"backward {spent[-1][0]:.2f} s, recomputed, blocks not compiled")
        if bench.left() < needed:
            return write(args, "offload: parts of the step", note=f"not run: {bench.left():.0f} s left of its part")
        train_once(bench, policy, batch)
        before = bench.now()
        rows = parts_of_step(lambda: optimizer_step(policy, adam, 1e-6, 1.0), bench.on_gpu)
        whole = bench.now() - before
    except Exception as error:
        return write(args, "offload: rest", note=said(error))
    rows["casts and all else, with the profiler's own"] = whole - sum(rows.values())
    write(args, "offload: parts of the step", seconds=whole,
          gb_per_second=2 * bench.params / rows["weights back"] / 1e9 if rows["weights back"] else None,
          note="one run under the profiler: " + ", ".join(f"{part} {s:.2f} s" for part, s in rows.items()))


def parts_of_step(step, on_gpu):
    """Return the seconds of copies to the host, of Adam there and of copies back, whatever code starts them."""
    from torch.profiler import ProfilerActivity, profile

    found = {"gradients to the host": 0.0, "Adam": 0.0, "weights back": 0.0}
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    for event in profiled.key_averages():
        device = getattr(event, "self_device_time_total", 0) / 1e6
        if "DtoH" in event.key:
            found["gradients to the host"] += device
        elif "HtoD" in event.key:
            found["weights back"] += device
        elif "adam" in event.key and "CUDA" not in str(event.device_type):
            found["Adam"] += event.self_cpu_time_total / 1e6
    return found


def layers_that_fit(bench, tokens, param_bytes):
    """
    Guess how many layers of a model fit this GPU without recomputation.

    param_bytes: 6 for bf16 weights and fp32 gradients, 4 more for masters. Of a block's activations compiled code keeps
    about 0.65 of what eager code would: measured 63 of 106 kB a token and layer at 1.5B.
    """
    shape = bench.shape
    block = param_bytes * shape.block_weights + 0.65 * tokens * (22 * shape.hidden + 8 * shape.intermediate)
    ends = param_bytes * shape.vocab * shape.hidden * (1 if bench.config.tie_word_embeddings else 2)
    return max(1, min(shape.layers, int((0.9 * bench.room_gb() * 1e9 - ends - 4e9) / block)))
