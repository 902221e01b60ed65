"""
A run's face: one HTML file (curves, tables, rollout viewer) and its curves as PNG. No torch, no GPU, no network; works on
a run that is still going or was killed, and says what is missing.

    python report.py out/demo                         # out/demo/report.html and out/demo/plots/*.png
    python report.py out/demo out/edit                # did the edit help? out/demo/compare.html, .png and compare_plots/
    python report.py GRPO=out/demo,out/demo-seed1 PPO=out/demo-ppo,out/demo-ppo-seed1 --out compare.png
                                                      # seeds of a group as one line (mean) in a band (lowest to highest)

Several runs are compared with the first, on the same held-out problems. The page is report_page.html with the data put in
as JSON; model text is hostile and reaches the page only as JSON, and the document only as text.
"""

import ast
import base64
import difflib
import glob
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import statistics
import sys
import time
import zlib

from analysis import split_thinking, word_columns
from config import ConfigError

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE_BYTES = 3_000_000  # of rollouts in the page, over all runs; the rest of the page is a few hundred kB
READ_CHARS = 8_000_000  # of one file of rollouts
MAX_STEPS = 24  # whose rollouts are shown, per run
MAX_TOKENS, MAX_CHARS = 3000, 12_000  # of one response, else its head and tail
MAX_ROWS = 1000  # steps that a curve is drawn with
MAX_DIFF_LINES = 3000

# file name: what it shows with its unit, then the columns with their labels; the ones that are missing are left out
FIGURES = {
    "success": ("share of right answers", {"eval_correct": "held-out, sampled", "eval_correct_greedy": "held-out, greedy",
                                           "correct": "training"}),
    "reward": ("mean reward", {"reward": "training", "eval_reward": "held-out"}),
    "errors": ("share of responses", {"format_error": "format error", "wrong_answer": "wrong answer", "truncated": "truncated"}),
    "length": ("tokens", {"response_len": "response", "think_len": "thinking", "answer_len": "answer"}),
    "reasoning": ("step words per response", {"reasoning_words": "Step n, 1., First ..."}),
    "reflection": ("words per response", {"reflection_words": 'with "no", "wait"', "reflection_words_survey": "survey's list",
                                          "reflection_words_published": "published list"}),
    "word_share": ("share of responses with at least one", {
        "reasoning_share": "step words", "reflection_share": 'reflection with "no", "wait"',
        "reflection_share_survey": "reflection, survey", "reflection_share_published": "reflection, published"}),
    "entropy": ("nats", {"entropy": "entropy"}),
    "kl": ("nats per token", {"kl": "to the start model, k3", "kl_k1": "to the start model, k1", "approx_kl": "within the step"}),
    "clip": ("share of tokens", {"clip_frac": "gradient stopped by the clip"}),
    "mismatch": ("|rollout - trainer| log-prob", {"mismatch_mean": "mean", "mismatch_max": "max"}),
    "grad_norm": ("before clipping", {"grad_norm": "policy", "critic_grad_norm": "critic"}),
    "critic": ("1 knows the return", {"explained_variance": "explained variance"}),
    "groups": ("share of groups", {"zero_variance_groups": "all rewards equal"}),
    "seconds": ("seconds a step", {"seconds_rollout": "rollout", "seconds_train": "train", "seconds_logprobs": "log-probs",
                                   "seconds_reward": "reward", "seconds_sync": "sync", "seconds_eval": "evaluation"}),
    "speed": ("tokens a second, all processes", {"tokens_per_second": "prompt and response"}),
}
PARTS = {  # of the page, in its order
    "Learning": ("success", "reward", "parts", "sources", "errors", "groups"),
    "What is written": ("length", "reasoning", "reflection", "word_share", "suspicious"),
    "Updates": ("entropy", "kl", "clip", "mismatch", "grad_norm", "critic"), "Time": ("seconds", "speed")}
TITLES = {"success": "Correctness", "parts": "Parts of the reward", "sources": "Reward by source", "groups": "Groups without variance",
          "reasoning": "Step words", "reflection": "Reflection words", "word_share": "Responses with such words", "kl": "KL",
          "suspicious": "Suspicious responses", "clip": "Clip share", "grad_norm": "Gradient norm", "seconds": "Time per phase"}
SHARES = ("success", "errors", "word_share", "groups", "suspicious")  # drawn from 0 to 1
LOG = ("mismatch",)
OVERVIEW = ("success", "reward", "errors", "length", "reflection", "entropy")
COMPARED = ("eval_correct", "reward", "format_error", "response_len", "entropy", "grad_norm")
COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")


