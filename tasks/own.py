"""
Rewards and prompt templates of your own: functions in a recipe or any Python file. "recipes/mine.py:my_reward" names
one wherever a name is wanted: in recipes (there the function itself will do), in --why, in eval.py.

    def my_reward(sample):                  # sample: tasks/judged.py, Completion
        return float(sample.said.lower() == sample.row["label"])

It returns a number, {part: number}, or sample.finish({part: number}, correct, format_ok). It must depend on the sample
alone: it may be called twice for one response. docs/your_own.md shows the whole way.
"""

import ast
import base64
import builtins
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import pickle
import re
import statistics
import sys
import sysconfig
import time

from onebox.config import ConfigError, run_file
from onebox.text import excerpt, suggest
from tasks.judged import Completion, Score, checked
from tasks.parts import MAX_REWARD
from tasks.workers import Workers

NAME = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


@dataclasses.dataclass(frozen=True)
class Options:
    """What own_reward says of a function."""

    on_error: float = 0.0      # what a response is worth where the function raises, or returns what is no finite number
    killable: bool = False     # run it in a process that can be killed; the response then scores on_error
    seconds: float = 3.0       # how long one call may take; the check at start holds every reward to it
    memory_gb: float = 1.0     # how much a killable one may use
    full_mark: float = 1.0     # a number, or a sum of parts, from which a response counts as correct
    perfect: str | None = None  # a response that must get full_mark, with {think} and {answer} (the row's)


def own_reward(**options):
    """Set the Options of an own reward: a decorator. Without it, all have their defaults."""
    options = Options(**options)

    def mark(function):
        function.options = options
        return function

    return mark


# ---------------------------------------------------------------- finding them


def is_own(name):
    """Tell whether a name is that of a function in a file."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def load(name):
    """Return the function of "recipes/mine.py:my_reward". ConfigError, in one line, where there is none."""
    path, function = NAME.fullmatch(name).groups()
    if not os.path.isfile(path):
        raise ConfigError(f"{name}: there is no file {path!r}: give its path from this directory, or the whole one")
    try:
        names = run_file(path)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's Python
        raise ConfigError(f"{name}: {path} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(names.get(function)):
        known = [own for own, value in names.items() if inspect.isfunction(value)]
        hint = suggest(function, known) or f"its functions are {', '.join(known) or 'none'}"
        raise ConfigError(f"{path} has no function {function!r}; {hint}")
    return names[function]


def options_of(name):
    return getattr(load(name), "options", Options())


def short(name):
    """Return "my_reward" of "recipes/mine.py:my_reward"."""
    return name.rpartition(":")[2]


# ---------------------------------------------------------------- several with weights


def terms(reward):
    """Return [(weight, name)] of "math", of "math + 0.5 * recipes/mine.py:short", or of [("math", 1.0), ...]."""
    if not isinstance(reward, str):
        return [(float(weight), name) for name, weight in reward]
    found = [re.fullmatch(r"(?:([-+.0-9eE]+) *\* *)?(.*)", term.strip()).groups() for term in reward.split(" + ")]
    return [(1.0 if weight is None else float(weight), name) for weight, name in found]


def named(reward):
    """Return a reward as one text, as Prompt.reward has it; ValueError for what is none."""
    if isinstance(reward, str):
        return reward
    if not isinstance(reward, (list, tuple)) or not reward or not all(
            isinstance(term, (list, tuple)) and len(term) == 2 and isinstance(term[0], str)
            and type(term[1]) in (int, float) and abs(term[1]) < MAX_REWARD for term in reward):
        raise ValueError(f"several rewards are written [('math', 1.0), (my_reward, 0.5)], not {reward!r}")
    return " + ".join(f"{float(weight)!r} * {name}" for name, weight in reward)


# ---------------------------------------------------------------- calling them


def tested(reward):
    """Tell whether the check at start knows a perfect response to each own reward in this one, and there is one."""
    names = [name for _, name in terms(reward)]
    return all(is_own(name) and options_of(name).perfect is not None for name in names)


def perfect(name, answer, prompt=""):
    """Return the response that own_reward(perfect=...) calls perfect; {think} stands for a short thinking."""
    gold = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
    think = ("" if prompt.rstrip().endswith("<think>") else "<think>") + "I worked it out.\n</think>"
    return options_of(name).perfect.replace("{think}", think).replace("{answer}", str(gold))


def call(function, completion):
    """Call an own reward and return its Score; whatever it raises, and TypeError or ValueError for what is no score."""
    value = function(completion, completion.equal) if takes_equal(function) else function(completion)
    if isinstance(value, Score):
        return checked(value)
    if isinstance(value, dict) and value:
        parts = {name: number(one, f"part {name!r}") for name, one in value.items()}
    else:
        parts = {getattr(function, "__name__", "reward"): number(value, "it")}
    mark = getattr(function, "options", Options()).full_mark
    return checked(completion.finish(parts, sum(parts.values()) >= mark - 1e-9, True))


@functools.lru_cache(maxsize=64)
def takes_equal(function):
    """Tell whether a function is written as those of rewards.py are, as (completion, equal)."""
    try:
        wanted = [p for p in inspect.signature(function).parameters.values()
                  if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # a builtin
        return False
    return len(wanted) == 2


def number(value, what):
    """Return a number as a float. TypeError for anything else: "1" and None are mistakes."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # of numpy or torch
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        missing = ": does every path end in a return?" if value is None else ""
        raise TypeError(f"{what} is {excerpt(value)}, a {type(value).__name__}; a reward returns a number, a dict of "
                        f"numbers or sample.finish(...){missing}")
    return float(value)


