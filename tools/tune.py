"""
Search for better settings of a recipe in a given time: successive halving over whole runs.

    python -m tools.tune recipes/demo.py --minutes 20 [--space FILE] [--setting value ...]

Options  --space FILE (default tools/search_space.py), --minutes X (of wall clock, counted over all starts), --trials N
         (at most), --name NAME (default: the recipe's, with -tune), --slots N (runs at a time; default one for each
         GPU, 1 on a CPU), --sampler tpe|random, --proxy MODEL (search on this smaller model of the same family with
         half of the time; then the best 4 and the default run on the recipe's model). The rest are settings of the
         script: every run gets them, as if they were the recipe's.
Files    out/NAME/: tune.json (all that is known), trials.md, best.py (a recipe), logs/. The same command goes on.

A trial is a run, out/NAME-t007. It is evaluated after 1/8, 1/4, 1/2 and all of num_steps: a rung is the same command
with a larger --num_steps, which resumes exactly. About the better half of a rung goes on. Harm that the guard sees
loses at once, and so does a crash. Trial 0 is the recipe as it is. docs/tuning.md has an example.

Optuna, not code of our own, decides what to try and who goes on: its TPE sampler models settings of several kinds
better than a few lines would, and its pruner is asynchronous successive halving as published (arXiv 1810.05934). Only
these two are used, on a study in memory that is told all trials before each question, so that after a kill Optuna and
the runs cannot tell two stories.
"""

import ctypes
import fcntl
import importlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from importlib.util import find_spec

from onebox.config import ConfigError, load_config, refuse
from onebox.distributed import stable_seed
from onebox.files import HERE, read_json, read_rows, write_atomic
from onebox.rundir import as_json, lr_follows_num_steps
from tools.plan import Parser, script_of
from tools.space import distributions, own_draw, read_space, settings_of
from tools.trials import (alarm_of, best_first, chosen_on_proxy, drop_checkpoints, head, held_out, is_broken, last_line,
                          recipe_of, said, score_of, shown, summary_of, trials_of)

RUNGS = (1 / 8, 1 / 4, 1 / 2, 1)  # of num_steps
ATTEMPTS = 50    # draws for a trial that is new and possible
POLL_S, SAVE_S = 0.5, 5.0  # between looks at the runs; between writes of tune.json while nothing happens
END_S, LOST_S = 600.0, 10.0  # how long a run that is told to stop may take; one with an alarm
now = time.monotonic


