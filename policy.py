"""
The policy: a Hugging Face causal LM, sharded with FSDP2, fed with packed sequences (no padding), and its log-probs.

Nothing here has an opinion about the algorithm: rollouts and token budgets go in, log-probabilities come out.
Letters in shape comments: N tokens of a micro-batch, S sequences in it, T response tokens in it, H hidden, V vocabulary.
"""

import functools
import importlib.util
import json
import math
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AutoConfig
from transformers.utils.logging import disable_progress_bar

import older
from onebox.distributed import ConfigError, gather, whole

try:
    from flash_attn import flash_attn_varlen_func  # CUDA only; without it PyTorch's own varlen kernel there
except ImportError:
    flash_attn_varlen_func = None
try:
    from torch.nn.attention.varlen import varlen_attn  # the same kernel, as PyTorch ships it

    varlen_attn = older.with_gqa(varlen_attn)
except ImportError:
    varlen_attn = None

# ---------------------------------------------------------------------------------------------------------------
# model
# ---------------------------------------------------------------------------------------------------------------


class Policy(torch.nn.Module):
    """A causal LM whose forward returns the log-probability and entropy of given next tokens, never the logits."""

    def __init__(self, hf, compile=False):
        super().__init__()
        self.hf, self.compile_head = hf, compile

    def forward(self, batch, temperature):
        hidden = self.hf.get_decoder()(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False,
                                       packed=batch).last_hidden_state[0]  # (N, H)
        head = self.hf.get_output_embeddings()
        return TokenLogprobs.apply(hidden[batch.rows], head.weight, head.bias, batch.targets, temperature,
                                   self.compile_head)


class Critic(torch.nn.Module):
    """The trunk of a causal LM with a value head of its own, zero at the start; the head computes in fp32."""

    def __init__(self, hf):
        super().__init__()
        self.trunk = hf.get_decoder()
        self.head = torch.nn.Linear(hf.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch):
        hidden = self.trunk(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False,
                            packed=batch).last_hidden_state[0]  # (N, H)
        return self.head(hidden[batch.rows].float())[:, 0].clone()  # FSDP hooks the output: no view


def load_policy(path, device, dtype, *, checkpointing=False, compile=False, trainable=True, shard_size=0):
    """
    A Hugging Face directory or hub id -> Policy, each transformer block sharded over the GPUs (one process in fp32: whole).

    Weights and optimizer state are fp32 shards; compute is in `dtype` (bf16 weights at lr 1e-6 would never move).
    checkpointing: recompute all of a block in backward (True), only what is cheap ("selective"), nothing (False).
    compile: torch.compile on each block. trainable=False (a reference): weights in `dtype`, no gradients. shard_size:
    shard inside groups of so many ranks and replicate across them (0: over all ranks), for several nodes.
    Raises ConfigError for what it cannot train.
    """
    hf = load_hf(path)
    return shard(Policy(hf, compile), hf.get_decoder(), device, dtype, checkpointing=checkpointing, compile=compile,
                 trainable=trainable, shard_size=shard_size)


def load_critic(path, device, dtype, *, checkpointing=False, compile=False, shard_size=0):
    """The same for a Critic: nothing but the trunk's weights is taken from `path`."""
    critic = Critic(load_hf(path))
    return shard(critic, critic.trunk, device, dtype, checkpointing=checkpointing, compile=compile, shard_size=shard_size)


def load_hf(path):
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    check_architecture(config, name=path)
    hf, info = own_class(config).from_pretrained(path, dtype="auto", attn_implementation="packed", output_loading_info=True)
    if left_out := sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"])):
        raise ConfigError(f"model {path!r}: its files hold no {left_out[0]} that fits its config ({len(left_out)} in all), which "
                          "would start at random: is the directory whole?")
    if hf.config.tie_word_embeddings and hf.get_output_embeddings().weight is not hf.get_input_embeddings().weight:
        raise ConfigError(f"model {path!r}: its config.json says tie_word_embeddings, but its files hold another lm_head.weight "
                          "than the embeddings: set tie_word_embeddings to false there")
    if not hasattr(hf.get_decoder(), "layers"):
        raise ConfigError(f"model: {hf.config.model_type} keeps its blocks elsewhere than in .layers, which policy.py shards; "
                          "Llama, Qwen, Mistral and their kin do")
    hf.config.attention_dropout = 0.0  # RL compares log-probs of two passes: dropout would make them differ
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return hf


