"""
A saved step for tools/replay.py: the rows of samples/step_*.jsonl.gz or of a crash report, and its weights.

docs/replay.md has the fields. What is wrong with a file is a DataError: one line that says where and the fix.
"""

import gzip
import json
import os
import re
import zlib
from contextlib import suppress
from itertools import chain, pairwise

import numpy as np
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from onebox import checkpoint, rundir
from onebox.config import ConfigError
from onebox.distributed import print0
from onebox.files import read_json
from onebox.masters import masters
from onebox.models import resolve_dtype
from onebox.text import excerpt
from policy import load_critic, load_options, load_policy
from rewards import Score
from rollout import Rollout
from tasks.rows import DataError

NEEDED = ("sample", "uid", "rollout_logprobs", "finish_reason", "reward")


def read_step(file, cfg):
    """
    Read the training rollouts of a file, in whole groups. Return (rollouts, {"old_logprobs": [(T,) or None, ...],
    "old_values": ...} as far as the rows have them, the first row).
    """
    rows = rows_of(file)
    groups = whole_groups([to_rollout(row, f"{file}, line {number}") for number, row in rows], cfg.group_size)
    if cfg.dynamic_sampling:  # a crash report holds the groups that it left out too
        varying = [group for group in groups if len({r.score.total for r, _, _ in group}) > 1]
        groups = varying[:cfg.prompts_per_step]
        if not groups:
            raise DataError(f"{file}: no group varies, so dynamic_sampling leaves nothing: give --dynamic_sampling 0")
    kept = list(chain(*groups))
    columns = {name: [old.get(name) for _, old, _ in kept] for name in ("old_logprobs", "old_values")}
    return [r for r, _, _ in kept], columns, rows[0][1]


def rows_of(file):
    """Read [(line number, row)] of the training rollouts in a file of JSON lines, gzipped or not. DataError."""
    try:
        with open(file, "rb") as f:
            zipped = f.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(file, "rt", encoding="utf-8") as f:
            lines = f.read().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"replay = {file!r} cannot be read ({error}): give a whole samples/step_*.jsonl.gz or "
                        "crash/*/batch.jsonl.gz of a run") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {"split": ""}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is no JSON object: {excerpt(line, 60)}")
        if row.get("split", "train") == "train" and row.get("finish_reason") != "dropped":  # by finish_share
            rows.append((number, row))
    if not rows:
        raise DataError(f"{file} holds no rollouts of a training step: it is empty or of an evaluation alone, the run "
                        "had keep_rollouts = 0, or it crashed before its first rollouts")
    return rows


def to_rollout(row, where):
    """Turn a row of samples/ or of a crash report into (Rollout, {"old_logprobs": (T,), ...}, where). DataError."""
    if "score" in row:  # a crash report holds the whole Rollout
        if not isinstance(row["score"], dict):
            raise DataError(f"{where}: this response has no score: the run crashed before its rewards were known")
        row = row | {"reward": row["score"].get("total")}
    if "prompt_ids" not in row or "response_ids" not in row:
        raise DataError(f"{where} has no token ids: it is of a run before samples/ kept prompt_ids and response_ids; "
                        "replay a step of a newer run, or a crash report")
    if lacks := [name for name in NEEDED if row.get(name) is None]:
        raise DataError(f"{where} lacks {', '.join(lacks)}")
    ids, response = row["prompt_ids"], row["response_ids"]
    if not ids or not all(isinstance(x, list) and all(type(i) is int and 0 <= i < 2**31 for i in x)
                          for x in (ids, response)):
        raise DataError(f"{where}: prompt_ids and response_ids must be lists of token ids, prompt_ids not empty")
    if type(row["sample"]) is not int:
        raise DataError(f"{where}: sample must be the number in the group, from 0, got {excerpt(row['sample'], 40)}")
    logprobs = numbers(row["rollout_logprobs"], len(response), f"{where}: rollout_logprobs")
    reward = float(numbers([row["reward"]], 1, f"{where}: reward", np.float64)[0])
    old = {name: numbers(row[name], len(response), f"{where}: {name}")
           for name in ("old_logprobs", "old_values") if row.get(name) is not None}
    score = Score(reward, bool(row.get("correct")), bool(row.get("format_ok")), row.get("parts") or {})
    ids, response = np.array(ids, np.int32), np.array(response, np.int32)
    return Rollout(0, row["sample"], ids, response, logprobs, str(row["finish_reason"]), str(row.get("text") or ""),
                   score, str(row.get("source") or ""), str(row["uid"])), old, where