def main():
    options, argv = parse(sys.argv[1:])
    plan = plan_of(options, argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: the runs save and stop
    with lock(plan.folder):
        state = open_state(plan)
        print(head(plan, state), flush=True)
        queue = None
        if plan.proxy:
            if not trials_of(state, "target"):
                search(plan, state, "proxy", plan.seconds / 2)
            queue = chosen_on_proxy(trials_of(state, "proxy"))
        search(plan, state, "target", plan.seconds, queue)
        finish(plan, state)


# ---------------------------------------------------------------- the question


def parse(argv):
    """Split a command line into (options of tools.tune and the recipe, settings of the script)."""
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        sys.exit()
    refuse(not argv or argv[0].startswith("-"),
           "tools.tune wants a recipe first: python -m tools.tune recipes/NAME.py --minutes 20")
    parser = Parser(prog="tools.tune", allow_abbrev=False, add_help=False)
    parser.add_argument("recipe")
    parser.add_argument("--space", default=os.path.join(HERE, "tools", "search_space.py"))
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    for name, default in {"minutes": 20.0, "name": "", "proxy": "", "trials": 0, "slots": 0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options, rest = parser.parse_known_args(argv)
    refuse(not 0 < options.minutes < math.inf, f"tools.tune: minutes = {options.minutes} must be above 0")
    refuse(min(options.trials, options.slots) < 0, "tools.tune: trials and slots must not be negative; 0: the default")
    return options, rest


def plan_of(options, argv):
    """Gather all that does not change during a search. Refuse what can be known to be wrong before a run starts."""
    import torch
    refuse(find_spec("optuna") is None, "tools.tune wants Optuna: pip install optuna==5.0.0")
    script, count = script_of(options.recipe), torch.cuda.device_count()
    module = importlib.import_module(script[:-3])
    cfg, origin = load_config(module.Config, [options.recipe, *argv])
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] if count else []
    gpus = (gpus or [str(i) for i in range(count)])[:count]
    slots = options.slots or max(1, count)
    refuse(count % slots, f"tools.tune: slots = {slots} does not divide the {count} GPUs: each run has as many")
    refuse(not cfg.eval_prompts, "tools.tune: eval_prompts = 0 measures no held-out success: give --eval_prompts 200")
    schedules = {}
    if lr_follows_num_steps(cfg):
        schedules = {name: "constant" for name in ("lr_schedule", "critic_lr_schedule")
                     if getattr(cfg, name, "constant") != "constant"}
    forced = schedules | {"eval_every": 0, "report_every": 0, "keep_checkpoints": 1, "guard": "observe"}
    space, left_out = read_space(options.space, cfg, script)
    name = options.name or f"{cfg.name}-tune"
    refuse(not re.fullmatch(r"\w[\w.+-]*", name), f"name = {name!r} must be a plain directory name")
    plan = types.SimpleNamespace(
        recipe=options.recipe, argv=argv, script=script, module=module, cfg=cfg, schedules=schedules, forced=forced,
        given={name: getattr(cfg, name) for name, where in origin.items() if where == "command line"},
        space=space, left_out=left_out, rungs=rungs_of(cfg.num_steps, getattr(cfg, "critic_warmup_steps", 0)),
        greedy=bool({"temperature", "entropy_control"} & {*space} or cfg.entropy_control == "temperature"
                    or not cfg.eval_samples), gpus=gpus, slots=slots,
        processes=count // slots if count else 1, sampler=options.sampler, proxy=options.proxy, name=name,
        folder=os.path.join("out", name), seconds=60 * options.minutes, max_trials=options.trials or math.inf)
    refuse(reason := refusal(plan, {}), reason)
    return plan


def rungs_of(num_steps, warmup_steps=0):
    """
    List the steps at which trials are compared: at least 2, one of them of the policy. A rung of more than 1 / 1.8 of
    the next one is left out: another start would cost more than it could save.
    """
    found = [num_steps]
    for share in sorted(RUNGS, reverse=True):
        steps = max(2, warmup_steps + 1, math.ceil(share * num_steps))
        found += [steps] * (1.8 * steps <= found[-1])
    return found[::-1]


def refusal(plan, settings):
    """Say why the script would refuse these settings, "" if it would not."""
    trial = {"run": plan.name, "phase": "target", "settings": settings}
    try:
        cfg, _ = load_config(plan.module.Config, argv_of(plan, trial, plan.rungs[0]))
        plan.module.check_config(cfg, plan.processes)
    except ConfigError as error:
        return error.reason
    return "a schedule that follows num_steps cannot go on at the next rung" * lr_follows_num_steps(cfg)


def lock(folder):
    """Hold out/NAME/ for this process, as long as the file that is returned is open."""
    os.makedirs(os.path.join(folder, "logs"), exist_ok=True)
    held = open(os.path.join(folder, "lock"), "w")  # noqa: SIM115
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{folder} is in use by another tools.tune: wait for it, or give this one --name") from error
    return held


def open_state(plan):
    """Return what is known of this search: the command, the seconds spent, the trials. Refuse another command's."""
    command = as_json(plan.cfg) | {"script": plan.script, "sampler": plan.sampler, "proxy": plan.proxy,
                                   "GPUs of a run": plan.processes if plan.gpus else 0}
    command = json.loads(json.dumps(command | {f"space: {name}": line for name, line in plan.space.items()}))
    state = read_json(os.path.join(plan.folder, "tune.json")) or {"command": command, "seconds": 0.0, "trials": []}
    there = state["command"]
    differs = [f"{name}: {there.get(name)!r} there, {command.get(name)!r} now" for name in {**there, **command}
               if there.get(name) != command.get(name)]
    refuse(differs, f"{plan.folder} holds the search of another command ({'; '.join(differs)}): give this one another "
           f"--name, or rm -r {plan.folder} {plan.folder}-[pt][0-9]*")
    return state


def save(plan, state):
    write_atomic(os.path.join(plan.folder, "tune.json"), json.dumps(state, indent=1))


# ---------------------------------------------------------------- Optuna: what to try, who goes on


def told(plan, trials):
    """Tell a new study all of these trials. Return (study, whether its pruner ends the last trial at its last rung)."""
    import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)  # it promotes at 1, 2, 4, 8
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    loses, states = False, optuna.trial.TrialState
    for trial in trials:
        study.enqueue_trial(trial["drawn"])
        live = study.ask(distributions(plan.space))
        tie = 1e-9 * stable_seed(trial["run"]) / 2**63  # of equals, say at 0, half shall go on: the pruner takes all
        for rung, score in enumerate([] if is_broken(trial) else trial["scores"]):  # what broke competes with none,
            live.report(score + tie, 2**rung)                    # and without a report it is the worst to the sampler
            loses = live.should_prune()
        if trial["end"] == "finished":
            study.tell(live, trial["scores"][-1], states.COMPLETE)
        elif trial["end"]:
            study.tell(live, state=states.PRUNED)
    return study, loses


