"""
What all tasks share: where rows come from (Source), why one is left out (BadRow), and when there are too many such
rows.
"""

import os
from dataclasses import dataclass

from onebox.config import ConfigError
from onebox.text import excerpt

MAX_BAD = 0.01  # share of bad rows above which loading stops
MAX_CHARS = 100_000  # of a question; the longest public problem has 10,000, so a longer one is a broken file


@dataclass(frozen=True)
class Source:
    """Where the rows of one name of `data` come from: a public set (hub), a generator (hub and gold None) or a path."""

    splits: dict  # our split -> the hub's name for it
    hub: str | None = None  # id on the Hugging Face hub
    config: str | None = None
    gold: object = None  # row -> gold, or a list of acceptable ones; of math problems
    files: str | None = None  # one file of the hub repository instead of its default
    argument: str = ""  # regex of what may follow the name, as in countdown:1000 and kk:3-7
    example: str = ""  # the name to suggest, where it needs an argument
    uid: str = ""  # of its prompts, where it is not the name: "kk:{level}"
    slices: dict | None = None  # split -> slice of the rows, where a larger file than these is the whole published set


class DataError(ConfigError):
    """Data that cannot be used: one line on stderr that says what, where and the fix; exit code 2."""

    def __init__(self, message):
        super().__init__(message, exit_code=2)


class BadRow(Exception):
    """The reason why a row is left out, and under which it is counted. An unreadable line of a file becomes one."""

    def __init__(self, reason, line=b""):
        super().__init__(reason)
        self.line = line


def filled(value):
    """Whether a field holds something: it is not null, blank or NaN, which is how tables write null."""
    return value is not None and value == value and bool(value.strip() if isinstance(value, str) else True)


def clean_text(text, field):
    """Return the text of a field; raise BadRow unless it is a string that a prompt can hold."""
    if not isinstance(text, str):
        raise BadRow(f"{field} is not a string")
    if not text.strip():
        raise BadRow(f"empty {field}")
    if len(text) > MAX_CHARS:
        raise BadRow(f"{field} of more than {MAX_CHARS:,} characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise BadRow(f"{field} is not valid Unicode")
    return text


def report_bad(name, split, total, bad, spare=0, hint=""):
    """
    Print how many rows are bad, by reason, and the first three; DataError if more than 1 % of `total`, and more than
    `spare`.

    bad  [(index, reason, row)]
    """
    if not bad:
        return
    reasons = [reason for _, reason, _ in bad]
    counts = ", ".join(f"{reasons.count(reason):,} {reason}" for reason in dict.fromkeys(reasons))
    text = f"data {name!r}, split {split!r}: {len(bad):,} of {total:,} rows are bad ({counts})"
    shown = [f"row {index}: {reason}: {excerpt(row.line if isinstance(row, BadRow) else row)}"
             for index, reason, row in bad[:3]]
    if len(bad) > max(MAX_BAD * total, spare):
        raise DataError(f"{text}, more than {MAX_BAD:.0%}: fix the rows or the setting{hint}; {'; '.join(shown)}")
    if os.environ.get("RANK", "0") == "0":
        print(f"{text}: left out", *shown, sep="\n    ")
