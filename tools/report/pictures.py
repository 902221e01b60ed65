"""
Curves of runs: which columns a chart holds, their values, and the charts as PNG files. page.py shows the same charts.
"""

import os
import re

from tools.report.read import evenly, most_telling, number, short

MAX_POINTS = 1000  # of a curve in the page
MAX_EVENTS = 500   # of the guard, per run

# name: what it shows with its unit, then the columns with their labels; columns that no run has are left out
FIGURES = {
    "success": ("share of correct answers", {
        "eval_correct": "held-out, sampled", "eval_correct_greedy": "held-out, greedy", "correct": "training"}),
    "reward": ("mean reward", {"reward": "training", "eval_reward": "held-out"}),
    "errors": ("share of responses", {
        "format_error": "format error", "wrong_answer": "wrong answer", "truncated": "truncated"}),
    "length": ("tokens", {"response_len": "response", "think_len": "thinking", "answer_len": "answer"}),
    "reasoning": ("step words per response", {"reasoning_words": "Step n, 1., First ..."}),
    "reflection": ("words per response", {
        "reflection_words": 'with "no", "wait"', "reflection_words_survey": "survey's list",
        "reflection_words_published": "published list"}),
    "word_share": ("share of responses with at least one", {
        "reasoning_share": "step words", "reflection_share": 'reflection with "no", "wait"',
        "reflection_share_survey": "reflection, survey", "reflection_share_published": "reflection, published"}),
    "entropy": ("nats", {"entropy": "entropy"}),
    "kl": ("nats per token", {
        "kl": "to the start model, k3", "kl_k1": "to the start model, k1", "approx_kl": "within the step"}),
    "clip": ("share of tokens", {"clip_frac": "gradient stopped by the clip"}),
    "mismatch": ("|rollout - trainer| log-prob", {"mismatch_mean": "mean", "mismatch_max": "max"}),
    "grad_norm": ("before clipping", {"grad_norm": "policy", "critic_grad_norm": "critic"}),
    "length_bias": ("correlation", {"corr_length_advantage": "of length and advantage"}),
    "critic": ("1 = predicts the return", {"explained_variance": "explained variance"}),
    "groups": ("share of groups", {"zero_variance_groups": "all rewards equal"}),
    "seconds": ("seconds per step", {
        "seconds_rollout": "rollout", "seconds_train": "train", "seconds_logprobs": "log-probs",
        "seconds_reward": "reward", "seconds_sync": "sync", "seconds_eval": "evaluation"}),
    "speed": ("tokens per second, all processes", {"tokens_per_second": "prompt and response"}),
}
PARTS = {  # of the page, in its order
    "Learning": ("success", "reward", "parts", "sources", "errors", "groups"),
    "Responses": ("length", "reasoning", "reflection", "word_share", "suspicious"),
    "Updates": ("entropy", "kl", "clip", "mismatch", "grad_norm", "length_bias", "critic"),
    "Time": ("seconds", "speed"),
}
TITLES = {
    "success": "Correctness", "parts": "Parts of the reward", "sources": "Reward by source",
    "groups": "Groups without variance", "reasoning": "Step words", "reflection": "Reflection words",
    "word_share": "Responses with such words", "kl": "KL", "suspicious": "Suspicious responses", "clip": "Clip share",
    "grad_norm": "Gradient norm", "seconds": "Time per phase"}
SHARES = ("success", "errors", "word_share", "groups", "suspicious")  # drawn from 0 to 1
LOG = ("mismatch",)
OVERVIEW = ("success", "reward", "errors", "length", "reflection", "entropy")
COMPARED = ("eval_correct", "reward", "format_error", "response_len", "entropy", "grad_norm")
COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")
MARKS = {"change": "#ca8a04", "roll back": "#0369a1", "stop": "#b3261e", "observed": "#868e99"}  # what the guard did


