"""
Checkpoints that survive a kill at any moment, and what a run needs to stop and to continue exactly.

    out/<name>/step_000120/  dcp/ (sharded weights and Adam state), state.json (where the loop stood), MANIFEST.json
               corrupt_step_000100/  found damaged, never used        best  which step had the best held-out score

A directory called step_* is complete: it is written as tmp_step_*, hashed, synced to disk, then renamed. Nothing random
is stored: data order, sampled tokens and the global generators follow from (seed, step, uid), on any number of ranks.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import threading
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from onebox.distributed import START, fault, gather, max_over_ranks, print0, whole
from onebox.config import ConfigError
from onebox.rundir import HOST, changed_contents, commit, memory_of, out_of_memory, versions

NO_CHECKPOINT = 3   # exit code: none can be read, or none could be written MAX_FAILURES times in a row
MAX_FAILURES = 3
RETRY_S = 5.0       # between the attempts at a save that cannot wait for a later step
ROOM = 2.2          # free disk space that a save wants, in sizes of a checkpoint


class Damaged(Exception):
    """A checkpoint that cannot be used, and why; raised on all ranks together."""


def agree(problem):
    """The first rank's problem that has one, on every rank; "" where none has."""
    return next((text for text in gather([problem]) if text), "")


def attempt(part, *args):
    """-> "" or, in a line, why the disk did not let `part` be done; all else, out of memory too, is raised."""
    try:
        part(*args)
    except (OSError, SafetensorError) as error:
        if out_of_memory(error):  # no damage: a checkpoint that does not fit into memory is a good one
            raise
        return f"{type(error).__name__}: {error}"
    except dcp.CheckpointException as error:  # one exception per rank; a full disk may be called "unexpected pos"
        for cause, _ in error.failures.values():
            if out_of_memory(cause) or not isinstance(cause, Exception):  # Ctrl-C
                raise cause from error
        cause = next(iter(error.failures.values()))[0]
        return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    return ""


# ---------------------------------------------------------------------------------------------------------------
# save
# ---------------------------------------------------------------------------------------------------------------


class Saver:
    """When to save, and what a save that failed leads to: said, counted, tried again after 1, 2 steps; then the end."""

    def __init__(self, folder, every, keep, say=print0):
        self.folder, self.every, self.keep, self.say = folder, every, keep, say
        self.failures, self.retry_at = 0, math.inf

    def due(self, step):
        return step >= self.retry_at or bool(self.every and step % self.every == 0)

    def save(self, step, policy, optimizer, state, *, must=False, **more):
        """must: there is no later step, so try again now. ConfigError with exit code 3 after MAX_FAILURES in a row."""
        while problem := save_state(self.folder, step, policy, optimizer, state, keep=self.keep, **more):
            self.failures += 1
            free = shutil.disk_usage(self.folder).free / 1e9
            self.say(f"WARNING: step {step} could not be saved ({problem}; {free:.2f} GB free): {self.failures} failed "
                     f"in a row. Older checkpoints are as they were: {saved_steps(self.folder) or 'there is none'}")
            if self.failures >= MAX_FAILURES:
                raise ConfigError(f"{self.folder}: {MAX_FAILURES} checkpoints in a row could not be written ({problem}"
                                  "): make room; the same command continues from the newest one", NO_CHECKPOINT)
            if not must:
                self.retry_at = step + self.failures
                return
            time.sleep(RETRY_S)
        self.failures, self.retry_at = 0, math.inf


