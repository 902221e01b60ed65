"""
A run's face: one HTML file (curves, tables, rollout viewer) and its curves as PNG. No torch, no GPU, no network; works
on a run that is still going or was killed, and says what is missing.

    python -m tools.report out/demo              # out/demo/report.html and out/demo/plots/*.png
    python -m tools.report out/demo out/edit     # did the edit help? out/demo/compare.html, .png and compare_plots/
    python -m tools.report GRPO=out/demo,out/demo-seed1 PPO=out/demo-ppo,out/demo-ppo-seed1 --out compare.png
                                           # seeds of a group: one line (mean) in a band (lowest to highest)

Several runs are compared with the first, on the same held-out problems. The page is page.html with the data put
in as JSON; model text is hostile and reaches the page only as JSON, and the document only as text.
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

from onebox.analysis import word_columns
from onebox.config import ConfigError
from tools.report.compare import MAX_DIFF_LINES, compare
from tools.report.read import (
    MAX_STEPS,
    code_folder,
    evaluated_steps,
    evenly,
    number,
    pick_groups,
    read_json,
    read_rollouts,
    read_run,
    setting,
    short,
    shorten,
    text_of,
    thinking_end,
)

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE_BYTES = 4_000_000  # of rollouts in the page, over all runs; the rest of the page is a few hundred kB
MAX_ROWS = 1000  # steps that a curve is drawn with

# file name: what it shows with its unit, then the columns with their labels; the ones that are missing are left out
FIGURES = {
    "success": (
        "share of right answers",
        {"eval_correct": "held-out, sampled", "eval_correct_greedy": "held-out, greedy", "correct": "training"},
    ),
    "reward": ("mean reward", {"reward": "training", "eval_reward": "held-out"}),
    "errors": (
        "share of responses",
        {"format_error": "format error", "wrong_answer": "wrong answer", "truncated": "truncated"},
    ),
    "length": ("tokens", {"response_len": "response", "think_len": "thinking", "answer_len": "answer"}),
    "reasoning": ("step words per response", {"reasoning_words": "Step n, 1., First ..."}),
    "reflection": (
        "words per response",
        {
            "reflection_words": 'with "no", "wait"',
            "reflection_words_survey": "survey's list",
            "reflection_words_published": "published list",
        },
    ),
    "word_share": (
        "share of responses with at least one",
        {
            "reasoning_share": "step words",
            "reflection_share": 'reflection with "no", "wait"',
            "reflection_share_survey": "reflection, survey",
            "reflection_share_published": "reflection, published",
        },
    ),
    "entropy": ("nats", {"entropy": "entropy"}),
    "kl": (
        "nats per token",
        {"kl": "to the start model, k3", "kl_k1": "to the start model, k1", "approx_kl": "within the step"},
    ),
    "clip": ("share of tokens", {"clip_frac": "gradient stopped by the clip"}),
    "mismatch": ("|rollout - trainer| log-prob", {"mismatch_mean": "mean", "mismatch_max": "max"}),
    "grad_norm": ("before clipping", {"grad_norm": "policy", "critic_grad_norm": "critic"}),
    "critic": ("1 knows the return", {"explained_variance": "explained variance"}),
    "groups": ("share of groups", {"zero_variance_groups": "all rewards equal"}),
    "seconds": (
        "seconds a step",
        {
            "seconds_rollout": "rollout",
            "seconds_train": "train",
            "seconds_logprobs": "log-probs",
            "seconds_reward": "reward",
            "seconds_sync": "sync",
            "seconds_eval": "evaluation",
        },
    ),
    "speed": ("tokens a second, all processes", {"tokens_per_second": "prompt and response"}),
}
PARTS = {  # of the page, in its order
    "Learning": ("success", "reward", "parts", "sources", "errors", "groups"),
    "What is written": ("length", "reasoning", "reflection", "word_share", "suspicious"),
    "Updates": ("entropy", "kl", "clip", "mismatch", "grad_norm", "critic"),
    "Time": ("seconds", "speed"),
}
TITLES = {
    "success": "Correctness",
    "parts": "Parts of the reward",
    "sources": "Reward by source",
    "groups": "Groups without variance",
    "reasoning": "Step words",
    "reflection": "Reflection words",
    "word_share": "Responses with such words",
    "kl": "KL",
    "suspicious": "Suspicious responses",
    "clip": "Clip share",
    "grad_norm": "Gradient norm",
    "seconds": "Time per phase",
}
SHARES = ("success", "errors", "word_share", "groups", "suspicious")  # drawn from 0 to 1
LOG = ("mismatch",)
OVERVIEW = ("success", "reward", "errors", "length", "reflection", "entropy")
COMPARED = ("eval_correct", "reward", "format_error", "response_len", "entropy", "grad_norm")
EVAL_COLUMNS = ("problems", "k", "avg_at_k", "low", "high", "pass_at_k", "maj_at_k", "greedy", "truncated", "mean_len")
COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")


# ----------------------------------------------------------------------------------------------------------------
# what is computed from it
# ----------------------------------------------------------------------------------------------------------------
def settings_of(run):
    """-> [{name, value, origin, default, meaning, differs}]; the last three from Config in the run's code/."""
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
        rows.append(
            {
                "name": name,
                "value": text_of(value, 400),
                "origin": text_of(origin.get(name, "default"), 200),
                "default": text_of(default, 400) if name in written else "",
                "meaning": meaning,
                "differs": differs,
            }
        )
    return sorted(rows, key=lambda row: (not row["differs"], row["origin"] == "default"))


