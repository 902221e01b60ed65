"""Write docs/stability.md from page.md and the runs of the zoo: see zoo.py --page."""

import os
import platform

from experiments import harness
from experiments.collapse import zoo


def write_page(kinds, seeds, path="docs/stability.md"):
    """Write the page and its pictures."""
    from experiments.collapse import false_alarms

    recipe = harness.settings_of(zoo.HEALTHY)
    about = (f"Countdown with four numbers, a model of 0.9 million parameters, {recipe['num_steps']} steps of "
             f"{recipe['prompts_per_step']} prompts x {recipe['group_size']} samples, lr {recipe['lr']:g}, on "
             f"{os.cpu_count()} cores ({platform.machine()}).")
    folder = path.removesuffix(".md")
    with open(os.path.join(harness.ROOT, "experiments", "collapse", "page.md"), encoding="utf-8") as f:
        text = f.read().replace("{about}", about)
    text += "\n" + zoo.table(kinds, seeds) + "\n\n" + false_alarms.paragraph() + "\n"
    text += "\n".join(zoo.section(kind, seeds, folder) for kind in kinds)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    print(f"{path}: {len(kinds)} kinds")