@memory_of("a save", HOST)
def save_state(folder, step, policy, optimizer, state, *, keep=2, **more):
    """
    folder/step_000120/, complete or not there at all; every rank together. -> "" or why it could not be written, the
    same on all ranks. The `keep` newest stay, and the one with the best held-out success, see prune.

    policy, optimizer: their shards go to disk rank by rank (torch.distributed.checkpoint), nothing is gathered.
    more: further models with their optimizers, as critic=(critic, critic_optimizer). state: plain JSON.
    """
    final, tmp = os.path.join(folder, f"step_{step:06d}"), os.path.join(folder, f"tmp_step_{step:06d}")
    rank = dist.get_rank()
    state = {"step": step, **state, "models": ["model", *more], "format": 2}
    mine = {}

    def prepare():
        if rank == 0:
            check_room(folder, [policy, *(model for model, _ in more.values())])
            shutil.rmtree(tmp, ignore_errors=True)
            os.makedirs(tmp)
            write_json(os.path.join(tmp, "state.json"), state)

    def look():
        if not os.path.isdir(tmp):
            raise OSError(f"rank {rank} does not see {tmp}: out/ must lie on a file system of all nodes")

    def write():
        dcp.save(sharded_state(policy, optimizer, more), checkpoint_id=os.path.join(tmp, "dcp"))
        fault("save_write", step)

    def hash_own():  # DCP calls the files of rank 3 __3_0.distcp, __3_1.distcp, ...
        for name in os.listdir(os.path.join(tmp, "dcp")):
            if name.startswith(f"__{rank}_") or (rank == 0 and not name.startswith("__")):
                mine[f"dcp/{name}"] = size_and_sha256(os.path.join(tmp, "dcp", name))
        if rank == 0:
            mine["state.json"] = size_and_sha256(os.path.join(tmp, "state.json"))

    def publish():
        files = dict(gather(mine.items()))
        if rank == 0:
            fault("save_manifest", step)
            manifest = {"step": step, "world_size": dist.get_world_size(), "commit": commit(), "versions": versions(),
                        "files": files}
            write_json(os.path.join(tmp, "MANIFEST.json"), manifest)
            for path in (os.path.join(tmp, "dcp"), tmp):
                sync_folder(path)
            if os.path.exists(final):
                os.rename(final, os.path.join(folder, f"tmp_replaced_{step:06d}"))
            os.rename(tmp, final)
            sync_folder(folder)
            fault("after_rename", step)

    for part in (prepare, look, write, hash_own, publish):
        if problem := agree(attempt(part)):
            if rank == 0:
                shutil.rmtree(tmp, ignore_errors=True)
            return problem
    prune_or_say(folder, keep)
    return ""


def prune_or_say(folder, keep):
    """prune on the first rank; the others wait for it."""
    if dist.get_rank() == 0 and (problem := attempt(prune, folder, keep)):
        print0(f"WARNING: {folder}: an old checkpoint could not be removed ({problem})")
    dist.barrier()


def sharded_state(policy, optimizer, more):
    state = {}
    for name, pair in {"model": (policy, optimizer), **more}.items():
        state[name], state["optimizer" if name == "model" else f"{name}_optimizer"] = get_state_dict(*pair)
    return state


def check_room(folder, models):
    """OSError where the disk has less room than ROOM checkpoints of the last one's size, or of 12 bytes a parameter."""
    size = sum(12 * p.numel() for model in models for p in model.parameters())
    for step in saved_steps(folder)[-1:]:
        size = sum(file[0] for file in read_json(folder, step, "MANIFEST.json").get("files", {}).values()) or size
    free = shutil.disk_usage(folder).free
    if free < ROOM * size:
        raise OSError(f"{free / 1e9:.2f} GB free, a checkpoint of {size / 1e9:.2f} GB wants {ROOM:g} times its size")


def write_json(path, content):
    with open(path, "w") as f:
        json.dump(content, f, indent=1)
        f.flush()
        os.fsync(f.fileno())


def sync_folder(path):
    """Names reach the disk with their directory, not with the file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def size_and_sha256(path):
    with open(path, "rb") as f:
        return os.path.getsize(path), hashlib.file_digest(f, "sha256").hexdigest()


def prune(folder, keep):
    """
    Remove all but the `keep` newest (at least one) and the best by metrics.jsonl, which knows a step's held-out success
    only after its checkpoint was written; a kill on the way leaves but a tmp_ directory.
    """
    steps, scores = saved_steps(folder), held_out_scores(folder)
    best = max(((scores[step], step) for step in steps if step in scores), default=(None, None))[1]
    if best is not None:
        write_json(os.path.join(folder, "tmp_best"), {"step": best, "score": scores[best]})
        os.replace(os.path.join(folder, "tmp_best"), os.path.join(folder, "best"))
    for step in steps[:-max(1, keep)]:
        if step != best:
            gone = os.path.join(folder, f"tmp_pruned_{step:06d}")
            os.rename(os.path.join(folder, f"step_{step:06d}"), gone)
            fault("prune", steps[-1])
            shutil.rmtree(gone)


def held_out_scores(folder):
    """{step: eval_correct} of metrics.jsonl."""
    file, scores = os.path.join(folder, "metrics.jsonl"), {}
    with open(file, errors="replace") if os.path.exists(file) else io.StringIO() as f:
        for line in f:
            try:
                row = json.loads(line)
                scores |= {row["step"]: row["eval_correct"]} if row.get("eval_correct") is not None else {}
            except (ValueError, KeyError, AttributeError):
                continue  # half a line of a killed run
    return scores


# ---------------------------------------------------------------------------------------------------------------
# load
# ---------------------------------------------------------------------------------------------------------------


def saved_steps(folder):
    """The steps that have a checkpoint, oldest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(n[5:]) for n in names if re.fullmatch(r"step_\d{6,}", n))


