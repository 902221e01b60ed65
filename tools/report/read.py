"""
Read a run directory into plain values for page.py. Whatever is damaged or missing becomes a note, never an error: a run
that is still going or was killed leaves half a line, half a file or none.
"""

import glob
import gzip
import itertools
import json
import math
import os
import re
import zlib

from tasks.words import split_thinking
from onebox.config import ConfigError
from onebox.files import read_json

READ_CHARS = 8_000_000  # of one file of rollouts
READ_BYTES = 10_000_000  # of all files together, about: they are compressed to a quarter
TOKEN_COLUMNS = ("logprobs", "old_logprobs", "rollout_logprobs", "ratio", "entropy", "clipped", "advantages", "values",
                 "old_values")
MAX_STEPS = 24  # whose rollouts are shown, per run
MAX_TOKENS, MAX_CHARS = 3000, 12_000  # of one response, else its head and tail
ACTIONS = ("change", "roll back", "stop")  # of the guard, beside "none"


def number(value):
    """Return a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond 1e308
        return None


def short(value, digits=5):
    """Round a number to so many digits, to keep the page small; None stays None."""
    value = number(value)
    if value is None:
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.{digits}g}")


def read_lines(path, limit=None):
    """
    Read JSONL, plain or gzip -> (rows that are objects, "" or what is wrong).

    After `limit` characters only held-out rollouts are read: they are few, small and stand last.
    """
    rows, chars, broken, passed = [], 0, 0, 0
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", errors="replace",
                                                           newline="\n") as f:
            for line in f:
                chars += len(line)
                if limit and chars > limit and '"held-out"' not in line[:200]:
                    passed += 1
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    rows.append(row)
                else:
                    broken += bool(line.strip())
    except (OSError, EOFError, zlib.error) as error:
        return rows, f"cannot be read to its end ({type(error).__name__}), {len(rows)} lines were"
    problems = [f"{broken} broken line{'s' * (broken > 1)} left out"] * bool(broken)
    return rows, ", ".join(problems + [f"too large, {passed} lines not read"] * bool(passed))


def read_run(folder):
    """Read a run's directory into a dict, except the rollouts. Raises ConfigError where it is no run at all."""
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not there: give the directory of a run, like out/demo")
    run = {"folder": folder, "name": os.path.basename(os.path.abspath(folder)), "notes": [], "config": {}, "rows": []}
    config, metrics, guard = (os.path.join(folder, name) for name in ("config.json", "metrics.jsonl", "guard.jsonl"))
    files = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "samples", "step_*.jsonl*"))):
        if found := re.fullmatch(r"step_(\d{1,9})\.jsonl(\.gz)?", os.path.basename(path)):
            files.setdefault(int(found[1]), []).append(path)
    if not (os.path.exists(config) or os.path.exists(metrics) or files):
        raise ConfigError(f"{folder} is not a run: it has neither config.json nor metrics.jsonl nor samples/")
    run["files"] = files
    run["config"] = read_json(config, errors="replace")
    if not run["config"]:
        run["notes"].append("config.json is missing or damaged: recipe, settings, machine and commit are not known")
    rows, problem = read_lines(metrics) if os.path.exists(metrics) else ([], "is missing")
    rows = {row["step"]: row for row in rows if type(row.get("step")) is int and abs(row["step"]) < 10**9}
    run["rows"] = [rows[step] for step in sorted(rows)]
    if not rows:
        problem = f"holds no complete step yet{f' ({problem})' * bool(problem)}" if problem != "is missing" else problem
    if problem:
        run["notes"].append(f"metrics.jsonl {problem}")
    lines, problem = read_lines(guard, READ_CHARS) if os.path.exists(guard) else ([], "")
    events = [event for event in map(clean_event, lines) if event]
    run["guard"] = sorted(events, key=lambda event: event["step"])
    problems = [problem] * bool(problem) + ["lines without a step left out"] * (len(events) < len(lines))
    if problems:
        run["notes"].append(f"guard.jsonl: {', '.join(problems)}")
    if not files:
        run["notes"].append("samples/ holds no rollouts: nothing to show in the viewer, no examples, no histograms")
    return run


def clean_event(row):
    """
    Take from a line of guard.jsonl what marks and table need; None without a step. Any value may be of any type.

    numbers are [(column, before, now)], settings {name: text}; acted is true only with one of ACTIONS.
    """
    step, since, to_step = (whole_number(row.get(name)) for name in ("step", "since", "to_step"))
    if step is None:
        return None
    saw, action = text_of(row.get("saw") or "?", 80), text_of(row.get("action") or "none", 40)
    numbers, settings = (row[name] if isinstance(row.get(name), dict) else {} for name in ("numbers", "settings"))
    pairs = [(text_of(name, 80), pair) for name, pair in [*numbers.items()][:20]
             if isinstance(pair, list) and len(pair) == 2]
    return {
        "step": step, "saw": saw, "since": since, "numbers": [(name, short(a), short(b)) for name, (a, b) in pairs],
        "action": action, "settings": {text_of(k, 80): text_of(v, 80) for k, v in [*settings.items()][:20]},
        "to_step": to_step, "line": text_of(row.get("line") or f"step {step}: {saw}", 1000),
        "acted": row.get("acted") is True and action in ACTIONS}