@functools.cache
def own_module(name):
    """A transformers module imported once more, under another name: its classes are the trainer's alone."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_trainer", sys.modules[name].__file__)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own_class(config):
    """
    The class of transformers for this config, as a copy. vLLM's Transformers backend (SmolLM3, OLMo 2) rewrites the class
    of the decoder in place, in this same process, after which no model of that class runs outside of vLLM.
    """
    shared = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return getattr(own_module(shared.__module__), shared.__name__)


def shard(policy, trunk, device, dtype, *, checkpointing=False, compile=False, trainable=True, shard_size=0):
    """FSDP2 on a Policy or Critic whose transformer blocks are trunk.layers -> the same module; see load_policy."""
    compute = getattr(torch, dtype)
    if trainable and checkpointing:
        how = {"context_fn": keep_products} if checkpointing == "selective" else {}
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **how})
    policy.train(bool(checkpointing) and trainable)
    policy.requires_grad_(trainable)

    if compile:
        compile_blocks(trunk)
    world = dist.get_world_size()
    if world == 1 and compute == torch.float32:  # nothing to shard, nothing to cast: FSDP would only copy all weights
        cast_parameters(policy, compute)
        return policy.to(device)
    shape = (world // shard_size, shard_size) if 0 < shard_size < world else (world,)
    mesh = device_mesh(device.type, shape)
    mixed = MixedPrecisionPolicy(param_dtype=compute if compute != torch.float32 else None, reduce_dtype=torch.float32)
    for block in trunk.layers:  # one at a time: only one block is ever whole and in fp32 on the GPU
        cast_parameters(block, torch.float32 if trainable else compute)
        fully_shard(block, mesh=mesh, mp_policy=mixed)
    if isinstance(policy, Critic):  # a group of its own: its product with the hidden states is in fp32
        fully_shard(policy.head.to(torch.float32), mesh=mesh)
    cast_parameters(policy, torch.float32 if trainable else compute)
    # Embeddings, last norm and head in one group, which keeps tied weights together. Resharded after forward, unlike
    # FSDP's default for the root: else a forward without backward would leave its bf16 copies where parameters() looks.
    fully_shard(policy, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    return policy


@functools.cache
def device_mesh(kind, shape):
    """One for policy, critic and reference: each new one may open communicators of its own."""
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")[-len(shape):])


def check_compile(compile, checkpointing):
    """ConfigError for a setting `compile` that could not work here, before any weight is loaded."""
    if compile and checkpointing == "selective":
        raise ConfigError("compile = True already keeps of each block only what is not cheap to compute again: set "
                          "checkpointing to True or False")
    wanted = os.environ.get("CC", "gcc") if torch.cuda.is_available() else os.environ.get("CXX", "g++")  # Triton, Inductor
    if compile and not shutil.which(wanted):
        raise ConfigError(f"compile = True needs a compiler on this machine, and {wanted} is not there: apt install g++, or "
                          "leave it False")


def compile_blocks(trunk):
    """
    Each block's forward through torch.compile, FSDP's hooks outside of it. Attention stays as it is: it reads Python
    lists of lengths, on which the compiler would specialise, step after step anew.
    """
    AttentionInterface.register("packed", attention_not_compiled())
    for block in trunk.layers:
        block.forward = torch.compile(block.forward, dynamic=True)


@functools.cache  # one wrapper for policy, critic and reference: the compiled code is guarded by its identity
def attention_not_compiled():
    return torch.compiler.disable(packed_attention)


def keep_products():
    """Selective recomputation: matrix products and attention are kept, what is cheap between them is computed again."""
    aten = torch.ops.aten
    kept = [aten.mm.default, aten.addmm.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default]
    if hasattr(torch.ops.flash_attn, "_flash_attn_varlen_forward"):
        kept.append(torch.ops.flash_attn._flash_attn_varlen_forward.default)
    if hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kept.append(torch.ops.torch_attn._varlen_attn.default)
    return create_selective_checkpoint_contexts(kept)


def cast_parameters(module, dtype):
    """Parameters only: `.to(dtype)` would also round the rotary frequencies, and every position with them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


SUPPORTED = ("gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")  # each packed and alone in tests


