"""
What a recipe needs, before it is launched: memory by part, room in the KV cache, seconds a step. No weights, no GPU.

    python -m tools.plan recipes/tinyzero_grpo.py --gpus 8 --gpu_memory_gb 80 [--setting value ...]

Options  --gpus N (processes), --gpu_memory_gb X, --gpu NAME (for its peaks, default H100), --mean_response_len N and
         --mean_prompt_len N (default half of the longest), --agreeing X (share of groups whose rewards agree: GRPO
         runs them forward only; default 0), --mfu and --mbu (assumed shares of the peaks). The rest are settings of
         the script. Only the model's config.json is read; a few common models are known offline.
Exit     0 it fits, 1 it does not; then the settings to change are printed, and with them it does fit.

Memory is computed from the code's own buffers and was compared with tensors (tests/test_plan.py) and, in a version
for CPUs, with runs (results/bench_2026-11-22_plan.md); no prediction for a GPU has been compared with one. 1 GB is 1e9
bytes, and "80 GB" cards are taken to hold that.
"""

import argparse
import bisect
import contextlib
import dataclasses
import functools
import glob
import importlib
import math
import os
import re
import sys
from typing import NamedTuple

import torch
from transformers import AutoConfig

from onebox.config import ConfigError, load_config, read_recipe, refuse
from onebox.flops import GPUS, Shape, decode_work, forward_flops, known_gpu, kv_bytes_per_token, shape_of
from onebox.fused_logprobs import CHUNK_LOGITS_CUDA
from onebox.hub import hub_reachable
from onebox.models import check_architecture, check_positions, check_tensor_parallel, own_class
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

# Assumptions, not measurements; docs/gpus.md and the output say so.
MFU, MBU = 0.4, 0.6  # of the trainer's compute and of decoding's bandwidth
SYNC_BYTES_PER_S = 3e9  # verl's documentation: 7B, 15 GB of bf16, in 3.9 to 6.0 s on GPUs
CONTEXT_GB = 1.5  # CUDA context, NCCL buffers, fragmentation
GRAPHS_GB = 2.0  # CUDA graphs and work space of vLLM


