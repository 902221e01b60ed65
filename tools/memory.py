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
HOST_SHARE = 0.9  # of the host's available memory that a run may count on; assumed
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
    trunk_tensors: tuple = ()  # shape of each parameter
    head_tensors: tuple = ()


@functools.lru_cache
def architecture(name, need_len=0, tensor_parallel=1):
    """Describe a directory, known name or hub id; raise ConfigError for a model that the scripts would refuse."""
    config = config_of(name)
    check_architecture(config, need_len, name)
    check_positions(config, need_len, name)
    check_tensor_parallel(config, tensor_parallel, name)
    with torch.device("meta"):
        hf = own_class(config)(config)
    trunk = list(hf.get_decoder().parameters())
    head = [p for p in hf.parameters() if not any(p is q for q in trunk)]
    params = [sum(p.numel() for p in parameters) for parameters in (trunk + head, trunk)]
    tensors = [tuple(tuple(p.shape) for p in parameters) for parameters in (trunk, head)]
    return Model(shape_of(config), *params, config.model_type in ("qwen3", "olmo2"), *tensors)


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


def forward_memory(model, tokens, bytes_each, sharded):
    """Return the {part: bytes} of a pass without gradients; at most, as if a block kept all that backward wants."""
    shape, b = model.shape, bytes_each
    root = shape.vocab * shape.hidden * (1 if model.params == model.trunk_params else 2)
    parts = {"activations": tokens * ((4 + 3 * b) * shape.hidden + activation_bytes(model, b)),
             "chunks of logits": 2 * 4 * min(CHUNK_LOGITS_CUDA, tokens * shape.vocab)}
    return parts | ({"gathered weights": b * (root + 2 * shape.block_weights)} if sharded else {})


def total(parts):
    return sum(parts.values())


def on_the_gpu(used):
    """Return the bytes of the largest phase of memory()."""
    return max(total(parts) for phase, parts in used.items() if phase != "host")


def pinned(size):
    """Return the bytes of a pinned block of the host's memory: PyTorch rounds them up to a power of two."""
    return 2 ** math.ceil(math.log2(size)) if size else 0


def pinned_shards(tensors, ranks, bytes_each):
    """Return the bytes that FSDP2's CPUOffloadPolicy pins on a rank for one copy of these: each shard is a block."""
    return sum(pinned(math.ceil(rows / ranks) * math.prod(rest) * bytes_each) for rows, *rest in tensors)


def prompts_drawn(cfg, engines):
    """Return how many prompts a step draws; with finish_share more than it keeps, see rollout.prompts_to_draw."""
    return math.ceil(round(cfg.prompts_per_step / cfg.finish_share / engines, 9)) * engines


