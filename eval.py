"""
Success of a model, or of every checkpoint of a run, on benchmarks; engine, prompts and rewards are those of training.

    python eval.py --model out/demo/model --suite gsm8k,math500,minerva,olympiadbench,aime24,amc23,countdown,kk
    torchrun --standalone --nproc-per-node=8 eval.py --model Qwen/Qwen2.5-3B --suite gsm8k --data_path DIR --limit 200
    python eval.py --sweep out/demo       # every checkpoint; without --suite on the run's own held-out data
    python eval.py --model M --data tiny_countdown --template tiny_countdown --reward tinyzero_countdown

tasks/benchmarks.py says what a name stands for, onebox/journal.py keeps completions as they finish (the same command goes on after a
kill), onebox/statistics.py holds the statistics. During training, evaluate() below does the same with the run's own engine.
"""

import dataclasses
import glob
import hashlib
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from onebox import distributed  # first: it looks for its launcher and sets what libraries read when they are imported

import torch
import torch.distributed as dist

from tasks import benchmarks
import data
from onebox import journal
import rewards
import rollout as sampler
from onebox import rundir
from onebox import samples as kept_samples
from onebox import statistics
from onebox.config import ConfigError, load_config
from onebox.metrics import summarise


@dataclass(frozen=True)
class Config:
    model: str = "out/demo/model"        # Hugging Face directory or hub id
    sweep: str = ""                      # a run's directory, out/demo: every checkpoint instead of `model`
    suite: str = ""                      # benchmarks with commas, gsm8k,math500,...: tasks/benchmarks.py has the names
    data: str | dict = ""                # instead of suite: source name, or {name: weight}; both empty: tiny_countdown
    data_path: str | dict = ""           # directory with gsm8k_test.jsonl etc., a file, {name: path}; else the hub
    split: str = ""                      # of the data; empty = the benchmark's, mostly test
    limit: int | dict = 0                # problems of each benchmark, chosen by seed; 0 = the benchmark's default
    template: str | dict = ""            # prompt template, or {name: template}; empty = the benchmark's default
    chat_template_kwargs: dict | None = None  # arguments of the model's chat template, e.g. {"enable_thinking": False}
    chat_date: str = "2024-07-26"        # the date that a chat template is told; prompts must not depend on the day
    reward: str | dict = ""              # reward that says what is correct; empty = the benchmark's default
    samples: int | dict | None = None    # per problem at `temperature`, or {name: samples}; 0 = greedy only
    greedy: bool = True                  # one greedy response beside the samples
    temperature: float = 1.0             # of the samples; 0 = greedy only
    seed: int = 0                        # decides subset and every sampled token
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU
    max_prompt_len: int = 0              # tokens; longer prompts are refused and counted; 0 = whatever the longest has
    max_response_len: int = 1024         # tokens
    stop: tuple = ()                     # strings that end a response; EOS always does
    stop_ids: int | tuple = ()           # token ids that end a response, beside the model's EOS
    max_num_seqs: int = 256              # sequences decoded together in one engine
    kv_cache_gb: float = 0.0             # per engine; 0 = room for max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: int = 1             # GPUs per engine
    deadline_s: float = 7200.0           # of one benchmark; after it, responses are cut off and count as truncated
    output: str = ""                     # directory of the results, or a .jsonl file; empty: out/eval/MODEL-HASH


