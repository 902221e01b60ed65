"""
Statistics of evaluations: avg@k, pass@k, maj@k, bootstrap intervals.

Pure functions without torch or engine: notebooks may use them on the JSONL that eval.py writes.
"""

import math

import numpy as np


def pass_at_k(n, c, k):
    """
    Estimate without bias the chance that at least one of k samples is correct, from n samples of which c are.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, eq. 1. ValueError unless 1 <= k <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k wants 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers, equal):
    """
    Return the index of an answer from the largest class of equal ones, or None if there is no answer.

    An answer None is no vote. Of classes of one size the first wins. equal(i, j): whether answers i and j are the same.
    """
    classes = []
    for i, answer in enumerate(answers):
        if answer is not None:
            same = next((found for found in classes if answer == answers[found[0]] or equal(found[0], i)), None)
            if same is None:
                classes.append(same := [])
            same.append(i)
    return max(classes, key=len)[0] if classes else None  # max: the first of equals


def bootstrap(values, level=0.95, resamples=10_000):
    """Return (low, high) of the mean of one or more values: percentile bootstrap, always with the same seed."""
    values, rng, means = np.asarray(values, dtype=np.float64), np.random.default_rng(0), []
    for start in range(0, resamples, 500):  # in parts: 10,000 x 1,319 indices at once would be 100 MB
        drawn = rng.integers(0, len(values), size=(min(500, resamples - start), len(values)))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(shares, level=0.95):
    """
    Return (low, high) of the mean of `shares`, one number in 0 ... 1 per problem; (nan, nan) for no problems.

    Where all shares agree, resampling has no spread, which would claim certainty. Then the exact binomial bound of a
    share of 0 or 1 stands in: 30 of 30 correct give [0.884, 1].
    """
    if not len(shares):
        return math.nan, math.nan
    if min(shares) == max(shares):
        shrink = ((1 - level) / 2) ** (1 / len(shares))
        return float(shares[0] * shrink), float(1 - (1 - shares[0]) * shrink)
    return bootstrap(shares, level)


def powers_up_to(k):
    """Return the powers of two up to k, and k: 8 -> [1, 2, 4, 8], 6 -> [1, 2, 4, 6]."""
    return sorted({1 << i for i in range(k.bit_length()) if 1 << i <= k} | {k})


def summarize(rows, seconds, same=None):
    """
    Turn the completions of one benchmark into its row of the results.

    rows: dicts with uid, sample (0 ... k-1, or "greedy"), correct, tokens, finish_reason, extracted; every problem has
    the same samples, or only a greedy one (k = 1). same(row, row): whether the answers extracted are equal, for maj@k.
    avg@k is the mean share correct, [low, high] its interval over problems. pass@k and maj@k use all k; `pass_at` has
    the smaller ones. maj@k is None below 3 samples, or where the reward extracts no answer.
    """
    problems, greedy = {}, {}
    for row in rows:
        if row["sample"] == "greedy":
            greedy[row["uid"]] = row
        else:
            problems.setdefault(row["uid"], []).append(row)
    groups = list(problems.values()) or [[row] for row in greedy.values()]
    counted = [row for group in groups for row in group]
    k, n, m = min(map(len, groups), default=0), max(1, len(groups)), max(1, len(counted))
    correct = [sum(row["correct"] for row in group) for group in groups]
    shares = [c / len(group) for c, group in zip(correct, groups, strict=True)]
    low, high = interval(shares)
    passed = {j: sum(pass_at_k(len(group), c, j) for c, group in zip(correct, groups, strict=True)) / n
              for j in powers_up_to(k) if j}
    voted = None
    if k >= 3 and same is not None and any(row["extracted"] is not None for row in counted):
        winners = [majority([row["extracted"] for row in group], lambda i, j, group=group: same(group[i], group[j]))
                   for group in groups]
        voted = sum(group[i]["correct"] for i, group in zip(winners, groups, strict=True) if i is not None) / n
    return {
        "problems": len(groups), "k": k, "avg_at_k": sum(shares) / n, "low": low, "high": high,
        "pass_at_k": passed.get(k, 0.0), "pass_at": {str(j): share for j, share in passed.items()}, "maj_at_k": voted,
        "greedy": sum(row["correct"] for row in greedy.values()) / len(greedy) if greedy else None,
        "truncated": sum(row["finish_reason"] != "stop" for row in counted) / m,
        "mean_len": sum(row["tokens"] for row in counted) / m, "completions": len(rows), "seconds": seconds,
        "tokens_per_second": sum(row["tokens"] for row in rows) / seconds if seconds else None,
        "gave_up": sum(bool({"timeout", "error"} & set(row.get("flags", ()))) for row in rows)}