def kv_cache(model, cfg, options):
    """Return (bytes of one engine's cache, sequences of full length that it holds, sequences that run together)."""
    shape, tp, full = model.shape, cfg.tensor_parallel, cfg.max_prompt_len + cfg.max_response_len
    need = kv_cache_bytes(config_of(cfg.model), cfg.max_num_seqs, full, cfg.dtype, tp)
    whole_gb = getattr(options, "whole_gpu_gb", options.gpu_memory_gb)  # vllm_start's limit: also what is not free
    size = cfg.kv_cache_gb * 1e9 if cfg.kv_cache_gb else min(need, 0.35 * whole_gb * 1e9 * tp)
    engines = options.gpus // tp
    together = min(cfg.max_num_seqs, math.ceil(prompts_drawn(cfg, engines) * cfg.group_size / engines))
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
    Return {"training", "log-probs", "sampling", "host": {part: bytes}} of one process; {} for what is not there.

    cfg: of any script, without "auto"; sft.py has no engine, so nothing while sampling. tokens: of a micro-batch.
    One process in bf16 trains bf16 weights with fp32 masters; offload puts masters and Adam into the host's memory.
    Several shard fp32 weights; offload then leaves only what FSDP gathers and the activations on the GPU, and of ranks
    that hold copies (shard_size) the sum of gradients, until the last micro-batch of an update.

    A reference under offload waits on the host. One process brings it to the GPU while log-probs are computed, when
    there are no gradients: a phase of its own. Host: pinned blocks count as powers of two; masters and moments are not
    pinned. The export's copy on rank 0 counts as shared by the processes of its node.
    """
    b, one, offload = bytes_of(cfg), options.gpus == 1, cfg.offload == "optimizer"
    ranks = min(cfg.shard_size or options.gpus, options.gpus)  # as policy.shard: of fewer processes it takes all
    weights, training, resting, host = {"CUDA context, NCCL": CONTEXT_GB * 1e9}, {}, {}, {}
    tensors = model.trunk_tensors + model.head_tensors
    trained = [("policy", model.params, tensors)]
    trained += [("critic", critic.trunk_params, critic.trunk_tensors)] if critic else []
    for name, params, shapes in trained:
        share = params / ranks
        if one and b == 2:
            weights[f"{name}, bf16"] = 2 * share
        if not offload or (one and b == 4):
            weights[f"{name}, fp32"] = 4 * share
        if not offload:
            training[f"{name}: gradient, Adam"], resting[f"{name}: Adam"] = 12 * share, 8 * share
        elif one:
            training[f"{name}: gradient"], host[f"{name}: fp32, Adam"] = 4 * share, 12 * share
        else:
            host[f"{name}: fp32, gradient, pinned"] = 2 * pinned_shards(shapes, ranks, 4)
            host[f"{name}: Adam"] = 8 * share
            if ranks < options.gpus:
                training[f"{name}: gradient, of this copy"] = 4 * share
    if offload and one:  # masters.step_masters: for the largest parameter; it stays with PyTorch
        largest = {pinned(4 * max(map(math.prod, shapes))) for _, _, shapes in trained}
        host["one gradient on its way, pinned"] = sum(largest)
    if offload:
        host["export, bf16"] = 2 * model.params / getattr(options, "local", min(8, options.gpus))
    how, tokens = (cfg.checkpointing, cfg.compile), tokens or micro_batch_tokens(cfg, options.gpus)
    parts = micro_batch_memory(model, tokens, b, *how, sharded=not one)
    if critic is not None:
        parts = max(parts, micro_batch_memory(critic, tokens, b, *how, head=False, sharded=not one), key=total)
    logprobs = {}
    if getattr(cfg, "kl_in", "none") != "none" and not offload:
        weights["reference"] = b * model.params / ranks
    elif getattr(cfg, "kl_in", "none") != "none":
        host["reference" if one else "reference, pinned"] = (b * model.params if one else
                                                             pinned_shards(tensors, ranks, b))
        logprobs = weights | ({"reference": b * model.params} if one else {})
        logprobs |= forward_memory(model, tokens, b, sharded=not one)
    sampling = {}
    if hasattr(cfg, "group_size"):
        engine = {"engine: weights": b * model.params / cfg.tensor_parallel,
                  "engine: KV cache": kv_cache(model, cfg, options)[0] / cfg.tensor_parallel,
                  "engine: CUDA graphs, work space": GRAPHS_GB * 1e9,  # sync: a full tensor, an open layer
                  "weight sync": b * (2 * model.shape.block_weights + model.shape.vocab * model.shape.hidden)}
        sampling = weights | resting | engine
    return {"training": weights | training | parts, "log-probs": logprobs, "sampling": sampling, "host": host}


def fits(used, options):
    """Return whether each phase of memory() fits the GPU, and what lies on the host fits there."""
    return on_the_gpu(used) <= options.gpu_memory_gb * 1e9 and total(used["host"]) <= options.host_memory_gb * 1e9


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
                needs = on_the_gpu(used)
                least = min(least or (needs, found), (needs, found), key=lambda pair: pair[0])
    return least and least[1]


def resolve(cfg, names, device, world, compiler, kept):
    """
    Return ({name: plain value} for the settings `names` of cfg, which are "auto", and the reason in a few words).

    kept: what an earlier start of the run found. It stays, unless it does not fit this GPU, nothing compiles here, or
    a value that is given now excludes it. On a GPU only what is free counts: other processes may be there.
    """
    kept, note = what_stays(cfg, {name: kept[name] for name in names if name in kept}, device, compiler)
    before = replace(cfg, **kept)
    if device.type == "cpu":
        found, reason = on_cpu(before)
    else:
        free, whole = torch.cuda.mem_get_info(device)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        options = SimpleNamespace(gpus=world, local=local, whole_gpu_gb=whole / 1e9,
                                  gpu_memory_gb=0.95 * free / 1e9,  # some lies between the allocations
                                  host_memory_gb=HOST_SHARE * memory_available() / local / 1e9)
        cfg = replace(cfg, dtype=resolve_dtype(cfg.dtype, device))
        found, reason = on_gpu(replace(before, dtype=cfg.dtype), cfg, options, compiler)
    return {name: getattr(found, name) for name in names}, reason + note


def what_stays(cfg, kept, device, compiler):
    """Return (what an earlier start chose without what cannot be had now, why not in a few words)."""
    kept, dropped = dict(kept), {}
    if device.type == "cpu":
        kept.pop("offload", None)  # of a GPU
    if kept.get("compile") is True and not compiler:
        dropped["compile"] = "nothing compiles here"
    elif kept.get("compile") is True and cfg.checkpointing == "selective":
        dropped["compile"] = "checkpointing = selective, which is given now, excludes it"
    if kept.get("checkpointing") == "selective" and cfg.compile is True:
        dropped["checkpointing"] = "compile = True, which is given now, excludes it"
    note = "".join(f"; {name} {kept[name]} of the first start does not stay: {why}" for name, why in dropped.items())
    return {name: value for name, value in kept.items() if name not in dropped}, note


def on_gpu(before, cfg, options, compiler):
    """Resolve `before`, or, if nothing fits with what it keeps of an earlier start, cfg; see resolve."""
    found, note = fastest(before, options, compiler), ""
    if before != cfg and (found is None or not fits(memory(found, *models_of(cfg), options), options)):
        found, note = fastest(cfg, options, compiler), "; chosen anew: what the first start chose does not fit here"
    used = memory(found, *models_of(cfg), options)
    gb = {phase: total(parts) / 1e9 for phase, parts in used.items()}
    reason = f"{gb['training']:.3g} of {options.gpu_memory_gb:.3g} GB while training"
    reason += f", {gb['log-probs']:.3g} for log-probs" if gb["log-probs"] else ""
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
    """Return the bytes that this machine still has for programs, at most what its container has left."""
    with open("/proc/meminfo") as f:
        found = 1024 * int(re.search(r"MemAvailable: +(\d+)", f.read())[1])
    return max(0, min([found, *left_in_groups()]))


def left_in_groups(own="/proc/self/cgroup", root="/sys/fs/cgroup"):
    """
    List what each control group around this process may still use of its limit, version 1 or 2.

    Cached files that nobody reads now count as free, as in MemAvailable. In a container the path of the group may not
    be there, but its root is.
    """
    found, lines = [], []
    with contextlib.suppress(OSError), open(own) as f:
        lines = [line.strip().split(":", 2) for line in f]
    for _, controllers, path in lines:
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            folder = os.path.join(root, "memory" if controllers else "", *parts[:depth])
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                limit, used, stat = (open_text(os.path.join(folder, name)) for name in (*names, "memory.stat"))
                cached = re.search(rf"^{'total_' if controllers else ''}inactive_file (\d+)", stat, re.MULTILINE)
                found.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return found


def open_text(file):
    with open(file) as f:
        return f.read()