class NoModel(ConfigError):
    """There is no such model, or none can be fetched; `reason` is the message without "error: "."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


PLAIN = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")  # what is read of every config
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def resolve_model(name, need_len, weights=True, trained=True, tensor_parallel=1):
    """
    Directory or hub id -> (local path, HF config, tokenizer, stop ids), before any weights are loaded.

    weights False: of a hub model fetch the small files only. trained False: only vLLM will compute it, so that it may
    have layers that policy.py does not train. Raises ConfigError: not there (NoModel), no tokenizer, no EOS, a tokenizer
    larger than the vocabulary, an architecture that is not computed here, too short a context, or weights that are not
    whole or not those of the config.
    """
    from transformers import AutoConfig, AutoTokenizer

    import policy

    looks_local = name.startswith((".", "/", "~", "out/")) or name.count("/") != 1 or os.path.exists(name)
    path = os.path.expanduser(name)
    if looks_local and not os.path.isfile(os.path.join(path, "config.json")):
        what = "has no config.json" if os.path.isdir(path) else "is not there"
        raise NoModel(f"model directory {name!r} {what}: give a Hugging Face directory or a hub id like Qwen/Qwen2.5-3B")
    if not looks_local:
        from huggingface_hub import snapshot_download

        try:  # every rank asks; all but the first find it in the cache, which has its own lock
            patterns = ["*.json", "*.model", "*.txt", "*.jinja"] + ["*.safetensors"] * weights
            reachable = data.hub_reachable()
            path = snapshot_download(name, allow_patterns=patterns, local_files_only=not reachable)
        except Exception as error:  # hub errors have many types; each means the same to the user
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            reason = reason if reachable else "no connection, and it is not in the cache"
            raise NoModel(f"model {name!r} is not a directory here and could not be fetched from the hub ({reason})") from error
    holds_weights = any(file.endswith((".safetensors", ".bin")) for file in os.listdir(path))
    if weights and not holds_weights:
        raise ConfigError(f"model {name!r} has no weights: no .safetensors file in {path}")
    what = "config.json"
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # False, else transformers asks on the terminal
        if trained:
            policy.check_architecture(config, need_len, name)
        if lacks := [key for key in PLAIN if not isinstance(getattr(config, key, None), int)]:
            raise ConfigError(f"model {name!r}: the config of {config.model_type} says no {lacks[0]} of its own, so it is no "
                              "plain language model with attention (or one inside a larger model): choose another")
        what = "tokenizer"
        if not any(file in TOKENIZERS or file.endswith((".model", ".tiktoken")) for file in os.listdir(path)):
            raise ConfigError(f"model {name!r} has no tokenizer: there is none of {', '.join(TOKENIZERS)} in {path}; copy "
                              "the tokenizer files of the model it was made from")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a config or tokenizer can be wrong in many ways, each with a type of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"model {name!r}: its {what} does not load: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {name!r} has no EOS token: set eos_token in its tokenizer_config.json")
    if sampler.token_bound(tokenizer) > config.vocab_size:
        raise ConfigError(f"the tokenizer of {name!r} has ids up to {sampler.token_bound(tokenizer) - 1}, its model only "
                          f"{config.vocab_size} tokens")
    stop_ids = {tokenizer.eos_token_id, *eos_ids(path, name, config.vocab_size)}
    policy.check_positions(config, need_len, name)
    policy.check_tensor_parallel(config, tensor_parallel, name)
    if trained and (weights or looks_local) and holds_weights:
        policy.check_weights(path, config, name)
    return path, config, tokenizer, sorted(stop_ids)


def eos_ids(path, name, vocab_size):
    """
    The EOS ids of generation_config.json; of config.json where there is none, or none in it, as transformers and vLLM do.
    What is no id of the model's tokens is left out, and said. ConfigError where a file does not load.
    """
    from transformers import GenerationConfig

    for file in ("generation_config.json", "config.json"):
        if not os.path.exists(os.path.join(path, file)):
            continue
        try:
            with open(os.path.join(path, file), encoding="utf-8") as f:
                found = json.load(f)
            GenerationConfig.from_pretrained(path, config_file_name=file)  # loading the weights does the same
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            empty = "is empty" if not os.path.getsize(os.path.join(path, file)) else f"cannot be used ({reason})"
            raise ConfigError(f"model {name!r}: its {file} {empty}: fetch it again, or mend it") from error
        eos = found.get("eos_token_id")
        eos = eos if isinstance(eos, list) else [eos]
        good = [i for i in eos if type(i) is int and 0 <= i < vocab_size]
        if wrong := [i for i in eos if i is not None and i not in good]:
            distributed.print0(f"model {name!r}: eos_token_id of its {file} holds {str(wrong)[1:-1]}, which is no id of its {vocab_size} "
                          "tokens: left out")
        if good:
            return good
    return []


def check_rewards(reward, parts=None):
    """An unknown reward or part is an error at start-up, never inside a run."""
    try:
        for name in [reward] if isinstance(reward, str) else reward.values():
            rewards.check(name, parts or ())
    except ValueError as error:
        raise ConfigError(str(error)) from error


# ----------------------------------------------------------------------------------------------------------------------
# In training


def evaluate(prompts, seed, samples, temperature, *, version, keep=8, **sample):
    """
    Held-out success -> (row, kept rollouts of the first prompts, per_problem). The seed of a sample depends on the
    run's seed, the prompt and the sample alone: two evaluations of the same weights are the same, and training is not
    touched.

    per_problem {uid: [share of samples right (None without samples), greedy right 0 or 1]}
    """
    timer = sample["timer"]
    inner = distributed.Timer(timer.device)  # generating for an evaluation is not the step's rollout time
    start = timer.now()
    sampled = []
    if samples:
        seeds = [sample_seeds(seed, p.uid, range(samples)) for p in prompts]
        sampled = sampler.sample_and_score(prompts, seeds, temperature=temperature, version=version,
                                           **{**sample, "timer": inner})
    greedy = sampler.sample_and_score(prompts, [[0]] * len(prompts), temperature=0.0, version=version,
                                      **{**sample, "timer": inner})
    row = summarise(sampled or greedy, sample["tokenizer"])
    row |= {"eval_correct": row["correct"], "eval_correct_greedy": share_right(greedy),
            "eval_reward": row["reward"], "eval_response_len": row["response_len"], "eval_truncated": row["truncated"],
            "eval_format_error": row["format_error"], "eval_reflection_words": row["reflection_words"],
            "eval_rollouts": len(sampled)}
    sources = sorted({p.source for p in prompts})
    for source in sources if len(sources) > 1 else ():  # of a mixture: each benchmark by itself
        row[f"eval/{source}/correct"] = share_right([r for r in sampled or greedy if r.source == source])
        row[f"eval/{source}/correct_greedy"] = share_right([r for r in greedy if r.source == source])
    timer.seconds["eval"] += timer.now() - start
    kept = [{**kept_samples.row(r, prompts[r.prompt], version, "held-out", sample["tokenizer"]), **name}
            for found, name in ((sampled, {}), (greedy, {"sample": "greedy"})) for r in found if r.prompt < keep]
    right = {}
    for r in sampled:
        right.setdefault(r.prompt, []).append(r.score.correct)
    shares = {i: sum(found) / len(found) for i, found in right.items()}
    per_problem = {prompts[r.prompt].uid: [shares.get(r.prompt), int(r.score.correct)] for r in greedy}
    return row, kept, per_problem


def sample_seeds(seed, uid, samples):
    return [distributed.stable_seed(seed, "eval", uid, k) for k in samples]


def share_right(rollouts):
    return sum(r.score.correct for r in rollouts) / max(1, len(rollouts))


# ----------------------------------------------------------------------------------------------------------------------
# By itself


def check_config(cfg, world):
    for name in ("max_response_len", "max_num_seqs", "tensor_parallel", "deadline_s"):
        if getattr(cfg, name) <= 0:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must be greater than 0")
    for name in ("max_prompt_len", "kv_cache_gb", "seed"):
        if getattr(cfg, name) < 0:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must not be negative")
    if not all(isinstance(text, str) and text for text in cfg.stop):
        raise ConfigError(f"stop = {cfg.stop!r} must hold strings that are not empty, as in ('</answer>',)")
    if cfg.temperature and not 0.01 <= cfg.temperature <= 2:
        raise ConfigError(f"temperature = {cfg.temperature} must be 0 or lie in 0.01 ... 2")
    if world % cfg.tensor_parallel:
        raise ConfigError(f"tensor_parallel = {cfg.tensor_parallel} does not divide the {world} processes")


# ----------------------------------------------------------------------------------------------------------------------
# Whose weights: a model's directory, or the checkpoints of a run


def weights_fingerprint(folder):
    """
    sha256 of what lies in a model's or checkpoint's directory: 16 hex digits. Files above 1 GB count with 1,024 blocks
    of 64 KiB, evenly spread: a training step changes nearly every weight.
    """
    def of_file(file):
        digest, size = hashlib.sha256(), os.path.getsize(file)
        step, block = (size // 1024, 1 << 16) if size > 1e9 else (1 << 20, 1 << 20)
        with open(file, "rb") as f:
            for start in range(0, size, step):
                f.seek(start)
                digest.update(f.read(block))
        return f"{os.path.relpath(file, folder)} {size} {digest.hexdigest()}"

    files = [f for f in glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True, include_hidden=True)
             if os.path.isfile(f) and os.path.basename(f) != "trained.json"]
    with ThreadPoolExecutor(8) as pool:
        return hashlib.sha256("\n".join(pool.map(of_file, sorted(files))).encode()).hexdigest()[:16]


SWEEP_SETTINGS = ("model", "dtype", "seed", "temperature", "max_response_len", "stop")


def sweep_settings(cfg, origin):
    """Of a run: its own settings wherever none were given, so that a sweep repeats the run's evaluations -> Config."""
    file = os.path.join(cfg.sweep, "config.json")
    try:
        with open(file) as f:
            run = json.load(f)["settings"]
    except FileNotFoundError as error:
        raise ConfigError(f"sweep = {cfg.sweep!r} is no run's directory: it has no config.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}): a sweep needs its settings") from error
    needed = {*SWEEP_SETTINGS, "eval_data", "data", "eval_path", "data_path", "eval_samples", "eval_prompts",
              "template", "reward", "max_prompt_len"}
    if missing := sorted(needed - run.keys()):
        raise ConfigError(f"{file} is not of a run of train_grpo.py or train_ppo.py: it has no {missing[0]}")
    own = {name: run[name] for name in (*SWEEP_SETTINGS, "chat_template_kwargs", "chat_date") if name in run}
    if not cfg.suite and not cfg.data:
        own |= {"data": run["eval_data"] or run["data"], "data_path": run["eval_path"] or run["data_path"],
                "split": "test", "samples": run["eval_samples"], "limit": run["eval_prompts"]}
        own |= {name: run[name] for name in ("template", "reward", "max_prompt_len")}
    elif cfg.suite and isinstance(run["reward"], str) and isinstance(run["template"], str):
        alike = [name for name, b in benchmarks.chosen(cfg).items() if kind_of(b.reward) == kind_of(run["reward"])]
        own |= {"template": dict.fromkeys(alike, run["template"]), "reward": dict.fromkeys(alike, run["reward"])}
    own = {name: tuple(value) if type(value) is list else value for name, value in own.items() if name not in origin}
    return dataclasses.replace(cfg, **own)


