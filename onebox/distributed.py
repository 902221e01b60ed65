"""
What every script needs around the algorithm: processes, sums over ranks, seeds, the clock, safe printing.
"""

import datetime
import glob
import hashlib
import os
import random
import select
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager, suppress

# torchrun, which started this process and may be killed without being able to end it; None under plain `python`, whose
# parent may end without harm (nohup, a closed terminal). Read before the imports below, which take seconds.
LAUNCHER = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def end_if_orphaned():
    """End this process and its children (graders, reports, compilers) at once if the launcher is dead."""
    if LAUNCHER in (None, os.getppid()):
        return
    for file in glob.glob("/proc/self/task/*/children"):
        with suppress(OSError), open(file) as f:
            for pid in map(int, f.read().split()):
                with suppress(OSError):  # it has ended by itself
                    os.kill(pid, signal.SIGKILL)
    with suppress(OSError):  # a console that nobody reads must not hold this up
        if os.environ.get("RANK", "0") == "0" and select.select([], [2], [], 0)[1]:
            os.write(2, f"torchrun (pid {LAUNCHER}) is gone: this run ends; the same command continues\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def watch_launcher():
    while True:
        end_if_orphaned()
        time.sleep(0.5)


if LAUNCHER is not None:  # not PR_SET_PDEATHSIG, which fires when the thread that started us ends, not the process
    threading.Thread(target=watch_launcher, daemon=True).start()


def say_interrupted(kind, error, trace, rest=sys.excepthook):
    """Print one line instead of the stack after Ctrl-C outside of a run, while modules load or after it."""
    if not issubclass(kind, KeyboardInterrupt):
        rest(kind, error, trace)
    elif os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr)


sys.excepthook = say_interrupted

# What libraries print about themselves, not about the run; set before they are imported. (setdefault: yours wins)
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
warnings.filterwarnings("ignore", message=".*reduce_op.*", category=FutureWarning)

# Micro-batches differ in size from step to step. Memory that the trainer frees in pieces could not be returned to the
# engine, which wakes up into it: let its segments grow and shrink. Inside its own pool (sleep mode), which must not do
# so, vLLM switches this off and on again since 0.20.1 (device_allocator/cumem.py); 0.20 looks only for this older name.
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from onebox.config import ConfigError  # noqa: E402
from onebox.text import visible  # noqa: E402

START = time.monotonic()  # of this process, for max_hours


class Broken(RuntimeError):
    """Training on would do harm: engine and trainer disagree, NaN, a weight sync that failed half-way."""

    exit_code = 6


def init_distributed(timeout_s=3600.0):
    """
    Join the processes that torchrun started, or be the only one under plain `python`. Return (rank, world, device).

    gloo on CPU; on GPU nccl for tensors there and gloo for what `gather` pickles. Sets RANK and friends where they are
    missing, because vLLM's external launcher reads them. A rank that waits longer than timeout_s for another one is an
    error: choose more than a rollout may take, since ranks finish theirs at different times.
    """
    if "RANK" not in os.environ:
        with socket.socket() as s:  # a free port, so that two runs on one machine do not meet
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    rank, local_rank, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device, backend, bound = torch.device("cpu"), "gloo", {}
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        bound = {"device_id": device}
        torch.cuda.set_device(device)
        cache = os.path.expanduser("~/.cache/onebox-r1/inductor")  # compiled code, for the next start
        with suppress(OSError):  # a home that is not there: PyTorch's own place, in /tmp
            os.makedirs(cache, exist_ok=True)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s), **bound)
    return rank, world, device


def wanted_compiler():
    """Name the compiler of torch.compile: Triton, for a GPU, wants one of C, Inductor, for a CPU, one of C++."""
    return os.environ.get("CC", "gcc") if torch.cuda.is_available() else os.environ.get("CXX", "g++")


def compiler():
    """Return the path of the compiler that torch.compile needs, None if it is not there."""
    return shutil.which(wanted_compiler())


def leave_distributed(failed):
    """
    Leave the process group, and vLLM's groups, which its own clean-up at exit must not find half gone.

    After an error nothing is waited for: another rank may hang in a collective, and torchrun ends it only once this
    process is gone. (_abort_process_group and the engine's list of groups are not public)
    """
    engines = sys.modules.get("vllm.distributed.parallel_state")
    if engines and not failed:
        engines.destroy_model_parallel()
        engines.destroy_distributed_environment()
    elif engines:
        for name in [name for name, group in vars(engines).items() if isinstance(group, engines.GroupCoordinator)]:
            setattr(engines, name, None)
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group() if failed else dist.destroy_process_group()


def gather(items):
    """Join the lists of all ranks, in rank order, on every rank. (pickles, from our own processes only)"""
    if dist.get_world_size() == 1:
        return list(items)
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def whole(tensor):
    """Gather a DTensor into a full tensor on every rank (collective). Other tensors are returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sum_over_ranks(values, device):
    """Sum {name: float} over all ranks; the names must be the same on all of them."""
    names = sorted(values)
    total = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def max_over_ranks(value, device):
    total = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total.item()


def stable_seed(*parts):
    """Derive a 63-bit seed from the parts alone: the same on every rank, machine and resume."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_generators(*parts):
    """
    Seed Python's, numpy's and torch's global generators from the parts alone, at the start of each step.

    Nothing here draws from them, but dropout in a changed script would, and must go on exactly where a killed run was.
    """
    seed = stable_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress_bar(items=None, desc="", **kwargs):
    """Show a progress bar on rank 0, on a terminal only; iterate plainly everywhere else."""
    quiet = os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()
    return tqdm(items, desc=desc, disable=quiet, leave=False, dynamic_ncols=True, mininterval=0.5, **kwargs)


def print0(text, file=None):
    """Print on rank 0, with control characters of a model's text made visible."""
    if os.environ.get("RANK", "0") == "0":
        print(visible(text), file=file, flush=True)


class Clock:
    """Measure the seconds of each phase of a step. phase(name) ends the phase before; "other" is what none claims."""

    def __init__(self, device):
        self.device, self.seconds, self.name, self.fixed = device, defaultdict(float), "other", False
        self.since = self.start = self.now()

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels are asynchronous: without it the wrong phase pays
        return time.monotonic()

    def phase(self, name):
        """End the current phase and begin another one."""
        if not self.fixed:
            now = self.now()
            self.seconds[self.name] += now - self.since
            self.name, self.since = name, now

    def move(self, source, target, seconds):
        """Count some seconds of one phase to another one, for work too short to be timed with a synchronization."""
        if not self.fixed:
            self.seconds[source] -= seconds
            self.seconds[target] += seconds

    @contextmanager
    def all_as(self, name):
        """Count whatever happens inside to one phase: an evaluation's sampling is no rollout of the step."""
        self.phase(name)
        self.fixed = True
        try:
            yield
        finally:
            self.fixed = False
            self.phase("other")

    def take(self):
        """Return {phase: seconds}, with `step` for the whole, and begin the next step."""
        self.phase("other")
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        seconds["step"], self.start = self.since - self.start, self.since
        return seconds
