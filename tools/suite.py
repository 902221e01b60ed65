"""
Evaluate a model, or every checkpoint of a run, on benchmarks. eval.py is the command line; run_suite() the start.

tools/results.py keeps the completions as they finish, so that the same command continues after a kill, on any number of
ranks. tools/statistics.py turns them into numbers.
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
from pathlib import Path

import torch.distributed as dist

import rewards
from data import check_rewards, fingerprint, load_prompts, per_source
from eval import sample_seeds
from onebox import checkpoint, rundir
from onebox.config import ConfigError, check_ranges
from onebox.distributed import Clock, gather, init_distributed, print0
from onebox.metrics import scored_row
from onebox.models import NoModel, check_architecture, positions_of, resolve_dtype, resolve_model
from onebox.text import suggest
from policy import load_policy
from rollout import Engine
from tasks import own
from tasks.own_check import check_all
from tasks.rows import DataError, data_files
from tasks.sources import (BENCHMARKS, GENERATED, PART, boxed, columns_of, names_of, of_source, parse_name,
                           per_source_columns)
from tasks.templates import TEMPLATES, check_chat, is_chat, is_entry, reads_clock
from tools import provenance
from tools.results import (RESULT_HEAD, compact, file_of, finish, is_ours, read_rows, read_table, result_cells,
                           save_results, save_sweep, sweep_cells, to_text, write_settings)
from tools.statistics import summarize


# ---------------------------------------------------------------- What is asked


@dataclass
class Task:
    """One benchmark, ready to be asked."""

    name: str
    prompts: list
    samples: int  # per problem, at `temperature`
    greedy: bool  # and one greedy response
    settings: dict  # all that decides its completions and scores, the model apart

    def keys(self):
        """List the (uid, sample) of all its completions, in the order of the results."""
        uids = [p.uid for p in self.prompts]
        return [(u, k) for u in uids for k in range(self.samples)] + [(u, "greedy") for u in uids if self.greedy]


def parse_suite(text):
    """Split "gsm8k, kk" into ["gsm8k", "kk"]. ConfigError for an unknown name, with the nearest and all known ones."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = f"known: {', '.join(BENCHMARKS)}"
    if not names:
        raise ConfigError(f"suite {text!r} names no benchmark; {known}")
    for name in names:
        if name not in BENCHMARKS:
            hint = " ".join(filter(None, [suggest(name, BENCHMARKS), known]))
            raise ConfigError(f"no benchmark is called {name!r}; {hint}")
    return names


def chosen(cfg):
    """Return {name: Benchmark}: those of the suite, or the sources of `data` with the nearest benchmark's defaults."""
    if cfg.suite and cfg.data:
        raise ConfigError("suite and data were both given: take one of them")
    if cfg.suite:
        return {name: BENCHMARKS[name] for name in parse_suite(cfg.suite)}
    found = {}
    for name in [cfg.data or "tiny_countdown"] if isinstance(cfg.data, str) else cfg.data:
        kind = parse_name(name)[0].partition(":")[0]
        near = next((b for b in BENCHMARKS.values() if b.source.partition(":")[0] == kind), boxed(kind))
        found[name] = dataclasses.replace(near, source=name, split="test", limit=0, samples=4)
    return found


def default_template(benchmark, tokenizer):
    """Choose the template of a benchmark for this tokenizer, where the user names none."""
    if not getattr(tokenizer, "chat_template", None):
        return benchmark.text
    marked = "text" in TEMPLATES[benchmark.chat] and "<|im_start|>" in TEMPLATES[benchmark.chat]["text"]
    return benchmark.text if marked and "<|im_start|>" not in tokenizer.get_vocab() else benchmark.chat


