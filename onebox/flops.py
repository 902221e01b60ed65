"""
How much work a step is, and how near it came to what the machine can do.

Work is what the algorithm needs, not what the code happens to do: recomputed activations, logits computed twice,
padding and the half of the attention square above the diagonal are not work. So MFU is that of PaLM (arXiv 2204.02311,
appendix B), except that PaLM counts the whole square. tests/test_flops.py checks the formulas.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from onebox.distributed import sum_over_ranks


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

    @property
    def block_weights(self):
        """Count the entries of the matrices of one block: q, k, v, o, gate, up, down."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def decode_weights(self):
        """Count the entries that one decoding step reads: blocks and head; of the embeddings only single rows."""
        return self.layers * self.block_weights + self.vocab * self.hidden


def shape_of(config):
    """Read the Shape off a Hugging Face config (or anything with its attributes) of one of models.SUPPORTED."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(config.num_hidden_layers, config.hidden_size, heads, kv_heads, head_dim, config.intermediate_size,
                 config.vocab_size)


def forward_flops(shape, lens, scored):
    """
    Count the FLOPs of a forward pass over packed sequences; backward is twice as many, so training is 3 of these.

        2 * layers * block_weights * tokens                  every matrix of a block, a multiplication and an addition
        4 * layers * heads * head_dim * sum n (n + 1) / 2    q @ k and probabilities @ v, causal, in each sequence of n
        2 * vocab * hidden * scored                          the head, on response tokens only

    lens: packed lengths, prompt + response - 1 each; scored: response tokens (0 for a critic, which has no such head).
    """
    lens = np.asarray(lens, dtype=np.float64)
    pairs = (lens * (lens + 1) / 2).sum()
    linear, attention = 2 * shape.block_weights * lens.sum(), 4 * shape.heads * shape.head_dim * pairs
    return float(shape.layers * (linear + attention) + 2 * shape.vocab * shape.hidden * scored)


def kv_bytes_per_token(shape, bytes_each=2):
    """Count the bytes of one token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_each


def decode_work(shape, prompt_lens, response_lens, num_seqs, bytes_each=2):
    """
    Count the least (bytes read, FLOPs) that one engine needs to sample these responses (R,), at most num_seqs at once.

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


# ---------------------------------------------------------------- the machine, and how much of it a step used


class Peaks(NamedTuple):
    """Of one GPU: FLOP/s, dense, in the dtype of compute; bytes of memory a second."""

    flops: float
    bandwidth: float


# Words of the device's name: dense bf16 TFLOP/s with fp32 accumulation, fp32 TFLOP/s, TB/s; NVIDIA's data sheets.
# The first entry whose words all occur is taken; names with a word of OTHER are variants whose numbers differ.
GPUS = {
    "B200": (2250, 75, 8.0), "H200 NVL": (835, 60, 4.8), "H200": (989, 67, 4.8), "H100 PCIe": (756, 51, 2.0),
    "H100 NVL": (835, 60, 3.9), "H100": (989, 67, 3.35), "H800 PCIe": (756, 51, 2.0), "H800": (989, 67, 3.35),
    "H20": (148, 44, 4.0), "A100 SXM4 80GB": (312, 19.5, 2.039), "A100 80GB": (312, 19.5, 1.935),
    "A100": (312, 19.5, 1.555), "A800 SXM4 80GB": (312, 19.5, 2.039), "A800 80GB": (312, 19.5, 1.935),
    "L40S": (362, 91.6, 0.864), "L40": (181, 90.5, 0.864), "L4": (121, 30.3, 0.3), "A40": (150, 37.4, 0.696),
    "A10": (125, 31.2, 0.6), "A6000": (155, 38.7, 0.768), "RTX 3090": (71, 35.6, 0.936),
    "RTX 4090": (165, 82.6, 1.008), "RTX 5090": (210, 105, 1.792)}
OTHER = {"LAPTOP", "MAX", "TI", "D", "MIG", "ADA", "GENERATION"}


def known_gpu(name, dtype):
    """Look up the Peaks of 'NVIDIA H100 80GB HBM3'; None for a device that is not in the table."""
    words = set(re.split(r"[\s\-_]+", name.upper()))
    for key, (bf16, fp32, bandwidth) in GPUS.items():
        if set(key.upper().split()) <= words and not words & OTHER:
            return Peaks((fp32 if dtype == "float32" else bf16) * 1e12, bandwidth * 1e12)
    return None


@dataclass(frozen=True)
class Machine:
    """What the steps of a run are measured against: the models' shapes, the peaks of one GPU, the layout."""

    shape: Shape
    peaks: Peaks | None  # None: unknown
    world: int = 1
    engines: int = 1
    max_num_seqs: int = 256
    round_size: int = 0  # rollouts of one sampling round; 0: all of a step
    bytes_each: int = 2
    critic_shape: Shape | None = None


