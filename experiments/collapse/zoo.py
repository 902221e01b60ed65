"""
Ways to kill a run, and what the guard does about each: three seeds with guard = "observe", three with "act".

    python -m experiments.collapse.zoo            # runs what is missing, two at a time, then prints the table
    python -m experiments.collapse.zoo too_fast   # these kinds alone
    python -m experiments.collapse.zoo --page     # the table, and docs/stability.md with its pictures, from runs there

Success is measured at the end, of all runs alike: 400 problems that no run has seen, nor its guard, a sample each at
temperature 1, at most 160 tokens, by eval.py on the exported model. Onset is the first step from which on the mean
training reward of 3 steps stays below two thirds of what the healthy runs have at that step, to the end of the run; of
`hole`, whose reward lies, the same of held-out success. Onset was written down before seeds 0 to 2 were run; pilots had
seed 100.
"""

import concurrent.futures
import dataclasses
import functools
import os
import subprocess
import sys

from experiments import harness, world
from experiments.harness import ROOT, Run, arm, folder_of, interval, mean, run_all, seeds_wanted
from experiments.survey import panels
from onebox.files import read_json, read_rows
from tools import alarms
from tools.report.pictures import marks_of

UNSEEN = "out/world/data/countdown_42_unseen.jsonl"
FINAL = (f"--data countdown:42 --data_path {UNSEEN} --template {{prompt_text}} --reward tinyzero_countdown --limit 400 "
         "--samples 1 --greedy False --temperature 1 --max_prompt_len 64 --max_response_len 160").split()
CLOSE = 5.0  # points below the healthy runs that still count as saved


@dataclasses.dataclass(frozen=True)
class Kind:
    name: str       # of the recipe
    title: str
    shown: tuple    # columns of its picture
    looks: str      # what the failure looks like, and which column shows it first
    do: str         # what to do

    @property
    def off(self):
        return arm(f"collapse/{self.name}")

    @property
    def act(self):
        return arm(f"collapse/{self.name}", guard="act")


HEALTHY = arm("collapse/healthy")
KINDS = [
    Kind("too_fast", "The learning rate is too high", ("reward", "truncated", "format_error"),
         "Dead within two steps: no response has a format any more, some run to the limit, others stop at once. The "
         "reward shows it first; then all groups agree, and the gradient is 0: nothing moves any more.",
         "Lower lr, and begin again from weights of before. A run that is dead does not come back by itself."),
    Kind("no_clip", "Many updates, no clip", ("reward", "approx_kl", "response_len"),
         "Fine for a few steps, then the reward falls off a cliff. `approx_kl`, the distance that the policy goes "
         "within a step, is orders of magnitude above its first values before that.",
         "Clip at 0.2 (0.28 above), or make fewer updates on a batch."),
    Kind("entropy_bonus", "An entropy bonus runs away", ("reward", "entropy", "truncated"),
         "Entropy climbs a few percent a step, while the reward still stands; then faster and faster to that of a "
         "uniform choice among all ids, and every response has the full length. `entropy` shows it first.",
         "No bonus, or a controller: `entropy_target`."),
    Kind("strong_kl", "The KL penalty is far too strong", ("reward", "kl", "grad_norm"),
         "Nothing alarming in any column: the policy is tied to its start, and nothing is learned. `kl` stays near "
         "0, `grad_norm` has spikes of the k3 estimator.",
         "A coefficient of 0.001 to 0.04, or none."),
    Kind("too_hot", "Too hot, with a long limit", ("reward", "entropy", "format_error"),
         "It refuses to die here: responses have tokens from the tail, success starts at half, and the first thing "
         "that is learned is to have less entropy. It only learns more slowly. The survey saw a collapse of this shape "
         "near step 140, with a vocabulary of 150,000.",
         "Temperature 1, at which the model was trained."),
    Kind("too_cold", "No entropy is left", ("reward", "entropy", "zero_variance_groups"),
         "All responses to a prompt are the same: groups agree, and there is nothing to compare. "
         "`zero_variance_groups` is high from the first step on, `entropy` low. The guard speaks only where nine "
         "groups of ten agree for five steps: one seed of three stays below that.",
         "Temperature 1."),
    Kind("stale_engine", "The engine has old weights", ("reward", "mismatch_mean", "zero_variance_groups"),
         "`mismatch_mean` is 100,000 times what it should be, in saw teeth: it falls to 0 whenever the weights "
         "arrive. One seed of three falls apart, and is stopped; two learn in spite of it, but less. (The canary, "
         "`mismatch_bound`, ends such a run in step 2; here it was put off.)",
         "Mend the weight sync: no setting does."),
    Kind("hole", "A reward with a hole", ("reward", "eval_correct", "response_len"),
         "The reward is nearly full from the first steps on: the model has found that near is good enough. Held-out "
         "success, measured with the right reward, falls a little and never rises. No training column shows it. The "
         "guard names it, and as nothing is lost yet it changes nothing.",
         "Read samples/, and mend the reward."),
    Kind("short_cap", "The limit cuts what has to be learned", ("reward", "truncated", "response_len"),
         "A third of the responses is cut off at the start. Then the policy learns to be short and to give up: "
         "truncation goes away, and success stays below what it could be. It looks like a healthy run.",
         "Look at `truncated` in the first steps; raise max_response_len."),
    Kind("small_format", "Division by the std, with a small format part", ("reward", "format_error", "grad_norm"),
         "It refuses to die, too. Where all answers of a group are wrong, the 0.1 of the format counts as much as a "
         "right answer elsewhere. Here that does no harm: most groups have a right answer.",
         "adv_std = False where most prompts are too hard."),
]


