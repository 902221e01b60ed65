"""
The run directory: locking, logging, metrics, checkpoints and resume of one run, and the settings of its operation.

    out/<name>/  config.json   the settings of the run       metrics.jsonl  one object a step: the truth
                 log.txt       all that was printed           code/          the code as it was, commit and diff
                 samples/      some rollouts of each step     step_000100/   checkpoint        model/  export
                 report.html   curves and rollouts to read    lock           who writes here: pid, host
                 crash/        what is known about a crash    guard.jsonl    what the guard saw, tools/guard.py
"""

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
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

import torch
import torch.distributed as dist

from onebox import checkpoint, distributed, metrics
from onebox.config import ConfigError, NonNegative, Positive, Share, SizeOrAuto, script_of, table, without_folders
from onebox.crash import CONTEXT, entry, size_left  # noqa: F401  scripts take `entry` from here
from onebox.distributed import Broken, Clock, compiler, gather, max_over_ranks, print0, seed_generators
from onebox.files import has_tools, read_json, read_rows, write_atomic
from onebox.text import visible

MAX_FAILURES = 3  # failed saves in a row that end a run
RETRY_S = 5.0     # between the attempts at a save that cannot wait for a later step


@dataclass(frozen=True)
class BasicSettings:
    """Settings of every run. None changes what is learned, but for rounding: a run may go on with other values."""

    name: str = "run"                    # the run lies in out/<name>/
    check: bool = False                  # validate settings and data, show what the model will see, then stop
    save_every: NonNegative[int] = 50    # checkpoint every N steps; 0 = only the last
    keep_checkpoints: Positive[int] = 2  # how many recent checkpoints to keep; the best evaluated one is always kept
    max_hours: NonNegative[float] = 0.0  # save and stop after the first step that ends past this limit; 0 = no limit
    allow_data_change: bool = False      # continue a run although its rows changed
    wandb: Literal["off", "offline", "online"] = "off"  # metrics.jsonl is always written
    checkpointing: Literal["auto", True, False, "selective"] = "auto"  # recompute all, no, what is cheap; docs/gpus.md
    compile: Literal["auto", True, False] = "auto"  # torch.compile each block: a slower start, less memory, faster
    max_tokens_per_gpu: SizeOrAuto = "auto"  # tokens of a micro-batch; fewer need less memory
    offload: Literal["auto", "none", "optimizer"] = "auto"  # optimizer: fp32 weights and Adam in the host's memory
    shard_size: NonNegative[int] = 0     # ranks that share one copy of the weights; 0 = all, 8 = inside each node


@dataclass(frozen=True)
class RunSettings(BasicSettings):
    """
    Settings of a run with rollouts. One of them, finish_share, changes what is learned. The last three say what is
    asked: a run goes on with other values only where the prompts stay the same, or with allow_data_change.
    """

    replay: str = ""                     # compute this saved step again (samples/ or crash/) and stop; docs/replay.md
    eval_every: NonNegative[int] = 10    # held-out evaluation every N steps; 0 = only before and after
    keep_rollouts: NonNegative[int] = 16  # responses of a step kept in samples/, see metrics.trained_rows; 0 = none
    report_every: NonNegative[int] = 20  # renew report.html every N steps and at the end; 0 = never
    dry_step: Literal["auto", "on", "off"] = "auto"  # a micro-batch of full length before the run; auto: on GPUs
    silent_share: Share[float] = 0.1     # GRPO: of responses without gradient, how many get a forward pass
    max_num_seqs: Positive[int] = 256    # sequences decoded together in one engine
    kv_cache_gb: NonNegative[float] = 0.0  # per engine; 0 = for max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: Positive[int] = 1   # GPUs per engine
    rollout_deadline_s: Positive[float] = 3600.0  # after it, unfinished responses are cut off and count as truncated
    finish_share: Share[float] = 1.0     # below 1: draw more groups, leave out the last: late starters, long responses
    mismatch_bound: NonNegative[float] = 0.0  # stop above this mean |rollout - trainer|; 0: 0.001, in bf16 0.05
    guard: Literal["off", "observe", "act"] = "observe"  # see a run go wrong; act: mend it; docs/stability.md
    columns: dict | None = None          # {"question": "their name of it", "answer": ...} of your own rows
    data_limit: NonNegative[int] = 0     # use only so many rows, 0 = all
    chat_date: str = "2024-07-26"        # the date that a chat template is told; prompts must not depend on the day


