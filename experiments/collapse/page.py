"""Write docs/stability.md from the runs of the zoo: see zoo.py --page."""

import os
import platform

from experiments import harness
from experiments.collapse import zoo

HEAD = """# When a run goes wrong

Ways to kill a GRPO run, each in two minutes on a laptop; what each looks like, which column of `metrics.jsonl` shows it
first, what to do; and a guard that notices, names and mends what a setting can mend.

```
guard = "observe"     # the default: a line in log.txt and guard.jsonl, a mark in the report's curves; changes nothing
guard = "act"         # change one setting, go back to the last good weights, or stop with a verdict
guard = "off"
python -m tools.alarms out/demo                 # what the guard would have said of a run that is there
python -m experiments.collapse.zoo too_fast     # watch one
```

**How it sees.** Nine signals, each against its own past: median and MAD of the last 20 steps, cumulative sums in both
directions. An unusual signal alone is no alarm: in a good run entropy falls and length grows. An alarm needs harm: the
reward of three steps lies further below its best level than chance explains, held-out success fell by more than 2.6
standard errors, or there is nothing to learn from. The pattern of the unusual signals gives the name.

**What it does** (`guard = "act"`), at most three roll-backs a run, one change at a time:

| named | pattern | first that applies |
|---|---|---|
| gibberish | reward falls, entropy rises | entropy bonus off; temperature above 1 to 1; clip to 0.2; lr / 5 |
| off-policy | reward falls; several updates, a wide clip or `approx_kl` up | clip 0.2; one update; one epoch; lr / 5 |
| entropy gone | reward falls, entropy falls, groups agree | temperature below 0.9 to 1; clip_high 0.28; lr / 5 |
| divergence | reward or held-out success falls | entropy bonus off; clip to 0.2; KL coefficient / 10; lr / 5 |
| held back | no rise in a quarter of the run, and a setting far out | KL coefficient / 10; temperature to 1 |
| mismatch | `mismatch_mean` up, or above 0.02 | importance weights on; else a verdict |
| reward hack | held-out success falls, the reward does not | stop: no setting mends a reward |
| length cap | truncation rises above 25 %, the reward stands | a verdict: raise max_response_len |
| starved | nine groups of ten agree for 5 steps, and most are wrong | temperature below 0.9 to 1; else a verdict |

Where weights are harmed it first goes back to the last evaluated step whose held-out success was not worse than the
best; the prompts between are not drawn again. With `act` there is a checkpoint at every evaluation, and one of step 0.
A run that it stops exports those weights and ends with exit code 6. lr is divided by 5 four times at most. Steps go on
counting, so a run with roll-backs has the same length and its curve shows the collapse. Decisions follow from the rows
alone: a run that is killed and started again decides the same, to the bit.

**Controllers** need no alarm. `entropy_target = 0.2` adapts the entropy bonus (Skywork-OR1's rule: 0.005 up below the
target, down above it, counted only below), or with `entropy_control = "temperature"` the temperature of sampling, by
2 % a step within a quarter of the recipe's. Entropy is measured at the sampling temperature, so the latter holds the
variety of the samples, not of the policy. `kl_target` of `train_ppo.py` adapts the KL coefficient (Ziegler et al.).

**What it cannot.** A fall that starts before the first three steps has no past to compare with. What looks healthy is
not seen: a limit that teaches to be short, a baseline that is wrong from the first step. A hole in the reward is seen
only if the held-out reward does not have it. Thresholds were set on pilots of this small world (seed 100) and on the
logs of other healthy runs; no run of a large model has tested them.

## The zoo

{about} Three seeds each; success at the end is measured alike for all: 200 held-out problems,
two samples at temperature 1, at most 160 tokens. "Observe" changes nothing: it is the run without a guard. Onset,
written down before the seeds ran, is the step from which on the reward (of `hole` held-out success) stays below two
thirds of the healthy runs'. Intervals are Student's, paired by seed. Logs:
[results/](../results/2026-11-28_stability).

"""


def write_page(kinds, seeds, path="docs/stability.md"):
    """Write the page and its pictures."""
    from experiments.collapse import false_alarms

    recipe = harness.settings_of(zoo.HEALTHY)
    about = (f"Countdown with four numbers, a model of 0.9 million parameters, {recipe['num_steps']} steps of "
             f"{recipe['prompts_per_step']} prompts x {recipe['group_size']} samples, lr {recipe['lr']:g}, on "
             f"{os.cpu_count()} cores ({platform.machine()}).")
    folder = path.removesuffix(".md")
    text = HEAD.format(about=about) + zoo.table(kinds, seeds) + "\n\n" + false_alarms.paragraph() + "\n"
    text += "\n".join(zoo.section(kind, seeds, folder) for kind in kinds)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    print(f"{path}: {len(kinds)} kinds")