def main():
    options, argv = parse(sys.argv[1:])
    refuse(not argv or argv[0].startswith("-"),
           "tools.plan wants a recipe first: python -m tools.plan recipes/NAME.py --gpus 8 --gpu_memory_gb 80")
    script = script_of(argv[0])
    cfg, _ = load_config(importlib.import_module(script[:-3]).Config, argv)
    found = predict(cfg, script, options)
    print(report(cfg, found, options))
    if not found["fits"]:
        changes = suggest(cfg, script, options)
        refuse(changes is None,
               "it does not fit, and no setting of these makes it fit: take a smaller model, or larger GPUs")
        raise ConfigError(f"it does not fit; it does with {' '.join(f'--{k} {v}' for k, v in changes.items())}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(f"tools.plan: {message}")


def parse(argv):
    """Split a command line into (options of tools.plan, arguments for load_config)."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    usage="python -m tools.plan recipes/NAME.py [--gpus 8] [--gpu_memory_gb 80] [--setting value ...]")
    defaults = {"gpus": 8, "gpu_memory_gb": 80.0, "gpu": "H100", "mean_response_len": 0.0, "mean_prompt_len": 0.0,
                "agreeing": 0.0, "mfu": MFU, "mbu": MBU}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options, rest = parser.parse_known_args(argv)
    limits = [(("gpus", "gpu_memory_gb", "mfu", "mbu"), lambda x: 0 < x < math.inf, "must be greater than 0"),
              (("mean_response_len", "mean_prompt_len"), lambda x: 0 <= x < math.inf, "must not be negative"),
              (("mfu", "mbu", "agreeing"), lambda x: 0 <= x <= 1, "is a share: from 0 to at most 1")]
    for names, allowed, said in limits:
        for name in names:
            value = getattr(options, name)
            refuse(not allowed(value), f"tools.plan: {name} = {value} {said}")
    refuse(known_gpu(options.gpu, "bfloat16") is None,
           f"tools.plan: no peaks known for --gpu {options.gpu!r}; known: {', '.join(GPUS)}")
    return options, rest


def script_of(path):
    """Return the script that a recipe is for; raise ConfigError if that is neither of the two."""
    for script in ("train_grpo.py", "train_ppo.py"):
        try:
            read_recipe(path, script)
            return script
        except ConfigError as error:
            if "is a recipe for" not in str(error):
                raise
    raise ConfigError(f"{path} is a recipe neither for train_grpo.py nor for train_ppo.py")


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


def micro_batch_memory(model, tokens, bytes_each, checkpointing, head=True, sharded=True):
    """
    Return the {part: bytes} that one micro-batch needs at its worst moment, on one rank: in the head's backward, in a
    block's, or when the last FSDP group (embeddings and head) reduces its gradient. Gathered weights count only there;
    if nothing is sharded (one process in fp32), there are none, and each gradient goes where it stays.
    """
    shape, b, block = model.shape, bytes_each, activation_bytes(model, bytes_each)
    width = shape.heads * shape.head_dim + shape.kv_heads * shape.head_dim + shape.hidden + shape.intermediate
    products = 2 * b * width + 4 * shape.heads  # as policy.keep_products has it
    of_block = {True: b * shape.hidden, "selective": b * shape.hidden + products, False: block}[checkpointing]
    kept = tokens * (shape.layers * of_block + (4 + 3 * b) * shape.hidden)
    gathered, reduced = b * sharded, 4 * sharded
    embeddings = shape.vocab * shape.hidden
    root = embeddings * (1 if model.params == model.trunk_params or not head else 2)
    inside = "one block recomputed" if checkpointing else "gradients inside a block"
    moments = [
        {"activations": kept, "chunks of logits": head * 2 * 4 * min(CHUNK_LOGITS_CUDA, tokens * shape.vocab),
         "gradient of the head": head * (4 + b) * embeddings, "gathered weights": gathered * root},
        {"activations": kept, inside: tokens * ((block if checkpointing else 0) + 3 * b * shape.intermediate),
         "gradient of the head": head * b * embeddings,
         "gathered weights": gathered * (root + 2 * shape.block_weights),
         "gradient of a block": (gathered + reduced) * shape.block_weights},
        {"gathered weights": gathered * root, "gradient of embeddings and head": (b + reduced) * root}]
    return max(moments, key=total)


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


def memory(cfg, model, critic, options, tokens=None):
    """Return {"training": {part: bytes}, "sampling": {part: bytes}} of one process; tokens: of a micro-batch."""
    b = bytes_of(cfg)
    ranks, sharded = cfg.shard_size or options.gpus, options.gpus > 1 or b != 4
    full = cfg.max_prompt_len + cfg.max_response_len - 1
    held = math.ceil(cfg.prompts_per_step * cfg.group_size / options.gpus)  # may be less than max_tokens_per_gpu
    tokens = tokens or min(max(cfg.max_tokens_per_gpu, full), held * full)
    weights, training, resting = {"CUDA context, NCCL": CONTEXT_GB * 1e9}, {}, {}
    for name, params in (("policy", model.params), *([("critic", critic.trunk_params)] if critic else [])):
        weights[f"{name}, fp32"] = 4 * params / ranks
        training[f"{name}: gradient, Adam"] = 12 * params / ranks
        resting[f"{name}: Adam"] = 8 * params / ranks
    parts = micro_batch_memory(model, tokens, b, cfg.checkpointing, sharded=sharded)
    if critic is not None:
        of_critic = micro_batch_memory(critic, tokens, b, cfg.checkpointing, head=False, sharded=sharded)
        parts = max(parts, of_critic, key=total)
    if cfg.kl_in != "none":
        weights["reference"] = b * model.params / ranks
    engine = {"engine: weights": b * model.params / cfg.tensor_parallel,
              "engine: KV cache": kv_cache(model, cfg, options)[0] / cfg.tensor_parallel,
              "engine: CUDA graphs, work space": GRAPHS_GB * 1e9,  # sync: a full tensor, an open layer
              "weight sync": b * (2 * model.shape.block_weights + model.shape.vocab * model.shape.hidden)}
    return {"training": weights | training | parts, "sampling": weights | resting | engine}


def tokens_that_fit(cfg, model, critic, options):
    """Return the largest max_tokens_per_gpu, in steps of 256, that fits while training; 0 if none does."""
    return 256 * bisect.bisect_right(range(256, 2**20 + 1, 256), options.gpu_memory_gb * 1e9,
                                     key=lambda tokens: total(memory(cfg, model, critic, options, tokens)["training"]))


# ---- time ------------------------------------------------------------------------------------------------------------

def seconds(cfg, script, model, critic, options):
    """Predict {phase: seconds} of one step from assumed shares of the peaks; no evaluation, checkpoint or reward."""
    peaks, ranks = peaks_of(cfg, options), cfg.shard_size or options.gpus
    prompt, response = mean_lens(cfg, options)
    each = math.ceil(cfg.prompts_per_step * cfg.group_size / options.gpus)
    spread, epochs = response_lens(response, cfg.max_response_len, each), cfg.epochs_per_step
    lens, scored = [prompt + n - 1 for n in spread], sum(spread)

    def forward(model, scored=scored):
        return forward_flops(model.shape, lens, scored) / peaks.flops

    def train(model, scored=scored):  # recomputation costs one more forward of the blocks
        return 3 * forward(model, scored) + (forward(model, 0) if cfg.checkpointing is True else 0)

    def adam(params):
        return epochs * cfg.updates_per_step * 28 * params / ranks / peaks.bandwidth

    old = cfg.updates_per_step * epochs > 1 or (script == "train_ppo.py" and cfg.kl_in == "reward_k1")
    only_forward = script == "train_grpo.py" and not cfg.entropy_coef and not (cfg.kl_in != "none" and cfg.kl_coef)
    agreeing = options.agreeing if only_forward else 0.0  # as train_grpo.needs_grad_mask has it
    found = {"rollout": rollout_seconds(cfg, model.shape, options),
             "logprobs": (old + (cfg.kl_in != "none")) * forward(model),
             "train": epochs * ((1 - agreeing) * train(model) + agreeing * forward(model)) + adam(model.params),
             "sync": bytes_of(cfg) * model.params / SYNC_BYTES_PER_S}
    if critic is not None:
        found["values"] = forward(critic, 0)
        found["train"] += epochs * train(critic, 0) + adam(critic.trunk_params)
    return found


def peaks_of(cfg, options):
    """Return the FLOP/s and the bytes/s that are assumed: shares of the GPU's peaks."""
    peaks = known_gpu(options.gpu, "float32" if cfg.dtype == "float32" else "bfloat16")
    return peaks._replace(flops=peaks.flops * options.mfu, bandwidth=peaks.bandwidth * options.mbu)


def mean_lens(cfg, options):
    """Return the assumed mean lengths of prompts and responses."""
    return (options.mean_prompt_len or max(1, cfg.max_prompt_len // 2),
            options.mean_response_len or max(1, cfg.max_response_len // 2))


def response_lens(mean, longest, count):
    """Make `count` lengths with this mean, longest first: an exponential distribution that is cut at `longest`."""
    low, high = 1e-3, 1e9  # the scale s has s (1 - exp(-longest / s)) = mean
    for _ in range(100):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if scale * (1 - math.exp(-longest / scale)) < mean else (low, scale)
    found = [min(longest, -scale * math.log(1 - (i + 0.5) / count)) for i in range(count)]
    return sorted((max(1, round(n * mean / (sum(found) / count))) for n in found), reverse=True)


def rollout_seconds(cfg, shape, options):
    """Predict one engine's share of a step; a group's prompt is read once."""
    peaks, (prompt, response) = peaks_of(cfg, options), mean_lens(cfg, options)
    prompts = cfg.prompts_per_step // (options.gpus // cfg.tensor_parallel)
    lens = response_lens(response, cfg.max_response_len, prompts * cfg.group_size)
    read, flops = decode_work(shape, [prompt] * len(lens), lens, cfg.max_num_seqs, bytes_of(cfg))
    read_prompts = forward_flops(shape, [prompt] * prompts, 0) / peaks.flops
    return (max(read / peaks.bandwidth, flops / peaks.flops) + read_prompts) / cfg.tensor_parallel


# ---- the answer ------------------------------------------------------------------------------------------------------

def predict(cfg, script, options, times=True):
    """Return dict(fits, memory, params, kv, tokens, seconds); raise ConfigError for impossible settings."""
    importlib.import_module(script[:-3]).check_config(cfg, options.gpus)
    full = cfg.max_prompt_len + cfg.max_response_len
    model = architecture(cfg.model, full, cfg.tensor_parallel)
    critic = architecture(cfg.critic_model or cfg.model, full) if getattr(cfg, "estimator", "") == "gae" else None
    used, kv = memory(cfg, model, critic, options), kv_cache(model, cfg, options)
    fits = kv[1] >= 1 and all(sum(parts.values()) <= options.gpu_memory_gb * 1e9 for parts in used.values())
    found = dict(fits=fits, memory=used, params=model.params, kv=kv)
    if times:
        found["tokens"] = tokens_that_fit(cfg, model, critic, options)
        found["seconds"] = seconds(cfg, script, model, critic, options)
    return found


def report(cfg, found, options):
    """Write the text of a prediction."""
    (size, room, together), tokens, full = found["kv"], found["tokens"], cfg.max_prompt_len + cfg.max_response_len
    lines = [f"{cfg.name}: {cfg.model}, {found['params'] / 1e9:.3g} G parameters, {options.gpus} x GPU of "
             f"{options.gpu_memory_gb:.3g} GB", ""]
    for phase, parts in found["memory"].items():
        used = total(parts) / 1e9
        verdict = "" if used <= options.gpu_memory_gb else "   DOES NOT FIT"
        lines += [f"while {phase}, GB per GPU", *(f"  {k:<34} {v / 1e9:8.2f}" for k, v in parts.items()),
                  f"  {'all':<34} {used:8.2f} of {options.gpu_memory_gb:.3g}{verdict}", ""]
    short = f", less than the longest sequence ({full:,})" if tokens < full else ""
    warning = (": vLLM does not start with room for less than one" if room < 1 else "" if room >= together else
               ": near full length some are preempted and computed again; raise --kv_cache_gb or lower --max_num_seqs")
    _, response = mean_lens(cfg, options)
    assumed = "" if options.mean_response_len else " (assumed: half of the longest; --mean_response_len)"
    seconds_all = total(found["seconds"])
    rate = cfg.prompts_per_step * cfg.group_size * response / max(1e-9, seconds_all)
    lines += [f"max_tokens_per_gpu {cfg.max_tokens_per_gpu:,}; up to {tokens:,} would fit while training{short}",
              f"KV cache {size / 1e9:.2f} GB an engine: {room:,} sequences of full length ({full:,}); "
              f"{together:,} run together{warning}", "",
              f"seconds a step, at a mean of {response:,.0f} response tokens{assumed}",
              *(f"  {k:<10} {v:10.2f}" for k, v in [*found["seconds"].items(), ("all", seconds_all)]),
              f"  {rate:,.0f} response tokens/s; without reward, evaluation and checkpoints",
              f"  assumed, not measured: MFU {options.mfu:g}, MBU {options.mbu:g} of {options.gpu}, "
              f"{SYNC_BYTES_PER_S / 1e9:g} GB/s weight sync, {GRAPHS_GB:g} + {CONTEXT_GB:g} GB of overheads"]
    return "\n".join(lines) + "\n"


def suggest(cfg, script, options):
    """
    Return what to change so that it fits, cheapest first: {setting: value}, perhaps with "gpus"; None if nothing helps.

    Each change is taken back if the rest fits without it, and is the mildest that fits with the others.
    """
    def fits(changes):
        changes = dict(changes)
        trial = argparse.Namespace(**{**vars(options), "gpus": changes.pop("gpus", options.gpus)})
        try:
            return predict(dataclasses.replace(cfg, **changes), script, trial, times=False)["fits"]
        except ConfigError:  # does not divide
            return None

    full, tokens = cfg.max_prompt_len + cfg.max_response_len, cfg.max_tokens_per_gpu
    cache = kv_cache(architecture(cfg.model), cfg, options)[0] / 1e9
    steps = [{"checkpointing": True}] * (cfg.checkpointing is not True)
    steps += [{"max_tokens_per_gpu": max(full, tokens >> k)} for k in range(1, 20) if tokens >> (k - 1) > full]
    steps += [{"shard_size": 0}] * bool(cfg.shard_size)
    steps += [{"kv_cache_gb": round(cache * share, 2)} for share in (0.75, 0.5, 0.25)]
    steps += [{"tensor_parallel": tp, "kv_cache_gb": round(0.25 * cache * tp / cfg.tensor_parallel, 2)}
              for tp in (2, 4, 8) if tp > cfg.tensor_parallel]
    steps += [{"gpus": options.gpus * more} for more in (2, 4, 8, 16, 32)]
    changes = {}
    for step in steps:
        fit = fits(changes | step)
        changes |= step if fit is not None else {}
        if fit:
            break
    else:
        return None
    for name in list(changes):
        less = {k: v for k, v in changes.items() if k != name}
        if less and fits(less):
            changes = less
    for name in list(changes):
        changes = changes | next((step for step in steps if name in step and fits(changes | step)), {})
    return changes


if __name__ == "__main__":
    from onebox.crash import entry

    entry(main)