def check_architecture(config, need_len=0, name=""):
    """
    ConfigError unless this Hugging Face config describes a model that policy.py computes right, whatever is packed
    beside a sequence: full causal attention in every layer, dense blocks, plain logits. need_len: the longest sequence,
    0 where that is not known yet; a sliding window that is no shorter is full attention.

    A list of what is known to be right, not of what is known to be wrong: a layer that mixes tokens in another way
    (linear attention, convolution, state space) reads packed sequences as one, and nothing would say so.
    """
    kind, layers = config.model_type, set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if layers and "sliding_attention" not in layers and hasattr(config, "use_sliding_window"):
        window = None  # Qwen's configs name a window that none of their layers uses
    rope = rope_of(config)
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) if kind in SUPPORTED else None  # None: only sizes, of tools/plan.py
    partial = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
               if getattr(config, key, None)]
    scales = [key for key in ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")
              if getattr(config, key, None) not in (None, 1)]
    classes = getattr(config, "architectures", None) or ()
    # the engine goes by these names, the trainer by the model_type (LLaMAForCausalLM is how old Llama files spell it)
    own_code = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "").rpartition(".")[2]
    others = [c for c in (*classes[:1], own_code) if c and known and c.lower() != known.__name__.lower()]
    reason = ""
    if hasattr(config, "text_config") or hasattr(config, "llm_config"):
        reason = "is a model of several parts, its text model in a config inside the config"
    elif getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        reason = "is not a causal language model"
    elif classes and not any(c.endswith("ForCausalLM") for c in classes):
        reason = f"has the architecture {classes[0]}, which is not a causal language model"
    elif experts or "moe" in kind:
        reason = "is a mixture of experts" + (f" ({experts[0]} = {getattr(config, experts[0])})" if experts else "")
    elif getattr(config, "quantization_config", None):
        reason = "has quantized weights"
    elif other := sorted(layers - {"full_attention", "sliding_attention"}):
        reason = f"has layers of type {other[0]}"
    elif scales:
        reason = f"sets {scales[0]} = {getattr(config, scales[0])}"
    elif kind not in SUPPORTED:
        reason = "is not among the architectures that were tested"
    elif others:
        reason = f"has the architecture {others[0]}, which is not the {known.__name__} of its model_type"
    elif kind != "gemma" and getattr(config, "hidden_act", "silu") != "silu":
        reason = f"has the activation {config.hidden_act}, for which the engine has silu only"
    elif kind != "phi3" and partial not in (None, 1):  # transformers does not read it there, vLLM does
        reason = f"sets partial_rotary_factor = {partial}"
    elif kind == "qwen3" and getattr(config, "attention_bias", False):  # transformers has a bias on o_proj, vLLM none
        reason = "sets attention_bias"
    elif type(rope.get("factor", 1.0)) not in (int, float):
        reason = f"has rotary positions of factor {rope['factor']!r}, instead of a number"
    elif getattr(config, "dual_chunk_attention_config", None):
        reason = "uses dual chunk attention"
    elif rope["rope_type"] not in ("default", "linear", "yarn", "llama3", "longrope"):  # dynamic depends on the whole batch
        reason = f"has rotary positions of rope_type {rope['rope_type']}"
    model = f"model {name!r}" if name else "model"
    if reason:
        raise ConfigError(f"{model}: {kind} {reason}, which policy.py does not train: choose a dense model with full attention "
                          f"in every layer ({', '.join(SUPPORTED)})")
    if window is not None and window < need_len:
        raise ConfigError(f"{model}: {kind} attends to a sliding window of {window} tokens, which policy.py computes only where "
                          f"no sequence is longer, and here they have up to {need_len}: shorten them, or choose another model")
    short = rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "longrope" and short and short < need_len:
        raise ConfigError(f"{model}: {kind} has other rotary frequencies for a batch with more than {short} positions "
                          f"(rope_type longrope), and sequences here have up to {need_len}: keep them to {short}")


