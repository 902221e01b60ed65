"""
What a training process holds, in bytes by part, and which settings are the fastest that fit: what "auto" becomes.

Counted from the code's own buffers and compared with tensors (tests/test_plan.py); docs/gpus.md compares the trainer
with peaks measured on one H200. Only the model's config.json is read. 1 GB is 1e9 bytes.
"""

import bisect
import contextlib
import functools
import glob
import math
import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import AutoConfig

from onebox.config import ConfigError, read_recipe, refuse
from onebox.flops import Shape, kv_bytes_per_token, shape_of
from onebox.fused_logprobs import CHUNK_LOGITS_CUDA
from onebox.hub import hub_reachable
from onebox.models import check_architecture, check_positions, check_tensor_parallel, own_class, resolve_dtype
from onebox.vllm_start import kv_cache_bytes

# layers, hidden, heads, key-value heads, intermediate, vocabulary, tied; from the models' config.json
MODELS = {"Qwen2.5-0.5B": (24, 896, 14, 2, 4864, 151936, True), "Qwen2.5-1.5B": (28, 1536, 12, 2, 8960, 151936, True),
          "Qwen2.5-3B": (36, 2048, 16, 2, 11008, 151936, True), "Qwen2.5-7B": (28, 3584, 28, 4, 18944, 152064, False),
          "Llama-3.1-8B": (32, 4096, 32, 8, 14336, 128256, False)}
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "tie_word_embeddings")
SAME_SIZES = re.compile(r"^(Qwen2\.5-Math|DeepSeek-R1-Distill-Qwen)(?=-[\d.]+B)")  # as the Qwen2.5 of that size
# Names that go on like this have another config than the one they begin with: it is asked for.
NOT_THAT = re.compile(r"awq|gptq|fp8|bnb|gguf|mlx|qlora|int[48]|[48]-?bit|moe|1m\b", re.IGNORECASE)

CONTEXT_GB = 1.5  # CUDA context, NCCL buffers, fragmentation; assumed
GRAPHS_GB = 2.0  # CUDA graphs and work space of vLLM; assumed
# What compiled blocks keep of the activations that eager ones keep. Measured on one H200 (results/2026-11-27_gpu_h200):
# peaks fell from 69.5 to 55.7 GB (1.5B) and from 42.7 to 30.5 (0.6B), which makes 0.70 and 0.60 of what is counted.
COMPILED_SHARE = 0.7

TOKENS, FEWEST = 16384, 8192  # of a micro-batch: preferred; without recomputation still better than 16,384 with it
# Fastest first, (checkpointing, compile): MFU 0.40, 0.34, 0.30, 0.29, 0.28 of the 1.5B model on the H200.
SPEED = ((False, True), (False, False), (True, True), ("selective", False), (True, False))

# ---- models ----------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    shape: Shape
    params: int
    trunk_params: int  # without a head that is not tied
    qk_norm: bool  # norms of queries and keys, as in Qwen3 and OLMo 2


@functools.lru_cache
def architecture(name, need_len=0, tensor_parallel=1):
    """Describe a directory, known name or hub id; raise ConfigError for a model that the scripts would refuse."""
    config = config_of(name)
    check_architecture(config, need_len, name)
    check_positions(config, need_len, name)
    check_tensor_parallel(config, tensor_parallel, name)
    with torch.device("meta"):
        hf = own_class(config)(config)
    params = [sum(p.numel() for p in module.parameters()) for module in (hf, hf.get_decoder())]
    return Model(shape_of(config), *params, config.model_type in ("qwen3", "olmo2"))


