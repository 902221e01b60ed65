"""
What the trials of tools/tune.py show: their scores and order, a table, and the recipe of the best one.

A trial is a dict: run (its name), phase ("proxy" or "target"), drawn (from the space), settings (that differ from the
recipe's), means and scores (one a rung), seconds (the same), end ("" while it may go on, else why it ended).
"""

import math
import os
import re
import shutil
import statistics

from onebox.files import HERE, read_rows
from onebox.text import visible
from tools.space import line_of

CHOSEN = 4  # configurations that go from the proxy to the recipe's model
Z = 1.96  # standard errors to the end of a 95 % interval


def held_out(run, step, greedy):
    """Return the share right of each held-out problem after a step, [] if it was not evaluated there."""
    rows = read_rows(os.path.join("out", run, "samples", "held_out.jsonl"))
    found = next((row["correct"].values() for _, row in rows if row.get("step") == step), ())
    return [float(right if greedy else sampled) for sampled, right in found]


def score_of(shares):
    """
    Return the lower end of a 95 % interval of held-out success, over problems: mean - 1.96 standard errors.

    Two problems solved and two not solved are added first (Agresti and Coull 1998). Without them 0 of 200 would score
    higher than 2 of 200, whose interval reaches below 0.
    """
    shares = [*shares, 0.0, 0.0, 1.0, 1.0]
    return statistics.mean(shares) - Z * statistics.stdev(shares) / math.sqrt(len(shares))


def alarm_of(run):
    """Return the guard's first line about harm in a run, "" if it has seen none: what else it says lies in the data."""
    rows = [row for _, row in read_rows(os.path.join("out", run, "guard.jsonl")) if row]
    rows = [row for row in rows if row.get("action") in ("roll back", "stop")]
    return f"guard: {rows[0].get('line') or rows[0]}" if rows else ""


def last_line(file):
    """Return the last line of a log that begins with "error:", else its last one, shortened."""
    with open(file, errors="replace") as f:
        lines = [line.strip() for line in f if line.strip()]
    return visible(next((line for line in lines[::-1] if line.startswith("error:")), "".join(lines[-1:])))[:300]


def trials_of(state, phase):
    return [trial for trial in state["trials"] if trial["phase"] == phase]


def is_broken(trial):
    return trial["end"].startswith(("guard", "crashed"))


def rank_of(trial):
    """Order trials: by the highest rung, then the score there, then those of the rungs below."""
    return len(trial["scores"]), trial["scores"][::-1]


def best_first(trials):
    """Sort those that have a score and did not break, the best one first."""
    return sorted((trial for trial in trials if trial["scores"] and not is_broken(trial)), key=rank_of, reverse=True)


def chosen_on_proxy(trials):
    """Return what runs on the recipe's model, [(drawn, settings)]: the default, then the best of the others."""
    return [(trial["drawn"], trial["settings"]) for trial in [*trials[:1], *best_first(trials[1:])[:CHOSEN]]]


def drop_checkpoints(trials):
    """Remove checkpoints and models of runs that have ended, but for the best one's."""
    best = best_first(trials)[:1]
    for trial in trials:
        folder = os.path.join("out", trial["run"])
        for name in os.listdir(folder) if trial["end"] and trial not in best and os.path.isdir(folder) else ():
            if re.fullmatch(r"(corrupt_)?step_\d+|model", name):
                shutil.rmtree(os.path.join(folder, name))


def spearman(a, b):
    """Return the rank correlation, ties sharing their mean rank; NaN where one side has no two different values."""
    def ranks(values):
        return [sum(one < value for one in values) + (values.count(value) + 1) / 2 for value in values]
    return statistics.correlation(ranks(a), ranks(b)) if min(len(set(a)), len(set(b))) > 1 else math.nan


def proxy_lines(proxy, target, rungs):
    """Say for each rung how the proxy's scores order the trials that the target has there too."""
    by_settings, lines = [(trial["settings"], trial) for trial in proxy], []
    for rung, step in enumerate(rungs):
        pairs = [(other["scores"][rung], trial["scores"][rung]) for trial in target for settings, other in by_settings
                 if settings == trial["settings"] and min(len(other["scores"]), len(trial["scores"])) > rung]
        if pairs:
            found = spearman(*map(list, zip(*pairs, strict=True)))
            lines.append(f"proxy and target at step {step}: Spearman {found:.2f} over {len(pairs)} pairs")
    return lines


