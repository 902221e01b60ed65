"""
Defaults < recipe < command line, for a frozen flat dataclass. From a script:

    cfg, origin = load_config(Config)                 # reads sys.argv

    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo.py --lr 2e-6 --name my-run

A recipe is a plain Python file of `name = value` lines; `from recipes.stage1 import *` inherits. Every name must
be a field of Config and every value plain: a misspelled name is an error, in a recipe as on the command line, and so
is a function. Names with an underscore and imported modules are the recipe's own. Nothing is executed into the
caller's namespace; the result is one frozen instance, and `origin` says where each value came from.
"""

import ast
import dataclasses
import enum
import inspect
import json
import os
import runpy
import sys
import types
import typing

from onebox.text import suggest


class ConfigError(SystemExit):
    """Bad recipe, flag or input: one line on stderr that says what, where and the fix. rundir.entry ends the process with
    exit_code (docs/faults.md has the table), plain Python with 1."""

    def __init__(self, message, exit_code=1):
        # one line, whatever a library's message or the repr of an array holds
        super().__init__("error: " + " ".join(line.strip() for line in str(message).splitlines()))
        self.exit_code = exit_code


def load_config(cls, argv=None):
    """-> (cfg, {name: origin}); raises ConfigError. `cls.__module__` names the script in messages."""
    script = os.path.basename(inspect.getfile(cls))
    argv = list(sys.argv[1:] if argv is None else argv)
    values, origin = {}, {}
    if "--help" in argv or "-h" in argv:
        print(describe(cls, script))
        raise SystemExit(0)

    # 1) recipe: at most one positional argument, before the flags
    if argv and not argv[0].startswith("-"):
        path = argv.pop(0)
        settings = typing.get_type_hints(cls)
        # settings first: of `def f` and `reward = f` the second is the one to tell
        for name, value in sorted(read_recipe(path, script).items(), key=lambda item: item[0] not in settings):
            if isinstance(value, types.ModuleType) and name not in settings:
                continue  # `import math` to compute a value
            values[name], origin[name] = check(cls, name, value, where=path), path

    # 2) command line: --name value, --name=value, or a bare --flag for True
    while argv:
        flag, equals, text = argv.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"command line: expected --name value, got {flag!r} (a recipe file comes first)")
        name = flag[2:].replace("-", "_")
        want = typing.get_type_hints(cls).get(name)
        if not equals:
            bare = not argv or argv[0].startswith("--")
            if bare and want is str:
                raise ConfigError(f"command line: {flag} wants a value")
            text = "True" if bare else argv.pop(0)
        text = text.capitalize() if text in ("true", "false") and want is bool else text
        value = text if want is str else literal(text)  # --name 1e-4 stays what was typed
        if want is tuple and type(value) not in (tuple, list):
            # --stop 42 is the text "42"; a shell hands --stop '\n' over as a backslash and an n
            value = text.replace("\\n", "\n").replace("\\t", "\t") if not text.replace("\\n", "").replace("\\t", "") else text
        values[name], origin[name] = check(cls, name, value, where="command line"), "command line"

    return cls(**values), origin


def read_recipe(path, script):
    """The names of a recipe file without an underscore, and their values, as a dict."""
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        known = sorted(f for f in os.listdir(folder) if f.endswith(".py")) if os.path.isdir(folder) else []
        hint = suggest(path, [os.path.join(folder, f) for f in known])
        hint = f"; {hint}" if hint else ""
        raise ConfigError(f"recipe {path!r} is not there{hint}")
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if here not in sys.path:  # so that `from recipes.stage1 import *` works from any directory
        sys.path.insert(0, here)
    try:
        recipe = runpy.run_path(path)
        refuse_lines_that_set_nothing(path)
    except ConfigError:
        raise
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else path
        raise ConfigError(f"{where}: not Python: {error.msg}") from error
    except SystemExit as error:
        raise ConfigError(f"{path} ends the process itself (exit); a recipe only sets names") from error
    except Exception as error:  # a recipe is the user's Python: whatever it raises is told in one line
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    wants = recipe.get("_script") or inherited_script(path) or script
    if wants != script:
        raise ConfigError(f"{path} is a recipe for {wants}, not {script}: run `torchrun ... {wants} {path}`")
    names = {k: v for k, v in recipe.items() if not k.startswith("_")}
    if not names:  # an empty file, or one with all of it below `if __name__ == "__main__":`
        raise ConfigError(f"{path} sets nothing: write `name = value` lines, or leave the recipe out")
    return names


