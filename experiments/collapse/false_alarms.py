"""
How often the guard speaks up where nothing is wrong: every healthy run there is, twenty of them made for this.

    python -m experiments.collapse.false_alarms          # runs what is missing of the new ones, then counts
    python -m experiments.collapse.false_alarms RUN ...  # counts in these run directories

Healthy, by a rule that does not ask the guard, is a run that learned and kept it: held-out success ends at least 5
points above the start, and at most 10 points below the best evaluation. The guard is asked anew, by tools/alarms.py:
what it says follows from the rows.
"""

import glob
import math
import os
import sys

from experiments import harness
from experiments.harness import ROOT, arm, folder_of, run_all
from tools.alarms import alarms_of
from tools.report.read import read_run

NEW = [(arm("collapse/healthy", num_steps=30), range(10, 18)), (arm("countdown_ppo", num_steps=24), range(10, 16)),
       (arm("countdown_mixed", num_steps=30), range(10, 16))]  # 20 runs


def is_healthy(rows):
    """Tell whether a run learned and kept it."""
    found = [row["eval_correct"] for row in rows if row.get("eval_correct") is not None]
    return len(found) >= 2 and found[-1] >= found[0] + 0.05 and found[-1] >= max(found) - 0.1


def count(folders):
    """Return {group: [healthy runs, their steps, alarms, times it would have acted, other runs, alarms in these]}."""
    groups = {}
    for folder in folders:
        run = read_run(folder)
        if (events := alarms_of(run)) is None or not run["rows"]:
            continue
        numbers = groups.setdefault(group_of(folder), [0, 0, 0, 0, 0, 0])
        if not is_healthy(run["rows"]):
            numbers[4] += 1
            numbers[5] += len(events)
            continue
        for event in events:
            print(f"{os.path.basename(folder)}: {event['line']}")
        steps = sum(row["step"] > 0 for row in run["rows"])
        for i, value in enumerate((1, steps, len(events), sum(e["action"] != "none" for e in events))):
            numbers[i] += value
    return groups


def group_of(folder):
    """Name what a run belongs to."""
    name = os.path.basename(os.path.abspath(folder))
    if name.startswith("survey-"):
        new = any(folder_of(one, seed).endswith(name) for one, seeds in NEW for seed in seeds)
        return "new runs" if new else "the survey's miniatures" if "collapse" not in name else "the zoo's healthy runs"
    return "SmolLM2" if "smollm" in folder else "demo, PPO" if "ppo" in name else "demo, GRPO"


def known():
    """Return the directories of runs that are here: new ones, the zoo's, the survey's, and the logs in results/."""
    folders = [folder_of(one, seed) for one, seeds in NEW for seed in seeds]
    folders += [folder_of(arm("collapse/healthy"), seed) for seed in harness.SEEDS]
    folders += sorted(os.path.dirname(f) for f in glob.glob("out/survey-*/metrics.jsonl") if "collapse" not in f)
    logs = glob.glob(os.path.join(ROOT, "results", "*demo*", "**", "metrics.jsonl"), recursive=True)
    folders += sorted(os.path.dirname(f) for f in logs)
    return [f for f in dict.fromkeys(folders) if os.path.exists(os.path.join(f, "metrics.jsonl"))]


def table(groups):
    """Write the counts in Markdown, with the upper end of a 95 % interval for alarms a thousand steps."""
    lines = ["| runs | healthy | steps | alarms | it would have acted | left out: not healthy | alarms there |",
             "|---|---|---|---|---|---|---|"]
    groups = groups | {"**all**": [sum(values) for values in zip(*groups.values(), strict=True)]}
    for name, (runs, steps, events, acts, others, events_there) in groups.items():
        lines.append(f"| {name} | {runs} | {steps:,} | {events} | {acts} | {others} | {events_there} |")
    _, steps, events, *_ = groups["**all**"]
    upper = 1000 * (events + 2 * math.sqrt(events + 1) + 1) / max(1, steps)  # of a Poisson count, nearly
    rate = f"{1000 * events / max(1, steps):.2f} alarms in a thousand healthy steps (95 %: at most {upper:.1f})."
    return "\n".join([*lines, "", rate])


def paragraph():
    """Write what the page says of false alarms."""
    rule = ("**False alarms.** A run counts as healthy if it learned and kept it: held-out success ends at least 5 "
            "points above its start, at most 10 below its best. `python -m experiments.collapse.false_alarms`:")
    return f"{rule}\n\n{table(count(known()))}\n"


def main():
    if sys.argv[1:]:
        return print(table(count(sys.argv[1:])))
    for one, seeds in NEW:
        if failed := run_all([one], seeds):
            raise SystemExit(f"error: {', '.join(failed)} failed; out/survey-logs/ has what each run said")
    print(table(count(known())))


if __name__ == "__main__":
    main()