def column_sum(run, name):
    return sum(number(row.get(name)) or 0.0 for row in run["rows"])


def duration(seconds):
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


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
    facts = [
        ("held-out success", first_last(run, "eval_correct", percent), f"greedy {greedy}" if greedy else "sampled"),
        (
            "training reward",
            first_last({"rows": [r for r in rows if r["step"] > 0]}, "reward", plain),
            "mean of a step",
        ),
        ("response length", first_last(run, "response_len", many), "tokens"),
        ("steps", f"{last:,}" if last is not None else "", f"of {asked:,}" if type(asked) is int else ""),
        ("wall time", duration(wall) if wall else "", f"{wall * processes / 3600:.3g} {unit}"),
        (
            "tokens trained on",
            many(column_sum(run, "trained_tokens")) if rows else "",
            first_last({"rows": rows[-1:]}, "tokens_per_second", lambda v: f"{v:,.0f} a second at the end"),
        ),
    ]
    versions = config.get("versions") if isinstance(config.get("versions"), dict) else {}
    about = {
        "script": config.get("script"),
        "recipe": recipe,
        "model": setting(run, "model"),
        "data": setting(run, "data"),
        "reward": setting(run, "reward"),
        "machine": config.get("machine"),
        "processes": processes if config else None,
        "commit": config.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "command": shlex.join(command[1:]) if command else None,
    }
    summary = " ".join(str(w) for w in (config.get("script"), recipe) if w), text_of(config.get("machine") or "", 200)
    summary += (
        f"{processes} process{'es' * (processes > 1)}" * bool(config),
        f"commit {str(config.get('commit'))[:10]}" * bool(config),
    )
    return {
        "name": run["name"],
        "notes": run["notes"],
        "summary": " \u00b7 ".join(filter(None, summary)),
        "going": type(asked) is int and last is not None and last < asked,
        "facts": [{"label": a, "value": b, "note": c} for a, b, c in facts if b],
        "about": [[k, text_of(v, 2000)] for k, v in about.items() if v],
    }


