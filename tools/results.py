"""
The files of an evaluation: what it asked, its completions, and tables of its results as text, Markdown, CSV and JSON.

    DIR/settings.json        {benchmark: {"settings": all that decides its completions, "seconds": spent}}
    DIR/gsm8k.part0.jsonl    while it runs, one file per rank: a line per completion as it finishes
    DIR/gsm8k.jsonl          once all are there, in the order of the problems; the parts are gone
    DIR/results.*            json, md and csv: one row per benchmark
    SWEEP/table.*            of a sweep, whose DIRs are SWEEP/step_NNNNNN: a row per step and benchmark

Nothing here depends on how often an evaluation was interrupted, nor on the number of ranks. No torch.
"""

import csv
import glob
import io
import json
import os
import re

from onebox.config import ConfigError
from onebox.files import write_atomic
from onebox.text import visible

FIELDS = {"uid": str, "sample": (int, str), "prompt": str, "response": str, "correct": bool, "reward": (int, float),
          "tokens": int, "finish_reason": str}


def file_of(folder, name, part=""):
    return os.path.join(folder, re.sub(r"[^\w.@+-]", "_", name) + part + ".jsonl")


def parts_of(folder, name):
    return sorted(glob.glob(glob.escape(file_of(folder, name, ".part"))[:-6] + "*.jsonl"))


def read_settings(folder):
    """Read settings.json as a dict, empty where there is none yet."""
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
    """Record a benchmark's settings (rank 0 only); seconds None: as they were."""
    os.makedirs(folder, exist_ok=True)
    before = read_settings(folder)
    seconds = before.get(name, {"seconds": 0.0})["seconds"] if seconds is None else round(seconds, 3)
    now = before | {name: {"settings": settings, "seconds": seconds}}
    write_atomic(os.path.join(folder, "settings.json"), json.dumps(now, indent=1))


def parse(line):
    """Parse one line into its row; None if it is no completion."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(row.get(k), kind) for k, kind in FIELDS.items()) else None


def is_ours(file):
    """Tell whether a file is empty or begins with a completion of eval.py."""
    try:
        with open(file, "rb") as f:
            first = f.readline()
    except OSError:
        return False
    return not first.strip() or parse(first) is not None


def read_rows(folder, name, settings, wanted, cut_off=False):
    """
    Read {(uid, sample): row} of the completions that need not be made again. Those that the deadline cut off are made
    again, and are only returned with cut_off=True. Half a last line, which a kill may leave, is no error.

    ConfigError for completions made with other settings, and for a file that holds anything but `wanted` completions.
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
            lines = f.read().removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, start=1):
            row = parse(line)
            if row is None and number == len(lines):
                continue  # half a line: this completion was not finished
            if row is None or (row["uid"], row["sample"]) not in wanted:
                raise ConfigError(f"{file}, line {number} is no completion of this evaluation: the file is damaged; "
                                  "remove it, and its completions are made again")
            if cut_off or row["finish_reason"] != "deadline":
                rows[row["uid"], row["sample"]] = row
    return rows


def compact(folder, name, rows):
    """Put what there is into one part, before a start (rank 0 only), so that nothing is appended to half a line."""
    if old := parts_of(folder, name):
        first = file_of(folder, name, ".part")
        write_atomic(first, "".join(json.dumps(row) + "\n" for row in rows.values()))
        for file in old:
            if file != first:
                os.remove(file)


def finish(folder, name, settings, rows, order):
    """
    Write all completions in order and remove the parts (rank 0 only) -> (rows, seconds of all sessions). A session is
    one start of the program on all ranks; it lasts until its last completion.
    """
    ends = {}
    for row in rows.values():
        if "at" in row:
            ends[row["session"]] = max(ends.get(row["session"], 0.0), row["at"])
    seconds = sum(ends.values()) or read_settings(folder).get(name, {"seconds": 0.0})["seconds"]
    done = [{k: v for k, v in rows[key].items() if k not in ("session", "at")} for key in order]
    write_atomic(file_of(folder, name), "".join(json.dumps(row) + "\n" for row in done))
    write_settings(folder, name, settings, seconds)
    for file in parts_of(folder, name):
        os.remove(file)
    return done, seconds


# ---------------------------------------------------------------- Results


def finite(rows):
    """Turn NaN (an interval of no problems) into null: JSON has no NaN."""
    return [{k: None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in rows]


def read_table(file):
    """Read the rows of an earlier table.json or results.json; [] where there is none."""
    if not os.path.exists(file):
        return []
    try:
        with open(file) as f:
            rows = json.load(f)["rows"]
        return [row for row in rows if row.get("step", 0) >= 0 and row["benchmark"] and row["avg_at_k"] >= 0]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}): remove it, it is written anew") from error