def draw(plan, trials):
    """Return (drawn, settings) of the next trial, new and possible; None if none was found. Trial 0 is the recipe."""
    from optuna.samplers import RandomSampler, TPESampler
    if not trials:
        return own_draw(plan.space, plan.cfg), {}
    study, _ = told(plan, trials)
    for attempt in range(ATTEMPTS):  # the seed is of the question, not of the process: after a restart it is the same
        seed = stable_seed("tune", plan.cfg.seed, len(trials), attempt) % 2**32
        study.sampler = (TPESampler if plan.sampler == "tpe" else RandomSampler)(seed=seed)
        drawn = study.ask(distributions(plan.space)).params
        settings = settings_of(plan.space, drawn, plan.cfg)
        if settings not in [trial["settings"] for trial in trials] and not refusal(plan, settings):
            return drawn, settings
    return print(f"no new settings in {ATTEMPTS} draws: nothing more is started", flush=True)


# ---------------------------------------------------------------- a run


def argv_of(plan, trial, num_steps):
    """Return the arguments of a trial's run up to a step: the recipe, the user's, then the trial's, which win."""
    values = plan.forced | trial["settings"] | ({"model": plan.proxy} if trial["phase"] == "proxy" else {})
    values |= {"name": trial["run"], "num_steps": num_steps}
    return [plan.recipe, *plan.argv, *(word for name, value in values.items()
                                       for word in (f"--{name}", value if type(value) is str else repr(value)))]


def command_of(plan, trial, num_steps):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.processes}",
                f"--shutdown-timeout={END_S:.0f}"]  # how long it lets the runs end their step
    return [sys.executable, *torchrun * (plan.processes > 1), os.path.join(HERE, plan.script),
            *argv_of(plan, trial, num_steps)]


def log_of(plan, trial):
    return os.path.join(plan.folder, "logs", f"{trial['run']}.txt")


def start(plan, trial, slot):
    """Start the next rung of a trial in a slot. If this process is killed, the kernel sends the run a SIGTERM."""
    environment, prctl, pr_set_pdeathsig = dict(os.environ), ctypes.CDLL(None).prctl, 1
    if plan.gpus:
        mine = plan.gpus[slot * plan.processes:(slot + 1) * plan.processes]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    elif plan.slots > 1:
        environment["OMP_NUM_THREADS"] = "1"
    with open(log_of(plan, trial), "a") as log:
        process = subprocess.Popen(
            command_of(plan, trial, plan.rungs[len(trial["scores"])]), stdout=log, stderr=subprocess.STDOUT,
            env=environment, process_group=0,  # Ctrl-C is for this process alone
            preexec_fn=lambda: prctl(pr_set_pdeathsig, signal.SIGTERM))
    return types.SimpleNamespace(trial=trial, slot=slot, process=process, lost_at=None, signals=[])


def watch(job):
    """End a run that has an alarm: SIGTERM, at the next look a second one for "at once", then kill its group."""
    if job.lost_at is None and alarm_of(job.trial["run"]):
        job.lost_at, job.signals = now(), [signal.SIGTERM] * 2
    if job.signals:
        job.process.send_signal(job.signals.pop())
    elif job.lost_at is not None and now() > job.lost_at + LOST_S:
        os.killpg(job.process.pid, signal.SIGKILL)


