"""
What README says of the code's size is computed here, from the import graph and the syntax tree, and never written by hand.

    python tests/test_budget.py        # prints the sentence for README and the table
"""

import ast
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def tree_of(name):
    with open(os.path.join(ROOT, name)) as f:
        return ast.parse(f.read())


def count_lines(name):
    with open(os.path.join(ROOT, name)) as f:
        return sum(1 for _ in f)


def at_the_door():
    return sorted(name for name in os.listdir(ROOT) if name.endswith(".py"))


def imports(name):
    """The files of this repository that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree_of(name)):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    return {f"{module}.py" for module in names if f"{module}.py" in at_the_door()}


def closure(name):
    """A file and all that it imports, directly or through others."""
    found, todo = set(), [name]
    while todo:
        if (file := todo.pop()) not in found:
            found.add(file)
            todo += imports(file)
    return found


def training_loop(name):
    """The loop over steps in a script's main()."""
    main = next(node for node in tree_of(name).body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return next(node for node in main.body if isinstance(node, ast.For) and node.target.id == "step")


def size_of_the_loop(name):
    loop = training_loop(name)
    names = {node.id for node in ast.walk(loop) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return loop.end_lineno - loop.lineno + 1, sum(isinstance(node, ast.stmt) for node in ast.walk(loop)), len(names)


def sentence():
    """What README says, with today's numbers; lines of all files to the nearest 200, so that not every edit changes it."""
    files = closure("train_grpo.py")
    lines, statements, names = size_of_the_loop("train_grpo.py")
    total = round(sum(map(count_lines, files)) / 200) * 200
    return (f"A training process imports {len(files)} of the {len(at_the_door())} files, about {total:,} lines; "
            f"the loop of `train_grpo.py` has {lines} lines, {statements} statements and {names} names.")


def test_readme_says_the_size_of_the_code_as_it_is():
    with open(os.path.join(ROOT, "README.md")) as f:
        text = " ".join(f.read().split())
    assert sentence() in text, f"README must say: {sentence()}"


def test_readme_names_every_file_at_the_door():
    with open(os.path.join(ROOT, "README.md")) as f:
        table = "\n".join(line for line in f if line.startswith("|"))
    missing = [name for name in at_the_door() if not re.search(rf"`{re.escape(name)}`", table)]
    assert not missing


if __name__ == "__main__":
    print(sentence())
    for name in sorted(closure("train_grpo.py"), key=count_lines):
        print(f"{count_lines(name):6,}  {name}")
