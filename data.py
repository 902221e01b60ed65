"""
Rows of every data set -> Prompt: what to ask, its token ids, and the answer the reward wants; and in which order.

    python data.py countdown --count 5 --seed 1                     print rows
    python data.py gsm8k --split test --template unsloth_gsm8k      print rendered prompts
    python data.py --leak math_12k math500 aime24 [--path NAME=PATH ...]    train set, then test sets

    name                    a source of SOURCES or a generator; "math@3-5" keeps levels 3 to 5, "math@Algebra" a subject
    countdown, countdown:N  N generated rows (20,480), TinyZero's task; with a path, rows of the published set
    tiny_countdown          the demo's task, three numbers with + and -
    kk:3, kk:3-7            Knights and Knaves of 3 (3 to 7) people; splits train, test, official_test
    custom                  rows of your own with `question`, `problem` or `prompt`, and `answer`, `ground_truth`, verl's
                            `reward_model` or a \\boxed{} in `solution`

Files are JSON Lines, JSON, Parquet, Arrow, CSV or TSV, the text ones also as .gz, .bz2 or .xz. Rows are plain dicts. Bad
ones are counted, shown and left out; more than 1 % of them is an error. No torch here.
"""

import argparse
import bz2
import csv
import dataclasses
import decimal
import difflib
import fractions
import functools
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import socket
import sys
import urllib.parse
from pathlib import Path

import numpy as np

from onebox.config import ConfigError
from tasks.puzzles import GENERATED, countdown, countdown_fields, generate, knights_and_knaves, solvable, tiny_countdown
from rewards import READS, boxes
from tasks.templates import TEMPLATES, build_prompt, encode_prompt, special_tokens

__all__ = ["countdown", "solvable", "tiny_countdown", "knights_and_knaves", "load_rows", "build_prompt",
           "encode_prompt", "Prompt", "Group", "load_prompts", "fingerprint", "prompt_order", "draw", "leak_check"]

MAX_BAD = 0.01  # share of bad rows above which loading stops
MAX_COUNTDOWN_NUMBER = 999_999  # rewards.evaluate reads no longer one
MAX_QUESTION_CHARS = 100_000  # the longest public problem has 10,000; a longer one is a broken file
# Columns nobody reads; OpenR1-Math carries gigabytes of them.
DROP = {"generations", "messages", "prompt", "input", "correctness_math_verify", "correctness_llama", "finish_reasons",
        "is_reasoning_complete", "correctness_count"}


class DataError(ConfigError):
    """Data that cannot be used: one line on stderr that says what, where and the fix; exit code 2."""

    def __init__(self, message):
        super().__init__(message, exit_code=2)


class BadRow(Exception):
    """Why one row is left out: the reason under which it is counted. A line that cannot be parsed becomes one."""

    def __init__(self, reason, line=b""):
        super().__init__(reason)
        self.line = line


# ---------------------------------------------------------------- golds: row -> gold string, or list of them


def gsm8k_gold(row):
    """The text after the last ####, stripped; thousands commas stay (79 train golds have one)."""
    text = row.get("answer")
    if not isinstance(text, str) or "####" not in text:
        raise BadRow("no #### in the answer")
    return text.rsplit("####", 1)[1]


def answer_or_box(row):
    """An answer column if there is one, else what the solution says: its last closed \\boxed{} (MATH, Minerva), or all of it."""
    nested = row.get("reward_model")  # verl's place for it
    golds = [row.get("gt_answer"),  # SimpleRL has it beside `answer`, and it is the clean one
             nested.get("ground_truth") if isinstance(nested, dict) else None, row.get("ground_truth"),
             row.get("answer")]  # last: beside the others it may be the worked solution, as in verl's extra_info
    golds = [gold for gold in golds if filled(gold) and gold not in ("notfound", "proof", "nan")]  # NuminaMath 1.5's and pandas' nothing
    if golds:  # a flag or a struct under one of these names does not hide the answer under another
        return next((gold for gold in golds if gold != [] and not isinstance(gold, (bool, dict))), golds[0])
    gold = gold_of_solution(row["solution"]) if isinstance(row.get("solution"), str) else None
    if gold is None:
        raise BadRow("no answer, and no closed \\boxed{} in the solution")
    return gold


def filled(value):
    """Neither null nor blank nor NaN, which is how tables write null."""
    return value is not None and value == value and bool(value.strip() if isinstance(value, str) else True)


def gold_of_solution(text):
    """The last closed \\boxed{}, what follows ####, or a text that is one formula or one word ("$2$", TRL); else None."""
    if (box := last_boxed(text)) is not None:
        return box
    if "\\boxed" in text:  # it never closes
        return None
    if "####" in text:
        return text.rpartition("####")[2]
    formula = re.fullmatch(r"\s*(?:\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|(\S+))\s*", text, flags=re.DOTALL)
    return next(group for group in formula.groups() if group is not None) if formula else None


