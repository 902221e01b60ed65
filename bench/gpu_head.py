"""
The head's cells of bench/gpu.py: log-probabilities and entropy of given tokens from hidden states and the head's
matrix, forward and backward, ours against published kernels; seconds, peak memory and errors against fp64.

What the packages compute, by their source:

    liger-kernel 0.8.5, LigerFusedLinearScaledCrossEntropyFunction: log-prob and entropy, both differentiable. On
        Hopper with nvidia-cutlass-dsl one kernel each way: logits staged in fp16, entropy returned in bf16, gradient of
        the logits in bf16, that of the head summed in bf16. Elsewhere verl's formulas in torch, 512 tokens at a time:
        logits rounded to bf16, entropy in bf16, the head's gradient summed in bf16. No bias.
    liger-kernel 0.8.5, LigerFusedLinearCrossEntropyFunction, reduction "none": no entropy; logits in bf16; the gradient
        is computed in backward again, in bf16 in place of the logits; the head's may be summed in fp32 (accum_dtype).
    cut-cross-entropy 25.1.1: no entropy; logits in fp32 inside the kernel and never written; gradients of head and
        hidden states summed in bf16, and by default those below 2^-12 are left out (filter_eps), which is also measured
        without.
"""

import statistics

import torch
from gpu_common import Bench, said, write
from torch.utils.checkpoint import checkpoint

from onebox.fused_logprobs import TokenLogprobs, chunks

SIZES = ((1536, 8192, 151936), (3584, 8192, 151936))  # hidden, tokens, vocabulary


def ours(compiled):
    """The trainer's: the head's gradient is added to weight.grad, in fp32."""
    def run(hidden, weight, targets):
        return TokenLogprobs.apply(hidden, weight, None, targets, 1.0, compiled, True)
    return run


def liger_scaled():
    """Take the kernel that Liger takes for this device: on Hopper it needs nvidia-cutlass-dsl."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as op

    def run(hidden, weight, targets):
        nll, entropy = op.apply(hidden, weight, targets, 1.0, -100, 1, True)
        return -nll, entropy
    return run


def liger_torch():
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import _FusedLinearPPOFallbackFunction as op

    def run(hidden, weight, targets):
        nll, entropy = op.apply(hidden, weight, targets, 1.0, -100, True)
        return -nll, entropy
    return run


def liger_cross_entropy():
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as op

    def run(hidden, weight, targets):
        return -op(hidden, weight, targets, reduction="none", accum_dtype=torch.float32), None
    return run


def cut_cross_entropy(filter_eps):
    def make():
        from cut_cross_entropy import linear_cross_entropy

        def run(hidden, weight, targets):
            return -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=filter_eps), None
        return run
    return make


def compiled_whole():
    """The plain formula over chunks of tokens, all of it compiled: what the compiler does by itself."""
    @torch.compile(dynamic=True)
    def chunk(hidden, weight, targets):
        logp = (hidden @ weight.T).float().log_softmax(-1)
        return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    def run(hidden, weight, targets):
        parts = [checkpoint(chunk, hidden[i], weight, targets[i], use_reentrant=False)
                 for i in chunks(hidden, weight)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    return run


VARIANTS = {"ours, compiled": lambda: ours(True), "ours, eager": lambda: ours(False),
            "Liger scaled cross entropy": liger_scaled, "Liger scaled cross entropy in torch (verl's)": liger_torch,
            "Liger cross entropy, no entropy": liger_cross_entropy,
            "Cut Cross-Entropy, no entropy": cut_cross_entropy("high"),
            "Cut Cross-Entropy unfiltered, no entropy": cut_cross_entropy(None),
            "plain formula compiled, bf16 logits": compiled_whole}


def head(args):
    """Run every variant at both sizes; the reference is computed in fp64, chunk by chunk."""
    bench = Bench(args, "tiny")
    dtype = getattr(torch, bench.dtype)
    for hidden_size, tokens, vocab in ((32, 48, 512),) if args.smoke else SIZES:
        if bench.left() < 3:
            write(args, f"H {hidden_size}", note="not run: out of time")
            continue
        torch.manual_seed(0)
        hidden = torch.randn(tokens, hidden_size, device=bench.device, dtype=dtype)
        weight = torch.randn(vocab, hidden_size, device=bench.device, dtype=dtype)
        weight = torch.nn.Parameter(weight * (3.0 / hidden_size**0.5))  # logits of std 3
        targets = torch.randint(vocab, (tokens,), device=bench.device)
        grads = torch.randn(2, tokens, device=bench.device) / tokens
        wanted = reference(hidden, weight, targets, grads)
        base = None
        for name, make in VARIANTS.items():
            cell = f"H {hidden_size}: {name}"
            try:
                row = measure(bench, make(), hidden, weight, targets, grads, wanted, 3 if args.smoke else 5)
            except Exception as error:  # no package, no memory, a kernel that does not build: said, and on
                write(args, cell, tokens=tokens, note=said(error))
                bench.free()
                continue
            base = base or row["seconds"]
            write(args, cell, tokens=tokens, ratio=row["seconds"] / base, **row)
        del wanted, hidden, weight
        bench.free()


def reference(hidden, weight, targets, grads):
    """Return log-probs, entropy, and the gradients of both sums (hidden, weight): without and with entropy's part."""
    h, w = hidden.detach().double(), weight.detach().double()
    logprobs, entropy = (torch.empty(len(h), dtype=torch.float64, device=h.device) for _ in range(2))
    found = [(torch.zeros_like(h), torch.zeros_like(w)) for _ in range(2)]
    for start in range(0, len(h), 512):
        i = slice(start, start + 512)
        logp = (h[i] @ w.T).log_softmax(-1)
        p = logp.exp()
        logprobs[i], entropy[i] = logp.gather(-1, targets[i, None])[:, 0], -(p * logp).sum(-1)
        a, b = grads[0, i, None].double(), grads[1, i, None].double()
        first = (-a * p).scatter_add_(-1, targets[i, None], a)
        for (gh, gw), grad in zip(found, (first, first - b * p * (logp + entropy[i, None])), strict=True):
            gh[i] = grad @ w
            gw += grad.T @ h[i]
    return logprobs, entropy, *found


