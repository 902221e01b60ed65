"""
What an evaluation has finished, on disk, line by line: one that is killed goes on where it was.

    DIR/settings.json        {benchmark: {"settings": all that decides its completions, "seconds": spent}}
    DIR/gsm8k.part0.jsonl    while it runs, one file a rank: a line per completion as it finishes
    DIR/gsm8k.jsonl          once all are there, in the order of the problems; the parts are gone

Nothing here depends on how often it was interrupted, nor on the number of ranks. No torch.
"""

import glob
import json
import os
import re
import time

from onebox.config import ConfigError
from onebox.statistics import RESULT_HEAD, result_cells, sweep_cells, to_csv, to_markdown

KEYS = {"uid": str, "sample": (int, str), "prompt": str, "response": str, "correct": bool, "reward": (int, float),
        "tokens": int, "finish_reason": str}


def file_of(folder, name, part=""):
    return os.path.join(folder, re.sub(r"[^\w.@+-]", "_", name) + part + ".jsonl")


def parts_of(folder, name):
    return sorted(glob.glob(glob.escape(file_of(folder, name, ".part"))[:-6] + "*.jsonl"))


def read_settings(folder):
    """settings.json as a dict, empty where there is none yet."""
    file = os.path.join(folder, "settings.json")
    if not os.path.exists(file):
        return {}
    try:
        with open(file) as f:
            found = json.load(f)
        return {name: {"settings": dict(entry["settings"]), "seconds": float(entry["seconds"])}
                for name, entry in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}: {error}): remove {folder}, or give --output "
                          "another directory") from error


def write_settings(folder, name, settings, seconds=None):
    """Rank 0 only; seconds None: as they were."""
    os.makedirs(folder, exist_ok=True)
    before = read_settings(folder)
    seconds = before.get(name, {"seconds": 0.0})["seconds"] if seconds is None else round(seconds, 3)
    write(os.path.join(folder, "settings.json"),
          json.dumps(before | {name: {"settings": settings, "seconds": seconds}}, indent=1))


def is_ours(file):
    """Whether a file begins with a completion as eval.py writes it; so does an empty one."""
    try:
        with open(file, encoding="utf-8") as f:
            first = f.readline()
        return not first.strip() or set(KEYS) <= set(json.loads(first))
    except (OSError, ValueError, TypeError):
        return False


def write(file, text):
    """All of it or nothing."""
    with open(file + ".tmp", "w") as f:
        f.write(text)
    os.replace(file + ".tmp", file)


def read_rows(folder, name, settings, wanted, cut_off=False):
    """
    -> {(uid, sample): row} of the completions that need not be made again. What the clock cut off is made again, and
    only in it with cut_off=True.

    Refuses completions that were made with other settings, and files that hold anything else than completions of
    this evaluation. Half a last line, which a kill may leave, is no error.
    """
    files = [f for f in [file_of(folder, name)] if os.path.exists(f)] + parts_of(folder, name)
    before, now = read_settings(folder).get(name), json.loads(json.dumps(settings))
    if before is None and files:
        raise ConfigError(f"{files[0]} has no settings in {folder}/settings.json: remove it, or give another --output")
    if before is not None and before["settings"] != now:
        old = before["settings"]
        changed = [f"{k}: {old.get(k)!r} there, {now.get(k)!r} now" for k in {**old, **now} if old.get(k) != now.get(k)]
        raise ConfigError(f"{folder} holds {name} evaluated with other settings ({', '.join(changed)[:300]}): give "
                          "--output another directory, or remove it")
    rows = {}
    for file in files:
        with open(file, "rb") as f:
            lines = f.read().split(b"\n")
        last = len(lines) - (2 if not lines[-1] else 1)
        for number, line in enumerate(lines):
            if not line and number == len(lines) - 1:
                break
            row = parse(line)
            if row is None and number == last:
                continue  # half a line: this completion was not finished
            if row is None or (row["uid"], row["sample"]) not in wanted:
                raise ConfigError(f"{file}, line {number + 1} is no completion of this evaluation: the file is "
                                  "damaged; remove it, and its completions are made again")
            if cut_off or row["finish_reason"] != "deadline":
                rows[row["uid"], row["sample"]] = row
    return rows