def check_weights(path, config, name):
    """
    ConfigError unless the files hold every weight of the model in its shape, and none that the model would leave out (a bias,
    a layer). Only the files' headers are read, so that this comes before anything is loaded or written.
    """
    with torch.device("meta"):
        whole_model = own_class(config)(config)
    wanted = {key: list(weight.shape) for key, weight in whole_model.state_dict().items()}
    held = weights_in(path, name)
    trunk = whole_model.base_model_prefix + "."
    if not any(key.startswith(trunk) for key in held):  # saved without its head: transformers adds the prefix
        held = {key if key in wanted else trunk + key: shape for key, shape in held.items()}
    tied = whole_model.config.tie_word_embeddings
    for key, shape in wanted.items():
        if held.get(key, shape if tied and key == "lm_head.weight" else None) != shape:
            found = f"has the shape {held[key]}" if key in held else "is not in its files"
            raise ConfigError(f"model {name!r}: {key} of shape {shape} {found}: is the directory whole, and its config.json "
                              "the one that belongs to these weights?")
    left_out = [key for key in held if key not in wanted and key.startswith((trunk, "lm_head.")) and "rotary_emb." not in key]
    if left_out:
        raise ConfigError(f"model {name!r}: its files hold {sorted(left_out)[0]} ({len(left_out)} such), which a "
                          f"{config.model_type} of this config.json leaves out: is it the one that belongs to these weights?")


def weights_in(path, name):
    """{weight: shape} of the files that transformers would load from a directory; ConfigError where one is not whole."""
    held, file = {}, None
    for single in ("model.safetensors", "pytorch_model.bin"):
        try:
            if os.path.exists(os.path.join(path, file := single)):
                files = [single]
            elif os.path.exists(os.path.join(path, file := single + ".index.json")):
                with open(os.path.join(path, file), encoding="utf-8") as f:
                    files = sorted(set(json.load(f)["weight_map"].values()))
            else:
                continue
            for file in files:
                if file.endswith(".bin"):
                    loaded = torch.load(os.path.join(path, file), map_location="meta", weights_only=True)  # reads no weight
                    held |= {key: list(weight.shape) for key, weight in loaded.items()}
                else:
                    with safe_open(os.path.join(path, file), "pt") as f:
                        held |= {key: f.get_slice(key).get_shape() for key in f.keys()}
        except Exception as error:  # a torn or missing file, a pointer of git-lfs: each kind of file has errors of its own
            reason = f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:100]})"
            reason = "is not there" if isinstance(error, FileNotFoundError) else reason
            raise ConfigError(f"model {name!r}: its {file} {reason}: fetch it again, whole (git lfs pull, where it came with "
                              "git)") from error
        return held
    raise ConfigError(f"model {name!r} has no weights that transformers would load: neither model.safetensors nor "
                      f"pytorch_model.bin, whole or with an index, in {path}")


def rope_of(config):
    """The rotary settings of a config: rope_parameters of transformers 5, or rope_scaling before it; {} for plain ones."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope | {"rope_type": rope.get("rope_type", rope.get("type", "default"))}


def positions_of(config):
    """How long a sequence may be, as vLLM counts it: yarn, linear and dynamic stretch the positions by their factor."""
    rope, longest = rope_of(config), getattr(config, "max_position_embeddings", None)
    if longest and rope["rope_type"] in ("yarn", "linear", "dynamic"):
        original = rope.get("original_max_position_embeddings") if rope["rope_type"] == "yarn" else None
        longest = max(longest, int((original or longest) * rope.get("factor", 1)))
    return longest


def check_positions(config, need_len, name=""):
    """ConfigError where sequences of need_len tokens have more positions than the model."""
    longest = positions_of(config) or need_len
    if need_len > longest:
        raise ConfigError(f"max_prompt_len + max_response_len = {need_len} is more than the {longest} positions of {name!r}: "
                          "shorten them, or stretch its positions with rope_scaling (yarn) in its config.json")


def check_tensor_parallel(config, tensor_parallel, name=""):
    """ConfigError unless the engine can cut heads and matrices into so many parts; vLLM would say it after the start."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "intermediate_size", None) or 0
    parts = {f"the {heads} attention heads": heads, f"the {width} rows of the MLP": width}
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:  # fewer than parts: vLLM keeps copies
        parts[f"the {kv_heads} key-value heads"] = kv_heads
    for what, count in parts.items():
        if count % tensor_parallel:
            raise ConfigError(f"tensor_parallel = {tensor_parallel} does not divide {what} of model {name!r}: choose a divisor")


# ---------------------------------------------------------------------------------------------------------------
# packing
# ---------------------------------------------------------------------------------------------------------------


