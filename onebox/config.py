"""
Read settings: defaults < recipe < command line, into a frozen flat dataclass. From a script:

    cfg, origin = load_config(Config)                 # reads sys.argv

    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo.py --lr 2e-6 --name my-run

A recipe is a Python file of `name = value` lines; `from recipes.stage1 import *` inherits. Every name must be a
setting and every value plain: a misspelled name is an error. Functions, classes, modules, names in capitals and names
with an underscore are the recipe's own. A function may be the value of a setting of type OrFunction, a reward or a
prompt template; it becomes the text "recipes/mine.py:my_reward". `origin` says where each value came from.

Not tyro (nor jsonargparse): it knows a default instance, not which file set a value, wants a registry in place of
recipes that inherit by import, and answers a typo with a box of usage instead of one line with the fix.
"""

import ast
import dataclasses
import difflib
import enum
import functools
import glob
import inspect
import json
import math
import os
import re
import runpy
import sys
import types
import typing

from onebox.files import has_tools
from onebox.text import suggest

T = typing.TypeVar("T")  # ranges, as in `lr: NonNegative[float]`; check_ranges looks at them
Positive = typing.Annotated[T, "must be greater than 0", lambda x: x > 0]
NonNegative = typing.Annotated[T, "must not be negative", lambda x: x >= 0]
Share = typing.Annotated[T, "must lie in 0 ... 1", lambda x: 0 <= x <= 1]
OrFunction = typing.Annotated[T, "may be a function of the recipe", lambda x: True]
BelowOne = typing.Annotated[T, "must lie in 0 ... 1, without 1", lambda x: 0 <= x < 1]
SizeOrAuto = typing.Annotated[int | str, 'must be "auto" or above 0', lambda x: x == "auto" or type(x) is int and x > 0]

OWN_NAME = re.compile(r"(.+\.py):([^\W\d]\w*)")  # "recipes/mine.py:my_reward", a function in a file


class ConfigError(SystemExit):
    """
    A bad recipe, setting or input: one line that says what, where and the fix; `reason` is it without "error: ".
    crash.entry exits with exit_code.
    """

    def __init__(self, message, exit_code=1):
        # one line, whatever a library's message or the repr of an array holds
        self.reason, self.exit_code = " ".join(line.strip() for line in str(message).splitlines()), exit_code
        super().__init__(f"error: {self.reason}")


def refuse(wrong, message):
    """Raise ConfigError with the message if something is wrong."""
    if wrong:
        raise ConfigError(message)


def load_config(cls, argv=None):
    """Return (cfg, {name: origin}). Raise ConfigError in one line. --help prints every setting and exits."""
    script, settings = script_of(cls), typing.get_type_hints(cls)
    argv = list(sys.argv[1:] if argv is None else argv)
    values, origin = {}, {}
    if "--help" in argv or "-h" in argv:
        if has_tools():
            from tools.help import describe
            print(describe(cls, script))
        else:
            print(table(cls(), {}))
        raise SystemExit(0)

    # 1) recipe: at most one positional argument, before the flags
    if argv and not argv[0].startswith("-"):
        path, hints = argv.pop(0), typing.get_type_hints(cls, include_extras=True)
        for name, value in read_recipe(path, script).items():
            if getattr(hints.get(name), "__metadata__", ()) == OrFunction.__metadata__:
                value = name_functions(value, path)
            own = isinstance(value, types.ModuleType) or callable(value)  # and names in capitals, but for typos
            own = own or name.isupper() and not difflib.get_close_matches(name.lower(), settings, 1, cutoff=0.85)
            if name in settings or not own:
                values[name], origin[name] = check(cls, name, value, where=path), path

    # 2) command line: --name value, --name=value, or a bare --flag for True
    while argv:
        flag, equals, text = argv.pop(0).partition("=")
        refuse(not flag.startswith("--"),
               f"command line: expected --name value, got {flag!r} (a recipe file comes first)")
        name = flag[2:].replace("-", "_")
        want = settings.get(name)
        if not equals:
            bare = not argv or argv[0].startswith("--")
            refuse(bare and want is str, f"command line: {flag} wants a value")
            text = "True" if bare else argv.pop(0)
        boolean = want is bool or True in typing.get_args(want)
        text = text.capitalize() if boolean and text in ("true", "false") else text
        value = text if want is str else literal(text)  # --name 1e-4 stays what was typed
        if want is tuple and type(value) not in (tuple, list):
            # --stop 42 is the text "42"; a shell passes --stop '\n' on as a backslash and an n
            breaks = text.replace("\\n", "\n").replace("\\t", "\t")
            value = text if breaks.strip() else breaks
        values[name], origin[name] = check(cls, name, value, where="command line"), "command line"

    return cls(**values), origin


