"""
The survey on a laptop: run every experiment, judge its claims, write docs/survey.md.

    python -m experiments.survey              all that is missing, two runs at a time; a second call goes on
    python -m experiments.survey 01 08        these alone
    python -m experiments.survey --page       the page from the runs that are there, nothing is run
    FAST=1 python -m experiments.survey       one seed: no intervals, no verdicts; writes out/survey/survey.md instead

SURVEY_STEPS=2 cuts every start and run to two steps, to try the machinery; all of it then lies in out/survey-steps/.
"""

import csv
import importlib
import io
import os
import platform
import re
import sys

from experiments import harness, world
from experiments.harness import ROOT, Run, judge, lines_of, overall, question, run_all, seeds_wanted, shown_command
from tools.report.pictures import draw, series

FILES = os.listdir(os.path.join(ROOT, "experiments"))
NAMES = sorted(name[:-3] for name in FILES if re.fullmatch(r"\d\d_\w+\.py", name))
# of metrics.jsonl, what is kept of each run in results/
COLUMNS = ("step", "reward", "correct", "format_error", "wrong_answer", "truncated", "response_len", "think_len",
           "answer_len", "reflection_words_survey", "entropy", "grad_norm", "zero_variance_groups", "eval_correct",
           "eval_correct_greedy", "eval_response_len", "eval_truncated", "seconds_rollout", "seconds_train",
           "seconds_eval", "seconds_step")
UNITS = {"correct": "share right, training",  # ..._len: tokens
         "eval_response_len": "tokens, held-out", "eval_correct": "share right, held-out", "format_error": "share",
         "wrong_answer": "share", "truncated": "share", "reflection_words_survey": "words a response",
         "seconds_rollout": "seconds", "seconds_train": "seconds", "seconds_step": "seconds"}


def load(names):
    """Import experiments by their numbers or names: [(name, module)]."""
    chosen = [name for name in NAMES if not names or any(name.startswith(wanted) for wanted in names)]
    if odd := [wanted for wanted in names if not any(name.startswith(wanted) for name in NAMES)]:
        raise SystemExit(f"error: no experiment {odd[0]!r}; known: {', '.join(NAMES)}")
    return [(name, importlib.import_module(f"experiments.{name}")) for name in chosen]


def picture(experiment, seeds, path):
    """Draw the columns SHOWN of an experiment, one panel each: mean over seeds in a band from lowest to highest."""
    panels(experiment.SHOWN, {name: [Run(one, seed).record for seed in seeds] for name, one in experiment.ARMS.items()},
           path)


