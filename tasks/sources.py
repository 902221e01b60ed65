"""
Where rows come from: the public data sets and where each has its gold, files of your own, the generators of the tasks,
and the benchmarks made of them.

    load_rows("gsm8k", "test"), load_rows("math@3-5", "train", "rows/"), load_rows("kk:3-7", "train"), ...
    load_rows("custom", "train", "reviews.csv", columns={"question": "text", "answer": "label"})
    load_rows("ORGANIZATION/NAME:CONFIG:SPLIT", "train")        another set of the hub; with or without :CONFIG, :SPLIT
"""

import os
import re
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from onebox.hub import hub_reachable
from onebox.text import excerpt, suggest
from tasks import TASKS, math_problems
from tasks.math_problems import answer_or_box
from tasks.rows import (SUFFIXES, BadRow, DataError, Source, data_files, filled, look_up, read_file, report_bad,
                        stem_and_suffix)
from tasks.templates import is_entry

# ---------------------------------------------------------------- public sets: row -> gold, or list of acceptable ones


def gsm8k_gold(row):
    """Return the text after the last ####. Thousands commas stay (79 train golds have one)."""
    text = row.get("answer")
    if not isinstance(text, str) or "####" not in text:
        raise BadRow("no #### in the answer")
    return text.rsplit("####", 1)[1]


def number_gold(row):
    """Normalize the whole numbers of AIME and AMC: "025" -> "25", 27.0 -> "27" and "142.0" -> "142"."""
    gold = answer_or_box(row)
    whole = re.fullmatch(r"\s*(-?)0*(\d+?)(\.0*)?\s*", str(gold), flags=re.ASCII)
    return whole.group(1) + whole.group(2) if whole else gold


def olympiad_gold(row):
    """Take the dollars off `final_answer`, a list with one string such as "$2^{1009}$" or "$69$,$84$" (-> "69, 84")."""
    golds = row.get("final_answer")
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        raise BadRow("final_answer is not a list of strings")
    golds = [re.sub(r"\$\s*([,;])\s*\$", r"\1 ", gold) for gold in golds]  # else "$1$,$101$" reads as a thousand
    golds = [re.sub(r"(?<!\\)\$", "", gold) for gold in golds]
    return golds[0] if len(golds) == 1 else golds


TRAIN, TEST, BOTH = {"train": "train"}, {"test": "test"}, {"train": "train", "test": "test"}
TEST_CALLED_TRAIN = {"test": "train"}  # on the hub


def public(hub, splits=BOTH, config=None, gold=answer_or_box, files=None):
    return Source(splits, hub, config, gold, files)


SOURCES = {
    # training, most with a test split                                                     rows (train / test)
    "gsm8k": public("openai/gsm8k", config="main", gold=gsm8k_gold),                     # 7,473 / 1,319
    "math": public("DigitalLearningGmbH/MATH-lighteval"),                                # 7,500 / 5,000
    "math_lvl3to5": public("hkust-nlp/SimpleRL-Zoo-Data", TRAIN,                         # 8,523; 3 to 5 of math_12k
                           files="simplelr_qwen_level3to5/train.parquet"),
    "math_12k": public("hiyouga/math12k"),                                               # 12,000 / 500 (= MATH500)
    "numina_tir": public("AI-MO/NuminaMath-TIR"),                                        # 72,441 / 99
    "openr1_math": public("open-r1/OpenR1-Math-220k", TRAIN, "default"),                 # 93,733
    "deepscaler": public("agentica-org/DeepScaleR-Preview-Dataset", TRAIN),              # 40,315
    # test only
    "math500": public("HuggingFaceH4/MATH-500", TEST),                                   # 500
    "minerva_math": public("math-ai/minervamath", TEST),                                 # 272
    "olympiadbench": public("Hothan/OlympiadBench", TEST_CALLED_TRAIN, "OE_TO_maths_en_COMP", olympiad_gold),  # 674
    "aime24": public("HuggingFaceH4/aime_2024", TEST_CALLED_TRAIN, gold=number_gold),    # 30
    "amc23": public("math-ai/amc23", TEST, gold=number_gold),                            # 40, of 2023
    "amc23_83": public("AI-MO/aimo-validation-amc", TEST_CALLED_TRAIN, gold=number_gold),  # 83, of 2022 and 2023
    "custom": Source(BOTH, gold=answer_or_box, argument=r"(:[\w.-]+)?"),  # your own file; several: custom:reviews, ...
    **{name: source for task in TASKS.values() for name, source in task.SOURCES.items()},
}
GENERATED = {name: task for task in TASKS.values() for name in task.SOURCES}  # the other sources are math problems
# Columns nobody reads; OpenR1-Math carries gigabytes of them.
DROP = {"generations", "messages", "prompt", "input", "correctness_math_verify", "correctness_llama", "finish_reasons",
        "is_reasoning_complete", "correctness_count"}

