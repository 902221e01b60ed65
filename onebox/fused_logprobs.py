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
    the whole vocabulary; its gradient is computed only where the loss uses it. in_place: add the gradient of the head
    to weight.grad, which is in fp32, instead of returning it: no (V, H) beside that.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, compile=False, in_place=False):
        logprobs = torch.empty(targets.shape[0], dtype=torch.float32, device=hidden.device)
        entropy, lse = torch.empty_like(logprobs), torch.empty_like(logprobs)
        statistics = compiled(chunk_statistics) if compile else chunk_statistics
        with fp32_products(hidden, weight) as (h, w):
            for i in chunks(hidden, weight):
                logits = scaled_logits(h[i], w, bias, temperature)  # (c, V)
                logprobs[i], entropy[i], lse[i] = statistics(logits, targets[i])
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.temperature, ctx.compile, ctx.head = temperature, compile, weight if in_place else None
        ctx.set_materialize_grads(False)  # None for an output that the loss does not use
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_logprobs = torch.zeros_like(lse) if grad_logprobs is None else grad_logprobs / ctx.temperature
        grad_weight = ctx.head.grad if ctx.head is not None else None
        if grad_weight is None and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        gradient = compiled(chunk_gradient) if ctx.compile else chunk_gradient_in_place
        with fp32_products(hidden, weight) as (h, w):
            for i in chunks(hidden, weight):
                logits = scaled_logits(h[i], w, bias, ctx.temperature)
                of_entropy = () if grad_entropy is None else (entropy[i], grad_entropy[i] / ctx.temperature)
                grad = gradient(logits, targets[i], lse[i], grad_logprobs[i], h.dtype, *of_entropy)  # (c, V)
                grad_hidden[i] = (grad @ w).to(hidden.dtype)
                if grad_weight is not None:
                    add_product(grad_weight, grad.T, h[i])
                if bias is not None:
                    grad_bias += grad.sum(0)
        if ctx.head is not None:
            ctx.head.grad, grad_weight = grad_weight, None
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def chunk_statistics(logits, targets):
    """Map logits (c, V), targets (c,) to the target's log-prob, the entropy and the log-sum-exp, each (c,)."""
    largest = logits.amax(-1)
    target = logits.gather(-1, targets[:, None])[:, 0]
    p = (logits - largest[:, None]).exp_()  # (c, V), not yet divided by its sum
    total = p.sum(-1)
    lse = largest + total.log()
    return target - lse, lse - torch.linalg.vecdot(p, logits) / total, lse


def chunk_gradient(logits, targets, lse, grad_logprobs, dtype, entropy=None, grad_entropy=None):
    """
    Compute the gradient (c, V) to the logits, in `dtype`: d logprob = onehot - p, d entropy = -p (log p + entropy).

    Compiled, it is one pass that reads fp32 and writes `dtype`; a scatter or a change in place would make it three.
    """
    logp = logits - lse[:, None]
    scale = -grad_logprobs[:, None]
    if entropy is not None:
        scale = scale - grad_entropy[:, None] * (logp + entropy[:, None])
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return torch.where(is_target, logp.exp() * scale + grad_logprobs[:, None], logp.exp() * scale).to(dtype)


def chunk_gradient_in_place(logits, targets, lse, grad_logprobs, dtype, entropy=None, grad_entropy=None):
    """Do the same as chunk_gradient and overwrite logits: not compiled, this makes fewer passes."""
    logp = logits.sub_(lse[:, None])
    if entropy is None:
        grad = logp.exp_().mul_(-grad_logprobs[:, None])
    else:
        grad = logp.exp() * (-grad_logprobs[:, None] - grad_entropy[:, None] * (logp + entropy[:, None]))
    return grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None]).to(dtype)


@functools.cache
def adds_in_place():
    """Try whether this PyTorch adds a bf16 product to an fp32 matrix in place: some have the function and refuse it."""
    total, ones = (torch.ones(16, 16, device="cuda", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    try:
        torch.ops.aten.addmm.dtype_out(total, ones, ones, torch.float32, out=total)
    except (AttributeError, RuntimeError):
        return False
    return bool((total == 17).all())


def add_product(total, a, b):
    """Add a @ b to total (fp32), without a product beside it."""
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, out=total)
    elif a.is_cuda and adds_in_place():
        torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
    else:
        total += product_fp32(a, b)


@functools.cache
def compiled(function):
    """Compile with torch.compile: two passes over a chunk forward and one backward, instead of eight."""
    return torch.compile(function)  # V stays a constant, so that its rows are read in wide pieces; c becomes a variable


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
