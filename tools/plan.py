"""
What a recipe needs, before it is launched: memory by part, room in the KV cache, seconds a step. No weights, no GPU.

    python -m tools.plan recipes/tinyzero_grpo.py --gpus 8 --gpu_memory_gb 80 [--setting value ...]

Options  --gpus N (processes), --gpu_memory_gb X, --gpu NAME (for its peaks, default H100), --mean_response_len N and
         --mean_prompt_len N (default half of the longest), --agreeing X (share of groups whose rewards agree: GRPO
         runs silent_share of them, forward only; default 0), --mfu and --mbu (shares of the peaks instead of the
         measured ones), --host_memory_gb X (of a process, for offload). The rest are settings of the script. Only the
         model's config.json is read; a few common models are known offline. --table alone: what fits on one GPU.
Exit     0 it fits, 1 it does not; then the settings to change are printed, and with them it does fit.

Memory is that of tools/memory.py. What "auto" becomes is printed first. 1 GB is 1e9 bytes, and "80 GB" cards are taken
to hold that. docs/gpus.md compares memory with peaks of one H200; no prediction of seconds was compared with a GPU.
"""

import argparse
import dataclasses
import importlib
import math
import sys

from onebox.checkpoint import ROOM
from onebox.config import ConfigError, load_config, read_recipe, refuse
from onebox.flops import GPUS, forward_flops, known_gpu
from onebox.rundir import AUTO
from tools.efficiency import decode_work
from tools.memory import (CONTEXT_GB, GRAPHS_GB, HOST_SHARE, architecture, bytes_of, config_of,  # noqa: F401  bench
                          fastest, fits, kv_cache, memory, models_of, on_the_gpu, prompts_drawn, tokens_that_fit, total)

# Measured on one H200 (results/2026-11-27_gpu_h200): the trainer's MFU by size of the model, checkpointing and compile,
# with 16,384 tokens a micro-batch. It counts no recomputation as work.
MFU = {("0.6B", True, False): 0.128, ("0.6B", False, False): 0.165, ("0.6B", False, True): 0.22,
       ("1.5B", True, False): 0.282, ("1.5B", "selective", False): 0.293, ("1.5B", False, False): 0.337,
       ("1.5B", True, True): 0.304, ("1.5B", False, True): 0.399}
MBU = 0.11  # there: vLLM 0.20 with its V1 runner, 256 sequences of the 1.5B model, a seed for each
SYNC_BYTES_PER_S = 12.7e9  # there, with the engine's wake-up
ADAM_BYTES_PER_S = 1e12  # there: 28 bytes a parameter in 0.043 s, with the clip
# Assumed: of the host's memory, and of the link between it and the GPU. Gradients cross it through a pinned buffer;
# what is not pinned, such as a reference, may be slower. What FSDP2 copies for each micro-batch is not counted.
HOST_BYTES_PER_S, LINK_BYTES_PER_S = 50e9, 25e9


def main():
    refuse("--table" in sys.argv[2:], "tools.plan: --table stands alone: it is of Qwen2.5 on one GPU, not of a recipe")
    if sys.argv[1:] == ["--table"]:
        return print(what_fits())
    options, argv = parse(sys.argv[1:])
    refuse(not argv or argv[0].startswith("-"),
           "tools.plan wants a recipe first: python -m tools.plan recipes/NAME.py --gpus 8 --gpu_memory_gb 80")
    script = script_of(argv[0])
    cfg, _ = load_config(importlib.import_module(script[:-3]).Config, argv)
    found = predict(cfg, script, options)
    print(report(cfg, found, options))
    if not found["fits"]:
        host, room = total(found["memory"]["host"]) / 1e9, options.host_memory_gb
        refuse(host > room and on_the_gpu(found["memory"]) <= options.gpu_memory_gb * 1e9, f"it fits the GPU, not the "
               f"host: a process wants {host:.0f} GB and {room:.0f} count: take a host with more memory, a smaller "
               "model, or a larger GPU and --offload none")
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
                "agreeing": 0.0, "mfu": 0.0, "mbu": MBU, "host_memory_gb": math.inf}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options, rest = parser.parse_known_args(argv)
    limits = [(("gpus", "gpu_memory_gb", "mbu"), lambda x: 0 < x < math.inf, "must be greater than 0"),
              (("host_memory_gb",), lambda x: x > 0, "must be greater than 0"),
              (("mean_response_len", "mean_prompt_len", "mfu"), lambda x: 0 <= x < math.inf, "must not be negative"),
              (("mfu", "mbu", "agreeing"), lambda x: 0 <= x <= 1, "is a share: from 0 to at most 1")]
    for names, allowed, said in limits:
        for name in names:
            value = getattr(options, name)
            refuse(not allowed(value), f"tools.plan: {name} = {value} {said}")
    options.host_memory_gb *= HOST_SHARE  # as a run does
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


