"""
Lightweight is a promise with numbers. They are computed here, from the import graph and the syntax tree; README quotes
them. `python tests/test_budget.py` prints the table and README's sentence.
"""

import ast
import dataclasses
import difflib
import functools
import io
import os
import sys
import tokenize

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # also when it is run as a script

DOOR = ["data.py", "eval.py", "policy.py", "rewards.py", "rollout.py", "sft.py", "train_grpo.py", "train_ppo.py"]
STATIONS = ["train_grpo.py", "data.py", "rollout.py", "rewards.py", "policy.py"]  # what one step runs through
BUDGET = {
    "files at the door": 8,
    "lines a step runs through": 1900,
    "lines a training process imports, without tasks/": 5000,  # the goal is 3,300: lower it whenever it can be lowered
    "lines of the loop": 80,
    "statements of the loop": 65,
    "names of the loop": 30,
    "changed lines of the two scripts": 220,
    "hunks that only rename": 0,
    "settings of GRPO": 48,
    "lines of the longest file": 550,
    "lines of README": 150,
}


def read(path):
    with open(os.path.join(ROOT, path)) as f:
        return f.read()


def lines(path):
    return len(read(path).splitlines())


def file_of(module):
    """The file of a module of this repository, or None."""
    for path in (module.replace(".", "/") + ".py", module.replace(".", "/") + "/__init__.py"):
        if os.path.exists(os.path.join(ROOT, path)):
            return path
    return None


def imports(path):
    """The files of this repository that a file imports, at its top or inside a function, but for tools/."""
    names = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {file for name in names if (file := file_of(name)) and not file.startswith("tools/")}


def closure(path):
    """A file and all that it imports, directly or through others."""
    found, todo = set(), [path]
    while todo:
        if (file := todo.pop()) not in found:
            found.add(file)
            todo += imports(file)
    return found