def kind_of(reward):
    return rewards.READS.get(reward, reward)  # one of yours is only like itself


def targets_of(cfg):
    """-> {step: directory with weights}: every checkpoint, and the exported model where it is of another step."""
    from onebox.checkpoint import exported_step, saved_steps

    saved, export = saved_steps(cfg.sweep), os.path.join(cfg.sweep, "model")
    targets = {step: os.path.join(cfg.sweep, f"step_{step:06d}") for step in saved}
    if exported_step(export) > 0:
        targets.setdefault(exported_step(export), export)
    if not targets:
        raise ConfigError(f"sweep: {cfg.sweep} has no checkpoint and no exported model yet")
    return dict(sorted(targets.items()))


# ----------------------------------------------------------------------------------------------------------------------
# Asking


def ask(task, wanted, temperature, log, sample):
    """Sample the completions `wanted`, [(uid, sample), ...]; each goes into the journal as its score is final."""
    numbers = {p.uid: i for i, p in enumerate(task.prompts)}
    todo = {}
    for uid, k in wanted:
        todo.setdefault(numbers[uid], []).append(k)
    prompts = [task.prompts[i] for i in todo]
    seeds = [[0] if ks == ["greedy"] else sample_seeds(task.settings["seed"], p.uid, ks)
             for p, ks in zip(prompts, todo.values(), strict=True)]
    names = list(todo.values())

    def record(r):
        answer = rewards.predicted(prompts[r.prompt].reward, r.text, prompts[r.prompt].answer, r.truncated or r.phantom)
        log.add(kept_samples.scored(r, prompts[r.prompt], sample["version"])
                | {"sample": names[r.prompt][r.sample], "extracted": answer, "flags": sorted(r.score.flags)})

    if prompts:
        record = record if sample["leader"] else None
        sampler.sample_and_score(prompts, seeds, temperature=temperature, record=record, **sample)