def refuse_lines_that_set_nothing(path):
    """`lr: 3e-6`, `lr == 3e-6` and `{"lr": 3e-6}` are Python, but leave lr as it was. A call, a text or a := may stand alone."""
    with open(path, "rb") as f:  # as bytes: then Python looks for the encoding itself, a BOM or a coding line
        lines = ast.parse(f.read()).body
    for line in lines:
        alone = line.value if isinstance(line, ast.Expr) else None
        text = isinstance(alone, ast.Constant) and isinstance(alone.value, (str, type(...)))
        if isinstance(line, ast.AnnAssign) and line.value is None or \
                alone is not None and not text and not isinstance(alone, (ast.Call, ast.NamedExpr)):
            shown = " ".join(ast.unparse(line).split())
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise ConfigError(f"{path}, line {line.lineno}: `{shown}` sets nothing: write `name = value`")


def inherited_script(path):
    """`from recipes.stage1 import *` does not bring names with an underscore: ask that module for its _script."""
    with open(path, "rb") as f:
        imports = [node for node in ast.parse(f.read()).body if isinstance(node, ast.ImportFrom)]
    found = [getattr(sys.modules.get(node.module), "_script", None) for node in imports if node.names[0].name == "*"]
    return next((script for script in found if script), None)


def check(cls, name, value, where):
    """Return value, cast to the field's type where that loses nothing; else raise ConfigError."""
    hints = typing.get_type_hints(cls)
    if name not in hints:
        hint = suggest(name, hints)
        hint = f"; {hint}" if hint else " (--help lists them)"
        hint += f"; a helper's name begins with an underscore: _{name}" if not_plain(value) else ""
        raise ConfigError(f"{where}: {os.path.basename(inspect.getfile(cls))} has no setting {name!r}{hint}")
    if what := not_plain(value):
        raise ConfigError(f"{where}: {name} is set to {what}: settings are plain values, so give the name of "
                          f"one that exists, as in {name} = 'name'")
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
    if type(value) is float and not abs(value) < float("inf"):
        raise ConfigError(f"{where}: {name} must be a finite number, got {value!r}")
    return value


def plain(value):
    """The plain value that a recipe's value stands for: numpy's and torch's scalars, paths, enums of text or numbers, dicts."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else tuple(map(plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # np.float64(1e-6), np.array(1e-6), torch.tensor(1e-6)
        return value.item()
    return value


def not_plain(value):
    """ "the function f" for a value that no file can hold (a function, a class, a module), alone or inside another; else ""."""
    if isinstance(value, (dict, list, tuple, set)):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return next((what for one in inside if (what := not_plain(one))), "")
    for what, types_of_it in {"class": type, "module": types.ModuleType}.items():
        if isinstance(value, types_of_it):
            return f"the {what} {value.__name__}"
    return f"the function {getattr(value, '__name__', type(value).__name__)}" if callable(value) else ""


def literal(text):
    """`1e-6` -> float, `True` -> bool, `(1, 2)` -> tuple, `{"a": true}` -> dict, anything else stays the string it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def comments(cls):
    """{field: the comment that stands behind it in the source}: the comment is the documentation."""
    found = {}
    names = {f.name for f in dataclasses.fields(cls)}
    for line in inspect.getsource(cls).splitlines():
        code, _, comment = line.partition("  # ")
        name = code.split(":")[0].strip()
        if name in names:
            found[name] = comment.strip()
    return found


def describe(cls, script):
    """The text of --help: every setting, its default and its comment."""
    notes = comments(cls)
    lines = [f"usage: torchrun --nproc-per-node=N {script} [recipes/NAME.py] [--setting value ...]", ""]
    for f in dataclasses.fields(cls):
        lines.append(f"  --{f.name:<22} {f.default!r:<18} {notes.get(f.name, '')}".rstrip())
    return "\n".join(lines)


def table(cfg, origin):
    """One line a setting: name, value, and the origin of what is not a default."""
    lines = []
    for f in dataclasses.fields(cfg):
        note = f"# {origin[f.name]}; default {f.default!r}" if f.name in origin else ""
        lines.append(f"{f.name:>22} = {getattr(cfg, f.name)!r:<28}  {note}".rstrip())
    return "\n".join(lines)
