"""
The train scripts with a stand-in for vLLM, for tests that start many runs: the same loop, scorer, checkpoints and
processes, but the tokens come from a plain transformers copy of the model. Never imported by the project itself.

    python tests/fake_engine.py train_grpo.py --model ...      # one run (torchrun works too)
    python tests/fake_engine.py serve                          # jobs as lines of JSON, each a fork: a second, not ten

A token is argmax(logits / temperature + Gumbel noise of (seed, position)), so that it follows from weights and seed
alone, like the real engine's. What was sampled is appended to tokens.jsonl in the working directory.
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback

import numpy as np
import torch

import kill_at
import policy
import rollout
from onebox import distributed, rundir


class FakeEngine:
    def __init__(self, path):
        from transformers import AutoModelForCausalLM

        self.model, self.version = AutoModelForCausalLM.from_pretrained(path, dtype="float32"), None

    def reset_prefix_cache(self):
        return True  # it has none


def make_engine(path, **_):
    return FakeEngine(path)


def sync(model, engine, dtype, version, *_):
    engine.model.load_state_dict(dict(rollout.hf_stream(model, dtype)))
    engine.version = version


@torch.no_grad()
def generate(engine, wanted, *, temperature, max_tokens, stop_ids, version, enough=lambda: False, **_):
    """Like rollout.generate: a response is yielded once its last token is there, and `enough` asked between tokens."""
    assert engine.version == version, (engine.version, version)
    wanted = [(index, k, list(ids), seed) for index, k, ids, seed in wanted]
    longest = max(len(ids) for _, _, ids, _ in wanted) + max_tokens
    tokens = torch.zeros(len(wanted), longest, dtype=torch.long)
    for row, (_, _, ids, _) in enumerate(wanted):
        tokens[row, :len(ids)] = torch.tensor(ids)
    noise = [
        np.random.default_rng(seed).gumbel(size=(max_tokens, engine.model.config.vocab_size)) for *_, seed in wanted
    ]
    lens, running = [len(ids) for _, _, ids, _ in wanted], [True] * len(wanted)
    logprobs = [[] for _ in wanted]

    def finish(row, reason):
        index, k, ids, _ = wanted[row]
        response, running[row] = tokens[row, len(ids):lens[row]].tolist(), False
        with open("tokens.jsonl", "a") as f:
            f.write(json.dumps([version, index, k, temperature, response]) + "\n")
        return rollout.Rollout(index, k, np.array(ids, np.int32), np.array(response, np.int32),
                               np.array(logprobs[row], np.float32), reason)

    for position in range(max_tokens):
        logits = engine.model(input_ids=tokens, use_cache=False).logits
        for row in (r for r, alive in enumerate(running) if alive):
            logp = (logits[row, lens[row] - 1] / (temperature or 1.0)).log_softmax(-1)
            token = int((logp + torch.from_numpy(noise[row][position]) * bool(temperature)).argmax())
            tokens[row, lens[row]] = token
            logprobs[row].append(float(logp[token]))
            lens[row] += 1
        for row in [r for r, alive in enumerate(running) if alive]:
            if (stopped := int(tokens[row, lens[row] - 1]) in stop_ids) or position == max_tokens - 1:
                yield finish(row, "stop" if stopped else "length")
        if enough():
            for row in [r for r, alive in enumerate(running) if alive]:
                yield finish(row, "dropped")
        if not any(running):
            break


def noisy_step(step=policy.optimizer_step):
    """Stand for a script that draws from the global generators, as one with dropout would: lr varies by chance."""
    def optimizer_step(module, optimizer, lr, *more, **settings):
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return step(module, optimizer, lr * (0.5 + noise / 3), *more, **settings)

    kill_at.replace(policy, "optimizer_step", optimizer_step)


def install():
    rollout.make_engine, rollout.generate = make_engine, generate
    rollout.sync_weights, rollout.wake_and_sync, rollout.sleep = sync, sync, lambda *_: None
    if os.environ.get("NOISE"):
        noisy_step()
    exec(os.environ.get("SETUP", ""), {})  # a test's own patches, where a run is no job of the server
    kill_at.install()


def child(job):
    """Inside the fork: become the run."""
    os.chdir(job["cwd"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(job.get("env", {}))
    distributed.START = time.monotonic()
    if "max_file_bytes" in job:  # a disk that is full: every write beyond it fails (Python ignores SIGXFSZ)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"], resource.RLIM_INFINITY))
    install()
    code = 1
    try:
        exec(job.get("setup", ""), {})  # a test's own patches
        sys.argv = [job["script"], *job["args"]]
        rundir.entry(__import__(job["script"].removesuffix(".py")).main)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    import sft  # noqa: F401  what takes seconds is imported once
    import train_grpo  # noqa: F401
    import train_ppo  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(job)
        deadline, status = time.monotonic() + job.get("timeout", 600), None
        while status is None:
            ended, found = os.waitpid(pid, os.WNOHANG)
            status = found if ended else None
            if status is None and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        print(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        install()
        sys.argv = sys.argv[1:]
        rundir.entry(__import__(sys.argv[0].removesuffix(".py")).main)