def complete(task, folder, settings, rank, sample):
    """Ask what is missing of one benchmark -> its row of the results; every rank together, the row on rank 0."""
    order = task.order()
    done = journal.read_rows(folder, task.name, settings, set(order))
    dist.barrier()  # nobody writes before all have read
    missing = [key for key in order if key not in done]
    if rank == 0:
        journal.write_settings(folder, task.name, settings)
        journal.compact(folder, task.name, done)
    dist.barrier()
    if missing and done:
        distributed.print0(f"{task.name}: {len(done)} of {len(order)} completions are there")
    if missing:
        arguments = sample()  # may load the engine: no time of this benchmark
        session = distributed.gather([f"{time.time():.3f}"] if rank == 0 else [])[0]
        log = journal.Journal(folder, task.name, rank, session)
        ask(task, [key for key in missing if key[1] != "greedy"], task.settings["temperature"], log, arguments)
        ask(task, [key for key in missing if key[1] == "greedy"], 0.0, log, arguments)
        log.close()
    dist.barrier()
    if rank != 0:
        return None
    rows = journal.read_rows(folder, task.name, settings, set(order), cut_off=True)
    rows, seconds = journal.finish(folder, task.name, settings, rows, order)
    return {"benchmark": task.name, **statistics.summarise(rows, seconds, same_answer)}