def number_gold(row):
    """AIME and AMC golds are whole numbers in odd dress: "025" -> "25", 27.0 and "142.0" -> "142"."""
    gold = answer_or_box(row)
    whole = re.fullmatch(r"\s*(-?)0*(\d+?)(\.0*)?\s*", str(gold), flags=re.ASCII)
    return whole.group(1) + whole.group(2) if whole else gold


def olympiad_gold(row):
    """final_answer is a list with one string such as "$2^{1009}$" or "$69$,$84$" (-> "69, 84"): without its dollars."""
    golds = row.get("final_answer")
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        raise BadRow("final_answer is not a list of strings")
    golds = [re.sub(r"\$\s*([,;])\s*\$", r"\1 ", gold) for gold in golds]  # else "$1$,$101$" reads as a thousand
    golds = [re.sub(r"(?<!\\)\$", "", gold) for gold in golds]
    return golds[0] if len(golds) == 1 else golds


def last_boxed(text):
    """What is in the last filled \\boxed{...} whose braces balance (\\{ is no brace), or in MATH's rare "\\boxed 2"."""
    for box in reversed(list(re.finditer(r"\\boxed\s*(\{|(?<=\s)[^\s{$.]+)", text))):
        if box.group(1) != "{":
            return box.group(1)
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[box.end() :], flags=re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                break
        content = text[box.end() : box.end() + brace.start()] if depth == 0 else ""
        if content.strip():  # an empty one only quotes the instruction
            return content
    return None


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set: hub id and config, the hub's own name for our splits, and where the gold stands."""

    hub: str | None
    config: str | None
    splits: dict
    gold: object
    files: str | None = None  # one file of the hub repository instead of its default


TRAIN, TEST, BOTH = {"train": "train"}, {"test": "test"}, {"train": "train", "test": "test"}
SOURCES = {
    # training, most with a test split                                                     rows (train / test)
    "gsm8k": Source("openai/gsm8k", "main", BOTH, gsm8k_gold),                           # 7,473 / 1,319
    "math": Source("DigitalLearningGmbH/MATH-lighteval", None, BOTH, answer_or_box),     # 7,500 / 5,000
    "math_lvl3to5": Source("hkust-nlp/SimpleRL-Zoo-Data", None, TRAIN, answer_or_box,    # 8,523; 3 to 5 of math_12k
                           files="simplelr_qwen_level3to5/train.parquet"),
    "math_12k": Source("hiyouga/math12k", None, BOTH, answer_or_box),                    # 12,000 / 500 (= MATH500)
    "numina_tir": Source("AI-MO/NuminaMath-TIR", None, BOTH, answer_or_box),             # 72,441 / 99
    "openr1_math": Source("open-r1/OpenR1-Math-220k", "default", TRAIN, answer_or_box),  # 93,733
    "deepscaler": Source("agentica-org/DeepScaleR-Preview-Dataset", None, TRAIN, answer_or_box),  # 40,315
    # test only
    "math500": Source("HuggingFaceH4/MATH-500", None, TEST, answer_or_box),              # 500
    "minerva_math": Source("math-ai/minervamath", None, TEST, answer_or_box),            # 272
    "olympiadbench": Source("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", {"test": "train"}, olympiad_gold),  # 674
    "aime24": Source("HuggingFaceH4/aime_2024", None, {"test": "train"}, number_gold),   # 30
    "amc23": Source("math-ai/amc23", None, TEST, number_gold),                           # 40, of 2023
    "amc23_83": Source("AI-MO/aimo-validation-amc", None, {"test": "train"}, number_gold),  # 83, of 2022 and 2023
    "custom": Source(None, None, BOTH, answer_or_box),
}


# ---------------------------------------------------------------- rows


def load_rows(name, split, path=None, limit=None):
    """
    The rows of a source as dicts with at least `question` and `answer`, beside the source's own fields.

    name   see the top of this file        path   a local .jsonl, .json or .parquet file, or a directory with such files
    split  "train" or "test" (K&K also "official_test")    limit  at most so many rows, the first ones
    answer is a gold string, or a list of acceptable ones; Countdown rows have `target` and `nums`, K&K rows `quiz`,
    `names`, `solution`, `solution_text_format`. `level` is an int (people in K&K, numbers in Countdown) or None,
    `subject` a string or None. Without a path, generators generate and the others ask the Hugging Face hub.
    """
    return [row for _, row in read_rows(name, split, path, limit)]


