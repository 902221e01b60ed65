"""
Rows of every data set -> Prompt: what to ask, its token ids, and the answer the reward wants; and in which order.

    python data.py countdown --count 5 --seed 1                     print rows
    python data.py gsm8k --split test --template unsloth_gsm8k      print rendered prompts
    python data.py --leak math_12k math500 aime24 [--path NAME=PATH ...]    train set, then test sets

    name                    a source of SOURCES or a generator; "math@3-5" keeps levels 3 to 5, "math@Algebra" a subject
    countdown, countdown:N  N generated rows (20,480), TinyZero's task; with a path, rows of the published set
    tiny_countdown          the demo's task, three numbers with + and -
    kk:3, kk:3-7            Knights and Knaves of 3 (3 to 7) people; splits train, test, official_test
    custom                  rows of your own with `question` or `problem`, and `answer` or a \\boxed{} in `solution`

Rows are plain dicts. Bad ones are counted, shown and left out; more than 1 % of them is an error. No torch here.
"""

import argparse
import dataclasses
import difflib
import fractions
import functools
import hashlib
import json
import math
import os
import re
import socket
import urllib.parse
from pathlib import Path

import numpy as np

from config import ConfigError
from puzzles import GENERATED, countdown, countdown_fields, generate, knights_and_knaves, solvable, tiny_countdown
from templates import TEMPLATES, build_prompt, encode_prompt, special_tokens

__all__ = ["countdown", "solvable", "tiny_countdown", "knights_and_knaves", "load_rows", "build_prompt",
           "encode_prompt", "Prompt", "Group", "load_prompts", "fingerprint", "prompt_order", "draw", "leak_check"]

MAX_BAD = 0.01  # share of bad rows above which loading stops
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
    """An answer column if there is one, else the last closed \\boxed{} of the worked solution (MATH, Minerva)."""
    for field in ("gt_answer", "answer"):  # the SimpleRL files have both; gt_answer is the clean one
        if row.get(field) not in (None, ""):
            return row[field]
    gold = last_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
    if gold is None:
        raise BadRow("no answer, and no closed \\boxed{} in the solution")
    return gold


def number_gold(row):
    """AIME and AMC golds are whole numbers in odd dress: "025" -> "25", 27.0 and "142.0" -> "142"."""
    gold = answer_or_box(row)
    whole = re.fullmatch(r"\s*(-?)0*(\d+?)(\.0*)?\s*", str(gold), flags=re.ASCII)
    return whole.group(1) + whole.group(2) if whole else gold


def olympiad_gold(row):
    """final_answer is a list with one string such as "$2^{1009}$" or "$69$,$84$": the text without its dollars."""
    golds = row.get("final_answer")
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        raise BadRow("final_answer is not a list of strings")
    golds = [re.sub(r"(?<!\\)\$", "", gold) for gold in golds]
    return golds[0] if len(golds) == 1 else golds


def last_boxed(text):
    """The content of the last \\boxed{...} whose braces balance (\\{ is no brace), or of MATH's rare "\\boxed 2"."""
    for box in reversed(list(re.finditer(r"\\boxed\s*(\{|(?<=\s)[^\s{$.]+)", text))):
        if box.group(1) != "{":
            return box.group(1)
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[box.end() :], flags=re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[box.end() : box.end() + brace.start()]
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
            raise DataError(f"data {kind!r} has no public copy: give the path of a .jsonl or .parquet file")
        raw = read_hub(kind, source, split) if path is None else read_path(kind, source, split, path)
        if not raw:
            raise DataError(f"data {name!r}, split {split!r}: no rows in {path or source.hub}")
        rows, bad = [], []
        for index, row in enumerate(raw):
            try:
                rows.append((index, clean_row(kind, source, row)))
            except BadRow as reason:
                bad.append((index, str(reason), row))
        report_bad(name, split, len(raw), bad)
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
    row = {**(nested if isinstance(nested, dict) else {}), **raw}
    row = {key: value for key, value in row.items() if key not in DROP}
    if kind in ("countdown", "tiny_countdown"):
        nums, target = row.get("nums"), row.get("target")
        if not isinstance(nums, (list, tuple)) or not nums or not all(type(n) is int for n in nums):
            raise BadRow("nums is not a list of integers")
        if type(target) is not int:
            raise BadRow("target is not an integer")
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
    row["question"] = clean_text(row.get("question") or row.get("problem") or "", "question")
    row["answer"] = clean_gold(source.gold(row))
    digits = re.search(r"\d+", str(row.get("level")))  # 5, "Level 5"; two rows of MATH have "Level ?"
    row["level"] = int(digits.group()) if digits else None
    subject = row.get("subject") or row.get("type") or row.get("subfield")
    return {**row, "subject": subject if isinstance(subject, str) else None}


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
    if isinstance(gold, (int, float)) and not isinstance(gold, bool) and math.isfinite(gold):
        gold = str(int(gold)) if gold == int(gold) else repr(gold)
    return clean_text(gold, "answer").strip()


