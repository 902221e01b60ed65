"""
How much work a forward pass is, and what the machine can do; tools/efficiency.py says how near a step came to it.

Work is what the algorithm needs, not what the code happens to do: recomputed activations, logits computed twice,
padding and the half of the attention square above the diagonal are not work. tests/test_flops.py checks the formulas.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


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


# ---------------------------------------------------------------- the machine


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


COLUMNS = ("mfu", "mbu", "roofline", "packing", "tail", "seconds_tail")  # what tools/efficiency.py computes
