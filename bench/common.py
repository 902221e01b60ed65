"""
What the benchmarks share: rollouts, models of random weights, processes that step in turn, the file of results.

A benchmark is started as `python bench/NAME.py`, so that this folder is on the path and `import common` finds this
file, which adds the repository.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

PROMPT_LEN = 64


def parser_of(doc, out):
    """Make an argument parser that shows a benchmark's docstring and knows --out; out: what is written there."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help=f"X: {out}")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    return parser


def make_rollouts(lens, vocab_size):
    """Make rollouts with these numbers of response tokens, of random ids."""
    rng = np.random.default_rng(0)
    return [SimpleNamespace(prompt_ids=rng.integers(3, vocab_size, PROMPT_LEN).tolist(),
                            response_ids=rng.integers(3, vocab_size, n).tolist(),
                            rollout_logprobs=np.zeros(n, np.float32)) for n in lens]


def llama(vocab_size, hidden=576, layers=30, **settings):
    """Make a Llama of random weights; without settings its blocks are those of SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = hidden // 64
    settings = dict(num_key_value_heads=heads // 3 if heads % 3 == 0 else heads) | settings
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=heads, tie_word_embeddings=True, max_position_embeddings=8192, **settings))


def token_mean(rollouts):
    """Return the loss weight (R,) of each response's tokens under loss_agg = "token_mean"."""
    import torch
    from train_grpo import token_weights

    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    return token_weights(lens, len(lens), int(lens.sum()), "token_mean", 0)


def serve(step, report):
    """Answer `step` on stdin with the seconds that step() took, and anything else with report()."""
    for line in sys.stdin:
        if line.strip() == "step":
            start = time.perf_counter()
            step()
            answer = time.perf_counter() - start
        else:
            answer = report()
        print(json.dumps(answer), flush=True)


def alternate(commands, repeats, env=None):
    """
    Start one child process a kind and ask each in turn for a step, `repeats` times after a warm-up.

    commands: {kind: [program, argument, ...]}. Returns ({kind: answer to each step}, {kind: its report at the end}).
    """
    children = {kind: subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL) for kind, command in commands.items()}

    def ask(kind, what):
        children[kind].stdin.write(what + "\n")
        children[kind].stdin.flush()
        return json.loads(children[kind].stdout.readline())

    steps = {kind: [] for kind in children}
    for repeat in range(repeats + 1):
        for kind in steps:
            answer = ask(kind, "step")
            if repeat:  # the first one warms up
                steps[kind].append(answer)
    reports = {kind: ask(kind, "report") for kind in children}
    for child in children.values():
        child.stdin.close()
        child.wait()
    return steps, reports


def peak_gb():
    """Return the largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def say(lines, out=""):
    """Print lines, and add them to the file `out` if there is one."""
    text = "\n".join(lines)
    print(text)
    if out:
        with open(out, "a") as f:
            f.write(text + "\n\n")


def command():
    return " ".join(["python", *sys.argv])


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), platform.machine())


def save(out, lines, about="", numbers=None):
    """Write out.md, headed by the command, the date and `about`, and out.json if there are numbers; "": neither."""
    if not out:
        return
    with open(out + ".md", "w") as f:
        f.write(f"`{command()}`, {time.strftime('%Y-%m-%d')}, {about}\n\n" + "\n".join(lines) + "\n")
    if numbers is not None:
        with open(out + ".json", "w") as f:
            json.dump(numbers, f)
