"""
Compute the two GRPO reference steps with plain transformers, one response at a time, and compare with *.replay.json:

    python results/2026-11-28_replay/check.py            # from the repository; nothing of onebox-r1 is imported

Print for each quantity the largest difference, relative to the largest value of that quantity in the step.
"""

import gzip
import json
import os

import torch
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))


def load(name):
    with gzip.open(f"{HERE}/{name}.jsonl.gz", "rt") as f:
        rows = [json.loads(line) for line in f]
    with open(f"{HERE}/{name}.replay.json") as f:
        return rows, json.load(f)


def compute(model, rows, s):
    """Return {quantity: (R,) or (all tokens,)} of one step under the settings s."""
    G, rewards = s["group_size"], torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    groups = rewards.reshape(-1, G)
    advantages = groups - groups.mean(1, keepdim=True)
    if s["adv_std"]:
        advantages = advantages / (groups.std(1, keepdim=True) + s["adv_eps"])
    advantages = advantages.flatten()
    num_tokens = sum(len(row["response_ids"]) for row in rows)
    found = {name: [] for name in ("logprobs", "entropy", "losses", "advantage", "loss_share", "grad_norm")}
    total = [torch.zeros_like(p) for p in model.parameters()]
    for row, advantage in zip(rows, advantages.tolist(), strict=True):
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        old, rolled = (torch.tensor(row[name], dtype=model.dtype) for name in ("old_logprobs", "rollout_logprobs"))
        logits = model(ids).logits[0, len(row["prompt_ids"]) - 1:-1] / s["temperature"]
        logp = logits.log_softmax(-1)
        logprobs = logp.gather(1, ids[0, len(row["prompt_ids"]):, None])[:, 0]
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - s["clip_low"], 1 + s["clip_high"])
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
        losses = losses * (old - rolled).exp().clamp(max=s["mismatch_cap"])
        weight = {"token_mean": 1 / num_tokens, "seq_mean": 1 / (len(rows) * len(losses))}[s["loss_agg"]]
        model.zero_grad()
        (weight * losses).sum().backward()
        for sum_, p in zip(total, model.parameters(), strict=True):
            sum_ += p.grad
        found["logprobs"] += logprobs.tolist()
        found["entropy"] += (-(logp.exp() * logp).sum(-1)).tolist()
        found["losses"] += (weight * losses).tolist()
        found["advantage"].append(advantage)
        found["loss_share"].append((weight * losses).sum().item())
        found["grad_norm"].append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
    found["step: loss"] = [sum(found["loss_share"])]
    found["step: grad_norm"] = [torch.stack([p.norm() for p in total]).norm().item()]
    return found


for dtype in ("float32", "float64"):
    for name in ("on_policy", "off_policy"):
        rows, reference = load(name)
        model = AutoModelForCausalLM.from_pretrained(f"{HERE}/../../demo_base/model", dtype=getattr(torch, dtype))
        for quantity, ours in compute(model, rows, reference["settings"]).items():
            if quantity.startswith("step: "):
                theirs = [reference["totals"][quantity[6:]]]
            else:
                theirs = [one[quantity] for one in reference["responses"]]
                theirs = sum(theirs, []) if isinstance(theirs[0], list) else theirs
            ours, theirs = (torch.tensor(x, dtype=torch.float64) for x in (ours, theirs))
            print(f"{dtype}  {name:<10}  {quantity:<15}  {(ours - theirs).abs().max() / theirs.abs().max():.1e}")