# ---- time ------------------------------------------------------------------------------------------------------------

def seconds(cfg, script, model, critic, options):
    """Predict {phase: seconds} of one step from assumed shares of the peaks; no evaluation, checkpoint or reward."""
    peaks, ranks = peaks_of(cfg, options), min(cfg.shard_size or options.gpus, options.gpus)
    prompt, response = mean_lens(cfg, options)
    each = math.ceil(cfg.prompts_per_step * cfg.group_size / options.gpus)
    spread, epochs = response_lens(response, cfg.max_response_len, each), cfg.epochs_per_step
    lens, scored = [prompt + n - 1 for n in spread], sum(spread)

    def forward(model, scored=scored):
        return forward_flops(model.shape, lens, scored) / (peaks.flops * mfu_of(cfg, model, options, forward=True)[0])

    def train(model, scored=scored):
        mfu = mfu_of(cfg, model, options)[0]  # of the table: it was measured with the recomputation, one more forward
        again = forward_flops(model.shape, lens, 0) if cfg.checkpointing is True and options.mfu else 0
        return (3 * forward_flops(model.shape, lens, scored) + again) / (peaks.flops * mfu)

    def adam(params):
        each = params / ranks * (28 / ADAM_BYTES_PER_S if cfg.offload == "none" else
                                 28 / HOST_BYTES_PER_S + 6 / LINK_BYTES_PER_S)  # gradient in fp32, weight in bf16
        return epochs * cfg.updates_per_step * each

    old = cfg.updates_per_step * epochs > 1 or (script == "train_ppo.py" and cfg.kl_in == "reward_k1")
    penalized = cfg.entropy_coef or cfg.entropy_target or cfg.kl_in != "none" and cfg.kl_coef
    only_forward = script == "train_grpo.py" and not penalized
    agreeing = options.agreeing if only_forward else 0.0  # as train_grpo.needs_grad_mask has it
    found = {"rollout": rollout_seconds(cfg, model, options),
             "logprobs": (old + (cfg.kl_in != "none")) * forward(model),
             "train": epochs * ((1 - agreeing) * train(model) + agreeing * cfg.silent_share * forward(model))
             + adam(model.params),
             "sync": bytes_of(cfg) * model.params / SYNC_BYTES_PER_S}
    if cfg.kl_in != "none" and cfg.offload == "optimizer" and options.gpus == 1:
        found["logprobs"] += bytes_of(cfg) * model.params / LINK_BYTES_PER_S  # the reference comes from the host
    if critic is not None:
        found["values"] = forward(critic, 0)
        found["train"] += epochs * train(critic, 0) + adam(critic.trunk_params)
    return found


def mfu_of(cfg, model, options, forward=False):
    """Return (MFU of the trainer with these settings, where it was measured or "" if it is assumed)."""
    if options.mfu:
        return options.mfu, ""
    size = "0.6B" if model.params < 1e9 else "1.5B"
    wanted = (size, False if forward else cfg.checkpointing, cfg.compile)
    known = wanted if wanted in MFU else (size, True, False)  # the lowest of that size
    measured = known == wanted and model.params < 2e9 and options.gpu == "H200" and bytes_of(cfg) == 2
    return MFU[known], f"{size} model on one H200" if measured else ""


def peaks_of(cfg, options):
    """Return the GPU's peak FLOP/s, and the bytes/s of decoding that are assumed: a share of its peak."""
    peaks = known_gpu(options.gpu, "float32" if cfg.dtype == "float32" else "bfloat16")
    return peaks._replace(bandwidth=peaks.bandwidth * options.mbu)


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


def rollout_seconds(cfg, model, options):
    """
    Predict one engine's share of a step. It reads each prompt once: a group's samples are dealt to all engines. With
    finish_share all that is drawn counts as if it were finished: at most so long.
    """
    peaks, (prompt, response) = peaks_of(cfg, options), mean_lens(cfg, options)
    engines = options.gpus // cfg.tensor_parallel
    drawn = prompts_drawn(cfg, engines)
    count = math.ceil(drawn * cfg.group_size / engines)
    lens = response_lens(response, cfg.max_response_len, count)
    read, flops = decode_work(model.shape, [prompt] * len(lens), lens, cfg.max_num_seqs, bytes_of(cfg))
    flops_per_s = peaks.flops * mfu_of(cfg, model, options, forward=True)[0]
    read_prompts = forward_flops(model.shape, [prompt] * min(count, drawn), 0) / flops_per_s
    return (max(read / peaks.bandwidth, flops / flops_per_s) + read_prompts) / cfg.tensor_parallel


