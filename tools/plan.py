"""
What a recipe needs, before it is launched: memory by part, room in the KV cache, seconds a step. No weights, no GPU.

    python -m tools.plan recipes/tinyzero_grpo.py --gpus 8 --gpu_memory_gb 80 [--setting value ...]
    python -m tools.plan recipes/demo_smollm.py --cpu --gpus 1              # host memory; times the model's own blocks here

Options  --gpus N (processes), --gpu_memory_gb X, --gpu NAME (for its peaks, default H100), --mean_response_len N and
         --mean_prompt_len N (default half of the longest), --agreeing X (share of groups whose rewards agree: GRPO
         runs them forward only; default 0), --mfu and --mbu (assumed shares of the peaks), --cpu. The rest
         are settings of the script. Only the model's config.json is read; the usual models are known offline.
Exit     0 it fits, 1 it does not; then the settings to change are printed, and with them it does fit.

Memory is computed from the code's own buffers and was compared with tensors and with CPU runs (results/); no prediction
for a GPU has been compared with one. 1 GB is 1e9 bytes, and "80 GB" cards are taken to hold that.
"""

import argparse
import contextlib
import dataclasses
import importlib
import math
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from types import SimpleNamespace

from transformers import AutoConfig

import data
from onebox import flops as speed
from onebox.fused_logprobs import CHUNK_LOGITS, CHUNK_LOGITS_CUDA
from onebox.models import check_architecture, check_positions, check_tensor_parallel
from onebox.config import ConfigError, load_config, read_recipe

# layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, tied, family; from the models' config.json
QWEN2_MATH_7B = (28, 3584, 28, 4, 128, 18944, 152064, False, "qwen2")
LLAMA_8B = (32, 4096, 32, 8, 128, 14336, 128256, False, "llama")
MODELS = {
    "Qwen2.5-0.5B": (24, 896, 14, 2, 64, 4864, 151936, True, "qwen2"),
    "Qwen2.5-1.5B": (28, 1536, 12, 2, 128, 8960, 151936, True, "qwen2"),
    "Qwen2.5-3B": (36, 2048, 16, 2, 128, 11008, 151936, True, "qwen2"),
    "Qwen2.5-7B": QWEN2_MATH_7B,
    "Qwen2.5-14B": (48, 5120, 40, 8, 128, 13824, 152064, False, "qwen2"),
    "Qwen2.5-32B": (64, 5120, 40, 8, 128, 27648, 152064, False, "qwen2"),
    "Qwen2.5-72B": (80, 8192, 64, 8, 128, 29568, 152064, False, "qwen2"),
    "Qwen2.5-Math-1.5B": (28, 1536, 12, 2, 128, 8960, 151936, True, "qwen2"),
    "Qwen2.5-Math-7B": QWEN2_MATH_7B,
    "DeepSeek-R1-Distill-Qwen-1.5B": (28, 1536, 12, 2, 128, 8960, 151936, False, "qwen2"),
    "DeepSeek-R1-Distill-Qwen-7B": QWEN2_MATH_7B,
    "DeepSeek-R1-Distill-Qwen-14B": (48, 5120, 40, 8, 128, 13824, 152064, False, "qwen2"),
    "DeepSeek-R1-Distill-Qwen-32B": (64, 5120, 40, 8, 128, 27648, 152064, False, "qwen2"),
    "DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
    "Qwen3-0.6B": (28, 1024, 16, 8, 128, 3072, 151936, True, "qwen3"),
    "Qwen3-1.7B": (28, 2048, 16, 8, 128, 6144, 151936, True, "qwen3"),
    "Qwen3-4B": (36, 2560, 32, 8, 128, 9728, 151936, True, "qwen3"),
    "Qwen3-8B": (36, 4096, 32, 8, 128, 12288, 151936, False, "qwen3"),
    "Qwen3-14B": (40, 5120, 40, 8, 128, 17408, 151936, False, "qwen3"),
    "Qwen3-32B": (64, 5120, 64, 8, 128, 25600, 151936, False, "qwen3"),
    "Llama-3.2-1B": (16, 2048, 32, 8, 64, 8192, 128256, True, "llama"),
    "Llama-3.2-3B": (28, 3072, 24, 8, 128, 8192, 128256, True, "llama"),
    "Llama-3.1-8B": LLAMA_8B,
    "Llama-3.1-70B": (80, 8192, 64, 8, 128, 28672, 128256, False, "llama"),
    "SmolLM2-135M": (30, 576, 9, 3, 64, 1536, 49152, True, "llama"),
    "SmolLM2-360M": (32, 960, 15, 5, 64, 2560, 49152, True, "llama"),
    "SmolLM2-1.7B": (24, 2048, 32, 32, 64, 8192, 49152, True, "llama"),
    "out/smollm2": (30, 576, 9, 3, 64, 1536, 49152, True, "llama"),  # made by `make demo-smollm`
    "out/tiny-0/model": (4, 128, 4, 2, 32, 256, 64, True, "qwen2"),  # made by `make base` (tools/tiny.py)
}
# Names that go on like this have another config than the one they begin with: it is asked for.
NOT_THAT = re.compile(r"awq|gptq|fp8|bnb|gguf|mlx|qlora|int[48]|[48]-?bit|moe|1m\b", re.IGNORECASE)

