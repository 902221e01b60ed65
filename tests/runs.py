"""Helpers of the tests that start, kill, damage and compare runs; see fake_engine.py."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

from conftest import ROOT

GRPO = [
    "--data", "tiny_countdown", "--template", "tiny_countdown", "--reward", "tinyzero_countdown", "--data_limit", "64",
    "--max_prompt_len", "16", "--max_response_len", "10", "--prompts_per_step", "2", "--group_size", "4", "--num_steps",
    "4", "--eval_every", "2", "--save_every", "2", "--eval_prompts", "3", "--eval_samples", "1", "--checkpointing",
    "False", "--entropy_coef", "0.01", "--max_num_seqs", "16", "--lr", "3e-3", "--max_tokens_per_gpu", "60",
    "--lr_schedule", "cosine", "--warmup_steps", "1", "--report_every", "0"
]
PPO = [
    *GRPO, "--kl_in", "reward_k1", "--kl_coef", "0.1", "--kl_target", "0.001", "--kl_horizon", "20", "--critic_lr",
    "1e-2", "--updates_per_step", "2", "--critic_warmup_steps", "1"
]
SFT = ["--data", "d.jsonl", "--num_steps", "4", "--save_every", "2", "--tokens_per_step", "100", "--lr", "3e-3",
       "--warmup_steps", "1", "--checkpointing", "False"]


def environment(**more):
    """This process's environment without what torchrun or a test set for it."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LD_PRELOAD")
    }
    return keep | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | more


class Server:
    """Runs of the scripts, with the fake engine, in forks of one process that has imported everything."""

    def __init__(self):
        command = [sys.executable, os.path.join(ROOT, "tests", "fake_engine.py"), "serve"]
        self.process = subprocess.Popen(command,
                                        env=environment(),
                                        stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        text=True)

    def run(self, folder, script, args, **job):
        """Run a job (env, setup code, max_file_bytes, timeout). Return returncode (-9: killed), stdout, stderr."""
        os.makedirs(folder, exist_ok=True)
        job |= {"cwd": str(folder), "script": script, "args": [str(a) for a in args]}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done = SimpleNamespace(**json.loads(self.process.stdout.readline()))
        done.stdout, done.stderr = (open(os.path.join(folder, name)).read() for name in ("stdout", "stderr"))
        return done

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def write_examples(folder, count=40):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "d.jsonl"), "w") as f:
        for i in range(count):
            f.write(
                json.dumps({"prompt": f"numbers {i} 2 target 6 <think>", "response": f"{i} + 2 = 3 </think>"}) + "\n")


def without_clock(row):
    clock = ("tokens_per_second", "mfu", "mbu", "roofline")
    return {k: v for k, v in row.items() if not k.startswith("seconds_") and k not in clock}


def metrics_of(run):
    """Rows of metrics.jsonl without what a clock says."""
    with open(os.path.join(run, "metrics.jsonl")) as f:
        return [without_clock(json.loads(line)) for line in f]


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def text_of(path):
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as f:
        return f.read()


def everything_of(folder, name="run"):
    """Collect what two runs must share to the bit: weights, optimizer, metrics, samples, sampled tokens, loop state."""
    run = os.path.join(folder, "out", name)
    last = max(n for n in os.listdir(run) if n.startswith("step_"))
    with open(os.path.join(run, last, "state.json")) as f:
        state = json.load(f)
    state["row"] = without_clock(state["row"] or {})
    found = {
        "weights": sha256(os.path.join(run, "model", "model.safetensors")), "metrics": metrics_of(run), "state": state,
        "optimizer": sha256(os.path.join(run, last, "dcp", "__0_0.distcp")), "last": last, "samples": {
            n: text_of(os.path.join(run, "samples", n))
            for n in sorted(os.listdir(os.path.join(run, "samples")))
        }
    }
    if os.path.exists(os.path.join(folder, "tokens.jsonl")):  # a step done again must sample the same: a set
        with open(os.path.join(folder, "tokens.jsonl")) as f:
            found["tokens"] = {line for line in f if line.endswith("]\n")}
    return found


def assert_same(a, b):
    for key in a:
        if key == "metrics":  # say which column
            other = [(x["step"], k, x.get(k), y.get(k)) for x, y in zip(a[key], b[key], strict=True)
                     for k in {*x, *y} if x.get(k) != y.get(k)]
            assert not other, other
        assert a[key] == b[key], key


def checkpoints(run):
    return sorted(n for n in os.listdir(run) if "step_" in n)