def stop(jobs):
    """Let runs end their step and save; kill those that do not."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        try:
            job.process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


def wait_until_free(trial):
    """Wait for a run that outlived a killed tuner: it holds its lock until it has ended its step."""
    file, until = os.path.join("out", trial["run"], "lock"), now() + END_S
    while os.path.exists(file):
        with open(file) as held:
            try:
                return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refuse(now() > until, f"out/{trial['run']} is in use by {held.read()}: stop it")
        time.sleep(POLL_S)


# ---------------------------------------------------------------- the search


def search(plan, state, phase, until, queue=None):
    """Run trials until state["seconds"] reaches `until`, or none is left to run."""
    jobs, last, saved = [], now(), now()
    for trial in trials_of(state, phase):
        if not trial["end"]:  # the tuner was stopped: what the run has finished counts
            wait_until_free(trial)
            settle(plan, state, trial, stopped=True)
    try:
        while True:
            before, last = last, now()
            state["seconds"] += last - before
            for job in list(jobs):
                job.trial["seconds"][-1] += last - before
                if job.process.poll() is None:
                    watch(job)
                else:
                    jobs.remove(job)
                    settle(plan, state, job.trial, job.process.returncode)
            first = [trial["end"] for trial in trials_of(state, phase)[:3]]
            if len(first) == 3 and all(end.startswith("crashed") for end in first):
                raise ConfigError(f"the first three trials {first[-1]}: mend the recipe, then rm -r {plan.folder} "
                                  f"{plan.folder}-[pt][0-9]*")
            if state["seconds"] >= until:
                break
            while len(jobs) < plan.slots and (trial := next_trial(plan, state, phase, until, queue, jobs)):
                jobs.append(start(plan, trial, min(set(range(plan.slots)) - {job.slot for job in jobs})))
            if not jobs:
                break
            if last > saved + SAVE_S:
                save(plan, state)
                saved = last
            time.sleep(POLL_S)
    finally:
        stop(jobs)
        state["seconds"] += now() - last
        for job in jobs:
            settle(plan, state, job.trial, stopped=True)
        save(plan, state)


def next_trial(plan, state, phase, until, queue, jobs):
    """Return the trial to run next, if it seems to fit into the time: one that waits, or a new one if none does."""
    trials, busy, left = trials_of(state, phase), [job.trial["run"] for job in jobs], until - state["seconds"]
    waiting = [trial for trial in trials if not trial["end"] and trial["run"] not in busy]
    if waiting:  # if none fits, a new one would get nowhere either
        return next((trial for trial in waiting if seconds_wanted(plan, trials, trial) <= left), None)
    most = plan.max_trials if queue is None else len(queue)
    if len(trials) >= most or seconds_wanted(plan, trials) > left:
        return None
    if (found := draw(plan, trials) if queue is None else queue[len(trials)]) is None:
        return None
    trial = {"run": f"{plan.name}-{phase[0]}{len(trials):03d}", "phase": phase, "drawn": found[0], "settings": found[1],
             "means": [], "scores": [], "seconds": [0.0], "end": ""}
    state["trials"].append(trial)
    save(plan, state)  # before its run starts: no other trial may get the name of a run that is there
    return trial


def seconds_wanted(plan, trials, trial=None):
    """
    Estimate the seconds of a trial's next rung: of a first one the median of all; later what its last one took, and the
    seconds of a step of its own for each step that the next one has more.
    """
    if trial is None or not trial["scores"]:
        return statistics.median([one["seconds"][0] for one in trials if one["scores"]] or [0.0])
    rung, ends, file = len(trial["scores"]), [0, *plan.rungs], os.path.join("out", trial["run"], "metrics.jsonl")
    rows = [row for _, row in read_rows(file) if ends[rung - 1] < row.get("step", 0) <= ends[rung]]
    pace = statistics.mean([row["seconds_step"] - row["seconds_eval"] for row in rows] or [0.0])
    last = max(trial["seconds"][rung - 1], sum(row["seconds_step"] for row in rows))  # a killed tuner counted too few
    return last + pace * (ends[rung + 1] - 2 * ends[rung] + ends[rung - 1])


def settle(plan, state, trial, code=0, stopped=False):
    """Judge a run that has ended: an alarm, a crash, or a score with which it goes on or not. stopped: by a tuner."""
    steps, alarm = plan.rungs[len(trial["scores"])], alarm_of(trial["run"])
    shares = held_out(trial["run"], steps, plan.greedy)
    if alarm:
        trial["end"] = alarm
    elif shares and (stopped or not code):
        trial["means"].append(statistics.mean(shares))
        trial["scores"].append(score_of(shares))
        others = [one for one in trials_of(state, trial["phase"]) if one is not trial]
        loses = told(plan, [*others, trial])[1]
        trial["end"] = "finished" if steps == plan.rungs[-1] else f"lost at step {steps}" if loses else ""
        trial["seconds"] += [0.0] * (not trial["end"])  # of the next rung
    elif not stopped:
        trial["end"] = f"crashed: {last_line(log_of(plan, trial)) or f'exit code {code}'}"
    else:
        return  # it goes on another time
    save(plan, state)
    measured = f"  {said(trial)}" if shares and not is_broken(trial) else ""
    print(f"{trial['run']}  step {steps:3}/{plan.rungs[-1]}{measured}  {trial['end'] or 'goes on'}  "
          f"({shown(trial['settings'])})", flush=True)
    drop_checkpoints(trials_of(state, trial["phase"]))


def finish(plan, state):
    """Write the table, and the best trial as a recipe."""
    best, text = best_first(trials_of(state, "target"))[:1], summary_of(plan, state)
    if best:
        write_atomic(os.path.join(plan.folder, "best.py"), recipe_of(plan, best[0], trials_of(state, "target")[0]))
    write_atomic(os.path.join(plan.folder, "trials.md"), f"# {plan.name}\n\n{text}\n")
    print(f"\n{text}", flush=True)
    refuse(not best, f"{plan.name}: no trial has a score: give it more --minutes, or look into {plan.folder}/logs")


if __name__ == "__main__":
    from onebox.crash import entry

    entry(main)