# ----------------------------------------------------------------------------------------------------------------
# reading a run: whatever is damaged or missing becomes a note
# ----------------------------------------------------------------------------------------------------------------
def number(value):
    """-> a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond 1e308
        return None


def short(value, digits=5):
    """A number with so many digits, to keep the page small; None stays None."""
    value = number(value)
    return value if value is None else int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.{digits}g}")


def read_lines(path, limit=None):
    """
    JSONL, plain or gzip -> (rows that are objects, "" or what is wrong); a killed run leaves half a line or half a file.
    After `limit` characters only held-out rollouts are read: they are few, small and stand last.
    """
    rows, chars, broken, passed = [], 0, 0, 0
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", errors="replace", newline="\n") as f:
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
    problems = [f"{broken} broken line{'s' * (broken > 1)} left out"] * bool(broken) + [f"too large, {passed} lines not read"] * bool(passed)
    return rows, ", ".join(problems)


def read_json(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            found = json.load(f)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_run(folder):
    """-> dict of what the directory holds. Raises ConfigError where it is no run at all."""
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not there: give the directory of a run, like out/demo")
    run = {"folder": folder, "name": os.path.basename(os.path.abspath(folder)), "notes": [], "config": {}, "rows": []}
    config, metrics = os.path.join(folder, "config.json"), os.path.join(folder, "metrics.jsonl")
    files = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "samples", "step_*.jsonl*"))):
        if found := re.fullmatch(r"step_(\d{1,9})\.jsonl(\.gz)?", os.path.basename(path)):
            files.setdefault(int(found[1]), []).append(path)
    if not (os.path.exists(config) or os.path.exists(metrics) or files):
        raise ConfigError(f"{folder} is not a run: it has neither config.json nor metrics.jsonl nor samples/")
    run["files"] = files
    run["config"] = read_json(config)
    if not run["config"]:
        run["notes"].append("config.json is missing or damaged: recipe, settings, machine and commit are not known")
    rows, problem = read_lines(metrics) if os.path.exists(metrics) else ([], "is missing")
    rows = {row["step"]: row for row in rows if type(row.get("step")) is int and abs(row["step"]) < 10**9}
    run["rows"] = [rows[step] for step in sorted(rows)]
    if not rows:
        problem = f"holds no complete step yet{f' ({problem})' * bool(problem)}" if problem != "is missing" else problem
    if problem:
        run["notes"].append(f"metrics.jsonl {problem}")
    if not files:
        run["notes"].append("samples/ holds no rollouts: nothing to show in the viewer, no examples, no histograms")
    return run


def setting(run, name, default=None):
    settings = run["config"].get("settings")
    return settings.get(name, default) if isinstance(settings, dict) else default


def text_of(value, limit=4000):
    """Any JSON value as text of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]} [... {len(text) - limit:,} characters left out ...]"


def evaluated_steps(run):
    return [row["step"] for row in run["rows"] if number(row.get("eval_correct")) is not None]


