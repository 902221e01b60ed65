"""
The trainer step on fixed rollouts: ours (packed, fused log-probs) against the plain way (padded batch, full logits).

    python bench/trainer.py [--layers 30] [--repeats 3] [--out results/bench_trainer.md]

Both do the same work: loss and gradient are compared first, on every case. Forward, GRPO loss, backward, clip, AdamW step;
random weights with the shapes of SmolLM2-135M. Runs alternate ours / plain / ours / ...; medians and their ratio, peak
memory of a process that does only one of them. tokens/s counts real tokens (prompt and response), padding never.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CASES = {"uniform": [192] * 8, "ragged": [384, 300, 220, 150, 100, 80, 50, 20]}  # response tokens; the mean is 192 / 163
PROMPT_LEN = 64


def make_rollouts(lens, vocab_size):
    rng = np.random.default_rng(0)
    return [SimpleNamespace(prompt_ids=rng.integers(3, vocab_size, PROMPT_LEN).tolist(),
                            response_ids=rng.integers(3, vocab_size, n).tolist(), rollout_logprobs=np.zeros(n, np.float32))
            for n in lens]


def build(layers, vocab_size, folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192)).save_pretrained(folder)


def packed_loss(policy, rollouts, advantages, device):
    import policy as model
    from train_grpo import policy_loss, token_weights
    import torch

    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    weights_R = token_weights(lens, len(lens), int(lens.sum()), "token_mean", 0)
    total = 0.0
    for batch in model.pack(rollouts, range(len(rollouts)), 4096, 0, 1, device):
        logprobs, _ = model.token_logprobs(policy, batch, 1.0)
        loss = policy_loss(logprobs, logprobs.detach(), advantages[batch.response_index], 0.2, 0.2)
        loss = (weights_R[batch.response_index] * loss).sum()
        loss.backward()
        total += float(loss.detach())
    return total


def padded_loss(hf, rollouts, advantages):
    import torch
    from train_grpo import policy_loss

    width = max(len(r.response_ids) for r in rollouts)
    ids = torch.zeros(len(rollouts), PROMPT_LEN + width, dtype=torch.long)
    mask = torch.zeros(len(rollouts), width)
    for i, r in enumerate(rollouts):
        ids[i, :PROMPT_LEN + len(r.response_ids)] = torch.tensor(r.prompt_ids + r.response_ids)
        mask[i, :len(r.response_ids)] = 1
    logits = hf(ids, use_cache=False).logits[:, PROMPT_LEN - 1:-1].float()  # right padding: causal attention never sees it
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, PROMPT_LEN:, None])[..., 0]
    loss = policy_loss(logprobs, logprobs.detach(), advantages[:, None].expand_as(logprobs), 0.2, 0.2)
    loss = (loss * mask).sum() / mask.sum()
    loss.backward()
    return float(loss.detach())


def worker(kind, folder, case, dtype):
    """Answers `step` on stdin with the seconds of one step, `report` with loss, gradient norm and peak memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from onebox.distributed import init_distributed
    import policy as model

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = init_distributed()[2]
    vocab_size = AutoConfig.from_pretrained(folder).vocab_size
    rollouts = make_rollouts(CASES[case], vocab_size)
    advantages = torch.linspace(-1, 1, len(rollouts))
    if kind == "ours":
        policy = model.load_policy(folder, device, dtype)
    else:
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    first = None
    for line in sys.stdin:
        if line.strip() == "report":
            print(json.dumps({"loss": first[0], "grad_norm": first[1],
                              "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}), flush=True)
            continue
        start = time.perf_counter()
        if kind == "ours":
            loss = packed_loss(policy, rollouts, advantages, device)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = padded_loss(policy, rollouts, advantages)
        norm = model.clip_and_step(policy, optimizer, 1.0, 1e-6)
        seconds = time.perf_counter() - start
        first = first or (loss, norm)
        print(json.dumps(seconds), flush=True)


def alternate(commands, repeats, env=None):
    """
    One child process a kind, asked for a step in turn, `repeats` times after a warm-up. commands: {kind: [program, argument, ...]}.
    -> ({kind: seconds of each step}, {kind: what the child reports at the end})
    """
    children = {kind: subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for kind, command in commands.items()}

    def ask(kind, what):
        children[kind].stdin.write(what + "\n")
        children[kind].stdin.flush()
        return json.loads(children[kind].stdout.readline())

    seconds = {kind: [] for kind in children}
    for repeat in range(repeats + 1):
        for kind in seconds:
            spent = ask(kind, "step")
            if repeat:  # the first one warms up
                seconds[kind].append(spent)
    reports = {kind: ask(kind, "report") for kind in children}
    for child in children.values():
        child.stdin.close()
        child.wait()
    return seconds, reports


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", default="", help="also write the table and the raw seconds to this file")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    folder = f"out/bench/llama-{args.layers}x576-v{args.vocab}"
    if not os.path.exists(os.path.join(folder, "config.json")):
        build(args.layers, args.vocab, folder)
    import torch

    lines = [f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, "
             f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '1')}, {args.dtype}, {args.layers} layers of 576, vocabulary "
             f"{args.vocab}, medians of {args.repeats}", "",
             "| case | real tokens | ours tokens/s | padded tokens/s | ratio | ours peak GB | padded peak GB |", "|---|---|---|---|---|---|---|"]
    raw = []
    for case, lens in CASES.items():
        tokens = sum(lens) + PROMPT_LEN * len(lens)
        commands = {kind: [sys.executable, __file__, "--worker", kind, folder, case, args.dtype] for kind in ("ours", "plain")}
        seconds, reports = alternate(commands, args.repeats)
        tolerance = 1e-3 if args.dtype == "float32" else 0.1
        for name in ("loss", "grad_norm"):
            a, b = reports["ours"][name], reports["plain"][name]
            if abs(a - b) > tolerance * max(1e-3, abs(b)):
                raise SystemExit(f"{case}: not the same work: {name} {a} against {b}")
        ours, plain = (statistics.median(seconds[kind]) for kind in ("ours", "plain"))
        lines.append(f"| {case} | {tokens} | {tokens / ours:.0f} | {tokens / plain:.0f} | {plain / ours:.2f} x | "
                     f"{reports['ours']['peak_gb']:.2f} | {reports['plain']['peak_gb']:.2f} |")
        raw.append(f"{case}: seconds {json.dumps(seconds)}; {json.dumps(reports)}")
        print(lines[-1], flush=True)
    text = "\n".join(["", *lines, "", *raw])
    print(text)
    if args.out:
        with open(args.out, "w") as f:
            f.write(f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}\n{text}\n")


if __name__ == "__main__":
    main()
