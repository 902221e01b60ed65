"""Write docs/stability.md from page.md and the runs of the zoo: see zoo.py --page."""

import os
import platform

from experiments import harness
from experiments.collapse import zoo
from tools.report.pictures import COLORS


def overview(kinds, seeds, path):
    """Draw success at the end of every kind: healthy, observed, acted on; a point a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    found = [zoo.judge(kind, seeds) for kind in kinds]
    healthy = [100 * value for value in found[0]["healthy"]]
    axis.axhspan(min(healthy), max(healthy), color=COLORS[2], alpha=0.2, linewidth=0, label="healthy runs")
    for offset, name, color, label in ((-0.15, "off", 3, "without the guard"), (0.15, "act", 0, "guard = \"act\"")):
        for i, one in enumerate(found):
            values = [100 * value for value in one[name]]
            axis.bar(i + offset, sum(values) / len(values), 0.28, color=COLORS[color], alpha=0.75,
                     label=label if not i else None)
            axis.plot([i + offset] * len(values), values, ".", color="black", markersize=4)
    axis.set_xticks(range(len(kinds)), [kind.name.replace("_", "\n") for kind in kinds], fontsize=8)
    axis.set_ylabel("held-out success at the end, %", fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="upper right", ncols=3)
    axis.set_ylim(0, max(healthy) * 1.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    overview(kinds, seeds, os.path.join(folder, "overview.png"))
    text += f"\n![held-out success at the end]({os.path.basename(folder)}/overview.png)\n\n"
    text += zoo.table(kinds, seeds) + "\n\n" + false_alarms.paragraph() + "\n"
    text += "\n".join(zoo.section(kind, seeds, folder) for kind in kinds)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    print(f"{path}: {len(kinds)} kinds")