def evenly(items, count):
    """At most so many items, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def read_rollouts(run, count=MAX_STEPS):
    """Adds run["rollouts"] {step: [clean rows]} of some steps, evenly spaced, the ones shown as examples among them."""
    steps = sorted(run["files"])
    evaluated = [step for step in evaluated_steps(run) if step in run["files"]] or steps
    chosen = sorted({*evenly(evaluated, 4), *evenly(steps, count)})
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
    """
    One stored line -> what the page shows of it, offsets in UTF-16 units as in JavaScript; None without uid, prompt, response.

    A column per token that is missing, of another length or not numbers is left out; `mismatch` is rollout - trainer log-prob.
    """
    text, prompt, uid = row.get("response"), row.get("prompt"), row.get("uid")
    if not isinstance(text, str) or not isinstance(prompt, str) or not isinstance(uid, (str, int)):
        return None
    ends = row.get("ends")
    if not isinstance(ends, list) or not all(type(e) is int for e in ends) or ends != sorted(ends) or (
            ends and not 0 <= ends[0] <= ends[-1] <= len(text)):
        ends = []
    columns = {}
    for name in ("logprobs", "old_logprobs", "rollout_logprobs", "ratio", "entropy", "clipped", "advantages", "values", "old_values"):
        values = row.get(name)
        if ends and isinstance(values, list) and len(values) == len(ends):
            columns[name] = [number(int(v) if isinstance(v, bool) else v) for v in values]
    rolled, before = columns.pop("rollout_logprobs", None), columns.pop("old_logprobs", columns.get("logprobs"))
    if rolled and before:  # the trainer's before the step's first update, as the engine's
        columns["mismatch"] = [None if r is None or p is None else r - p for r, p in zip(rolled, before, strict=True)]
    if "old_values" in columns:
        columns["values"] = columns.pop("old_values")
    gaps = [abs(v) for v in columns.get("mismatch", ()) if v is not None]
    thinking, answer = split_thinking(text)
    tokens = number(row.get("tokens"))
    clean = {
        "step": step, "uid": str(uid), "split": row.get("split") if row.get("split") in ("train", "held-out") else
        "held-out" if old else "train", "source": text_of(row["source"], 80) if row.get("source") else "", "prompt": prompt,
        "gold": text_of(row["gold"], 1000) if row.get("gold") not in (None, "") else "",
        "sample": text_of(row.get("sample", ""), 20), "reward": short(row.get("reward")), "correct": bool(row.get("correct")),
        "format_ok": row.get("format_ok") is not False, "finish": text_of(row.get("finish_reason") or "", 20),
        "truncated": bool(row.get("truncated")) or row.get("finish_reason") in ("length", "deadline"),
        "tokens": int(tokens) if tokens is not None else len(ends) or None, "advantage": short(row.get("advantage")),
        "parts": {text_of(k, 40): short(v) for k, v in row["parts"].items()} if isinstance(row.get("parts"), dict) else {},
        "flags": [text_of(f, 40) for f in row["flags"]][:20] if isinstance(row.get("flags"), list) else [],
        "mean_mismatch": short(sum(gaps) / len(gaps), 3) if gaps else None, "thinking": thinking,
        "think_tokens": sum(e <= len(thinking) for e in ends) if ends else None}
    return clean | {"shown": shorten(text, ends, columns, len(thinking) if answer else -1)}


def shorten(text, ends, columns, think):
    """-> {text, think: where the thinking ends or -1, pieces: UTF-16 length of each token, a column a key}."""
    size = len(ends) if ends else len(text)
    limit = MAX_TOKENS if ends else MAX_CHARS
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
    """The rollouts of one step -> groups of the same prompt, in their order; a prompt drawn twice is two groups."""
    groups, open_ = [], {}
    for row in rows:
        key = (row["split"], row["uid"])
        if key not in open_ or any(s["sample"] == row["sample"] for s in open_[key]["samples"]):
            open_[key] = {"uid": row["uid"], "split": row["split"], "source": row["source"], "gold": row["gold"],
                          "prompt": text_of(row["prompt"], 8000), "samples": []}
            groups.append(open_[key])
        hide = ("step", "uid", "split", "source", "gold", "prompt", "thinking", "shown")
        open_[key]["samples"].append({k: v for k, v in row.items() if k not in hide} | row["shown"])
    return groups


def pick_groups(run, budget):
    """Groups for the viewer, the steps taking turns until the budget (bytes) is spent -> ([{step, groups}], what is left out)."""
    per_step = {step: groups_of(rows) for step, rows in run["rollouts"].items()}
    for step, groups in per_step.items():  # training and held-out in turn
        by_split = [[g for g in groups if g["split"] == split] for split in ("train", "held-out")]
        per_step[step] = [g for pair in itertools.zip_longest(*by_split) for g in pair if g]
    picked, total = {step: [] for step in per_step}, sum(map(len, per_step.values()))
    for turn in range(max(map(len, per_step.values()), default=0)):
        for step, groups in per_step.items():
            if turn < len(groups) and budget > 0:
                budget -= len(json.dumps(groups[turn]))
                if budget > 0:
                    picked[step].append(groups[turn])
    shown = sum(map(len, picked.values()))
    left = [f"{total - shown} of the {total} groups of the steps shown"] * (shown < total)
    left += [f"{run['not_read']} of {len(run['files'])} steps"] * bool(run["not_read"])
    left = f"Left out to keep the page small: {' and '.join(left)}. All stored rollouts are in samples/." if left else ""
    order = {"train": 0, "held-out": 1}
    return [{"step": step, "groups": sorted(groups, key=lambda g: order[g["split"]])}
            for step, groups in sorted(picked.items()) if groups], left


# ----------------------------------------------------------------------------------------------------------------
# what is computed from it
# ----------------------------------------------------------------------------------------------------------------
def code_folder(run):
    """The newest copy of the code, or "": code/ of the first start, code_2/ of the second, ..."""
    found = [f for f in glob.glob(os.path.join(glob.escape(run["folder"]), "code*")) if re.fullmatch(r"code(_\d+)?", os.path.basename(f))]
    return max(found, key=lambda f: int("0" + os.path.basename(f)[5:]), default="")


def settings_of(run):
    """-> [{name, value, origin, default, meaning, differs}]; default and meaning from the Config in the run's copy of the code."""
    written = {}
    script = os.path.basename(str(run["config"].get("script", "")))
    try:
        with open(os.path.join(code_folder(run), script), encoding="utf-8") as f:
            source = f.read()
        config = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Config")
        for node in config.body:
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                default = json.loads(json.dumps(ast.literal_eval(node.value)))
                written[node.target.id] = default, source.splitlines()[node.end_lineno - 1].partition("  # ")[2].strip()
    except (OSError, SyntaxError, ValueError, TypeError, StopIteration):
        pass  # without the code, the origin alone says what was set
    settings, origin = run["config"].get("settings"), run["config"].get("origin")
    origin, rows = origin if isinstance(origin, dict) else {}, []
    for name, value in settings.items() if isinstance(settings, dict) else ():
        default, meaning = written.get(name, (None, ""))
        differs = value != default if name in written else name in origin
        rows.append({"name": name, "value": text_of(value, 400), "origin": text_of(origin.get(name, "default"), 200),
                     "default": text_of(default, 400) if name in written else "", "meaning": meaning, "differs": differs})
    return sorted(rows, key=lambda row: (not row["differs"], row["origin"] == "default"))


def column_sum(run, name):
    return sum(number(row.get(name)) or 0.0 for row in run["rows"])


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def first_last(run, column, text):
    values = [v for row in run["rows"] if (v := number(row.get(column))) is not None]
    if not values:
        return ""
    return text(values[0]) if len(values) == 1 else f"{text(values[0])} \u2192 {text(values[-1])}"