# Assumptions, not measurements; README and the output say so.
MFU, MBU = 0.4, 0.6  # of the trainer's compute and of decoding's bandwidth
SYNC_BYTES_PER_S = 3e9  # verl's documentation: 7B, 15 GB of bf16, in 3.9 to 6.0 s on GPUs
CONTEXT_GB = 1.5  # CUDA context, NCCL buffers, fragmentation
GRAPHS_GB = 2.0  # CUDA graphs and work space of vLLM
# On a CPU, measured on one 2-core machine (results/bench_2026-11-22_plan.md)
CPU_BASE_GB = 0.86  # a process with torch, transformers and vLLM imported, before any weights
CPU_HEAP = 1.45  # what glibc keeps in pieces: 1.4 (equal lengths) to 2.0 (ragged) times a micro-batch's tensors
CPU_ENGINE_STEP_S, CPU_ENGINE_SEQ_S = 0.0012, 0.00006  # Python of one engine step, and of each sequence in it
CPU_SYNC_S, CPU_SYNC_SHARE = 0.02, 1 / 32  # of one weight sync, and of the probed bandwidth


def main():
    options, argv = parse(sys.argv[1:])
    if not argv or argv[0].startswith("-"):
        raise ConfigError("tools.plan wants a recipe first: python -m tools.plan recipes/NAME.py --gpus 8 --gpu_memory_gb 80")
    script = script_of(argv[0])
    cfg, _ = load_config(importlib.import_module(script[:-3]).Config, argv)
    found = predict(cfg, script, options)
    print(report(cfg, found, options))
    if found["fits"]:
        return
    changes = suggest(cfg, script, options)
    if changes is None:
        raise ConfigError("it does not fit, and no setting of these makes it fit: take a smaller model, or larger GPUs")
    flags = " ".join(f"--{name} {value}" for name, value in changes.items())
    raise ConfigError(f"it does not fit; it does with {flags}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(f"tools.plan: {message}")


def parse(argv):
    """-> (options of tools.plan, what is left for load_config)"""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    usage="python -m tools.plan recipes/NAME.py [--gpus 8] [--gpu_memory_gb 80] [--setting value ...]")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu_memory_gb", type=float, default=80.0)
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--mean_response_len", type=float, default=0)
    parser.add_argument("--mean_prompt_len", type=float, default=0)
    parser.add_argument("--agreeing", type=float, default=0.0)
    parser.add_argument("--mfu", type=float, default=MFU)
    parser.add_argument("--mbu", type=float, default=MBU)
    parser.add_argument("--cpu", action="store_true")
    options, rest = parser.parse_known_args(argv)
    for name in ("gpus", "gpu_memory_gb", "mfu", "mbu"):
        if not 0 < getattr(options, name) < math.inf:
            raise ConfigError(f"tools.plan: {name} = {getattr(options, name)} must be greater than 0")
    for name in ("mfu", "mbu", "agreeing"):
        if not 0 <= getattr(options, name) <= 1:
            raise ConfigError(f"tools.plan: {name} = {getattr(options, name)} is a share: from 0 to at most 1")
    for name in ("mean_response_len", "mean_prompt_len"):
        if not 0 <= getattr(options, name) < math.inf:
            raise ConfigError(f"tools.plan: {name} = {getattr(options, name)} must not be negative")
    if options.cpu:  # the host's memory is shared by the processes
        options.gpu_memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / options.gpus
    elif speed.known_gpu(options.gpu, "bfloat16") is None:
        raise ConfigError(f"tools.plan: no peaks known for --gpu {options.gpu!r}; known: {', '.join(speed.GPUS)}")
    return options, rest


