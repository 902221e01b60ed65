"""
Rewards and prompt templates of your own: functions in a recipe or any Python file. "recipes/mine.py:my_reward" names
one wherever a name is wanted: in recipes (there the function itself will do), in --why, in eval.py.

    def my_reward(sample):                  # sample: tasks/judged.py, Completion
        return float(sample.said.lower() == sample.row["label"])

It returns a number, {part: number}, or sample.finish({part: number}, correct, format_ok). It must depend on the sample
alone: it may be called twice for one response. docs/your_own.md shows the whole way; own_check.py tries each at start.
"""

import ast
import base64
import builtins
import contextlib
import dataclasses
import decimal
import functools
import hashlib
import importlib.machinery
import inspect
import json
import math
import numbers
import os
import pickle
import re
import sys
import sysconfig

from onebox.config import OWN_NAME, ConfigError, run_file
from onebox.text import excerpt, suggest
from tasks.judged import Score, checked
from tasks.parts import MAX_REWARD, finite


@dataclasses.dataclass(frozen=True)
class Options:
    """What own_reward says of a function."""

    on_error: float = 0.0      # what a response is worth where the function raises, or returns what is no finite number
    killable: bool = False     # run it in a process that can be killed; the response then scores on_error
    seconds: float = 3.0       # how long one call may take; the check at start holds every reward to it
    memory_gb: float = 1.0     # how much a killable one may use
    full_mark: float = 1.0     # a number, or a sum of parts, from which a response counts as correct
    perfect: object = None     # a response that must get full_mark, with {think}, {answer}; or a function of the row

    def __post_init__(self):
        for name in ("on_error", "seconds", "memory_gb", "full_mark"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > MAX_REWARD:
                raise ConfigError(f"own_reward({name}={value!r}): it must be a finite number")
        text = self.perfect is None or isinstance(self.perfect, str) or callable(self.perfect)
        if type(self.killable) is not bool or not text or min(self.seconds, self.memory_gb) <= 0:
            raise ConfigError(f"own_reward: killable is True or False, perfect a text or a function of the row, "
                              f"seconds and memory_gb are positive, not {self}")


def own_reward(**options):
    """Set the Options of an own reward: a decorator. Without it, all have their defaults."""
    known = [field.name for field in dataclasses.fields(Options)]
    if odd := [name for name in options if name not in known]:
        raise ConfigError(f"own_reward has no option {odd[0]!r}; {suggest(odd[0], known)} known: {', '.join(known)}")
    options = Options(**options)

    def mark(function):
        function.options = options
        return function

    return mark


# ---------------------------------------------------------------- finding them


def is_own(name):
    """Tell whether a name is that of a function in a file."""
    return isinstance(name, str) and OWN_NAME.fullmatch(name) is not None


def load(name):
    """
    Return the function of "recipes/mine.py:my_reward", the same one as long as this process lives, whatever becomes of
    the file. ConfigError, in one line, where there is none.
    """
    path, function = OWN_NAME.fullmatch(name).groups()
    return load_from(os.path.abspath(path), path, function)


@functools.lru_cache(maxsize=None)
def load_from(whole_path, path, function):
    if not os.path.isfile(whole_path):
        raise ConfigError(f"{path}:{function}: there is no file {path!r} in {os.getcwd()}")
    try:
        names = run_file(whole_path)
        refuse_namesakes(whole_path)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's Python
        raise ConfigError(f"{path}:{function}: {path} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(names.get(function)):
        known = [own for own, value in names.items() if inspect.isfunction(value)]
        hint = suggest(function, known) or f"its functions are {', '.join(known) or 'none'}"
        raise ConfigError(f"{path} has no function {function!r}; {hint}")
    return names[function]


def refuse_namesakes(path):
    """Raise ConfigError where a file imports a module that lies beside it, and has got another one of that name."""
    for module in imported(path):
        beside = os.path.join(os.path.dirname(path), f"{module.partition('.')[0]}.py")
        got = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
        if os.path.isfile(beside) and got and os.path.realpath(got) != os.path.realpath(beside):
            raise ConfigError(f"{path} imports {module}, which is {got} and not the file beside it: give {beside} "
                              "another name")


def options_of(name):
    return options_in(load(name))


def options_in(function):
    """Return what own_reward said of a function, or of the one inside a functools.partial."""
    found = getattr(function, "options", None) or getattr(getattr(function, "func", None), "options", None)
    return found if isinstance(found, Options) else Options()


def short(name):
    """Return "my_reward" of "recipes/mine.py:my_reward"."""
    return name.rpartition(":")[2]


# ---------------------------------------------------------------- several with weights


@functools.lru_cache(maxsize=1024)
def terms(reward):
    """Return [(weight, name)] of "math", or of "math + 0.5 * recipes/mine.py:short"."""
    if is_own(reward) and os.path.isfile(reward.rpartition(":")[0]):  # of any path
        return [(1.0, reward)]
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
    if odd := next((name for name, _ in reward if " + " in name or "*" in name), None):
        raise ValueError(f"several rewards: {odd!r} may hold no '*' nor ' + '; move the file")
    return " + ".join(f"{float(weight)!r} * {name}" for name, weight in reward)


# ---------------------------------------------------------------- calling them


def score(name, completion):
    """Score by an own reward, here or, if it is killable, in a grader process. None: its verdict is not in yet."""
    return score_elsewhere(name, completion) if options_of(name).killable else call(load(name), completion)


def call(function, completion):
    """Call an own reward and return its Score; whatever it raises, and TypeError or ValueError for what is no score."""
    value = function(completion, completion.equal) if takes_equal(function) else function(completion)
    if isinstance(value, Score):
        return checked(value)
    if isinstance(value, dict) and value:
        parts = {name: number(one, f"part {name!r}") for name, one in value.items()}
    else:
        parts = {getattr(function, "__name__", "reward"): number(value, "it")}
    mark = options_in(function).full_mark
    return checked(completion.finish(parts, sum(parts.values()) >= mark - 1e-9, True))


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
    if not isinstance(value, (numbers.Real, decimal.Decimal)):
        missing = ": does every path end in a return?" if value is None else ""
        raise TypeError(f"{what} is {value!a:.100}, a {type(value).__name__}; a reward returns a number, a dict of "
                        f"numbers or sample.finish(...){missing}")
    return finite(value, what)


def failing(name):
    """Return the Score of a response where an own reward fails."""
    value = float(options_of(name).on_error)
    return Score(value, False, False, {"on_error": value} if value else {})


def score_elsewhere(name, completion, memory_gb=None):
    """Score in a grader process: Score, or None until it is in. RuntimeError with what went wrong there."""
    options, (path, function) = options_of(name), OWN_NAME.fullmatch(name).groups()
    sample = base64.b64encode(pickle.dumps(dataclasses.replace(completion, notes=[], equal=None))).decode()
    # a worker was started elsewhere: the whole path, and this directory; and perhaps later: the source
    where = [f"{os.path.abspath(path)}:{function}", os.getcwd(), str(options.seconds),
             str(memory_gb or options.memory_gb), identity(name)]
    said = completion.equal(where, sample, "own")
    if said == "timeout":
        return None
    if said == "error":
        raise RuntimeError(f"its process died: of a crash, or of more than {where[3]} GB")
    found = json.loads(said)
    if found is None:
        raise Edited(f"{path} was edited while this process uses it: put it back (a copy lies in the run's code/), and "
                     "start the same command again")
    if isinstance(found, str):
        raise RuntimeError(found)
    fields, notes = found
    completion.notes += [tuple(note) for note in notes]
    return Score(**{**fields, "flags": frozenset(fields["flags"])})


class Edited(ConfigError):
    """The file of a reward is another one than at the start, so that new grader processes would score otherwise."""

    def __init__(self, message):
        super().__init__(message, exit_code=2)


def score_in_worker(where, sample, equal):
    """Score in a worker: a pickled Completion -> JSON of [Score's fields, notes], or of an error; null if edited."""
    name, _, _, _, source = where
    builtins.exit = builtins.quit = sys.exit  # the interactive ones close stdin
    with contextlib.redirect_stdout(sys.stderr):
        try:
            function = load(name)
            if identity(name) != source:
                return json.dumps(None)
            if not sample:  # only to load it
                return json.dumps("loaded")
            completion = pickle.loads(base64.b64decode(sample))
            completion.equal = equal
            found = call(function, completion)
            notes = [(excerpt(str(rule)), excerpt(str(finding), 1000)) for rule, finding in completion.notes[-100:]]
            return json.dumps([{**vars(found), "flags": sorted(found.flags)}, notes])
        except (Exception, SystemExit) as error:
            return json.dumps(f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------- what belongs to a run's fingerprint


@functools.lru_cache(maxsize=None)
def identity(name):
    """Return sha256 of the source of an own function, as it was when this process first asked."""
    return sha256("\n".join(source_of(name)))


def source_of(name):
    """
    Return the texts that decide what an own function does: its file without the settings in it, and the user's other
    files that these import. Installed packages and the project's own modules are not part of them, nor data files.
    """
    load(name)  # so that its imports can be found
    first, *others = files_of(name)
    return [without_settings(first, short(name)), *(read(file) for file in others)]


def files_of(name):
    """Return the files of the user that an own function needs: its own first, then those that it imports, sorted."""
    first = os.path.abspath(OWN_NAME.fullmatch(name)[1])
    found, todo = [], [first]
    while todo:
        file = todo.pop()
        if file not in found:
            found.append(file)
            todo += [os.path.abspath(other) for module in imported(file) if is_users(other := file_of(module))]
    return [first, *sorted(set(found) - {first})]


def read(path):
    with open(path, encoding="utf-8-sig", errors="replace") as f:
        return f.read()


def without_settings(path, wanted):
    """
    Return the top-level statements of a file, but for `name = value` lines that no other statement refers to. The one
    that sets `wanted` stays.
    """
    text = read(path)
    tree, lines = ast.parse(text).body, text.split("\n")  # not splitlines: Python breaks lines at no form feed

    def plain(node):  # the name that a line such as `lr = 1e-6` or `a, b = 1, 2` sets
        targets = node.targets if isinstance(node, ast.Assign) else \
            [node.target] if isinstance(node, ast.AnnAssign) else []
        names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
        return set(names) if names and all(isinstance(one, (ast.Name, ast.Tuple)) for one in targets) else set()

    kept = [node for node in tree if not plain(node) or wanted in plain(node)]
    while True:
        used = {one.id for node in kept for one in ast.walk(node)
                if isinstance(one, ast.Name) and (isinstance(one.ctx, ast.Load) or isinstance(node, ast.AugAssign))}
        more = [node for node in tree if node not in kept and plain(node) & used]
        if not more:
            break
        kept += more
    return "\n".join(line.rstrip() for node in sorted(kept, key=lambda node: (node.lineno, node.col_offset))
                     for line in lines[min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
                                       - 1:node.end_lineno])


def imported(path):
    """List the modules that a file imports anywhere: "a.b" of `import a.b`, "a" and "a.b" of `from a import b`."""
    found, package = [], package_of(path)
    try:
        tree = ast.parse(read(path))
    except SyntaxError:  # of a helper that nothing has run yet: its text counts
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[:len(package) - node.level + 1] if node.level else []  # from ..a import b
            module = ".".join([*parent, *([node.module] if node.module else [])])
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)] if module else []
    return [".".join(module.split(".")[:n]) for module in dict.fromkeys(found) for n in range(1, module.count(".") + 2)]


def package_of(path):
    """Return the names of the packages around a file, outermost first."""
    folder, names = os.path.dirname(os.path.abspath(path)), []
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, name = os.path.split(folder)
        names.insert(0, name)
    return names


def file_of(module):
    """Return the file of a module, "" where it has none or is none."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded or module.partition(".")[0] in sys.builtin_module_names:
        return loaded or ""
    parent, path = module.rpartition(".")[0], None
    try:
        if parent:  # found without importing it
            where = file_of(parent)
            path = [os.path.dirname(where)] if where.endswith("__init__.py") else []
        return getattr(importlib.machinery.PathFinder.find_spec(module, path), "origin", None) or ""
    except (ImportError, ValueError, AttributeError):
        return ""


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOOR = ("data.py", "eval.py", "policy.py", "rewards.py", "rollout.py", "sft.py", "train_grpo.py", "train_ppo.py")
INSTALLED = tuple(os.path.join(os.path.realpath(path), "") for path in sysconfig.get_paths().values())


def is_users(file):
    """Tell whether a Python file is the user's: not one of an installed package, nor of this project but a recipe."""
    inside = os.path.relpath(os.path.realpath(file), PROJECT).split(os.sep)
    project = inside[0] in ("tasks", "onebox", "tools") or len(inside) == 1 and inside[0] in DOOR
    return file.endswith(".py") and not project and not os.path.realpath(file).startswith(INSTALLED)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def sources(rewards):
    """Return {reward: its text with sha256 of a source in place of each own function's name} of those with such."""
    return {reward: " + ".join(f"{weight!r} * {identity(name) if is_own(name) else name}"
                               for weight, name in terms(reward))
            for reward in rewards if any(is_own(name) for _, name in terms(reward))}


def fingerprint(prompts):
    """Return sha256 over the sources of the own rewards of prompts, "" without one: a run refuses another one."""
    return hash_of(sources({p.reward for p in prompts}))


def fingerprint_of(rewards):
    """Return the same of a list of rewards, each as a recipe writes it."""
    return hash_of(sources(set(map(named, rewards))))


def hash_of(found):
    return sha256("\n".join(sorted(found.values()))) if found else ""


def own_names(value):
    """List the names of own functions in a setting."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for one in value for name in own_names(one)]
    return [name for _, name in terms(value) if is_own(name)] if isinstance(value, str) else []


def files_of_settings(settings):
    """Return the files of all own functions in a run's settings, and those that these import."""
    names = own_names([settings.get("reward"), settings.get("template")])
    return sorted({file for name in names if os.path.isfile(OWN_NAME.fullmatch(name)[1]) for file in files_of(name)})
