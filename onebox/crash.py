"""
How a script ends: exit codes, crash reports, and what helps when memory runs out.
"""

import errno
import faulthandler
import gzip
import json
import os
import re
import shutil
import sys
import time
import traceback
from contextlib import contextmanager

import torch
import torch.distributed as dist

from onebox.config import ConfigError
from onebox.distributed import end_if_orphaned, leave_distributed, print0
from onebox.files import read_json, write_atomic
from onebox.text import visible

# What is known when a run ends. For the report: folder, step, rollouts, row. For advice: max_tokens (asked, used) and
# the longest sequence in tokens; cache_asked and cache (used, least) in GB. made: the folder, if this start made it.
CONTEXT = {}


def entry(main):
    """
    Run a script's main() and end the process with its exit code.

    That of a ConfigError after its line on stderr, 130 after Ctrl-C, 4 out of memory, 6 Broken, 1 any other crash. A
    crash leaves a report in the run directory.
    """
    ours, failed = not dist.is_initialized(), True
    try:
        main()
        failed = False
    except ConfigError as error:
        remove_new_folder()
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and "step" not in CONTEXT:  # --check | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        end_if_orphaned()  # then the error is only what ranks that died a moment earlier leave behind
        sys.exit(report_crash(error))
    finally:
        if ours:
            leave_distributed(failed)


