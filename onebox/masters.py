"""
fp32 master weights of a module that one process computes in bf16, without FSDP's copies; in the host's memory if asked.

    parameter   bf16, on the device                         what forward and backward read
    .grad       fp32, on the device                         the sum over micro-batches (grad_dtype)
    .master     fp32, on the device, or on the host         what Adam, checkpoint and export see

A small step would not move a bf16 weight, nor a small gradient a bf16 sum. 12 of these 18 bytes a parameter, masters
and Adam's moments, lie on the host under offload. RL makes one step per 10^5 to 10^6 tokens: it may be a slow one.
"""

from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule


def keep_masters(module, device, compute, on_host):
    """Move the parameters to the device in `compute`; keep each in fp32 as its .master, there or on the host."""
    for p in module.parameters():
        p.master = p.data.to(device="cpu" if on_host else device, dtype=torch.float32, copy=True)
        p.data = p.data.to(device=device, dtype=compute)
        p.grad_dtype, p.on_host = torch.float32, on_host


@contextmanager
def on_device(module, device):
    """Bring to the device what of a module waits on the host, and drop it there afterwards. FSDP2 does so by itself."""
    parameters = () if module is None or isinstance(module, FSDPModule) else module.parameters()
    waiting = [(p, p.data) for p in parameters if p.device != device]
    for p, on_host in waiting:
        p.data = on_host.to(device)
    try:
        yield
    finally:
        for p, on_host in waiting:
            p.data = on_host


@contextmanager
def masters(parameters, written=True):
    """Let the parameters be their masters; where these are written, round what they are afterwards."""
    held = [(p, p.data) for p in parameters if hasattr(p, "master")]
    for p, _ in held:
        p.data = p.master
    try:
        yield
    finally:
        for p, rounded in held:
            p.data = rounded
        if held and written:
            torch._foreach_copy_([rounded for _, rounded in held], [p.master for p, _ in held])


def step_masters(module, optimizer):
    """Let Adam step the masters, or parameters that are in fp32 themselves, and drop the gradients."""
    on_host = [p for p in module.parameters() if getattr(p, "on_host", False) and p.grad is not None]
    gradients = [p.grad for p in on_host]
    for p in on_host:
        p.grad = None
    with masters(p for p in module.parameters() if not getattr(p, "on_host", False)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    staged = torch.empty(max([p.numel() for p in on_host], default=0), pin_memory=torch.cuda.is_available())
    for p in reversed(on_host):  # one after the other: the host holds one gradient, and the device ever fewer
        buffer, rounded = staged[:p.numel()].view(p.shape), p.data
        p.data, p.grad = p.master, buffer.copy_(gradients.pop())
        optimizer.step()
        # the cast on the host halves what crosses to the device, out of pinned memory
        rounded.copy_(staged.view(rounded.dtype)[:p.numel()].view(p.shape).copy_(p.master))
        p.grad, p.data = None, rounded