def config_of(name, depth=0):
    """Return the config of a model. For out/<run>/model that is not there: that of what its recipe starts from."""
    file = os.path.join(os.path.expanduser(name), "config.json")
    if not os.path.isfile(file):
        base = name.rsplit("/", 1)[-1].removeprefix("Meta-")
        plain = SAME_SIZES.sub("Qwen2.5", base)
        known = next((k for k in MODELS if f"{plain}-".startswith(f"{k}-") and not NOT_THAT.search(base)), None)
        if known:
            sizes = dict(zip(SIZES, MODELS[known], strict=True), max_position_embeddings=2**17)
            sizes["tie_word_embeddings"] &= "Distill" not in base
            return AutoConfig.for_model("llama" if known.startswith("Llama") else "qwen2", **sizes)
        if name.startswith("out/"):
            start = start_of(name) if depth < 9 else None
            refuse(start is None,
                   f"model {name!r} is not there, and no recipe makes it: give --model with what it starts from")
            return config_of(start, depth + 1)
        try:
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(name, "config.json", local_files_only=not hub_reachable())
        except Exception as error:  # hub errors have many types; each means the same to the user
            raise ConfigError(f"model {name!r}: no directory here, not in the table of tools.plan, and its config.json "
                              f"could not be fetched ({type(error).__name__}): give --model with a directory or one of "
                              f"{', '.join(MODELS)}") from error
    try:  # transformers knows what a config.json leaves out: Gemma's do not say that the embeddings are tied
        return AutoConfig.from_pretrained(os.path.dirname(file), trust_remote_code=False)
    except Exception as error:  # a config can be wrong in many ways, each with a type of its own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file} is not the config of a Llama-like model: {reason}") from error


def start_of(model):
    """Return the model from which the recipe that makes out/<run>/model starts; None without such a recipe."""
    for recipe in sorted(glob.glob(os.path.join(os.path.dirname(__file__), "..", "recipes", "*.py"))):
        for script in ("train_grpo.py", "train_ppo.py", "sft.py"):
            with contextlib.suppress(ConfigError):
                settings = read_recipe(recipe, script)
                if f"out/{settings.get('name')}/model" == model != settings.get("model"):
                    return settings["model"]


# ---- memory ----------------------------------------------------------------------------------------------------------

def activation_bytes(model, bytes_each):
    """
    Count what autograd keeps of one block for one token, as transformers writes Llama and Qwen, b = bytes_each:

        hidden        2 norms: 4 (fp32 copy) + 2 b (normalized, times weight) each           8 + 4 b
        intermediate  gate, silu(gate), up, their product                                       4 b
        queries       q, attention's output, its copy in order 3 b, and 4 bytes a head (log-sum-exp); keys, values  2 b

    Qwen3 keeps an fp32 and a normalized copy of q and k besides. tests/test_plan.py counts the tensors.
    """
    shape, b = model.shape, bytes_each
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = (8 + 4 * b) * shape.hidden + 8 + 4 * b * shape.intermediate + 3 * b * q + 4 * shape.heads + 2 * b * kv
    return total + model.qk_norm * ((4 + b) * (q + kv) + 4 * (shape.heads + shape.kv_heads))


def micro_batch_memory(*which, **settings):
    """Return the {part: bytes} that one micro-batch needs at its worst moment, on one rank; see moments."""
    return max(moments(*which, **settings), key=total)