def script_of(path):
    """The script that a recipe is for; ConfigError if that is neither of the two."""
    for script in ("train_grpo.py", "train_ppo.py"):
        try:
            read_recipe(path, script)
            return script
        except ConfigError as error:
            if "is a recipe for" not in str(error):
                raise
    raise ConfigError(f"{path} is a recipe neither for train_grpo.py nor for train_ppo.py: tools.plan predicts those two")


def architecture(name, need_len=0, tensor_parallel=1):
    """Directory, known name, or hub id -> Shape; ConfigError for a model that the scripts would refuse."""
    config = config_of(name)
    check_architecture(config, need_len, name)
    check_positions(config, need_len, name)
    check_tensor_parallel(config, tensor_parallel, name)
    return speed.shape_of(config)


def config_of(name, depth=0):
    """Its config, or an object with the same names. out/<run>/model that is not there: what that recipe starts from."""
    file = os.path.join(os.path.expanduser(name), "config.json")
    base = name.rsplit("/", 1)[-1].removeprefix("Meta-")
    known = [key for key in MODELS if name == key or base == key or base.startswith(key + "-") and not NOT_THAT.search(base)]
    if not os.path.isfile(file) and known:
        *sizes, family = MODELS[max(known, key=len)]
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                 "intermediate_size", "vocab_size", "tie_word_embeddings")
        return SimpleNamespace(**dict(zip(names, sizes, strict=True)), model_type=family)
    if not os.path.isfile(file) and name.startswith("out/") and depth < 9:
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "recipes")
        for recipe in sorted(os.listdir(folder)):
            path = os.path.join(folder, recipe)
            for script in ("train_grpo.py", "train_ppo.py", "sft.py") if recipe.endswith(".py") else ():
                with contextlib.suppress(ConfigError):
                    settings = read_recipe(path, script)
                    if f"out/{settings.get('name')}/model" == name and settings.get("model") != name:
                        return config_of(settings["model"], depth + 1)
        raise ConfigError(f"model {name!r} is not there, and no recipe makes it: give --model with what it starts from")
    if not os.path.isfile(file):
        try:
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(name, "config.json", local_files_only=not data.hub_reachable())
        except Exception as error:  # hub errors have many types; each means the same to the user
            raise ConfigError(f"model {name!r}: no directory here, not in the table of tools.plan, and its config.json "
                              f"could not be fetched ({type(error).__name__}): give --model with a directory or one of "
                              f"{', '.join(MODELS)}") from error
    try:  # transformers knows what a config.json leaves out: Gemma's do not say that the embeddings are tied
        return AutoConfig.from_pretrained(os.path.dirname(file), trust_remote_code=False)
    except Exception as error:  # a config can be wrong in many ways, each with a type of its own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file} is not the config of a Llama-like model: {reason}") from error


# ---------------------------------------------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------------------------------------------


def activation_bytes(shape, bytes_each, family_norms=False):
    """
    What autograd keeps of one block for one token, as transformers writes Llama and Qwen, b = bytes_each:

        hidden        2 norms: 4 (fp32 copy) + 2 b (normalised, times weight) each           8 + 4 b
        intermediate  gate, silu(gate), up, their product                                       4 b
        queries       q, attention's output, its copy in order 3 b, and 4 bytes a head (log-sum-exp); keys, values  2 b

    Qwen3 keeps an fp32 and a normalised copy of q and k besides. tests/test_tools.plan counts the tensors.
    """
    b, q, kv = bytes_each, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = (8 + 4 * b) * shape.hidden + 8 + 4 * b * shape.intermediate + 3 * b * q + 4 * shape.heads + 2 * b * kv
    if family_norms:
        total += (4 + b) * (q + kv) + 4 * (shape.heads + shape.kv_heads)
    return total