def figures_of(rows):
    """Return FIGURES with the columns that only some runs have: sources of a mixture, parts of the reward, flags."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value)
    more = {
        "sources": ("mean reward", {n: n[7:-7] for n in names if re.fullmatch(r"source/.+/reward", n)}),
        "parts": ("parts of the reward, mean", {n: n[5:] for n in names if n.startswith("part/")}),
        "suspicious": ("share of responses", {n: n[5:].replace("_", " ") for n in names if n.startswith("flag/")})}
    return FIGURES | {name: figure for name, figure in more.items() if figure[1]}


def series(runs, column):
    """Average a column over the runs of a group -> (steps that all of them have, mean, lowest, highest)."""
    by_step = {}
    for run in runs:
        for row in run["rows"]:
            if (value := number(row.get(column))) is not None:
                by_step.setdefault(row["step"], []).append(value)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
    values = [by_step[step] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def marks_of(groups):
    """
    List the marks that the guard's events are in every chart: [{step, did, saw, line, color}], did one of MARKS.

    color: None for a single run, whose marks have the color of what was done; among several groups that of the group's
    curve. A group of several runs has no marks: its curve is a mean of runs, and a mean was never rolled back.
    """
    return [{"step": event["step"], "did": event["action"] if event["acted"] else "observed", "saw": event["saw"],
             "line": f"{group}: {event['line']}" if len(groups) > 1 else event["line"],
             "color": i % len(COLORS) if len(groups) > 1 else None}
            for i, (group, runs) in enumerate(groups.items()) if len(runs) == 1
            for event in most_telling(runs[0].get("guard", []), MAX_EVENTS)]


def charts_of(groups):
    """
    Plan the charts of {group: runs}: for one group a chart per figure, for several groups a chart per column.

    Return (charts, empty). A chart is {name, part, title, unit, share, log, lines, marks}, lines [(label, color,
    column, series)], marks those of marks_of, the same in each. empty: the columns whose chart would hold nothing,
    because all its values are 0 or null.
    """
    marks = marks_of(groups)
    rows = [row for runs in groups.values() for run in runs for row in run["rows"]]
    known, figures, charts, empty = {name for row in rows for name in row}, figures_of(rows), [], []
    for part, name in ((part, name) for part, names in PARTS.items() for name in names if name in figures):
        (unit, columns), title = figures[name], TITLES.get(name, name.capitalize())
        if len(groups) == 1:
            plans = [(name, title, [(label, *groups, column) for column, label in columns.items()])]
        else:
            plans = [(column, title if len(columns) == 1 else f"{title}: {label}", [(g, g, column) for g in groups])
                     for column, label in columns.items()]
        for name_of_file, title, wanted in plans:
            lines = [(label, i % len(COLORS), column, series(groups[group], column))
                     for i, (label, group, column) in enumerate(wanted)]
            if any(any(low) or any(high) for *_, (_, _, low, high) in lines):
                charts.append({
                    "name": name_of_file, "part": part, "title": title, "unit": unit, "share": name in SHARES,
                    "log": name in LOG, "lines": [line for line in lines if line[3][0]], "marks": marks})
            else:
                empty += dict.fromkeys(column for *_, column in wanted if column in known)
    return charts, empty


def for_page(chart):
    """Turn one of charts_of into what page.html draws, but for the marks: the page holds them once for all charts."""
    drawn = []
    for label, color, column, (steps, mean, low, high) in chart["lines"]:
        steps, mean, low, high = (evenly(values, MAX_POINTS) for values in (steps, mean, low, high))
        band = low != high
        drawn.append({
            "label": label, "color": color, "points": column.startswith("eval"), "x": steps, "y": [*map(short, mean)],
            "low": [*map(short, low)] if band else None, "high": [*map(short, high)] if band else None})
    return {key: chart[key] for key in ("part", "title", "unit", "share", "log")} | {"series": drawn}


def draw(axis, chart, seeds, name_marks=True):
    """
    Draw a chart onto a matplotlib axis. seeds {label: how many runs its line is the mean of}; name_marks: whether the
    legend says what the vertical lines are.
    """
    for label, color, column, (steps, mean, low, high) in chart["lines"]:
        style = dict(marker="o", markersize=4) if column.startswith("eval") else dict(alpha=0.85)
        label += f", {seeds[label]} seeds" if seeds.get(label, 1) > 1 else ""
        label = label.replace("$", r"\$")  # no formula
        axis.plot(steps, mean, color=COLORS[color], linewidth=1.6, label=label, **style)
        if low != high:
            axis.fill_between(steps, low, high, color=COLORS[color], alpha=0.18, linewidth=0)
    draw_marks(axis, chart, name_marks)
    axis.set_title(chart["title"].replace("$", r"\$"), fontsize=10, loc="left", fontweight="bold")
    axis.set_ylabel(chart["unit"], fontsize=8)
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    lowest = min(min(low) for *_, (_, _, low, _) in chart["lines"])
    if chart["share"]:
        axis.set_ylim(0, 1)
    elif chart["log"] and lowest > 0:
        axis.set_yscale("log")
    elif lowest >= 0:
        axis.set_ylim(bottom=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(fontsize=7, frameon=False)


def draw_marks(axis, chart, name_marks):
    """Draw a vertical line for each mark from the first to the last step of a chart; the legend has each kind once."""
    steps, named = [step for *_, (steps, *_) in chart["lines"] for step in steps], set()
    for mark in chart.get("marks", ()):
        if min(steps) <= mark["step"] <= max(steps):
            observed, single = mark["did"] == "observed", mark["color"] is None
            name = "guard: " + (mark["did"] if single or observed else "acted")
            axis.axvline(mark["step"], color=MARKS[mark["did"]] if single else COLORS[mark["color"]], linewidth=1,
                         linestyle=":" if observed else "-", alpha=0.8, zorder=1,
                         label=name if name_marks and name not in named else "_")  # "_": not in the legend
            named.add(name)


def pictures(groups, folder, overview):
    """Write every chart to FOLDER/NAME.png and the most important ones into one picture; return how many there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    charts = {chart["name"]: chart for chart in charts_of(groups)[0]}
    seeds = {group: len(runs) for group, runs in groups.items()} if len(groups) > 1 else {}
    os.makedirs(folder, exist_ok=True)
    for name, chart in charts.items():
        figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
        draw(axis, chart, seeds)
        figure.savefig(os.path.join(folder, re.sub(r"[^\w.-]", "_", name) + ".png"), dpi=140)
        plt.close(figure)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    chosen = OVERVIEW if len(groups) == 1 else COMPARED
    first = next((name for name in chosen if name in charts), "")
    for name, axis in zip(chosen, axes.flat, strict=True):
        if name in charts:
            draw(axis, charts[name], seeds, name_marks=name == first)
        else:
            axis.set_axis_off()
    figure.savefig(overview, dpi=140)
    plt.close(figure)
    return len(charts)