def moments(model, tokens, bytes_each, checkpointing, compile=False, head=True, sharded=True):
    """
    Return the {part: bytes} of a micro-batch in the head's backward, in that of the last block, of the embeddings.

    sharded: gathered weights count where they are needed, and the last FSDP group (embeddings and head) reduces its
    gradient as a whole. One process gathers nothing. The gradient of its head is added up where it stays; that of
    another matrix comes out in bytes_each and is cast on the way there.
    """
    shape, b, block = model.shape, bytes_each, activation_bytes(model, bytes_each)
    width = shape.heads * shape.head_dim + shape.kv_heads * shape.head_dim + shape.hidden + shape.intermediate
    products = 2 * b * width + 4 * shape.heads  # as policy.keep_products has it
    share = COMPILED_SHARE if compile else 1
    of_block = {True: b * shape.hidden, "selective": b * shape.hidden + products, False: share * block}[checkpointing]
    kept = tokens * (shape.layers * of_block + (4 + 3 * b) * shape.hidden)
    embeddings = shape.vocab * shape.hidden
    chunks = head * 2 * 4 * min(CHUNK_LOGITS_CUDA, tokens * shape.vocab)
    inside = "one block recomputed" if checkpointing else "gradients inside a block"
    in_block = tokens * ((block if checkpointing else 0) + 3 * b * shape.intermediate)
    if not sharded:
        on_the_way = b + 4 * (b != 4)
        return [{"activations": kept, "chunks of logits": chunks},
                {"activations": kept, inside: in_block,
                 "gradient of a matrix": on_the_way * shape.hidden * shape.intermediate},
                {"gradient of the embeddings": on_the_way * embeddings}]
    root = embeddings * (1 if model.params == model.trunk_params or not head else 2)
    return [{"activations": kept, "chunks of logits": chunks, "gradient of the head": head * (4 + b) * embeddings,
             "gathered weights": b * root},
            {"activations": kept, inside: in_block, "gradient of the head": head * b * embeddings,
             "gathered weights": b * (root + 2 * shape.block_weights),
             "gradient of a block": (b + 4) * shape.block_weights},
            {"gathered weights": b * root, "gradient of embeddings and head": (b + 4) * root}]


def total(parts):
    return sum(parts.values())