@dataclass
class MicroBatch:
    """Sequences laid end to end without padding. Response tokens are the ones that are scored."""

    ids: torch.Tensor  # (N,) prompt and response, without each sequence's last token: nothing follows it
    positions: torch.Tensor  # (N,) counts from 0 in every sequence
    lens: list  # S sequence lengths, longest first
    cu_lens: torch.Tensor  # (S + 1,) int32, where each sequence begins
    groups: list  # runs of similar length, for attention without varlen kernels: (first, last, count, longest, rows)
    rows: torch.Tensor  # (T,) where in (N,) the logits stand that score response token t
    targets: torch.Tensor  # (T,) the response tokens
    response_index: torch.Tensor  # (T,) which of the update's responses token t belongs to
    rollout_logprobs: torch.Tensor  # (T,) as the engine reported them
    needs_grad: bool = True  # False: a forward pass is enough, nothing in it can move a weight
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
    logprobs: torch.Tensor = None  # (T,) of the policy at the last update, as the next three: kept for samples/
    entropy: torch.Tensor = None  # (T,)
    ratio: torch.Tensor = None  # (T,) to old_logprobs
    clipped: torch.Tensor = None  # (T,) 1 where the clip stopped the gradient

    @property
    def learns(self):  # until the loops ask for needs_grad
        return self.needs_grad


def pack(rollouts, chosen, max_tokens, rank, world, device, needs_grad=None, learns=True):
    """
    Pack one update into micro-batches for this rank. Every rank passes the same list and gets equally many of them.

    rollouts: with prompt_ids, response_ids, rollout_logprobs. chosen: indices of those to pack (response_index refers to
    them). needs_grad: bool (R,), which of them need a backward pass (None: all); their micro-batches come first, then
    those that only go forward. Longest first onto the least loaded micro-batch, so that tokens are balanced; at most
    max_tokens each, unless one sequence alone is longer. A rank with nothing to do gets one token of weight 0, as it must
    take part in FSDP's collectives.
    """
    lens = {i: len(rollouts[i].prompt_ids) + len(rollouts[i].response_ids) - 1
            for i in map(int, chosen) if len(rollouts[i].response_ids)}
    order = sorted(lens, key=lambda i: (-lens[i], i))
    limit = max([max_tokens, *lens.values()])
    with_grad = [i for i in order if needs_grad is None or needs_grad[i]]
    forward_only = [i for i in order if needs_grad is not None and not needs_grad[i]]
    batches = []
    for part, grad in ((with_grad, True), (forward_only, False)):
        if not part and (grad or with_grad):  # an update without any token is one empty micro-batch
            continue
        count = max(1, math.ceil(sum(lens[i] for i in part) / (limit * world)))
        while (bins := fill(part, lens, count * world, limit)) is None:
            count += 1
        for first in range(0, count * world, world):
            loads = [sum(lens[i] for i in bin) for bin in bins[first:first + world]]
            batch = to_micro_batch(rollouts, bins[first + rank], device)
            batch.needs_grad, batch.tokens_of_all, batch.tokens_of_fullest = grad and learns, sum(loads), max(loads)
            batches.append(batch)
    return batches


def fill(order, lens, num_bins, limit):
    """Greedy: each sequence into the bin with the fewest tokens; None where one does not fit."""
    bins, load = [[] for _ in range(num_bins)], [0] * num_bins
    for i in order:
        b = load.index(min(load))
        if load[b] + lens[i] > limit:
            return None
        bins[b].append(i)
        load[b] += lens[i]
    return bins


def to_micro_batch(rollouts, chosen, device):
    ids, positions, lens, rows, targets, index, logprobs = [], [], [], [], [], [], []
    start = 0
    for i in chosen:  # longest first, as `pack` sorted them
        r = rollouts[i]
        n = len(r.prompt_ids) + len(r.response_ids) - 1
        ids.append(np.concatenate([r.prompt_ids, r.response_ids[:-1]]))
        positions.append(np.arange(n))
        rows.append(np.arange(start + len(r.prompt_ids) - 1, start + n))
        targets.append(np.asarray(r.response_ids))
        index.append(np.full(len(r.response_ids), i))
        logprobs.append(np.asarray(r.rollout_logprobs, dtype=np.float32))
        lens.append(n)
        start += n
    if not chosen:
        ids, positions, lens = [np.zeros(1)], [np.zeros(1)], [1]

    def join(parts, dtype):
        return torch.from_numpy(np.concatenate(parts or [np.zeros(0)])).to(device=device, dtype=dtype)

    cu_lens = torch.tensor(np.cumsum([0] + lens), dtype=torch.int32, device=device)
    return MicroBatch(join(ids, torch.long), join(positions, torch.long), lens, cu_lens, length_groups(lens, device),
                      join(rows, torch.long), join(targets, torch.long), join(index, torch.long),
                      join(logprobs, torch.float32))