def score(name, completion):
    """Score by an own reward, here or, if it is killable, in a grader process. None: its verdict is not in yet."""
    return ask(name, completion) if options_of(name).killable else call(load(name), completion)


def answer(name, sample, equal):
    """Score in a worker: a pickled Completion -> JSON of [Score's fields, notes], or of an error's text."""
    builtins.exit = builtins.quit = sys.exit  # the interactive ones close stdin, through which the questions come
    with contextlib.redirect_stdout(sys.stderr):  # a print must not break the worker's protocol
        try:
            completion = pickle.loads(base64.b64decode(sample))
            completion.equal = equal
            score = call(load(name), completion)
        except (Exception, SystemExit) as error:
            return json.dumps(f"{type(error).__name__}: {error}")
    return json.dumps([{**vars(score), "flags": sorted(score.flags)}, completion.notes], default=str)


def ask(name, completion, seconds=None, memory_gb=None):
    """Score in a grader process: Score, or None until it is in. RuntimeError with what went wrong there."""
    options, (path, function) = options_of(name), NAME.fullmatch(name).groups()
    sample = base64.b64encode(pickle.dumps(dataclasses.replace(completion, notes=[], equal=None))).decode()
    # a worker was started elsewhere: the whole path, and this directory
    where = [f"{os.path.abspath(path)}:{function}", os.getcwd(), str(seconds or options.seconds),
             str(memory_gb or options.memory_gb)]
    said = completion.equal(where, sample, "own")
    if said in ("timeout", "error"):
        return None if said == "timeout" else failed(f"its process died: of a crash, more than {where[3]} GB, or too "
                                                     "much CPU time")
    found = json.loads(said)
    if isinstance(found, str):
        failed(found)
    score, notes = found
    completion.notes += [tuple(note) for note in notes]
    return Score(**{**score, "flags": frozenset(score["flags"])})


def failed(text):
    raise RuntimeError(text)


# ---------------------------------------------------------------- what belongs to a run's fingerprint


def source_of(name):
    """
    Return the source text of a function and of all that it refers to: names of its file, and the user's own files that
    it imports. Of the project itself and of installed packages only the import is part of it.
    """
    path, function = NAME.fullmatch(name).groups()
    found = statements(os.path.abspath(path), function, set())
    if not found:  # bound in a way that is not seen here, by exec for one: then all of the file
        with open(path, errors="replace") as f:
            found = {f.read()}
    return "\n".join(sorted(found))


def sources(rewards):
    """Return {reward: its text with sha256 of a source in place of each own function's name} of those with such."""
    return {reward: " + ".join(f"{weight!r} * {sha256(source_of(name)) if is_own(name) else name}"
                               for weight, name in terms(reward))
            for reward in rewards if any(is_own(name) for _, name in terms(reward))}


def fingerprint(prompts):
    """Return sha256 over the sources of the own rewards of prompts, "" without one: a run refuses another one."""
    return hash_of(sources({p.reward for p in prompts}))


def fingerprint_of(setting):
    """Return the same of a setting `reward`, for prompts of all its sources; None without an own reward."""
    return hash_of(sources(set(map(named, setting.values() if isinstance(setting, dict) else [setting])))) or None


def hash_of(found):
    return sha256("\n".join(sorted(found.values()))) if found else ""


def files_of(settings):
    """Return the files of all own functions in a run's settings, and those beside them that these import."""
    seen = set()
    for path, function in re.findall(r'([^"*+]+\.py):([A-Za-z_]\w*)', json.dumps(settings)):
        if os.path.isfile(path.strip()):
            statements(os.path.abspath(path.strip()), function, seen)
    return sorted({path for path, _ in seen})