def final(arm, seed):
    """Return held-out success at the end of a run, measured once by eval.py."""
    return read_json(os.path.join(folder_of(arm, seed), "final", "results.json"))["rows"][0]["avg_at_k"]


def measure(arms, seeds):
    """Evaluate the exported models of complete runs that have not been, two at a time."""
    def evaluate(folder):
        command = [sys.executable, os.path.join(ROOT, "eval.py"), "--model", f"{folder}/model", *FINAL,
                   "--output", f"{folder}/final"]
        with open(f"{folder}/final.txt", "w") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT})
        print(f"measured {folder}", flush=True)

    world.write_lines(UNSEEN, world.rows_of("countdown", "42", 600, "test")[200:])  # the first 200 are held out
    folders = [folder_of(one, seed) for one in arms for seed in seeds]
    missing = [folder for folder in folders if not os.path.exists(f"{folder}/final/results.json")]
    with concurrent.futures.ThreadPoolExecutor(harness.SLOTS) as pool:
        list(pool.map(evaluate, missing))


@functools.cache  # the page asks for them again and again
def alarms_of(arm, seed):
    """Return the events of an acting guard, from guard.jsonl; of an observing one, which follow from the rows."""
    if dict(arm.settings).get("guard") != "act":
        return alarms.alarms_of(Run(arm, seed).record)
    file = os.path.join(folder_of(arm, seed), "guard.jsonl")
    return [row for _, row in read_rows(file)] if os.path.exists(file) else []


def would_act(kind, seeds):
    """Tell whether an acting guard changes any of these runs: if not, they are the observed ones, to the bit."""
    return any(event["action"] != "none" for seed in seeds for event in alarms_of(kind.off, seed))


def by_step(run, column):
    """Return {step: value} of a column; of a training column the mean of 3 steps, ending there."""
    rows = {row["step"]: row[column] for row in run.rows if row.get(column) is not None and row["step"] > 0}
    if column.startswith("eval"):
        return rows
    return {step: mean([rows[s] for s in range(step - 2, step + 1) if s in rows]) for step in rows}


def onset(run, healthy, column):
    """Return the first step from which on a column stays below two thirds of the healthy runs', or None."""
    own, others = by_step(run, column), [by_step(other, column) for other in healthy]
    first = None
    for step in sorted(own):
        level = mean([other[step] for other in others if step in other])
        below = own[step] < 2 / 3 * level
        first = (step if first is None else first) if below else None
    return first


@functools.cache
def judge(kind, seeds):
    """Return all numbers of a kind as a dict."""
    healthy, act = [Run(HEALTHY, seed) for seed in seeds], kind.act if would_act(kind, seeds) else kind.off
    column = "eval_correct" if kind.name == "hole" else "reward"
    found = {"healthy": [final(HEALTHY, s) for s in seeds], "off": [final(kind.off, s) for s in seeds],
             "act": [final(act, s) for s in seeds],
             "onset": [onset(Run(kind.off, s), healthy, column) for s in seeds],
             "alarm": [next((e["step"] for e in alarms_of(kind.off, s)), None) for s in seeds],
             "saw": [next((e["saw"] for e in alarms_of(kind.off, s)), "nothing") for s in seeds],
             "actions": [[e for e in alarms_of(act, s) if e.get("acted")] for s in seeds]}
    found["act_less_healthy"] = [100 * (a - b) for a, b in zip(found["act"], found["healthy"], strict=True)]
    found["delays"] = [a - o for a, o in zip(found["alarm"], found["onset"], strict=True) if None not in (a, o)]
    found["missed"] = sum(a is None and o is not None for a, o in zip(found["alarm"], found["onset"], strict=True))
    return found