def to_responses(batches, name, only=None):
    """
    The field `name` (T,) of the micro-batches of all ranks -> {response: (len,) float64} in order, the same on every rank.
    only: a set of responses; None means all. Fields that a micro-batch does not have (None) are left out.
    """
    found = []
    for batch in batches:
        if getattr(batch, name) is None:
            continue
        index, lens = batch.response_index.unique_consecutive(return_counts=True)
        parts = getattr(batch, name).float().cpu().split(lens.tolist())
        found += [(i, part.numpy()) for i, part in zip(index.tolist(), parts, strict=True) if only is None or i in only]
    return {i: part.astype(np.float64) for i, part in sorted(gather(found), key=lambda pair: pair[0])}


def from_responses(batch, arrays):
    """The inverse for one micro-batch: {response: (len,)} -> (T,) in fp32, token by token where to_responses found it."""
    parts = [arrays[i] for i in batch.response_index.unique_consecutive().tolist()]
    return torch.from_numpy(np.concatenate(parts or [np.zeros(0)])).to(batch.rollout_logprobs)


def length_groups(lens, device):
    """Runs of sequences no shorter than 3/4 of the longest in the run, so that padding them wastes little."""
    groups, first, start = [], 0, 0
    for i in range(1, len(lens) + 1):
        if i == len(lens) or lens[i] < 0.75 * lens[first]:
            run = lens[first:i]
            rows = np.concatenate([np.arange(n) + j * run[0] for j, n in enumerate(run)])
            groups.append((start, start + sum(run), len(run), run[0], torch.from_numpy(rows).to(device)))
            first, start = i, start + sum(run)
    return groups


# ---------------------------------------------------------------------------------------------------------------
# attention over packed sequences
# ---------------------------------------------------------------------------------------------------------------


class Pad(torch.autograd.Function):
    """(n, ...) packed -> (size, ...) with zeros between; the backward of one is the forward of the other."""

    @staticmethod
    def forward(ctx, x, rows, size):
        ctx.save_for_backward(rows)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, rows, x)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows):
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):
        rows = ctx.saved_tensors[0]
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, rows, grad.contiguous()), None


