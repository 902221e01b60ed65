"""
Log-probabilities and entropy of given tokens, without ever holding the logits of all of them.

The plain twin, whose values and gradients tests/test_policy.py compares:

    logp = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)                                       # (T, V)
    logprobs, entropy = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)               # (T,), (T,)
"""

import functools
from contextlib import contextmanager

import torch

CHUNK_LOGITS = 2**24  # as many logits exist at a time on a CPU, 64 MB in fp32, whatever T and V are
CHUNK_LOGITS_CUDA = 2**27  # 512 MB: fewer, larger products; each adds to the (V, H) gradient of the head once


class TokenLogprobs(torch.autograd.Function):
    """
    Map hidden (T, H), head (V, H), targets (T,) to logprobs (T,) and entropy (T,), both fp32 at the given temperature.

    The (T, V) logits exist only one chunk at a time, in fp32, in forward and again in backward. Entropy is exact, over
    the whole vocabulary.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, compile=False):
        logprobs = torch.empty(targets.shape[0], dtype=torch.float32, device=hidden.device)
        entropy, lse = torch.empty_like(logprobs), torch.empty_like(logprobs)
        statistics = compiled(chunk_statistics) if compile else chunk_statistics
        with fp32_products(hidden, weight) as (h, w):
            for i in chunks(hidden, weight):
                logits = scaled_logits(h[i], w, bias, temperature)  # (c, V)
                logprobs[i], entropy[i], lse[i] = statistics(logits, targets[i])
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.compile = temperature, compile
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        grad_logprobs, grad_entropy = grad_logprobs / ctx.temperature, grad_entropy / ctx.temperature
        entropy_counts = bool(grad_entropy.any())
        gradient = compiled(chunk_gradient) if ctx.compile else chunk_gradient
        with fp32_products(hidden, weight) as (h, w):
            for i in chunks(hidden, weight):
                logits = scaled_logits(h[i], w, bias, ctx.temperature)
                parts = (targets[i], lse[i], grad_logprobs[i])
                grad = gradient(logits, *parts, *((entropy[i], grad_entropy[i]) if entropy_counts else ()))
                grad = grad.to(h.dtype)  # (c, V)
                grad_hidden[i] = (grad @ w).to(hidden.dtype)
                grad_weight += product_fp32(grad.T, h[i])
                if bias is not None:
                    grad_bias += grad.sum(0)
        grad_bias = None if bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None, None, None


def chunk_statistics(logits, targets):
    """Map logits (c, V), targets (c,) to the target's log-prob, the entropy and the log-sum-exp, each (c,)."""
    largest = logits.amax(-1)
    target = logits.gather(-1, targets[:, None])[:, 0]
    p = (logits - largest[:, None]).exp_()  # (c, V), not yet divided by its sum
    total = p.sum(-1)
    lse = largest + total.log()
    return target - lse, lse - torch.linalg.vecdot(p, logits) / total, lse


def chunk_gradient(logits, targets, lse, grad_logprobs, entropy=None, grad_entropy=None):
    """Overwrite logits with their gradient (c, V): d logprob = onehot - p, d entropy = -p (log p + entropy)."""
    logp = logits.sub_(lse[:, None])
    if entropy is None:
        grad = logp.exp_().mul_(-grad_logprobs[:, None])
    else:
        grad = logp.exp() * (-grad_logprobs[:, None] - grad_entropy[:, None] * (logp + entropy[:, None]))
    return grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])


@functools.cache
def compiled(function):
    """Compile with torch.compile: 1 to 2 passes over the chunk instead of 8."""
    return torch.compile(function, dynamic=True)


def chunks(hidden, weight):
    size = max(1, (CHUNK_LOGITS_CUDA if hidden.is_cuda else CHUNK_LOGITS) // weight.shape[0])
    return [slice(i, min(i + size, len(hidden))) for i in range(0, len(hidden), size)]


@contextmanager
def fp32_products(hidden, weight):
    """
    Yield hidden and weight as product_fp32 wants them: on a CPU in fp32, cast once.

    Those that were bf16 may be multiplied by oneDNN's bf16 units if the processor has them: their products are exact in
    fp32, and so are the sums.
    """
    if hidden.is_cuda:
        yield hidden, weight
        return
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if hidden.dtype == torch.bfloat16 else before
    try:
        yield hidden.float(), weight.float()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def product_fp32(a, b):
    """Multiply in fp32; on CUDA the product of bf16 matrices is written out in fp32, not rounded on the way."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.dtype != torch.float32 else a @ b


def scaled_logits(hidden, weight, bias, temperature):
    """Map hidden (c, H), weight (V, H) to logits (c, V) in fp32."""
    logits = product_fp32(hidden, weight.T)
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1.0 else logits.div_(temperature)