def same_answer(a, b):
    """Two completions of one problem: both right, or both wrong with answers that the strict grader calls equal."""
    if a["correct"] or b["correct"]:
        return a["correct"] and b["correct"]
    if max(len(a["extracted"]), len(b["extracted"])) > 200:
        return a["extracted"] == b["extracted"]
    return rewards.ask_now([a["extracted"]], b["extracted"], "strict") == "right"


def main():
    cfg, origin = load_config(Config)
    rank, world, device = distributed.init_distributed(cfg.deadline_s + 3600)
    if cfg.sweep:
        cfg = sweep_settings(cfg, origin)
    check_config(cfg, world)
    benchmarks.chosen(cfg)  # a misspelled name is found first
    dtype = cfg.dtype if cfg.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    targets = targets_of(cfg) if cfg.sweep else {}
    how = dict(trained=bool(cfg.sweep), tensor_parallel=cfg.tensor_parallel)  # a sweep loads checkpoints into policy.py
    try:
        path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, cfg.max_response_len, **how)
        targets = {0: path, **targets}
    except NoModel as error:
        if not cfg.sweep or not os.path.exists(os.path.join(cfg.sweep, "model", "config.json")):
            raise
        distributed.print0(f"no step 0: {error.reason}")
        path, hf_config, tokenizer, stop_ids = resolve_model(os.path.join(cfg.sweep, "model"),
                                                                cfg.max_response_len, **how)
    more = [cfg.stop_ids] if isinstance(cfg.stop_ids, int) else list(cfg.stop_ids)
    if not all(type(i) is int and 0 <= i < hf_config.vocab_size for i in more):
        raise ConfigError(f"stop_ids = {cfg.stop_ids} must be token ids, 0 to {hf_config.vocab_size - 1}; a text is for --stop")
    stop_ids = sorted({*stop_ids, *more})
    tasks = benchmarks.make_tasks(cfg, tokenizer, hf_config.vocab_size, stop_ids, dtype)
    distributed.print0(benchmarks.plan(tasks))
    prompt_len = max(len(p.ids) for task in tasks for p in task.prompts)
    import policy as model

    longest = model.positions_of(hf_config)
    if longest and prompt_len + cfg.max_response_len > longest:
        raise ConfigError(f"the longest prompt, {prompt_len} tokens, + max_response_len = {cfg.max_response_len} is "
                          f"more than the {longest} positions of {cfg.model!r}")
    if cfg.sweep:
        model.check_architecture(hf_config, prompt_len + cfg.max_response_len, cfg.model)
    try:
        prints = distributed.gather([weights_fingerprint(p) for p in targets.values()] if rank == 0 else [])
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} went away while it was read: the run goes on and removes old checkpoints; "
                          "start again") from error
    prints = dict(zip(targets, prints, strict=True))
    folder, extra = output_of(cfg, tasks, prints)
    if not os.path.isdir(os.path.dirname(extra) or "."):
        raise ConfigError(f"output = {extra!r}: there is no directory {os.path.dirname(extra)!r}")
    if os.path.exists(extra) and not journal.is_ours(extra):
        raise ConfigError(f"output = {extra!r} is there and holds no completions of eval.py: it would be overwritten; give another name")
    folders = {step: os.path.join(folder, f"step_{step:06d}") if cfg.sweep else folder for step in targets}
    for step in targets:  # what lies there and does not fit is found before weights are loaded
        for task in tasks:
            journal.read_rows(folders[step], task.name, task.settings | {"model": prints[step]}, set(task.order()))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no results can be written to {folder!r} ({error.strerror}): another --output?") from error
    in_use = rundir.lock(folder)  # noqa: F841  held to the end: two evaluations would write into one journal

    before = {step: journal.read_table(os.path.join(folders[step], "results.json")) for step in targets}
    table = journal.read_table(os.path.join(folder, "table.json")) if cfg.sweep else []

    scorer, timer = rewards.Scorer(), distributed.Timer(device)
    engine, policy, held = None, None, None  # `held`: the step whose weights the engine has

    def sample(step):
        """The arguments of sample_and_score, with an engine that has this step's weights; made when first needed."""
        nonlocal engine, policy, held
        if engine is None:
            engine = sampler.make_engine(
                path, config=hf_config, dtype=dtype, prompt_len=prompt_len, response_len=cfg.max_response_len,
                max_num_seqs=cfg.max_num_seqs, kv_cache_gb=cfg.kv_cache_gb, tensor_parallel=cfg.tensor_parallel,
                seed=cfg.seed, rank=rank, device=device, stop_strings=bool(cfg.stop))
            engine.update_weight_version("0")
            held = 0
        if held != step:
            sampler.sleep(engine, device)
            policy = load_weights(policy, path, targets[step], device, dtype)
            sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), step, device)
            held = step
        return dict(engine=engine, tokenizer=tokenizer, scorer=scorer, timer=timer, max_tokens=cfg.max_response_len,
                    stop_ids=stop_ids, stop_strings=cfg.stop, repetition_stop=0, deadline_s=cfg.deadline_s, version=step,
                    engines=world // cfg.tensor_parallel, engine_rank=rank // cfg.tensor_parallel,
                    leader=rank % cfg.tensor_parallel == 0, vocab_size=hf_config.vocab_size)

    everything = []
    for step in targets:
        rows = []
        for task in tasks:
            settings = task.settings | {"model": prints[step]}
            row = complete(task, folders[step], settings, rank, lambda step=step: sample(step))
            if rank == 0:
                rows.append(row)
                of_step = f"step {step:4d}  " if cfg.sweep else ""
                low, high = statistics.percent(row["low"]), statistics.percent(row["high"])
                distributed.print0(f"{of_step}{task.name}: {statistics.percent(row['avg_at_k'])} % avg@{row['k']} of "
                              f"{row['problems']} problems, 95 % [{low}, {high}], {row['seconds']:.0f} s")
        if rank == 0:
            everything += [{"step": step, **row} for row in rows]
            journal.save_results(folders[step], rows, about(cfg, targets[step], prints[step]), before[step])
            if cfg.sweep:
                journal.save_sweep(folder, {task.name: task.settings for task in tasks}, everything, table)
    scorer.close()
    if rank == 0:
        if extra:
            with open(extra, "w") as f:
                for task in tasks:
                    with open(journal.file_of(folders[0], task.name)) as done:
                        f.write(done.read())
        head, lines = (statistics.sweep_cells(everything) if cfg.sweep else
                       (statistics.RESULT_HEAD, [statistics.result_cells(row) for row in everything]))
        distributed.print0(f"\n{cfg.sweep or cfg.model}\n{statistics.to_text(head, lines)}\n\nwritten to {folder}/")