def parse(line):
    """One line -> its row, or None."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in KEYS.items()) else None


def compact(folder, name, rows):
    """Before a session, rank 0 only: what there is into one part, so that nothing is appended to half a line."""
    if old := parts_of(folder, name):
        first = file_of(folder, name, ".part")
        write(first, "".join(json.dumps(row) + "\n" for row in rows.values()))
        for file in old:
            if file != first:
                os.remove(file)


class Journal:
    """Appends this rank's completions, each line flushed; a session is one start of the program, on all ranks."""

    def __init__(self, folder, name, rank, session=""):
        self.file = open(file_of(folder, name, f".part{rank}"), "a", buffering=1)
        self.session, self.start = session, time.monotonic()

    def add(self, row):
        row = row | {"session": self.session, "at": round(time.monotonic() - self.start, 3)}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self):
        self.file.close()


def finish(folder, name, settings, rows, order):
    """
    All completions are there, rank 0 only: write them in order, remove the parts -> (list of rows, seconds of all
    sessions: in each, up to its last completion).
    """
    ends = {}
    for row in rows.values():
        if "at" in row:
            ends[row["session"]] = max(ends.get(row["session"], 0.0), row["at"])
    seconds = sum(ends.values()) or read_settings(folder).get(name, {"seconds": 0.0})["seconds"]
    done = [{k: v for k, v in rows[key].items() if k not in ("session", "at")} for key in order]
    write(file_of(folder, name), "".join(json.dumps(row) + "\n" for row in done))
    write_settings(folder, name, settings, seconds)
    for file in parts_of(folder, name):
        os.remove(file)
    return done, seconds

# ----------------------------------------------------------------------------------------------------------------------
# Tables


def save_results(folder, rows, about, before):
    """
    results.json (with `about`: model, weights, versions, ...), .md and .csv of one model, from its benchmarks' rows. Of
    an earlier evaluation in this folder (`before`) the rows of other benchmarks stay, if it had the same weights.
    """
    settings, made = read_settings(folder), {row["benchmark"] for row in rows}
    rows = [row for row in before if row["benchmark"] not in made and
            settings.get(row["benchmark"], {"settings": {}})["settings"].get("model") == about["weights"]] + rows
    write(os.path.join(folder, "results.json"), json.dumps({**about, "rows": finite(rows)}, indent=1))
    write(os.path.join(folder, "results.md"), to_markdown(RESULT_HEAD, [result_cells(row) for row in rows]))
    write(os.path.join(folder, "results.csv"), to_csv([{k: v for k, v in row.items() if k != "pass_at"}
                                                       for row in finite(rows)]))


def finite(rows):
    """NaN (an interval of no problems) as null: JSON has no NaN."""
    return [{k: None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in rows]


def read_table(file):
    """The rows of an earlier table.json or results.json, or none."""
    if not os.path.exists(file):
        return []
    try:
        with open(file) as f:
            rows = json.load(f)["rows"]
        return [row for row in rows if row.get("step", 0) >= 0 and row["benchmark"] and row["avg_at_k"] >= 0]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}): remove it, it is written anew") from error


def save_sweep(folder, settings, rows, before):
    """
    table.json, .md and .csv of a run. Of an earlier sweep (`before`) the rows of other benchmarks stay, and those of
    steps whose checkpoint is gone where they were made with the same settings, {benchmark: settings}.
    """
    made = {(row["step"], row["benchmark"]) for row in rows}
    before = [row for row in before if (row["step"], row["benchmark"]) not in made]
    now = json.loads(json.dumps(settings))
    for row in list(before):
        old = read_settings(os.path.join(folder, f"step_{row['step']:06d}")).get(row["benchmark"], {"settings": {}})
        old = {k: v for k, v in old["settings"].items() if k != "model"}
        if not old or old != now.get(row["benchmark"], old):
            before.remove(row)
    keys = ("step", "benchmark", "avg_at_k", "pass_at_k", "maj_at_k", "k", "low", "high", "greedy", "truncated",
            "mean_len", "problems")
    rows = sorted(before + [{k: row[k] for k in keys} for row in finite(rows)], key=lambda row: row["step"])
    head, lines = sweep_cells(rows)
    write(os.path.join(folder, "table.json"), json.dumps({"rows": rows}, indent=1))
    write(os.path.join(folder, "table.md"), to_markdown(head, lines))
    write(os.path.join(folder, "table.csv"), to_csv([dict(zip(head, line, strict=True)) for line in lines]))
