"""
The policy: a Hugging Face causal LM, sharded with FSDP2, fed with packed sequences (no padding), and its log-probs.

Nothing here has an opinion about the algorithm: rollouts and token budgets go in, log-probabilities come out.
Letters in shape comments: N tokens of a micro-batch, S sequences and T response tokens in it, H hidden, V vocabulary.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import AttentionInterface

from onebox.config import refuse
from onebox.distributed import compiler, gather, wanted_compiler, whole
from onebox.fused_logprobs import TokenLogprobs
from onebox.masters import keep_masters, step_masters
from onebox.models import load_hf
from onebox.packed_attention import packed_attention

# ---------------------------------------------------------------- models


class Policy(torch.nn.Module):
    """A causal LM whose forward returns the log-probability and entropy of given next tokens, never the logits."""

    def __init__(self, hf, compile=False):
        super().__init__()
        self.hf, self.compile_head, self.grads_in_place = hf, compile, False

    def forward(self, batch, temperature):
        hidden = self.hf.get_decoder()(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False,
                                       packed=batch).last_hidden_state[0]  # (N, H)
        head = self.hf.get_output_embeddings()
        compile = self.compile_head or hidden.is_cuda and compiler() is not None
        return TokenLogprobs.apply(hidden[batch.logit_index], head.weight, head.bias, batch.targets, temperature,
                                   compile, self.grads_in_place and head.weight.requires_grad)


class Critic(torch.nn.Module):
    """The trunk of a causal LM with a value head of its own, zero at the start; the head computes in fp32."""

    def __init__(self, hf):
        super().__init__()
        self.trunk = hf.get_decoder()
        self.head = torch.nn.Linear(hf.config.hidden_size, 1, dtype=torch.float32)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch):
        hidden = self.trunk(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False,
                            packed=batch).last_hidden_state[0]  # (N, H)
        return self.head(hidden[batch.logit_index].float())[:, 0].clone()  # FSDP hooks the output: no view


def load_options(cfg):
    """Return the options of load_policy and load_critic that a script's settings, none of them "auto", ask for."""
    return dict(checkpointing=cfg.checkpointing, compile=cfg.compile, offload=cfg.offload == "optimizer",
                shard_size=cfg.shard_size)


def load_policy(path, device, dtype, *, trainable=True, **options):
    """
    Load a Hugging Face directory as a Policy. Several processes shard each transformer block with FSDP2.

    Compute is in `dtype`; weights that are trained, their gradients and Adam's state are in fp32 (bf16 weights at lr
    1e-6 would never move). trainable=False: a reference, weights in `dtype`, no gradients. The options:

    checkpointing  recompute all of a block in backward (True), only what is cheap ("selective"), or nothing (False)
    compile        torch.compile each block
    offload        keep fp32 weights and Adam's state on the host, a reference as a whole (one process: see
                   onebox/masters.py; several: FSDP2's CPUOffloadPolicy, which keeps gradients there too)
    always_fsdp    in one process too, to compare
    shard_size     shard inside groups of so many ranks and replicate across them (0: over all), for several nodes

    Raises ConfigError for a model that cannot be trained here.
    """
    hf = load_hf(path)
    return shard(Policy(hf, options.get("compile", False)), hf.get_decoder(), device, dtype, trainable=trainable,
                 **options)


def load_critic(path, device, dtype, **options):
    """Load the trunk of a Hugging Face directory as a Critic; the arguments are those of load_policy."""
    critic = Critic(load_hf(path))
    return shard(critic, critic.trunk, device, dtype, **options)