# ---- the answer ------------------------------------------------------------------------------------------------------

def predict(cfg, script, options, times=True):
    """
    Return dict(fits, cfg without "auto", memory, params, trained parameters, kv, tokens, seconds). Raise ConfigError
    for impossible settings.
    """
    importlib.import_module(script[:-3]).check_config(cfg, options.gpus)
    model, critic = models_of(cfg)
    cfg = fastest(cfg, options)
    used, kv = memory(cfg, model, critic, options), kv_cache(model, cfg, options)
    found = dict(fits=kv[1] >= 1 and fits(used, options), cfg=cfg, memory=used, params=model.params, kv=kv,
                 trained=model.params + (critic.trunk_params if critic else 0))
    if times:
        found["tokens"] = tokens_that_fit(cfg, model, critic, options)
        found["seconds"] = seconds(cfg, script, model, critic, options)
        found["mfu"] = mfu_of(cfg, model, options)
    return found


def report(asked, found, options):
    """Write the text of a prediction for the Config that was asked about, perhaps with "auto"."""
    (size, room, together), tokens, cfg = found["kv"], found["tokens"], found["cfg"]
    full, auto = cfg.max_prompt_len + cfg.max_response_len, [k for k in AUTO if getattr(asked, k) == "auto"]
    lines = [f"{cfg.name}: {cfg.model}, {found['params'] / 1e9:.3g} G parameters, {options.gpus} x GPU of "
             f"{options.gpu_memory_gb:.3g} GB",
             *[f"auto: {', '.join(f'{name} {getattr(cfg, name)}' for name in auto)}"] * bool(auto), ""]
    for phase, parts in found["memory"].items():
        if not parts:
            continue
        used, limit = total(parts) / 1e9, options.host_memory_gb if phase == "host" else options.gpu_memory_gb
        free = f" (not compared: --host_memory_gb GB that are available to a process, of which {HOST_SHARE:.0%} count)"
        verdict = f" of {limit:.3g}" if limit < math.inf else free
        verdict += "" if used <= limit else "   DOES NOT FIT"
        head = {"host": "in the host's memory, GB per process",
                "log-probs": "while log-probs are computed, GB per GPU"}.get(phase, f"while {phase}, GB per GPU")
        lines += [head, *(f"  {k:<34} {v / 1e9:8.2f}" for k, v in parts.items()), f"  {'all':<34} {used:8.2f}{verdict}",
                  ""]
    short = f", less than the longest sequence ({full:,})" if tokens < full else ""
    warning = (": vLLM does not start with room for less than one" if room < 1 else "" if room >= together else
               ": near full length some are preempted and computed again; raise --kv_cache_gb or lower --max_num_seqs")
    _, response = mean_lens(cfg, options)
    assumed = "" if options.mean_response_len else " (assumed: half of the longest; --mean_response_len)"
    seconds_all = total(found["seconds"])
    rate = cfg.prompts_per_step * cfg.group_size * response / max(1e-9, seconds_all)
    mfu, where = found["mfu"]
    engine = "given" if options.mbu != MBU else "measured: vLLM 0.20 with its V1 runner on one H200, 1.5B model"
    on_host = f", Adam on the host at {HOST_BYTES_PER_S / 1e9:g} GB/s, {LINK_BYTES_PER_S / 1e9:g} GB/s on the way"
    cut = ", as if all that finish_share draws were finished" * (cfg.finish_share < 1)
    disk = 12 * found["trained"] / 1e9
    lines += [f"on disk {disk:.0f} GB a checkpoint, {cfg.keep_checkpoints} newest and the best one; a save wants "
              f"{ROOM * disk:.0f} GB free; the exported model {2 * found['params'] / 1e9:.0f} GB", "",
              f"max_tokens_per_gpu {cfg.max_tokens_per_gpu:,}; up to {tokens:,} would fit while training{short}",
              f"KV cache {size / 1e9:.2f} GB an engine: {room:,} sequences of full length ({full:,}); "
              f"{together:,} run together{warning}", "",
              f"seconds a step, at a mean of {response:,.0f} response tokens{assumed}",
              *(f"  {k:<10} {v:10.2f}" for k, v in [*found["seconds"].items(), ("all", seconds_all)]),
              f"  {rate:,.0f} response tokens/s; without reward, evaluation and checkpoints{cut}",
              f"  MFU {mfu:g} of {options.gpu} ({f'measured: {where}' if where else how_assumed(options)}), MBU "
              f"{options.mbu:g} ({engine})",
              f"  measured on one H200: {SYNC_BYTES_PER_S / 1e9:g} GB/s weight sync, Adam; assumed: {GRAPHS_GB:g} + "
              f"{CONTEXT_GB:g} GB of overheads{on_host * (cfg.offload != 'none')}"]
    return "\n".join(lines) + "\n"


