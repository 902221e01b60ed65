"""Write docs/stability.md from page.md and the runs of the zoo: see zoo.py --page."""

import os
import platform

from experiments import harness, survey, world
from experiments.collapse import zoo
from experiments.harness import mean
from onebox.files import write_atomic
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


def outcome(kinds, seeds):
    """Say in numbers what came out: who dies, who is named and how soon, who is lifted and how far."""
    found = {kind: zoo.judge(kind, seeds) for kind in kinds}
    dead = {kind: one for kind, one in found.items() if any(step is not None for step in one["onset"])}
    named = [one for one in dead.values() if any(step is not None for step in one["alarm"])]
    soon = [one for one in named if not one["missed"] and max(one["delays"]) <= 10]
    lifted = {kind: found[kind] for kind in kinds if zoo.would_act(kind, seeds)}
    close = [kind for kind, one in lifted.items() if mean(one["act_less_healthy"]) >= -zoo.CLOSE]
    before, after = (100 * mean([mean(one[name]) for one in lifted.values()]) for name in ("off", "act"))
    names = [", ".join(f"`{kind.name}`" for kind in ones) or "none" for ones in (lifted, close)]
    healthy = 100 * mean(next(iter(found.values()))["healthy"])
    return (f"**What came out.** Of {len(kinds)} kinds {len(dead)} have an onset in some seed. The guard names "
            f"{len(named)} of these, {len(soon)} of them within 10 steps of the onset in every seed. It acts in "
            f"{len(lifted)} ({names[0]}): these end at {after:.0f} % in the mean instead of {before:.0f} %, "
            f"where healthy runs have {healthy:.0f} %. At most {zoo.CLOSE:.0f} points below them: {names[1]}. "
            "All runs have equally many steps, and those that went by before the alarm are missing at the end.\n")


def write_logs(kinds, seeds, folder):
    """Write what results/ keeps: a CSV a run, every event, success at the end."""
    from experiments.collapse import false_alarms

    acting = [kind for kind in kinds if zoo.would_act(kind, seeds)]
    arms = [zoo.HEALTHY, *(kind.off for kind in kinds), *(kind.act for kind in acting)]
    for ones, of_seeds in [(arms, seeds), *(([one], of_seeds) for one, of_seeds in false_alarms.NEW)]:
        survey.write_logs(ones, of_seeds, folder, also=("approx_kl", "kl", "mismatch_mean"))
    runs = [(kind.name, seed, how, one) for kind in kinds for seed in seeds
            for how, one in [("observe", kind.off), *[("act", kind.act)] * (kind in acting)]]
    fields = ("step", "saw", "since", "action", "settings", "to_step", "line")
    world.write_lines(os.path.join(folder, "events.jsonl"), [
        {"kind": name, "seed": seed, "guard": how, **{field: event[field] for field in fields}}
        for name, seed, how, one in runs for event in zoo.alarms_of(one, seed)])
    lines = [("healthy", seed, "observe", zoo.HEALTHY) for seed in seeds] + runs
    write_atomic(os.path.join(folder, "final.csv"), "kind,guard,seed,success\n" + "".join(
        f"{name},{how},{seed},{zoo.final(one, seed)}\n" for name, seed, how, one in lines))


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
    text += f"\n{outcome(kinds, seeds)}\n"
    text += f"![held-out success at the end]({os.path.basename(folder)}/overview.png)\n\n"
    text += zoo.table(kinds, seeds) + "\n\n" + false_alarms.paragraph() + "\n"
    text += "\n".join(zoo.section(kind, seeds, folder) for kind in kinds)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    write_logs(kinds, seeds, os.path.join("out", "stability", "logs"))
    print(f"{path}: {len(kinds)} kinds")
