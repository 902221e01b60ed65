"""
What the parts of bench/gpu.py share: the model of a cell, the clock, rows written as soon as they are measured,
variants that take turns.
"""

import contextlib
import functools
import gc
import json
import os
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
from common import llama
from transformers import AutoConfig, AutoModelForCausalLM

import policy as policy_module
from onebox import packed_attention
from onebox.distributed import init_distributed
from onebox.flops import forward_flops, known_gpu, shape_of
from policy import Policy, pack, shard, token_logprobs
from tools.plan import config_of
from train_grpo import policy_loss

COLUMNS = ("part", "cell", "tokens", "seconds", "ratio", "tokens_per_second", "mfu", "mbu", "gb_per_second", "peak_gb",
           "goal", "reached", "note")
QWEN3 = dict(num_hidden_layers=28, hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
             intermediate_size=3072, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=40960)


def show(name, value):
    if value is None:
        return ""
    if name in ("mfu", "mbu"):
        return f"{value:.1%}"
    if name in ("tokens", "tokens_per_second"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(args, cell, **numbers):
    """Write one finished cell onto the console and into gpu.jsonl at once, with its goal if it has one."""
    row = {"part": args.part, "cell": cell, **numbers}
    goal = None if args.smoke else GOALS.get((args.part, cell))
    if goal is not None:
        column, least = goal
        value = row.get(column)
        row["goal"] = f"{column} >= {show(column, least)}"
        row["reached"] = "not measured" if value is None else "yes" if value >= least else "no"
        if (row.get("peak_gb") or 0.0) > ROOM_GB:
            row["reached"] = f"no: peak above {ROOM_GB:.0f} GB"
    print("  ".join(f"{show(name, row[name])} {name if name not in ('part', 'cell', 'note') else ''}".strip()
                    for name in COLUMNS if row.get(name) is not None), flush=True)
    with open(os.path.join(args.out, "gpu.jsonl"), "a") as f:
        f.write(json.dumps(row) + "\n")


ROOM_GB = 80.0  # a goal is for what fits such a GPU, on whatever it is measured
# What a cell is meant to reach on one H100 or H200: {(part, cell): (column, least value)}. The sync's is of the part
# that copies; the row beside it has the whole with both wake-ups.
GOALS = {("trainer 1.5B", "best"): ("mfu", 0.50), ("trainer 1.5B", "full recomputation"): ("mfu", 0.38),
         ("trainer 0.6B", "best"): ("mfu", 0.33), ("trainer 3B", "best"): ("mfu", 0.50),
         ("trainer 7B", "best"): ("mfu", 0.50), ("host", "SFT, 60 tokens a sequence"): ("tokens_per_second", 300_000.0),
         ("engine 1.5B", "sync: stream and reload"): ("ratio", 0.5)}


class Bench:
    """A model of random weights: device, dtype, config, peaks (or None) and a clock that waits for the GPU."""

    def __init__(self, args, name, layers=0):
        torch.manual_seed(0)
        _, _, self.device = init_distributed()
        self.name, self.args = name, args
        self.on_gpu = self.device.type == "cuda"
        self.dtype = "bfloat16" if self.on_gpu else "float32"
        self.config = config_named(name)
        self.config.num_hidden_layers = layers or self.config.num_hidden_layers
        if getattr(self.config, "layer_types", None):
            self.config.layer_types = ["full_attention"] * self.config.num_hidden_layers
        self.config.bos_token_id = self.config.eos_token_id = self.config.pad_token_id = None
        self.shape, self.params = shape_of(self.config), 0
        self.peaks = known_gpu(torch.cuda.get_device_name(self.device), self.dtype) if self.on_gpu else None

    def policy(self, masters=True, **options):
        """
        Make a Policy as load_policy does, with its options, from random weights drawn on the device.

        masters=False: drop the fp32 weights, which lie elsewhere under offload; it can be timed, not stepped.
        """
        with torch.device(self.device):
            hf = AutoModelForCausalLM.from_config(self.config, attn_implementation="packed")
        self.params = hf.num_parameters()
        policy = shard(Policy(hf), hf.get_decoder(), self.device, self.dtype, **options)
        for p in policy.parameters():
            if not masters and hasattr(p, "master"):
                del p.master
        return policy

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def left(self):
        """Return the seconds that this part still has."""
        return self.args.deadline - time.time()

    def reset_peak(self):
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self):
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.on_gpu else None

    def free(self):
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def room_gb(self):
        """Return the memory that a measured setting may take: no more than a GPU of 80 GB has, see GOALS."""
        total = torch.cuda.get_device_properties(self.device).total_memory / 1e9 if self.on_gpu else ROOM_GB
        return min(total, ROOM_GB)

    def mfu(self, batch, seconds):
        rate = 3 * forward_flops(self.shape, batch.lens, len(batch.targets)) / seconds
        return rate / self.peaks.flops if self.peaks else None