def read_rows(name, split, path=None, limit=None):
    """load_rows with each row's index in the source: [(index, row)]."""
    base, kept = parse_name(name)
    kind, _, argument = base.partition(":")
    source = SOURCES.get(kind) or Source(None, None, {split: split for split in GENERATED[kind]}, None)
    if split not in source.splits:
        raise DataError(f"data {kind!r} has no {split!r} split, only {', '.join(source.splits)}")
    if path is None and kind in GENERATED:
        rows = generate(kind, argument, split, None if "@" in name else limit)
        rows = [(row.get("index", i), row) for i, row in enumerate(rows)]
    else:
        if path is None and source.hub is None:
            raise DataError(f"data {kind!r} has no public copy: give the path of a .jsonl or .parquet file (--data_path)")
        raw = read_hub(kind, source, split) if path is None else read_path(kind, source, split, path)
        if not raw:
            raise DataError(f"data {name!r}, split {split!r}: no rows in {path or source.hub}")
        [name_of_all, inside] = next(iter(raw[0].items()), ("", None)) if len(raw) == 1 and isinstance(raw[0], dict) else ("", None)
        if isinstance(inside, list) and len(raw[0]) == 1 and inside and isinstance(inside[0], dict) and "role" not in inside[0]:
            raise DataError(f"data {name!r}: {path or source.hub} has all rows in one object under {name_of_all!r}: save that list alone")
        rows, bad = [], []
        for index, row in enumerate(raw):
            try:
                rows.append((index, clean_row(kind, source, row)))
            except BadRow as reason:
                bad.append((index, str(reason), row))
        report_bad(name, split, len(raw), bad, hint=columns_hint(raw, bad) if source.gold is answer_or_box else "")
    rows = [(index, row) for index, row in rows if kept(row)]
    if not rows:
        raise DataError(f"data {name!r}, split {split!r}: no row is of that level or subject")
    return rows[:limit]


def parse_name(name):
    """"math@3-5" -> ("math", test of a row); unknown names end here, with the nearest known one."""
    base, _, wanted = name.partition("@")
    kind, colon, argument = base.partition(":")
    known = [*SOURCES, *GENERATED]
    takes = {"kk": ":[2-8](-[2-8])?", "countdown": r"(:\d+)?"}.get(kind, "")
    if kind not in known or not re.fullmatch(takes, colon + argument):
        near = difflib.get_close_matches(base, ["kk:3" if n == "kk" else n for n in known], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise DataError(f"no data set is called {name!r}; {hint}")
    if not wanted:
        return base, lambda row: True
    if re.fullmatch(r"\d+(-\d+)?", wanted):
        low, _, high = wanted.partition("-")
        return base, lambda row: row["level"] is not None and int(low) <= row["level"] <= int(high or low)
    return base, lambda row: (row["subject"] or "").casefold() == wanted.casefold()


def clean_row(kind, source, raw):
    """One raw row in our form; raises BadRow with the reason."""
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("not an object")
    nested = raw.get("extra_info")  # where verl's files, SimpleRL-Zoo's among them, keep question and answer
    whole = {**(nested if isinstance(nested, dict) else {}), **raw}
    row = {key: value for key, value in whole.items() if key not in DROP}
    if kind in ("countdown", "tiny_countdown"):
        nums, target = row.get("nums"), row.get("target")
        if not isinstance(nums, (list, tuple)) or not nums or not all(type(n) is int for n in nums):
            raise BadRow("nums is not a list of integers")
        if type(target) is not int:
            raise BadRow("target is not an integer")
        if max(nums) > MAX_COUNTDOWN_NUMBER:
            raise BadRow("a number of more than 6 digits, which no answer may hold")
        if not 2 <= len(nums) <= 6 or min(nums) < 0 or not solvable(nums, target):
            raise BadRow("not solvable")
        return countdown_fields({**row, "nums": list(nums)})
    if kind == "kk":
        names, solution, text = row.get("names"), row.get("solution"), row.get("solution_text_format")
        if not (isinstance(names, list) and isinstance(solution, list) and isinstance(text, str)):
            raise BadRow("no names, solution or solution_text_format")
        if len(names) != len(solution) or len(text.splitlines()) != len(names):
            raise BadRow("names, solution and solution_text_format differ in length")
        row["question"] = row["quiz"] = clean_text(row.get("quiz"), "quiz")
        return {**row, "answer": text, "level": len(names), "subject": None}
    row["question"] = clean_text(question_of(whole), "question")
    row["answer"] = clean_gold(source.gold(row))
    digits = re.search(r"\d+", str(row.get("level")))  # 5, "Level 5"; two rows of MATH have "Level ?"
    row["level"] = int(digits.group()) if digits else None
    subject = row.get("subject") or row.get("type") or row.get("subfield")
    return {**row, "subject": subject if isinstance(subject, str) else None}


def question_of(row):
    """`question` or `problem`; else `prompt` as verl and TRL have it, a text or a list with one message of the user."""
    for field in ("question", "problem"):
        if filled(row.get(field)):
            return row[field]
    prompt = row.get("prompt")
    if isinstance(prompt, list) or isinstance(prompt, str) and prompt.lstrip().startswith("[{"):
        if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt) \
                or [turn.get("role") for turn in prompt] != ["user"]:
            raise BadRow("prompt is not one message of the user")  # the template brings its own system text
        prompt = prompt[0].get("content")
    return prompt if filled(prompt) else ""


