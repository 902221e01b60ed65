"""
How exact log-prob, entropy and gradients of the head are on a CPU, against fp64: ours, Liger's torch fallback, and what
rounding the logits alone does.

    python bench/head_error.py [--tokens 256] [--hidden 1536] [--vocab 151936] [--wheels FOLDER] [--out FILE]

Hidden states and head are in bf16, logits have a standard deviation of 3. FOLDER holds liger-kernel (pip install
--no-deps --target FOLDER liger-kernel==0.8.5) and triton, which it imports; without it its row says so.
"""

import argparse
import sys

import torch
from common import command, say
from gpu_common import said
from gpu_head import gradient_errors, liger_torch, ours, reference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--wheels", default="", help="folder with liger-kernel and triton")
    parser.add_argument("--out", default="", help="a file to which the lines are added")
    args = parser.parse_args()
    sys.path += [args.wheels] * bool(args.wheels)
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden).bfloat16()
    weight = torch.nn.Parameter((torch.randn(args.vocab, args.hidden) * (3.0 / args.hidden**0.5)).bfloat16())
    weight.grad_dtype = torch.float32  # as the trainer's
    targets, grads = torch.randint(args.vocab, (args.tokens,)), torch.randn(2, args.tokens) / args.tokens
    wanted, lines = reference(hidden, weight, targets, grads), [f"`{command()}`, torch {torch.__version__}", ""]
    for name, make in (("ours", lambda: ours(False)), ("Liger's torch fallback", liger_torch)):
        try:
            lines.append(f"{name}: " + errors(make(), hidden, weight, targets, grads, wanted))
        except Exception as error:  # the package is not there
            lines.append(f"{name}: not measured, {said(error)}")
    logits = hidden.float() @ weight.detach().float().T
    for dtype in (torch.bfloat16, torch.float16):
        logp = logits.to(dtype).double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        lines.append(f"only the logits rounded to {dtype}: log-prob {(logp - wanted[0]).abs().max():.1e}")
    lines.append(f"largest logit {logits.abs().max():.1f}")
    say(lines, args.out)


def errors(run, hidden, weight, targets, grads, wanted):
    """Say the largest differences; of gradients over the largest gradient, of a loss of log-probs alone."""
    h, weight.grad = hidden.clone().requires_grad_(), torch.zeros_like(weight, dtype=torch.float32)
    logprobs, entropy = run(h, weight, targets)
    (logprobs * grads[0]).sum().backward()
    found = {"log-prob": (logprobs - wanted[0]).abs().max(), "entropy": (entropy - wanted[1]).abs().max()}
    found |= gradient_errors(h, weight, wanted[2])
    return ", ".join(f"{name} {float(error.detach()):.1e}" for name, error in found.items())


if __name__ == "__main__":
    main()