def config_named(name):
    if name == "tiny":
        return llama(64, 128, 2).config
    if name == "SmolLM2-135M":
        return AutoConfig.for_model("llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
                                    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                    tie_word_embeddings=True, max_position_embeddings=8192)
    return AutoConfig.for_model("qwen3", **QWEN3) if name == "Qwen3-0.6B" else config_of(name)


# ---- micro-batches ---------------------------------------------------------------------------------------------------


def responses(tokens, longest, prompt_len, vocab_size):
    """Make ragged rollouts of `tokens` packed tokens in all, longest first and then shorter ones; ids are arbitrary."""
    found, left, i = [], tokens, 0
    shares = (1.0, 0.45, 0.7, 0.25, 0.55, 0.35, 0.85, 0.2)
    while left > prompt_len + 1:
        n = min(left, max(prompt_len + 2, int(longest * shares[i % len(shares)])))
        ids = ((np.arange(n + 1) * 7919 + i) % vocab_size).astype(np.int32)
        found.append(SimpleNamespace(prompt_ids=ids[:prompt_len], response_ids=ids[prompt_len:],
                                     rollout_logprobs=np.zeros(n + 1 - prompt_len, np.float32)))
        left, i = left - n, i + 1
    return sorted(found, key=lambda r: -len(r.response_ids))


def micro_batch(bench, tokens, prompt_len=256, longest=0):
    """Pack one micro-batch of ragged sequences; the longest is a quarter of it unless said otherwise."""
    prompt_len = 2 if tokens < 1024 else prompt_len
    rollouts = responses(tokens, longest or max(4, tokens // 4), prompt_len, bench.shape.vocab)
    (batch,) = pack(rollouts, range(len(rollouts)), tokens + 8, 0, 1, bench.device)
    return batch


def train_once(bench, policy, batch):
    """Run forward, loss and backward of one micro-batch, onto the gradients that are there; return the seconds."""
    start = bench.now()
    logprobs, _ = token_logprobs(policy, batch, 1.0)
    policy_loss(logprobs, logprobs.detach(), torch.ones_like(logprobs), 0.2, 0.2).mean().backward()
    return bench.now() - start


# ---- settings that can be switched, variants that take turns ---------------------------------------------------------


class Switches:
    """
    Switch what compile, checkpointing and the choice of a kernel change in one policy, so that variants share its
    weights and can take turns.

    It stays in training mode, which the compiled code is guarded by: so the code for "best" serves recomputation too.
    Without dropout, which none of these models has, nothing else follows from the mode.
    """

    def __init__(self, policy):
        self.policy, self.trunk = policy, policy.hf.get_decoder()
        self.plain = [block.forward for block in self.trunk.layers]
        policy_module.compile_blocks(self.trunk)
        self.compiled = [block.forward for block in self.trunk.layers]
        self.compiler, self.grads_in_place = policy_module.compiler, policy.grads_in_place
        self.kernels = packed_attention.flash_attn_varlen_func, packed_attention.varlen_attn

    def set(self, blocks=True, head=True, in_place=True, checkpointing=False, attention=""):
        """
        blocks, head: compiled or not. in_place: add the head's gradient where it stays, if the policy does so at all.
        attention: a name that attention_kernels() gives; "": as installed.
        """
        self.policy.grads_in_place = in_place and self.grads_in_place
        for block, forward in zip(self.trunk.layers, self.compiled if blocks else self.plain, strict=True):
            block.forward = forward
        self.policy.compile_head = head
        policy_module.compiler = self.compiler if head else lambda: None  # which the head asks on a GPU
        if checkpointing:
            how = {"context_fn": policy_module.keep_products} if checkpointing == "selective" else {}
            self.trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **how})
        else:
            self.trunk.gradient_checkpointing_disable()
        self.policy.train()
        restore_torch_kernel()
        packed_attention.flash_attn_varlen_func, packed_attention.varlen_attn = self.kernels
        if attention:
            choose_kernel(attention)