def find_path(name, source, data_path, alone):
    """
    Find the local path of one benchmark's rows; None: they come from the hub, or are generated.

    data_path: "", a file (for a suite of one), a directory whose files are named for their data sets, or {benchmark or
    source: path}. Of several benchmarks no file of another name is ever taken.
    """
    if not data_path:
        return None
    kind = re.split("[:@]", source)[0]
    if isinstance(data_path, dict):
        return next((data_path[key] for key in (name, source, kind) if key in data_path), None)
    if PART.fullmatch(str(data_path)) and alone:
        return data_path
    folder = Path(data_path).expanduser()
    if not folder.exists():
        raise DataError(f"data_path {data_path!r} is not there; give a file, or a directory with files such as "
                        "gsm8k_test.jsonl")
    if alone:
        return data_path
    if folder.is_file():
        raise DataError(f"{data_path!r} is one file for several benchmarks: give a directory or {{name: path}}")
    named = [f for f in data_files(folder) if re.match(rf"{kind}(?![a-z0-9])", f.stem.lower())]
    if named or any(f.is_dir() and f.name.lower() == kind for f in folder.iterdir()):
        return data_path
    if kind in GENERATED:
        return None
    raise DataError(f"benchmark {name!r}: {data_path!r} has no file called {kind}*.jsonl or {kind}*.parquet; give "
                    f"--data_path \"{{'{name}': 'FILE'}}\", or none for the hub")


def per_benchmark(setting, name, source, default):
    """Take a setting for one benchmark: the value itself, or that of a dict under its name or its source's."""
    if isinstance(setting, dict) and not is_entry(setting):
        return next((setting[key] for key in (name, source, source.partition("@")[0]) if key in setting), default)
    return default if setting in ("", None) else setting


def make_tasks(cfg, tokenizer, vocab_size, stop_ids, dtype):
    """Load and check all that the benchmarks ask -> [Task]; every error comes before any weights are loaded."""
    picked, tasks = chosen(cfg), []
    known = {key for name, b in picked.items() for key in (name, b.source, *re.split("[:@]", b.source)[:1])}
    for setting in ("template", "reward", "samples", "limit", "data_path", "columns"):
        value = per_source_columns(cfg.columns) if setting == "columns" else getattr(cfg, setting)
        for key in value if isinstance(value, dict) and not is_entry(value) else ():
            if key not in known and key.partition("@")[0] not in known:
                raise ConfigError(f"{setting} names {key!r}, which is not evaluated: {', '.join(picked)} are")
    templates = {name: per_benchmark(cfg.template, name, b.source, default_template(b, tokenizer))
                 for name, b in picked.items()}
    chat = check_chat(cfg, tokenizer, is_chat(templates) or bool(cfg.sweep))  # a sweep has those of the run
    for name, b in picked.items():
        template, reward = templates[name], per_benchmark(cfg.reward, name, b.source, b.reward)
        samples = per_benchmark(cfg.samples, name, b.source, b.samples)
        limit = per_benchmark(cfg.limit or None, name, b.source, b.limit)
        if type(samples) is not int or samples < 0 or type(limit) is not int or limit < 0:
            raise ConfigError(f"{name}: samples = {samples!r} and limit = {limit!r} must be whole numbers, 0 or more")
        if cfg.temperature == 0 and samples > 1 and cfg.samples is not None:
            raise ConfigError(f"{name}: {samples} samples at temperature 0 are one and the same: give --samples 0, or "
                              "a temperature")
        samples = samples if cfg.temperature > 0 else 0
        check_rewards(reward)
        prompts, _ = load_prompts(
            b.source, template, reward, tokenizer, split=cfg.split or b.split, limit=limit or None, seed=cfg.seed,
            max_prompt_len=cfg.max_prompt_len or None, vocab_size=vocab_size, check_answer=rewards.check_answer,
            chat=chat, columns=columns_of(cfg.columns, b.source),
            paths=find_path(name, b.source, cfg.data_path, len(picked) == 1))
        check_all(prompts, cfg.max_response_len)
        greedy = cfg.greedy or not samples
        settings = {"source": b.source, "template": template, "reward": reward, "problems": len(prompts),
                    "samples": samples, "greedy": greedy, "dtype": dtype, "seed": cfg.seed,
                    "temperature": cfg.temperature if samples else 0.0, "max_response_len": cfg.max_response_len,
                    "stop": list(cfg.stop), "stop_ids": stop_ids, "data": fingerprint(prompts)[:16]}
        if is_chat(template):  # settings from before these existed still fit where they change nothing
            settings |= {"chat_template_kwargs": chat["kwargs"]} if chat["kwargs"] else {}
            settings |= {"chat_date": chat["date"]} if reads_clock(tokenizer) else {}
        settings |= {"reward_source": own.fingerprint(prompts)[:16]} if own.fingerprint(prompts) else {}
        tasks.append(Task(name, prompts, samples, greedy, settings))
    return tasks


