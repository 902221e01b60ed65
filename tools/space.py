"""
A search space as a Python file, tools/search_space.py for one, and what is drawn from it as settings of a run.

In memory it is {setting: (kind, candidates)}. What was drawn, {setting: factor, value or index of a choice}, is JSON.
"""

import importlib
import math
import os
import types

from onebox.config import name_functions, plain, refuse, run_file
from onebox.text import suggest

KINDS = {"times": "two factors above 0, the smaller first", "between": "two numbers, the smaller first",
         "one of": "one value or more", "times one of": "one factor or more, above 0"}
NUMBERS = (int, float)


def read_space(path, cfg, script):
    """Return ({setting: (kind, candidates)}, [settings left out, as only the other script has them])."""
    refuse(not os.path.isfile(path), f"--space {path!r} is not there: copy tools/search_space.py and edit the copy")
    other = importlib.import_module({"train_grpo.py": "train_ppo", "train_ppo.py": "train_grpo"}[script]).Config
    space, left_out = {}, []
    for name, line in run_file(path).items():
        if name.startswith("_") or callable(line) or isinstance(line, types.ModuleType):
            continue
        where = f"{path}: {name}"
        if name in vars(cfg):
            space[name] = read_line(name_functions(line, path), name, getattr(cfg, name), where)
        else:
            near = suggest(name, vars(cfg))
            refuse(not hasattr(other, name), f"{where} is no setting" + (f"; {near}" if near else ""))
            left_out.append(name)
    refuse(not space, f"{path} searches no setting of {script}: write lines as in tools/search_space.py")
    return space, left_out


def read_line(line, name, base, where):
    """Return (kind, candidates) of a line; base is the recipe's own value, which is always one of the candidates."""
    kind, *values = map(plain, line) if isinstance(line, (tuple, list)) and line else ("",)
    refuse(kind not in KINDS, f"{where} = {line!r} must begin with one of {', '.join(map(repr, KINDS))}")
    choice, factor = "one of" in kind, "times" in kind
    ok = len(values) >= 1 if choice else len(values) == 2
    if factor or not choice:
        ok = ok and all(type(value) in NUMBERS for value in values) and (not factor or min(values) > 0)
    ok = ok and (choice or values[0] < values[1])
    refuse(not ok, f"{where}: {kind!r} wants {KINDS[kind]}; got {', '.join(map(repr, values))}")
    refuse(name in ("name", "num_steps", "seed") or name.startswith("eval_"),
           f"{where} cannot be searched: trials would not be measured alike")
    refuse((factor or not choice) and (type(base) not in NUMBERS or factor and base <= 0),
           f"{where}: the recipe has {base!r}, of which {kind!r} can make nothing: use 'one of'")
    own = 1 if factor else base
    refuse(not choice and not values[0] <= own <= values[1],
           f"{where}: {own!r}, the recipe's own, must lie between {' and '.join(map(repr, values))}: it is trial 0")
    return kind, values if not choice or own in values else [own, *values]


def own_draw(space, cfg):
    """Return what trial 0 draws, the recipe's own values."""
    own = {name: 1 if "times" in kind else getattr(cfg, name) for name, (kind, _) in space.items()}
    return {name: values.index(own[name]) if "one of" in kind else float(own[name])
            for name, (kind, values) in space.items()}


def distributions(space):
    """Return the space in Optuna's words. Choices are drawn by their index, so that True and 1 are two."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    return {name: CategoricalDistribution(range(len(values))) if "one of" in kind else
            FloatDistribution(*map(float, values), log=kind == "times") for name, (kind, values) in space.items()}


def settings_of(space, drawn, cfg):
    """
    Turn what was drawn into the settings that differ from the recipe's, {name: value}. Impossible ones are repaired.

    A group_size keeps the samples of a step: it becomes the nearest divisor of them, at least 2 where the recipe has
    groups. updates_per_step becomes the largest number, at most itself, that divides the prompts.
    """
    found = {name: value_of(*space[name], drawn[name], getattr(cfg, name)) for name in drawn}
    if "group_size" in found and "prompts_per_step" not in found:
        samples, wanted = cfg.prompts_per_step * cfg.group_size, max(1, found["group_size"])
        sizes = [n for n in range(min(2, cfg.group_size), samples + 1) if samples % n == 0]
        found["group_size"] = min(sizes, key=lambda n: (abs(math.log(n / wanted)), n))
        found["prompts_per_step"] = samples // found["group_size"]
    prompts = found.get("prompts_per_step", cfg.prompts_per_step)
    updates = found.get("updates_per_step", cfg.updates_per_step)
    found["updates_per_step"] = next(n for n in range(min(updates, prompts), 0, -1) if prompts % n == 0)
    return {name: value for name, value in found.items() if value != getattr(cfg, name)}


def value_of(kind, values, drawn, base):
    """Return the value of one setting: an integer where the recipe has one, else 3 digits of what is not a choice."""
    value = values[drawn] if "one of" in kind else drawn
    if kind == "one of" or "times" in kind and value == 1:
        return value if kind == "one of" else base
    value = base * value if "times" in kind else value
    return max(round(value), int("times" in kind)) if type(base) is int else float(f"{value:.3g}")


def line_of(name, kind, values):
    """Write a line of the space for people."""
    form = [f"{value:.3g}" if type(value) is float else str(value) for value in values]
    sign = " x" if "times" in kind else ""
    return f"{name}{sign} {' | '.join(form) if 'one of' in kind else ' ... '.join(form)}"