def load_weights(policy, path, source, device, dtype):
    """The weights of one checkpoint, in a policy that is made when first needed; every rank together."""
    from onebox import checkpoint
    import policy as model

    if os.path.exists(os.path.join(source, "config.json")):  # an exported model, or the start
        return model.load_policy(source, device, dtype, trainable=False)
    if policy is None:
        policy = model.load_policy(path, device, dtype, trainable=False)
    checkpoint.load_model_weights(os.path.dirname(source), int(source[-6:]), policy)
    return policy


def about(cfg, source, fingerprint):
    """What results.json says beside the results."""
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return {"model": source, "weights": fingerprint, "command": command, "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "world_size": dist.get_world_size(), "machine": rundir.machine(), "versions": rundir.versions(),
            "commit": rundir.commit()}


def output_of(cfg, tasks, prints):
    """-> (directory of the results, "" or a .jsonl file that gets all completions too)."""
    if cfg.sweep:
        return cfg.output or os.path.join(cfg.sweep, "eval"), ""
    if cfg.output and not cfg.output.endswith(".jsonl"):
        if os.path.exists(cfg.output) and not os.path.isdir(cfg.output):
            raise ConfigError(f"output = {cfg.output!r} is a file: give a directory, or a name that ends in .jsonl")
        return cfg.output, ""
    label = re.sub(r"[^\w.-]+", "-", cfg.model.removeprefix("out/").strip("/."))[-60:].strip("-")
    what = json.dumps([prints[0], [[task.name, task.settings] for task in tasks]], sort_keys=True)
    return os.path.join("out", "eval", f"{label}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"), cfg.output


if __name__ == "__main__":
    rundir.entry(main)