def header_of(run):
    """What the page says first: what it was, what came out, what it cost."""
    config, rows = run["config"], run["rows"]
    command = [str(w) for w in config["command"]] if isinstance(config.get("command"), list) else []
    recipe = next((w for w in command[2:3] if w.endswith(".py")), "")
    processes = int(number(config.get("world_size")) or 1)
    wall = column_sum(run, "seconds_step")
    unit = "process-hours" if str(config.get("machine", "")).startswith("CPU") or not config else "GPU-hours"
    last, asked = (rows[-1]["step"] if rows else None), setting(run, "num_steps")
    percent, plain, many = (lambda v: f"{v:.1%}"), (lambda v: f"{v:.3g}"), (lambda v: f"{v:,.0f}")
    greedy = first_last(run, "eval_correct_greedy", percent)
    facts = [("held-out success", first_last(run, "eval_correct", percent), f"greedy {greedy}" if greedy else "sampled"),
             ("training reward", first_last({"rows": [r for r in rows if r["step"] > 0]}, "reward", plain), "mean of a step"),
             ("response length", first_last(run, "response_len", many), "tokens"),
             ("steps", f"{last:,}" if last is not None else "", f"of {asked:,}" if type(asked) is int else ""),
             ("wall time", duration(wall) if wall else "", f"{wall * processes / 3600:.3g} {unit}"),
             ("tokens trained on", many(column_sum(run, "trained_tokens")) if rows else "", first_last(
                 {"rows": rows[-1:]}, "tokens_per_second", lambda v: f"{v:,.0f} a second at the end"))]
    versions = config.get("versions") if isinstance(config.get("versions"), dict) else {}
    about = {"script": config.get("script"), "recipe": recipe, "model": setting(run, "model"), "data": setting(run, "data"),
             "reward": setting(run, "reward"), "machine": config.get("machine"), "processes": processes if config else None,
             "commit": config.get("commit"), "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
             "command": shlex.join(command[1:]) if command else None}
    summary = " ".join(str(w) for w in (config.get("script"), recipe) if w), text_of(config.get("machine") or "", 200)
    summary += f"{processes} process{'es' * (processes > 1)}" * bool(config), f"commit {str(config.get('commit'))[:10]}" * bool(config)
    return {"name": run["name"], "notes": run["notes"], "summary": " \u00b7 ".join(filter(None, summary)),
            "going": type(asked) is int and last is not None and last < asked,
            "facts": [{"label": a, "value": b, "note": c} for a, b, c in facts if b],
            "about": [[k, text_of(v, 2000)] for k, v in about.items() if v]}


def figures_of(runs):
    """FIGURES, with the columns that only some runs have: each source of a mixture, parts of the reward, suspicious flags."""
    names = dict.fromkeys(key for run in runs for row in run["rows"] for key, value in row.items() if value)
    more = {"sources": ("mean reward of each source", {n: n[7:-7] for n in names if re.fullmatch(r"source/.+/reward", n)}),
            "parts": ("parts of the reward, mean", {n: n[5:] for n in names if n.startswith("part/")}),
            "suspicious": ("share of responses", {n: n[5:].replace("_", " ") for n in names if n.startswith("flag/")})}
    return FIGURES | {name: figure for name, figure in more.items() if figure[1]}


