"""Make a small run directory with every file that tools/report reads, for its tests."""

import gzip
import json
import math
import os
import random
import sys

HOSTILE = (
    '</script><script>window.broken=1</script><img src=x onerror="window.broken=1"> <!-- '
    "<style>*{display:none}</style> \x1b[31mred\x1b[0m nul \x00 bell \x07 \u202egnp.exe\u202c \u2028 line \u2029 "
    "\ud800 lone \U0001f600 \u0639\u0631\u0628\u064a "
    "&lt;b&gt; ${window.broken=1} `x` \u200bzero ]]> <svg onload=window.broken=1>")


def tokens_of(text):
    """Words with the space before them -> (ends, stop token with an empty piece at the end)."""
    ends, at = [], 0
    for word in text.split(" "):
        at += len(word) + (at > 0)
        ends.append(at)
    return [*ends, len(text)]


def rollout_row(rng, step, split, uid, sample, text, correct, prompt=None, **more):
    ends = tokens_of(text)
    n = len(ends)
    logprobs = [-abs(rng.gauss(0, 0.6)) for _ in range(n)]
    row = {
        "step": step, "split": split, "uid": uid, "source": "fake", "sample": sample, "response": text,
        "prompt": prompt or f"numbers {uid} <think>", "gold": {"target": len(uid)}, "reward": 1.0 if correct else 0.1,
        "correct": correct, "format_ok": True, "parts": {"format": 0.1, "answer": 0.9 if correct else 0.0}, "flags": [],
        "tokens": n, "finish_reason": "stop", "truncated": False, "ends": ends}
    if split == "train":
        ratio = [math.exp(rng.gauss(0, 0.1)) for _ in range(n)]
        row |= {
            "advantage": 0.5 if correct else -0.5, "logprobs": logprobs, "old_logprobs": logprobs, "ratio": ratio,
            "rollout_logprobs": [p + rng.gauss(0, 0.01) for p in logprobs],
            "entropy": [abs(rng.gauss(0, 0.5)) for _ in range(n)], "clipped": [int(abs(r - 1) > 0.2) for r in ratio]}
    return row | more


def guard_event(step, action="none", acted=False, **more):
    """A line of guard.jsonl as onebox/steering.py writes it."""
    event = {"step": step, "saw": "divergence", "since": step - 2, "numbers": {"reward": [0.5, 0.125]},
             "action": action, "settings": {"lr": 2e-5} if action in ("change", "roll back") else {},
             "to_step": 10 if action in ("roll back", "stop") else None, "acted": acted}
    return event | {"line": f"step {step}: divergence since step {step - 2} (reward 0.5 -> 0.125): {action}"} | more


def write_rollouts(folder, step, rows):
    os.makedirs(os.path.join(folder, "samples"), exist_ok=True)
    with gzip.open(os.path.join(folder, "samples", f"step_{step:06d}.jsonl.gz"), "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(folder, steps=20, eval_every=10, problems=40, skill=0.5, seed=0, hostile=True, group=4, evaluated=True,
             events=()):
    """
    Make the directory and return it. skill: the share correct at the end. Each step keeps two prompts with `group`
    completions each. events: the lines of guard.jsonl, as dicts.
    """
    rng = random.Random(seed)
    os.makedirs(os.path.join(folder, "code"), exist_ok=True)
    folder = str(folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({
            "script": "train_grpo.py", "origin": {"lr": "recipes/fake.py"},
            "settings": {"name": os.path.basename(folder), "num_steps": steps, "lr": 1e-4 * (1 + seed)},
            "command": ["python", "train_grpo.py", "recipes/fake.py"], "world_size": 2, "versions": {"python": "3.11"},
            "machine": "CPU, 2 cores", "commit": "0" * 40}, f)
    with open(os.path.join(folder, "code", "train_grpo.py"), "w") as f:
        f.write('class Config:\n    name: str = "run"  # of the run\n    num_steps: int = 100  # steps\n'
                f"    lr: float = 1e-6  # peak\n\nEDIT = {seed}  # <b>not bold</b>\n")
    if events:
        with open(os.path.join(folder, "guard.jsonl"), "w") as f:
            f.writelines(json.dumps(event) + "\n" for event in events)
    held_out = []
    with open(os.path.join(folder, "metrics.jsonl"), "w") as f:
        for step in range(steps + 1):
            right = skill * step / steps
            row = {
                "step": step, "reward": right, "correct": right, "format_error": 0.1, "wrong_answer": 0.9 - right,
                "truncated": 0.0, "response_len": 20 + step, "think_len": 15 + step, "answer_len": 5,
                "reasoning_words": 1.0, "reasoning_share": 0.5, "reflection_words": 2.0, "reflection_share": 0.6,
                "entropy": None if step == 0 else 0.5, "mismatch_mean": None if step == 0 else 1e-3,
                "mismatch_max": None if step == 0 else 0.1, "trained_tokens": 1000, "seconds_step": 2.0,
                "seconds_rollout": 1.0, "tokens_per_second": 900.0, "source/a/reward": 0.3}
            rows = [
                rollout_row(rng, step, "train", f"train/{step}/{p}", k,
                            f"{p} + {k} = {p + k} no wait {k} </think> <answer> {k} </answer>",
                            rng.random() < right) for p in range(2) for k in range(group)]
            if hostile and step == steps:
                rows[0]["response"] = HOSTILE + " </think> " + HOSTILE
                rows[0]["ends"] = tokens_of(rows[0]["response"])
                for name in ("logprobs", "old_logprobs", "ratio", "rollout_logprobs", "entropy", "clipped"):
                    rows[0][name] = [0.5] * len(rows[0]["ends"])
                rows[0] |= {"prompt": HOSTILE, "uid": HOSTILE[:40], "flags": [HOSTILE], "parts": {HOSTILE: 1.0},
                            "gold": HOSTILE}
                rows[1] |= {"prompt": HOSTILE, "uid": HOSTILE[:40]}
            if evaluated and step % eval_every == 0:
                shares = {
                    f"test/{i}": [round(min(1, max(0, right + rng.gauss(0, 0.1))) * 4) / 4,
                                  rng.random() < right] for i in range(problems)}
                held_out.append({"step": step, "correct": shares})
                row |= {"eval_correct": sum(v[0] for v in shares.values()) / problems, "eval_correct_greedy": right}
                rows += [
                    rollout_row(rng, step, "held-out", f"test/{i}", k,
                                f"try {i} {'again ' * (step // 5)}</think> <answer> {i} </answer>",
                                rng.random() < right) for i in range(3) for k in (0, "greedy")]
            write_rollouts(folder, step, rows)
            f.write(json.dumps(row) + "\n")
    if held_out:
        with open(os.path.join(folder, "samples", "held_out.jsonl"), "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in held_out)
    return folder


if __name__ == "__main__":
    make_run(sys.argv[1])