def percents(values):
    return ", ".join(f"{100 * v:.0f}" for v in values)


def deeds(events):
    """Write what the guard did in one run."""
    words = [f"step {e['step']}, " + (f"stop with the weights of {e['to_step']}" if e["action"] == "stop" else
             " and ".join(f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in e["settings"].items())
             + (f", weights of {e['to_step']}" if e["action"] == "roll back" else "")) for e in events]
    return "; ".join(words) or "nothing"


def table(kinds, seeds):
    """Write the table of all kinds in Markdown."""
    lines = ["| failure | held-out %, observe | act | act less healthy, points | onset | first alarm | called |",
             "|---|---|---|---|---|---|---|"]
    for kind in kinds:
        found = judge(kind, seeds)
        center, low, high = interval(found["act_less_healthy"])
        pairs = [", ".join("-" if v is None else str(v) for v in found[name]) for name in ("onset", "alarm")]
        lines.append(f"| [{kind.title}](#{kind.title.lower().replace(' ', '-').replace(',', '')}) | "
                     f"{percents(found['off'])} | {percents(found['act'])} | "
                     f"**{center:+.0f}** [{low:+.0f}, {high:+.0f}] | {pairs[0]} | {pairs[1]} | "
                     f"{', '.join(dict.fromkeys(found['saw']))} |")
    return "\n".join(lines)


def picture(kind, seeds, path):
    """Draw the shown columns and held-out success: healthy, observe, act, with the marks of seed 0."""
    arms = {"healthy": HEALTHY, "guard observes": kind.off}
    arms |= {"guard acts": kind.act} if would_act(kind, seeds) else {}
    runs = {name: [Run(one, seed).record for seed in seeds] for name, one in arms.items()}
    marks = marks_of({"seed 0": runs["guard acts"][:1]}) if "guard acts" in runs else ()
    panels(dict.fromkeys([*kind.shown, "eval_correct"]), runs, path, colors=(2, 3, 0), marks=marks,
           log=("mismatch_mean", "approx_kl"))


def section(kind, seeds, folder):
    """Write what the page says of one kind."""
    found, recipe = judge(kind, seeds), harness.settings_of(kind.off)
    picture(kind, seeds, os.path.join(folder, f"{kind.name}.png"))
    delays = ", ".join(f"{delay:+d}" for delay in found["delays"])
    noticed = f"; first alarm {delays} steps from onset" * bool(delays)
    lines = [f"## {kind.title}", "", " ".join(recipe["__doc__"].split()), "",
             f"**What it looks like.** {kind.looks}", "", f"**What to do.** {kind.do}", "",
             f"**Measured.** Healthy {percents(found['healthy'])} %, observed {percents(found['off'])} %, with the "
             f"guard {percents(found['act'])} % ({len(seeds)} seeds){noticed}. " +
             " ".join(f"Seed {seed}: {deeds(e)}." for seed, e in zip(seeds, found["actions"], strict=True)), ""]
    first = next((e["line"] for s in seeds for e in alarms_of(kind.off, s)), "")
    lines += ["Its first words:", "", f"    {first}", ""] if first else ["The guard never spoke.", ""]
    lines += [f"![{', '.join(kind.shown)}]({os.path.basename(folder)}/{kind.name}.png)", "",
              f"    {harness.shown_command(kind.act, 0)}", ""]
    return "\n".join(lines)


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if odd := set(words) - {kind.name for kind in KINDS}:
        raise SystemExit(f"error: no kind {odd.pop()!r}; known: {', '.join(kind.name for kind in KINDS)}")
    kinds, seeds = [kind for kind in KINDS if not words or kind.name in words], seeds_wanted()
    if world.cut():
        raise SystemExit("error: SURVEY_STEPS is for python -m experiments.survey")
    arms = [HEALTHY, *(kind.off for kind in kinds)]
    if "--page" not in sys.argv:
        failed = run_all(arms, seeds)
        acting = [kind.act for kind in kinds if would_act(kind, seeds)] if not failed else []
        if failed := failed or run_all(acting, seeds):
            raise SystemExit(f"error: {', '.join(failed)} failed; out/survey-logs/ has what each run said")
        measure(arms + acting, seeds)
    print(table(kinds, seeds))
    if "--page" in sys.argv:
        from experiments.collapse.page import write_page
        write_page(kinds, seeds)


if __name__ == "__main__":
    main()