def series(runs, column):
    """A column over the runs of a group -> (steps that all have, mean, lowest, highest)."""
    by_step = {}
    for run in runs:
        for row in run["rows"]:
            if (value := number(row.get(column))) is not None:
                by_step.setdefault(row["step"], []).append(value)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
    values = [by_step[step] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def curves(groups):
    """-> figures of the page: of one run the columns of a figure together, of several runs a figure for each column."""
    made, figures = [], figures_of([run for runs in groups.values() for run in runs])
    for part, name in ((part, name) for part, names in PARTS.items() for name in names if name in figures):
        (unit, columns), title = figures[name], TITLES.get(name, name.capitalize())
        plan = [(title, [(label, next(iter(groups)), column) for column, label in columns.items()])] if len(groups) == 1 else [
            (title if len(columns) == 1 else f"{title}: {label}", [(group, group, column) for group in groups])
            for column, label in columns.items()]
        for title, lines in plan:
            drawn = []
            for index, (label, group, column) in enumerate(lines):
                steps, mean, low, high = series(groups[group], column)
                if steps:
                    points = evenly(range(len(steps)), MAX_ROWS)
                    band = len(groups[group]) > 1
                    drawn.append({"label": label, "color": index % len(COLORS), "points": column.startswith("eval"),
                                  "x": [steps[i] for i in points], "y": [short(mean[i]) for i in points],
                                  "low": [short(low[i]) for i in points] if band else None,
                                  "high": [short(high[i]) for i in points] if band else None})
            if drawn and (len(groups) == 1 or any(any(line["y"]) for line in drawn)):
                made.append({"part": part, "title": title, "unit": unit, "share": name in SHARES, "log": name in LOG, "series": drawn})
    return made


def analyses(run):
    """
    The survey's table: a row per chosen step. From metrics.jsonl (all responses of the step), and where an older run lacks a
    column of words, from the rollouts kept of that step. -> {rows, note}
    """
    steps = [row["step"] for row in run["rows"]] or sorted(run["rollouts"])
    by_step = {row["step"]: row for row in run["rows"]}
    some = sorted({*evenly([s for s in steps if s in run["rollouts"]], 8), *evenly(steps, 2)} & set(steps))
    rows, filled = [], False
    for step in some:
        row, kept = dict(by_step.get(step, {})), run["rollouts"].get(step, [])
        if number(row.get("reasoning_words")) is None and kept:
            split = "train" if step and any(r["split"] == "train" for r in kept) else "held-out"
            kept = [r for r in kept if r["split"] == split] or kept
            row |= {k: v for k, v in word_columns([r["thinking"] for r in kept]).items() if number(row.get(k)) is None}
            filled = True
        think_len = number(row.get("think_len"))
        for column in ("reasoning_words", "reflection_words", "reflection_words_survey", "reflection_words_published"):
            count = number(row.get(column))
            row[f"{column}_per_1000"] = 1000 * count / think_len if count is not None and think_len else None
        wanted = ["correct", "wrong_answer", "format_error", "truncated", "response_len", "think_len", "answer_len"]
        wanted += [f"{kind}_{what}{tail}" for kind, tail in (("reasoning", ""), ("reflection", ""), ("reflection", "_survey"),
                                                             ("reflection", "_published")) for what in ("words", "share")]
        wanted += [c for c in row if c.endswith("_per_1000")]
        rows.append({"step": step, **{column: short(row.get(column), 4) for column in wanted}})
    return {"rows": rows, "note": "Words of some steps are counted on the rollouts kept in samples/: metrics.jsonl lacks them." * filled}


def histograms(run, bins=24):
    """Response lengths at up to four steps -> {edges, what, steps: [{step, right: [..], wrong: [..]}]} or None."""
    lengths = {}
    for split in ("train", "held-out"):
        found = {step: [(r["tokens"], r["correct"]) for r in rows if r["split"] == split and r["tokens"] is not None]
                 for step, rows in run["rollouts"].items()}
        found = {step: values for step, values in found.items() if values}
        if len(found) > len(lengths) and not (split == "held-out" and len(lengths) >= 2):
            lengths, what = found, "training" if split == "train" else "held-out"
    if not lengths:
        return None
    steps = evenly(sorted(lengths), 4)
    top = max(n for step in steps for n, _ in lengths[step]) + 1
    width = max(1, math.ceil(top / bins))
    result = []
    for step in steps:
        right, wrong = [0] * math.ceil(top / width), [0] * math.ceil(top / width)
        for n, correct in lengths[step]:
            (right if correct else wrong)[max(0, n) // width] += 1
        mean = {k: [n for n, c in lengths[step] if c == (k == "right")] for k in ("right", "wrong")}
        result.append({"step": step, "right": right, "wrong": wrong, "count": len(lengths[step]),
                       "means": {k: short(statistics.fmean(v), 4) if v else None for k, v in mean.items()}})
    return {"width": width, "what": what, "steps": result}


def examples(run):
    """The same held-out prompt at up to four evaluations; those that went from wrong to right come first."""
    held_out = {step: {} for step in run["rollouts"]}
    for step, rows in run["rollouts"].items():
        for r in rows:
            if r["split"] == "held-out":
                held_out[step].setdefault(r["uid"], {}).setdefault(r["sample"], r)
    steps = evenly(sorted(step for step, found in held_out.items() if found), 4)
    if len(steps) < 2:
        return []
    made = []
    for uid in held_out[steps[0]]:
        common = set.intersection(*[set(held_out[step].get(uid, ())) for step in steps])
        for sample in sorted(common)[:1]:
            found = [held_out[step][uid][sample] for step in steps]
            made.append({"uid": uid, "prompt": text_of(found[0]["prompt"], 4000), "gold": found[0]["gold"],
                         "learned": found[-1]["correct"] - found[0]["correct"], "sample": sample, "steps": [
                             {"step": r["step"], "reward": r["reward"], "correct": r["correct"], "tokens": r["tokens"],
                              "text": text_of(r["shown"]["text"], 6000), "think": r["shown"]["think"]} for r in found]})
    return sorted(made, key=lambda e: -e["learned"])[:12]


def eval_table(run):
    """eval/table.json -> its rows, cleaned; [] without it."""
    path = os.path.join(run["folder"], "eval", "table.json")
    rows = read_json(path).get("rows")
    if os.path.exists(path) and not isinstance(rows, list):
        run["notes"].append("eval/table.json is damaged: run eval.py --sweep again")
    good = [r for r in rows if isinstance(r, dict) and type(r.get("step")) is int and isinstance(r.get("benchmark"), str)
            ] if isinstance(rows, list) else []
    return [{"step": r["step"], "benchmark": text_of(r["benchmark"], 40)} | {
        k: short(r.get(k)) for k in ("avg_at_k", "pass_at_k", "k", "low", "high", "truncated", "mean_len", "problems")} for r in good]


# ----------------------------------------------------------------------------------------------------------------
# several runs: did it help?
# ----------------------------------------------------------------------------------------------------------------
def held_out_results(run):
    """samples/held_out.jsonl -> {step: {uid: share right of the sampled responses, or greedy without any}}."""
    found = {}
    path = os.path.join(run["folder"], "samples", "held_out.jsonl")
    for row in read_lines(path)[0] if os.path.exists(path) else ():
        if type(row.get("step")) is int and isinstance(row.get("correct"), dict):
            values = {uid: [number(v) for v in (pair if isinstance(pair, list) else [pair])] for uid, pair in row["correct"].items()}
            values = {uid: next((v for v in pair if v is not None), None) for uid, pair in values.items()}
            found[row["step"]] = {uid: v for uid, v in values.items() if v is not None}
    return found


def kept_results(run):
    """The same from the few held-out rollouts kept in samples/."""
    found = {}
    for step, rows in run["rollouts"].items():
        for r in rows:
            if r["split"] == "held-out" and r["sample"] != "greedy":
                found.setdefault(step, {}).setdefault(r["uid"], []).append(r["correct"])
    return {step: {uid: sum(v) / len(v) for uid, v in by_uid.items()} for step, by_uid in found.items()}


def benchmark_results(run):
    """eval/step_NNNNNN/<benchmark>.jsonl -> {benchmark: {step: path}}; read when it is known which step is compared."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(run["folder"]), "eval", "step_*", "*.jsonl")):
        if step := re.fullmatch(r"step_(\d{1,9})", os.path.basename(os.path.dirname(path))):
            found.setdefault(os.path.basename(path)[:-6], {})[int(step[1])] = path
    return found


def benchmark_shares(path):
    """-> {uid: share of its samples that are right}"""
    by_uid = {}
    for row in read_lines(path)[0]:
        if isinstance(row.get("uid"), (str, int)) and "correct" in row:
            by_uid.setdefault(str(row["uid"]), []).append(bool(row["correct"]))
    return {uid: sum(v) / len(v) for uid, v in by_uid.items()}


def paired_bootstrap(before, after, draws=10_000, seed=0):
    """
    {uid: share right} of two policies on the same problems -> (problems, difference, low, high) in points: the mean difference
    and the 2.5th and 97.5th percentile of it over problems drawn with replacement. None without two common problems.
    """
    import numpy as np

    common = sorted(before.keys() & after.keys())
    if len(common) < 2:
        return None
    difference = 100 * np.array([after[uid] - before[uid] for uid in common])  # (problems,)
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // len(common))
    means = np.concatenate([difference[rng.integers(0, len(common), (min(chunk, draws - done), len(common)))].mean(1)
                            for done in range(0, draws, chunk)])
    low, high = np.percentile(means, [2.5, 97.5])
    return len(common), float(difference.mean()), float(low), float(high)


def verdict(result):
    """One line: '+3.1 points, 95 % [0.4, 5.9]', or 'no difference can be told' with the same numbers."""
    problems, difference, low, high = result
    numbers = f"{difference:+.1f} points, 95 % [{low:.1f}, {high:.1f}]"
    if problems < 10:
        return f"no difference can be told from {problems} problems: {numbers}"
    return numbers if low > 0 or high < 0 else f"no difference can be told: {numbers}"


def other_problems(a, b):
    """Whether a uid names another problem in the other run: another gold answer, or, without one, another prompt."""
    seen = [{r["uid"]: r for rows in run["rollouts"].values() for r in rows if r["split"] == "held-out"} for run in (a, b)]
    same_template = setting(a, "template") == setting(b, "template")
    for uid in seen[0].keys() & seen[1].keys():
        x, y = seen[0][uid], seen[1][uid]
        if x["gold"] != y["gold"] if x["gold"] and y["gold"] else same_template and x["prompt"] != y["prompt"]:
            return True
    return False


def mean_shares(runs_shares):
    """Over the seeds of a group: {uid: mean share}, of the problems that all of them have."""
    common = set.intersection(*map(set, runs_shares))
    return {uid: sum(shares[uid] for shares in runs_shares) / len(runs_shares) for uid in common}


def compare_pair(a, b, runs_a, runs_b):
    """Every other group against the first -> [{what, line, note}], held-out problems of training first, then benchmarks."""
    everyone, made = runs_a + runs_b, []
    if any(other_problems(x, y) for x, y in itertools.combinations(everyone, 2)):
        return [{"what": f"{b} against {a}", "line": "not comparable problem by problem: the same names stand for other problems",
                 "note": "The runs drew other held-out problems (another seed or other data)."}]
    for source, how in ((held_out_results, ""), (kept_results, "Only over the held-out rollouts kept in samples/, which are few.")):
        results = [source(run) for run in everyone]
        steps = set.intersection(*map(set, results))
        chosen = [max(steps)] * len(results) if steps else [max(r, default=None) for r in results]
        if None in chosen:
            continue
        shares = [r[step] for r, step in zip(results, chosen, strict=True)]
        groups = mean_shares(shares[:len(runs_a)]), mean_shares(shares[len(runs_a):])
        if result := paired_bootstrap(*groups):
            when = f"step {chosen[0]}" if steps else "the last evaluation of each, at other steps"
            only = len(groups[0].keys() ^ groups[1].keys())
            made.append({"what": f"{b} against {a}, held-out success, {when}, {result[0]} problems", "line": verdict(result),
                         "note": " ".join([how] * bool(how) + [f"{only} problems of only one side are left out."] * bool(only))})
            break
    else:
        made.append({"what": f"{b} against {a}", "line": "no difference can be told: no common held-out problems are stored",
                     "note": "samples/held_out.jsonl is missing or the runs evaluated other problems."})
    benchmarks = [benchmark_results(run) for run in everyone]
    for name in sorted(set.intersection(*map(set, benchmarks))):
        steps = set.intersection(*[set(found[name]) for found in benchmarks])
        paths = [found[name][max(steps or found[name])] for found in benchmarks]
        shares = [benchmark_shares(path) for path in paths]
        if result := paired_bootstrap(mean_shares(shares[:len(runs_a)]), mean_shares(shares[len(runs_a):])):
            when = f"step {max(steps)}" if steps else "the last evaluation of each"
            made.append({"what": f"{b} against {a}, {name}, {when}, {result[0]} problems", "line": verdict(result), "note": ""})
    return made


def code_diff(a, b):
    """Unified diff of the code kept with two runs -> ([{file, lines}], note); bounded."""
    folders = code_folder(a), code_folder(b)
    if not all(folders):
        return [], "code/ is missing: the code cannot be compared"
    texts = []
    for folder in folders:
        files = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True)):
            if os.path.isfile(path) and os.path.getsize(path) < 400_000:
                with open(path, encoding="utf-8", errors="replace") as f:
                    files[os.path.relpath(path, folder)] = f.read().splitlines()
        texts.append(files)
    made, left = [], MAX_DIFF_LINES
    for name in sorted(texts[0].keys() | texts[1].keys()):
        old, new = texts[0].get(name, []), texts[1].get(name, [])
        if old != new and left > 0:
            lines = list(difflib.unified_diff(old, new, a["name"], b["name"], lineterm="", n=2))[2:]
            made.append({"file": name, "lines": [line[:400] for line in lines[:left]]})
            left -= len(lines)
    return made, f"The diff is cut at {MAX_DIFF_LINES:,} lines." if left < 0 else ""


def compare(groups):
    """-> what only the page of several groups has: verdicts, settings that differ, code diff."""
    (first, base), *others = groups.items()
    verdicts = [v for name, runs in others for v in compare_pair(first, name, base, runs)]
    everyone = [run for runs in groups.values() for run in runs]
    settings = [run["config"].get("settings") for run in everyone]
    settings = [s if isinstance(s, dict) else {} for s in settings]
    names = [n for n in dict.fromkeys(itertools.chain(*settings)) if n != "name" and len({json.dumps(s.get(n)) for s in settings}) > 1]
    diffs = []
    for name, runs in others:
        files, note = code_diff(base[0], runs[0])
        diffs.append({"what": f"{base[0]['name']} \u2192 {runs[0]['name']}", "group": name, "files": files, "note": note})
    return {"verdicts": verdicts, "runs": [run["name"] for run in everyone], "diffs": diffs,
            "settings": [{"name": n, "values": [text_of(s[n], 400) if n in s else "" for s in settings]} for n in names]}


# ----------------------------------------------------------------------------------------------------------------
# the page and the pictures
# ----------------------------------------------------------------------------------------------------------------
def page_data(groups):
    """All that the page shows, as plain JSON values."""
    everyone = [run for runs in groups.values() for run in runs]
    viewer = []
    for run in everyone:
        steps, left = pick_groups(run, PAGE_BYTES // len(everyone))
        viewer.append({"run": run["name"], "steps": steps, "left_out": left})
    title = " against ".join(reversed(groups)) if len(groups) == 2 else ", ".join(groups)
    data = {"title": title, "made": time.strftime("%Y-%m-%d %H:%M"), "viewer": viewer, "curves": curves(groups)}
    data["tables"] = [{"run": run["name"], "eval": eval_table(run), "analyses": analyses(run), "examples": examples(run),
                       "histograms": histograms(run)} for run in everyone]
    if len(everyone) > 1:
        data["compare"] = compare(groups)
    data["runs"] = [header_of(run) | {"settings": settings_of(run), "changes": local_changes(run)} for run in everyone]
    return data


def local_changes(run):
    """The diff against the commit that the run started from, as lines; [] for none."""
    try:
        with open(os.path.join(code_folder(run), "git.txt"), encoding="utf-8", errors="replace") as f:
            return [line[:400] for line in f.read(400_000).splitlines()[1:MAX_DIFF_LINES]]
    except OSError:
        return []


def write_page(data, path):
    """report_page.html with the data in it. What the policy allows is this script and this style, by their hash."""
    with open(os.path.join(HERE, "report_page.html"), encoding="utf-8") as f:
        page = f.read()
    allowed = {}
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        allowed[tag] = "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    policy = f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; base-uri 'none'; form-action 'none'"
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: no raw U+2028, no lone surrogate
    for c in "<>&":
        text = text.replace(c, f"\\u{ord(c):04x}")
    before, after = page.replace("POLICY_GOES_HERE", policy).split("DATA_GOES_HERE")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            f.write(before + text + after)
        os.replace(path + ".tmp", path)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}): give --out with a place that can be written") from error


def draw(axis, name, unit, lines):
    """One figure onto an axis; lines: [(label, color, (steps, mean, low, high), whether its points are marked)]."""
    for label, color, (steps, mean, low, high), marked in lines:
        style = dict(marker="o", markersize=4) if marked else dict(alpha=0.85)
        axis.plot(steps, mean, color=color, linewidth=1.6, label=label, **style)
        if low != high:
            axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.set_title(name.replace("_", " "), fontsize=10, loc="left", fontweight="bold")
    axis.set_ylabel(unit, fontsize=8)
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    lowest = min((min(line[2][2]) for line in lines), default=0)
    if name.split(":")[0] in SHARES:
        axis.set_ylim(0, 1)
    elif name.split(":")[0] in LOG and lowest > 0:
        axis.set_yscale("log")
    elif lowest >= 0:
        axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if lines:
        axis.legend(fontsize=7, frameon=False)


def pictures(groups, folder, overview):
    """The curves as PNG files named for what they show, and the most important ones in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = figures_of([run for runs in groups.values() for run in runs])
    lines = {}
    for name, (unit, columns) in figures.items():
        if len(groups) == 1:
            runs = next(iter(groups.values()))
            found = [(label, COLORS[i % len(COLORS)], series(runs, column), column.startswith("eval"))
                     for i, (column, label) in enumerate(columns.items())]
            lines[name] = unit, name, [line for line in found if line[2][0]]
            continue
        for column, label in columns.items():
            found = [(group + (f", {len(runs)} seeds" if len(runs) > 1 else ""), COLORS[i % len(COLORS)], series(runs, column),
                      column.startswith("eval")) for i, (group, runs) in enumerate(groups.items())]
            lines[column] = unit, f"{name}: {label}", [line for line in found if line[2][0]]
    os.makedirs(folder, exist_ok=True)
    lines = {name: line for name, line in lines.items() if line[2]}
    for name, (unit, title, found) in lines.items():
        figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
        draw(axis, title, unit, found)
        figure.savefig(os.path.join(folder, re.sub(r"[^\w.-]", "_", name) + ".png"), dpi=140)
        plt.close(figure)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for name, axis in zip(OVERVIEW if len(groups) == 1 else COMPARED, axes.flat, strict=True):
        unit, title, found = lines.get(name, ("", name, []))
        draw(axis, title, unit, found)
    figure.savefig(overview, dpi=140)
    plt.close(figure)
    return len(lines)


def printable(text):
    """Model text on a console: ASCII, with every control character visible."""
    return ascii(text)[1:-1]


def print_summary(run):
    """Where the run lies, its held-out success before and after, and one problem before and after."""
    scored = [row for row in run["rows"] if number(row.get("eval_correct")) is not None]
    print(f"\nthe run lies in {run['folder']}: metrics.jsonl, log.txt, config.json, code/, plots/, samples/, model/")
    if scored:
        first, last = scored[0], scored[-1]
        greedy = [number(row.get("eval_correct_greedy")) for row in (first, last)]
        print(f"held-out success, sampled: {first['eval_correct']:.1%} at step {first['step']} -> {last['eval_correct']:.1%} at "
              f"step {last['step']}" + (f" (greedy {greedy[0]:.1%} -> {greedy[1]:.1%})" if None not in greedy else ""))
    for example in examples(run)[:1]:
        if example["learned"] == 1:
            for r in (example["steps"][0], example["steps"][-1]):
                print(f"\nstep {r['step']}: {printable(example['prompt'][:600])}\n   {printable(r['text'][:600])}\n   reward "
                      f"{r['reward'] if r['reward'] is not None else '?'}")


def parse(arguments):
    """-> ({label: [folder, ...]}, --out or "")"""
    out, groups, rest = "", {}, iter(arguments)
    for argument in rest:
        if argument == "--out":
            out = next(rest, "")
            if not out:
                raise ConfigError("--out wants a file: compare.png or compare.html")
        elif argument.startswith("-"):
            raise ConfigError(f"{argument} is not known: report.py takes directories of runs, LABEL=run,run and --out FILE")
        else:
            label, named, folders = argument.partition("=")
            if not named or os.path.isdir(argument):
                label, folders = os.path.basename(os.path.abspath(argument)), argument
                label = argument if label in groups else label
            groups.setdefault(label, []).extend(f for f in folders.split(",") if f) if named and not os.path.isdir(
                argument) else groups.update({label: [argument]})
    if not any(groups.values()):
        raise ConfigError("no run given: python report.py out/demo")
    return groups, out


def main():
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    named, out = parse(sys.argv[1:])
    groups = {label: [read_run(folder) for folder in folders] for label, folders in named.items() if folders}
    everyone = [run for runs in groups.values() for run in runs]
    for run in everyone:
        read_rollouts(run, MAX_STEPS if len(everyone) == 1 else max(4, MAX_STEPS // len(everyone)))
    if len(everyone) == 1:
        page = out or os.path.join(everyone[0]["folder"], "report.html")
    else:
        page = out or ("compare.html" if any("=" in a for a in sys.argv[1:]) else os.path.join(everyone[0]["folder"], "compare.html"))
    base = os.path.splitext(page)[0]
    data = page_data(groups)
    write_page(data, f"{base}.html")
    print(f"page: {base}.html ({os.path.getsize(f'{base}.html') / 1e6:.1f} MB)")
    folder = os.path.join(os.path.dirname(page), "plots") if len(everyone) == 1 else f"{base}_plots"
    if any(run["rows"] for run in everyone):
        overview = os.path.join(folder, "overview.png") if len(everyone) == 1 else f"{base}.png"
        print(f"curves: {overview} and {pictures(groups, folder, overview)} more in {folder}/")
    for run in everyone:
        for note in run["notes"]:
            print(f"{run['folder']}: {printable(note)}")
    for v in data.get("compare", {}).get("verdicts", ()):
        print(f"{printable(v['what'])}: {v['line']}" + f"  ({v['note']})" * bool(v["note"]))
    if len(everyone) == 1:
        print_summary(everyone[0])


if __name__ == "__main__":
    main()