# ---------------------------------------------------------------- rows


def load_rows(name, split, path=None, limit=None, columns=None):
    """
    Load the rows of a source: dicts with at least `question` and `answer`, beside the source's own fields.

    name   "gsm8k"; "math@3-5" keeps levels 3 to 5, "math@Algebra" a subject; "countdown:1000", "kk:3-7"
    split  "train" or "test" (K&K also "official_test")    limit  how many rows, the first ones
    path   a local file, or a directory with such files; without it, generators generate and the hub is asked for others
    columns   {"question": their name of it, ...}, of COLUMNS; "a.b" looks inside a column
    `answer` is a gold string, or a list of acceptable ones; Countdown rows have `target` and `nums`, K&K rows `quiz`,
    `names`, `solution`, `solution_text_format`. `level` is an int (people in K&K, numbers in Countdown) or None,
    `subject` a string or None. DataError where there are none, or too many bad ones.
    """
    return [row for _, row in read_rows(name, split, path, limit, columns)]


def read_rows(name, split, path=None, limit=None, columns=None, needs=("question", "answer")):
    """Load rows as load_rows does, each with its index in the source: [(index, row)]; needs: as in math_problems."""
    base, kept = parse_name(name)
    kind, _, argument = base.partition(":")
    source, task = source_of(base), GENERATED.get(kind, math_problems)
    if split not in source.splits:
        raise DataError(f"data {kind!r} has no {split!r} split, only {', '.join(source.splits)}")
    if path is None and kind in GENERATED:
        rows = task.generate(kind, argument, split, None if "@" in name else limit)
        rows = [(row.get("index", i), row) for i, row in enumerate(rows)]
    elif path is None and source.hub is None:
        raise DataError(f"data {base!r} has no public copy: give the path of a file, such as .jsonl, .csv or .parquet "
                        "(--data_path)")
    else:
        raw = read_hub(base, source, split) if path is None else read_path(kind, source, split, path)
        if not raw:
            raise DataError(f"data {name!r}, split {split!r}: no rows in {path or source.hub}")
        if len(raw) == 1 and isinstance(raw[0], dict) and len(raw[0]) == 1:
            [(field, inside)] = raw[0].items()
            if isinstance(inside, list) and inside and isinstance(inside[0], dict) and "role" not in inside[0]:
                raise DataError(f"data {name!r}: {path or source.hub} has all rows in one object under {field!r}: "
                                "save that list alone")
        check_columns(name, columns, raw)
        rows, bad = [], []
        for index, row in enumerate(raw):
            try:
                rows.append((index, clean_row(task, source, row, columns, needs)))
            except BadRow as reason:
                bad.append((index, str(reason), row))
        hint = math_problems.columns_hint(raw, bad, columns) if source.gold is answer_or_box else ""
        report_bad(name, split, len(raw), bad, hint=hint)
    rows = [(index, row) for index, row in rows if kept(row)]
    if not rows:
        raise DataError(f"data {name!r}, split {split!r}: no row is of that level or subject")
    return rows[:limit]


HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]*))?(?::([\w.-]+))?")  # ORGANIZATION/NAME:CONFIG:SPLIT


def source_of(base):
    """Return the Source of a name without its "@3-5": of SOURCES, or of a set of the hub."""
    kind = base.partition(":")[0]
    if kind in SOURCES:
        return SOURCES[kind]
    hub, config, split = HUB_ID.fullmatch(base).groups()
    return Source({"train": split, "test": split} if split else BOTH, hub, config or None, answer_or_box)


def parse_name(name):
    """Split "math@3-5" into ("math", test of a row). DataError for an unknown name, with the nearest known one."""
    base, _, wanted = name.partition("@")
    kind, colon, argument = base.partition(":")
    is_file = kind not in SOURCES and (os.path.exists(base) or stem_and_suffix(Path(base))[1] in SUFFIXES)
    known = re.fullmatch(SOURCES[kind].argument, colon + argument) if kind in SOURCES else HUB_ID.fullmatch(base)
    if is_file or not known:
        if is_file:
            raise DataError(f"data = {name!r} is a file: say data = 'custom' and data_path = {name!r}; several files "
                            "in one run are custom:A, custom:B with a path each")
        hint = suggest(base, [source.example or known for known, source in SOURCES.items()])
        raise DataError(f"no data set is called {name!r}; {hint or 'known: ' + ', '.join(SOURCES)}; a set of the hub "
                        "is ORGANIZATION/NAME, with :CONFIG and :SPLIT where it needs them")
    if not wanted:
        return base, lambda row: True
    if re.fullmatch(r"\d+(-\d+)?", wanted):
        low, _, high = wanted.partition("-")
        return base, lambda row: row["level"] is not None and int(low) <= row["level"] <= int(high or low)
    return base, lambda row: (row["subject"] or "").casefold() == wanted.casefold()