def has_qk_norm(shape):
    norms = (2 * shape.head_dim, (shape.heads + shape.kv_heads) * shape.head_dim)  # Qwen3, OLMo 2
    return shape.vectors - 2 * shape.hidden in norms


def micro_batch_memory(shape, tokens, bytes_each, checkpointing, on_cpu, head=True, sharded=True):
    """
    {part: bytes} that one micro-batch needs at its worst moment, on one rank: in the head's backward, in a block's, or
    when the last FSDP group (embeddings and head) reduces its gradient. Only there do gathered weights count; not sharded
    (one process in fp32), there are none, and each gradient goes where it stays.
    """
    b, block = bytes_each, activation_bytes(shape, bytes_each, has_qk_norm(shape))
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    products = b * (2 * q + 2 * kv + 2 * shape.hidden + 2 * shape.intermediate) + 4 * shape.heads  # policy.keep_products
    of_block = {True: b * shape.hidden, "selective": b * shape.hidden + products, False: block}[checkpointing]
    kept = tokens * (shape.layers * of_block + (4 + 3 * b) * shape.hidden)
    gathered = b * sharded
    root = shape.vocab * shape.hidden * (1 if shape.tied or not head else 2)
    table = shape.vocab * shape.hidden if head else 0
    chunk = CHUNK_LOGITS if on_cpu else CHUNK_LOGITS_CUDA
    chunk = min(chunk, tokens * shape.vocab) if head else 0
    moments = {
        "head": {"activations": kept, "chunks of logits": 2 * 4 * chunk, "gradient of the head": (4 + b) * table,
                 "gathered weights": gathered * root},
        "block": {"activations": kept, "one block recomputed" if checkpointing else "gradients inside a block":
                  tokens * (block if checkpointing else 0) + 3 * b * tokens * shape.intermediate,
                  "gradient of the head": b * table, "gathered weights": gathered * (root + 2 * shape.block_weights),
                  "gradient of a block": (gathered + 4 * sharded) * shape.block_weights},
        "last": {"gathered weights": gathered * root, "gradient of embeddings and head": (b + 4 * sharded) * root},
    }
    parts = max(moments.values(), key=lambda parts: sum(parts.values()))
    if on_cpu:
        parts["freed, and kept by glibc"] = (CPU_HEAP - 1) * sum(parts.values())
    return parts


def kv_cache(shape, cfg, options, bytes_each):
    """-> (bytes of one engine's cache, sequences of full length that it holds, sequences that run together)"""
    from onebox.vllm_start import kv_cache_bytes

    limit = 4e9 if options.cpu else 0.35 * options.gpu_memory_gb * 1e9
    config = SimpleNamespace(num_hidden_layers=shape.layers, num_key_value_heads=shape.kv_heads,
                             head_dim=shape.head_dim, hidden_size=shape.hidden, num_attention_heads=shape.heads)
    full = cfg.max_prompt_len + cfg.max_response_len
    need = kv_cache_bytes(config, cfg.max_num_seqs, full, "float32" if bytes_each == 4 else "bfloat16", cfg.tensor_parallel)
    size = cfg.kv_cache_gb * 1e9 if cfg.kv_cache_gb else min(need, limit * cfg.tensor_parallel)
    engines = options.gpus // cfg.tensor_parallel
    together = min(cfg.max_num_seqs, math.ceil(cfg.prompts_per_step * cfg.group_size / engines))
    copies = max(1.0, cfg.tensor_parallel / shape.kv_heads)  # of a key head: each GPU holds at least one
    return size, int(size / (math.ceil(full / 16) * 16 * speed.kv_bytes_per_token(shape, bytes_each) * copies)), together