def measure(bench, run, hidden, weight, targets, grads, wanted, repeats):
    """Time log-prob and entropy with the gradient of log-prob, as GRPO without an entropy bonus needs it."""
    if hasattr(weight, "grad_dtype"):
        weight.grad_dtype = torch.float32  # where torch can: accumulated in fp32, as the trainer does
    h, forward, backward = hidden.clone().requires_grad_(), [], []
    for _ in range(repeats + 1):
        weight.grad, h.grad = torch.zeros_like(weight, dtype=getattr(weight, "grad_dtype", None)), None
        bench.reset_peak()
        there, start = bench.peak_gb(), bench.now()
        logprobs, entropy = run(h, weight, targets)
        middle = bench.now()
        (logprobs * grads[0]).sum().backward()
        forward.append(middle - start)
        backward.append(bench.now() - middle)
    peak = bench.peak_gb() - there if bench.on_gpu else None  # beside hidden states, head and the head's gradient
    with torch.no_grad():
        errors = {"log-prob": (logprobs - wanted[0]).abs().max(), **gradient_errors(h, weight, wanted[2])}
        if entropy is not None:
            errors["entropy"] = (entropy - wanted[1]).abs().max()
    note = ", ".join(f"{name} {float(error):.1e}" for name, error in errors.items())
    if entropy is not None and entropy.requires_grad:
        weight.grad, h.grad = None, None
        start = bench.now()
        logprobs, entropy = run(h, weight, targets)
        (logprobs * grads[0] + entropy * grads[1]).sum().backward()
        both = bench.now() - start
        more = gradient_errors(h, weight, wanted[3])
        note += f"; with entropy's gradient {both:.4f} s (one call), " + ", ".join(
            f"{name} {float(error):.1e}" for name, error in more.items())
    f, b = statistics.median(forward[1:]), statistics.median(backward[1:])
    weight.grad = None
    return {"seconds": f + b, "peak_gb": peak, "raw": [forward, backward],
            "note": f"forward {f:.4f}, backward {b:.4f}, first call {forward[0] + backward[0]:.1f} s; "
                    f"largest differences to fp64: {note}"}


def gradient_errors(hidden, weight, wanted):
    """Largest difference over the largest gradient, of hidden states and of the head."""
    return {f"gradient of {name}": ((grad.double() - w).abs().max() / w.abs().max())
            for name, grad, w in zip(("hidden", "head"), (hidden.grad, weight.grad), wanted, strict=True)}