def head(plan, state):
    """Write what is searched and how."""
    lines = [f"{plan.name}: {plan.recipe} with {plan.script}, {plan.slots} at a time, evaluated after steps "
             f"{', '.join(map(str, plan.rungs))}; {state['seconds'] / 60:.1f} of {plan.seconds / 60:g} minutes spent",
             "searched: " + "; ".join(line_of(name, *line) for name, line in plan.space.items())]
    lines += [f"left out, no settings of {plan.script}: {', '.join(plan.left_out)}"] * bool(plan.left_out)
    lines += [f"{' and '.join(plan.schedules)} constant in all runs: a schedule that follows num_steps cannot go on at "
              "the next rung"] * bool(plan.schedules)
    lines += ["scored by the greedy responses: the sampled ones would favor a low temperature"] * plan.greedy
    return "\n".join(lines)


def shown(settings):
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "as the recipe"


def table(trials, rungs):
    """Write all trials, the best one first, as Markdown: held-out success and, in brackets, score at each rung."""
    lines = ["| trial | " + " | ".join(f"step {step}" for step in rungs) + " | seconds | end | settings |",
             "|---" * (len(rungs) + 4) + "|"]
    best = best_first(trials)
    for trial in [*best, *(trial for trial in trials if trial not in best)]:
        cells = [f"{100 * mean:.1f} ({100 * score:.1f})" for mean, score in
                 zip(trial["means"], trial["scores"], strict=True)]
        end = " ".join((trial["end"] or "stopped by the clock").replace("|", "\\|").split())
        lines.append(f"| {trial['run']} | " + " | ".join([*cells, *[""] * (len(rungs) - len(cells))])
                     + f" | {sum(trial['seconds']):.0f} | {end} | {shown(trial['settings'])} |")
    return "\n".join(lines)


def said(trial, rung=-1):
    return f"held-out {100 * trial['means'][rung]:.1f} %, score {100 * trial['scores'][rung]:.1f}"


def recipe_of(plan, best, default):
    """Write the best trial as a recipe: it inherits one of the repository, and holds the text of any other."""
    path, rung = os.path.relpath(plan.recipe, HERE), len(best["scores"]) - 1
    parts = path.removesuffix(".py").split(os.sep)
    inherits = parts[0] != "out" and all(part.isidentifier() for part in parts)
    own = f"; the recipe as it is: {said(default, rung)}" if len(default["scores"]) > rung else ""
    notes = [f"Found by python -m tools.tune {plan.recipe}: trial {best['run']}.",
             f"After step {plan.rungs[rung]} {said(best)}{own}{' (greedy)' * plan.greedy}."]
    if inherits:
        lines = ['"""', *notes, '"""', f"from {'.'.join(parts)} import *  # noqa: F403", ""]
    else:
        with open(plan.recipe) as f:
            lines = [f.read().rstrip(), "", *(f"# {note}" for note in notes)]
    changed = {**plan.schedules, **best["settings"]}
    return "\n".join([
        *lines, f'_script = "{plan.script}"', f'name = "{plan.name}-best"',
        *(f"{name} = {value!r}  # given to the search" for name, value in plan.given.items() if name not in changed),
        *(f"{name} = {value!r}  # instead of {getattr(plan.cfg, name)!r}" for name, value in changed.items())]) + "\n"


def summary_of(plan, state):
    """Write what was found: tables, the correlation with the proxy, the best trial and the commands that repeat it."""
    trials, text = trials_of(state, "target"), []
    if plan.proxy:
        proxies = trials_of(state, "proxy")
        text = [f"On the proxy, {plan.proxy}:", "", table(proxies, plan.rungs), "",
                *proxy_lines(proxies, trials, plan.rungs), "", f"On {plan.cfg.model}:", ""]
    text += [table(trials, plan.rungs), "", f"{state['seconds'] / 60:.1f} of {plan.seconds / 60:g} minutes"]
    if best := best_first(trials)[:1]:
        path, seeds = os.path.join(plan.folder, "best.py"), range(plan.cfg.seed + 1, plan.cfg.seed + 4)
        python = f"torchrun --standalone --nproc-per-node={plan.processes}" if plan.processes > 1 else "python"
        script = plan.script if os.path.samefile(os.curdir, HERE) else os.path.join(HERE, plan.script)
        text += [f"Best: {best[0]['run']}, {shown(best[0]['settings'])}: {path}", "", "Repeat it with fresh seeds:", "",
                 *(f"    {python} {script} {path} --name {plan.name}-best-s{seed} --seed {seed}" for seed in seeds)]
    return "\n".join(text)