def plan(tasks):
    """Describe what will be asked as a table, so that every default is in sight."""
    return to_text(["benchmark", "problems", "samples", "template", "reward", "longest prompt"], [
        [t.name, len(t.prompts), "greedy" if not t.samples else
         f"{t.samples} at {t.settings['temperature']:g}{' + greedy' * t.greedy}", t.settings["template"],
         t.settings["reward"], max(len(p.ids) for p in t.prompts)] for t in tasks]) + "\n"


def output_of(cfg, tasks, weights):
    """Choose the directory of the results -> (directory, "" or a .jsonl file that gets all completions too)."""
    if cfg.sweep:
        return cfg.output or os.path.join(cfg.sweep, "eval"), ""
    if cfg.output and not cfg.output.endswith(".jsonl"):
        if os.path.exists(cfg.output) and not os.path.isdir(cfg.output):
            raise ConfigError(f"output = {cfg.output!r} is a file: give a directory, or a name that ends in .jsonl")
        return cfg.output, ""
    if not os.path.isdir(os.path.dirname(cfg.output) or "."):
        raise ConfigError(f"output = {cfg.output!r}: there is no directory {os.path.dirname(cfg.output)!r}")
    if os.path.exists(cfg.output) and not is_ours(cfg.output):
        raise ConfigError(f"output = {cfg.output!r} is there and holds no completions of eval.py: it would be "
                          "overwritten; give another name")
    label = re.sub(r"[^\w.-]+", "-", cfg.model.removeprefix("out/").strip("/."))[-60:].strip("-")
    what = json.dumps([weights, [[task.name, task.settings] for task in tasks]], sort_keys=True)
    return os.path.join("out", "eval", f"{label}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"), cfg.output


# ------------------------------------------------ Whose weights: a model's directory, or the checkpoints of a run