def kv_cache(model, cfg, options):
    """Return (bytes of one engine's cache, sequences of full length that it holds, sequences that run together)."""
    shape, tp, full = model.shape, cfg.tensor_parallel, cfg.max_prompt_len + cfg.max_response_len
    need = kv_cache_bytes(config_of(cfg.model), cfg.max_num_seqs, full, cfg.dtype, tp)
    size = cfg.kv_cache_gb * 1e9 if cfg.kv_cache_gb else min(need, 0.35 * options.gpu_memory_gb * 1e9 * tp)
    together = min(cfg.max_num_seqs, math.ceil(cfg.prompts_per_step * cfg.group_size / (options.gpus // tp)))
    copies = max(1.0, tp / shape.kv_heads)  # of a key head: each GPU holds at least one
    return size, int(size / (math.ceil(full / 16) * 16 * kv_bytes_per_token(shape, bytes_of(cfg)) * copies)), together


def bytes_of(cfg):
    return 4 if cfg.dtype == "float32" else 2


def longest(cfg):
    """Return how many tokens the longest packed sequence of a script's Config has: all but its last."""
    if not hasattr(cfg, "group_size"):  # of sft.py
        return min(cfg.max_len, cfg.tokens_per_step) - 1
    return cfg.max_prompt_len + cfg.max_response_len - 1


def micro_batch_tokens(cfg, gpus):
    """Return the size of the largest micro-batch: a rank may have fewer tokens in a step than max_tokens_per_gpu."""
    full = longest(cfg)
    if hasattr(cfg, "group_size"):  # as tools/dry_step.py has it
        held = math.ceil(cfg.prompts_per_step * cfg.group_size / gpus) * full
    else:
        held = cfg.tokens_per_step // gpus + full
    return min(max(cfg.max_tokens_per_gpu, full), held)


def memory(cfg, model, critic, options, tokens=None):
    """
    Return {"training": {part: bytes}, "sampling": {part: bytes}, "host": {part: bytes}} of one process.

    cfg: of any script, without "auto"; sft.py has no engine, so nothing while sampling. tokens: of a micro-batch.
    One process in bf16 trains bf16 weights with fp32 masters; offload puts masters and Adam into the host's memory.
    Several shard fp32 weights; offload then leaves only what FSDP gathers and the activations on the GPU.
    """
    b, one = bytes_of(cfg), options.gpus == 1
    ranks, offload = 1 if one else cfg.shard_size or options.gpus, cfg.offload == "optimizer"
    weights, training, resting, host = {"CUDA context, NCCL": CONTEXT_GB * 1e9}, {}, {}, {}
    for name, params in (("policy", model.params), *([("critic", critic.trunk_params)] if critic else [])):
        share = params / ranks
        if one and b == 2:
            weights[f"{name}, bf16"] = 2 * share
        if offload:
            host[f"{name}: {'fp32, Adam' if one else 'fp32, gradient, Adam'}"] = (12 if one else 16) * share
        if not offload or (one and b == 4):
            weights[f"{name}, fp32"] = 4 * share
        if not offload:
            training[f"{name}: gradient, Adam"], resting[f"{name}: Adam"] = 12 * share, 8 * share
        elif one:
            training[f"{name}: gradient"] = 4 * share
            host["one gradient, on its way"] = 4 * model.shape.vocab * model.shape.hidden  # the largest; masters.py
    how, tokens = (cfg.checkpointing, cfg.compile), tokens or micro_batch_tokens(cfg, options.gpus)
    parts = micro_batch_memory(model, tokens, b, *how, sharded=not one)
    if critic is not None:
        parts = max(parts, micro_batch_memory(critic, tokens, b, *how, head=False, sharded=not one), key=total)
    if getattr(cfg, "kl_in", "none") != "none":
        weights["reference"] = b * model.params / ranks
    if not hasattr(cfg, "group_size"):
        return {"training": weights | training | parts, "sampling": {}, "host": host}
    engine = {"engine: weights": b * model.params / cfg.tensor_parallel,
              "engine: KV cache": kv_cache(model, cfg, options)[0] / cfg.tensor_parallel,
              "engine: CUDA graphs, work space": GRAPHS_GB * 1e9,  # sync: a full tensor, an open layer
              "weight sync": b * (2 * model.shape.block_weights + model.shape.vocab * model.shape.hidden)}
    return {"training": weights | training | parts, "sampling": weights | resting | engine, "host": host}


def fits(used, options):
    """Return whether both phases of memory() fit the GPU, and what lies on the host fits there."""
    return (max(total(used["training"]), total(used["sampling"])) <= options.gpu_memory_gb * 1e9
            and total(used["host"]) <= options.host_memory_gb * 1e9)


def tokens_that_fit(cfg, model, critic, options):
    """Return the largest max_tokens_per_gpu, in steps of 256, that fits while training; 0 if none does."""
    return 256 * bisect.bisect_right(range(256, 2**20 + 1, 256), options.gpu_memory_gb * 1e9,
                                     key=lambda tokens: total(memory(cfg, model, critic, options, tokens)["training"]))


# ---- "auto" ----------------------------------------------------------------------------------------------------------

def models_of(cfg):
    """Return the Models that a script's Config trains: (policy, critic or None)."""
    need, tp = longest(cfg) + 1 if hasattr(cfg, "group_size") else 0, getattr(cfg, "tensor_parallel", 1)
    critic = architecture(cfg.critic_model or cfg.model, need) if getattr(cfg, "estimator", "") == "gae" else None
    return architecture(cfg.model, need, tp), critic


def fastest(cfg, options, compiler=True):
    """
    Return cfg with the fastest values for "auto" that fit a GPU; those that need least memory if none do; None if the
    values that are not "auto" exclude each other. compiler: whether there is one of C, without which nothing compiles.

    No recomputation comes first, with 16,384 tokens a micro-batch down to 8,192, then recomputation, then offload. The
    longest sequence is the least, as a micro-batch holds it whole.
    """
    model, critic = models_of(cfg)
    full, least = longest(cfg), None
    for offload in ("none", "optimizer") if cfg.offload == "auto" else (cfg.offload,):
        for checkpointing, compile in SPEED:
            if cfg.checkpointing not in ("auto", checkpointing) or cfg.compile not in ("auto", compile):
                continue
            if compile and not compiler:
                continue
            sizes = [cfg.max_tokens_per_gpu]
            if sizes == ["auto"]:
                lowest = max(full, 1024 if checkpointing else FEWEST)
                sizes = [*range(max(TOKENS, full), lowest, -1024), lowest]
            for tokens in sizes:
                found = replace(cfg, checkpointing=checkpointing, compile=compile, max_tokens_per_gpu=tokens,
                                offload=offload)
                used = memory(found, model, critic, options)
                if fits(used, options):
                    return found
                needs = max(total(used["training"]), total(used["sampling"]))
                least = min(least or (needs, found), (needs, found), key=lambda pair: pair[0])
    return least and least[1]


def resolve(cfg, names, device, world, compiler, kept):
    """
    Return ({name: plain value} for the settings `names` of cfg, which are "auto", and the reason in a few words).

    kept: what an earlier start of the run found. It stays, unless it does not fit this GPU or nothing compiles here.
    """
    before = replace(cfg, **{name: kept[name] for name in names if name in kept})
    if device.type == "cpu":
        found, reason = on_cpu(before)
    else:
        bytes_there = 0.95 * torch.cuda.get_device_properties(device).total_memory  # some lies between the allocations
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        options = SimpleNamespace(gpus=world, gpu_memory_gb=bytes_there / 1e9,
                                  host_memory_gb=memory_available() / local / 1e9)
        cfg = replace(cfg, dtype=resolve_dtype(cfg.dtype, device))
        found, reason = on_gpu(replace(before, dtype=cfg.dtype), cfg, options, compiler)
    return {name: getattr(found, name) for name in names}, reason


def on_gpu(before, cfg, options, compiler):
    """Resolve `before`, or, if nothing fits with what it keeps of an earlier start, cfg; see resolve."""
    found, note = fastest(before, options, compiler), ""
    if before != cfg and (found is None or not fits(memory(found, *models_of(cfg), options), options)):
        found, note = fastest(cfg, options, compiler), "; chosen anew: what the first start chose does not fit here"
    used = memory(found, *models_of(cfg), options)
    gb = {phase: total(parts) / 1e9 for phase, parts in used.items()}
    reason = f"{gb['training']:.3g} of {options.gpu_memory_gb:.3g} GB while training"
    reason += f", {gb['sampling']:.3g} while sampling" if gb["sampling"] else ""
    reason += (f", {gb['host']:.3g} of {options.host_memory_gb:.3g} GB a process in the host's memory" if gb["host"]
               else "")
    reason += " (computed)" + ("" if fits(used, options) else ": DOES NOT FIT, ask python -m tools.plan") + note
    return found, reason + ("" if compiler else "; not compiled, as there is no C compiler: apt install gcc")


def on_cpu(cfg):
    """
    Resolve cfg on a CPU. Recomputing changes no bit there; it is left out if the activations of a micro-batch take at
    most a quarter of the memory that is free for a process. Compiling saves memory and no time there.
    """
    plain = {"compile": False, "max_tokens_per_gpu": max(TOKENS, longest(cfg)), "offload": "none"}
    found = replace(cfg, **{name: value for name, value in plain.items() if getattr(cfg, name) == "auto"})
    world = int(os.environ.get("WORLD_SIZE", 1))
    tokens, room = micro_batch_tokens(found, world), memory_available() / int(os.environ.get("LOCAL_WORLD_SIZE", world))
    b = 4 if cfg.dtype == "auto" else bytes_of(cfg)
    kept = max(micro_batch_memory(model, tokens, b, False, found.compile is True, sharded=False)["activations"]
               for model in models_of(cfg) if model)
    if found.checkpointing == "auto":
        found = replace(found, checkpointing=kept > room / 4)
    return found, f"activations {kept / 1e9:.2g} GB of the {room / 1e9:.3g} that a process may use (computed)"


def memory_available():
    """Return the bytes that this machine still has for programs, at most those that its container may have."""
    with open("/proc/meminfo") as f:
        found = 1024 * int(re.search(r"MemAvailable: +(\d+)", f.read())[1])
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max"
        with open("/sys/fs/cgroup/memory.max") as f:
            found = min(found, int(f.read()))
    return found