MAY_CHANGE = {"num_steps", *(f.name for f in fields(RunSettings))} - {"finish_share"}  # see lr_follows_num_steps too
AUTO = ("checkpointing", "compile", "max_tokens_per_gpu", "offload")  # settings that may be "auto"
PATHS = {"model", "critic_model", "data_path", "eval_path"}  # what lies there may not change, where it lies may


@dataclass
class Progress:
    """Where a run stands: state.json of a checkpoint."""

    step: int = 0                 # the last one whose updates are done
    prompts_seen: int = 0         # draws of the data order; sft.py: examples
    nonfinite_updates: int = 0    # in a row
    silent_steps: int = 0         # in a row, without anything to learn from
    kl_coef: float | None = None  # of PPO's controller
    entropy_coef: float | None = None  # of the controller of entropy_target
    steered: int = -1             # the last step that controllers and the guard have seen, onebox/steering.py
    changed: dict = field(default_factory=dict)  # settings that they have changed
    guard: dict | None = None     # what tools/guard.py remembers
    verdict: str = ""             # why the guard ends the run
    row: dict | None = None       # metrics row of `step`, without its evaluation

    def count_update(self, finite):
        """Count updates in a row whose gradient was not finite. Raise Broken at the third."""
        self.nonfinite_updates = 0 if finite else self.nonfinite_updates + 1
        if self.nonfinite_updates == 3:
            raise Broken("three updates in a row had a gradient that is not finite; none was applied. Lower lr, or "
                         "look at the last metrics")

    def end_step(self, row, has_signal):
        """Record that the updates of a step are done. has_signal: whether it had anything to learn from."""
        self.step, self.row, self.silent_steps = row["step"], row, 0 if has_signal else self.silent_steps + 1


# ---------------------------------------------------------------- open or refuse


def open_run(cfg, origin, device, fingerprints):
    """
    Open out/<name>/ for this process and find its newest checkpoint. Return the Run, None if it is complete already.

    fingerprints {"model": ..., "training": ...}: of what the run will use. ConfigError, in one line, if the directory
    holds a run of other settings, data or models, if it is in use, or if no checkpoint in it can be used.
    """
    good = getattr(cfg, "guard", "") != "act" or cfg.eval_prompts and 0 < cfg.eval_every < cfg.num_steps and has_tools()
    if not good:
        raise ConfigError('guard = "act" goes back to weights by their held-out success and asks tools/guard.py: set '
                          'eval_prompts, an eval_every below num_steps, keep tools/, or take guard = "observe"')
    path = run_folder(cfg, fingerprints)
    done, reached = (checkpoint.exported_step(f"{path}/model", key) for key in ("step", "num_steps"))
    if max(done, reached) < cfg.num_steps:
        return Run(path, cfg, origin, device, fingerprints)
    print0(f"{path} is complete: step {done} of {cfg.num_steps}. Its model is {path}/model")


def run_folder(cfg, fingerprints=None):
    """
    Return out/<name>, after making sure that it is new or holds a run of the same settings.

    The same command continues a run, another one is another run. Without metrics or checkpoint it is a start that
    failed, and does not count. Models and files may have moved: their contents count, by the fingerprints.
    """
    if not re.fullmatch(r"[\w.+-]+", cfg.name) or cfg.name.startswith("."):
        raise ConfigError(f"name = {cfg.name!r} must be a plain directory name: letters, digits, '-', '_', '.'")
    path = os.path.join("out", cfg.name)
    before = record_of(path).get("fingerprints") if fingerprints else None
    paths = PATHS | ({"data"} if script_of(type(cfg)) == "sft.py" else set())
    changed = changed_settings(path, cfg)
    refused = [line for name, line in changed.items() if name not in MAY_CHANGE | (paths if before else set())]
    differs = f"{path} holds a run with other settings"
    if "num_steps" in changed and lr_follows_num_steps(cfg):
        raise ConfigError(f"{differs} ({', '.join([changed['num_steps'], *refused])}): the schedule spreads the lr "
                          "over num_steps, so every lr would be another one; keep num_steps, or give this run another "
                          f"--name and start it from the end of that one, --model {path}/model")
    if refused:
        raise ConfigError(f"{differs} ({', '.join(refused)}); give this one another --name, or remove {path}")
    checkpoint.changed_contents(path, before or {}, fingerprints or {}, getattr(cfg, "allow_data_change", False))
    return path


