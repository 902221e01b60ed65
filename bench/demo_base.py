"""
Ship a cold start as the demo's base: python bench/demo_base.py [out/demo-base]

Copies model/ and log.txt of the run that `make base` left there to demo_base/, and writes demo_base/record.json:
commands, seed, settings, versions, losses, the sha256 of every file and the success on the 72 held-out problems.
"""

import hashlib
import json
import os
import shutil
import sys
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import data  # noqa: E402
import rewards  # noqa: E402

BASE = os.path.join(ROOT, "demo_base")


def hashes(folder):
    """{file of a model directory: sha256}"""
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            found[name] = hashlib.file_digest(f, "sha256").hexdigest()
    return found


def losses(run):
    """Return the losses of the first 20 steps and the mean of the last 100."""
    with open(os.path.join(run, "metrics.jsonl")) as f:
        found = [json.loads(line)["loss"] for line in f]
    return {"first": found[:20], "last": sum(found[-100:]) / 100}


def held_out_problems():
    """Return the 72 problems that are never trained on, each once."""
    found = {}
    for row in data.tiny_countdown(5000, 0, "test"):
        found.setdefault((tuple(sorted(row["nums"])), row["target"]), row)
    return list(found.values())


@torch.no_grad()
def right(folder, samples, seed=0):
    """Count the right responses to the held-out problems: a greedy one each (samples 0), or some at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    problems = held_out_problems()
    prompts = [data.build_prompt("tiny_countdown", row) for row in problems]
    ids = torch.tensor(tokenizer(prompts)["input_ids"])  # all of 7 tokens
    torch.manual_seed(seed)
    how = {"do_sample": False} if not samples else {"do_sample": True, "num_return_sequences": samples, "top_k": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, **how)
    texts = tokenizer.batch_decode(out[:, ids.shape[1]:], skip_special_tokens=True)
    answers = [{"target": row["target"], "numbers": row["nums"]} for row in problems for _ in range(max(1, samples))]
    pairs = zip(texts, answers, strict=True)
    return sum(rewards.score("tinyzero_countdown", text, answer).correct for text, answer in pairs)


def main():
    run = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "out", "demo-base")
    with open(os.path.join(run, "config.json")) as f:
        settings = json.load(f)["settings"]
    shutil.rmtree(BASE, ignore_errors=True)
    os.makedirs(BASE)
    shutil.copytree(os.path.join(run, "model"), os.path.join(BASE, "model"))
    shutil.copy(os.path.join(run, "log.txt"), BASE)
    record = {
        "commands": ["make base", "python bench/demo_base.py"], "seed": settings["seed"], "settings": settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "losses": losses(run), "sha256": hashes(os.path.join(BASE, "model")),
        "held_out": {"problems": len(held_out_problems()), "greedy_right": right(run + "/model", 0),
                     "samples": 8, "sampled_right": right(run + "/model", 8)},
    }
    with open(os.path.join(BASE, "record.json"), "w") as f:
        f.write(json.dumps(record, indent=1) + "\n")
    print(f"{BASE}: {record['held_out']}")


if __name__ == "__main__":
    main()
