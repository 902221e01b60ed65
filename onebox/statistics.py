"""
The statistics and tables of eval.py, as pure functions: avg@k, pass@k, maj@k, bootstrap intervals; text, Markdown, CSV.

No torch and no engine: tools/report and notebooks may use it on the JSONL that eval.py writes.
"""

import csv
import io
import math

import numpy as np

RESAMPLES = 10_000


def pass_at_k(n, c, k):
    """
    The chance that at least one of k samples is right, unbiased, from n samples of which c are right.
    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1. ValueError unless 1 <= k <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k wants 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers, equal):
    """
    The index of an answer that stands for the largest class of equal ones, None where there is none at all. None is
    no vote; of classes of one size the one whose first member came first wins.

    equal(i, j): whether answers i and j are the same; compared with the first member of each class.
    """
    classes = []
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        home = next((members for members in classes if answer == answers[members[0]] or equal(members[0], i)), None)
        if home is None:
            classes.append([i])
        else:
            home.append(i)
    return max(classes, key=len)[0] if classes else None  # max: the first of equals


def interval(values, level=0.95, seed=0):
    """
    -> (low, high) of the mean of `values`, one number in 0..1 a problem: percentile bootstrap over problems.

    The seed is fixed: the same numbers give the same interval. Where all values agree resampling has no spread, which
    would claim certainty: then the exact binomial bound of a share of 0 or 1 stands in, 30 of 30 right: [0.884, 1].
    No values: (nan, nan).
    """
    values = np.asarray(values, dtype=np.float64)
    n, tail = len(values), (1 - level) / 2
    if n == 0:
        return math.nan, math.nan
    if (values == values[0]).all():
        shrink = tail ** (1 / n)
        return float(values[0] * shrink), float(1 - (1 - values[0]) * shrink)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, RESAMPLES, 500):  # in parts: 10,000 x 1,319 indices at once would be 100 MB
        chosen = rng.integers(0, n, size=(min(500, RESAMPLES - start), n))
        means.append(values[chosen].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def powers_up_to(k):
    """8 -> [1, 2, 4, 8]; 6 -> [1, 2, 4, 6]"""
    return sorted({1 << i for i in range(k.bit_length()) if 1 << i <= k} | {k})


def summarise(rows, seconds, same=None):
    """
    The completions of one benchmark -> its row of the results.

    rows     dicts with uid, sample (0 .. k-1, or "greedy"), correct, tokens, finish_reason, extracted; every problem
             has the same samples. Without sampled ones the greedy response is the one sample (k = 1).
    same     (row, row) -> whether their extracted answers are equal, for maj@k
    avg@k is the mean share right, with the bootstrap interval [low, high] over problems; pass@k and maj@k use all k
    (`pass_at` has the smaller ones); maj@k is None below 3 samples, or where the reward extracts no answer.
    """
    problems, greedy = {}, {}
    for row in rows:
        if row["sample"] == "greedy":
            greedy[row["uid"]] = row
        else:
            problems.setdefault(row["uid"], []).append(row)
    if not problems:
        problems = {uid: [row] for uid, row in greedy.items()}
    counted = [row for group in problems.values() for row in group]
    k = min(map(len, problems.values()), default=0)
    right = [sum(row["correct"] for row in group) for group in problems.values()]
    shares = [c / len(group) for c, group in zip(right, problems.values(), strict=True)]
    low, high = interval(shares)
    tokens, n = [row["tokens"] for row in counted], max(1, len(problems))
    passed = {j: sum(pass_at_k(len(group), c, j) for c, group in zip(right, problems.values(), strict=True)) / n
              for j in powers_up_to(k) if j}
    voted = None
    if k >= 3 and same is not None and any(row["extracted"] is not None for row in counted):
        voted = sum(group[i]["correct"] for group in problems.values()
                    if (i := majority([row["extracted"] for row in group],
                                      lambda i, j, group=group: same(group[i], group[j]))) is not None) / n
    return {
        "problems": len(problems), "k": k, "avg_at_k": sum(shares) / n, "low": low, "high": high,
        "pass_at_k": passed.get(k, 0.0), "pass_at": {str(j): share for j, share in passed.items()}, "maj_at_k": voted,
        "greedy": sum(row["correct"] for row in greedy.values()) / len(greedy) if greedy else None,
        "truncated": sum(row["finish_reason"] != "stop" for row in counted) / max(1, len(counted)),
        "mean_len": sum(tokens) / max(1, len(counted)), "completions": len(rows), "seconds": seconds,
        "tokens_per_second": sum(row["tokens"] for row in rows) / seconds if seconds else None,
        "gave_up": sum(bool({"timeout", "error"} & set(row.get("flags", ()))) for row in rows),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def plain(value):
    """Any value as text that cannot move a cursor or break a line: control characters become \\x1b and the like."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def percent(share):
    return "-" if share is None or share != share else f"{100 * share:.1f}"


def result_cells(row):
    """One benchmark's row of the results -> the cells of RESULT_HEAD."""
    speed = row["tokens_per_second"]
    return [row["benchmark"], row["problems"], row["k"], percent(row["avg_at_k"]),
            f"[{percent(row['low'])}, {percent(row['high'])}]", percent(row["pass_at_k"]), percent(row["maj_at_k"]),
            percent(row["greedy"]), percent(row["truncated"]), f"{row['mean_len']:.0f}", f"{row['seconds']:.0f}",
            "-" if speed is None else f"{speed:.0f}"]


RESULT_HEAD = ["benchmark", "problems", "k", "avg@k %", "95 % interval", "pass@k %", "maj@k %", "greedy %", "cut %",
               "tokens", "seconds", "tokens/s"]


def sweep_cells(rows):
    """Rows with step, benchmark and avg_at_k -> (head, cells): a line a step, a column a benchmark, and the average."""
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    found = {(row["step"], row["benchmark"]): row["avg_at_k"] for row in rows}
    lines = []
    for step in sorted({row["step"] for row in rows}):
        shares = [found.get((step, name)) for name in names]
        whole = None not in shares  # an average over other benchmarks than the line above would mislead
        lines.append([step, *map(percent, shares), percent(sum(shares) / len(shares) if whole else None)])
    return ["step", *names, "average"], lines


def to_text(head, lines):
    """Aligned columns for a terminal: the first to the left, numbers to the right."""
    table = [[plain(cell) for cell in line] for line in [head, *lines]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in
                               enumerate(zip(line, widths, strict=True))).rstrip() for line in table)


def to_markdown(head, lines):
    def cell(value):
        return plain(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def to_csv(rows):
    """Dicts with the same keys -> CSV with a header. Text that a spreadsheet would run (=, +, -, @) gets a ' first."""
    def cell(value):
        if value is None or isinstance(value, (int, float)):
            return value
        text = plain(value)
        return "'" + text if text[:1] in ("=", "+", "-", "@") else text

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(name) for name in rows[0]] if rows else [])
    writer.writerows([cell(value) for value in row.values()] for row in rows)
    return out.getvalue()