def clean_row(task, source, raw, columns=None, needs=("question", "answer")):
    """Return one raw row in our form; raise BadRow with the reason where that cannot be."""
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("not an object")
    nested = raw.get("extra_info")  # where verl's files, SimpleRL-Zoo's among them, keep question and answer
    drop = DROP if source in SOURCES.values() and source is not SOURCES["custom"] else ()  # a user may read them
    raw = rename({**(nested if isinstance(nested, dict) else {}), **raw}, columns or {})
    for ours in columns or {}:
        if ours in ("question", "answer") and not filled(raw[ours]):
            raise BadRow(f"empty {ours}")
    if "answer" in (columns or {}) and source.gold is answer_or_box:  # it is the gold, whatever else the row holds
        source = dataclasses.replace(source, gold=lambda row: row["answer"])
    row = task.clean(raw, source, needs) if task is math_problems else task.clean(raw, source)
    return {key: value for key, value in row.items() if key not in drop}


# ---------------------------------------------------------------- columns of other names

COLUMNS = {"question": ("problem", "prompt"), "answer": ("gt_answer", "ground_truth", "reward_model"), "solution": (),
           "level": (), "subject": ("type", "subfield"), "target": (), "nums": ()}  # and what each stands in for


def rename(row, columns):
    """Give columns of a row our names, beside their own. What a renamed one stands in for is left out."""
    gone = {name for ours in columns for name in COLUMNS[ours]}
    found = {ours: look_up(row, theirs) for ours, theirs in columns.items()}
    return {**{name: value for name, value in row.items() if name not in gone}, **found}


def check_columns(name, columns, rows):
    """Raise DataError for a setting `columns` that is not {our name: theirs}, or names a column that no row has."""
    there = dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)
    for ours, theirs in (columns or {}).items():
        found = isinstance(theirs, str) and any(isinstance(row, dict) and (
            theirs in row or look_up(row, theirs) is not None) for row in rows)
        if ours in COLUMNS and found:
            continue
        if isinstance(theirs, str) and theirs in COLUMNS and ours in there:
            raise DataError(f"data {name!r}: columns = {columns} is the wrong way round: write "
                            f"{ {value: key for key, value in columns.items()} }")
        if ours not in COLUMNS:
            hint = suggest(ours, COLUMNS) or f"known: {', '.join(COLUMNS)}"
            raise DataError(f"data {name!r}: columns names {ours!r}, which nothing reads; {hint}. Your other columns "
                            "keep their names, for templates and rewards of your own")
        hint = suggest(theirs, there) or f"the columns are {', '.join(map(str, there))}"
        raise DataError(f"data {name!r}: columns takes the {ours} from {theirs!r}, which no row has; {hint}")


def of_source(setting, name):
    """Return the entry of a {source: ...} under the name with or without its "@3-5"; None where there is none."""
    return setting.get(name, setting.get(name.partition("@")[0]))


def per_source(setting, name, what):
    """Return the value of a setting for one source: itself, or its entry under the name with or without @."""
    if not isinstance(setting, dict) or is_entry(setting):
        return setting
    if (found := of_source(setting, name)) is not None:
        return found
    raise DataError(f"no {what} for data {name!r}: the {what} setting names only {', '.join(map(repr, setting))}")


def columns_of(columns, name):
    """Return the setting `columns` for one source: itself, or its entry where it is {source: columns}."""
    several = per_source_columns(columns)
    return of_source(several, name) if several else columns


def per_source_columns(columns):
    """Return the setting `columns` if it is {source: columns}, else {}."""
    return columns if columns and all(isinstance(value, dict) for value in columns.values()) else {}


# ---------------------------------------------------------------- settings of one source or several


def names_of(data):
    """List the source names of the setting `data`."""
    return [data] if isinstance(data, str) else list(data)


def check_names(train, held_out, **settings):
    """
    Raise DataError where a {source: ...} names a source that is not asked: a misspelled one would be passed over.

    train, held_out: settings `data` and `eval_data`.
    """
    names = {"data_path": names_of(train), "eval_path": names_of(held_out)}
    for setting, value in settings.items():
        among = names.get(setting, names_of(train) + names_of(held_out))
        known = [part for name in among for part in (name, name.partition("@")[0])]
        several = per_source_columns(value) if setting == "columns" else value
        several = several if isinstance(several, dict) and not is_entry(several) else {}
        if odd := [name for name in several if name not in known]:
            hint = suggest(odd[0], known) or f"the data are {', '.join(among)}"
            raise DataError(f"{setting} names {odd[0]!r}, which is not among the data; {hint}")


