"""
How much work a step is, and how fast this machine could do it: formulas of plain numbers, a probe, and the dry step.

What counts as work is what the algorithm needs, not what the code happens to do: recomputed activations, logits
computed twice, padding and the half of the attention square above the diagonal are not work. So MFU is that of PaLM
(arXiv 2204.02311, appendix B), save that PaLM counts the whole square. tests/test_speed.py checks the formulas by hand
and against torch's own counter.
"""

import contextlib
import json
import math
import os
import re
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from onebox import distributed
from onebox import rundir
from onebox.config import ConfigError

# ---------------------------------------------------------------------------------------------------------------
# parameters, FLOPs, bytes
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What of a Llama-like architecture decides its cost."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    vectors: int = 0  # parameters of a block that are no matrix: norms and biases

    @property
    def block_weights(self):
        """Entries of the matrices of one block: q, k, v, o, gate, up, down."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def trunk_params(self):
        """All but the head; the embeddings, the last norm and the blocks."""
        return self.layers * (self.block_weights + self.vectors) + self.hidden + self.vocab * self.hidden

    @property
    def params(self):
        return self.trunk_params + (0 if self.tied else self.vocab * self.hidden)

    @property
    def decode_weights(self):
        """Entries that one decoding step reads: blocks and head; of the embeddings only single rows."""
        return self.layers * self.block_weights + self.vocab * self.hidden


def shape_of(config):
    """A Hugging Face config (or anything with its attributes) -> Shape. Those of models.SUPPORTED."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kind, h, inner = config.model_type, config.hidden_size, config.intermediate_size
    vectors = 2 * h  # two norms
    if kind == "qwen2" or getattr(config, "attention_bias", False):
        vectors += (heads + 2 * kv_heads) * head_dim + (h if kind != "qwen2" else 0)  # q, k, v; Qwen2 has none on o
    if kind == "qwen3":
        vectors += 2 * head_dim  # norms of q and k
    if kind == "olmo2":
        vectors += (heads + kv_heads) * head_dim  # the same over all heads
    if getattr(config, "mlp_bias", False):
        vectors += 2 * inner + h
    return Shape(config.num_hidden_layers, h, heads, kv_heads, head_dim, inner, config.vocab_size,
                 bool(getattr(config, "tie_word_embeddings", False)), vectors)


def attention_pairs(lens):
    """sum over sequences of n (n + 1) / 2: the (query, key) pairs of causal attention."""
    lens = np.asarray(lens, dtype=np.float64)
    return float((lens * (lens + 1) / 2).sum())


def forward_flops(shape, lens, scored):
    """
    FLOPs of one forward pass over packed sequences; backward is twice as many, so training is 3 of these.

        2 * layers * block_weights * tokens                  every matrix of a block, a multiplication and an addition
        4 * layers * heads * head_dim * attention_pairs      q @ k and probabilities @ v, causal
        2 * vocab * hidden * scored                          the head, on response tokens only

    lens: packed lengths, prompt + response - 1 each; scored: response tokens (0 for a critic, which has no such head).
    """
    linear = 2 * shape.layers * shape.block_weights * float(np.sum(lens))
    attention = 4 * shape.layers * shape.heads * shape.head_dim * attention_pairs(lens)
    return linear + attention + 2 * shape.vocab * shape.hidden * float(scored)


def kv_bytes_per_token(shape, bytes_each=2):
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_each


def decode_work(shape, prompt_lens, response_lens, num_seqs, bytes_each=2):
    """
    The least that one engine must do to sample these responses (R,), at most num_seqs at a time -> (bytes, flops).

        steps = max(longest response, ceil(all response tokens / num_seqs))       no schedule needs fewer
        bytes = steps * decode_weights * bytes_each  +  sum_i (r_i p_i + r_i (r_i + 1) / 2) * kv_bytes_per_token

    Every step reads each weight once, and of each running sequence all keys and values so far (a prefix that sequences
    share is still read by each). FLOPs: r_i tokens each through all weights; the prompts' own pass is not counted, as a
    group shares it.
    """
    p, r = np.asarray(prompt_lens, dtype=np.float64), np.asarray(response_lens, dtype=np.float64)
    if not r.sum():
        return 0.0, 0.0
    steps = max(r.max(), math.ceil(r.sum() / num_seqs))
    pairs = float((r * p + r * (r + 1) / 2).sum())
    flops = 2 * shape.decode_weights * r.sum() + 4 * shape.layers * shape.heads * shape.head_dim * pairs
    read = steps * shape.decode_weights * bytes_each + pairs * kv_bytes_per_token(shape, bytes_each)
    return float(read), float(flops)