@functools.cache
def attention_kernels():
    """Return ({name: how} of what this machine can run, {name: why not} of the rest)."""
    found, lacking = {}, {}
    for name, probe in {"flash-attn 2": probe_flash2, "torch varlen": probe_varlen, "FlashAttention 4": probe_flash4,
                        "FlashAttention 3 through torch": probe_torch("FA3"),
                        "FlashAttention 4 through torch": probe_torch("FA4")}.items():
        try:
            found[name] = probe()
        except Exception as error:  # a package that is broken is as good as none, and must not end the run
            lacking[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return found, lacking


def choose_kernel(name):
    """Let packed_attention use the kernel of this name until the next Switches.set."""
    attention_kernels()[0][name]()


def use(flash=None, varlen=None):
    packed_attention.flash_attn_varlen_func, packed_attention.varlen_attn = flash, varlen


def probe_flash2():
    from flash_attn import flash_attn_varlen_func

    return lambda: use(flash=flash_attn_varlen_func)


def probe_varlen():
    from torch.nn.attention.varlen import varlen_attn

    plain = packed_attention.with_gqa(varlen_attn)
    return lambda: use(varlen=plain)


def probe_flash4():
    """Call the package flash-attn-4 itself, whatever torch knows of it."""
    from flash_attn.cute.interface import flash_attn_varlen_func

    def call(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale, causal):
        out = flash_attn_varlen_func(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q,
                                     max_seqlen_k=max_k, softmax_scale=softmax_scale, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return lambda: use(flash=call)


def probe_torch(implementation):
    """Let torch's own varlen operator run another package: FA3 wants flash_attn_interface, FA4 flash_attn.cute."""
    def probe():
        from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl  # noqa: F401

        activate_flash_attention_impl(implementation)
        restore_torch_kernel()
        plain = probe_varlen()

        def choose():
            plain()
            activate_flash_attention_impl(implementation)

        return choose
    return probe


def restore_torch_kernel():
    with contextlib.suppress(ImportError):
        from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()


def take_turns(variants, rounds, bench, first_call_s=5):
    """
    Run variants in turn, `rounds` times after a warm-up, and return {name: {"seconds": median, "raw", "warm_up",
    "peak_gb"} or {"note": why not}}.

    variants: {name: (enter, step)}; enter() is not timed, step() returns its seconds. One that fails is left out from
    then on; the others go on. Nothing is begun that the part's time does not allow: first_call_s is what the warm-up of
    the first variant may take, which compiles; the others need a few seconds.
    """
    found = {name: {"raw": [], "peak_gb": None} for name in variants}
    for turn in range(rounds + 1):
        if turn > 1 and bench.left() < 5:
            break
        for number, (name, (enter, step)) in enumerate(variants.items()):
            row, needed = found[name], 0 if turn else 5 if number else first_call_s
            if "note" in row:
                continue
            if bench.left() < needed:
                row["note"] = f"not run: {bench.left():.0f} s left of its part"
                continue
            try:
                enter()
                bench.reset_peak()
                seconds = step()
                if turn == 0:
                    row["warm_up"] = seconds
                else:
                    row["raw"].append(seconds)
                    row["peak_gb"] = max(row["peak_gb"] or 0.0, bench.peak_gb() or 0.0) or None
            except Exception as error:  # no memory, no package, no compiler: said, and on
                row["note"] = said(error)
            if "note" in row:  # outside of `except`, which would still hold the tensors of the frames that failed
                bench.free()
    for row in found.values():
        row["seconds"] = statistics.median(row["raw"]) if row["raw"] else None
    return found


def said(error):
    """Return one line that says what an error means for a cell."""
    kind = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
    return f"{kind}: {(str(error).strip().splitlines() or [''])[0][:160]}"
