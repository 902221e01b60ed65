"""
Causal attention inside each sequence of a packed micro-batch, as transformers' attention implementation "packed".
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from onebox.config import refuse
from onebox.older import with_gqa

try:
    from flash_attn import flash_attn_varlen_func  # CUDA only; without it PyTorch's own varlen kernel there
except ImportError:
    flash_attn_varlen_func = None
try:
    from torch.nn.attention.varlen import varlen_attn  # the same kernel, as PyTorch ships it

    varlen_attn = with_gqa(varlen_attn)
    # With flash-attn-4 installed, torch.nn.attention.activate_flash_attention_impl("FA4") makes it that, unmeasured
except ImportError:
    varlen_attn = None


def length_buckets(lens, device):
    """
    Cut sequences, sorted by length, into buckets no shorter than 3/4 of their longest, so that padding wastes little.

    Returns (first, last, count, longest, index) for each: tokens first ... last of the micro-batch, count sequences,
    the longest one, and where each token stands after padding.
    """
    buckets, first, start = [], 0, 0
    for i in range(1, len(lens) + 1):
        if i == len(lens) or lens[i] < 0.75 * lens[first]:
            bucket = lens[first:i]
            index = np.concatenate([np.arange(n) + j * bucket[0] for j, n in enumerate(bucket)])
            buckets.append((start, start + sum(bucket), len(bucket), bucket[0], torch.from_numpy(index).to(device)))
            first, start = i, start + sum(bucket)
    return buckets


class Unpad(torch.autograd.Function):
    """Pick rows of x (size, ...). Each at most once, so that the backward can copy where index_select's would add."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.size = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad.contiguous()), None


def packed_attention(module, query, key, value, attention_mask, scaling, packed=None, sliding_window=None, softcap=None,
                     s_aux=None, **kwargs):
    """
    Compute causal attention of a packed micro-batch; the interface is transformers' AttentionInterface.

    query (1, heads, N, D), key and value (1, kv_heads, N, D) -> (1, N, heads, D). On CUDA flash-attn's varlen kernel if
    it is installed, else PyTorch's. On a CPU SDPA over buckets of similar length, padded on the right: a causal query
    never sees what follows.
    """
    if sliding_window is not None and max(packed.lens) <= sliding_window:
        sliding_window = None  # full attention
    refuse(any(x is not None for x in (sliding_window, softcap, s_aux)), f"this model's attention wants sliding_window="
           f"{sliding_window}, softcap={softcap} or sinks, which packed_attention does not compute: choose another")
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D)
    gqa = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and (flash_attn_varlen_func or varlen_attn):
        where = (packed.cu_lens, packed.cu_lens, packed.lens[0], packed.lens[0])
        if flash_attn_varlen_func is not None:
            return flash_attn_varlen_func(query, key, value, *where, softmax_scale=scaling, causal=True)[None], None
        return varlen_attn(query, key, value, *where, scale=scaling, window_size=(-1, 0), enable_gqa=gqa)[None], None
    packed.buckets, outs = packed.buckets or length_buckets(packed.lens, query.device), []
    for first, last, count, longest, index in packed.buckets:
        q, k, v = (x[first:last] for x in (query, key, value))
        ragged = len(index) < count * longest
        if ragged:
            q, k, v = (x.new_zeros(count * longest, *x.shape[1:]).index_copy_(0, index, x) for x in (q, k, v))
        q, k, v = (x.reshape(count, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
        out = out.transpose(1, 2).reshape(count * longest, *query.shape[1:])
        outs.append(Unpad.apply(out, index) if ragged else out)
    return torch.cat(outs)[None], None


AttentionInterface.register("packed", packed_attention)
