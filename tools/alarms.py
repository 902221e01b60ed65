"""
What the guard sees in runs that are there; changes nothing.

    python -m tools.alarms out/demo out/demo-ppo
"""

import os
import sys

if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) not in sys.path:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.guard import look, new_state
from tools.report.read import read_run


def alarms(rows, settings):
    """Return the events that an observing guard has for the rows of a run."""
    state, events = new_state(), []
    for row in rows:
        state, event = look(state, row, settings | {"guard": "observe"})
        events += [event] if event else []
    return events


def main(folders):
    from dataclasses import asdict

    from train_grpo import Config  # what a setting was before it was there: its default

    if not folders or folders[0].startswith("-"):
        raise SystemExit(__doc__)
    for folder in folders:
        run = read_run(folder)
        settings = run["config"].get("settings") or {}
        if "prompts_per_step" not in settings:
            print(f"{folder}: no run of train_grpo.py or train_ppo.py")
            continue
        events = alarms(run["rows"], asdict(Config()) | settings)
        print(f"{folder}: {sum(row['step'] > 0 for row in run['rows'])} steps, {len(events)} alarms")
        for event in events:
            print("  " + event["line"])


if __name__ == "__main__":
    main(sys.argv[1:])