def efficiency(row, shape, peaks, rollouts, trained, *, policy_passes, measured=(), critic_shape=None,
               critic_passes=0, loads=(), world=1, tensor_parallel=1, max_num_seqs=256, round_size=0, dtype="bfloat16"):
    """
    The columns that say how far a step was from what the machine can do. row holds its seconds_*.

        mfu       FLOPs of all trainer passes / (seconds_logprobs + _values + _train) / (peak FLOP/s * world)
        mbu       bytes that decoding had to read / seconds_rollout / (peak bandwidth * world)
        roofline  (decode time at peak + trainer time at peak) / (seconds_step - eval - save); decode time at peak is
                  the larger of bytes / bandwidth and FLOPs / peak, trainer time FLOPs / peak, both in perfect balance
        packing   tokens / (ranks * tokens of the fullest rank), each micro-batch by itself: 1 = no rank waits
        tail      longest response / mean response

    rollouts: all of the step, trained: those of its updates; policy_passes, critic_passes in forwards (training is 3);
    measured: responses that only went forward, two passes less;
    loads: one (tokens of all ranks, tokens of the fullest) per micro-batch; round_size: rollouts of one sampling round.
    """
    lens = [len(r.prompt_ids) + len(r.response_ids) - 1 for r in trained]
    scored = sum(len(r.response_ids) for r in trained)
    flops = policy_passes * forward_flops(shape, lens, scored)
    if measured:
        flops += (policy_passes - 2) * forward_flops(shape, [len(r.prompt_ids) + len(r.response_ids) - 1 for r in measured],
                                                     sum(len(r.response_ids) for r in measured))
    if critic_passes:
        flops += critic_passes * forward_flops(critic_shape or shape, lens, 0)
    engines, bytes_each = world // tensor_parallel, 4 if dtype == "float32" else 2
    read, decode_s = 0.0, 0.0
    for first in range(0, len(rollouts), round_size or max(1, len(rollouts))):
        part = rollouts[first:first + (round_size or len(rollouts))]
        for engine in range(engines):
            mine = [r for r in part if r.prompt % engines == engine]
            bytes_, ops = decode_work(shape, [len(r.prompt_ids) for r in mine], [len(r.response_ids) for r in mine],
                                      max_num_seqs, bytes_each)
            read += bytes_
            decode_s += max(bytes_ / peaks.bandwidth, ops / peaks.flops) / world
    train_s = flops / (peaks.flops * world)
    spent = row["seconds_logprobs"] + row.get("seconds_values", 0.0) + row["seconds_train"]
    step = row["seconds_step"] - row["seconds_eval"] - row["seconds_save"]
    mean = sum(len(r.response_ids) for r in rollouts) / max(1, len(rollouts))
    filled, fullest = (sum(load[i] for load in loads) for i in (0, 1))
    return {"mfu": train_s / spent if spent else None,
            "mbu": read / (peaks.bandwidth * world) / row["seconds_rollout"] if row["seconds_rollout"] else None,
            "roofline": (decode_s + train_s) / step,
            "packing": filled / (world * fullest) if fullest else None,
            "tail": max((len(r.response_ids) for r in rollouts), default=0) / mean if mean else None}


def micro_batch_loads(batches, device):
    """The micro-batches of a step on this rank -> [(tokens of all ranks, tokens of the fullest rank)], one for each."""
    local = [float(sum(b.lens)) if len(b.targets) else 0.0 for b in batches]  # a rank without work packs one dummy token
    if not local:  # no group was left to train on; the same on every rank
        return []
    total, most = (torch.tensor(local, dtype=torch.float64, device=device) for _ in range(2))
    dist.all_reduce(total)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return list(zip(total.tolist(), most.tolist(), strict=True))