def how_assumed(options):
    return "given" if options.mfu else "assumed: measured on one H200 with the 0.6B or 1.5B model"


def suggest(cfg, script, options):
    """
    Return what to change so that it fits, cheapest first: {setting: value}, perhaps with "gpus"; None if nothing helps.

    Each change is taken back if the rest fits without it, and is the mildest that fits with the others.
    """
    def fits_with(changes):
        changes = dict(changes)
        trial = argparse.Namespace(**{**vars(options), "gpus": changes.pop("gpus", options.gpus)})
        try:
            return predict(dataclasses.replace(cfg, **changes), script, trial, times=False)["fits"]
        except ConfigError:  # does not divide
            return None

    full, tokens = cfg.max_prompt_len + cfg.max_response_len, cfg.max_tokens_per_gpu
    cache = kv_cache(architecture(cfg.model), cfg, options)[0] / 1e9
    steps = [{"checkpointing": True}] * (cfg.checkpointing not in ("auto", True))
    if tokens != "auto":
        steps += [{"max_tokens_per_gpu": max(full, tokens >> k)} for k in range(1, 20) if tokens >> (k - 1) > full]
    steps += [{"shard_size": 0}] * bool(cfg.shard_size)
    steps += [{"offload": "optimizer"}] * (cfg.offload == "none")
    steps += [{"kv_cache_gb": round(cache * share, 2)} for share in (0.75, 0.5, 0.25)]
    steps += [{"tensor_parallel": tp, "kv_cache_gb": round(0.25 * cache * tp / cfg.tensor_parallel, 2)}
              for tp in (2, 4, 8) if tp > cfg.tensor_parallel]
    steps += [{"gpus": options.gpus * more} for more in (2, 4, 8, 16, 32)]
    changes = {}
    for step in steps:
        fit = fits_with(changes | step)
        changes |= step if fit is not None else {}
        if fit:
            break
    else:
        return None
    for name in list(changes):
        less = {k: v for k, v in changes.items() if k != name}
        if less and fits_with(less):
            changes = less
    for name in list(changes):
        changes = changes | next((step for step in steps if name in step and fits_with(changes | step)), {})
    return changes


def what_fits(models=("0.5B", "1.5B", "3B", "7B"), responses=(1024, 8192), gpus_gb=(24, 48, 80, 141)):
    """Write docs/gpus.md's table: what "auto" chooses on one GPU for GRPO of Qwen2.5 without a KL term."""
    rows = [f"| model, response | {' | '.join(f'{gb} GB' for gb in gpus_gb)} |", "|---" * (1 + len(gpus_gb)) + "|"]
    for name in models:
        for response in responses:
            cfg = importlib.import_module("train_grpo").Config(model=f"Qwen2.5-{name}", max_response_len=response)
            cells = [cell(cfg, parse(["--gpus", "1", "--gpu_memory_gb", str(gb)])[0]) for gb in gpus_gb]
            rows.append(f"| {name}, {response:,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(cfg, options):
    """Say what "auto" chooses, with a smaller cache for the engine where it must be."""
    model = architecture(cfg.model)
    cache = kv_cache(model, cfg, options)[0] / 1e9
    for kv_cache_gb in (0, *(round(cache * share, 1) for share in (0.75, 0.5, 0.25))):
        found = predict(dataclasses.replace(cfg, kv_cache_gb=kv_cache_gb), "train_grpo.py", options, times=False)
        used, chosen = {phase: total(parts) / 1e9 for phase, parts in found["memory"].items()}, found["cfg"]
        if found["fits"]:
            break
    gb = on_the_gpu(found["memory"]) / 1e9
    if not found["fits"]:
        return f"no: {gb:.0f} GB"
    kept = {True: "recomputed", "selective": "selective", False: "all kept"}[chosen.checkpointing]
    return (f"{kept}, {chosen.max_tokens_per_gpu:,}; {gb:.0f} GB" + f"; host {used['host']:.0f}" * (used["host"] > 0)
            + f"; `kv_cache_gb` {kv_cache_gb:g}" * (kv_cache_gb > 0))


if __name__ == "__main__":
    from onebox.crash import entry

    entry(main)