def columns_hint(rows, bad):
    """Where bad rows lack a question or an answer: the columns that are there, and those that are read."""
    if not any(reason.startswith(("empty question", "no answer", "prompt is not")) for _, reason, _ in bad):
        return ""
    there = dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)
    return (f"; the columns are {', '.join(map(str, there))}; read are question, problem or prompt, and answer, ground_truth, "
            "reward_model or a solution with a \\boxed{}")


def clean_text(text, field):
    if not isinstance(text, str):
        raise BadRow(f"{field} is not a string")
    if not text.strip():
        raise BadRow(f"empty {field}")
    if len(text) > MAX_QUESTION_CHARS:
        raise BadRow(f"{field} of more than {MAX_QUESTION_CHARS:,} characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise BadRow(f"{field} is not valid Unicode")
    return text


def clean_gold(gold):
    if isinstance(gold, (list, tuple)):
        if not gold:
            raise BadRow("empty answer")
        return [clean_gold(one) for one in gold]
    if isinstance(gold, bool) or gold is None:
        raise BadRow(f"answer is {gold}")
    if isinstance(gold, float):
        gold = decimal.Decimal(repr(gold))  # 1e23 is the number that was written, not the nearest float
    if isinstance(gold, decimal.Decimal) and gold.is_finite():
        gold = format(gold.to_integral_value() if gold == gold.to_integral_value() else gold, "f")
        gold = "0" if gold == "-0" else gold
    if isinstance(gold, int):
        try:
            gold = str(gold)  # of any size: it never becomes a float on the way
        except ValueError as error:
            raise BadRow("answer of more than 4,300 digits") from error
    return clean_text(gold, "answer").strip()


def problem_key(row):
    """What makes two rows the same problem: text without case and white space, or Countdown's numbers and target."""
    if "nums" in row and "target" in row:
        return (tuple(sorted(row["nums"])), row["target"])
    return "".join((row.get("question") or row.get("problem") or row.get("quiz") or "").casefold().split())


def report_bad(name, split, total, bad, spare=0, hint=""):
    """Print the number of bad rows and the first three; stop if there are more than 1 %, and more than `spare`."""
    if not bad:
        return
    reasons = [reason for _, reason, _ in bad]
    counts = ", ".join(f"{reasons.count(reason):,} {reason}" for reason in dict.fromkeys(reasons))
    text = f"data {name!r}, split {split!r}: {len(bad):,} of {total:,} rows are bad ({counts})"
    shown = [f"row {index}: {reason}: {excerpt(row)}" for index, reason, row in bad[:3]]
    if len(bad) > max(MAX_BAD * total, spare):
        raise DataError(f"{text}, more than {MAX_BAD:.0%}: fix the rows or the setting{hint}; {'; '.join(shown)}")
    if os.environ.get("RANK", "0") == "0":
        print(f"{text}: left out", *shown, sep="\n    ")


def excerpt(row, width=100):
    """A row for one line of a terminal: escaped, so that no row can move the cursor or fake a line."""
    text = ascii(row.line[:width] if isinstance(row, BadRow) else row)
    return text if len(text) <= width else text[: width - 3] + "..."


# ---------------------------------------------------------------- reading files and the hub


def read_hub(kind, source, split):
    """The raw rows of a public set, through `datasets` and its cache."""
    import datasets
    import huggingface_hub

    if not hub_reachable():  # then the local cache at once, instead of 25 seconds of retries
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        options = {"data_files": source.files} if source.files else {}
        rows = datasets.load_dataset(source.hub, source.config, split=source.splits[split], **options)
        return rows.remove_columns([name for name in rows.column_names if name in DROP]).to_list()
    except Exception as error:  # the hub fails in dozens of classes: all mean that there is no data
        raise DataError(
            f"data {kind!r}: could not load {source.hub} from the Hugging Face hub "
            f"({type(error).__name__}: {excerpt(str(error))}); without a network, give a local copy as path (--data_path, --eval_path)"
        ) from error


def hub_reachable():
    if any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return True
    host = urllib.parse.urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def read_path(kind, source, split, path):
    """The raw rows of a local file or directory; a line that is no JSON becomes a BadRow in its place."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"data {kind!r}: there is no {str(path)!r}; give an existing path, or none for the hub")
    files = [path] if path.is_file() else files_of_split(kind, source, split, path)
    other = {"train": "test", "test": "train"}.get(split)
    if path.is_file() and other in words(path.stem) and split not in words(path.stem):
        fix = {"test": "give the held-out rows (--eval_path), or --eval_prompts 0 for a run without an evaluation",
               "train": "give the rows to train on (--data_path)"}[split]
        raise DataError(f"data {kind!r}: the {split} split was asked for, but the file is called {path.name!r}: {fix}")
    rows = [row for file in files for _, row in read_file(file)]
    if kind == "countdown" and len(rows) > 327_680:  # the published set is one file: test = its rows 327,680-328,703
        rows = rows[:327_680] if split == "train" else rows[327_680 : 327_680 + 1_024]
    return rows


def words(name):
    """"gsm8k/math_test40-00000.parquet" -> ["gsm", "k", "math", "test", "parquet"]"""
    return re.findall(r"[a-z]+", str(name).lower())


def data_files(folder):
    """The files of rows in a directory and in those right below it, without hidden ones and what save_to_disk writes beside."""
    found = [f for f in sorted([*folder.glob("*"), *folder.glob("*/*")]) if f.is_file() and stem_and_suffix(f)[1] in SUFFIXES]
    return [f for f in found if not any(part.startswith((".", "__MACOSX")) for part in f.relative_to(folder).parts)
            and stem_and_suffix(f)[0] not in ("dataset_info", "dataset_infos", "dataset_dict", "state")]


def files_of_split(kind, source, split, folder):
    """The file, or the shards of one, that hold a split: by the source's name, then by the split's; two: an error."""
    files = data_files(folder)
    stem = {f: stem_and_suffix(f)[0].lower() for f in files}
    named = [f for f in files if re.match(rf"{kind}(?![a-z0-9])", stem[f])]
    files = named or [f for f in files if source.config in f.relative_to(folder).parts] or files
    says = {f: set(words(f.relative_to(folder))) & {"train", "test", split} for f in files}
    files = ([f for f in files if re.match(rf"{kind}[-_.]{split}", stem[f])]  # math_test, not math_hard_test
             or [f for f in files if split in says[f]]
             or [f for f in files if source.splits[split] in says[f]]  # AIME's hub copy calls its test set "train"
             or [f for f in files if not says[f]])
    names = {re.sub(r"-\d+-of-\d+.*", "", str(f.parent / stem[f])) + f.name[len(stem[f]):] for f in files}
    if len(names) != 1:
        join = ", or name the parts of one as NAME-00000-of-00002.jsonl" if len(files) > 1 else ""
        found = f"several files that fit: {', '.join(f.name for f in files[:6])}" if files else "no data file that fits"
        raise DataError(f"data {kind!r}, split {split!r}: {str(folder)!r} has {found}; give the path of one file{join}")
    shards = re.search(r"-\d+-of-(\d+)", stem[files[0]])
    if shards and len(files) != int(shards[1]):
        raise DataError(f"data {kind!r}, split {split!r}: {str(folder)!r} has {len(files)} files of {int(shards[1])} "
                        f"({files[0].name}, ...): it must hold each part once")
    return files


PACKED = {".gz": (b"\x1f\x8b", gzip.decompress), ".bz2": (b"BZh", bz2.decompress), ".xz": (b"\xfd7zXZ", lzma.decompress)}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv")
# What a file is that is no table of rows, by how it begins
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the data: run `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive or an Excel table: unpack it, or save it as CSV",
    b"(\xb5/\xfd": "compressed with Zstandard: unzstd it",
    b"\xff\xfe\0\0": "UTF-32: save it as UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)", b"<": "a page of HTML or XML, perhaps an error page",
    b"%PDF": "a PDF", b"SQLite format": "an SQLite database", b"\x93NUMPY": "a NumPy array", b"\x80": "a Python pickle",
}


def stem_and_suffix(file):
    """"a/Train.JSONL.gz" -> ("Train", ".jsonl")"""
    stem, suffix = os.path.splitext(file.name)
    if suffix.lower() in PACKED:
        stem, suffix = os.path.splitext(stem)
    return stem, suffix.lower()


def read_file(file):
    """
    The rows of one file as [(line or row number from 1, row)]; what is no row is a BadRow in its place. DataError, one
    line, where nothing can be read. Parquet and the packers are known by how they begin, the rest by the suffix.
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
        raise DataError(f"cannot read {str(file)!r}: line {line} is not UTF-8: save the file as UTF-8 (iconv -f LATIN1 -t UTF-8)"
                        ) from error
    except Exception as error:  # pyarrow, datasets, csv, gzip and lzma each have their own; each means the same to the user
        raise DataError(f"cannot read {str(file)!r}: {excerpt(str(error), 200)[1:-1]}") from error


def refuse_foreign(raw):
    for magic, what in FOREIGN.items():
        if raw.startswith(magic):
            raise ValueError(f"it is {what}")


def read_jsonl(raw):
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line.decode("utf-8"))))
            except (ValueError, RecursionError) as error:
                rows.append((number, BadRow("not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON", line)))
    return rows