COLUMNS = ("mfu", "mbu", "roofline", "packing", "tail")  # what efficiency() returns

# ---------------------------------------------------------------------------------------------------------------
# peaks
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peaks:
    """Of one process: one GPU, or the threads of one CPU process while the others work too."""

    flops: float  # dense, in the dtype of compute, a second
    bandwidth: float  # bytes of memory a second
    source: str


# Words of the device's name: dense bf16 TFLOP/s with fp32 accumulation, fp32 TFLOP/s, TB/s, GB; NVIDIA's data sheets.
# The first entry whose words all occur is taken; names with a word of OTHER are variants whose numbers differ.
GPUS = {
    "B200": (2250, 75, 8.0, 180), "H200 NVL": (835, 60, 4.8, 141), "H200": (989, 67, 4.8, 141),
    "H100 PCIe": (756, 51, 2.0, 80), "H100 NVL": (835, 60, 3.9, 94), "H100": (989, 67, 3.35, 80),
    "H800 PCIe": (756, 51, 2.0, 80), "H800": (989, 67, 3.35, 80), "H20": (148, 44, 4.0, 96),
    "A100 SXM4 80GB": (312, 19.5, 2.039, 80), "A100 80GB": (312, 19.5, 1.935, 80), "A100": (312, 19.5, 1.555, 40),
    "A800 SXM4 80GB": (312, 19.5, 2.039, 80), "A800 80GB": (312, 19.5, 1.935, 80),
    "L40S": (362, 91.6, 0.864, 48), "L40": (181, 90.5, 0.864, 48), "L4": (121, 30.3, 0.3, 24),
    "A40": (150, 37.4, 0.696, 48), "A10": (125, 31.2, 0.6, 24), "A6000": (155, 38.7, 0.768, 48),
    "RTX 3090": (71, 35.6, 0.936, 24), "RTX 4090": (165, 82.6, 1.008, 24), "RTX 5090": (210, 105, 1.792, 32),
}
OTHER = {"LAPTOP", "MAX", "TI", "D", "MIG", "ADA", "GENERATION"}


def known_gpu(name, dtype):
    """'NVIDIA H100 80GB HBM3' -> Peaks, or None for a device that is not in the table."""
    words = set(re.split(r"[\s\-_]+", name.upper()))
    for key, (bf16, fp32, bandwidth, _) in GPUS.items():
        if set(key.upper().split()) <= words and not words & OTHER:
            return Peaks((fp32 if dtype == "float32" else bf16) * 1e12, bandwidth * 1e12, f"data sheet of {key}")
    return None


def machine_peaks(device, dtype, cache=None):
    """
    Peaks of this process: a table for known GPUs, else the fastest that any start on this machine has seen in a probe
    (the first takes a second, later ones 0.2), so that a busy neighbour does not lower it for good. They are kept in
    ~/.cache/onebox-r1/peaks.json: remove it after a change of the machine. A collective: all ranks probe at once, since
    they share a CPU's memory. Draws no random number.
    """
    world = dist.get_world_size()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if found := known_gpu(name, dtype):
            return found
    else:
        name = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    key = f"{name}, {world} processes, {dtype}, torch {torch.__version__}"
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = cache or os.path.join(home, "onebox-r1", "peaks.json")
    before = read_cache(cache).get(key)
    found = torch.tensor(probe(device, dtype, 0.05 if before else 0.5), dtype=torch.float64, device=device)
    dist.all_reduce(found)
    found /= world
    before = before or (0.0, 0.0)
    best = [max(pair) for pair in zip(before, found.tolist(), strict=True)]
    if dist.get_rank() == 0 and best != list(before):
        write_cache(cache, key, best)
    found = torch.tensor(best, dtype=torch.float64, device=device)
    dist.broadcast(found, src=0)
    return Peaks(*found.tolist(), f"measured on {key}")


def cpu_name():
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine


def read_cache(path):
    try:
        with open(path) as f:
            found = json.load(f).items()
        return {key: pair for key, pair in found if len([float(x) for x in pair]) == 2}
    except (OSError, ValueError, TypeError, AttributeError):  # none, or not what write_cache writes: probed anew
        return {}


