"""
What all tasks share: where rows come from (Source), why one is left out (BadRow), and files of rows: JSON Lines, JSON,
Parquet, Arrow, CSV or TSV, the text ones also as .gz, .bz2 or .xz.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
from dataclasses import dataclass

import numpy as np

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


HELD_OUT = 8  # of made-up problems one in 8 is for testing


def is_held_out(text):
    """Tell whether a made-up problem belongs to the test split: by the hash of its text, so the splits never meet."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT == 0


class BadRow(Exception):
    """The reason why a row is left out, and under which it is counted. An unreadable line of a file becomes one."""

    def __init__(self, reason, line=b""):
        super().__init__(reason)
        self.line = line


def look_up(row, column):
    """Return row["a.b"], or row["a"]["b"]; None where it is not there."""
    for key in [column] if column in row else column.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def filled(value):
    """Tell whether a field holds something: it is not null, blank or NaN, which is how tables write null."""
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
    print0("\n    ".join([f"{text}: left out", *shown]))


def print0(text):
    """Print on rank 0, without torch."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


# ---------------------------------------------------------------- files

PACKED = {".gz": (b"\x1f\x8b", gzip.decompress), ".bz2": (b"BZh", bz2.decompress),
          ".xz": (b"\xfd7zXZ", lzma.decompress)}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv")
# What a file is that is no table of rows, by how it begins
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the data: run `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive or an Excel table: unpack it, or save it as CSV",
    b"(\xb5/\xfd": "compressed with Zstandard: unzstd it",
    b"\xff\xfe\0\0": "UTF-32: save it as UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"<": "a page of HTML or XML, perhaps an error page",
    b"%PDF": "a PDF", b"SQLite format": "an SQLite database", b"\x93NUMPY": "a NumPy array", b"\x80": "a Python pickle",
}


def stem_and_suffix(file):
    """Split "a/Train.JSONL.gz" into ("Train", ".jsonl")."""
    stem, suffix = os.path.splitext(file.name)
    if suffix.lower() in PACKED:
        stem, suffix = os.path.splitext(stem)
    return stem, suffix.lower()


def data_files(folder):
    """List the files of rows in a directory and right below it, without hidden ones and save_to_disk's other files."""
    return [f for f in sorted([*folder.glob("*"), *folder.glob("*/*")])
            if f.is_file() and stem_and_suffix(f)[1] in SUFFIXES
            and not any(part.startswith((".", "__MACOSX")) for part in f.relative_to(folder).parts)
            and stem_and_suffix(f)[0] not in ("dataset_info", "dataset_infos", "dataset_dict", "state")]


def read_file(file):
    """
    Read one file as [(line or row number from 1, row)]. What is no row becomes a BadRow in its place; DataError where
    nothing can be read. Parquet and compressed files are known by how they begin, the rest by the suffix.
    """
    suffix = stem_and_suffix(file)[1]
    try:
        with open(file, "rb") as f:
            start = f.read(64)
        refuse_foreign(start)
        if start.startswith(b"PAR1"):
            return list(enumerate(read_parquet(file), 1))
        if suffix == ".arrow":
            return list(enumerate(read_arrow(file), 1))
        raw = file.read_bytes()
        for magic, unpack in PACKED.values():
            raw = unpack(raw) if start.startswith(magic) else raw
        refuse_foreign(raw)
        if suffix == ".parquet" and raw or b"\0" in raw[:1000]:
            raise ValueError("it is no Parquet file" if suffix == ".parquet" else "it is not text, or UTF-16")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        if suffix in (".csv", ".tsv"):
            return read_csv(raw.decode("utf-8"), suffix)
        if raw.lstrip()[:1] == b"[" or suffix == ".json" and raw.strip():
            return read_json(raw, suffix)
        return read_jsonl(raw)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"cannot read {str(file)!r}: line {line} is not UTF-8: save the file as UTF-8 (iconv -f LATIN1 "
                        "-t UTF-8)") from error
    except Exception as error:  # pyarrow, datasets, csv, gzip and lzma each have their own; all mean the same here
        raise DataError(f"cannot read {str(file)!r}: {excerpt(str(error), 200)}") from error


def refuse_foreign(raw):
    """Raise ValueError, which says what it is, for a file that is no table of rows."""
    for magic, what in FOREIGN.items():
        if raw.startswith(magic):
            raise ValueError(f"it is {what}")


def read_jsonl(raw):
    """Read one JSON object a line."""
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line.decode("utf-8"))))
            except (ValueError, RecursionError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                rows.append((number, BadRow(reason, line)))
    return rows


def read_json(raw, suffix):
    """Read one list of objects, or else lines: many files of lines are called .json."""
    try:
        rows = json.loads(raw.decode("utf-8"))
    except json.JSONDecodeError:
        rows = read_jsonl(raw)
        if all(isinstance(row, BadRow) for _, row in rows):
            raise
        return rows
    if isinstance(rows, list):
        return list(enumerate(rows, 1))
    if suffix != ".json" or b"\n" not in raw.strip():
        return read_jsonl(raw)
    there = f"one object with {', '.join(map(repr, list(rows)[:6]))}" if isinstance(rows, dict) else "no list"
    raise ValueError(f"a .json file must hold one list of objects, this one holds {there}")


def read_csv(text, suffix):
    """Read a row a line. The first line has the names; the separator is the one that it has most of."""
    csv.field_size_limit(1 << 30)
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True,
                            delimiter="\t" if suffix == ".tsv" else max(",;\t", key=head.count))
    names = [name.strip() for name in reader.fieldnames or ()]
    if len(set(names)) != len(names):
        raise ValueError(f"two columns have one name: {', '.join(names)}")
    reader.fieldnames = names
    rows = []
    try:
        for row in reader:
            whole = None not in row and None not in row.values()
            rows.append((reader.line_num, row if whole else BadRow(f"not the {len(names)} fields of the first line",
                                                                   str(list(row.values())).encode())))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    return rows


def read_parquet(file):
    import pyarrow.parquet

    return rows_of(pyarrow.parquet.read_table(file))


def rows_of(table):
    """Return the rows of an Arrow table as dicts. 0.1 of a float32 column stays 0.1, not 0.10000000149011612."""
    rows = table.to_pylist()
    for name, kind in zip(table.schema.names, map(str, table.schema.types), strict=True):
        if "float" in kind and "double" not in kind:  # Arrow's names are halffloat, float and double
            for row in rows:
                row[name] = shortest(row[name], np.float16 if "halffloat" in kind else np.float32)
    return rows


def shortest(value, kind):
    """Return the shortest float that a number of this numpy type is read from, inside lists and dicts too."""
    if isinstance(value, dict):
        return {key: shortest(one, kind) for key, one in value.items()}
    if isinstance(value, list):
        return [shortest(one, kind) for one in value]
    return float(str(kind(value))) if isinstance(value, float) else value


def read_arrow(file):  # what Dataset.save_to_disk writes
    import datasets

    return rows_of(datasets.Dataset.from_file(str(file)).data.table)