def shard(module, trunk, device, dtype, *, checkpointing=False, compile=False, offload=False, trainable=True,
          shard_size=0, always_fsdp=False):
    """Prepare a Policy or Critic whose transformer blocks are trunk.layers, and return it; see load_policy."""
    compute, world = getattr(torch, dtype), dist.get_world_size()
    if trainable and checkpointing:
        how = {"context_fn": keep_products} if checkpointing == "selective" else {}
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **how})
    module.train(bool(checkpointing) and trainable)
    module.requires_grad_(trainable)
    if compile:
        compile_blocks(trunk)
    if world == 1 and not always_fsdp:  # nothing to shard: FSDP would only copy all weights
        module.grads_in_place = True  # of the head, see TokenLogprobs
        if trainable and (offload or compute != torch.float32):
            keep_masters(module.trunk if isinstance(module, Critic) else module, device, compute, offload)
        else:
            cast_parameters(module, compute)
        module.to(device)
        for p in module.parameters() if offload and not trainable else ():
            p.data = p.data.cpu()  # masters.on_device brings it back
        return module
    mesh = device_mesh(device.type, (world // shard_size, shard_size) if 0 < shard_size < world else (world,))
    mixed = MixedPrecisionPolicy(param_dtype=compute if compute != torch.float32 else None, reduce_dtype=torch.float32,
                                 cast_forward_inputs=False)  # it would copy a MicroBatch's fields before every block
    options = {"mesh": mesh, "mp_policy": mixed}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for block in trunk.layers:  # only one block at a time is materialized in fp32 on the GPU
        cast_parameters(block, torch.float32 if trainable else compute)
        fully_shard(block, **options)
    if isinstance(module, Critic):  # a group of its own: its product with the hidden states is in fp32
        fully_shard(module.head.to(torch.float32), **options | {"mp_policy": MixedPrecisionPolicy()})
    cast_parameters(module, torch.float32 if trainable else compute)
    # Embeddings, last norm and head in one group, which keeps tied weights together. Resharded after forward, unlike
    # FSDP's default for the root: else a forward without backward would leave its bf16 copies where parameters() looks.
    fully_shard(module, **options, reshard_after_forward=True)
    return module


@functools.cache
def device_mesh(kind, shape):
    """Make one mesh for policy, critic and reference: each new one may open communicators of its own."""
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")[-len(shape):])


def cast_parameters(module, dtype):
    """Cast parameters only: `.to(dtype)` would also round the rotary frequencies, and every position with them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def check_compile(compile, checkpointing):
    """Raise ConfigError if compile = True cannot work here, before any weight is loaded; "auto" asks for neither."""
    refuse(compile is True and checkpointing == "selective", "compile = True already keeps of each block only what is "
           "not cheap to compute again: set checkpointing to True or False")
    refuse(compile is True and not compiler(), "compile = True needs a compiler on this machine, and "
           f"{wanted_compiler()} is not there: apt install g++, or leave it out")


def compile_blocks(trunk):
    """
    Compile each block's forward; FSDP's hooks stay outside. Attention stays as it is: it reads Python lists of lengths,
    on which the compiler would specialize again at every step.
    """
    AttentionInterface.register("packed", uncompiled_attention())
    for block in trunk.layers:
        block.forward = torch.compile(block.forward, dynamic=True)


@functools.cache  # one wrapper for policy, critic and reference: the compiled code is guarded by its identity
def uncompiled_attention():
    return torch.compiler.disable(packed_attention)


def keep_products():
    """Recompute selectively: keep matrix products and attention, compute again what is cheap between them."""
    aten = torch.ops.aten
    kept = [aten.mm.default, aten.addmm.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default]
    if hasattr(torch.ops.flash_attn, "_flash_attn_varlen_forward"):
        kept.append(torch.ops.flash_attn._flash_attn_varlen_forward.default)
    if hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kept.append(torch.ops.torch_attn._varlen_attn.default)
    return create_selective_checkpoint_contexts(kept)


# ---------------------------------------------------------------- packing


@dataclass
class MicroBatch:
    """Sequences laid end to end without padding. Response tokens are the ones that are scored."""

    ids: torch.Tensor  # (N,) prompt and response, without each sequence's last token: nothing follows it
    positions: torch.Tensor  # (N,) counts from 0 in every sequence
    lens: list  # S sequence lengths, longest first
    cu_lens: torch.Tensor  # (S + 1,) int32, where each sequence begins
    logit_index: torch.Tensor  # (T,) the position in (N,) whose logits score response token t
    targets: torch.Tensor  # (T,) the response tokens
    response_index: torch.Tensor  # (T,) which of the rollouts given to `pack` token t belongs to
    rollout_logprobs: torch.Tensor  # (T,) as the engine reported them
    buckets: list = None  # of similar length, for attention without varlen kernels; see length_buckets
    needs_grad: bool = True  # False: a forward pass is enough, nothing in it can move a weight
    ends_update: bool = True  # the last of its update with a backward pass
    stands_for: float = 1.0  # tokens that each of these stands for in the statistics, if others got no pass at all
    tokens_of_all: int = 0  # packed tokens of this micro-batch on all ranks
    tokens_of_fullest: int = 0  # packed tokens of the rank that has most of them
    policy_forwards: int = 0  # passes so far, in forwards: one with a backward counts as three
    critic_forwards: int = 0
    advantages: torch.Tensor = None  # (T,)
    loss_weights: torch.Tensor = None  # (T,) share of each token in the loss of its update
    old_logprobs: torch.Tensor = None  # (T,) of the policy before this step's first update
    ref_logprobs: torch.Tensor = None  # (T,) of the reference model
    old_values: torch.Tensor = None  # (T,) of the critic before this step's first update
    returns: torch.Tensor = None  # (T,) what the critic learns
    logprobs: torch.Tensor = None  # (T,) at the last update, as the next three; without gradient, before the first one
    entropy: torch.Tensor = None  # (T,)
    ratio: torch.Tensor = None  # (T,) to old_logprobs
    clipped: torch.Tensor = None  # (T,) 1 where the clip stopped the gradient

    def by_response(self, *names):
        """Cut fields (T,), those that are not None, into {response: {name: (len,) float64 array}}, in order."""
        index, lens = self.response_index.unique_consecutive(return_counts=True)
        parts = {name: values.double().cpu().split(lens.tolist()) for name in names
                 if (values := getattr(self, name)) is not None}
        return {i: {name: of_all[at].numpy() for name, of_all in parts.items()} for at, i in enumerate(index.tolist())}


def pack(rollouts, chosen, max_tokens, rank, world, device, needs_grad=None, silent_share=1.0, always=()):
    """
    Pack one update into micro-batches for this rank. Every rank passes the same list and gets equally many of them.

    rollouts: with prompt_ids, response_ids, rollout_logprobs. chosen: indices of those to pack; response_index holds
    the same ones. needs_grad: bool (R,), which of them need a backward pass (None: all); their micro-batches come
    first, then those that only go forward: of these a silent_share, of all lengths, and those in `always`, which stand
    for the others in canary and statistics. Longest first onto the least loaded micro-batch, to balance the tokens; at
    most max_tokens each, unless one sequence alone is longer. A rank with nothing to do gets one dummy token without a
    target, as it must take part in FSDP's collectives.
    """
    lens = {i: len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) - 1
            for i in map(int, chosen) if len(rollouts[i].response_ids)}
    order = sorted(lens, key=lambda i: (-lens[i], i))
    with_grad = [i for i in order if needs_grad is None or needs_grad[i]]
    silent = [i for i in order if needs_grad is not None and not needs_grad[i]]
    forward_only = sample(silent, silent_share, always)
    tokens, seen_tokens = (sum(len(rollouts[i].response_ids) for i in part) for part in (silent, forward_only))
    batches = []
    for part, grad in ((with_grad, True), (forward_only, False)):
        if not part and (grad or with_grad):  # an update without any token is one empty micro-batch
            continue
        limit = max([max_tokens, *(lens[i] for i in part)])
        count = max(1, math.ceil(sum(lens[i] for i in part) / (limit * world)))
        while (bins := fill(part, lens, count * world, limit)) is None:
            count += 1
        for first in range(0, count * world, world):
            loads = [sum(lens[i] for i in bin) for bin in bins[first:first + world]]
            batch = to_micro_batch(rollouts, bins[first + rank], device)
            batch.needs_grad, batch.tokens_of_all, batch.tokens_of_fullest = grad, sum(loads), max(loads)
            batch.ends_update = (grad or not part) and first + world == count * world
            batch.stands_for = 1.0 if grad or not part else tokens / seen_tokens
            batches.append(batch)
    return batches


def sample(silent, share, always):
    """Take a share of a sorted list, at even distances, at least one, and what `always` holds."""
    count = math.ceil(share * len(silent))
    taken = {int((k + 0.5) * len(silent) / count) for k in range(count)}
    return [i for at, i in enumerate(silent) if at in taken or i in always]


def fill(order, lens, num_bins, limit):
    """Put each sequence into the bin with the fewest tokens; return the bins, or None if one does not fit."""
    bins, load = [[] for _ in range(num_bins)], [0] * num_bins
    for i in order:
        b = load.index(min(load))
        if load[b] + lens[i] > limit:
            return None
        bins[b].append(i)
        load[b] += lens[i]
    return bins


def to_micro_batch(rollouts, chosen, device):
    """Lay the chosen rollouts, longest first, end to end; none at all become one dummy token without a target."""
    chosen = np.asarray(list(chosen), dtype=np.int32)
    parts = [ids for i in chosen for ids in (rollouts[i].prompt_ids, rollouts[i].response_ids)]
    sizes = np.array([len(ids) for ids in parts], dtype=np.int32).reshape(-1, 2)  # (S, 2)
    prompt_lens, response_lens = sizes.T
    lens = sizes.sum(1) - 1 if len(chosen) else np.ones(1, np.int32)  # (S,)
    cu_lens = np.append(0, lens.cumsum())  # (S + 1,)
    ids = np.delete(np.concatenate(parts), (lens + 1).cumsum() - 1) if len(chosen) else np.zeros(1)  # (N,)
    positions = np.arange(cu_lens[-1]) - np.repeat(cu_lens[:-1], lens)  # (N,)
    scored = positions >= np.repeat(prompt_lens - 1, lens) if len(chosen) else np.zeros(1, bool)  # (N,)
    integers = [ids, positions, np.flatnonzero(scored), np.concatenate([np.zeros(0, np.int32), *parts[1::2]]),
                np.repeat(chosen, response_lens), cu_lens]
    logprobs = np.concatenate([np.zeros(0), *(rollouts[i].rollout_logprobs for i in chosen)])  # (T,)
    # one copy to the device, which then widens what torch wants in 64 bits
    *integers, cu_lens = to_device(np.concatenate(integers).astype(np.int32), device).split([len(x) for x in integers])
    ids, positions, logit_index, targets, response_index = (x.long() for x in integers)
    return MicroBatch(ids, positions, lens.tolist(), cu_lens, logit_index, targets, response_index,
                      to_device(logprobs.astype(np.float32), device))


def to_device(array, device):
    """Copy a numpy array to the device, without waiting for what a GPU is doing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


def of_responses(batches, name):
    """Cut the field `name` (T,) of this rank's micro-batches into {response: (len,) float64}, in order of packing."""
    return {i: parts[name] for batch in batches for i, parts in batch.by_response(name).items() if name in parts}


def of_all_ranks(*own):
    """Join each dict {response: (len,)} of this rank with those of the others, in order, on every rank."""
    found = sorted(gather((i, *(values[i] for values in own)) for i in own[0]))
    return [{each[0]: each[1 + k] for each in found} for k in range(len(own))]


def to_responses(batches, name):
    """Gather the field `name` (T,) of all ranks' micro-batches as {response: (len,) float64}, on every rank."""
    return of_all_ranks(of_responses(batches, name))[0]


def from_responses(batch, arrays):
    """Undo to_responses for one micro-batch: {response: (len,)} -> (T,) in fp32, each token where it was."""
    parts = [arrays[i] for i in batch.response_index.unique_consecutive().tolist()]
    return torch.from_numpy(np.concatenate(parts or [np.zeros(0)])).to(batch.rollout_logprobs)


# ---------------------------------------------------------------- log-probabilities, values, optimizer step


def token_logprobs(policy, batch, temperature):
    """Compute logprobs (T,) and entropy (T,) of the response tokens of a micro-batch, at the sampling temperature."""
    batch.policy_forwards += count_pass(policy, batch)
    return policy(batch, temperature)


def trained_logprobs(policy, batch, temperature):
    """
    Compute the same in an update, with gradients if batch.needs_grad. Without, what was computed before the updates
    is good enough for the statistics.
    """
    if not batch.needs_grad and batch.old_logprobs is not None:
        return batch.old_logprobs, batch.entropy
    with torch.set_grad_enabled(batch.needs_grad):
        return token_logprobs(policy, batch, temperature)


def count_pass(module, batch):
    """
    Return the cost of a pass in forwards: 1, or 3 with its backward. Ranks that hold copies (shard_size) add up their
    gradients in the last backward of an update, instead of in each.
    """
    if torch.is_grad_enabled() and isinstance(module, FSDPModule):
        module.set_requires_all_reduce(batch.ends_update)
    return 3 if torch.is_grad_enabled() else 1


def token_values(critic, batch):
    """Compute values (T,) in fp32: V of the state before response token t, which has seen all tokens before t."""
    batch.critic_forwards += count_pass(critic, batch)
    return critic(batch)


def make_adam(module, lr, beta1, beta2, weight_decay):
    """
    Make AdamW over a module's weights, with its moments there from the start, as zeros.

    Made in the first step, they would lie for good between the activations freed around it. And saving an optimizer
    without state makes it take a step, so that the first update after a save would be another one.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(beta1, beta2), weight_decay=weight_decay,
                                  fused=True)
    for p in module.parameters():
        like = getattr(p, "master", p)
        optimizer.state[p] = {"step": torch.zeros((), device=like.device), "exp_avg": torch.zeros_like(like),
                              "exp_avg_sq": torch.zeros_like(like)}
    return optimizer


def learning_rate(step, lr, schedule, warmup_steps, num_steps, min_ratio):
    """
    Compute the lr of step 1, 2, ...: linear warm-up, then "constant", "linear" or "cosine" towards min_ratio * lr.

    No step is wasted on an lr of 0: the warm-up begins above it, and the schedule would reach min_ratio after the last.
    """
    if step <= warmup_steps:
        return lr * max(step, 0) / (warmup_steps + 1)
    if schedule == "constant":
        return lr
    done = (step - warmup_steps - 1) / max(1, num_steps - warmup_steps)
    shape = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return lr * (min_ratio + (1 - min_ratio) * shape)


def optimizer_step(module, optimizer, lr, grad_clip, skip=False):
    """
    Clip the global gradient norm, step with this lr, and return the norm before clipping (the same on all ranks).

    A norm that is not finite steps nothing and is returned as it is: weights and Adam state stay as they were.
    skip: drop the gradients and return 0. Without a signal, momentum and weight decay would still move the weights.
    """
    norm = 0.0
    if not skip:
        norm = whole(torch.nn.utils.clip_grad_norm_(module.parameters(), grad_clip or float("inf"))).item()
        if math.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = lr
            step_masters(module, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return norm