def read_json(raw, suffix):
    """One list of objects; lines where it is none, for many files of lines are called .json."""
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
    """A row a line, by the names of the first; the sign between them is the one that the first line has most of."""
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
    """The rows of an Arrow table as dicts; 0.1 of a float32 column stays 0.1 and does not become 0.10000000149011612."""
    rows = table.to_pylist()
    for name, kind in zip(table.schema.names, map(str, table.schema.types), strict=True):
        if "float" in kind and "double" not in kind:  # Arrow's names: halffloat, float and double, alone or inside a list or struct
            for row in rows:
                row[name] = shortest(row[name], np.float16 if "halffloat" in kind else np.float32)
    return rows


def shortest(value, kind):
    if isinstance(value, dict):
        return {key: shortest(one, kind) for key, one in value.items()}
    if isinstance(value, list):
        return [shortest(one, kind) for one in value]
    return float(str(kind(value))) if isinstance(value, float) else value


def read_arrow(file):  # what Dataset.save_to_disk writes
    import datasets

    return rows_of(datasets.Dataset.from_file(str(file)).data.table)


# ---------------------------------------------------------------- prompts


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to ask. `answer` is what rewards.score wants for `reward`; uid stays the same from run to run."""

    uid: str  # "gsm8k/1234", "gsm8k/test/7"
    source: str  # the name in the recipe: "math@3-5"
    text: str
    ids: tuple
    reward: str
    answer: object
    row: dict


@dataclasses.dataclass(frozen=True)
class Group:
    """The prompts[start : start + size] of one source, and its share of the draws."""

    name: str
    weight: float
    start: int
    size: int


def load_prompts(data, template, reward, tokenizer, *, split="train", limit=None, seed=0, max_prompt_len=None,
                 paths=None, vocab_size=None, check_answer=None, chat=None):
    """
    -> (list of Prompt, list of Group), group after group in the order of `data`.

    data      a source name, or {name: weight}        template, reward   a name for all sources, or {source name: name}
    limit     at most so many prompts of each source: a subset chosen by `seed` (a generator's first ones)
    paths     a local path for all sources, or {source name: path}; the name without its "@3-5" will do
    check_answer   (reward, answer): raises ValueError where the reward cannot read this answer
    chat      arguments and date for the model's chat template, as templates.check_chat returns them
    Rows that are bad, duplicate, unanswerable or longer than max_prompt_len tokens are left out, see report_bad.
    """
    data = {data: 1.0} if isinstance(data, str) else dict(data)
    if not data:
        raise DataError("no data set is named")
    for setting in (template, reward, paths):
        for name in setting if isinstance(setting, dict) else ():
            parse_name(name)  # a misspelled one would be passed over, and the hub asked instead of the path
    prompts, groups = [], []
    for name, weight in data.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise DataError(f"data {name!r}: the weight must be a positive number, got {weight!r}")
        base = parse_name(name)[0]
        its_template, its_reward = per_source(template, name, "template"), per_source(reward, name, "reward")
        warn_of_plain_markers(its_template, tokenizer)
        path = paths.get(name, paths.get(base)) if isinstance(paths, dict) else paths
        generated = path is None and base.partition(":")[0] in GENERATED
        rows = read_rows(name, split, path, limit if generated else None)
        spare = 0
        if limit is not None and limit < len(rows):
            spare = 2  # a few rows are a poor measure of 1 %
            rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        found, bad, seen = [], [], set()
        for index, row in rows:
            if limit is not None and len(found) >= limit:
                break
            uid = "/".join([f"kk:{row['level']}" if base.startswith("kk:") else base, str(index)])
            uid = uid if split == "train" else uid.replace("/", f"/{split}/")
            try:
                prompt = make_prompt(uid, name, its_template, its_reward, row, tokenizer, max_prompt_len, check_answer, chat)
                if prompt.text in seen:
                    raise BadRow("duplicate")
            except BadRow as reason:
                bad.append((index, str(reason), row))
                continue
            seen.add(prompt.text)
            if vocab_size is not None and max(prompt.ids) >= vocab_size:
                raise DataError(f"data {name!r}: token {max(prompt.ids)} in {uid} is outside the model's vocabulary of "
                                f"{vocab_size}: tokenizer and model do not belong together")
            found.append((index, prompt))
        report_bad(name, split, len(found) + len(bad), bad, spare)
        if not found:
            raise DataError(f"data {name!r}, split {split!r}: no usable row")
        groups.append(Group(name, float(weight), len(prompts), len(found)))
        prompts += [prompt for _, prompt in sorted(found, key=lambda item: item[0])]
    return prompts, groups


def per_source(setting, name, what):
    if isinstance(setting, str):
        return setting
    if name in setting:
        return setting[name]
    if name.partition("@")[0] in setting:
        return setting[name.partition("@")[0]]
    raise DataError(f"no {what} for data {name!r}: the {what} setting names only {', '.join(map(repr, setting))}")


def warn_of_plain_markers(template, tokenizer):
    """Say it where a raw template writes another model's chat markers, <|im_start|> and the like, as plain text."""
    text = TEMPLATES.get(template, {}).get("text", "")
    plain = [marker for marker in dict.fromkeys(re.findall(r"<\|\w+\|>", text))
             if tokenizer is not None and tokenizer.tokenize(marker) != [marker]]
    if plain and os.environ.get("RANK", "0") == "0":
        print(f"warning: template {template!r} writes {', '.join(plain)}, no token of this model's tokenizer: the model reads plain "
              "text there; a template for its own chat format, such as chat, or one without markers would fit better")


def make_prompt(uid, name, template, reward, row, tokenizer, max_prompt_len, check_answer, chat=None):
    answer = answer_for(reward, row, name)
    if check_answer is not None:
        try:
            check_answer(reward, answer)
        except ValueError as error:
            raise BadRow("answer that the reward cannot read") from error
    text = build_prompt(template, row, tokenizer, chat)
    if tokenizer is None:  # to look at prompts only
        return Prompt(uid, name, text, (), reward, answer, row)
    if "nums" not in row and any(token in row["question"] for token in special_tokens(tokenizer)):
        raise BadRow("special token in the question")  # it would end the user's turn, or the prompt
    ids = tuple(encode_prompt(tokenizer, text, chat="text" not in TEMPLATES[template]))
    if not ids:
        raise BadRow("empty prompt")
    if max_prompt_len is not None and len(ids) > max_prompt_len:
        raise BadRow(f"prompt of more than {max_prompt_len} tokens")
    return Prompt(uid, name, text, ids, reward, answer, row)


def answer_for(reward, row, name="row"):
    """
    What rewards.score wants as `answer`: Countdown {"target", "numbers"}; K&K {"solution_text_format", "names",
    "solution"}; math the gold, or for open-r1 the worked solution as published, where it has a box. The rows decide which
    of them; a reward of your own (not in rewards.READS) gets what the rows hold.
    """
    holds = "countdown" if isinstance(row.get("answer"), dict) else "kk" if "solution_text_format" in row else "math"
    if READS.get(reward, holds) != holds:
        raise DataError(f"reward {reward!r} does not fit data {name!r}, whose rows have {', '.join(row)}")
    if holds == "countdown":
        return {"target": row["target"], "numbers": list(row["nums"])}
    if holds == "kk":
        return {field: row[field] for field in ("solution_text_format", "names", "solution")}
    solution = row.get("solution") if reward == "open_r1_math" else None
    if isinstance(solution, str) and (boxes(solution) or [solution.rpartition("####")[2] * ("####" in solution)])[-1].strip():
        return solution
    return row["answer"]


def fingerprint(prompts):
    """sha256 over all prompts in order: equal exactly if a resumed run would ask the same and grade the same."""
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(json.dumps([p.uid, p.source, p.text, p.ids, p.reward, p.answer], sort_keys=True).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- order


def prompt_order(sizes, weights, seed, start, count):
    """
    The draws number start .. start+count-1 of a run, as (source index, row index in that source).

    A pure function: a run resumes at any draw, and no matter how draws are cut into steps. Each source goes through
    its rows epoch by epoch, each epoch a permutation made from (seed, source, epoch) alone. Sources take turns so that
    after any number of draws each is within one draw of its share: no luck, hence no drift of the mixture.
    weights None: shares in proportion to the sizes.
    """
    weights = list(sizes) if weights is None else list(weights)
    if len(weights) != len(sizes) or min(sizes, default=0) < 1 or not all(0 < w < math.inf for w in weights):
        raise ValueError(f"prompt_order wants sizes >= 1 and as many weights > 0, got {sizes} and {weights}")
    turns = take_turns(whole_shares(weights))
    cycles, offset = divmod(start, len(turns))
    drawn = [cycles * turns.count(s) + turns[:offset].count(s) for s in range(len(sizes))]  # before `start`
    order = []
    for position in range(start, start + count):
        source = turns[position % len(turns)]
        epoch, place = divmod(drawn[source], sizes[source])
        order.append((source, int(permutation(sizes[source], seed, source, epoch)[place])))
        drawn[source] += 1
    return order


def draw(prompts, groups, seed, start, count):
    """The prompts of draws start .. start+count-1, see prompt_order; groups as load_prompts returns them."""
    order = prompt_order([g.size for g in groups], [g.weight for g in groups], seed, start, count)
    return [prompts[groups[source].start + row] for source, row in order]


@functools.lru_cache(maxsize=64)
def permutation(size, seed, source, epoch):
    return np.random.default_rng([seed, source, epoch]).permutation(size)


def whole_shares(weights, longest=10_000):
    """Weights -> whole numbers of draws in one cycle: [0.5, 0.3, 0.2] -> (5, 3, 2); exact, or to 1 in 10,000."""
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    cycle = math.lcm(*[share.denominator for share in exact])
    if cycle > longest:
        return tuple(max(1, round(share * longest)) for share in exact)
    return tuple(int(share * cycle) for share in exact)


@functools.lru_cache(maxsize=16)
def take_turns(shares):
    """
    Whose turn it is at each draw of a cycle: never a full draw ahead of or behind the exact share.

    The k-th draw of a source with share r must fall between (k-1)/r and k/r; of the sources that may draw, the one
    with the nearest deadline does (earliest deadline first, which keeps all deadlines if that is possible at all, and
    for shares that sum to 1 it is: Baruah et al. 1996, proportionate progress).
    """
    cycle, drawn, turns = sum(shares), [0] * len(shares), []
    for position in range(cycle):
        ready = [s for s, share in enumerate(shares) if drawn[s] * cycle // share <= position]
        source = min(ready, key=lambda s: -(-(drawn[s] + 1) * cycle // shares[s]))
        drawn[source] += 1
        turns.append(source)
    return tuple(turns)


# ---------------------------------------------------------------- leaks, command line


def leak_check(train, test, paths=None):
    """
    Problems that stand in both: [{"train": uid or index, "test": uid or "name/index", "question": excerpt}].

    train  Prompts or rows       test  Prompts or rows, or names of test sets (loaded; paths {name: path})
    Known: MATH-12K and MATH level 3-5 hold MATH test problems, though none of MATH500; understand-r1-zero's gsm_8k
    holds the whole GSM8K test set.
    """
    where = {}
    for label, row in labelled(train, paths):
        where.setdefault(problem_key(row), label)
    return [{"train": where[problem_key(row)], "test": label, "question": excerpt(row.get("question") or row)}
            for label, row in labelled(test, paths) if problem_key(row) in where]


def labelled(items, paths):
    for index, item in enumerate([items] if isinstance(items, str) else items):
        if isinstance(item, str):
            rows = load_rows(item, "test", (paths or {}).get(item))
            yield from ((f"{item}/{i}", row) for i, row in enumerate(rows))
        else:
            yield (item.uid, item.row) if isinstance(item, Prompt) else (index, item)


def named_path(text, names):
    """"gsm8k=a.jsonl" -> ("gsm8k", "a.jsonl"); a path that holds a "=" itself is the first name's."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and name in names and not os.path.exists(text) else (names[0], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="a source to print; with --leak a train set, then test sets")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, help="of countdown and tiny_countdown: fresh rows")
    parser.add_argument("--template", help="print prompts instead of rows")
    parser.add_argument("--path", action="append", default=[], metavar="[NAME=]PATH", help="a local copy")
    parser.add_argument("--leak", action="store_true", help="print problems that stand in train and test sets")
    args = parser.parse_args()
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed {args.seed} must not be negative")
    if args.count < 1:
        parser.error(f"--count {args.count} must be at least 1")
    paths = dict(named_path(path, args.names) for path in args.path)
    name = args.names[0]
    if args.leak:
        found = leak_check(load_rows(name, args.split, paths.get(name)), args.names[1:], paths)
        for overlap in found[:20]:
            print(f"{name}/{overlap['train']}  =  {overlap['test']}  {overlap['question']}")
        print(f"{len(found):,} problems of {', '.join(args.names[1:])} stand in {name} ({args.split})")
        return
    generator = {"countdown": countdown, "tiny_countdown": tiny_countdown}.get(name)
    if args.seed is not None and generator:
        rows = generator(args.count, args.seed)
    else:
        rows = load_rows(name, args.split, paths.get(name), limit=args.count)
    for row in rows:
        print(build_prompt(args.template, row) if args.template else json.dumps(row, ensure_ascii=False, default=str))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