def imports_of_tools(path):
    """The lines that import from tools/, and whether each stands inside a function or below `if __name__ == ...`."""
    tree = ast.parse(read(path))
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy += [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    return [(f"{path}:{node.lineno}", any(outer.lineno < node.lineno <= outer.end_lineno for outer in lazy))
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tools")]


def training_loop(path):
    """The `for step in ...` loop of a script's main()."""
    functions = [node for node in ast.parse(read(path)).body if isinstance(node, ast.FunctionDef)]
    main = next(node for node in functions if node.name == "main")
    return next(node for node in main.body if isinstance(node, ast.For) and node.target.id == "step")


def names_of(loop):
    return {node.id for node in ast.walk(loop) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def hunks(a, b):
    """[(removed lines, added lines)] of the difference between two files."""
    a, b = read(a).splitlines(), read(b).splitlines()
    changes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return [(a[i:j], b[k:m]) for tag, i, j, k, m in changes if tag != "equal"]


def without_names(code):
    """The tokens of some lines, every identifier replaced by one sign, comments left out."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO("\n".join(line.strip() for line in code)).readline))
    except tokenize.TokenError:  # a piece of a statement
        return None
    kinds = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return ["a name" if t.type == tokenize.NAME else t.string for t in tokens if t.type not in kinds]


def only_renames(removed, added):
    before, after = without_names(removed), without_names(added)
    return bool(removed and added) and before is not None and before == after


@functools.cache
def measured():
    import train_grpo
    from onebox.rundir import RunSettings

    loop = training_loop("train_grpo.py")
    changes = hunks("train_grpo.py", "train_ppo.py")
    imported = [file for file in closure("train_grpo.py") if not file.startswith("tasks/")]
    of_runs = {field.name for field in dataclasses.fields(RunSettings)}
    return {
        "files at the door": len(at_the_door()),
        "lines a step runs through": sum(map(lines, STATIONS)),
        "lines a training process imports, without tasks/": sum(map(lines, imported)),
        "lines of the loop": loop.end_lineno - loop.lineno + 1,
        "statements of the loop": sum(isinstance(node, ast.stmt) for node in ast.walk(loop)),
        "names of the loop": len(names_of(loop)),
        "changed lines of the two scripts": sum(len(removed) + len(added) for removed, added in changes),
        "hunks that only rename": sum(only_renames(*change) for change in changes),
        "settings of GRPO": len([f for f in dataclasses.fields(train_grpo.Config) if f.name not in of_runs]),
        "lines of the longest file": max(map(lines, product_files())),
        "lines of README": lines("README.md"),
    }


def product_files():
    """Every Python file but tests, benchmarks and results."""
    found = list(at_the_door())
    for top in ("onebox", "tasks", "tools", "recipes", "experiments"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name.endswith(".py")]
    return found


def at_the_door():
    return sorted(name for name in os.listdir(ROOT) if name.endswith(".py"))


def test_the_door_shows_the_cycle():
    assert at_the_door() == DOOR


@pytest.mark.parametrize("what", BUDGET)
def test_every_budget_is_kept(what):
    assert measured()[what] <= BUDGET[what], f"{what}: {measured()[what]}, the budget is {BUDGET[what]}"


def test_a_run_needs_nothing_of_tools():
    """
    tools/ may be deleted: what training imports names it only inside a function, for --check, --dry_step and the like.
    """
    found = [place for file in closure("train_grpo.py") for place in imports_of_tools(file)]
    assert found and all(lazy for _, lazy in found), found


def test_imports_run_down():
    """From tasks/ and onebox/ nothing is imported that stands above them, inside a function neither."""
    up = {(file, other) for file in product_files() for folders in [("onebox/",), ("tasks/", "onebox/")]
          if file.startswith(folders[0]) for other in imports(file) if not other.startswith(folders)}
    assert up == {("onebox/metrics.py", "tasks/words.py")}, up


def test_tasks_need_no_torch():
    for file in (f for f in product_files() if f.startswith("tasks/")):
        assert not {name.split(".")[0] for name in imports_by_name(file)} & {"torch", "vllm", "transformers"}, file


def imports_by_name(path):
    names = set()
    for node in ast.parse(read(path)).body:
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    return names


def test_no_line_is_longer_than_120_columns():
    others = [f"{folder}/{name}" for folder in ("tests", "bench") for name in os.listdir(os.path.join(ROOT, folder))]
    for file in [*product_files(), *(f for f in others if f.endswith(".py"))]:
        long = [i for i, line in enumerate(read(file).splitlines(), 1) if len(line) > 120]
        assert not long, f"{file}: lines {long}"


def sentence():
    """What README says, with today's numbers, to the nearest 50 lines, so that not every edit changes it."""
    now = measured()
    step, imported = (round(now[what] / 50) * 50 for what in ("lines a step runs through",
                                                              "lines a training process imports, without tasks/"))
    scoring = round(lines("tasks/scoring.py") / 50) * 50
    return (f"A training step runs through five files of {step:,} lines, and `tasks/scoring.py` of {scoring}; all that "
            f"a training process imports, without `tasks/`, is {imported:,} lines; the loop of `train_grpo.py` has "
            f"{now['lines of the loop']} lines, {now['statements of the loop']} statements and "
            f"{now['names of the loop']} names.")


def test_readme_says_the_size_of_the_code_as_it_is():
    assert sentence() in " ".join(read("README.md").split()), f"README must say: {sentence()}"


def test_readme_names_every_file_at_the_door():
    assert not [name for name in DOOR if f"`{name}`" not in read("README.md")]


def table():
    rows = [f"| {what} | {measured()[what]:,} | {BUDGET[what]:,} |" for what in BUDGET]
    return "\n".join(["| what | now | budget |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
    print(sentence())
    for file in sorted(closure("train_grpo.py"), key=lines):
        print(f"{lines(file):6,}  {file}")
