"""
Between two steps: controllers and the guard decide with which settings, and from which weights, a run goes on.

What they changed is in rundir.Progress. They see logged rows alone: a step done again after a kill decides the same.
"""

import json
from dataclasses import asdict, replace

from onebox import checkpoint
from onebox.distributed import gather
from onebox.files import has_tools

COEF_STEP = 0.005          # of entropy_coef, a step; TRL's default
TEMPERATURE_STEP = 0.02    # of temperature, a step at most, as a share
TEMPERATURE_RANGE = 0.25   # how far from the recipe's temperature, as a share


def adapt_entropy_coef(coef, entropy, target):
    """Raise the coefficient by COEF_STEP below the target, lower it above, in 0 ... 1. Skywork-OR1, 2505.22312."""
    return min(1.0, max(0.0, coef + (COEF_STEP if entropy < target else -COEF_STEP)))


def adapt_temperature(temperature, entropy, target, start):
    """
    Raise the temperature below the target, lower it above, by at most TEMPERATURE_STEP, near the recipe's own (start).

    Entropy is measured at this temperature: it holds the variety of the samples, not that of the policy at 1.
    """
    error = max(-1.0, min(1.0, (target - entropy) / target))
    low, high = start * (1 - TEMPERATURE_RANGE), min(2.0, start * (1 + TEMPERATURE_RANGE))
    return min(high, max(low, temperature * (1 + TEMPERATURE_STEP * error)))


def current_settings(cfg, progress):
    return replace(cfg, **progress.changed | {"kl_coef": progress.kl_coef})


def next_settings(run, progress, engine):
    """
    Let controllers and the guard look at the row of progress.step, unless they have. Return the settings of the next
    step. Collective. Call it before the first step too: a kill may have come between the row of a step and this.
    """
    row = gather([run.logged] if run.main else [])[0]
    if row and progress.steered < row["step"] == progress.step:
        progress.steered = progress.step
        control_entropy(run.cfg, progress, row.get("entropy"))
        if run.cfg.guard != "off" and has_tools():
            ask_guard(run, progress, row, engine)
    if run.cfg.guard == "act" and run.saved_step < 0:
        run.save(progress)  # the start is what a run that goes wrong at once goes back to
    return current_settings(run.cfg, progress)


def control_entropy(cfg, progress, entropy):
    """Adapt what cfg.entropy_control names to the entropy of a step. The bonus counts only below the target."""
    target = progress.changed.get("entropy_target", cfg.entropy_target)
    if not target or entropy is None:
        return
    if cfg.entropy_control == "temperature":
        now = progress.changed.get("temperature", cfg.temperature)
        progress.changed["temperature"] = adapt_temperature(now, entropy, target, cfg.temperature)
    else:
        coef = cfg.entropy_coef if progress.entropy_coef is None else progress.entropy_coef
        progress.entropy_coef = adapt_entropy_coef(coef, entropy, target)
        progress.changed["entropy_coef"] = progress.entropy_coef if entropy <= target else 0.0


def ask_guard(run, progress, row, engine):
    """Ask tools/guard.py about a row, log what it sees, and under guard = "act" do what it says."""
    event = None
    if run.main:
        from tools.alarms import in_words
        from tools.guard import look, new_state
        settings = asdict(current_settings(run.cfg, progress))
        progress.guard, event = look(progress.guard or new_state(), row, settings)
        event = event and event | {"line": in_words(event, settings)}
    event = gather([event] if run.main else [])[0]
    if event is None:
        return
    event["acted"] = run.cfg.guard == "act" and event["action"] != "none"
    note = '  (guard = "act" would)' * (event["action"] != "none" and not event["acted"])
    if event["acted"]:
        if event["action"] != "change":
            asked, event["to_step"] = event["to_step"], roll_back(run, engine, event["to_step"])
            note = "" if asked == event["to_step"] else f"  (with weights of step {event['to_step']}, which are there)"
            note += "  (no step is left: these are exported)" * (progress.step == run.cfg.num_steps)
        progress.verdict = event["line"] if event["action"] == "stop" else ""
        progress.kl_coef = event["settings"].get("kl_coef", progress.kl_coef)
        progress.changed |= event["settings"]
    if run.main:
        run.append("guard.jsonl", json.dumps(event) + "\n")
    run.say(f"guard: {event['line']}{note}")


def roll_back(run, engine, to_step):
    """
    Load weights and optimizers of the newest sound checkpoint up to a step (None: none is known to be good). Return its
    step; where there is none, the present one: the run keeps its weights. Collective.
    """
    found = [] if to_step is None else [step for step in checkpoint.saved_steps(run.path) if step <= to_step]
    for step in reversed(gather(found if run.main else [])):
        engine.sleep()
        engine.version = None  # whatever it holds, it is no longer the policy
        try:
            if problem := checkpoint.agree(checkpoint.attempt(checkpoint.damage, run.path, step)):
                raise checkpoint.Damaged(problem)
            checkpoint.load_state(run.path, step, run.models)
        except checkpoint.Damaged as error:
            checkpoint.set_aside(run.path, step, error, run.say)
        else:
            return step
    return run.progress.step