def memory(cfg, shape, critic, options, tokens=None):
    """-> {"training": {part: bytes}, "sampling": {part: bytes}} of one process; tokens: of a micro-batch"""
    b = 4 if cfg.dtype == "float32" or (cfg.dtype == "auto" and options.cpu) else 2
    ranks, sharded = cfg.shard_size or options.gpus, options.gpus > 1 or b != 4
    full = cfg.max_prompt_len + cfg.max_response_len - 1
    held = math.ceil(cfg.prompts_per_step * cfg.group_size / options.gpus)  # may be less than max_tokens_per_gpu
    tokens = tokens or min(max(cfg.max_tokens_per_gpu, full), held * full)
    base = {"process": CPU_BASE_GB * 1e9} if options.cpu else {"CUDA context, NCCL": CONTEXT_GB * 1e9}
    weights = {"policy, fp32": 4 * shape.params / ranks}
    training = {"policy: gradient, Adam": 12 * shape.params / ranks}
    resting = {"policy: Adam": 8 * shape.params / ranks}
    if critic is not None:
        weights["critic, fp32"] = 4 * critic.trunk_params / ranks
        training["critic: gradient, Adam"] = 12 * critic.trunk_params / ranks
        resting["critic: Adam"] = 8 * critic.trunk_params / ranks
    if cfg.kl_in != "none":
        weights["reference"] = b * shape.params / ranks
    parts = micro_batch_memory(shape, tokens, b, cfg.checkpointing, options.cpu, sharded=sharded)
    if critic is not None:
        of_critic = micro_batch_memory(critic, tokens, b, cfg.checkpointing, options.cpu, head=False, sharded=sharded)
        parts = max(parts, of_critic, key=lambda parts: sum(parts.values()))
    size, _, _ = kv_cache(shape, cfg, options, b)
    engine = {"engine: weights": b * shape.params / cfg.tensor_parallel, "engine: KV cache": size / cfg.tensor_parallel}
    if options.cpu:  # no sleep there: the engine stays; oneDNN packs a second copy of a tied head
        parts["freed, and kept by glibc"] += (CPU_HEAP - 1) * 4 * shape.params / ranks  # gradients come and go as well
        engine["engine: weights"] += b * shape.vocab * shape.hidden * shape.tied
        return {"training": base | weights | training | parts | engine, "sampling": base | weights | resting | engine}
    engine["engine: CUDA graphs, work space"] = GRAPHS_GB * 1e9
    block = b * shape.block_weights * 2 + b * shape.vocab * shape.hidden  # sync: a full tensor, an open layer
    return {"training": base | weights | training | parts,
            "sampling": base | weights | resting | engine | {"weight sync": block}}


def tokens_that_fit(cfg, shape, critic, options):
    """The largest max_tokens_per_gpu, in steps of 256, that fits while training; 0 if none does."""
    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        used = sum(memory(cfg, shape, critic, options, tokens=middle * 256)["training"].values())
        low, high = (middle, high) if used <= options.gpu_memory_gb * 1e9 else (low, middle - 1)
    return low * 256


# ---------------------------------------------------------------------------------------------------------------
# time
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Seconds per unit of the trainer's work on this kind of process."""

    forward: object  # (lens, scored, head) -> seconds of a forward without gradient
    train: object  # the same of forward and backward
    adam: object  # parameters -> seconds of an optimizer step
    peaks: speed.Peaks


def gpu_work(shape, cfg, options, dtype):
    """From peaks and assumed shares of them; recomputation costs one more forward of the blocks."""
    peaks = speed.known_gpu(options.gpu, dtype)
    rate = peaks.flops * options.mfu

    def forward(shape, lens, scored):
        return speed.forward_flops(shape, lens, scored) / rate

    def train(shape, lens, scored):
        again = speed.forward_flops(shape, lens, 0) if cfg.checkpointing is True else 0
        return (3 * speed.forward_flops(shape, lens, scored) + again) / rate

    return Work(forward, train, lambda params: 28 * params / (peaks.bandwidth * options.mbu), peaks)


def response_lens(mean, longest, count):
    """`count` lengths with this mean, longest first, spread as an exponential distribution that is cut at `longest`."""
    low, high = 1e-3, 1e9  # the scale s has s (1 - exp(-longest / s)) = mean
    for _ in range(100):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if scale * (1 - math.exp(-longest / scale)) < mean else (low, scale)
    found = [min(longest, -scale * math.log(1 - (i + 0.5) / count)) for i in range(count)]
    return sorted((max(1, round(n * mean / (sum(found) / count))) for n in found), reverse=True)