def remove_new_folder():
    """Remove the directory that this start made, if it is refused before its first step."""
    if (folder := CONTEXT.get("made")) and "step" not in CONTEXT:
        keep = r"metrics\.jsonl|step_|corrupt_step_|out_of_memory|crash"
        if not any(re.match(keep, name) for name in os.listdir(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def report_crash(error):
    """Print what happened and what to do, write the crash report, and return the exit code."""
    interrupted, full, text = isinstance(error, KeyboardInterrupt), out_of_memory(error), ""
    if not interrupted:
        traceback.print_exc()
    try:
        text += f"; out of memory{memory_advice(error)}" if full else ""
        if "folder" in CONTEXT:
            text += f"; the batch, all stacks and the last metrics are in {write_report(error)}"
    except Exception as none_left:  # no disk or memory is left: perhaps what the run died of
        text += f"; no crash report could be written ({none_left!r})"
    if interrupted:
        print0(f"interrupted in step {CONTEXT.get('step', 0)}{text}; the same command continues", file=sys.stderr)
        return 130
    print(visible(f"error: {type(error).__name__} in step {CONTEXT.get('step', 0)}{text}"), file=sys.stderr, flush=True)
    return 4 if full else getattr(error, "exit_code", 1)


def write_report(error):
    """Write crash/<time>_rank0/ with error.txt, last_metrics.json and the rollouts of the step. Return its path."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}_rank{os.environ.get('RANK', 0)}"
    path = os.path.join(CONTEXT["folder"], "crash", name)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "error.txt"), "w") as f:
        f.write("".join(traceback.format_exception(error)) + f"\nstep {CONTEXT.get('step')}; all threads:\n")
        f.flush()
        faulthandler.dump_traceback(f)
    write_atomic(os.path.join(path, "last_metrics.json"), json.dumps(CONTEXT.get("row"), indent=1))
    with gzip.open(os.path.join(path, "batch.jsonl.gz"), "wt") as f:
        for rollout in CONTEXT.get("rollouts", ()):
            f.write(json.dumps(vars(rollout), default=as_plain) + "\n")
    return path


def as_plain(value):
    """Return an array as a list, an object as its attributes, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else getattr(value, "__dict__", None) or str(value)


# ---------------------------------------------------------------- out of memory

# PyTorch's and Python's own classes need no text. These come as plain errors: vLLM's wake-up and CUDA's driver ("CUDA
# Error: out of memory"), Triton, cuBLAS ("CUBLAS_STATUS_ALLOC_FAILED"), NCCL ("Failed to CUDA calloc async 608 bytes"),
# the host. ("cannot allocate memory in static TLS block": a library was loaded too late, which is another matter)
MEMORY = re.compile(r"out of memory|can(no|')t allocate memory(?! in static TLS)|not enough memory|_ALLOC_FAILED|"
                    r"cudaErrorMemoryAllocation|failed to (cuda |host )*[cm]?alloc|bad_alloc", re.IGNORECASE)
SIDE_BY_SIDE = ("the weights of trainer and engine do not fit beside each other, and neither smaller micro-batches nor "
                "a smaller cache helps: take more GPUs, or --tensor_parallel")
MODELS = ("the models do not fit, and smaller micro-batches do not help: --offload optimizer, more GPUs, or ask python "
          "-m tools.plan")
HOST = "a checkpoint is written from the host's memory: give the run more of it; the same command continues"


class NoMemory(RuntimeError):
    """Out of memory in a part of a run for which smaller micro-batches do not help; `advice` is what does."""

    def __init__(self, part, advice):
        super().__init__(f"out of memory in {part}")
        self.part, self.advice = part, advice


@contextmanager
def memory_of(part, advice):
    """Give this advice if memory runs out inside: a text, or a function that acts and returns one."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error) or any(isinstance(e, NoMemory) for e in causes(error)):
            raise
        raise NoMemory(part, advice) from error


def causes(error):
    """Return an error and those that led to it, as a traceback shows them."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def out_of_memory(error):
    """Return whether a GPU or the host had no memory left: in this error, or in one that led to it."""
    return any(e.errno == errno.ENOMEM if isinstance(e, OSError) else bool(MEMORY.search(str(e))) or
               isinstance(e, (MemoryError, torch.OutOfMemoryError)) for e in causes(error))


def memory_advice(error):
    """Return what helps; where that is a smaller size, leave it for the next start."""
    if known := next((e for e in causes(error) if isinstance(e, NoMemory)), None):
        return f" in {known.part}: {known.advice() if callable(known.advice) else known.advice}"
    return f": {halve_tokens()}" if "step" in CONTEXT else f" before the first step: {MODELS}"


def halve_tokens():
    """Leave half the micro-batch size for the next start, after the trainer ran out of memory. Return what to do."""
    if "max_tokens" not in CONTEXT:
        return "take a smaller max_tokens_per_gpu"
    (asked, used), longest = CONTEXT["max_tokens"], CONTEXT.get("longest", 1)
    if used <= longest:  # half of it would still be a micro-batch of one sequence
        return (f"max_tokens_per_gpu = {used} is no more than the longest sequence, {longest} tokens: take more GPUs, "
                "checkpointing or shorter responses, or ask python -m tools.plan")
    return leave("max_tokens_per_gpu", asked, used, used // 2)


def halve_cache():
    """Leave half of the engine's cache for the next start, after the engine ran out of memory. Return what to do."""
    if "cache" not in CONTEXT:
        return "take a smaller kv_cache_gb"
    used, least = CONTEXT["cache"]
    if used / 2 < least:
        return (f"kv_cache_gb = {used:.3g} cannot be halved, one sequence of full length takes {least:.3g}: take more "
                "GPUs, --tensor_parallel or a smaller max_response_len")
    if "cache_asked" not in CONTEXT:  # eval.py
        return f"give --kv_cache_gb {used / 2:.3g} instead of {used:.3g}"
    return leave("kv_cache_gb", CONTEXT["cache_asked"], used, used / 2)


def leave(name, asked, used, half):
    """Write half of a size into out_of_memory.json, for the next start with the same setting. Return what to do."""
    file = os.path.join(CONTEXT["folder"], "out_of_memory.json")
    write_atomic(file, json.dumps(read_json(file) | {name: [asked, half]}))
    return (f"the same command goes on with {name} = {half:.6g} instead of {used:.6g}, from the last checkpoint; "
            "results do not change but for rounding")


def size_left(folder, name, asked, say):
    """Return a size as the settings ask for it, or the half that an earlier start with the same setting left."""
    note = read_json(os.path.join(folder, "out_of_memory.json"))
    found = note.get(name)
    if isinstance(found, (int, float)):  # as older code left it
        found = [note.get("asked" if name == "max_tokens_per_gpu" else "cache_asked"), found]
    if not isinstance(found, list) or found[0] != asked:
        return asked
    say(f"{name} = {found[1]:.6g}: an earlier start ran out of memory with more")
    return found[1]