def figures_of(runs):
    """FIGURES, and the columns that only some runs have: each source of a mixture, parts of the reward, flags."""
    names = dict.fromkeys(key for run in runs for row in run["rows"] for key, value in row.items() if value)
    more = {
        "sources": ("mean reward of each source", {n: n[7:-7] for n in names if re.fullmatch(r"source/.+/reward", n)}),
        "parts": ("parts of the reward, mean", {n: n[5:] for n in names if n.startswith("part/")}),
        "suspicious": ("share of responses", {n: n[5:].replace("_", " ") for n in names if n.startswith("flag/")}),
    }
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
        plan = (
            [(title, [(label, next(iter(groups)), column) for column, label in columns.items()])]
            if len(groups) == 1
            else [
                (title if len(columns) == 1 else f"{title}: {label}", [(group, group, column) for group in groups])
                for column, label in columns.items()
            ]
        )
        for title, lines in plan:
            drawn = []
            for index, (label, group, column) in enumerate(lines):
                steps, mean, low, high = series(groups[group], column)
                if steps:
                    points = evenly(range(len(steps)), MAX_ROWS)
                    band = len(groups[group]) > 1
                    drawn.append(
                        {
                            "label": label,
                            "color": index % len(COLORS),
                            "points": column.startswith("eval"),
                            "x": [steps[i] for i in points],
                            "y": [short(mean[i]) for i in points],
                            "low": [short(low[i]) for i in points] if band else None,
                            "high": [short(high[i]) for i in points] if band else None,
                        }
                    )
            if drawn and (len(groups) == 1 or any(any(line["y"]) for line in drawn)):
                made.append(
                    {
                        "part": part,
                        "title": title,
                        "unit": unit,
                        "share": name in SHARES,
                        "log": name in LOG,
                        "series": drawn,
                    }
                )
    return made