def save_results(folder, rows, about, before):
    """
    Write results.json (with `about`: model, weights, versions, ...), .md and .csv of one model. The rows of other
    benchmarks of an earlier evaluation (`before`) stay, if it had the same weights.
    """
    settings, made = read_settings(folder), {row["benchmark"] for row in rows}
    rows = [row for row in before if row["benchmark"] not in made and
            settings.get(row["benchmark"], {"settings": {}})["settings"].get("model") == about["weights"]] + rows
    write_atomic(os.path.join(folder, "results.json"), json.dumps({**about, "rows": finite(rows)}, indent=1))
    write_atomic(os.path.join(folder, "results.md"), to_markdown(RESULT_HEAD, [result_cells(row) for row in rows]))
    flat = [{k: v for k, v in row.items() if k != "pass_at"} for row in finite(rows)]
    write_atomic(os.path.join(folder, "results.csv"), to_csv(flat))


def save_sweep(folder, settings, rows, before):
    """
    Write table.json, .md and .csv of a run. Of an earlier sweep (`before`) the rows of other benchmarks stay, and those
    of steps whose checkpoint is gone, where they were made with the same settings, {benchmark: settings}.
    """
    made, now = {(row["step"], row["benchmark"]) for row in rows}, json.loads(json.dumps(settings))
    kept = []
    for row in before:
        old = read_settings(os.path.join(folder, f"step_{row['step']:06d}")).get(row["benchmark"], {"settings": {}})
        old = {k: v for k, v in old["settings"].items() if k != "model"}
        if (row["step"], row["benchmark"]) not in made and old and old == now.get(row["benchmark"], old):
            kept.append(row)
    names = ("step", "benchmark", "avg_at_k", "pass_at_k", "maj_at_k", "k", "low", "high", "greedy", "truncated",
             "mean_len", "problems")
    rows = sorted(kept + [{k: row[k] for k in names} for row in finite(rows)], key=lambda row: row["step"])
    head, lines = sweep_cells(rows)
    write_atomic(os.path.join(folder, "table.json"), json.dumps({"rows": rows}, indent=1))
    write_atomic(os.path.join(folder, "table.md"), to_markdown(head, lines))
    write_atomic(os.path.join(folder, "table.csv"), to_csv([dict(zip(head, line, strict=True)) for line in lines]))


# ---------------------------------------------------------------- Tables


def plain(value):
    """Turn any value into one line of text that cannot move a cursor: control characters become \\x1b and the like."""
    return visible("" if value is None else str(value)).replace("\n", "\\n").replace("\t", "\\t")


def percent(share):
    return "-" if share is None or share != share else f"{100 * share:.1f}"


RESULT_HEAD = ["benchmark", "problems", "k", "avg@k %", "95 % interval", "pass@k %", "maj@k %", "greedy %", "cut %",
               "tokens", "seconds", "tokens/s"]


def result_cells(row):
    """Format one benchmark's row of the results as the cells of RESULT_HEAD."""
    speed = row["tokens_per_second"]
    return [row["benchmark"], row["problems"], row["k"], percent(row["avg_at_k"]),
            f"[{percent(row['low'])}, {percent(row['high'])}]", percent(row["pass_at_k"]), percent(row["maj_at_k"]),
            percent(row["greedy"]), percent(row["truncated"]), f"{row['mean_len']:.0f}", f"{row['seconds']:.0f}",
            "-" if speed is None else f"{speed:.0f}"]


def sweep_cells(rows):
    """Arrange rows with step, benchmark, avg_at_k as (head, lines): a line per step, a column per benchmark, a mean."""
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    found = {(row["step"], row["benchmark"]): row["avg_at_k"] for row in rows}
    lines = []
    for step in sorted({row["step"] for row in rows}):
        shares = [found.get((step, name)) for name in names]
        whole = None not in shares  # an average over other benchmarks than the line above would mislead
        lines.append([step, *map(percent, shares), percent(sum(shares) / len(shares) if whole else None)])
    return ["step", *names, "average"], lines


def to_text(head, lines):
    """Align columns for a terminal: the first to the left, numbers to the right."""
    table = [[plain(cell) for cell in line] for line in [head, *lines]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in
                               enumerate(zip(line, widths, strict=True))).rstrip() for line in table)


def to_markdown(head, lines):
    def cell(value):
        return plain(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def to_csv(rows):
    """Write dicts with the same keys as CSV. Text that a spreadsheet would run (it begins with =, +, -, @) gets a '."""
    def cell(value):
        if value is None or isinstance(value, (int, float)):
            return value
        text = plain(value)
        return "'" + text if text[:1] in ("=", "+", "-", "@") else text

    out = io.StringIO()
    lines = [*rows[:1], *(row.values() for row in rows)]  # a dict as a line: its keys
    csv.writer(out, lineterminator="\n").writerows([*map(cell, line)] for line in lines)
    return out.getvalue()