def cpu_work(shape, cfg, prompt_len, spread):
    """
    Measured here: the model's own blocks, one and two of them, random weights, one micro-batch of these lengths; the
    rest is a multiple. Half a minute for a model of 135 million parameters.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from onebox import distributed
    import policy as model

    distributed.init_distributed()
    dtype = "bfloat16" if cfg.dtype == "bfloat16" else "float32"
    tokens = sum(spread) + len(spread) * prompt_len  # of those, as many as one micro-batch of the step holds, evenly
    every = max(1, math.ceil(tokens / cfg.max_tokens_per_gpu))
    fake = [speed.FakeRollout([1] * max(1, prompt_len), [1] * n, [0.0] * n) for n in spread[::every]]
    batch = model.to_micro_batch(fake, range(len(fake)), torch.device("cpu"))
    models = {}
    for layers in (1, 2):
        config = Qwen2Config(
            vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim, tie_word_embeddings=True)
        with tempfile.TemporaryDirectory() as folder:
            Qwen2ForCausalLM(config).save_pretrained(folder)
            policy = model.load_policy(folder, torch.device("cpu"), dtype, checkpointing=cfg.checkpointing)
        models[layers] = (policy, torch.optim.AdamW(policy.parameters(), lr=0.0))
    runs = {1: [], 2: []}
    for _ in range(6):  # in turn, since what counts is the difference, and a machine may be slow for a while
        for layers, pair in models.items():
            runs[layers].append(one_training_step(model, *pair, batch, cfg.temperature, cfg.entropy_coef))
    seconds = {layers: [min(times) for times in zip(*found[1:], strict=True)] for layers, found in runs.items()}
    params = sum(p.numel() for p in models[2][0].parameters())
    flops = {layers: speed.forward_flops(dataclasses.replace(shape, layers=layers), batch.lens, len(batch.targets))
             for layers in (1, 2)}

    def scaled(kind):  # seconds = (head and embeddings) + layers * block, each in proportion to its FLOPs
        block = max(1e-9, seconds[2][kind] - seconds[1][kind])
        head = max(0.0, seconds[1][kind] - block)

        def cost(shape, lens, scored):
            blocks = speed.forward_flops(shape, lens, 0) / (flops[2] - flops[1])
            return block * blocks + head * scored / len(batch.targets)

        return cost

    adam = seconds[2][2] / params
    peaks = speed.machine_peaks(torch.device("cpu"), dtype)
    return Work(scaled(0), scaled(1), lambda n: adam * n, peaks)


def one_training_step(model, policy, optimizer, batch, temperature, entropy_coef):
    """-> seconds of a forward without gradient, of forward and backward, of the optimizer step"""
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        model.token_logprobs(policy, batch, temperature)
    after_forward = time.perf_counter()
    logprobs, entropy = model.token_logprobs(policy, batch, temperature)
    (logprobs - entropy_coef * entropy).mean().backward()
    after_backward = time.perf_counter()
    model.clip_and_step(policy, optimizer, 1.0, 0.0)
    return after_forward - start, after_backward - after_forward, time.perf_counter() - after_backward


def seconds(cfg, script, shape, critic, options):
    """-> {phase: seconds} of one step, without evaluation, checkpoint and reward"""
    dtype = cfg.dtype if cfg.dtype != "auto" else ("float32" if options.cpu else "bfloat16")
    b, world = 4 if dtype == "float32" else 2, options.gpus
    response = options.mean_response_len or max(1, cfg.max_response_len // 2)
    prompt = options.mean_prompt_len or max(1, cfg.max_prompt_len // 2)
    count = math.ceil(cfg.prompts_per_step * cfg.group_size / world)  # of each rank
    spread = response_lens(response, cfg.max_response_len, count)
    lens, scored = [prompt + n - 1 for n in spread], sum(spread)
    work = cpu_work(shape, cfg, int(prompt), spread) if options.cpu else gpu_work(shape, cfg, options, dtype)
    epochs = getattr(cfg, "epochs_per_step", 1)
    old = cfg.updates_per_step * epochs > 1 or (script == "train_ppo.py" and cfg.kl_in == "reward_k1")
    forwards = old + (cfg.kl_in != "none")
    ranks = cfg.shard_size or world
    found = {"rollout": rollout_seconds(cfg, shape, options, work.peaks, prompt, response, b),
             "logprobs": forwards * work.forward(shape, lens, scored)}
    only_forward = script == "train_grpo.py" and not cfg.entropy_coef and not (cfg.kl_in != "none" and cfg.kl_coef)
    agreeing = options.agreeing if only_forward else 0.0  # as train_grpo.learned_from has it
    train = epochs * ((1 - agreeing) * work.train(shape, lens, scored) + agreeing * work.forward(shape, lens, scored))
    train += epochs * cfg.updates_per_step * work.adam(shape.params / ranks)
    if critic is not None:
        found["values"] = work.forward(critic, lens, 0)
        train += epochs * (work.train(critic, lens, 0) + cfg.updates_per_step * work.adam(critic.trunk_params / ranks))
    found["train"] = train
    rate = work.peaks.bandwidth * CPU_SYNC_SHARE if options.cpu else SYNC_BYTES_PER_S
    found["sync"] = CPU_SYNC_S * options.cpu + b * shape.params / rate
    return found


def rollout_seconds(cfg, shape, options, peaks, prompt, response, bytes_each):
    """One engine's share of a step; a group's prompt is read once."""
    engines, tp = options.gpus // cfg.tensor_parallel, cfg.tensor_parallel
    prompts = cfg.prompts_per_step // engines
    lens = response_lens(response, cfg.max_response_len, prompts * cfg.group_size)
    read, flops = speed.decode_work(shape, [prompt] * len(lens), lens, cfg.max_num_seqs, bytes_each)
    prefill = speed.forward_flops(shape, [prompt] * prompts, 0)
    if options.cpu:
        steps = max(max(lens), sum(lens) / cfg.max_num_seqs)
        python = steps * CPU_ENGINE_STEP_S + sum(lens) * CPU_ENGINE_SEQ_S
        return python + max(read / peaks.bandwidth, flops / peaks.flops) + prefill / peaks.flops
    decode = max(read / (peaks.bandwidth * options.mbu), flops / (peaks.flops * options.mfu))
    return (decode + prefill / (peaks.flops * options.mfu)) / tp


# ---------------------------------------------------------------------------------------------------------------
# the answer
# ---------------------------------------------------------------------------------------------------------------


def predict(cfg, script, options, times=True):
    """-> dict(fits, memory, seconds, shape, kv=(bytes, room, together), tokens); ConfigError for impossible settings"""
    importlib.import_module(script[:-3]).check_config(cfg, options.gpus)
    full = cfg.max_prompt_len + cfg.max_response_len
    shape = architecture(cfg.model, full, cfg.tensor_parallel)
    critic = architecture(cfg.critic_model or cfg.model, full) if getattr(cfg, "estimator", "") == "gae" else None
    used = memory(cfg, shape, critic, options)
    kv = kv_cache(shape, cfg, options, 4 if cfg.dtype == "float32" or (cfg.dtype == "auto" and options.cpu) else 2)
    fits = kv[1] >= 1 and all(sum(parts.values()) <= options.gpu_memory_gb * 1e9 for parts in used.values())
    found = dict(fits=fits, memory=used, shape=shape, critic=critic, kv=kv)
    if times:
        found["tokens"] = tokens_that_fit(cfg, shape, critic, options)
        found["seconds"] = seconds(cfg, script, shape, critic, options)
    return found


def report(cfg, found, options):
    """The text of a prediction."""
    shape, (size, room, together) = found["shape"], found["kv"]
    what = "CPU process" if options.cpu else "GPU"
    lines = [f"{cfg.name}: {cfg.model}, {shape.params / 1e9:.3g} G parameters, {options.gpus} x {what} of "
             f"{options.gpu_memory_gb:.3g} GB", ""]
    for phase, parts in found["memory"].items():
        total = sum(parts.values()) / 1e9
        verdict = "" if total <= options.gpu_memory_gb else "   DOES NOT FIT"
        lines += [f"while {phase}, GB per {what}", *(f"  {k:<34} {v / 1e9:8.2f}" for k, v in parts.items())]
        lines += [f"  {'all':<34} {total:8.2f} of {options.gpu_memory_gb:.3g}{verdict}", ""]
    full = cfg.max_prompt_len + cfg.max_response_len
    lines.append(f"max_tokens_per_gpu {cfg.max_tokens_per_gpu:,}; up to {found['tokens']:,} would fit while training"
                 + (f", less than the longest sequence ({full:,})" if found["tokens"] < full else ""))
    warning = (": vLLM does not start with room for less than one" if room < 1 else "" if room >= together else
               ": near full length some are preempted and computed again; raise --kv_cache_gb or lower --max_num_seqs")
    lines.append(f"KV cache {size / 1e9:.2f} GB an engine: {room:,} sequences of full length ({full:,}); "
                 f"{together:,} run together{warning}")
    spent, response = found["seconds"], options.mean_response_len or max(1, cfg.max_response_len // 2)
    lines += ["", f"seconds a step, at a mean of {response:,.0f} response tokens"
              + ("" if options.mean_response_len else " (assumed: half of the longest; --mean_response_len)")]
    total = sum(spent.values())
    lines += [f"  {name:<10} {value:10.2f}" for name, value in [*spent.items(), ("all", total)]]
    tokens = cfg.prompts_per_step * cfg.group_size * response
    lines.append(f"  {tokens / max(1e-9, total):,.0f} response tokens/s; without reward, evaluation and checkpoints")
    lines.append("  trainer: this model's blocks, timed here; engine: probed peaks" if options.cpu else
                 f"  assumed, not measured: MFU {options.mfu:g}, MBU {options.mbu:g} of {options.gpu}, "
                 f"{SYNC_BYTES_PER_S / 1e9:g} GB/s weight sync, {GRAPHS_GB:g} + {CONTEXT_GB:g} GB of overheads")
    return "\n".join(lines) + "\n"


def suggest(cfg, script, options):
    """
    What to change so that it fits, cheapest first -> {setting: value}, perhaps with "gpus"; None where nothing helps.
    Each is taken back if the rest fits without it; the result has been predicted to fit.
    """
    def fits(changes):
        changes = dict(changes)
        trial = argparse.Namespace(**{**vars(options), "gpus": changes.pop("gpus", options.gpus)})
        try:
            return predict(dataclasses.replace(cfg, **changes), script, trial, times=False)["fits"]
        except ConfigError:  # does not divide
            return False

    full, steps = cfg.max_prompt_len + cfg.max_response_len, []
    if cfg.checkpointing is not True:
        steps.append({"checkpointing": True})
    tokens = cfg.max_tokens_per_gpu
    while tokens // 2 >= full:
        tokens //= 2
        steps.append({"max_tokens_per_gpu": tokens})
    if tokens > full:
        steps.append({"max_tokens_per_gpu": full})
    if cfg.shard_size:
        steps.append({"shard_size": 0})
    cache = kv_cache(architecture(cfg.model), cfg, options, 2)[0] / 1e9
    steps += [{"kv_cache_gb": round(cache * share, 2)} for share in (0.75, 0.5, 0.25)]
    steps += [{"tensor_parallel": tp, "kv_cache_gb": round(0.25 * cache * tp / cfg.tensor_parallel, 2)} for tp in (2, 4, 8)
              if tp > cfg.tensor_parallel and options.gpus % tp == 0 and divides_heads(cfg.model, tp)]
    steps += [{"gpus": options.gpus * more} for more in (2, 4, 8, 16, 32)] if not options.cpu else []
    changes = {}
    for step in steps:
        changes |= step
        if fits(changes):
            for name in list(changes):
                less = {k: v for k, v in changes.items() if k != name}
                if less and fits(less):
                    changes = less
            return relaxed(changes, steps, fits)
    return None


def divides_heads(name, tensor_parallel):
    try:
        return bool(architecture(name, tensor_parallel=tensor_parallel))
    except ConfigError:
        return False


def relaxed(changes, steps, fits):
    """The mildest value of each change that still fits with the others."""
    for name in changes:
        for step in steps:
            if name in step and fits(changes | step):
                changes = changes | step
                break
    return changes


if __name__ == "__main__":
    from onebox import rundir

    rundir.entry(main)