# ---------------------------------------------------------------- the hub, files and directories


def read_hub(name, source, split):
    """Load the raw rows of a public set through `datasets` and its cache."""
    import datasets
    import huggingface_hub

    if not hub_reachable():  # then the local cache at once, instead of 25 seconds of retries
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        options = {"data_files": source.files} if source.files else {}
        rows = datasets.load_dataset(source.hub, source.config, split=source.splits[split], **options)
        drop = DROP if source in SOURCES.values() else ()
        return rows.remove_columns([name for name in rows.column_names if name in drop]).to_list()
    except Exception as error:  # the hub fails in dozens of classes: all mean that there is no data
        raise DataError(
            f"data {name!r}: could not load {source.hub} from the Hugging Face hub "
            f"({type(error).__name__}: {excerpt(str(error))}); without a network, give a local copy as path "
            f"(--data_path, --eval_path); another config or split is named {source.hub}:CONFIG:SPLIT"
        ) from error


PART = re.compile(r"(.+)\[(\d*)(%?):(\d*)(%?)\]")  # reviews.csv[:90%], reviews.csv[1000:]


def read_path(kind, source, split, path):
    """Read the raw rows of a local file or directory. A line that is no JSON becomes a BadRow in its place."""
    part = PART.fullmatch(str(path)) if not os.path.exists(os.path.expanduser(path)) else None
    path = Path(part[1] if part else path).expanduser()
    if not path.exists():
        hub = ", or none for the hub" if source.hub else ""
        raise DataError(f"data {kind!r}: there is no {str(path)!r} in {os.getcwd()}; give an existing path{hub}")
    files = [path] if path.is_file() else files_of_split(kind, source, split, path)
    other = None if part else {"train": "test", "test": "train"}.get(split)
    if path.is_file() and other in words(path.stem) and split not in words(path.stem):
        fix = {"test": "give the held-out rows (--eval_path), or --eval_prompts 0 for a run without an evaluation",
               "train": "give the rows to train on (--data_path)"}[split]
        raise DataError(f"data {kind!r}: the {split} split was asked for, but the file is called {path.name!r}: {fix}")
    rows = [row for file in files for _, row in read_file(file)]
    if source.slices and len(rows) > source.slices["train"].stop:  # all splits in one file
        rows = rows[source.slices[split]]
    if part:
        first, last = (len(rows) * int(number) // 100 if percent else int(number) if number else default
                       for number, percent, default in ((part[2], part[3], 0), (part[4], part[5], len(rows))))
        rows = rows[first:last]
    return rows


def words(name):
    """Split "gsm8k/math_test40-00000.parquet" into ["gsm", "k", "math", "test", "parquet"]."""
    return re.findall(r"[a-z]+", str(name).lower())


def files_of_split(kind, source, split, folder):
    """Find the file, or the shards of one, of a split: by the source's name, then by the split's. DataError for two."""
    files = data_files(folder)
    stem = {f: stem_and_suffix(f)[0].lower() for f in files}
    kind = re.escape(kind)  # of a set of the hub it holds a slash
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


# ---------------------------------------------------------------- benchmarks


@dataclass(frozen=True)
class Benchmark:
    source: str         # of data.py
    reward: str         # of rewards.py: `correct` is what counts
    chat: str           # template where the tokenizer has a chat template (in raw ones: and the token <|im_start|>)
    text: str           # template of a base model
    samples: int = 0    # a problem, at `temperature`; 0: one greedy response. Sets of 30 or 40 problems need many
    split: str = "test"
    limit: int = 0      # problems, 0 = all


def boxed(source, samples=0):
    return Benchmark(source, "math", "deepscaler", "boxed_text", samples)


BENCHMARKS = {  # in the order of the survey's tables                            problems
    "gsm8k": boxed("gsm8k"),                                                   # 1,319
    "math500": boxed("math500"),                                               # 500
    "minerva": boxed("minerva_math"),                                          # 272
    "olympiadbench": boxed("olympiadbench"),                                   # 674, of the Qwen2.5-Math copy 675
    "aime24": boxed("aime24", samples=32),                                     # 30
    "amc23": boxed("amc23", samples=32),                                       # 40, of 2023
    "amc23_83": boxed("amc23_83", samples=32),                                 # 83, of 2022 and 2023
    "countdown": Benchmark("countdown", "tinyzero_countdown", "tinyzero_instruct", "tinyzero_base", limit=1024),
    "kk": Benchmark("kk:2-8", "logic_rl_kk", "logic_rl_instruct", "logic_rl_base", split="official_test"),  # 700
    "tiny_countdown": Benchmark("tiny_countdown", "tinyzero_countdown", "tiny_countdown", "tiny_countdown", samples=4),
}
