"""
Run arms x seeds, two at a time, and judge claims about them. An experiment is a module experiments/NN_name.py:

    python -m experiments.01_format_errors          runs what is missing of it, prints its table (FAST=1: one seed)
    python -m experiments.survey                    all of them, and docs/survey.md

A run lies in out/survey-ARM-sSEED/, like any run of the train scripts, which resume it where it was stopped. Arms that
two experiments share are run once: the name of an arm says all of what it is. A run is complete when RUN/complete.json
is there; that file holds the digest of recipe, settings and start, so that a later edit is noticed, not mixed in.
"""

import dataclasses
import fcntl
import hashlib
import importlib
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time

from experiments import world
from onebox.config import name_functions, run_file
from onebox.files import read_json
from tools.report.read import number, read_run

ROOT = world.ROOT
SLOTS = 2       # processes at a time, of one thread each
SEEDS = (0, 1, 2)
CUT = "--prompts_per_step 4 --eval_prompts 8 --max_response_len 48".split()  # of cut runs: their models never stop


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recipe of experiments/recipes, and what differs from it. after: the arm whose trained model it starts from."""

    recipe: str
    settings: tuple = ()  # ((name, value), ...)
    after: "Arm | None" = None
    processes: int = 1

    @property
    def name(self):
        parts = [f"{key}={value}".replace(" ", "").replace("/", "_") for key, value in self.settings]
        parts += [f"{self.processes}p"] * (self.processes > 1)
        parts += [f"after-{self.after.name}"] if self.after else []
        text = "-".join([self.recipe, *parts])
        keep = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in text)
        return keep if len(keep) <= 120 else f"{keep[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def arm(recipe, after=None, processes=1, **settings):
    """Name a recipe of experiments/recipes with other values of some settings."""
    return Arm(recipe, tuple(sorted(settings.items())), after, processes)


def stages_of(arm):
    """Return the arms that lead to an arm, and it, in their order."""
    return [*(stages_of(arm.after) if arm.after else []), arm]


def run_name(arm, seed):
    return f"survey-{arm.name}-s{seed}".replace("=", "_")


def folder_of(arm, seed):
    return os.path.join("out", run_name(arm, seed))


def recipe_path(arm):
    folder = () if "/" in arm.recipe else ("recipes",)  # "collapse/too_fast" lies elsewhere
    return os.path.join("experiments", *folder, f"{arm.recipe}.py")


def settings_of(arm):
    """Return all that recipe and arm set, {name: value}."""
    values = run_file(os.path.join(ROOT, recipe_path(arm)))
    return {**values, **dict(arm.settings)}


def start_of(arm):
    """Return the name of the start that an arm begins with."""
    return start_of(arm.after) if arm.after else settings_of(arm)["model"].split("/")[1].removeprefix("world-")


def command_of(arm, seed, num_steps=None):
    """Return the command of one run, to be started where out/ shall lie."""
    script = settings_of(arm)["_script"]
    command = [sys.executable]
    if arm.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arm.processes}"]
    command += [os.path.join(ROOT, script), os.path.join(ROOT, recipe_path(arm)), "--name", run_name(arm, seed),
                "--seed", str(seed)]
    for name, value in arm.settings:
        command += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    if arm.after:
        command += ["--model", os.path.join(folder_of(arm.after, seed), "model")]
    if num_steps:
        command += ["--num_steps", str(num_steps)]
        command += CUT if script != "sft.py" else []
        command += ["--critic_warmup_steps", "1"] if script == "train_ppo.py" else []  # fewer than there are steps
    return command


def shown_command(arm, seed):
    """Write the command as a person types it in the repository."""
    words = [word.replace(ROOT + os.sep, "") for word in command_of(arm, seed)[1:]]
    words = ["torchrun", *words[2:]] if words[0] == "-m" else ["python", *words]
    return shlex.join(words)


# ---------------------------------------------------------------- running


class Job:
    """One process of the queue: a start of the world, or one run. `needs` are names of other jobs."""

    def __init__(self, name, command, digest, needs=(), processes=1):
        self.name, self.command, self.digest, self.needs, self.processes = name, command, digest, needs, processes
        self.done = os.path.join("out", name, "complete.json")
        self.process = self.began = None


def digest_of(arm, num_steps=None):
    """Return a digest of what decides what an arm learns: its settings, and the start or arm that it begins with."""
    path, kinds = os.path.join(ROOT, recipe_path(arm)), (str, int, float, dict, tuple, bool)
    plain = {name: name_functions(value, path) for name, value in settings_of(arm).items()
             if not name.startswith("__") and isinstance(value, kinds)}
    before = digest_of(arm.after, num_steps) if arm.after else world.digest_of(start_of(arm))
    text = repr((sorted(plain.items()), num_steps, before)).replace(ROOT + os.sep, "")  # of an own function
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def jobs_of(arms, seeds, num_steps):
    """Return {name: Job} for arms x seeds with all they begin with, in an order in which each comes after its needs."""
    jobs = {}

    def add_start(start):
        name = os.path.basename(world.folder_of(start))
        jobs.setdefault(name, Job(name, [sys.executable, "-m", "experiments.world", start], world.digest_of(start)))
        return name

    def add(arm, seed):
        name = run_name(arm, seed)
        if name not in jobs:
            needs = [add(arm.after, seed) if arm.after else add_start(start_of(arm))]
            jobs[name] = Job(name, command_of(arm, seed, num_steps), digest_of(arm, num_steps), needs, arm.processes)
        return name

    for seed in seeds:
        for one in arms:
            add(one, seed)
    return jobs


def is_complete(job):
    return os.path.exists(job.done)


def check_old(jobs):
    """Refuse runs that are complete but of other recipes, settings or starts than today's."""
    old = [f"out/{job.name}" for job in jobs.values()
           if is_complete(job) and read_json(job.done).get("digest") != job.digest]
    if old:
        raise SystemExit(f"error: made with another recipe, other settings or another start: {', '.join(old)}. To run "
                         f"them anew: rm -r {' '.join(old)}")