def made_up(prompt, others=()):
    """Return responses to a prompt: right ones in three forms, another row's answer, and one that is no answer."""
    gold = prompt.answer[0] if isinstance(prompt.answer, (list, tuple)) and prompt.answer else prompt.answer
    opening = "" if prompt.text.rstrip().endswith("<think>") else "<think>"
    return [f"{opening}I worked it out.</think>\n<answer>{gold}</answer>",
            f"{opening}I worked it out.</think>\n\\boxed{{{gold}}}", str(gold),
            next((str(other.answer) for other in others if other.answer != prompt.answer), "something else"),
            f"{opening}I worked it out.</think>\n<answer>no idea</answer>"]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def statements(path, name, seen):
    """Collect the top-level statements of a file that bind a name, and those of what they refer to."""
    if (path, name) in seen:
        return set()
    seen.add((path, name))
    with open(path, "rb") as f:
        text = f.read()
    lines, found = text.decode(errors="replace").splitlines(), set()
    for node in ast.parse(text).body:
        imported = isinstance(node, (ast.Import, ast.ImportFrom))
        binds = {(alias.asname or alias.name).partition(".")[0] for alias in node.names} if imported else bound(node)
        if name not in binds and "*" not in binds:
            continue
        if imported:
            found |= of_import(node, name, seen)
        if name in binds:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            found.add("\n".join(line.rstrip() for line in lines[first - 1:node.end_lineno]))
            for used in {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} - {name}:
                found |= statements(path, used, seen)
            for inside in () if imported else ast.walk(node):
                if isinstance(inside, (ast.Import, ast.ImportFrom)):
                    for alias in inside.names:
                        found |= of_import(inside, alias.asname or alias.name, seen)
    return found


def bound(node):
    """Return the names that a top-level statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)} | {
        one.value.id for one in ast.walk(node)  # WORDS.update(...), WORDS["a"] = 1
        if isinstance(one, (ast.Attribute, ast.Subscript)) and isinstance(one.value, ast.Name)
        and not isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def of_import(node, name, seen):
    """Follow an import into a file of the user's."""
    found = set()
    if isinstance(node, ast.Import):
        for alias in node.names:
            found |= whole(file_of(alias.name), seen)
    elif node.module:
        original = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), name)
        file = file_of(node.module)
        if file.endswith("__init__.py"):  # from package import module: a file of its own
            found |= whole(file_of(f"{node.module}.{original}"), seen)
        if is_users(file):
            found |= statements(os.path.abspath(file), original, seen)
    return found


def file_of(module):
    """Return the file of a module, "" where it has none or is not there."""
    try:
        return getattr(importlib.util.find_spec(module), "origin", None) or ""
    except (ImportError, ValueError, AttributeError):
        return ""


def whole(file, seen):
    """Return {text} of a file of the user's, once."""
    if not is_users(file) or (os.path.abspath(file), "") in seen:
        return set()
    seen.add((os.path.abspath(file), ""))
    with open(file, errors="replace") as f:
        return {f.read()}


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INSTALLED = tuple(os.path.join(os.path.realpath(path), "") for path in sysconfig.get_paths().values())


def is_users(file):
    """Tell whether a Python file is the user's: not one of an installed package, nor of this project but a recipe."""
    inside = os.path.relpath(os.path.realpath(file), PROJECT).split(os.sep)
    project = inside[0] in ("tasks", "onebox", "tools") or len(inside) == 1 and inside[0] in DOOR
    return file.endswith(".py") and not project and not os.path.realpath(file).startswith(INSTALLED)


DOOR = ("data.py", "eval.py", "policy.py", "rewards.py", "rollout.py", "sft.py", "train_grpo.py", "train_ppo.py")


# ---------------------------------------------------------------- the check at start