def whole_number(value):
    return value if type(value) is int and abs(value) < 10**9 else None


def most_telling(events, count):
    """Choose at most so many events, in their order: those on which the guard acted, then the earliest."""
    chosen = sorted(range(len(events)), key=lambda i: not events[i]["acted"])[:count]
    return [events[i] for i in sorted(chosen)]


def setting(run, name, default=None):
    settings = run["config"].get("settings")
    return settings.get(name, default) if isinstance(settings, dict) else default


def text_of(value, limit=4000):
    """Turn any JSON value into text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]} [... {len(text) - limit:,} characters left out ...]"


def evaluated_steps(run):
    return [row["step"] for row in run["rows"] if number(row.get("eval_correct")) is not None]


def evenly(items, count):
    """Choose at most so many items, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def size_of(path):
    try:
        return os.path.getsize(path)
    except OSError:  # a resumed run has just removed it
        return 0


def read_rollouts(run, count=MAX_STEPS, also=()):
    """Add run["rollouts"], {step: [clean rows]}: of evenly spaced steps, of the examples' steps and of `also`."""
    steps = sorted(run["files"])
    size = sum(size_of(path) for paths in run["files"].values() for path in paths) / max(1, len(steps))
    count = min(count, max(4, int(READ_BYTES / max(1, size))))  # of long responses few fit the page anyway
    evaluated = [step for step in evaluated_steps(run) if step in run["files"]] or steps
    chosen = sorted({*evenly(evaluated, 4), *(evenly(steps, count) if count > 8 else ()), *({*also} & {*steps})})
    run["rollouts"], bad = {}, 0
    for step in chosen:
        kept = run["rollouts"].setdefault(step, [])
        for path in run["files"][step]:
            rows, problem = read_lines(path, READ_CHARS)
            clean = [clean_rollout(row, step, old=not path.endswith(".gz")) for row in rows]
            kept += [row for row in clean if row]
            bad += clean.count(None)
            if problem:
                run["notes"].append(f"samples/{os.path.basename(path)}: {problem}")
    if bad:
        run["notes"].append(f"samples/: {bad} lines without uid, prompt or response left out")
    run["not_read"] = len(steps) - len(chosen)


def clean_rollout(row, step, old=False):
    """Take from a stored row what tables and examples need; None without uid, prompt or response."""
    text, prompt, uid = row.get("response"), row.get("prompt"), row.get("uid")
    if not isinstance(text, str) or not isinstance(prompt, str) or not isinstance(uid, (str, int)):
        return None
    split = row.get("split") if row.get("split") in ("train", "held-out") else "held-out" if old else "train"
    tokens = number(row.get("tokens"))
    return {
        "step": step, "uid": str(uid), "split": split, "sample": text_of(row.get("sample", ""), 20), "prompt": prompt,
        "gold": text_of(row["gold"], 1000) if row.get("gold") not in (None, "") else "",
        "reward": short(row.get("reward")), "correct": bool(row.get("correct")),
        "tokens": int(tokens) if tokens is not None else None, "thinking": split_thinking(text)[0], "raw": row}


def thinking_end(text):
    """Find where the thinking ends, in code points; -1 where it does not end."""
    thinking, answer = split_thinking(text)
    return len(thinking) if answer else -1


def completion(clean):
    """
    Turn a clean row into a completion of the viewer, with offsets in UTF-16 units as in JavaScript. Columns of another
    length than the tokens are left out; None stands for what is no finite number. `mismatch` is the engine's log-prob
    minus the trainer's. (Not done for every row read: a file may hold millions of numbers.)
    """
    row = clean["raw"]
    text, ends = row["response"], row.get("ends")
    good = isinstance(ends, list) and all(type(e) is int for e in ends) and ends == sorted(ends)
    if not good or (ends and not 0 <= ends[0] <= ends[-1] <= len(text)):
        ends = []
    columns = {}
    for name in TOKEN_COLUMNS:
        values = row.get(name)
        if ends and isinstance(values, list) and len(values) == len(ends):
            columns[name] = [number(int(v) if isinstance(v, bool) else v) for v in values]
    rolled, before = columns.pop("rollout_logprobs", None), columns.pop("old_logprobs", columns.get("logprobs"))
    if rolled and before:  # the trainer's before the step's first update, as the engine's
        columns["mismatch"] = [None if r is None or p is None else r - p for r, p in zip(rolled, before, strict=True)]
    if "old_values" in columns:
        columns["values"] = columns.pop("old_values")
    gaps = [abs(v) for v in columns.get("mismatch", ()) if v is not None]
    parts, flags = row.get("parts"), row.get("flags")
    return {
        "sample": clean["sample"], "reward": clean["reward"], "correct": clean["correct"],
        "format_ok": row.get("format_ok") is not False, "finish": text_of(row.get("finish_reason") or "", 20),
        "truncated": bool(row.get("truncated")) or row.get("finish_reason") in ("length", "deadline"),
        "tokens": clean["tokens"] if clean["tokens"] is not None else len(ends) or None,
        "advantage": short(row.get("advantage")),
        "parts": {text_of(k, 40): short(v) for k, v in parts.items()} if isinstance(parts, dict) else {},
        "flags": [text_of(f, 40) for f in flags[:20]] if isinstance(flags, list) else [],
        "mean_mismatch": short(sum(gaps) / len(gaps), 3) if gaps else None,
        "think_tokens": sum(e <= len(clean["thinking"]) for e in ends) if ends else None,
        **shorten(text, ends, columns, thinking_end(text))}