def script_of(cls):
    """Return the file name of the script that a Config class belongs to."""
    return os.path.basename(inspect.getfile(cls))


def check_ranges(cfg):
    """Raise ConfigError for a value outside the range that its setting's type names."""
    for name, hint in typing.get_type_hints(type(cfg), include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            must, holds = hint.__metadata__
            refuse(not holds(getattr(cfg, name)), f"{name} = {getattr(cfg, name)} {must}")


def name_functions(value, path):
    """Replace each function in a value by "recipes/mine.py:my_reward", by which any process finds it (run_file)."""
    if isinstance(value, dict):
        return {key: name_functions(one, path) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(name_functions(one, path) for one in value)
    if not callable(value) or isinstance(value, type):
        return value
    names = [name for name, one in run_file(path).items() if one is value]
    refuse(not names, f"{path}: a function inside a setting needs a name: def my_reward(sample): ..., then my_reward")
    short = os.path.relpath(path)
    name = next((name for name in names if name == getattr(value, "__name__", "")), names[0])
    return f"{os.path.abspath(path) if short.startswith('..') else short}:{name}"


def without_folders(settings):
    """Leave out where own functions lie: a recipe may move, what its reward says may not (fingerprint)."""
    return json.loads(re.sub(r'"[^"]*\.py:([^\W\d]\w*)"', r'":\1"', json.dumps(settings, ensure_ascii=False)))


def run_file(path):
    """Run a Python file of the user's and return its names, once for each version of it."""
    stat = os.stat(path)
    return _run_file(os.path.abspath(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _run_file(path, *version):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if here not in sys.path:  # so that `from recipes.stage1 import *` works from any directory
        sys.path.insert(0, here)
    if os.path.dirname(path) not in sys.path:  # `import helper` finds helper.py beside the file; after all others
        sys.path.append(os.path.dirname(path))
    return runpy.run_path(path)


def read_recipe(path, script):
    """Run a recipe file and return its names without an underscore, as a dict."""
    if not os.path.isfile(path):
        beside = glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "*.py"))
        hint = suggest(path, beside, key=lambda file: os.path.splitext(os.path.basename(file))[0])
        raise ConfigError(f"recipe {path!r} is not there" + (f"; {hint}" if hint else ""))
    try:
        recipe = run_file(path)
        refuse_lines_that_set_nothing(path)
    except ConfigError:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""  # of the recipe, or of a file that it imports
        raise ConfigError(f"{error.filename or path}{line}: not Python: {error.msg}") from error
    except SystemExit as error:
        raise ConfigError(f"{path} ends the process itself (exit); a recipe only sets names") from error
    except Exception as error:  # a recipe is the user's Python: whatever it raises becomes one line
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    wants = recipe.get("_script") or inherited_script(path) or script
    refuse(wants != script, f"{path} is a recipe for {wants}, not {script}: run `torchrun ... {wants} {path}`")
    names = {k: v for k, v in recipe.items() if not k.startswith("_")}
    # not names: an empty file, or one with all of it below `if __name__ == "__main__":`
    refuse(not names, f"{path} sets nothing: write `name = value` lines, or leave the recipe out")
    return names


def statements_of(path):
    with open(path, "rb") as f:  # as bytes: then Python looks for the encoding itself, a BOM or a coding line
        return ast.parse(f.read()).body


def refuse_lines_that_set_nothing(path):
    """Refuse `lr: 3e-6`, `lr == 3e-6` and `{"lr": 3e-6}`, which leave lr as it was. A call, a text or a := may stay."""
    for line in statements_of(path):
        alone = line.value if isinstance(line, ast.Expr) else None
        text = isinstance(alone, ast.Constant) and isinstance(alone.value, (str, type(...)))
        if isinstance(line, ast.AnnAssign) and line.value is None or \
                alone is not None and not text and not isinstance(alone, (ast.Call, ast.NamedExpr)):
            shown = " ".join(ast.unparse(line).split())
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise ConfigError(f"{path}, line {line.lineno}: `{shown}` sets nothing: write `name = value`")


def inherited_script(path):
    """Return the _script of the recipe that `from recipes.stage1 import *` inherits, which does not bring that name."""
    stars = [node for node in statements_of(path) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    found = [getattr(sys.modules.get(node.module), "_script", None) for node in stars]
    return next((script for script in found if script), None)


def check(cls, name, value, where):
    """Return the value, cast to the setting's type where that loses nothing; else raise ConfigError."""
    hints, what = typing.get_type_hints(cls), not_plain(value)
    if name not in hints:
        near = suggest(name.lower(), hints)
        hint = f"; {near}" if near else " (--help lists them)"
        if script_of(cls) == "eval.py" and where != "command line":
            hint += "; a recipe of training is not one of eval.py: --sweep out/NAME evaluates its run"
        elif not near and where != "command line":
            hint += f"; a name of the recipe's own begins with an underscore: _{name}"
        raise ConfigError(f"{where}: {script_of(cls)} has no setting {name!r}{hint}")
    refuse(what, f"{where}: {name} is set to {what}: it wants a plain value; only reward and template take functions, "
                 "and not as keys: several rewards are [(f, 1.0), (g, 0.5)]")
    value, want = plain(value), hints[name]
    if typing.get_origin(want) is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(want)):
            return value
        choices = ", ".join(repr(choice) for choice in typing.get_args(want))
        raise ConfigError(f"{where}: {name} must be one of {choices}; got {value!r}")
    options = typing.get_args(want) if isinstance(want, types.UnionType) else (want,)
    if type(value) is int and float in options and int not in options:
        value = float(value) if abs(value) < 1e300 else float("inf")  # --lr 1 is fine
    if type(value) is float and int in options and float not in options and value.is_integer():
        value = int(value)  # --num_steps 1e3 is fine
    if type(value) is list and tuple in options:
        value = tuple(value)
    if type(value) is str and tuple in options and str not in options:
        value = (value,) if value else ()  # --stop '</answer>', stop = ("</answer>")
    if str in options and type(value) in (int, float) and type(value) not in options:
        value = str(value)  # --name 7
    if type(value) not in options and not (value is None and type(None) in options):
        wanted = " or ".join("None" if option is type(None) else option.__name__ for option in options)
        raise ConfigError(f"{where}: {name} wants {wanted}, got {value!r}")
    refuse(type(value) is float and not math.isfinite(value), f"{where}: {name} must be a finite number, got {value!r}")
    return value


def plain(value):
    """Return the plain value of numpy's and torch's scalars, paths and enums, alone or in containers."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else tuple(map(plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # np.float64(1e-6), torch.tensor(1e-6)
        return value.item()
    return value


def not_plain(value):
    """Return "the function f" for a value that no file can hold, alone or in a container; "" for any other."""
    if isinstance(value, (dict, list, tuple, set)):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return next((what for one in inside if (what := not_plain(one))), "")
    for what, types_of_it in {"class": type, "module": types.ModuleType}.items():
        if isinstance(value, types_of_it):
            return f"the {what} {value.__name__}"
    return f"the function {getattr(value, '__name__', type(value).__name__)}" if callable(value) else ""


def literal(text):
    """Read `1e-6` as float, `True` as bool, `(1, 2)` as tuple, `{"a": true}` as dict, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def own_and_inherited(cls):
    """Return the fields of a Config, in two lists: those of the script itself, and those of every run."""
    own = cls.__dict__.get("__annotations__", {})
    return [[f for f in dataclasses.fields(cls) if (f.name in own) == its] for its in (True, False)]


def table(cfg, origin, only=None):
    """Return one line a setting (only: of these): name, value, and the origin of what is not a default."""
    lines = []
    for f in sum(own_and_inherited(type(cfg)), []):
        note = f"# {origin[f.name]}; default {f.default!r}" if f.name in origin else ""
        if only is None or f.name in only:
            lines.append(f"{f.name:>22} = {getattr(cfg, f.name)!r:<28}  {note}".rstrip())
    return "\n".join(lines)
