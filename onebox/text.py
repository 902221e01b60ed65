"""
Text in messages: hostile text made printable, and the nearest known name. No torch here.
"""

import difflib


def visible(text):
    """Escape control characters, which could move a cursor: all but newline and tab become \\x1b and the like."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def excerpt(value, most=100):
    """Shorten a text, or any value's repr, to one line of `most` characters: escaped, and cut in the middle."""
    text = ascii(value)
    text = text[1:-1].replace("\\\\", "\\") if isinstance(value, str) else text
    return text if len(text) <= most else f"{text[:most // 2]} ... {text[5 + most // 2 - most:]}"


def suggest(name, known, key=str):
    """Return "did you mean 'math'?" for the known name nearest to `name` by its key, or "" if none is near."""
    names = {key(one): one for one in known}
    near = difflib.get_close_matches(key(name), names, n=1)
    return f"did you mean {names[near[0]]!r}?" if near else ""
