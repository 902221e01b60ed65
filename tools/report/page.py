"""
Report on a run in one HTML file (curves, tables, rollout viewer), with the curves as PNG too. Needs no torch, GPU or
network. Works on a run that is still going or was killed, and says what is missing.

    python -m tools.report out/demo              # out/demo/report.html and out/demo/plots/*.png
    python -m tools.report out/demo out/edit     # did the edit help? out/demo/compare.html, .png and compare_plots/
    python -m tools.report GRPO=out/demo,out/demo-seed1 PPO=out/demo-ppo,out/demo-ppo-seed1 --out compare.png
                                                 # seeds of a group: their mean in a band from lowest to highest

Several runs are compared with the first, on the same held-out problems. The page is page.html with the data inserted
as JSON. Model text is hostile: it enters the page only as JSON, and its document only as text.
"""

import ast
import base64
import hashlib
import json
import math
import os
import re
import shlex
import statistics
import sys
import time

from tasks.words import word_columns, word_counts
from onebox.config import ConfigError
from onebox.files import read_json
from tools.report.compare import MAX_DIFF_LINES, compare
from tools.report.pictures import MAX_EVENTS, charts_of, for_page, marks_of, pictures
from tools.report.read import (MAX_STEPS, code_folder, evaluated_steps, evenly, most_telling, number, pick_groups,
                               read_rollouts, read_run, setting, short, shorten, text_of, thinking_end)

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE_BYTES = 4_000_000  # of rollouts in the page, over all runs; the rest of the page is a few hundred kB
MAX_PRINTED = 20         # events of the guard on the console
SETTINGS = ("Config", "RunSettings", "BasicSettings")  # the classes that hold them
EVAL_COLUMNS = ("problems", "k", "avg_at_k", "low", "high", "pass_at_k", "maj_at_k", "greedy", "truncated", "mean_len")


def written_settings(run):
    """Read {setting: (default, comment)} from the classes SETTINGS in the run's code/, as far as they are there."""
    folder, found = code_folder(run), {}
    for file in ("onebox/rundir.py", os.path.basename(str(run["config"].get("script", "")))):
        try:
            with open(os.path.join(folder, file), encoding="utf-8") as f:
                source = f.read()
            body = ast.parse(source).body if folder else []
        except (OSError, SyntaxError, ValueError):
            continue  # without the code, the origin alone says what was set
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name in SETTINGS]
        for node in (node for c in classes for node in c.body if isinstance(node, ast.AnnAssign) and node.value):
            comment = source.splitlines()[node.end_lineno - 1].partition("  # ")[2].strip()
            try:
                found[node.target.id] = json.loads(json.dumps(ast.literal_eval(node.value))), comment
            except (ValueError, TypeError):
                pass  # a default that is computed
    return found


def settings_of(run):
    """List the settings as [{name, value, origin, default, meaning, differs}]; those that differ come first."""
    written = written_settings(run)
    settings, origin = run["config"].get("settings"), run["config"].get("origin")
    origin, rows = origin if isinstance(origin, dict) else {}, []
    for name, value in settings.items() if isinstance(settings, dict) else ():
        default, meaning = written.get(name, (None, ""))
        differs = value != default if name in written else name in origin
        rows.append({
            "name": name, "value": text_of(value, 400), "origin": text_of(origin.get(name, "default"), 200),
            "default": text_of(default, 400) if name in written else "", "meaning": meaning, "differs": differs})
    return sorted(rows, key=lambda row: (not row["differs"], row["origin"] == "default"))


def column_sum(run, name):
    return sum(number(row.get(name)) or 0.0 for row in run["rows"])