def weights_fingerprint(folder):
    """
    Hash what lies in a model's or checkpoint's directory: sha256, 16 hex digits.

    This reads all of it, where checkpoint.fingerprint_of_model reads three places of a file: that one tells base models
    apart at every start of a run, this one neighboring steps of a run, which may differ in few numbers. Files above 1
    GB count with 1,024 blocks of 64 KiB, evenly spread.
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


def sweep_settings(cfg, origin):
    """Return a Config with a run's own settings wherever none were given, so that a sweep repeats its evaluations."""
    file = os.path.join(cfg.sweep, "config.json")
    try:
        with open(file) as f:
            record = json.load(f)
        run, fingerprints = record["settings"], record.get("fingerprints") or {}
    except FileNotFoundError as error:
        raise ConfigError(f"sweep = {cfg.sweep!r} is no run's directory: it has no config.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}): a sweep needs its settings") from error
    same = ("model", "dtype", "seed", "temperature", "max_response_len", "stop")
    needed = "data data_path eval_data eval_path eval_prompts eval_samples max_prompt_len reward template".split()
    if missing := sorted({*same, *needed} - run.keys()):
        raise ConfigError(f"{file} is not of a run of train_grpo.py or train_ppo.py: it has no {missing[0]}")
    its = {name: run[name] for name in (*same, "chat_template_kwargs", "chat_date") if name in run}
    held_out, paths = run["eval_data"] or run["data"], run["eval_path"] or run["data_path"]
    asked = [] if cfg.suite else names_of(cfg.data or held_out)
    names, alike = [name for name in asked if name in names_of(held_out)], []
    if names:  # of the run's own sources its rows, prompts and rewards
        for what in ("template", "reward"):
            several = len(names) < len(asked) or isinstance(run[what], dict) and not is_entry(run[what])
            its[what] = {name: per_source(run[what], name, what) for name in names} if several else run[what]
        its |= {"columns": {name: found for name in names if (found := columns_of(run.get("columns"), name))} or None,
                "max_prompt_len": run["max_prompt_len"]}
        if isinstance(paths, dict):
            paths = {name: path for name in names if (path := of_source(paths, name))}
        elif len(names) > 1 and (PART.fullmatch(paths) or os.path.isfile(os.path.expanduser(paths))):
            paths = dict.fromkeys(names, paths)
        if len(names) == len(asked):
            its |= {"data_path": paths, "split": "test"}
        if not cfg.data:
            its |= {"data": held_out, "samples": run["eval_samples"], "limit": run["eval_prompts"]}
        trained = [per_source(run["reward"], name, "reward") for name in names_of(run["data"])]
        if "reward" not in origin and fingerprints.get("reward", "") != own.fingerprint_of(trained):
            print0(f"warning: the reward's source is not the one that {cfg.sweep} was trained with; a copy of that one "
                   "lies in its code/own/")
    elif cfg.suite and isinstance(run["reward"], str) and isinstance(run["template"], str):
        reads = {reward: rewards.READS.get(reward, reward) for reward in (run["reward"], *rewards.REWARDS)}
        alike = [name for name, b in chosen(cfg).items() if reads[b.reward] == reads[run["reward"]]]
        its |= {"template": dict.fromkeys(alike, run["template"]), "reward": dict.fromkeys(alike, run["reward"])}
    if len(names or alike) == len(asked or (chosen(cfg) if cfg.suite else [])):  # all with the run's prompts
        its |= {name: run[name] for name in ("system_prompt", "few_shot") if name in run}
    its = {name: tuple(value) if type(value) is list else value for name, value in its.items() if name not in origin}
    return dataclasses.replace(cfg, **its)


def targets_of(run):
    """Return {step: directory with weights}: every checkpoint, and the exported model where it is of another step."""
    export = os.path.join(run, "model")
    targets = {step: os.path.join(run, f"step_{step:06d}") for step in checkpoint.saved_steps(run)}
    if checkpoint.exported_step(export) > 0:
        targets.setdefault(checkpoint.exported_step(export), export)
    if not targets:
        raise ConfigError(f"sweep: {run} has no checkpoint and no exported model yet")
    return dict(sorted(targets.items()))


def load_weights(policy, path, source, device, dtype):
    """Load the weights of one checkpoint into a policy, which is made when first needed. Collective."""
    if os.path.exists(os.path.join(source, "config.json")):  # an exported model, or the start
        return load_policy(source, device, dtype, trainable=False)
    if policy is None:
        policy = load_policy(path, device, dtype, trainable=False)
    checkpoint.load_model_weights(os.path.dirname(source), int(source[-6:]), policy)
    return policy


# ---------------------------------------------------------------- Asking


def generate_missing(task, keys, temperature, engine, scorer, append):
    """Sample the completions of these keys; append(row) each one as soon as its score is final. Collective."""
    numbers, wanted = {p.uid: i for i, p in enumerate(task.prompts)}, {}
    for uid, k in keys:
        wanted.setdefault(numbers[uid], []).append(k)
    prompts, names = [task.prompts[i] for i in wanted], list(wanted.values())
    seeds = [[0] if ks == ["greedy"] else sample_seeds(task.settings["seed"], p.uid, ks)
             for p, ks in zip(prompts, names, strict=True)]

    def record(r):
        prompt = prompts[r.prompt]
        answer = rewards.predicted(prompt.reward, r.text, prompt.answer, r.truncated or r.phantom)
        append({**scored_row(r, prompt, engine.version), "sample": names[r.prompt][r.sample], "extracted": answer,
                "flags": sorted(r.score.flags)})

    if prompts:
        engine.sample(prompts, seeds, scorer, temperature, record if engine.is_leader else None)