def lr_follows_num_steps(cfg):
    """Return whether the lr of a step depends on num_steps, in any of the scripts: sft.py's schedule is a cosine."""
    schedules = {getattr(cfg, "lr_schedule", "cosine")}
    schedules |= {cfg.critic_lr_schedule} if getattr(cfg, "estimator", "") == "gae" else set()
    return schedules != {"constant"} and getattr(cfg, "lr_min_ratio", 1) != 1


def record_of(path):
    """Return config.json of a run directory, {} if it holds no run yet."""
    names, file = os.listdir(path) if os.path.isdir(path) else [], os.path.join(path, "config.json")
    record = read_json(file) if any(re.match(r"metrics\.jsonl|(corrupt_)?step_", name) for name in names) else None
    if record is not None and not (isinstance(record.get("settings"), dict) and "script" in record):
        raise ConfigError(f"{file} is not there or cannot be read: restore it, or give this run another --name")
    return record or {}


def changed_settings(path, cfg):
    """Return {"lr": "lr: 0.1 there, 0.2 now"} of a run directory against cfg. What the record lacks had its default."""
    if not (record := record_of(path)):
        return {}
    before = without_folders(as_json(type(cfg)()) | record["settings"] | {"script": record["script"]})
    now = without_folders(as_json(cfg) | {"script": script_of(type(cfg))})
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return {name: f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names}


def as_json(cfg):
    return json.loads(json.dumps(asdict(cfg)))


def plain_settings(cfg, device, record):
    """Return ({setting: plain value} for what is "auto" in cfg, and why). record: the run's, whose values stay."""
    names, kept = [name for name in AUTO if getattr(cfg, name) == "auto"], record.get("resolved", {})
    if not names:
        return {}, ""
    can_compile = device.type == "cuda" and compiler() is not None
    try:
        from tools.memory import resolve
        found, why = resolve(cfg, names, device, dist.get_world_size(), can_compile, kept)
    except (ImportError, ConfigError) as error:  # a run can do without tools/
        safe = {"checkpointing": True, "compile": True, "max_tokens_per_gpu": 16384, "offload": "none"} | kept
        safe["compile"] &= can_compile and cfg.checkpointing != "selective"
        found, why = {name: safe[name] for name in names}, f"not computed ({getattr(error, 'reason', error)})"
    return found, f"auto: {', '.join(f'{name} {value}' for name, value in found.items())}: {why}"


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
            CONTEXT["made"] = folder if new else ""  # only now: another run's directory is not ours to remove
        except BlockingIOError:
            file.seek(0)
            problem = f"{folder} is in use by {file.read()}: wait for it, stop it, or give this run another --name"
        except OSError as error:
            problem = f"{folder} cannot be written ({error}): make that possible, or start from another directory"
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                print0(f"WARNING: {folder} is on a file system without locks: no second run may write there")
                problem = ""
    if problem := checkpoint.agree(problem):
        raise ConfigError(problem)
    return file


# ---------------------------------------------------------------- the run