def machine_of(cfg, hf_config, dtype, world, device, critic_config=None):
    peaks = known_gpu(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    round_size = cfg.prompts_per_step * cfg.group_size if cfg.finish_share == 1 else 0
    return Machine(shape_of(hf_config), peaks, world, world // cfg.tensor_parallel, cfg.max_num_seqs, round_size,
                   4 if dtype == "float32" else 2, shape_of(critic_config) if critic_config is not None else None)


COLUMNS = ("mfu", "mbu", "roofline", "packing", "tail", "seconds_tail")  # what efficiency() returns


def efficiency(row, machine, rollouts, batches, device):
    """
    Compute the columns that say how far a step was from what the machine can do; a collective. row: its seconds_*.

        mfu       FLOPs of all trainer passes / (seconds_logprobs + _values + _train) / (peak FLOP/s * world)
        mbu       bytes that decoding had to read / seconds_rollout / (peak bandwidth * world)
        roofline  (decode time at peak + trainer time at peak) / (seconds_step - eval - save); decode time at peak is
                  the larger of bytes / bandwidth and FLOPs / peak, trainer time FLOPs / peak, both in perfect balance
        packing   tokens / (ranks * tokens of the fullest rank), each micro-batch by itself: 1 = no rank waits
        tail      longest response / mean response
        seconds_tail  of the rollout, after 95 % of the slowest engine's responses were done

    rollouts: all of the step, on every rank; what finish_share left out was decoded too. batches: this rank's
    micro-batches, which count their own passes. The first three are None unless the device's peaks are known.
    """
    lens, size = [len(r.response_ids) for r in rollouts if not r.dropped], machine.round_size or len(rollouts)
    rounds = [rollouts[first:first + size] for first in range(0, len(rollouts), max(1, size))]
    filled, fullest = sum(b.tokens_of_all for b in batches), sum(b.tokens_of_fullest for b in batches)
    found = dict.fromkeys(COLUMNS) | {"packing": filled / (machine.world * fullest) if fullest else None,
                                      "tail": max(lens) * len(lens) / sum(lens) if sum(lens) else None,
                                      "seconds_tail": tail_seconds(rounds)}
    if machine.peaks is None:
        return found
    flops = sum_over_ranks({"flops": sum(trainer_flops(batch, machine) for batch in batches)}, device)["flops"]
    read = decode_s = 0.0
    for of_round in rounds:
        for engine in range(machine.engines):
            mine = [r for r in of_round if r.engine == engine]
            bytes_, ops = decode_work(machine.shape, [len(r.prompt_ids) for r in mine],
                                      [len(r.response_ids) for r in mine], machine.max_num_seqs, machine.bytes_each)
            read += bytes_
            decode_s += max(bytes_ / machine.peaks.bandwidth, ops / machine.peaks.flops) / machine.world
    train_s, read_s = flops / (machine.peaks.flops * machine.world), read / (machine.peaks.bandwidth * machine.world)
    spent = row["seconds_logprobs"] + row.get("seconds_values", 0.0) + row["seconds_train"]
    step = row["seconds_step"] - row["seconds_eval"] - row["seconds_save"]
    return found | {"mfu": train_s / spent if spent else None, "roofline": (decode_s + train_s) / step,
                    "mbu": read_s / row["seconds_rollout"] if row["seconds_rollout"] else None}


def tail_seconds(rounds):
    """Compute the time that the last 5 % of the slowest engine's responses took; 0 of fewer than 20."""
    tail = 0.0
    for of_round in rounds:
        slowest = max(of_round, key=lambda r: r.seconds).engine
        done = sorted(r.seconds for r in of_round if r.engine == slowest and not r.dropped)
        tail += done[-1] - done[-1 - len(done) // 20]
    return tail if rounds else None


def trainer_flops(batch, machine):
    """Count the FLOPs of the passes that a micro-batch has gone through so far; none for a rank's dummy token."""
    scored = len(batch.targets)
    flops = batch.policy_forwards * forward_flops(machine.shape, batch.lens, scored)
    if batch.critic_forwards:
        flops += batch.critic_forwards * forward_flops(machine.critic_shape, batch.lens, 0)
    return flops if scored else 0.0
