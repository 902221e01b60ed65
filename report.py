"""
metrics.jsonl -> curves as PNG files. No torch, no GPU, works on a run that is still going.

    python report.py out/demo [out/other ...]         # writes out/demo/plots/*.png; several runs are overlaid
    python report.py GRPO=out/demo,out/demo-seed1 PPO=out/demo-ppo,out/demo-ppo-seed1 --out compare.png
                                                      # one picture: the mean over seeds, and a band from lowest to highest
"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# file name: title, then the columns it shows with their labels; the ones that are missing are left out
FIGURES = {
    "success": ("success", {"eval_correct": "held-out, sampled", "eval_correct_greedy": "held-out, greedy", "correct": "training"}),
    "reward": ("reward", {"reward": "mean reward"}),
    "errors": ("share of responses", {"format_error": "format error", "wrong_answer": "wrong answer", "truncated": "truncated"}),
    "length": ("tokens", {"response_len": "response", "think_len": "thinking", "answer_len": "answer"}),
    "reflection": ("per response", {"reflection_words": 'reflection words ("no", "wait", ...)'}),
    "entropy": ("nats", {"entropy": "entropy"}),
    "grad_norm": ("", {"grad_norm": "gradient norm"}),
    "mismatch": ("|rollout - trainer| log-prob", {"mismatch_mean": "mean", "mismatch_max": "max"}),
    "groups": ("share of groups", {"zero_variance_groups": "all rewards equal"}),
    "seconds": ("seconds a step", {"seconds_rollout": "rollout", "seconds_train": "train", "seconds_reward": "reward",
                                   "seconds_sync": "sync"}),
}
OVERVIEW = ("success", "reward", "errors", "length", "reflection", "entropy")
COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")


def read_metrics(folder):
    """-> list of rows, by step; a half-written last line of a killed run is left out. SystemExit with one line else."""
    path = os.path.join(folder, "metrics.jsonl")
    if not os.path.isfile(path):
        raise SystemExit(f"error: {path} is not there: give the directory of a run, like out/demo")
    rows = {}
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows[row["step"]] = row
    if not rows:
        raise SystemExit(f"error: {path} holds no complete step yet")
    return [rows[step] for step in sorted(rows)]


def draw_band(axis, column, title, groups):
    """Mean over the runs of each group, and a band from the lowest to the highest; x is the step."""
    for color, (label, runs) in zip(COLORS, groups.items(), strict=False):
        by_step = {}
        for rows in runs:
            for row in rows:
                if isinstance(row.get(column), (int, float)):
                    by_step.setdefault(row["step"], []).append(row[column])
        steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
        values = [by_step[step] for step in steps]
        axis.plot(steps, [sum(v) / len(v) for v in values], color=color, linewidth=1.8, label=f"{label}, {len(runs)} seeds")
        axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.18, linewidth=0)
    finish(axis, title, column)


def compare(groups, out):
    """The picture of several groups of runs: what they learned and how steadily."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    shown = {"eval_correct": "held-out success, sampled", "reward": "training reward", "format_error": "format errors",
             "response_len": "response length, tokens", "entropy": "entropy, nats", "grad_norm": "gradient norm"}
    for (column, title), axis in zip(shown.items(), axes.flat, strict=True):
        draw_band(axis, column, title, groups)
    figure.savefig(out, dpi=140)
    print(f"picture: {out}")


def draw(axis, name, runs):
    """One figure's curves onto an axis; of several runs, each has its colour and its name in the legend."""
    ylabel, columns = FIGURES[name]
    color = 0
    for run, rows in runs.items():
        for column, label in columns.items():
            points = [(row["step"], row[column]) for row in rows if isinstance(row.get(column), (int, float))]
            if not points or (len(runs) > 1 and column != next(iter(columns))):
                continue
            style = dict(marker="o", markersize=4) if column.startswith("eval") else dict(alpha=0.85)
            axis.plot(*zip(*points, strict=False), label=label if len(runs) == 1 else os.path.basename(run.rstrip("/")),
                      color=COLORS[color % len(COLORS)], linewidth=1.6, **style)
            color += 1
    axis.set_ylabel(ylabel, fontsize=8)
    finish(axis, name.replace("_", " "), name)


def finish(axis, title, name):
    axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    if name in ("success", "errors", "groups", "eval_correct"):
        axis.set_ylim(0, 1)
    elif name != "mismatch":
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)


def main():
    folders = sys.argv[1:]
    if not folders or folders[0].startswith("-"):
        raise SystemExit(__doc__)
    if "=" in folders[0]:
        out = folders[folders.index("--out") + 1] if "--out" in folders[:-1] else "compare.png"
        named = [argument.partition("=") for argument in folders if "=" in argument]
        return compare({label: [read_metrics(f) for f in runs.split(",")] for label, _, runs in named}, out)
    runs = {folder: read_metrics(folder) for folder in folders}
    out = os.path.join(folders[0], "plots")
    os.makedirs(out, exist_ok=True)
    for name in FIGURES:
        figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
        draw(axis, name, runs)
        figure.savefig(os.path.join(out, f"{name}.png"), dpi=140)
        plt.close(figure)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for name, axis in zip(OVERVIEW, axes.flat, strict=False):
        draw(axis, name, runs)
    figure.savefig(os.path.join(out, "overview.png"), dpi=140)
    print(f"curves: {out}/overview.png and {len(FIGURES)} more")
    for folder, rows in runs.items():
        print_summary(folder, rows)


def print_summary(folder, rows):
    """Where the run lies, its held-out success before and after, and one problem before and after."""
    scored = [row for row in rows if isinstance(row.get("eval_correct"), (int, float))]
    print(f"\nthe run lies in {folder}: metrics.jsonl, log.txt, config.json, code/, plots/, samples/, model/")
    if scored:
        first, last = scored[0], scored[-1]
        print(f"held-out success, sampled: {first['eval_correct']:.1%} at step {first['step']} -> {last['eval_correct']:.1%} at "
              f"step {last['step']} (greedy {first['eval_correct_greedy']:.1%} -> {last['eval_correct_greedy']:.1%})")
        before, after = (read_samples(folder, row["step"]) for row in (first, last))
        for key in before:  # the first problem that went from wrong to right
            if key in after and not before[key]["correct"] and after[key]["correct"]:
                for when, sample in ((first["step"], before[key]), (last["step"], after[key])):
                    print(f"\nstep {when}: {ascii(sample['prompt'])[1:-1]}\n   {ascii(sample['response'][:600])[1:-1]}\n"
                          f"   reward {sample['reward']:.1f}")
                break


def read_samples(folder, step):
    """-> {(uid, sample): row} of the rollouts kept at an evaluation."""
    path = os.path.join(folder, "samples", f"step_{step:06d}.jsonl")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return {(row["uid"], row["sample"]): row for row in rows}


if __name__ == "__main__":
    main()