def write_cache(path, key, value):
    with contextlib.suppress(OSError):  # a home directory that cannot be written to costs a second a start
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w") as f:
            json.dump(read_cache(path) | {key: value}, f, indent=1)
        os.replace(f"{path}.{os.getpid()}", path)


def probe(device, dtype, budget_s=0.5):
    """-> (FLOP/s of a large matrix product, bytes/s of reading memory): the fastest of what fits into budget_s each."""
    on_gpu, dtype = device.type == "cuda", getattr(torch, dtype)
    n = 8192 if on_gpu else 1024
    a, b = (torch.full((n, n), 0.5, dtype=dtype, device=device) for _ in range(2))
    flops = 2 * n**3 / fastest(lambda: a @ b, device, budget_s)
    weights = torch.full((2**28 if on_gpu else 2**25,), 0.5, device=device)  # 1 GB, and 128 MB: larger than caches
    return flops, 4 * weights.numel() / fastest(weights.sum, device, budget_s)


def fastest(work, device, budget_s):
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < budget_s or best == float("inf"):
        before = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return best


# ---------------------------------------------------------------------------------------------------------------
# a step at full length, before the first real one
# ---------------------------------------------------------------------------------------------------------------


def dry_step(models, reference, cfg, max_tokens, vocab_size, world, device, say):
    """
    One micro-batch as large as any that the run can meet, forward and backward by the same functions, so that out
    of memory comes before the first rollout and not at step 120. The engine must be asleep.

    models: {"policy": (policy, optimizer)}, perhaps "critic" too, with Adam's moments already there (policy.make_adam).
    Gradients stand there as zeros meanwhile, as they will from the second micro-batch on. Afterwards they are dropped: no
    weight, no optimizer state and no random generator has changed. Says the peak memory in one line; ConfigError with exit
    code 4 if it is too much.
    """
    import policy as model

    full = cfg.max_prompt_len + cfg.max_response_len - 1
    most = math.ceil(cfg.prompts_per_step * cfg.group_size / world)
    lens = [full] * min(max(1, max_tokens // full), most)
    rest = max_tokens - sum(lens)
    if len(lens) < most and rest > cfg.max_prompt_len:  # a shorter response fills a micro-batch to the last token
        lens.append(rest)
    ids = np.arange(full + 1) % vocab_size
    fake = [FakeRollout(ids[:cfg.max_prompt_len], ids[cfg.max_prompt_len:n + 1], np.zeros(n + 1 - cfg.max_prompt_len)) for n in lens]
    start = time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        batch = model.to_micro_batch(fake, range(len(fake)), device)
        for trained, _ in models.values():
            for p in trained.parameters():
                p.grad = torch.zeros_like(p)
        with torch.no_grad():
            if reference is not None:
                model.token_logprobs(reference, batch, cfg.temperature)
        for name, (trained, _) in models.items():
            if name == "critic":
                model.token_values(trained, batch).mean().backward()
            else:
                logprobs, entropy = model.token_logprobs(trained, batch, cfg.temperature)
                (logprobs - entropy).mean().backward()
    except (RuntimeError, MemoryError) as error:
        if not rundir.out_of_memory(error):
            raise
        hint = "that is one sequence: take more GPUs, checkpointing or a shorter max_response_len, or ask tools/plan.py"
        if len(lens) > 1:
            hint = (rundir.halve_tokens() if "max_tokens" in rundir.LAST else
                    f"halve max_tokens_per_gpu (now {max_tokens})")
        raise ConfigError(f"out of memory in the dry step: a micro-batch of {sum(lens):,} tokens does not fit "
                          f"beside weights, gradients and Adam; {hint}", exit_code=4) from error
    finally:
        for trained, _ in models.values():
            trained.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        room = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f}"
        torch.cuda.empty_cache()
    else:
        peak, room = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, ""
    peak, seconds = distributed.max_over_ranks(peak, device), time.monotonic() - start
    say(f"dry step: {sum(lens):,} tokens fit: peak {peak:.1f}{room} GB a process, {seconds:.1f} s")


@dataclass
class FakeRollout:
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    rollout_logprobs: np.ndarray