def packed_attention(module, query, key, value, attention_mask, scaling, packed=None, sliding_window=None, softcap=None,
                     s_aux=None, **kwargs):
    """
    Causal attention inside each sequence of a packed micro-batch; the interface is transformers' AttentionInterface.

    query (1, heads, N, D), key and value (1, kv_heads, N, D) -> (1, N, heads, D). on CUDA flash-attn's varlen kernel
    where it is installed, else PyTorch's; on a CPU SDPA over runs of similar length, padded on the right: a causal query
    never sees what follows.
    """
    if sliding_window is not None and max(packed.lens) <= sliding_window:
        sliding_window = None  # full attention
    if not (sliding_window is None and softcap is None and s_aux is None):
        raise ConfigError(f"this model's attention wants sliding_window={sliding_window}, softcap={softcap} or sinks, which "
                          "packed_attention does not compute; choose another model")
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D)
    if flash_attn_varlen_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest = packed.lens[0]
        out = flash_attn_varlen_func(query, key, value, packed.cu_lens, packed.cu_lens, longest, longest,
                                     softmax_scale=scaling, causal=True)
        return out[None], None
    if varlen_attn is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest = packed.lens[0]
        out = varlen_attn(query, key, value, packed.cu_lens, packed.cu_lens, longest, longest, scale=scaling,
                          window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1])
        return out[None], None
    outs = []
    for first, last, count, longest, rows in packed.groups:
        q, k, v = (x[first:last] for x in (query, key, value))
        if len(rows) == count * longest:  # all of one length: nothing to pad
            q, k, v = (x.reshape(count, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        else:
            q, k, v = (Pad.apply(x.contiguous(), rows, count * longest) for x in (q, k, v))
            q, k, v = (x.view(count, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
        out = out.transpose(1, 2).reshape(count * longest, *query.shape[1:])
        outs.append(out if len(rows) == count * longest else Unpad.apply(out, rows))
    return torch.cat(outs)[None], None


AttentionInterface.register("packed", packed_attention)
disable_progress_bar()  # "Loading weights" of one second

# ---------------------------------------------------------------------------------------------------------------
# log-probabilities without logits
# ---------------------------------------------------------------------------------------------------------------

CHUNK_LOGITS = 2**24  # so many logits exist at a time on a CPU, 64 MB in fp32, whatever N and V are
CHUNK_LOGITS_CUDA = 2**27  # 512 MB: fewer, larger products; each adds to the (V, H) gradient of the head once


class TokenLogprobs(torch.autograd.Function):
    """
    hidden (T, H), head (V, H), targets (T,) -> logprobs (T,), entropy (T,), both fp32 at the given temperature.

    The (T, V) logits exist only one chunk at a time, in fp32, in forward and again in backward. Entropy is exact, over
    the whole vocabulary. tests/test_policy.py holds the plain twin in four lines.
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
    """logits (c, V), targets (c,) -> log-prob of the target, entropy, log of the sum of exponentials, each (c,)"""
    largest = logits.amax(-1)
    target = logits.gather(-1, targets[:, None])[:, 0]
    p = (logits - largest[:, None]).exp_()  # (c, V), not yet divided by its sum
    total = p.sum(-1)
    lse = largest + total.log()
    return target - lse, lse - torch.linalg.vecdot(p, logits) / total, lse


def chunk_gradient(logits, targets, lse, grad_logprobs, entropy=None, grad_entropy=None):
    """-> gradient (c, V) of the logits, which are overwritten: d logprob = onehot - p, d entropy = -p (log p + entropy)"""
    logp = logits.sub_(lse[:, None])
    if entropy is None:
        grad = logp.exp_().mul_(-grad_logprobs[:, None])
    else:
        grad = logp.exp() * (-grad_logprobs[:, None] - grad_entropy[:, None] * (logp + entropy[:, None]))
    return grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])


@functools.cache
def compiled(function):
    """One that reads a chunk of logits once or twice, where PyTorch's own operations read it eight times."""
    return torch.compile(function, dynamic=True)


def chunks(hidden, weight):
    num_tokens, size = hidden.shape[0], (CHUNK_LOGITS_CUDA if hidden.is_cuda else CHUNK_LOGITS) // weight.shape[0]
    size = max(1, size)
    return [slice(i, min(i + size, num_tokens)) for i in range(0, num_tokens, size)]


@contextmanager
def fp32_products(hidden, weight):
    """
    -> hidden, weight as product_fp32 wants them. On a CPU in fp32, cast once; those that were bf16 may be multiplied by
    oneDNN's bf16 units, where the processor has them: their products are exact in fp32, and so are the sums.
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
    """a @ b in fp32; on CUDA the product of bf16 matrices is written out in fp32, not rounded on the way."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.dtype != torch.float32 else a @ b


def scaled_logits(hidden, weight, bias, temperature):
    """(c, H), (V, H) -> (c, V) in fp32"""
    logits = product_fp32(hidden, weight.T)
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def token_logprobs(policy, batch, temperature):
    """Compute logprobs (T,) and entropy (T,) of the response tokens of a micro-batch, at the sampling temperature."""
    batch.policy_forwards += 3 if torch.is_grad_enabled() else 1
    return policy(batch, temperature)


def token_values(critic, batch):
    """Compute values (T,) in fp32: V of the state before response token t, which has seen all tokens before t."""
    batch.critic_forwards += 3 if torch.is_grad_enabled() else 1
    return critic(batch)


# ---------------------------------------------------------------------------------------------------------------
# optimizer step
# ---------------------------------------------------------------------------------------------------------------


def make_adam(module, lr, beta1, beta2, weight_decay):
    """
    AdamW over a module's weights, with its moments there from the start, as zeros. Left to the first step, they would lie
    for good between the activations freed around it; and saving an optimizer without state makes it take a step: the
    first update after that would be another one.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
    for p in module.parameters():
        optimizer.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p),
                              "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def optimizer_step(module, optimizer, lr, grad_clip, skip=False):
    """
    Clip the global gradient norm, step with this lr, and return the norm before clipping (the same on all ranks).

    A norm that is not finite steps nothing and is returned as it is: weights and Adam state stay as they were.
    skip: drop the gradients and return 0. Without a signal, momentum and weight decay would still move the weights.
    """
    if skip:
        optimizer.zero_grad(set_to_none=True)
        return 0.0
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), grad_clip or float("inf"))
    norm = whole(norm).item()
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def clip_and_step(policy, optimizer, grad_clip, lr):  # until the loops call optimizer_step
    return optimizer_step(policy, optimizer, lr, grad_clip)
