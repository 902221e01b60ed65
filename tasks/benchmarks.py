"""
A benchmark's name -> what is asked and how it is graded: data source, split, prompt template, reward, samples.

`python eval.py --suite gsm8k,kk` reads this table; every value has a setting of the same name that wins over it.
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import data
import rewards
from onebox import statistics
from onebox.config import ConfigError
from data import DataError, data_files
from tasks.puzzles import GENERATED
from tasks.sources import BENCHMARKS, boxed
from tasks.templates import TEMPLATES, check_chat, is_chat, reads_clock


def parse_suite(text):
    """ "gsm8k, kk" -> ["gsm8k", "kk"]; an unknown name is an error that names the nearest and lists all."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"suite {text!r} names no benchmark; known: {', '.join(BENCHMARKS)}")
    for name in names:
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"no benchmark is called {name!r}; {hint}known: {', '.join(BENCHMARKS)}")
    return names


def default_template(benchmark, tokenizer):
    """The template of a benchmark for this tokenizer, where the user names none."""
    if not getattr(tokenizer, "chat_template", None):
        return benchmark.text
    marked = "text" in TEMPLATES[benchmark.chat] and "<|im_start|>" in TEMPLATES[benchmark.chat]["text"]
    return benchmark.text if marked and "<|im_start|>" not in tokenizer.get_vocab() else benchmark.chat


def find_path(name, source, data_path, alone):
    """
    The local path of one benchmark's rows, or None: the hub, or the generator.

    data_path  "", a file (for a suite of one), a directory whose files are named for their data sets, or
               {benchmark or source: path}
    Of several benchmarks no file of another name is ever taken; generated ones without a file are generated.
    """
    if not data_path:
        return None
    kind = re.split("[:@]", source)[0]
    if isinstance(data_path, dict):
        return next((data_path[key] for key in (name, source, kind) if key in data_path), None)
    folder = Path(data_path).expanduser()
    if not folder.exists():
        raise DataError(f"data_path {data_path!r} is not there; give a directory with files such as gsm8k_test.jsonl")
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


@dataclass
class Task:
    """One benchmark, ready to be asked."""

    name: str
    prompts: list
    samples: int  # a problem at `temperature`
    greedy: bool  # and one greedy response
    settings: dict  # all that decides its completions and scores, the model apart

    def order(self):
        """The keys of all its completions, in the order of the results."""
        uids = [p.uid for p in self.prompts]
        return [(u, k) for u in uids for k in range(self.samples)] + [(u, "greedy") for u in uids if self.greedy]


def chosen(cfg):
    """-> {name: Benchmark}: those of the suite, or the sources of `data` with the defaults of the nearest benchmark."""
    if cfg.suite and cfg.data:
        raise ConfigError("suite and data were both given: take one of them")
    if cfg.suite:
        return {name: BENCHMARKS[name] for name in parse_suite(cfg.suite)}
    found = {}
    for name in [cfg.data or "tiny_countdown"] if isinstance(cfg.data, str) else cfg.data:
        kind = data.parse_name(name)[0].partition(":")[0]
        near = next((b for b in BENCHMARKS.values() if b.source.partition(":")[0] == kind), boxed(kind))
        found[name] = dataclasses.replace(near, source=name, split="test", limit=0, samples=4)
    return found


def per_benchmark(setting, name, source, default):
    """A setting for one benchmark: the value itself, or that of a dict under its name or its source's."""
    if isinstance(setting, dict):
        return next((setting[key] for key in (name, source, source.partition("@")[0]) if key in setting), default)
    return default if setting in ("", None) else setting


def make_tasks(cfg, tokenizer, vocab_size, stop_ids, dtype):
    """Load and check all that the benchmarks ask -> list of Task; every error before any weights are loaded."""
    picked, tasks = chosen(cfg), []
    known = {key for name, b in picked.items() for key in (name, b.source, *re.split("[:@]", b.source)[:1])}
    for setting in ("template", "reward", "samples", "limit", "data_path"):
        for key in getattr(cfg, setting) if isinstance(getattr(cfg, setting), dict) else ():
            if key not in known and key.partition("@")[0] not in known:
                raise ConfigError(f"{setting} names {key!r}, which is not evaluated: {', '.join(picked)} are")
    templates = {name: per_benchmark(cfg.template, name, b.source, default_template(b, tokenizer)) for name, b in picked.items()}
    chat = check_chat(cfg, tokenizer, is_chat(templates) or bool(cfg.sweep))  # a sweep has those of the run
    for name, b in picked.items():
        template = templates[name]
        reward = per_benchmark(cfg.reward, name, b.source, b.reward)
        samples = per_benchmark(cfg.samples, name, b.source, b.samples)
        limit = per_benchmark(cfg.limit or None, name, b.source, b.limit)
        if type(samples) is not int or samples < 0 or type(limit) is not int or limit < 0:
            raise ConfigError(f"{name}: samples = {samples!r} and limit = {limit!r} must be whole numbers, 0 or more")
        if cfg.temperature == 0 and samples > 1 and cfg.samples is not None:
            raise ConfigError(f"{name}: {samples} samples at temperature 0 are one and the same: give --samples 0, or "
                              "a temperature")
        samples = samples if cfg.temperature > 0 else 0
        try:
            rewards.check(reward)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        prompts, _ = data.load_prompts(
            b.source, template, reward, tokenizer, split=cfg.split or b.split, limit=limit or None, seed=cfg.seed,
            max_prompt_len=cfg.max_prompt_len or None, vocab_size=vocab_size, check_answer=rewards.check_answer, chat=chat,
            paths=find_path(name, b.source, cfg.data_path, len(picked) == 1))
        settings = {"source": b.source, "template": template, "reward": reward, "problems": len(prompts),
                    "samples": samples, "greedy": cfg.greedy or not samples, "dtype": dtype, "seed": cfg.seed,
                    "temperature": cfg.temperature if samples else 0.0, "max_response_len": cfg.max_response_len,
                    "stop": list(cfg.stop), "stop_ids": stop_ids, "data": data.fingerprint(prompts)[:16]}
        if is_chat(template):  # a journal from before these settings goes on where they change nothing
            settings |= {"chat_template_kwargs": chat["kwargs"]} if chat["kwargs"] else {}
            settings |= {"chat_date": chat["date"]} if reads_clock(tokenizer) else {}
        tasks.append(Task(name, prompts, samples, cfg.greedy or not samples, settings))
    return tasks


def plan(tasks):
    """What will be asked, as a table for the console: every default is in sight."""
    return statistics.to_text(["benchmark", "problems", "samples", "template", "reward", "longest prompt"], [
        [t.name, len(t.prompts), "greedy" if not t.samples else
         f"{t.samples} at {t.settings['temperature']:g}{' + greedy' * t.greedy}", t.settings["template"],
         t.settings["reward"], max(len(p.ids) for p in t.prompts)] for t in tasks]) + "\n"