def read_json(folder, step, name):
    """A JSON object of a checkpoint; {} where there is none that can be read."""
    try:
        with open(os.path.join(folder, f"step_{step:06d}", name)) as f:
            content = json.load(f)
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def find(folder, fingerprints, allow_data_change=False, say=print0):
    """
    state.json of the newest checkpoint that its manifest vouches for, {"step": 0} where the run has none yet; cheap,
    before any weights are loaded, and the same on all ranks. Damaged ones are put aside, leftovers of a kill removed.

    fingerprints: of the data and the model, as `fingerprint_of_model` and data.fingerprint give them; ConfigError where
    the checkpoint was made from others. ConfigError with exit code 3 where there are checkpoints but none can be used.
    """
    if dist.get_rank() == 0:
        for name in os.listdir(folder):
            if re.match(r"tmp_(step|replaced|pruned|best)|model\.(tmp|old)$", name):
                path = os.path.join(folder, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    state = newest(folder, say)
    if changed := changed_contents(folder, state.get("fingerprints", {}), fingerprints, allow_data_change):
        say(f"WARNING: the {' and '.join(changed)} data changed since step {state['step']}; going on as you allow it")
    return state


def newest(folder, say=print0):
    """The walk down the steps: state.json of the first that passes, {"step": 0} where there never was a checkpoint."""
    while True:
        steps = gather(saved_steps(folder) if dist.get_rank() == 0 else [])  # the first rank looks for all
        if not steps:
            break
        problem = agree(damage_or_error(folder, steps[-1]))
        if not problem:
            return read_json(folder, steps[-1], "state.json")
        quarantine(folder, steps[-1], problem, say)
    if held := gather([n for n in os.listdir(folder) if n.startswith("corrupt_step_")] if dist.get_rank() == 0 else []):
        raise ConfigError(f"{folder} holds no checkpoint that can be used, only {', '.join(sorted(held))}: repair one "
                          "and call it step_... again, or start anew with another --name", NO_CHECKPOINT)
    return {"step": 0}


def damage_or_error(folder, step):
    try:
        return damage(folder, step)
    except OSError as error:  # a bad sector, a file that cannot be opened
        return f"{type(error).__name__}: {error}"


def damage(folder, step):
    """What is wrong with a checkpoint, "" if nothing; each rank hashes its share. ConfigError for the old format."""
    path = os.path.join(folder, f"step_{step:06d}")
    if not os.path.exists(path):
        raise ConfigError(f"rank {dist.get_rank()} does not see {path}: out/ must lie on a file system of all nodes (or a "
                          "run that still goes on has removed it: start again)")
    manifest, state = read_json(folder, step, "MANIFEST.json"), read_json(folder, step, "state.json")
    if not os.path.exists(os.path.join(path, "MANIFEST.json")) and state and "format" not in state:
        raise ConfigError(f"{path} is from before checkpoints had a MANIFEST.json and cannot be verified: go on "
                          f"with the code in {folder}/code, or give this run another --name", NO_CHECKPOINT)
    try:
        files = [(name, size, sha256) for name, (size, sha256) in sorted(manifest["files"].items())]
    except (KeyError, TypeError, ValueError, AttributeError):
        files = []
    if not files or manifest.get("step") != step:
        return "MANIFEST.json is missing or cannot be read"
    for name, size, _ in files:
        found = os.path.getsize(os.path.join(path, name)) if os.path.exists(os.path.join(path, name)) else None
        if found != size:
            return f"{name} {'is missing' if found is None else f'has {found} bytes, not {size}'}"
    if os.environ.get("CHECKPOINT_SKIP_SHA256") != "1":  # for a huge model on a slow disk
        for name, _, sha256 in files[dist.get_rank()::dist.get_world_size()]:
            if size_and_sha256(os.path.join(path, name))[1] != sha256:
                return f"{name} has another sha256 than when it was written"
    return "" if state.get("step") == step else "state.json is missing or of another step"


def quarantine(folder, step, problem, say):
    """step_000100 -> corrupt_step_000100: kept for who wants to look, never loaded."""
    name = f"corrupt_step_{step:06d}"
    if dist.get_rank() == 0:
        taken = sum(other.startswith(name) for other in os.listdir(folder))
        name += f"_{taken + 1}" if taken else ""
        os.rename(os.path.join(folder, f"step_{step:06d}"), os.path.join(folder, name))
    say(f"WARNING: {folder}/step_{step:06d} is damaged ({problem}): renamed to {name}, trying the one before it")
    dist.barrier()


def load(folder, state, policy, optimizer, say=print0, **more):
    """
    Weights and optimizers of the checkpoint that `find` found, or of an older one if that does not load -> its state.
    {"step": 0}: nothing is loaded, the run begins.
    """
    while state["step"]:
        try:
            load_state(folder, state["step"], policy, optimizer, **more)
            say(f"resumed {folder} at step {state['step']}")
            break
        except Damaged as error:
            quarantine(folder, state["step"], error, say)
            state = newest(folder, say)
    return state


def load_state(folder, step, policy, optimizer, **more):
    """A checkpoint into freshly built models; the number of ranks may differ from the saver's. Damaged on all ranks."""
    state = sharded_state(policy, optimizer, more)

    def read():
        dcp.load(state, checkpoint_id=os.path.join(folder, f"step_{step:06d}", "dcp"))

    if problem := agree(attempt(read) or not_finite(state)):
        raise Damaged(problem)
    for name, pair in {"model": (policy, optimizer), **more}.items():
        optim_state = state["optimizer" if name == "model" else f"{name}_optimizer"]
        set_state_dict(*pair, model_state_dict=state[name], optim_state_dict=optim_state)


def load_model_weights(folder, step, policy):
    """The policy's weights of a checkpoint, for an evaluation; every rank together. ConfigError where it is damaged."""
    state = {"model": get_model_state_dict(policy)}

    def read():
        dcp.load(state, checkpoint_id=os.path.join(folder, f"step_{step:06d}", "dcp"))

    if problem := agree(damage_or_error(folder, step)) or agree(attempt(read) or not_finite(state)):
        raise ConfigError(f"{folder}/step_{step:06d} is damaged ({problem}): remove it, or leave this step out",
                          NO_CHECKPOINT)
    set_model_state_dict(policy, state["model"])


def not_finite(state):
    """The name of a weight or Adam moment in this rank's shards that holds NaN or infinity, or ""."""
    for name, part in state.items():
        for key, value in part.get("state", part).items():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                if torch.is_tensor(local) and local.is_floating_point() and not torch.isfinite(local).all():
                    return f"{name} {key} is not finite"
    return ""


def fingerprint_of_model(path):
    """sha256 over a model directory: config, tokenizer and index whole, of weights the size and a MB at 3 places."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        weights, file = name.endswith((".safetensors", ".bin")), os.path.join(path, name)
        if weights or name.endswith((".json", ".txt", ".model", ".jinja")):
            size = os.path.getsize(file)
            digest.update(f"{name} {size}".encode())
            with open(file, "rb") as f:
                for start in (0, size // 2, max(0, size - 2**20)) if weights else (0,):
                    f.seek(start)
                    digest.update(f.read(2**20 if weights else -1))
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------
# export
# ---------------------------------------------------------------------------------------------------------------


@memory_of("the export of the model", HOST)
def export_hf(policy, tokenizer, folder, dtype, step, stop_ids=(), say=print0):
    """
    A plain Hugging Face directory (config, safetensors, tokenizer) that transformers and vLLM load as it is, and that
    stops at stop_ids; written beside and renamed. ConfigError with exit code 3, on all ranks, where the disk refuses it.
    """
    settled, changes = generation_config(policy.hf.generation_config, stop_ids)
    if changes:
        say(f"{folder}/generation_config.json: transformers does not write the base model's as it is: {', '.join(changes)}")
    weights, tmp, old = {}, folder + ".tmp", folder + ".old"
    for name, weight in policy.hf.state_dict().items():  # every rank together; only rank 0 keeps the tensors
        full = whole(weight)
        if dist.get_rank() == 0:
            weights[name] = full.detach().to("cpu", dtype, copy=True)

    def write():
        for left in (tmp, old):
            shutil.rmtree(left, ignore_errors=True)
        if policy.hf.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)  # the same tensor as the embeddings; loaders tie it again
        policy.hf.config.dtype, policy.hf.generation_config = dtype, settled
        policy.hf.save_pretrained(tmp, state_dict=weights)
        tokenizer.save_pretrained(tmp)
        write_json(os.path.join(tmp, "trained.json"), {"step": step})
        for name in os.listdir(tmp):
            sync_folder(os.path.join(tmp, name))
        if os.path.exists(folder):
            os.rename(folder, old)
        fault("export", step)
        os.rename(tmp, folder)
        sync_folder(os.path.dirname(folder) or ".")
        shutil.rmtree(old, ignore_errors=True)

    if problem := agree(attempt(write) if dist.get_rank() == 0 else ""):
        raise ConfigError(f"{folder} could not be written ({problem}): make room; the same command writes it again",
                          NO_CHECKPOINT)


def generation_config(found, stop_ids):
    """
    -> (the model's GenerationConfig with the run's stop ids, what was changed so that transformers writes it).

    transformers loads many published files that it refuses to save, such as a temperature without do_sample. Sampling
    values that do not come with do_sample = False are kept by do_sample = True; what still does not fit is left out.
    """
    fields = {name: getattr(found, name) for name in found.to_diff_dict() if name != "transformers_version"}
    if stop_ids:
        fields["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    settled, left_out = fit(fields)
    if left_out and fields.get("do_sample") is None:
        sampled, still_out = fit(fields | {"do_sample": True})
        if len(still_out) < len(left_out):
            return sampled, ["do_sample = True set", *still_out]
    return settled, left_out


def fit(fields):
    """-> (GenerationConfig of those fields that go together, what was left out as text)."""
    from transformers import GenerationConfig

    settled, left_out = GenerationConfig(), []
    first = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")  # what other fields depend on
    for name in sorted(fields, key=lambda name: (name not in first, name)):
        default = getattr(settled, name, None)
        setattr(settled, name, fields[name])
        try:
            settled.validate(strict=True)
        except (ValueError, TypeError, AttributeError):
            setattr(settled, name, default)
            left_out.append(f"{name} = {fields[name]!r} left out")
    return settled, left_out


def exported_step(folder):
    """The step whose weights lie in an exported directory, -1 where there is none or it cannot be told."""
    try:
        with open(os.path.join(folder, "trained.json")) as f:
            return int(json.load(f)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


# ---------------------------------------------------------------------------------------------------------------
# stop
# ---------------------------------------------------------------------------------------------------------------


class Stop:
    """
    SIGTERM, SIGUSR1 or max_hours (0: none) end a run after the current step; a second signal ends it at once.

    A thread reads the signals from a pipe, since Python's own handlers wait for the main thread, which may be inside
    the engine for minutes. clock: seconds since the process started, monotonic.
    """

    def __init__(self, device, max_hours=0.0, clock=lambda: time.monotonic() - START):
        self.device, self.max_hours, self.clock, self.seen = device, max_hours, clock, []
        read, write = os.pipe()
        os.set_blocking(write, False)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self.listen, args=(read,), daemon=True).start()

    def listen(self, read):
        while True:
            for number in os.read(read, 1):
                if number in (signal.SIGTERM, signal.SIGUSR1):
                    if self.seen:
                        os._exit(128 + number)
                    self.seen.append(number)
                    print0(f"{signal.Signals(number).name}: stopping after this step; once more: at once")

    def reason(self):
        """"" or why all ranks stop now; a collective, at the end of each step."""
        late = self.max_hours and self.clock() >= self.max_hours * 3600
        code = int(max_over_ranks(self.seen[0] if self.seen else late, self.device))
        return f"max_hours = {self.max_hours:g}" if code == 1 else signal.Signals(code).name if code else ""