def lock():
    """Hold out/survey.lock until this process ends: two at once would write over each other's starts and logs."""
    os.makedirs("out", exist_ok=True)
    held = open(os.path.join("out", "survey.lock"), "w")  # noqa: SIM115  open as long as it is held
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SystemExit(f"error: other experiments run in {os.getcwd()}/out: wait for them") from error
    return held


def run_all(arms, seeds, num_steps=None, slots=SLOTS):
    """Run what is not complete, `slots` processes at a time. Return [name of a run that failed]."""
    jobs, held_lock = jobs_of(arms, seeds, num_steps), lock()
    check_old(jobs)
    world.write_data()
    waiting = {name: job for name, job in jobs.items() if not is_complete(job)}
    total, running, failed = len(waiting), [], []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    os.makedirs(os.path.join("out", "survey-logs"), exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: the runs are told to stop
    try:
        while waiting or running:
            for job in [j for j in running if j.process.poll() is not None]:
                running.remove(job)
                seconds = time.monotonic() - job.began
                # a run that a signal stopped ends with 0 too; it leaves a checkpoint, and no model. One that the guard
                # ended has code 6 and leaves the last good model
                bad = job.process.returncode not in (0, 6) or not os.path.exists(f"out/{job.name}/model/config.json")
                if bad:
                    failed.append(job.name)
                else:
                    finish(job, seconds)
                print(f"{total - len(waiting) - len(running):3}/{total}  {seconds:4.0f} s  {job.name}"
                      + f"  FAILED, see out/survey-logs/{job.name}.txt" * bool(bad), flush=True)
            for name, job in list(waiting.items()):  # in their order: what needs one that needs a failed one, too
                if set(job.needs) & set(failed):
                    failed.append(name)
                    del waiting[name]
            free = slots - sum(job.processes for job in running)
            held = set(waiting) | {job.name for job in running}
            # one of several processes lets all others pass, so that no core waits for it
            ready = next((job for job in waiting.values()
                          if not set(job.needs) & held and min(job.processes, slots) <= free), None)
            if ready is not None:
                del waiting[ready.name]
                with open(os.path.join("out", "survey-logs", f"{ready.name}.txt"), "a") as log:
                    ready.process = subprocess.Popen(ready.command, stdout=log, stderr=subprocess.STDOUT,
                                                     env=environment, process_group=0)  # Ctrl-C is for this one alone
                ready.began = time.monotonic()
                running.append(ready)
            else:
                time.sleep(0.2)
    finally:
        for job in running:  # Ctrl-C: the scripts save and stop
            job.process.terminate()
        for job in running:
            job.process.wait()
        held_lock.close()
    return failed


def finish(job, seconds):
    """Record that a job is complete, and remove what only a resume needs."""
    folder = os.path.dirname(job.done)
    for name in os.listdir(folder):
        if name.startswith("step_"):  # checkpoints
            shutil.rmtree(os.path.join(folder, name))
    world.write_lines(job.done, [{"digest": job.digest, "seconds": round(seconds, 1)}])


# ---------------------------------------------------------------- measuring


class Run:
    """The metrics of one run: run["column"] is its list over training steps, run.eval("column") over evaluations."""

    def __init__(self, arm, seed):
        self.arm, self.seed, self.folder = arm, seed, folder_of(arm, seed)
        self.record = read_run(self.folder)  # as tools/report reads it
        self.rows = self.record["rows"]
        # of a run that was stopped and resumed, complete.json knows the last part alone
        self.seconds = max(read_json(os.path.join(self.folder, "complete.json")).get("seconds", math.nan),
                           sum(number(row.get("seconds_step")) or 0.0 for row in self.rows))

    def __getitem__(self, column):
        return [value for row in self.rows if row["step"] > 0 and (value := number(row.get(column))) is not None]

    def eval(self, column="eval_correct"):
        return [value for row in self.rows if (value := number(row.get(column))) is not None]

    def steps(self, column):
        return [row["step"] for row in self.rows if row["step"] > 0 and number(row.get(column)) is not None]


def mean(values):
    return sum(values) / len(values) if len(values) else math.nan


def percent_more(value, than):
    """Return by how many % a value lies above another; NaN where there is nothing to compare with."""
    return 100 * (value / than - 1) if than else math.nan


def smooth(values, width=5):
    """Return the mean of each value and those around it, `width` in all where there are so many."""
    half = width // 2
    return [mean(values[max(0, i - half):i + half + 1]) for i in range(len(values))]


def early(values, count=3):
    return mean(values[:count])


def late(values, count=10):
    return mean(values[-count:])


def steps_until(values, reached):
    """Return the first step, from 1, whose value, smoothed over 3, is `reached`; one more than there are if none is."""
    return next((i for i, value in enumerate(smooth(values, 3), 1) if reached(value)), len(values) + 1)


def unrest(values):
    """Return how much a curve jumps: the mean |difference| of successive steps, after the first fifth of the run."""
    values = values[len(values) // 5:]
    return mean([abs(b - a) for a, b in zip(values, values[1:], strict=False)])


def bends(values):
    """Return the mean |second difference| after the first fifth: jumps without the trend."""
    values = values[len(values) // 5:]
    return mean([abs(c - 2 * b + a) for a, b, c in zip(values, values[1:], values[2:], strict=False)])


def fall(values):
    """Return by how many % the last 10 values lie below the highest point, smoothed over 5 steps."""
    return -percent_more(late(values), max(smooth(values, 5)))


def fall_from_before(values):
    """Return the same for the highest point before the last 10: a curve that rises to its end does not fall."""
    return -percent_more(late(values), max(smooth(values[:-10], 5), default=math.nan))


# ---------------------------------------------------------------- judging


@dataclasses.dataclass(frozen=True)
class Claim:
    """
    What must hold if the survey is right, as one number a seed: measure({arm: Run}) of one seed.

    above: the survey's direction; seen if the 95 % interval of the mean over seeds lies above it, opposite if below.
    below: the same the other way round.
    within: the survey says "the same"; seen if the interval lies in -within ... within, opposite if outside.
    """

    text: str
    measure: object
    above: float | None = None
    below: float | None = None
    within: float | None = None
    form: str = "{:.1f}"


T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # 97.5 %


def interval(values):
    """Return (mean, low, high): Student's 95 % interval of the mean over seeds; without one for a single seed."""
    values = list(values)
    if len(values) < 2:
        return mean(values), -math.inf, math.inf
    if any(map(math.isnan, values)):  # statistics raises an AttributeError there
        return math.nan, math.nan, math.nan
    half = T_QUANTILES[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half


def verdict(claim, values):
    """Return "seen", "opposite" or "not seen" (cannot be told), or "one seed"."""
    if len(values) < 2:
        return "one seed"
    _, low, high = interval(values)
    if math.isnan(low):
        return "not seen"
    if claim.within is not None:
        inside, outside = -claim.within < low and high < claim.within, low > claim.within or high < -claim.within
        return "seen" if inside else "opposite" if outside else "not seen"
    if claim.above is not None:
        return "seen" if low > claim.above else "opposite" if high < claim.above else "not seen"
    return "seen" if high < claim.below else "opposite" if low > claim.below else "not seen"


@dataclasses.dataclass
class Judged:
    claim: Claim
    values: list
    verdict: str

    def numbers(self, between=" "):
        """Write the mean over seeds and, of several, its interval."""
        center, low, high = (self.claim.form.format(x) for x in interval(self.values))
        return f"{center}{between}[{low}, {high}]" if len(self.values) > 1 else center

    def line(self):
        sign, bound = next((sign, bound) for sign in ("above", "below", "within")
                           if (bound := getattr(self.claim, sign)) is not None)
        bound = f"{sign} {'±' * (sign == 'within')}{self.claim.form.format(bound)}"
        return f"{self.claim.text}: {self.numbers(', 95 % ')} ({bound}): {self.verdict}"


def judge(experiment, seeds, claims=None):
    """Return [Judged] of an experiment whose runs are complete: of its CLAIMS, or of others."""
    by_seed = [{name: Run(one, seed) for name, one in experiment.ARMS.items()} for seed in seeds]
    found = []
    for claim in experiment.CLAIMS if claims is None else claims:
        values = [claim.measure(runs) for runs in by_seed]
        found.append(Judged(claim, values, verdict(claim, values)))
    return found


def lines_of(experiment, seeds, judged=None):
    """Write a line a claim (judged: its CLAIMS, if that is done), then those that were added after the runs began."""
    added = judge(experiment, seeds, getattr(experiment, "ADDED", ()))
    return [*(one.line() for one in (judged or judge(experiment, seeds))),
            *(f"{one.line()} (added after the runs began)" for one in added)]


def overall(judged):
    """
    Return one word for an experiment: "seen" if all its claims are, "partly seen" if some are, "opposite" if some are
    opposite and none is seen, "mixed" if both occur, else "not seen".
    """
    words = {one.verdict for one in judged}
    if len(words) == 1:
        return words.pop()
    if {"seen", "opposite"} <= words:
        return "mixed"
    return "partly seen" if "seen" in words else "opposite"


def table(experiment, seeds):
    """Write a line an arm: held-out success before and after, length, errors, seconds."""
    lines = [f"{'arm':16}{'held-out %':>22}{'length':>16}{'format error %':>16}{'truncated %':>13}{'seconds':>9}"]
    for name, one in experiment.ARMS.items():
        runs = [Run(one, seed) for seed in seeds]
        if not runs[0]["response_len"]:
            continue  # fine-tuning
        ends = ", ".join(f"{100 * run.eval()[-1]:.0f}" for run in runs)
        starts = mean([100 * run.eval()[0] for run in runs])
        first, last = (mean([of(run["response_len"], count) for run in runs]) for of, count in ((early, 1), (late, 5)))
        lines.append(f"{name:16}{f'{starts:.0f} -> {ends}':>22}{f'{first:.0f} -> {last:.0f}':>16}"
                     f"{100 * mean([late(r['format_error'], 5) for r in runs]):>16.1f}"
                     f"{100 * mean([late(r['truncated'], 5) for r in runs]):>13.1f}"
                     f"{mean([r.seconds for r in runs]):>9.0f}")
    return "\n".join(lines)


def question(experiment):
    """Return the first paragraph of an experiment's docstring in one line, and the rest of it."""
    first, _, rest = experiment.__doc__.strip().partition("\n\n")
    return " ".join(first.split()), " ".join(rest.split())


def seeds_wanted():
    return SEEDS[:1] if os.environ.get("FAST", "0") not in ("", "0") else SEEDS


def main(name):
    """Run one experiment and print its question, table and verdicts: what `python -m experiments.NN_name` does."""
    experiment, seeds = importlib.import_module(name), seeds_wanted()
    if world.cut():
        raise SystemExit("error: SURVEY_STEPS is for python -m experiments.survey, which keeps cut runs apart")
    print(question(experiment)[0])
    if failed := run_all(experiment.ARMS.values(), seeds):
        raise SystemExit(f"error: {', '.join(failed)} failed; out/survey-logs/ has what each run said")
    print(table(experiment, seeds))
    print("\n".join(lines_of(experiment, seeds)))