def shorten(text, ends, columns, think, max_chars=MAX_CHARS):
    """
    Shorten a text -> {text, think: where the thinking ends or -1, pieces: UTF-16 length of each token, **columns}. Of
    more than MAX_TOKENS tokens, or max_chars characters where the tokens are not known, head and tail stay.
    """
    size = len(ends) if ends else len(text)
    limit = MAX_TOKENS if ends else max_chars
    if size > limit:
        head, tail = limit * 4 // 5, size - limit // 5
        a, b = (ends[head - 1], ends[tail - 1]) if ends else (head, tail)
        gap = f"\n[... {tail - head:,} {'tokens' if ends else 'characters'} left out ...]\n"
        think = think if think < a else a + len(gap) + think - b if think >= b else a
        text = text[:a] + gap + text[b:]
        if ends:
            ends = ends[:head] + [a + len(gap)] + [e - b + a + len(gap) for e in ends[tail:]]
            columns = {name: v[:head] + [None] + v[tail:] for name, v in columns.items()}
    if not text.isascii() and max(text) > "\uffff":  # code points -> UTF-16 units
        units = [0, *itertools.accumulate(1 + (c > "\uffff") for c in text)]
        ends, think = [units[e] for e in ends], units[think] if think >= 0 else -1
    digits = {"mismatch": 2, "entropy": 3, "logprobs": 3}
    shown = {"text": text, "think": think}
    if ends:
        shown["pieces"] = [b - a for a, b in itertools.pairwise([0, *ends])]
    return shown | {name: [short(v, digits.get(name, 4)) for v in values] for name, values in columns.items()}


def groups_of(rows):
    """Split the clean rows of one step by prompt, in their order; a prompt drawn twice is two groups."""
    groups, latest = [], {}
    for row in rows:
        key = (row["split"], row["uid"])
        if key not in latest or any(r["sample"] == row["sample"] for r in latest[key]):
            groups.append([])
            latest[key] = groups[-1]
        latest[key].append(row)
    return groups


def group_of(rows):
    """Turn one of groups_of into a group of the viewer."""
    first, source = rows[0], rows[0]["raw"].get("source")
    return {
        "uid": first["uid"], "split": first["split"], "source": text_of(source, 80) if source else "",
        "gold": first["gold"], "prompt": text_of(first["prompt"], 8000), "samples": [completion(row) for row in rows]}


def spread(items):
    """Order items as first, last, middle, middles of the halves, ...: every beginning of it covers the whole."""
    order = list(items[:1]) + list(items[1:][-1:])
    parts = [(0, len(items) - 1)]
    for a, b in parts:  # grows while it is read
        if b - a > 1:
            order.append(items[(a + b) // 2])
            parts += [(a, (a + b) // 2), ((a + b) // 2, b)]
    return order


def pick_groups(run, budget):
    """
    Pick groups for the viewer -> ([{step, groups}], what is left out). The steps take turns until the budget, in bytes,
    is spent.
    """
    per_step = {step: groups_of(rows) for step, rows in run["rollouts"].items()}
    for step, groups in per_step.items():  # training and held-out in turn
        by_split = [[g for g in groups if g[0]["split"] == split] for split in ("train", "held-out")]
        per_step[step] = [g for pair in itertools.zip_longest(*by_split) for g in pair if g]
    picked, total = {step: [] for step in per_step}, sum(map(len, per_step.values()))
    for turn in range(max(map(len, per_step.values()), default=0)):
        for step in spread(sorted(per_step)):
            groups = per_step[step]
            if turn < len(groups) and budget > 0:
                group = group_of(groups[turn])
                budget -= len(json.dumps(group))
                if budget > 0:
                    picked[step].append(group)
    shown = sum(map(len, picked.values()))
    left = [f"{total - shown} of the {total} groups of the steps shown"] * (shown < total)
    left += [f"{run['not_read']} of {len(run['files'])} steps"] * bool(run["not_read"])
    note = f"Left out to keep the page small: {' and '.join(left)}. All stored rollouts are in samples/."
    steps = [{"step": step, "groups": sorted(groups, key=lambda group: group["split"] != "train")}
             for step, groups in sorted(picked.items()) if groups]
    return steps, note if left else ""


def code_folder(run):
    """Find the newest copy of the code, or "": code/ of the first start, code_2/ of the second, ..."""
    found = [f for f in glob.glob(os.path.join(glob.escape(run["folder"]), "code*"))
             if re.fullmatch(r"code(_\d+)?", os.path.basename(f))]
    return max(found, key=lambda f: int("0" + os.path.basename(f)[5:]), default="")
