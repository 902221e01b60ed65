"""
The text of --help: the comment behind each setting is its documentation.
"""

import dataclasses
import inspect
import typing

from onebox.config import own_and_inherited


def comments(cls):
    """Return {setting: the comment behind it in the source}, inherited ones too."""
    found, names = {}, {f.name for f in dataclasses.fields(cls)}
    for part in (part for part in reversed(cls.__mro__) if dataclasses.is_dataclass(part)):
        for line in inspect.getsource(part).splitlines():
            code, _, comment = line.partition("  # ")
            if (name := code.split(":")[0].strip()) in names:
                found[name] = comment.strip()
    return found


def describe(cls, script):
    """Return the text of --help: every setting, its default and its comment; the script's own settings first."""
    notes = comments(cls)
    hints = typing.get_type_hints(cls)
    choices = {name: " | ".join(map(str, typing.get_args(hint))) for name, hint in hints.items()
               if typing.get_origin(hint) is typing.Literal}
    parts = ["\n".join(f"  --{f.name:<22} {f.default!r:<18} {notes.get(f.name, '')}".rstrip()
                       + (f" [{choices[f.name]}]" if f.name in choices else "") for f in part)
             for part in own_and_inherited(cls)]
    usage = f"usage: torchrun --nproc-per-node=N {script} [recipes/NAME.py] [--setting value ...]"
    return f"{usage}\n\n{parts[0]}" + (f"\n\nof every run:\n{parts[1]}" if parts[1] else "")
