"""
Kill a run with SIGKILL at random moments, start the same command again each time, and compare its end with the run that
was never killed: weights, optimizer, metrics, samples, loop state. Not run by pytest; a log lies in results/.

    python tests/soak.py --kills 50 [--engine fake] [--script train_ppo.py] [--seed 0] [--log FILE]

A third of the kills falls into the start (imports, loading, the engine), a third into the steps, a third is aimed at
the save: between the first byte of tmp_step_* and the pruning after its rename. As many runs as it takes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from conftest import ROOT, save_tiny_model  # noqa: E402
from runs import GRPO, PPO, SFT, environment, everything_of, write_examples  # noqa: E402

SCRIPTS = {"train_grpo.py": GRPO, "train_ppo.py": PPO, "sft.py": [*SFT, "--name", "run"]}


def start(folder, script, args, engine):
    os.makedirs(folder, exist_ok=True)
    write_examples(folder)
    command = [os.path.join(ROOT, "tests", "fake_engine.py"), script
               ] if engine == "fake" else [os.path.join(ROOT, script)]
    with open(os.path.join(folder, "output.txt"), "a") as out:
        return subprocess.Popen([sys.executable, *command, *args],
                                cwd=folder,
                                env=environment(),
                                stdout=out,
                                stderr=out)


def wait_for(seen, process, timeout_s=120):
    """-> whether `seen()` became true before the process ended."""
    end = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end:
        if seen():
            return True
        time.sleep(0.001)
    return False


def kill_once(folder, script, args, engine, rng, start_s, steps_s):
    """Start the run and kill it. Return (aim, seconds, in a save?, what is there), or None if it was done before."""
    run = os.path.join(folder, "out", "run")
    rows, began, begin = os.path.join(run, "metrics.jsonl"), time.time(), time.monotonic()

    def changed(path):  # by this start, not by one before
        try:
            return os.stat(path).st_mtime > began
        except FileNotFoundError:
            return False

    def names(*beginnings):
        return sorted(n for n in (os.listdir(run) if os.path.isdir(run) else []) if n.startswith(beginnings))

    def saving():
        return any(changed(os.path.join(run, n)) for n in names("tmp_"))

    def wait(seconds):
        until = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > until, process)

    process, aim = start(folder, script, args, engine), rng.choice(["start", "steps", "save"])
    if aim == "start":
        wait(rng.uniform(0, 1.5 * start_s))
    if aim == "steps":
        wait_for(lambda: changed(rows), process)
        wait(rng.uniform(0, steps_s))
    if aim == "save":
        for _ in range(rng.randrange(3)):
            wait_for(saving, process)
            wait_for(lambda: not saving(), process)
        wait_for(saving, process)
        wait(rng.uniform(0, 0.02))
    process.kill()
    killed = process.wait() == -9
    return (aim, time.monotonic() - begin, saving(), names("step_", "tmp_", "model.")) if killed else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engine", choices=["real", "fake"], default="real")
    parser.add_argument("--script", choices=list(SCRIPTS), default="train_grpo.py")
    parser.add_argument("--steps", type=int, default=24, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--log")
    options = parser.parse_args()
    rng, kills, in_save, lines = random.Random(options.seed), 0, 0, []

    def say(text):
        print(text, flush=True)
        lines.append(text)
        if options.log:
            with open(options.log, "w") as f:
                f.writelines(line + "\n" for line in lines)

    say(f"soak: {options.script}, {options.engine} engine, {options.steps} steps a run, checkpoint every 2, moments of "
        f"seed {options.seed}"
        )
    with tempfile.TemporaryDirectory() as folder:
        model, run_seed = save_tiny_model(os.path.join(folder, "model")), 0
        while kills < options.kills:
            args = [
                *SCRIPTS[options.script], "--model", model, "--seed",
                str(run_seed), "--num_steps",
                str(options.steps)
            ]
            whole, broken = (os.path.join(folder, f"{name}{run_seed}") for name in ("whole", "broken"))
            begin = time.monotonic()
            process = start(whole, options.script, args, options.engine)
            wait_for(lambda: os.path.exists(os.path.join(whole, "out/run/metrics.jsonl")), process)  # noqa: B023
            start_s = time.monotonic() - begin
            assert process.wait() == 0, open(os.path.join(whole, "output.txt")).read()[-3000:]
            steps_s = time.monotonic() - begin - start_s
            say(f"run of seed {run_seed}, never killed: {start_s:.1f} s to the first row, {steps_s:.1f} s of steps")
            while kills < options.kills:
                found = kill_once(broken, options.script, args, options.engine, rng, start_s, steps_s / 3)
                if found is None:
                    break
                kills += 1
                aim, seconds, saving, names = found
                in_save += saving
                say(f"kill {kills:3d}  aimed at {aim:5s}  after {seconds:5.1f} s  {'in a save' if saving else ''}  "
                    f"left {' '.join(names) or 'nothing'}")
            assert start(broken, options.script, args,
                         options.engine).wait() == 0, open(os.path.join(broken, "output.txt")).read()[-3000:]
            a, b = everything_of(whole), everything_of(broken)
            differ = [key for key in a if a[key] != b[key]]
            say(f"run of seed {run_seed}: weights sha256 never killed {a['weights'][:16]}, killed {b['weights'][:16]}; "
                f"optimizer, metrics, samples, state: {'the same' if not differ else f'DIFFER in {differ}'}")
            if differ:
                sys.exit(1)
            run_seed += 1
    say(f"{kills} kills, {in_save} of them during a save, {run_seed} runs: all ended as if never killed")


if __name__ == "__main__":
    main()
