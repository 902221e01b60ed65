"""
Checkpoints that survive a kill at any moment, and the export of the model.

    out/<name>/step_000120/  dcp/ (sharded weights and Adam state), state.json (rundir.Progress), MANIFEST.json
               corrupt_step_000100/  found damaged, never used        best  the step with the best held-out score

A directory called step_* is complete: it is written as tmp_step_*, hashed, synced to disk, then renamed. Nothing random
is stored: data order, sampled tokens and the global generators follow from (seed, step, uid), on any number of ranks.
"""

import hashlib
import json
import os
import re
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (get_model_state_dict, get_state_dict, set_model_state_dict,
                                                     set_state_dict)
from torch.distributed.tensor import DTensor

from onebox.config import ConfigError
from onebox.crash import HOST, memory_of, out_of_memory
from onebox.distributed import gather, print0, whole
from onebox.files import read_json, read_rows, sync_folder, write_atomic
from onebox.masters import masters

NO_CHECKPOINT = 3  # exit code: none can be read, or none could be written
ROOM = 2.2         # free disk space that a save wants, in sizes of a checkpoint


class Damaged(Exception):
    """A checkpoint that cannot be used, and why; raised on all ranks together."""


def agree(problem):
    """Return the problem of the first rank that has one, on every rank; "" if none has."""
    return next((text for text in gather([problem]) if text), "")


def attempt(part, *args):
    """Return what `part` says is wrong, or why the disk refused, in a line; "" if nothing is. Raise out of memory."""
    try:
        return part(*args) or ""
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


def step_folder(folder, step, prefix=""):
    return os.path.join(folder, f"{prefix}step_{step:06d}")


def saved_steps(folder):
    """Return the steps that have a checkpoint, oldest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(n[5:]) for n in names if re.fullmatch(r"step_\d{6,}", n))


# ---------------------------------------------------------------- save


@memory_of("a save", HOST)
def save(folder, step, models, state, keep=2, needed=()):
    """
    Write folder/step_000120/, complete or not at all, then prune. Return "", or why it was not written. Collective.

    models: {"model": (policy, optimizer), "critic": ...}; each rank writes its own shards, nothing is gathered.
    state: plain JSON.
    """
    final, tmp, rank, mine = step_folder(folder, step), step_folder(folder, step, "tmp_"), dist.get_rank(), {}
    state = {"step": step, **state, "models": list(models), "format": 2}

    def prepare():
        if rank == 0:
            check_room(folder, [model for model, _ in models.values()])
            shutil.rmtree(tmp, ignore_errors=True)
            os.makedirs(tmp)
            write_atomic(os.path.join(tmp, "state.json"), json.dumps(state, indent=1))

    def look():
        if not os.path.isdir(tmp):
            raise OSError(f"rank {rank} does not see {tmp}: out/ must lie on a file system of all nodes")

    def write():
        dcp.save(sharded_state(models), checkpoint_id=os.path.join(tmp, "dcp"))

    def hash_own():  # DCP calls the files of rank 3 __3_0.distcp, __3_1.distcp, ...
        for name in os.listdir(os.path.join(tmp, "dcp")):
            if name.startswith(f"__{rank}_") or (rank == 0 and not name.startswith("__")):
                mine[f"dcp/{name}"] = size_and_sha256(os.path.join(tmp, "dcp", name))
        if rank == 0:
            mine["state.json"] = size_and_sha256(os.path.join(tmp, "state.json"))

    def publish():
        files = dict(gather(mine.items()))
        if rank == 0:
            manifest = {"step": step, "world_size": dist.get_world_size(), "files": files}
            write_atomic(os.path.join(tmp, "MANIFEST.json"), json.dumps(manifest, indent=1))
            for path in (os.path.join(tmp, "dcp"), tmp):
                sync_folder(path)
            if os.path.exists(final):
                os.rename(final, os.path.join(folder, f"tmp_replaced_{step:06d}"))
            os.rename(tmp, final)
            sync_folder(folder)

    for part in (prepare, look, write, hash_own, publish):
        if problem := agree(attempt(part)):
            if rank == 0:
                shutil.rmtree(tmp, ignore_errors=True)
            return problem
    prune(folder, keep, needed)
    return ""


def sharded_state(models):
    """Return {name: weights, optimizer_name: Adam state} of this rank's shards, in fp32."""
    state = {}
    for name, pair in models.items():
        with masters(pair[0].parameters(), written=False):
            state[name], state[optimizer_of(name)] = get_state_dict(*pair)
    return state