def print_once(text):
    """Print on rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


HOSTILE = {  # a response that a model may write one day
    "nothing": "", "blanks": " \n\t ", "no tags": "yes", "only tags": "<think></think><answer></answer>",
    "never ends": "<think>" + "so " * 200, "tags the wrong way round": "</answer>5<answer></think>",
    "a thousand tags": "<answer>" * 1000 + "5" + "</answer>" * 1000, "open brackets": "[" * 50_000,
    "open boxes": "\\boxed{" * 20_000, "a long number": "9" * 100_000,
    "not a number": "<answer>nan 1e999 -inf</answer>",
    "broken JSON": '<answer>{"a": [1, {"b": </answer>', "other scripts": "<answer>\u0663 \u4e94 \ufffd \x00</answer>",
    "one long word": "a" * 200_000, "blanks and words": "a " * 100_000,
}
SECONDS_A_CALL = 0.05  # above it, the check says what a step of scoring will take


def check_all(prompts, count=8):
    """Try each own reward on `count` of its rows and on hostile texts: see check."""
    its_rows = {}
    for prompt in prompts:
        for name in (name for _, name in terms(prompt.reward) if is_own(name)):
            its_rows.setdefault(name, []).append(prompt)
    for name, rows in its_rows.items():
        workers = Workers(num_workers=1)
        try:
            check(name, rows[::max(1, len(rows) // count)][:count], workers)
        finally:
            workers.close()


def check(name, prompts, workers, say=print_once):
    """
    Score made-up responses to real rows, and hostile texts, in a process that can be killed.

    prompts: some that have this reward. Raises ConfigError with exit code 5 if the reward fails on every response to
    real rows, misses its own perfect ones, or (unless it is killable) needs too long for one text. Says in one line how
    it went, and warns of one that fails on hostile texts, gives one value to all, or two values to one response.
    """
    options, jobs = options_of(name), []
    verdict(["1"], "2", "strict", workers)  # so that no start of a process is measured
    for prompt in prompts:
        texts = made_up(prompt, prompts)
        jobs += [("a real row", prompt, text) for text in [*texts, texts[-1]]]  # the last one twice
        if options.perfect is not None:
            jobs.append(("a perfect response", prompt, perfect(name, prompt.answer, prompt.text)))
    jobs += [(what, prompts[0], text) for what, text in HOSTILE.items()]
    results = [score_in_process(name, prompt, text, workers) for _, prompt, text in jobs]
    real = [found for (what, *_), found in zip(jobs, results, strict=True) if what == "a real row"]
    errors = [found for found in real if isinstance(found.said, str)]
    where = f"reward {name}"
    if len(errors) == len(real):
        raise ConfigError(f"{where} fails on all {len(real)} responses tried on {len(prompts)} rows: "
                          f"{excerpt(errors[0].said, 300)}; the row was {excerpt(errors[0].prompt.row, 200)}",
                          exit_code=5)
    for (what, prompt, text), found in zip(jobs, results, strict=True):
        if what == "a perfect response" and (isinstance(found.said, str) or not found.said.correct):
            got = found.said if isinstance(found.said, str) else f"{found.said.total:g}"
            raise ConfigError(f"{where}: the response that own_reward(perfect=...) calls perfect gets "
                              f"{excerpt(got, 200)} for {prompt.uid}, full_mark is {options.full_mark:g}: "
                              f"{excerpt(text, 200)}",
                              exit_code=5)
        if found.said == "timeout" and not options.killable:
            raise ConfigError(f"{where} needs more than {options.seconds:g} s for one text ({what}: {excerpt(text)}): "
                              "a response can be such a text, so make it linear in the length, allow more time, "
                              "@own_reward(seconds=30), or run it where it can be stopped, killable=True", exit_code=5)
    seconds = sorted(found.seconds for found in results if not isinstance(found.said, str))
    typical = statistics.median(seconds)
    say(f"{where}: checked on {len(prompts)} rows and {len(HOSTILE)} hostile texts, {typical * 1000:.2g} ms for one, "
        f"{seconds[-1] * 1000:.2g} ms at most" + (", in a process of its own" if options.killable else ""))
    odd = [(what, found) for (what, *_), found in zip(jobs, results, strict=True) if isinstance(found.said, str)]
    if odd:
        say(f"warning: {where} fails on {len(odd)} of {len(jobs)} texts; such a response scores {options.on_error:g} "
            f"(own_reward(on_error=...)) and counts in column flag/error; first on {odd[0][0]}: "
            f"{excerpt(odd[0][1].said, 200)}")
    totals = {options.on_error if isinstance(found.said, str) else found.said.total for found in results}
    if len(totals) == 1:
        say(f"warning: {where} gave {totals.pop():g} to all {len(jobs)} texts tried, right and wrong ones: nothing can "
            "be learned from a constant")
    twice = [pair for pair in zip(real[4::6], real[5::6], strict=True)
             if not any(isinstance(one.said, str) for one in pair) and pair[0].said.total != pair[1].said.total]
    if twice:
        say(f"warning: {where} gave {twice[0][0].said.total:g} and {twice[0][1].said.total:g} to one and the same "
            "response: it must depend on the sample alone, else a resumed run is another run")


@dataclasses.dataclass
class Tried:
    """How a reward took one text: its Score, or what went wrong ("timeout", "ZeroDivisionError: ..."); the seconds."""

    prompt: object
    said: object
    seconds: float


def score_in_process(name, prompt, text, workers):
    completion = Completion(text, prompt.answer, False, max(1, len(text) // 4), max(1, len(text) // 4) + 1, prompt.row,
                            prompt.text, equal=lambda golds, sample, rules: verdict(golds, sample, rules, workers))
    start, options = time.perf_counter(), options_of(name)
    try:
        said = ask(name, completion, memory_gb=options.memory_gb if options.killable else "inf") or "timeout"
    except RuntimeError as error:
        said = str(error)
    return Tried(prompt, said, time.perf_counter() - start)


def verdict(golds, sample, rules, workers):
    workers.submit(0, golds, sample, rules)
    while not (found := workers.poll(wait_s=1.0)):
        pass
    return found[0][1]