def analyses(run):
    """
    The survey's table: a row per chosen step. From metrics.jsonl (all responses of the step); where an old run lacks a
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
        wanted += [
            f"{kind}_{what}{tail}"
            for kind, tail in (
                ("reasoning", ""),
                ("reflection", ""),
                ("reflection", "_survey"),
                ("reflection", "_published"),
            )
            for what in ("words", "share")
        ]
        wanted += [c for c in row if c.endswith("_per_1000")]
        rows.append({"step": step, **{column: short(row.get(column), 4) for column in wanted}})
    return {
        "rows": rows,
        "note": "Words of some steps are counted on the rollouts kept in samples/: metrics.jsonl lacks them." * filled,
    }


def histograms(run, bins=24):
    """Response lengths at up to four steps -> {edges, what, steps: [{step, right: [..], wrong: [..]}]} or None."""
    lengths = {}
    for split in ("train", "held-out"):
        found = {
            step: [(r["tokens"], r["correct"]) for r in rows if r["split"] == split and r["tokens"] is not None]
            for step, rows in run["rollouts"].items()
        }
        found = {step: values for step, values in found.items() if values}
        if len(found) > len(lengths) and not (split == "held-out" and len(lengths) >= 2):
            lengths, what = found, "training" if split == "train" else "held-out"
    if not lengths:
        return None
    lengths = {step: [(n, c) for n, c in found if 0 <= n < 1e7] for step, found in lengths.items()}  # what a file may say
    lengths = {step: found for step, found in lengths.items() if found}
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
        result.append(
            {
                "step": step,
                "right": right,
                "wrong": wrong,
                "count": len(lengths[step]),
                "means": {k: short(statistics.fmean(v), 4) if v else None for k, v in mean.items()},
            }
        )
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
            made.append(
                {
                    "uid": uid,
                    "prompt": text_of(found[0]["prompt"], 4000),
                    "gold": found[0]["gold"],
                    "learned": found[-1]["correct"] - found[0]["correct"],
                    "sample": sample,
                    "steps": [
                        {
                            "step": r["step"],
                            "reward": r["reward"],
                            "correct": r["correct"],
                            "tokens": r["tokens"],
                            **shorten(r["raw"]["response"], [], {}, thinking_end(r["raw"]["response"]), 6000),
                        }
                        for r in found
                    ],
                }
            )
    return sorted(made, key=lambda e: -e["learned"])[:12]


def eval_table(run):
    """eval/table.json -> its rows, cleaned; [] without it."""
    path = os.path.join(run["folder"], "eval", "table.json")
    rows = read_json(path).get("rows")
    if os.path.exists(path) and not isinstance(rows, list):
        run["notes"].append("eval/table.json is damaged: run eval.py --sweep again")
    good = (
        [r for r in rows if isinstance(r, dict) and type(r.get("step")) is int and isinstance(r.get("benchmark"), str)]
        if isinstance(rows, list)
        else []
    )
    return [
        {"step": r["step"], "benchmark": text_of(r["benchmark"], 40)}
        | {
            k: short(r.get(k))
            for k in EVAL_COLUMNS
        }
        for r in good
    ]


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
    data["tables"] = [
        {
            "run": run["name"],
            "eval": eval_table(run),
            "analyses": analyses(run),
            "examples": examples(run),
            "histograms": histograms(run),
        }
        for run in everyone
    ]
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
    """page.html with the data in it. What the policy allows is this script and this style, by their hash."""
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
        raise ConfigError(
            f"cannot write {path} ({error.strerror}): give --out with a place that can be written"
        ) from error


def draw(axis, name, unit, lines):
    """One figure onto an axis; lines: [(label, color, (steps, mean, low, high), whether its points are marked)]."""
    for label, color, (steps, mean, low, high), marked in lines:
        style = dict(marker="o", markersize=4) if marked else dict(alpha=0.85)
        label = label.replace("$", r"\$")  # no formula
        axis.plot(steps, mean, color=color, linewidth=1.6, label=label, **style)
        if low != high:
            axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.set_title(name.replace("_", " ").replace("$", r"\$"), fontsize=10, loc="left", fontweight="bold")
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
            found = [
                (label, COLORS[i % len(COLORS)], series(runs, column), column.startswith("eval"))
                for i, (column, label) in enumerate(columns.items())
            ]
            lines[name] = unit, name, [line for line in found if line[2][0]]
            continue
        for column, label in columns.items():
            found = [
                (
                    group + (f", {len(runs)} seeds" if len(runs) > 1 else ""),
                    COLORS[i % len(COLORS)],
                    series(runs, column),
                    column.startswith("eval"),
                )
                for i, (group, runs) in enumerate(groups.items())
            ]
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
    print(f"\nthe run lies in {run['folder']}: report.html, metrics.jsonl, log.txt, config.json, code/, plots/, "
          "samples/, model/")
    if scored:
        first, last = scored[0], scored[-1]
        greedy = [number(row.get("eval_correct_greedy")) for row in (first, last)]
        print(
            f"held-out success, sampled: {first['eval_correct']:.1%} at step {first['step']} -> "
            f"{last['eval_correct']:.1%} at step {last['step']}"
            + (f" (greedy {greedy[0]:.1%} -> {greedy[1]:.1%})" if None not in greedy else "")
        )
    for example in examples(run)[:1]:
        if example["learned"] == 1:
            for r in (example["steps"][0], example["steps"][-1]):
                print(
                    f"\nstep {r['step']}: {printable(example['prompt'][:600])}\n   {printable(r['text'][:600])}"
                    f"\n   reward {r['reward'] if r['reward'] is not None else '?'}"
                )


def parse(arguments):
    """-> ({label: [folder, ...]}, --out or "")"""
    out, groups, rest = "", {}, iter(arguments)
    for argument in rest:
        if argument == "--out":
            out = next(rest, "")
            if not out:
                raise ConfigError("--out wants a file: compare.png or compare.html")
        elif argument.startswith("-"):
            raise ConfigError(
                f"{argument} is not known: tools.report takes directories of runs, LABEL=run,run and --out FILE"
            )
        else:
            label, named, folders = argument.partition("=")
            if not named or os.path.isdir(argument):
                label, folders = os.path.basename(os.path.abspath(argument)), argument
                label = argument if label in groups else label
            groups.setdefault(label, []).extend(f for f in folders.split(",") if f) if named and not os.path.isdir(
                argument
            ) else groups.update({label: [argument]})
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
    if len(everyone) == 1:
        page = out or os.path.join(everyone[0]["folder"], "report.html")
    else:
        page = out or (
            "compare.html"
            if any("=" in a for a in sys.argv[1:])
            else os.path.join(everyone[0]["folder"], "compare.html")
        )
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
