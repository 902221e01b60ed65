"""
What the guard says, in words; and what it would have said of runs that are there.

    python -m tools.alarms out/demo out/demo-ppo
"""

import os
import sys
from dataclasses import asdict

if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) not in sys.path:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.guard import look, new_state
from tools.report.read import read_run


VERDICTS = {"reward hack": "what it finds right is not so on held-out problems: no setting mends it: read samples/",
            "mismatch": "engine and trainer disagree, and importance weights are on: look at the weight sync",
            "length cap": "responses do not fit: raise max_response_len",
            "starved": "groups agree, most of them wrong: take easier prompts, a larger group or dynamic_sampling"}


def in_words(event, settings):
    """Say in one line what is seen, since when, the numbers, and what is or would be changed."""
    numbers = ", ".join(f"{name} {a:.3g} -> {b:.3g}" for name, (a, b) in event["numbers"].items() if b is not None)
    change = ", ".join(f"{name} {settings[name]} -> {value:.3g}" if isinstance(value, float) else
                       f"{name} {settings[name]} -> {value}" for name, value in event["settings"].items())
    back = f"the weights of step {event['to_step'] or 0}"
    what = {"stop": f"stop with {back}; {VERDICTS.get(event['saw'], 'no setting within bounds is left to try')}",
            "roll back": f"go back to {back} with {change}", "change": f"go on with {change}",
            "none": VERDICTS.get(event["saw"], "no setting within bounds is left to try")}[event["action"]]
    since = f" since step {event['since']}" if event["since"] < event["step"] else ""
    return f"step {event['step']}: {event['saw']}{since} ({numbers}): {what}"


def alarms(rows, settings):
    """Return the events that an observing guard has for the rows of a run."""
    state, events = new_state(), []
    for row in rows:
        # `changed`: by controllers and by an acting guard
        now = settings | (row.get("changed") or {}) | {"guard": "observe"}
        state, event = look(state, row, now)
        events += [event | {"line": in_words(event, now)}] if event else []
    return events


def alarms_of(run):
    """Return the events for a run of read_run, None for one without rollouts. Settings it lacks had their defaults."""
    from train_grpo import Config

    settings = run["config"].get("settings") or {}
    return alarms(run["rows"], asdict(Config()) | settings) if "prompts_per_step" in settings else None


def main(folders):
    if not folders or folders[0].startswith("-"):
        raise SystemExit(__doc__)
    for folder in folders:
        run = read_run(folder)
        if (events := alarms_of(run)) is None:
            print(f"{folder}: no run of train_grpo.py or train_ppo.py")
            continue
        print(f"{folder}: {sum(row['step'] > 0 for row in run['rows'])} steps, {len(events)} alarms")
        for event in events:
            print("  " + event["line"])


if __name__ == "__main__":
    main(sys.argv[1:])
