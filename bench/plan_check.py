"""
plan.py --cpu against real runs: peak memory of the process and seconds of a step, predicted and measured.

    python bench/plan_check.py [--smollm out/smollm2] [--tiny demo_base/model] [--out results/FILE.md]

Each case is a run of the script itself, one process of one thread, a few steps without evaluation or checkpoint.
Predicted is the peak resident set (weights, gradients, Adam, activations, engine, and CPU_BASE_GB of a process that has
imported everything) and the seconds of rollout + logprobs + values + train + sync. plan.py is told the mean lengths
and the share of agreeing groups that the run had, since no plan can know them; everything else comes from the recipe.
Measured memory is the kernel's high-water mark of that process until it writes its checkpoint, after the last step (that and the export are not
predicted), with a dry step, so that the fullest micro-batch occurs; measured seconds are those of the fastest step
after the first, since a machine may be shared.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

CASES = {  # name: recipe, which model, settings
    "tiny, GRPO": ("demo", "tiny", "--num_steps 6"),
    "tiny, GRPO, 4 times the tokens": (
        "demo",
        "tiny",
        "--num_steps 5 --prompts_per_step 64 --max_tokens_per_gpu 16384",
    ),
    "tiny, PPO": ("demo_ppo", "tiny", "--num_steps 6 --critic_warmup_steps 0"),
    "SmolLM2-135M, GRPO": ("demo_smollm", "smollm", "--num_steps 3"),
    "SmolLM2-135M, GRPO, reference, checkpointing": (
        "demo_smollm",
        "smollm",
        "--num_steps 2 --kl_in loss_k3 --checkpointing True",
    ),
}
PHASES = ("rollout", "logprobs", "values", "train", "sync")


def high_water_mark(pid):
    """Bytes of the largest resident set that the process has had; 0 when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def measure(name, recipe, script, model, settings):
    """A run of its own -> (peak GB, {phase: seconds}, mean prompt and response tokens, share of
    groups that agreed)."""
    folder = os.path.join("out", "plan_check", "".join(c if c.isalnum() else "_" for c in name))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    command = [
        sys.executable,
        os.path.join(ROOT, script),
        os.path.join(ROOT, "recipes", f"{recipe}.py"),
        *settings,
        "--model",
        model,
        "--name",
        "run",
        "--eval_prompts",
        "0",
        "--dry_step",
        "on",
        "--save_every",
        "0",
    ]
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run, peak = os.path.join(folder, "out", "run"), 0
    with open(os.path.join(folder, "log"), "w") as log:
        child = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        while child.poll() is None:
            if not any("step_" in n for n in (os.listdir(run) if os.path.isdir(run) else [])):  # no checkpoint begun
                peak = max(peak, high_water_mark(child.pid))
            time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"error: {name} ended with {child.returncode}: see {folder}/log")
    with open(os.path.join(folder, "out", "run", "metrics.jsonl")) as f:
        rows = [json.loads(line) for line in f][1:]
    row = min(rows, key=lambda row: sum(row.get(f"seconds_{phase}", 0.0) for phase in PHASES))
    spent, response = {phase: row.get(f"seconds_{phase}", 0.0) for phase in PHASES}, row["response_len"]
    tokens = row["tokens_per_second"] * (row["seconds_step"] - row["seconds_eval"] - row["seconds_save"])
    prompt = tokens / row["num_rollouts"] - response
    return peak / 1e9, spent, prompt, response, row["zero_variance_groups"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm", default="out/smollm2")
    parser.add_argument("--tiny", default="./demo_base/model")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", default="")
    args = parser.parse_args()

    from onebox import distributed
    from tools import plan
    from onebox import rundir
    import torch
    from onebox.config import load_config

    torch.set_num_threads(1)
    distributed.init_distributed()
    lines = [
        f"{rundir.machine()}, torch {torch.__version__}, one process of one thread a run",
        "",
        "| run | peak GB predicted | measured | error | seconds predicted | measured | error |",
        "|---|---|---|---|---|---|---|",
    ]
    raw = []
    for name, (recipe, kind, settings) in CASES.items():
        if args.only not in name:
            continue
        path, model = os.path.join(ROOT, "recipes", f"{recipe}.py"), os.path.abspath(getattr(args, kind))
        script = plan.script_of(path)
        peak, spent, prompt, response, agreeing = measure(name, recipe, script, model, settings.split())
        options, argv = plan.parse(
            ["--cpu", "--gpus", "1", "--mean_prompt_len", str(prompt), "--mean_response_len", str(response),
             "--agreeing", str(agreeing)]
        )
        cfg, _ = load_config(importlib.import_module(script[:-3]).Config, [path, *settings.split(), *argv])
        found = plan.predict(dataclasses.replace(cfg, model=model), script, options)
        parts = {phase: {k: round(v / 1e9, 3) for k, v in used.items()} for phase, used in found["memory"].items()}
        memory = max(sum(used.values()) for used in found["memory"].values()) / 1e9
        predicted, measured = sum(found["seconds"].values()), sum(spent.values())
        lines.append(
            f"| {name} | {memory:.2f} | {peak:.2f} | {memory / peak - 1:+.0%} | {predicted:.2f} | {measured:.2f} | "
            f"{predicted / measured - 1:+.0%} |"
        )
        raw += [
            f"{name}: mean prompt {prompt:.1f}, response {response:.1f}",
            "  predicted " + json.dumps({k: round(v, 3) for k, v in found["seconds"].items()}),
            "  measured  " + json.dumps({k: round(v, 3) for k, v in spent.items()}),
            "  " + json.dumps(parts),
        ]
        print("\n".join([lines[-1], *raw[-4:]]), flush=True)
        if args.out:  # after each run: a kill loses only what is left
            with open(args.out, "w") as f:
                head = f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}"
                f.write("\n".join([head, "", *lines, "", *raw, ""]))


if __name__ == "__main__":
    main()