def panels(columns, runs, path, colors=tuple(range(6)), log=(), marks=()):
    """Draw a panel a column: of {name: records} the mean, in a band from lowest to highest. marks: as of marks_of."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.6 * len(columns), 2.4)
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained", squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        lines = [(name, color, column, series(runs[name], column)) for name, color in zip(runs, colors, strict=False)]
        lines = [line for line in lines if line[3][0]]
        unit = UNITS.get(column, "tokens" if column.endswith("_len") else "")
        chart = {"title": column, "unit": unit, "share": False, "log": column in log, "lines": lines, "marks": marks}
        draw(axis, chart, {}, name_marks=axis is axes[0][0])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def minutes(experiment, seeds):
    """Return how long its runs took, two at a time, with those that it shares and without starts."""
    spent = sum(Run(one, seed).seconds * one.processes for one in experiment.ARMS.values() for seed in seeds)
    return spent / harness.SLOTS / 60


def section(name, experiment, seeds, judged, folder):
    """Write what the page says of one experiment."""
    asked, how = question(experiment)
    picture(experiment, seeds, os.path.join(folder, f"{name}.png"))
    figure = "" if experiment.FIGURE == "none" else f", figure {experiment.FIGURE}"
    lines = [f"## {name[:2]}. {asked}", "", f"*The survey (section {experiment.SECTION}{figure})*: {experiment.SURVEY}",
             "", *([how, ""] * bool(how)), f"**{overall(judged)}**", ""]
    lines += [f"- {line}" for line in lines_of(experiment, seeds, judged)]
    if note := getattr(experiment, "NOTE", ""):
        lines += ["", " ".join(note.split())]
    lines += ["", f"![{', '.join(experiment.SHOWN)}]({os.path.basename(folder)}/{name}.png)", "", "```",
              harness.table(experiment, seeds), "```", "",
              f"`python -m experiments.{name}`: {minutes(experiment, seeds):.0f} minutes with the runs that others "
              "share, without starts. One run alone:"]
    last = harness.stages_of(list(experiment.ARMS.values())[-1])
    lines += ["", f"    python -m experiments.world data {harness.start_of(last[0])}",
              *(f"    {shown_command(stage, 0)}" for stage in last)]
    return "\n".join(lines) + "\n"


def row(name, experiment, judged, seeds):
    """Write the line of the table at the top of the page."""
    words = [one.verdict for one in judged]
    counted = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) if len(words) > 1 else "1 claim"
    anchor = re.sub(r"[^\w -]", "", f"{name[:2]} {question(experiment)[0]}".lower()).replace(" ", "-")
    return (f"| [{name[:2]}](#{anchor}) | {question(experiment)[0]} | {experiment.SECTION} | **{overall(judged)}** "
            f"({counted}) | {'; '.join(one.numbers() for one in judged)} | {minutes(experiment, seeds):.0f} |")


HEAD = """# The survey on a laptop