class Run:
    """One run and its directory. Every rank calls the same methods; only rank 0 writes, but for checkpoints."""

    tail_due = graphs = steps_logged = late_graphs = 0  # the next step to speak of a tail; see tools/advice.py

    def __init__(self, path, cfg, origin, device, fingerprints):
        self.path, self.cfg, self.device, self.fingerprints = path, cfg, device, fingerprints
        self.main, self.clock, self.stop_signals = dist.get_rank() == 0, Clock(device), None
        self.wandb, self.reporting, self.about, self.unwritten = None, None, {}, {}  # unwritten: {file: text}
        self.failures, self.retry_at, self.saved_step = 0, math.inf, 0
        self.logged = None  # the newest row of metrics, on rank 0
        self.lock = lock(path)  # nobody reads config.json after this, a collective
        CONTEXT["folder"] = path
        resolved, why = gather([plain_settings(cfg, device, record_of(path))] if self.main else [])[0]
        if self.main:
            self.start(origin, resolved, why)
        no_tools = {"dry_step": "off"} if getattr(cfg, "dry_step", "") == "auto" and not has_tools() else {}
        self.cfg = cfg = replace(cfg, **resolved, **no_tools)
        self.state = checkpoint.find(path, fingerprints, cfg.allow_data_change, self.say)
        if self.state["step"] and "critic" in fingerprints and "critic" not in self.state.get("models", ()):
            raise ConfigError(f"{path}/step_{self.state['step']:06d} holds no critic, so the run cannot go on from it: "
                              f"remove {path}, or give this run another --name")
        self.max_tokens = size_left(path, "max_tokens_per_gpu", cfg.max_tokens_per_gpu, self.say)
        CONTEXT["max_tokens"] = cfg.max_tokens_per_gpu, self.max_tokens
        CONTEXT["cache_asked"] = getattr(cfg, "kv_cache_gb", 0.0)
        self.kv_cache_gb = size_left(path, "kv_cache_gb", CONTEXT["cache_asked"], self.say)

    def start(self, origin, resolved, why):
        """Write config.json and the code as it is, print what is not a default, and connect to wandb."""
        cfg, settings, script = self.cfg, as_json(self.cfg), script_of(type(self.cfg))
        changed, file = changed_settings(self.path, cfg), os.path.join(self.path, "config.json")
        # without a config.json the directory is new, and another run at wandb too
        wandb_id = read_json(file).get("wandb_id") or f"{cfg.name}-{os.urandom(4).hex()}"
        record = {"script": script, "settings": settings, "resolved": resolved, "origin": origin,
                  "command": [os.path.basename(word) for word in (sys.executable, sys.argv[0])] + sys.argv[1:],
                  "fingerprints": self.fingerprints, "world_size": dist.get_world_size(), "wandb_id": wandb_id}
        try:
            os.makedirs(os.path.join(self.path, "samples"), exist_ok=True)
            if has_tools():
                from tools.provenance import about, save_code
                self.about = about()
                save_code(self.path, settings, recipe=sys.argv[1:2])
            write_atomic(file, json.dumps(record | self.about, indent=1))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error}): make room; the same command continues",
                              checkpoint.NO_CHECKPOINT) from error
        head = f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}  {script}  ->  {self.path}\n"
        note = f"\nall {len(settings)} settings: {file}"
        note += f"\nother settings than before: {', '.join(changed.values())}" if changed else ""
        note += f"\n{why}" if why else ""
        self.say(head + table(cfg, origin, only=origin) + note, in_log=head + table(cfg, origin) + note)
        if cfg.wandb != "off":
            from tools.wandb_thread import WandbThread
            self.wandb = WandbThread(self.say, project="onebox-r1", name=cfg.name, id=wandb_id, mode=cfg.wandb,
                                     config=settings | resolved, dir=self.path, resume="allow")

    def say(self, text, in_log=""):
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

        models: {"policy": (policy, optimizer), "critic": ...}, which `save` writes too. progress.row is None unless the
        run was killed between the save of a step and its row in metrics.jsonl: then that step is still to be evaluated
        and logged.
        """
        self.models = {"model" if name == "policy" else name: pair for name, pair in models.items()}
        state = checkpoint.load(self.path, self.state, self.models, self.say)
        state["kl_coef"] = state.get("kl_coef", getattr(self.cfg, "kl_coef", None))
        old = {"nonfinite_updates": "bad_steps", "prompts_seen": "examples_seen"}  # names in older checkpoints
        state |= {name: state[before] for name, before in old.items() if before in state and name not in state}
        self.progress = Progress(**{f.name: state[f.name] for f in fields(Progress) if f.name in state})
        if self.progress.changed:
            self.say(f"settings as controllers or the guard have changed them: {self.progress.changed}")
        step, saved = self.progress.step, checkpoint.saved_steps(self.path) if self.main else []
        self.saved_step = step if step in gather(saved) else -1
        if step in gather(self.forget_after(step, self.progress.steered) if self.main else []):
            self.progress.row = None
        return self.progress

    def forget_after(self, step, steered=-1):
        """Drop rows and rollouts after the step: the run writes them again. Return the steps that keep their row."""
        folder, logged = os.path.join(self.path, "samples"), []
        kept = step or -1  # without a checkpoint step 0 goes too
        for name in os.listdir(folder):
            if (number := re.search(r"_(\d{6,})\.jsonl", name)) and int(number[1]) > kept:
                os.remove(os.path.join(folder, name))
        for file in (f"{self.path}/{name}.jsonl" for name in ("metrics", "samples/held_out", "guard")):
            if file.endswith("guard.jsonl"):
                kept = steered  # what it said of this step, if it did, is decided again
            elif file.endswith("held_out.jsonl") and step not in logged:
                kept -= 1  # killed between the two files: the evaluation is made again
            lines = list(read_rows(file))
            stay = [(line, row) for line, row in lines if isinstance(row.get("step"), int) and row["step"] <= kept]
            if dropped := len(lines) - len(stay):
                write_atomic(file, "".join(line for line, _ in stay))
            if file.endswith("metrics.jsonl"):
                logged = [row["step"] for _, row in stay]
                self.logged = stay[-1][1] if stay else None
                if dropped:
                    self.say(f"{dropped} rows of metrics after the last checkpoint are dropped, their steps done again")
        return logged

    def begin_step(self, step):
        """Seed the global generators from (seed, step, rank), and begin the step's clock and crash report."""
        if self.stop_signals is None and step:  # before the first step nothing is to save: a signal ends the process
            self.stop_signals = listen_for_signals()
        if "step" not in CONTEXT:
            self.clock.take()  # the start-up is no part of the first step
        CONTEXT.update(step=step, rollouts=())
        seed_generators(self.cfg.seed, step, dist.get_rank())

    def keep_for_crash_report(self, rollouts):
        """Remember the rollouts of the step, until the next one begins. log.txt says which groups were left out."""
        dropped = {r.prompt: r.uid for r in rollouts if getattr(r, "dropped", False)}  # of sft.py: never
        if dropped and self.main:
            text = f"step {CONTEXT['step']}: finish_share left out {', '.join(dropped.values())}"
            self.append("log.txt", visible(text) + "\n")
        CONTEXT.update(rollouts=rollouts, longest=max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))

    def save_is_due(self, step):
        """
        Return whether this is the last step, one of every save_every, one to try a failed save again, or one that the
        guard may have to go back to: each that is evaluated.
        """
        every, evaluated = self.cfg.save_every, getattr(self.cfg, "guard", "") == "act" and self.cfg.eval_every
        return step >= min(self.retry_at, self.cfg.num_steps) or any(n and step % n == 0 for n in (every, evaluated))

    def save(self, progress, stopping=False):
        """
        Write the checkpoint of progress.step, unless it is there. Collective.

        A failed save is logged and retried 1, then 2 steps later, or at once if there is no later step (stopping). The
        third failure in a row raises ConfigError with exit code 3.
        """
        if self.saved_step == progress.step:
            return
        self.clock.phase("save")
        state = asdict(progress) | {"fingerprints": self.fingerprints} | self.about
        while problem := checkpoint.save(self.path, progress.step, self.models, state, self.cfg.keep_checkpoints,
                                         self.needed()):
            self.failures += 1
            self.say(f"WARNING: step {progress.step} could not be saved ({problem}; "
                     f"{shutil.disk_usage(self.path).free / 1e9:.2f} GB free): {self.failures} failed in a row. Older "
                     f"checkpoints are as they were: {checkpoint.saved_steps(self.path) or 'there is none'}")
            if self.failures >= MAX_FAILURES:
                raise ConfigError(f"{self.path}: {MAX_FAILURES} checkpoints in a row could not be written ({problem}): "
                                  "make room; the same command continues from the newest one", checkpoint.NO_CHECKPOINT)
            if not stopping and progress.step < self.cfg.num_steps:
                self.retry_at = progress.step + self.failures
                break
            time.sleep(RETRY_S)
        else:
            self.failures, self.retry_at, self.saved_step = 0, math.inf, progress.step
        self.clock.phase("other")

    def needed(self):
        """Return the steps that an acting guard may go back to: those that it finds good, or the ones saved before."""
        goods = (self.progress.guard or {}).get("goods", []) if getattr(self.cfg, "guard", "") == "act" else []
        return {max((s for s in checkpoint.saved_steps(self.path) if s <= good), default=None) for good, _ in goods}

    def stop_reason(self):
        """Return "", or why all ranks stop after this step: the guard, a signal or max_hours. Collective."""
        if self.progress.verdict:
            return "the guard"
        late = self.cfg.max_hours and time.monotonic() - distributed.START >= self.cfg.max_hours * 3600
        code = int(max_over_ranks(self.stop_signals[0] if self.stop_signals else late, self.device))
        return f"max_hours = {self.cfg.max_hours:g}" if code == 1 else signal.Signals(code).name if code else ""

    def write_samples(self, step, rows):
        """Write rollouts of one split to samples/step_000010.jsonl.gz, beside those of the other (train, held-out)."""
        if not self.main or not rows:
            return
        file = os.path.join(self.path, "samples", f"step_{step:06d}.jsonl.gz")
        try:
            if os.path.exists(file):
                with gzip.open(file, "rt") as f:
                    rows = [row for row in map(json.loads, f) if row["split"] != rows[0]["split"]] + rows
            text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
            write_atomic(file, gzip.compress(text.encode(), compresslevel=6, mtime=0))  # equal rows, equal bytes
        except OSError as error:  # a full disk does not end the run: nothing that is learned depends on them
            self.say(f"WARNING: the rollouts of step {step} are not kept ({error})")

    def held_out(self, step, per_problem):
        """Append to samples/held_out.jsonl how each problem went: {uid: [share right sampled, greedy 0 or 1]}."""
        if self.main:
            self.append("samples/held_out.jsonl", json.dumps({"step": step, "correct": per_problem}) + "\n")

    def log(self, row):
        """Finish a step: its row of metrics with the seconds since clock.take(), console, warnings, the report."""
        row = row | metrics.more_seconds(row, self.clock.take())
        row |= {"changed": dict(self.progress.changed)} if self.progress.changed else {}
        if not self.main:
            return
        self.write_row(row)  # after all else that a step writes: it says that the step is finished
        warnings = []
        if has_tools():
            from tools.advice import long_tail, no_signal
            example = os.path.join(self.path, "samples", f"step_{row['step']:06d}.jsonl.gz")
            kept = getattr(self.cfg, "keep_rollouts", 0) and os.path.exists(example)
            warnings = [no_signal(self.progress.silent_steps, row, example if kept else "")]
            if row["step"] >= self.tail_due and (note := long_tail(row)):
                warnings.append(note)
                self.tail_due = row["step"] + 20
        for line in [*metrics.console_lines(row, self.cfg.num_steps), *filter(None, warnings)]:
            self.say(line)
        every = self.cfg.report_every
        if every and 0 < row["step"] < self.cfg.num_steps and row["step"] % every == 0:
            self.report()

    def write_row(self, row):
        """Append a row to metrics.jsonl. NaN and infinity become null, so that the file stays JSON."""
        if self.main:
            row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            CONTEXT["row"] = self.logged = row
            if has_tools():
                from tools.advice import count_graphs
                count_graphs(self, row["step"])
            self.append("metrics.jsonl", json.dumps(row) + "\n")
            if self.wandb is not None:
                self.wandb.log({k: v for k, v in row.items() if v is not None})

    def report(self, wait=False):
        """Renew report.html, in a process of its own that tools/reporter.py starts and watches."""
        if self.main and has_tools():
            from tools.reporter import Reporter
            self.reporting = self.reporting or Reporter(self.path, self.say)
            self.reporting.renew(wait)
        elif self.main and wait:
            self.say("no report.html was made: there is no tools/")

    def finish(self, policy, tokenizer, stop_ids, stopped_by=""):
        """End the run: say that it was stopped, or export the model to model/ and make the last report. Collective."""
        step = self.progress.step
        checkpoint.prune(self.path, self.cfg.keep_checkpoints, self.needed())  # only now the best is known
        verdict = self.progress.verdict
        if stopped_by and step < self.cfg.num_steps and not verdict:
            self.say(f"stopped by {stopped_by} after step {step}; the same command continues")
        else:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            checkpoint.export_hf(policy, tokenizer, f"{self.path}/model", dtype, step, stop_ids, self.say,
                                 self.cfg.num_steps)
            if getattr(self.cfg, "report_every", 0):
                self.report(wait=True)
            kept = "metrics.jsonl, log.txt, code/" + ", report.html, samples/" * hasattr(self.cfg, "keep_rollouts")
            self.say(f"done: {self.path}  ({kept}, and the model as a Hugging Face directory: {self.path}/model)")
        if self.wandb is not None:
            self.wandb.close()
        if verdict:
            raise ConfigError(f"the guard ended it; {self.path}/model has the last good weights: {verdict}", 6)


def listen_for_signals(wanted=(signal.SIGTERM, signal.SIGUSR1)):
    """
    Return a list that gets the first SIGTERM or SIGUSR1: the run ends after its step. A second one ends it at once.

    A thread reads them from a pipe: Python's own handlers wait for the main thread, perhaps minutes in the engine.
    """
    seen, (read, write) = [], os.pipe()
    os.set_blocking(write, False)
    for number in wanted:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def listen():
        while True:
            if (number := os.read(read, 1)[0]) in wanted:
                if seen:
                    os._exit(128 + number)
                seen.append(number)
                print0(f"{signal.Signals(number).name}: stopping after this step; once more: at once")

    threading.Thread(target=listen, daemon=True).start()
    return seen