def run_benchmark(task, folder, settings, get_engine, scorer):
    """Generate what is missing of one benchmark -> its row of the results on rank 0, None elsewhere. Collective."""
    rank, order = dist.get_rank(), task.keys()
    done = read_rows(folder, task.name, settings, set(order))
    dist.barrier()  # nobody writes before all have read
    missing = [key for key in order if key not in done]
    if rank == 0:
        write_settings(folder, task.name, settings)
        compact(folder, task.name, done)
    dist.barrier()
    if missing:
        if done:
            print0(f"{task.name}: {len(done)} of {len(order)} completions are there")
        engine = get_engine()  # may load weights: not in this benchmark's seconds
        session, start = gather([f"{time.time():.3f}"])[0], time.monotonic()
        with open(file_of(folder, task.name, f".part{rank}"), "a", buffering=1) as f:  # each line is flushed
            def append(row):
                f.write(json.dumps(row | {"session": session, "at": round(time.monotonic() - start, 3)}) + "\n")

            for greedy in (False, True):
                keys = [key for key in missing if (key[1] == "greedy") == greedy]
                generate_missing(task, keys, 0.0 if greedy else task.settings["temperature"], engine, scorer, append)
    dist.barrier()
    if rank != 0:
        return None
    rows = read_rows(folder, task.name, settings, set(order), cut_off=True)
    rows, seconds = finish(folder, task.name, settings, rows, order)
    return {"benchmark": task.name, **summarize(rows, seconds, same_answer)}


def same_answer(a, b):
    """Tell whether two completions of a problem agree: both correct, or wrong with answers that the grader equates."""
    if a["correct"] or b["correct"]:
        return a["correct"] and b["correct"]
    if max(len(a["extracted"]), len(b["extracted"])) > 200:
        return a["extracted"] == b["extracted"]
    return rewards.ask_now([a["extracted"]], b["extracted"], "strict") == "right"


def check_config(cfg, world):
    check_ranges(cfg)
    if not all(isinstance(text, str) and text for text in cfg.stop):
        raise ConfigError(f"stop = {cfg.stop!r} must hold strings that are not empty, as in ('</answer>',)")
    if cfg.temperature and not 0.01 <= cfg.temperature <= 2:
        raise ConfigError(f"temperature = {cfg.temperature} must be 0 or lie in 0.01 ... 2")
    if world % cfg.tensor_parallel:
        raise ConfigError(f"tensor_parallel = {cfg.tensor_parallel} does not divide the {world} processes")
    chosen(cfg)  # a misspelled name is found first