A [survey of R1 reproductions](https://mp.weixin.qq.com/s/BYPKP5oXg1V4C_vg0VFGhw) re-ran TinyZero, SimpleRL, open-r1 and
Logic-RL on 8 to 32 GPUs for days and reports its findings as pictures. Each of them is an experiment here that takes
minutes on two CPU cores. `make survey` runs all of them (FAST=1: one seed), `python -m experiments.01_format_errors`
runs one.

**What this can say, and what not.** The models have 0.09 to 0.9 million parameters. Their starts are fine-tuned on
traces that we wrote ([experiments/](../experiments/README.md)), with the behavior in question in them: a start
rambles in 02, answers at once in 09, hardly knows the format in 10. So these runs show what RL does with it, not that
real models have it. A run has 15 to 64 steps. "Seen" means that the survey's effect shows in this small world; "not
seen" that {seeds} seeds cannot tell it; "opposite" that the reverse shows. None of it proves or refutes the survey's
runs of 1.5B to 7B models. Arms, measures and bounds were written down before the seeds of an experiment were run,
after pilots on seed 100. What was added later says so.

Each number is the mean over {seeds} seeds with Student's 95 % interval; the seeds of two arms are paired. A claim is
seen if the whole interval lies on the side that the survey says, opposite if it lies on the other side. The {claims}
claims share runs; they are not independent, and not corrected for their number. With three seeds an effect must be
larger than 2.5 standard deviations to be told, so "not seen" is no evidence that there is none. All seeds begin with
the same start: another start of the same kind could give another verdict. In the pictures a line is the mean over
seeds, and its band goes from the lowest to the highest; a stage counts its own steps from 0.

| | question | survey | verdict | numbers, in the order of the claims below | minutes |
|---|---|---|---|---|---|
"""


def write_page(chosen, seeds, path):
    """Write the page and its pictures; return its text."""
    folder = path.removesuffix(".md")
    judged = {name: judge(experiment, seeds) for name, experiment in chosen}
    text = HEAD.format(seeds=len(seeds), claims=sum(map(len, judged.values())))
    text += "\n".join(row(name, experiment, judged[name], seeds) for name, experiment in chosen) + "\n\n"
    text += f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.\n\n"
    text += systems_table(seeds)
    text += "\n".join(section(name, experiment, seeds, judged[name], folder) for name, experiment in chosen)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return text


def systems_table(seeds):
    """Write the table of the eight systems in miniature."""
    from experiments import systems

    lines = ["## The eight systems in miniature", "", " ".join(systems.__doc__.split()), "",
             "| system | algorithm, reward | task | held-out %: before → after, each seed | gain, 95 % | learns |",
             "|---|---|---|---|---|---|"]
    judged = {one.claim.text: one for one in judge(systems, seeds)}
    for system, (name, what, task) in systems.SYSTEMS.items():
        runs = [Run(systems.ARMS[name], seed) for seed in seeds]
        first = [Run(harness.stages_of(systems.ARMS[name])[0], seed) for seed in seeds]
        one = judged[system]
        learns = {"seen": "yes", "opposite": "no: less than that", "not seen": "cannot be told", "one seed": "one seed"}
        before, after = (", ".join(f"{100 * r.eval()[i]:.0f}" for r in of) for of, i in ((first, 0), (runs, -1)))
        lines.append(f"| {system} | {what} | {task} | {before} → {after} | {one.numbers()} | {learns[one.verdict]} |")
    lines += ["", " ".join(systems.NOTE.split()), "",
              "Recipes: `experiments/recipes/`. `python -m experiments.systems` runs them.", "", ""]
    return "\n".join(lines)


def write_logs(arms, seeds, folder, also=()):
    """Write the COLUMNS of every run, and others, to FOLDER/ARM-sSEED.csv, four digits each."""
    os.makedirs(folder, exist_ok=True)
    for one in {stage.name: stage for arm in arms for stage in harness.stages_of(arm)}.values():
        for seed in seeds:
            run, out = Run(one, seed), io.StringIO()
            if not run.rows or "response_len" not in run.rows[0]:
                continue  # fine-tuning
            of_sources = re.compile(r"(source|eval)/.*/(correct|response_len)")
            more = sorted({name for r in run.rows for name in r if of_sources.fullmatch(name)})
            lines, columns = csv.writer(out, lineterminator="\n"), [*COLUMNS, *also, *more]
            lines.writerow(columns)
            for r in run.rows:
                values = [r.get(name) for name in columns]
                lines.writerow([f"{v:.4g}" if isinstance(v, float) else "" if v is None else v for v in values])
            with open(os.path.join(folder, f"{harness.run_name(one, seed)[7:]}.csv"), "w") as f:
                f.write(out.getvalue())


def main():
    from experiments import systems

    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    chosen, seeds, steps = load(words), seeds_wanted(), world.cut()
    if steps:
        os.makedirs("out/survey-steps", exist_ok=True)
        os.chdir("out/survey-steps")
    whole = [*chosen, ("systems", systems)] if not words else chosen
    arms = {one.name: one for _, experiment in whole for one in experiment.ARMS.values()}
    if "--page" in sys.argv:
        jobs = harness.jobs_of(arms.values(), seeds, steps)
        harness.check_old(jobs)
        if missing := [name for name in jobs if name.startswith("survey-") and not harness.is_complete(jobs[name])]:
            raise SystemExit(f"error: not complete: {', '.join(missing)}; python -m experiments.survey runs them")
    else:
        if failed := run_all(arms.values(), seeds, steps):
            raise SystemExit(f"error: {', '.join(failed)} failed; out/survey-logs/ has what each run said")
    if words:
        for name, experiment in chosen:
            print(f"\n{name}\n{harness.table(experiment, seeds)}")
            print("\n".join(lines_of(experiment, seeds)))
        return
    complete = not steps and len(seeds) > 1
    path = "docs/survey.md" if complete else "out/survey/survey.md"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_page(chosen, seeds, path)
    if complete:
        write_logs(arms.values(), seeds, os.path.join("out", "survey", "logs"))
    print(f"{path}: {len(chosen)} experiments")


if __name__ == "__main__":
    main()