def optimizer_of(name):
    return "optimizer" if name == "model" else f"{name}_optimizer"


def check_room(folder, models):
    """Raise OSError if the disk has no room for ROOM checkpoints of the last one's size, or of 12 bytes a parameter."""
    size = sum(12 * p.numel() for model in models for p in model.parameters())
    for step in saved_steps(folder)[-1:]:
        files = read_json(os.path.join(step_folder(folder, step), "MANIFEST.json")).get("files", {})
        size = sum(file[0] for file in files.values()) or size
    free = shutil.disk_usage(folder).free
    if free < ROOM * size:
        raise OSError(f"{free / 1e9:.2f} GB free, a checkpoint of {size / 1e9:.2f} GB wants {ROOM:g} times its size")


def size_and_sha256(path):
    with open(path, "rb") as f:
        return os.path.getsize(path), hashlib.file_digest(f, "sha256").hexdigest()


def prune(folder, keep, needed=()):
    """
    Remove old checkpoints: the `keep` newest stay, at least one, the best evaluated one and the steps `needed`.
    Collective.

    metrics.jsonl knows a step's held-out success only after its checkpoint was written: call this again then.
    """
    def remove():
        rows, steps = read_rows(os.path.join(folder, "metrics.jsonl")), saved_steps(folder)
        scores = {row.get("step"): row["eval_correct"] for _, row in rows if row.get("eval_correct") is not None}
        best = max((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)
        if best is not None:
            write_atomic(os.path.join(folder, "best"), json.dumps({"step": best, "score": scores[best]}))
        for step in steps[:-max(1, keep)]:
            if step not in (best, *needed):
                gone = os.path.join(folder, f"tmp_pruned_{step:06d}")  # all that a kill on the way leaves
                os.rename(step_folder(folder, step), gone)
                shutil.rmtree(gone)

    if dist.get_rank() == 0 and (problem := attempt(remove)):
        print0(f"WARNING: {folder}: an old checkpoint could not be removed ({problem})")
    dist.barrier()


# ---------------------------------------------------------------- load


def find(folder, fingerprints, allow_data_change=False, say=print0):
    """
    Return state.json of the newest checkpoint that its manifest vouches for, {"step": 0} if the run has none yet.

    Cheap, before any weights are loaded; the same on all ranks. Damaged checkpoints are set aside, leftovers of a kill
    removed. ConfigError if the checkpoint was made from data or models of other fingerprints, and with exit code 3 if
    there are checkpoints but none can be used.
    """
    if dist.get_rank() == 0:
        for name in os.listdir(folder):
            if re.match(r"tmp_(step|replaced|pruned|best)|model\.(tmp|old)$", name):
                path = os.path.join(folder, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    state = newest(folder, say)
    if changed := changed_contents(folder, state.get("fingerprints") or {}, fingerprints, allow_data_change):
        say(f"WARNING: the {' and '.join(changed)} data changed since step {state['step']}; going on as you allow it")
    return state


def newest(folder, say=print0):
    """Walk down the steps. Return state.json of the first that passes, {"step": 0} if there never was a checkpoint."""
    while steps := gather(saved_steps(folder) if dist.get_rank() == 0 else []):  # the first rank looks for all
        if not (problem := agree(attempt(damage, folder, steps[-1]))):
            return read_json(os.path.join(step_folder(folder, steps[-1]), "state.json"))
        set_aside(folder, steps[-1], problem, say)
    if held := gather([n for n in os.listdir(folder) if n.startswith("corrupt_step_")] if dist.get_rank() == 0 else []):
        raise ConfigError(f"{folder} holds no checkpoint that can be used, only {', '.join(sorted(held))}: repair one "
                          "and call it step_... again, or start anew with another --name", NO_CHECKPOINT)
    return {"step": 0}


def damage(folder, step):
    """Return what is wrong with a checkpoint, or "". Each rank hashes its share. ConfigError for the old format."""
    path = step_folder(folder, step)
    if not os.path.exists(path):
        raise ConfigError(f"rank {dist.get_rank()} does not see {path}: out/ must lie on a file system of all nodes "
                          "(or a run that still goes on has removed it: start again)")
    manifest, state = (read_json(os.path.join(path, name)) for name in ("MANIFEST.json", "state.json"))
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
    skip = os.environ.get("CHECKPOINT_SKIP_SHA256") == "1"  # for a huge model on a slow disk
    for name, _, sha256 in [] if skip else files[dist.get_rank()::dist.get_world_size()]:
        if size_and_sha256(os.path.join(path, name))[1] != sha256:
            return f"{name} has another sha256 than when it was written"
    return "" if state.get("step") == step else "state.json is missing or of another step"


def set_aside(folder, step, problem, say):
    """Rename step_000100 to corrupt_step_000100: kept for inspection, never loaded."""
    name = f"corrupt_step_{step:06d}"
    if dist.get_rank() == 0:
        taken = sum(other.startswith(name) for other in os.listdir(folder))
        name += f"_{taken + 1}" if taken else ""
        os.rename(step_folder(folder, step), os.path.join(folder, name))
    say(f"WARNING: {folder}/step_{step:06d} is damaged ({problem}): renamed to {name}, trying the one before it")
    dist.barrier()


def load(folder, state, models, say=print0):
    """Load the checkpoint that `find` found, or an older one if it is damaged. Return its state. Step 0 loads none."""
    while state["step"]:
        try:
            load_state(folder, state["step"], models)
            say(f"resumed {folder} at step {state['step']}")
            break
        except Damaged as error:
            set_aside(folder, state["step"], error, say)
            state = newest(folder, say)
    return state


def load_state(folder, step, models):
    """Load a checkpoint into freshly built models, on any number of ranks. Raise Damaged on all ranks."""
    state = sharded_state(models)
    if problem := read_into(state, folder, step):
        raise Damaged(problem)
    for name, pair in models.items():
        with masters(pair[0].parameters()):
            set_state_dict(*pair, model_state_dict=state[name], optim_state_dict=state[optimizer_of(name)])


def load_model_weights(folder, step, policy):
    """Load the policy's weights of a checkpoint, for an evaluation. Collective. ConfigError if it is damaged."""
    state = {"model": get_model_state_dict(policy)}
    if problem := agree(attempt(damage, folder, step)) or read_into(state, folder, step):
        raise ConfigError(f"{folder}/step_{step:06d} is damaged ({problem}): remove it, or leave this step out",
                          NO_CHECKPOINT)
    set_model_state_dict(policy, state["model"])


def read_into(state, folder, step):
    """Read a checkpoint into the tensors of `state`. Return what is wrong with it, the same on all ranks."""
    path = os.path.join(step_folder(folder, step), "dcp")
    return agree(attempt(lambda: dcp.load(state, checkpoint_id=path)) or not_finite(state))


def not_finite(state):
    """Return the name of a weight or Adam moment in this rank's shards that holds NaN or infinity, or ""."""
    for name, part in state.items():
        for key, value in part.get("state", part).items():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                if torch.is_tensor(local) and local.is_floating_point() and not torch.isfinite(local).all():
                    return f"{name} {key} is not finite"
    return ""


def fingerprint_of_model(path):
    """Hash a model directory: config, tokenizer and index whole, of weights the size and a MB at three places."""
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


def changed_contents(folder, before, now, allow_data_change):
    """Return the names of data whose fingerprints differ, if that is allowed. ConfigError if not, or for a model."""
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    for name in ("model", "critic"):
        if name in changed:
            raise ConfigError(f"the {name}'s files are not those that {folder} was started with: put the old ones "
                              "back, or give this run another --name")
    if "reward" in changed and not allow_data_change:
        raise ConfigError(f"the source of your own reward is not the one that {folder} was started with: put it back "
                          "(a copy lies in its code/own/), give this run another --name, or accept it with "
                          "--allow_data_change", exit_code=2)
    if changed and not allow_data_change:
        raise ConfigError(f"the {' and '.join(changed)} data are not those that {folder} was started with (other rows, "
                          "text or answers): put the old ones back, give this run another --name, or accept them with "
                          "--allow_data_change", exit_code=2)
    return changed


# ---------------------------------------------------------------- export


@memory_of("the export of the model", HOST)
def export_hf(policy, tokenizer, folder, dtype, step, stop_ids=(), say=print0, num_steps=0):
    """
    Write a plain Hugging Face directory that transformers and vLLM load as it is, and that stops at stop_ids.

    Collective. It is written beside and renamed. ConfigError with exit code 3, on all ranks, if the disk refuses it.
    num_steps: what the run was to reach; a run that ended for good before that is complete.
    """
    fitting, changes = generation_config(policy.hf.generation_config, stop_ids)
    if changes:
        say(f"{folder}/generation_config.json: transformers does not write the base model's as it is: "
            f"{', '.join(changes)}")
    weights, tmp, old = {}, folder + ".tmp", folder + ".old"
    with masters(policy.parameters(), written=False):
        for name, weight in policy.hf.state_dict().items():  # every rank together; only rank 0 keeps the tensors
            full = whole(weight)
            if dist.get_rank() == 0:
                weights[name] = full.detach().to("cpu", dtype, copy=True)

    def write():
        for left in (tmp, old):
            shutil.rmtree(left, ignore_errors=True)
        if policy.hf.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)  # the same tensor as the embeddings; loaders tie it again
        policy.hf.config.dtype, policy.hf.generation_config = dtype, fitting
        policy.hf.save_pretrained(tmp, state_dict=weights)
        tokenizer.save_pretrained(tmp)
        write_atomic(os.path.join(tmp, "trained.json"), json.dumps({"step": step, "num_steps": num_steps}))
        for name in os.listdir(tmp):
            sync_folder(os.path.join(tmp, name))
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(tmp, folder)
        sync_folder(os.path.dirname(folder) or ".")
        shutil.rmtree(old, ignore_errors=True)

    if problem := agree(attempt(write) if dist.get_rank() == 0 else ""):
        raise ConfigError(f"{folder} could not be written ({problem}): make room; the same command writes it again",
                          NO_CHECKPOINT)


def generation_config(found, stop_ids):
    """
    Return (the model's GenerationConfig with the run's stop ids, what was changed so that transformers writes it).

    transformers loads many published files that it refuses to save, such as a temperature without do_sample. Sampling
    values that do not come with do_sample = False are kept by do_sample = True; what still does not fit is left out.
    """
    fields = {name: getattr(found, name) for name in found.to_diff_dict() if name != "transformers_version"}
    if stop_ids:
        fields["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    fitting, left_out = fit(fields)
    if left_out and fields.get("do_sample") is None:
        sampled, still_out = fit(fields | {"do_sample": True})
        if len(still_out) < len(left_out):
            return sampled, ["do_sample = True set", *still_out]
    return fitting, left_out


def fit(fields):
    """Return (a GenerationConfig of those fields that go together, what was left out as text)."""
    from transformers import GenerationConfig

    fitting, left_out = GenerationConfig(), []
    first = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")  # what other fields depend on
    for name in sorted(fields, key=lambda name: (name not in first, name)):
        default = getattr(fitting, name, None)
        setattr(fitting, name, fields[name])
        try:
            fitting.validate(strict=True)
        except (ValueError, TypeError, AttributeError):
            setattr(fitting, name, default)
            left_out.append(f"{name} = {fields[name]!r} left out")
    return fitting, left_out


def exported_step(folder, key="step"):
    """Return the step whose weights lie in an exported directory, -1 if there is none or nobody can tell."""
    value = read_json(os.path.join(folder, "trained.json")).get(key)
    return value if isinstance(value, int) else -1