def run_suite(cfg, origin):
    """Evaluate as the Config of eval.py says. Raises ConfigError for what is wrong before any weights are loaded."""
    rank, world, device = init_distributed(cfg.deadline_s + 3600)
    if cfg.sweep:
        cfg = sweep_settings(cfg, origin)
    check_config(cfg, world)
    dtype = resolve_dtype(cfg.dtype, device)
    targets = targets_of(cfg.sweep) if cfg.sweep else {}
    need = dict(need_len=cfg.max_response_len, trained=bool(cfg.sweep), tensor_parallel=cfg.tensor_parallel)
    try:
        path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, **need)
        targets = {0: path, **targets}
    except NoModel as error:
        if not cfg.sweep or not os.path.exists(os.path.join(cfg.sweep, "model", "config.json")):
            raise
        print0(f"no step 0: {error.reason}")
        path, hf_config, tokenizer, stop_ids = resolve_model(os.path.join(cfg.sweep, "model"), **need)
    more = [cfg.stop_ids] if isinstance(cfg.stop_ids, int) else list(cfg.stop_ids)
    if not all(type(i) is int and 0 <= i < hf_config.vocab_size for i in more):
        raise ConfigError(f"stop_ids = {cfg.stop_ids} must be token ids, 0 to {hf_config.vocab_size - 1}; "
                          "a text is for --stop")
    stop_ids = sorted({*stop_ids, *more})
    tasks = make_tasks(cfg, tokenizer, hf_config.vocab_size, stop_ids, dtype)
    print0(plan(tasks))
    prompt_len, positions = max(len(p.ids) for task in tasks for p in task.prompts), positions_of(hf_config)
    if positions and prompt_len + cfg.max_response_len > positions:
        raise ConfigError(f"the longest prompt, {prompt_len} tokens, + max_response_len = {cfg.max_response_len} is "
                          f"more than the {positions} positions of {cfg.model!r}")
    if cfg.sweep:
        check_architecture(hf_config, prompt_len + cfg.max_response_len, cfg.model)
    try:
        prints = gather([weights_fingerprint(p) for p in targets.values()] if rank == 0 else [])
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} went away while it was read: the run goes on and removes old checkpoints; "
                          "start again") from error
    prints = dict(zip(targets, prints, strict=True))
    folder, extra = output_of(cfg, tasks, prints.get(0))
    folders = {step: os.path.join(folder, f"step_{step:06d}") if cfg.sweep else folder for step in targets}
    for step in targets:  # what lies there and does not fit is found before weights are loaded
        for task in tasks:
            read_rows(folders[step], task.name, task.settings | {"model": prints[step]}, set(task.keys()))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no results can be written to {folder!r} ({error.strerror}): another --output?") from error
    in_use = rundir.lock(folder)  # noqa: F841  held to the end: two evaluations would write into the same files
    before = {step: read_table(os.path.join(folders[step], "results.json")) for step in targets}
    table = read_table(os.path.join(folder, "table.json")) if cfg.sweep else []

    scorer, engine, policy = rewards.Scorer(), None, None

    def engine_with(step):
        """Return the engine with the weights of this step; it is made when first needed."""
        nonlocal engine, policy
        if engine is None:
            engine = Engine(
                path, tokenizer, stop_ids, config=hf_config, dtype=dtype, device=device, clock=Clock(device),
                prompt_len=prompt_len, response_len=cfg.max_response_len, max_num_seqs=cfg.max_num_seqs,
                kv_cache_gb=cfg.kv_cache_gb, tensor_parallel=cfg.tensor_parallel, seed=cfg.seed,
                deadline_s=cfg.deadline_s, stop_strings=cfg.stop)
            engine.llm.update_weight_version("0")
            engine.version = 0  # it was started with the weights in `path`
        if engine.version != step:
            engine.sleep()
            policy = load_weights(policy, path, targets[step], device, dtype)
            engine.wake(policy, step)
        return engine

    everything = []
    for step in targets:
        rows = []
        for task in tasks:
            settings = task.settings | {"model": prints[step]}
            row = run_benchmark(task, folders[step], settings, lambda step=step: engine_with(step), scorer)
            if rank == 0:
                rows.append(row)
                everything.append({"step": step, **row})
                print0(f"{f'step {step:4d}  ' if cfg.sweep else ''}{task.name}: {row['completions']:,} completions, "
                       f"{row['seconds']:.0f} s")
                about = {"model": targets[step], "weights": prints[step], "command": " ".join(
                    [os.path.basename(sys.argv[0]), *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "world_size": world, **provenance.about()}
                save_results(folders[step], rows, about, before[step])
        if rank == 0 and cfg.sweep:
            save_sweep(folder, {task.name: task.settings for task in tasks}, everything, table)
    scorer.close()
    if rank == 0:
        if extra:
            with open(extra, "w") as f:
                for task in tasks:
                    with open(file_of(folders[0], task.name)) as done:
                        f.write(done.read())
        head, lines = (sweep_cells(everything) if cfg.sweep else
                       (RESULT_HEAD, [result_cells(row) for row in everything]))
        print0(f"\n{cfg.sweep or cfg.model}\n{to_text(head, lines)}\n\nwritten to {folder}/")