def numbers(values, count, what, dtype=np.float32):
    """Return a list of `count` finite numbers as an array. DataError."""
    plain = isinstance(values, list) and all(type(x) in (int, float) and -1e30 < x < 1e30 for x in values)
    if not plain or len(values) != count:
        raise DataError(f"{what} must be {count} finite number{'s, one a token' * (count != 1)}")
    return np.array(values, dtype)


def whole_groups(found, group_size):
    """Cut [(Rollout, ...)] where `sample` is 0 and number the groups in .prompt; DataError unless they are whole."""
    starts = {0, *(i for i, (r, _, _) in enumerate(found) if r.sample == 0)}
    groups = [found[a:b] for a, b in pairwise([*sorted(starts), len(found)])]
    for number, group in enumerate(groups):
        where, samples = group[0][2], [r.sample for r, _, _ in group]
        if samples != list(range(len(group))) or len({r.uid for r, _, _ in group}) > 1:
            raise DataError(f"{where} begins a group with the samples {excerpt(samples, 60)}: a group is one uid with "
                            "sample 0, 1, 2, ... in order; add what is missing or take the group out")
        if len(group) != group_size:
            alike = len({len(other) for other in groups}) == 1
            fix = f"give --group_size {len(group)}" if alike else "add what is missing or take the group out"
            raise DataError(f"{where} begins a group of {len(group)}, but group_size = {group_size}: {fix}")
        for r, _, _ in group:
            r.prompt = number
    return groups


def place_of(file, row):
    """Return (the run directory that a file lies in or "", its step or None)."""
    step, folder, run = row.get("step"), os.path.dirname(os.path.abspath(file)), ""
    for parent in (folder, os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        if not run and isinstance(read_json(os.path.join(parent, "config.json")).get("settings"), dict):
            run = os.path.relpath(parent)
    with suppress(OSError), open(os.path.join(folder, "error.txt"), errors="replace") as f:  # of a crash report
        crashed = re.findall(r"^step (\d+); all threads", f.read(), re.M)
        step = int(crashed[-1]) if crashed else step
    return run, step if type(step) is int and step > 0 else None


def weights_of(run, step, model, path):
    """
    Return (step of the newest checkpoint before the file's step, 0 for the model itself; what to say of these weights).
    """
    if not run:
        return 0, f"model {model}: the file lies in no run's directory, so nothing tells which weights sampled it"
    distance = "ratio_mean (mismatch_mean, if the file has no old_logprobs) shows how far these are away"
    began_with = (read_json(os.path.join(run, "config.json")).get("fingerprints") or {}).get("model")
    if began_with != checkpoint.fingerprint_of_model(path):
        return 0, f"model {model}, which is not the one that the run began with: {distance}"
    found = max([0, *(s for s in checkpoint.saved_steps(run) if step and s < step)])
    text = f"checkpoint {run}/step_{found:06d}" if found else f"model {model}"
    if step is None:
        return found, f"{text}: the file does not say of which step it is"
    if found == step - 1:
        return found, f"{text}, the weights that sampled the file"
    return found, f"{text}, NOT the weights of step {step - 1} that sampled the file: {distance}"


def other_settings(run, cfg):
    """List the settings of the algorithm that differ from those of the file's run."""
    changed = rundir.changed_settings(run, cfg) if run else {}
    return [line for name, line in changed.items()
            if name not in rundir.MAY_CHANGE | rundir.PATHS and not name.startswith("eval_")]


def load_models(cfg, path, critic_path, run, step, device):
    """Load {"policy", "critic", "reference"} as the scripts do, None where there is none, and step's checkpoint."""
    dtype, how = resolve_dtype(cfg.dtype, device), load_options(cfg)
    models = {"policy": load_policy(path, device, dtype, **how), "critic": None, "reference": None}
    if critic_path:
        models["critic"] = load_critic(critic_path, device, dtype, **how)
    if cfg.kl_in != "none":
        models["reference"] = load_policy(path, device, dtype, **how, trainable=False)
    if step:
        held = read_json(f"{run}/step_{step:06d}/state.json").get("models", ["model"])
        if critic_path and "critic" not in held:
            print0(f"note          that checkpoint holds no critic: it is {critic_path} with a head of zeros")
        saved = {"model": models["policy"]} | ({"critic": models["critic"]} if critic_path and "critic" in held else {})
        with masters(p for module in saved.values() for p in module.parameters()):
            state = {name: get_model_state_dict(module) for name, module in saved.items()}
            if problem := checkpoint.attempt(checkpoint.damage, run, step) or checkpoint.read_into(state, run, step):
                raise ConfigError(f"{run}/step_{step:06d} cannot be loaded ({problem}): give the weights as another "
                                  "--model", checkpoint.NO_CHECKPOINT)
            for name, module in saved.items():
                set_model_state_dict(module, state[name])
    return models