def duration(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def first_last(run, column, text):
    values = [v for row in run["rows"] if (v := number(row.get(column))) is not None]
    if not values:
        return ""
    return text(values[0]) if len(values) == 1 else f"{text(values[0])} \u2192 {text(values[-1])}"


def header_of(run):
    """Return what the page says first: what was run, what came out, what it cost."""
    config, rows = run["config"], run["rows"]
    command = [str(w) for w in config["command"]] if isinstance(config.get("command"), list) else []
    recipe = next((w for w in command[2:3] if w.endswith(".py")), "")
    processes = int(number(config.get("world_size")) or 1)
    wall = column_sum(run, "seconds_step")
    unit = "process-hours" if str(config.get("machine", "")).startswith("CPU") or not config else "GPU-hours"
    last, asked = (rows[-1]["step"] if rows else None), setting(run, "num_steps")
    percent, plain, many = (lambda v: f"{v:.1%}"), (lambda v: f"{v:.3g}"), (lambda v: f"{v:,.0f}")
    greedy = first_last(run, "eval_correct_greedy", percent)
    reward = first_last({"rows": [row for row in rows if row["step"] > 0]}, "reward", plain)
    speed = first_last({"rows": rows[-1:]}, "tokens_per_second", lambda v: f"{v:,.0f} per second at the end")
    held_out = first_last(run, "eval_correct", percent)
    facts = [("held-out success", held_out, f"greedy {greedy}" if greedy else "sampled"),
             ("training reward", reward, "mean of a step"),
             ("response length", first_last(run, "response_len", many), "tokens"),
             ("steps", f"{last:,}" if last is not None else "", f"of {asked:,}" if type(asked) is int else ""),
             ("wall time", duration(wall) if wall else "", f"{wall * processes / 3600:.3g} {unit}"),
             ("tokens trained on", many(column_sum(run, "trained_tokens")) if rows else "", speed)]
    versions = config.get("versions") if isinstance(config.get("versions"), dict) else {}
    about = {
        "script": config.get("script"), "recipe": recipe, "model": setting(run, "model"), "data": setting(run, "data"),
        "reward": setting(run, "reward"), "machine": config.get("machine"), "processes": processes if config else None,
        "commit": config.get("commit"), "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "command": shlex.join(command[1:]) if command else None}
    summary = [" ".join(str(w) for w in (config.get("script"), recipe) if w), text_of(config.get("machine") or "", 200)]
    if config:
        summary += [f"{processes} process{'es' * (processes > 1)}", f"commit {str(config.get('commit'))[:10]}"]
    return {
        "name": run["name"], "notes": run["notes"], "summary": " \u00b7 ".join(filter(None, summary)),
        "going": type(asked) is int and last is not None and last < asked,
        "facts": [{"label": a, "value": b, "note": c} for a, b, c in facts if b],
        "guard": most_telling(run["guard"], MAX_EVENTS), "guard_left_out": max(0, len(run["guard"]) - MAX_EVENTS),
        "about": [[k, text_of(v, 2000)] for k, v in about.items() if v]}


def analyses(run):
    """
    Make the survey's table, a row per chosen step -> {rows, note}. The numbers are those of metrics.jsonl, over all
    responses of the step. Where an old run lacks the columns of words, they are counted on the rollouts kept of it.
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
            words = word_columns([word_counts(r["thinking"]) for r in kept])
            row |= {k: v for k, v in words.items() if number(row.get(k)) is None}
            filled = True
        think_len = number(row.get("think_len"))
        for column in ("reasoning_words", "reflection_words", "reflection_words_survey", "reflection_words_published"):
            count = number(row.get(column))
            row[f"{column}_per_1000"] = 1000 * count / think_len if count is not None and think_len else None
        wanted = ["correct", "wrong_answer", "format_error", "truncated", "response_len", "think_len", "answer_len"]
        wanted += [*word_columns([]), *(column for column in row if column.endswith("_per_1000"))]
        rows.append({"step": step, **{column: short(row.get(column), 4) for column in wanted}})
    note = "Words of some steps are counted on the rollouts kept in samples/: metrics.jsonl lacks them."
    return {"rows": rows, "note": note * filled}


def histograms(run, bins=24):
    """Count response lengths at up to four steps -> {width, what, steps: [{step, right: [], wrong: []}]} or None."""
    lengths, what = {}, ""
    for split in ("train", "held-out"):
        found = {}
        for step, rows in run["rollouts"].items():
            values = [(r["tokens"], r["correct"]) for r in rows  # a file may say anything
                      if r["split"] == split and r["tokens"] is not None and 0 <= r["tokens"] < 1e7]
            found |= {step: values} if values else {}
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
        result.append({
            "step": step, "right": right, "wrong": wrong, "count": len(lengths[step]),
            "means": {k: short(statistics.fmean(v), 4) if v else None for k, v in mean.items()}})
    return {"width": width, "what": what, "steps": result}


def examples(run):
    """Show the same held-out prompt at up to four evaluations; those that went from wrong to right come first."""
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
            made.append({
                "uid": uid, "prompt": text_of(found[0]["prompt"], 4000), "gold": found[0]["gold"],
                "learned": found[-1]["correct"] - found[0]["correct"], "sample": sample, "steps": [{
                    "step": r["step"], "reward": r["reward"], "correct": r["correct"], "tokens": r["tokens"],
                    **shorten(r["raw"]["response"], [], {}, thinking_end(r["raw"]["response"]), 6000)} for r in found]})
    return sorted(made, key=lambda e: -e["learned"])[:12]


def eval_table(run):
    """Read the rows of eval/table.json, cleaned; [] without it."""
    path = os.path.join(run["folder"], "eval", "table.json")
    rows = read_json(path, errors="replace").get("rows")
    if os.path.exists(path) and not isinstance(rows, list):
        run["notes"].append("eval/table.json is damaged: run eval.py --sweep again")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    rows = [row for row in rows if type(row.get("step")) is int and isinstance(row.get("benchmark"), str)]
    return [{"step": row["step"], "benchmark": text_of(row["benchmark"], 40),
             **{name: short(row.get(name)) for name in EVAL_COLUMNS}} for row in rows]


def page_data(groups):
    """Collect all that the page shows, as plain JSON values."""
    everyone = [run for runs in groups.values() for run in runs]
    viewer = []
    for run in everyone:
        steps, left = pick_groups(run, PAGE_BYTES // len(everyone))
        viewer.append({"run": run["name"], "steps": steps, "left_out": left})
    title = " against ".join(reversed(groups)) if len(groups) == 2 else ", ".join(groups)
    charts, empty = charts_of(groups)
    data = {"title": title, "made": time.strftime("%Y-%m-%d %H:%M"), "viewer": viewer, "empty": empty,
            "curves": [for_page(chart) for chart in charts], "marks": marks_of(groups)}
    data["tables"] = [{"run": run["name"], "eval": eval_table(run), "analyses": analyses(run),
                       "examples": examples(run), "histograms": histograms(run)} for run in everyone]
    if len(everyone) > 1:
        data["compare"] = compare(groups)
    data["runs"] = [{**header_of(run), "settings": settings_of(run), "changes": local_changes(run)} for run in everyone]
    return data


def local_changes(run):
    """Read the diff against the commit that the run started from, as lines; [] for none."""
    try:
        with open(os.path.join(code_folder(run), "git.txt"), encoding="utf-8", errors="replace") as f:
            return [line[:400] for line in f.read(400_000).splitlines()[1:MAX_DIFF_LINES]]
    except OSError:
        return []


def write_page(data, path):
    """Write page.html with the data in it. Its policy allows this one script and style, by their hash."""
    with open(os.path.join(HERE, "page.html"), encoding="utf-8") as f:
        page = f.read()
    allowed = {}
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        allowed[tag] = "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    policy = f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}"
    policy += "; base-uri 'none'; form-action 'none'"
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
        problem = f"cannot write {path} ({error.strerror}): give --out with a place that can be written"
        raise ConfigError(problem) from error


def printable(text):
    """Make model text safe for a console: ASCII, with every control character visible."""
    return ascii(text)[1:-1]


def print_summary(run):
    """Print where the run lies, held-out success before and after, what the guard saw, one problem before and after."""
    scored = [row for row in run["rows"] if number(row.get("eval_correct")) is not None]
    print(f"\nthe run lies in {run['folder']}: report.html, metrics.jsonl, log.txt, config.json, code/, plots/, "
          "samples/, model/")
    if scored:
        first, last = scored[0], scored[-1]
        greedy = [number(row.get("eval_correct_greedy")) for row in (first, last)]
        print(f"held-out success, sampled: {first['eval_correct']:.1%} at step {first['step']} -> "
              f"{last['eval_correct']:.1%} at step {last['step']}" +
              (f" (greedy {greedy[0]:.1%} -> {greedy[1]:.1%})" if None not in greedy else ""))
    for event in (events := most_telling(run["guard"], MAX_PRINTED)):
        print(f"guard: {printable(event['line'])}" + "  (observed only)" * (not event["acted"]))
    if len(run["guard"]) > len(events):
        print(f"guard: {len(run['guard']) - len(events)} more in guard.jsonl")
    for example in examples(run)[:1]:
        if example["learned"] == 1:
            for r in (example["steps"][0], example["steps"][-1]):
                print(f"\nstep {r['step']}: {printable(example['prompt'][:600])}\n   {printable(r['text'][:600])}"
                      f"\n   reward {r['reward'] if r['reward'] is not None else '?'}")


def parse(arguments):
    """Read the command line -> ({label: [folder, ...]}, the file of --out or "")."""
    out, groups, rest = "", {}, iter(arguments)
    for argument in rest:
        if argument == "--out":
            out = next(rest, "")
            if not out:
                raise ConfigError("--out wants a file: compare.png or compare.html")
        elif argument.startswith("-"):
            raise ConfigError(f"{argument} is not known: give directories of runs, LABEL=run,run or --out FILE")
        elif "=" in argument and not os.path.isdir(argument):
            label, _, folders = argument.partition("=")
            groups.setdefault(label, []).extend(folder for folder in folders.split(",") if folder)
        else:
            label = os.path.basename(os.path.abspath(argument))
            groups[argument if label in groups else label] = [argument]
    if not any(groups.values()):
        raise ConfigError("no run given: python -m tools.report out/demo")
    return groups, out


def main():
    if sys.argv[1:2] in (["-h"], ["--help"]):
        return print(__doc__)
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    named, out = parse(sys.argv[1:])
    groups = {label: [read_run(folder) for folder in folders] for label, folders in named.items() if folders}
    for label, runs in groups.items():
        if len(runs) == 1:
            runs[0]["name"] = label  # two directories may have the same last part
    everyone = [run for runs in groups.values() for run in runs]
    common = set.intersection(*[set(evaluated_steps(run)) for run in everyone])
    for run in everyone:
        read_rollouts(run, max(4, MAX_STEPS // len(everyone)), also=sorted(common)[-1:])
    name = "report.html" if len(everyone) == 1 else "compare.html"
    grouped = len(everyone) > 1 and any("=" in argument for argument in sys.argv[1:])
    page = out or (name if grouped else os.path.join(everyone[0]["folder"], name))
    base = os.path.splitext(page)[0]
    data = page_data(groups)
    write_page(data, f"{base}.html")
    print(f"page: {base}.html ({os.path.getsize(f'{base}.html') / 1e6:.1f} MB)")
    folder = os.path.join(os.path.dirname(page), "plots") if len(everyone) == 1 else f"{base}_plots"
    if any(run["rows"] for run in everyone):
        overview = os.path.join(folder, "overview.png") if len(everyone) == 1 else f"{base}.png"
        print(f"curves: {overview} and {pictures(groups, folder, overview)} more in {folder}/")
        if data["empty"]:
            print(f"empty (0 or null at every step): {printable(', '.join(data['empty']))}")
    for run in everyone:
        for note in run["notes"]:
            print(f"{run['folder']}: {printable(note)}")
    for v in data.get("compare", {}).get("verdicts", ()):
        print(f"{printable(v['what'])}: {v['line']}" + f"  ({v['note']})" * bool(v["note"]))
    if len(everyone) == 1:
        print_summary(everyone[0])