def problem_key(row):
    """What makes two rows the same problem: text without case and white space, or Countdown's numbers and target."""
    if "nums" in row:
        return (tuple(sorted(row["nums"])), row["target"])
    return "".join((row.get("question") or row.get("problem") or row.get("quiz") or "").casefold().split())


def report_bad(name, split, total, bad, spare=0):
    """Print the number of bad rows and the first three; stop if there are more than 1 %, and more than `spare`."""
    if not bad:
        return
    reasons = [reason for _, reason, _ in bad]
    counts = ", ".join(f"{reasons.count(reason):,} {reason}" for reason in dict.fromkeys(reasons))
    text = f"data {name!r}, split {split!r}: {len(bad):,} of {total:,} rows are bad ({counts})"
    shown = [f"row {index}: {reason}: {excerpt(row)}" for index, reason, row in bad[:3]]
    if len(bad) > max(MAX_BAD * total, spare):
        raise DataError(f"{text}, more than {MAX_BAD:.0%}: fix the rows or the setting; {'; '.join(shown)}")
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
        raise DataError(f"data {kind!r}: the {split} split was asked for, but the file is called {path.name!r}")
    rows = []
    for file in files:
        try:
            rows += READERS.get(file.suffix, read_jsonl)(file)
        except (OSError, ValueError) as error:
            raise DataError(f"data {kind!r}: cannot read {str(file)!r}: {type(error).__name__}: {error}") from error
    if kind == "countdown" and len(rows) > 327_680:  # the published set is one file: test = its rows 327,680-328,703
        rows = rows[:327_680] if split == "train" else rows[327_680 : 327_680 + 1_024]
    return rows


def words(name):
    """"gsm8k/math_test40-00000.parquet" -> ["gsm", "k", "math", "test", "parquet"]"""
    return re.findall(r"[a-z]+", str(name).lower())


def files_of_split(kind, source, split, folder):
    """The file, or the shards of one, that hold a split: by the source's name, then by the split's; two: an error."""
    files = [f for f in sorted([*folder.glob("*"), *folder.glob("*/*")]) if f.suffix in READERS]
    files = [f for f in files if f.stem not in ("dataset_info", "dataset_dict", "state")]  # of save_to_disk
    named = [f for f in files if re.match(rf"{kind}(?![a-z0-9])", f.stem.lower())]
    files = named or [f for f in files if source.config in f.relative_to(folder).parts] or files
    says = {f: set(words(f.relative_to(folder))) & {"train", "test", split} for f in files}
    files = ([f for f in files if re.match(rf"{kind}[-_.]{split}", f.stem.lower())]  # math_test, not math_hard_test
             or [f for f in files if split in says[f]]
             or [f for f in files if source.splits[split] in says[f]]  # AIME's hub copy calls its test set "train"
             or [f for f in files if not says[f]])
    names = {re.sub(r"-\d+-of-\d+.*", "", str(f.with_suffix(""))) for f in files}
    if len(names) != 1:
        found = f"several files that fit: {', '.join(f.name for f in files[:6])}" if files else "no data file that fits"
        raise DataError(f"data {kind!r}, split {split!r}: {str(folder)!r} has {found}; give the path of one file")
    return files


def read_jsonl(file):
    rows = []
    for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.strip():
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                rows.append(BadRow("not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON", line))
    return rows


def read_json(file):
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("a .json file must hold one list of objects")
    return rows


def read_parquet(file):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def read_arrow(file):  # what Dataset.save_to_disk writes
    import datasets

    return datasets.Dataset.from_file(str(file)).to_list()


READERS = {".jsonl": read_jsonl, ".json": read_json, ".parquet": read_parquet, ".arrow": read_arrow}


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
    prompts, groups = [], []
    for name, weight in data.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise DataError(f"data {name!r}: the weight must be a positive number, got {weight!r}")
        base = parse_name(name)[0]
        its_template, its_reward = per_source(template, name, "template"), per_source(reward, name, "reward")
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
    "solution"}; math the gold, or for open-r1 the whole worked solution where the source has one, as published.
    """
    wanted = ("nums", "target") if "countdown" in reward else ()
    wanted = ("solution_text_format", "names", "solution") if reward.endswith("kk") else wanted
    missing = [field for field in wanted if field not in row]
    if missing or (not wanted and ("nums" in row or "solution_text_format" in row)):
        raise DataError(f"reward {reward!r} does not fit data {name!r}, whose rows have {', '.join(row)}")
    if "countdown" in reward:
        return {"target": row["target"], "numbers": list(row["nums"])}
    if wanted:
        return {field: row[field] for field in wanted}
    if reward.startswith("open_r1") and isinstance(row.get("solution"), str) and row["solution"].strip():
        return row["solution"]
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
    paths = dict(path.split("=", 1) if "=" in path else (args.names[0], path) for path in args.path)
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
        print(build_prompt(args.template, row) if args.template else json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
