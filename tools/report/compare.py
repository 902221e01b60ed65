"""
Compare runs on the same held-out problems: paired bootstrap, settings that differ, code diff.
"""

import difflib
import glob
import itertools
import json
import os
import re

from tools.report.read import code_folder, number, read_lines, setting, size_of, text_of
from tools.statistics import bootstrap

MAX_DIFF_LINES = 3000


def held_out_results(run):
    """Read samples/held_out.jsonl -> {step: {uid: share correct of the sampled responses, or greedy without any}}."""
    found = {}
    path = os.path.join(run["folder"], "samples", "held_out.jsonl")
    for row in read_lines(path)[0] if os.path.exists(path) else ():
        if type(row.get("step")) is int and isinstance(row.get("correct"), dict):
            values = {
                uid: [number(v) for v in (pair if isinstance(pair, list) else [pair])]
                for uid, pair in row["correct"].items()}
            values = {uid: next((v for v in pair if v is not None), None) for uid, pair in values.items()}
            found[row["step"]] = {uid: v for uid, v in values.items() if v is not None}
    return found


def kept_results(run):
    """Return the same as held_out_results from the few held-out rollouts kept in samples/."""
    found = {}
    for step, rows in run["rollouts"].items():
        for r in rows:
            if r["split"] == "held-out" and r["sample"] != "greedy":
                found.setdefault(step, {}).setdefault(r["uid"], []).append(r["correct"])
    return {step: {uid: sum(v) / len(v) for uid, v in by_uid.items()} for step, by_uid in found.items()}


def benchmark_results(run):
    """Find eval/step_NNNNNN/<benchmark>.jsonl -> {benchmark: {step: path}}; only the compared step is read."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(run["folder"]), "eval", "step_*", "*.jsonl")):
        if step := re.fullmatch(r"step_(\d{1,9})", os.path.basename(os.path.dirname(path))):
            found.setdefault(os.path.basename(path)[:-6], {})[int(step[1])] = path
    return found


def benchmark_shares(path):
    """Read {uid: share of its sampled responses that are correct, or of the greedy one where none was sampled}."""
    by_uid = {}
    for row in read_lines(path)[0]:
        if isinstance(row.get("uid"), (str, int)) and "correct" in row:
            sampled = row.get("sample") != "greedy"
            by_uid.setdefault(str(row["uid"]), ([], []))[sampled].append(bool(row["correct"]))
    return {uid: sum(v or greedy) / len(v or greedy) for uid, (greedy, v) in by_uid.items()}


def paired_bootstrap(before, after):
    """
    Compare {uid: share correct} of two policies on the same problems -> (problems, difference, low, high) in points.
    low and high are the 2.5th and 97.5th percentile over problems drawn with replacement. None below two problems.
    """
    common = sorted(before.keys() & after.keys())
    if len(common) < 2:
        return None
    difference = [100 * (after[uid] - before[uid]) for uid in common]
    return len(common), sum(difference) / len(common), *bootstrap(difference)


def verdict(result):
    """Say it in one line: '+3.1 points, 95 % [0.4, 5.9]', or 'no difference can be told' with the same numbers."""
    problems, difference, low, high = result
    numbers = f"{difference:+.1f} points, 95 % [{low:.1f}, {high:.1f}]"
    if problems < 10:
        return f"no difference can be told from {problems} problems: {numbers}"
    return numbers if low > 0 or high < 0 else f"no difference can be told: {numbers}"


def other_problems(a, b):
    """Tell whether a uid names another problem in the other run: another gold answer or, without it, another prompt."""
    seen = [{r["uid"]: r for rows in run["rollouts"].values() for r in rows if r["split"] == "held-out"}
            for run in (a, b)]
    same_template = setting(a, "template") == setting(b, "template")
    for uid in seen[0].keys() & seen[1].keys():
        x, y = seen[0][uid], seen[1][uid]
        if x["gold"] != y["gold"] if x["gold"] and y["gold"] else same_template and x["prompt"] != y["prompt"]:
            return True
    return False


def mean_shares(runs_shares):
    """Average {uid: share} over the seeds of a group, for the problems that all of them have."""
    common = set.intersection(*map(set, runs_shares))
    return {uid: sum(shares[uid] for shares in runs_shares) / len(runs_shares) for uid in common}


def compare_pair(a, b, runs_a, runs_b):
    """Compare two groups of runs -> [{what, line, note}]: the held-out problems of training first, then benchmarks."""
    everyone, made = runs_a + runs_b, []
    if any(other_problems(x, y) for x, y in itertools.combinations(everyone, 2)):
        return [{
            "what": f"{b} against {a}",
            "line": "not comparable problem by problem: the same names stand for other problems",
            "note": "The runs drew other held-out problems (another seed or other data)."}]
    few = "Only over the held-out rollouts kept in samples/, which are few."
    for source, how in ((held_out_results, ""), (kept_results, few)):
        results = [source(run) for run in everyone]
        steps = set.intersection(*map(set, results))
        chosen = [max(steps)] * len(results) if steps else [max(r, default=None) for r in results]
        if None in chosen:
            continue
        shares = [r[step] for r, step in zip(results, chosen, strict=True)]
        groups = mean_shares(shares[:len(runs_a)]), mean_shares(shares[len(runs_a):])
        if result := paired_bootstrap(*groups):
            when = f"step {chosen[0]}" if steps else "the last evaluation of each, at other steps"
            start = ["The start models: the runs have no later evaluation at the same step."]
            only = len(set.union(*map(set, shares)) - (groups[0].keys() & groups[1].keys()))
            made.append({
                "what": f"{b} against {a}, held-out success, {when}, {result[0]} problems", "line": verdict(result),
                "note": " ".join(start * (max(steps, default=1) == 0) + [how] * bool(how) +
                                 [f"{only} problems that not all runs were asked are left out."] * bool(only))})
            break
    else:
        made.append({
            "what": f"{b} against {a}", "line": "no difference can be told: no common held-out problems are stored",
            "note": "samples/held_out.jsonl is missing or the runs evaluated other problems."})
    benchmarks = [benchmark_results(run) for run in everyone]
    for name in sorted(set.intersection(*map(set, benchmarks))):
        steps = set.intersection(*[set(found[name]) for found in benchmarks])
        paths = [found[name][max(steps or found[name])] for found in benchmarks]
        shares = [benchmark_shares(path) for path in paths]
        if result := paired_bootstrap(mean_shares(shares[:len(runs_a)]), mean_shares(shares[len(runs_a):])):
            when = f"step {max(steps)}" if steps else "the last evaluation of each"
            made.append(
                {"what": f"{b} against {a}, {name}, {when}, {result[0]} problems", "line": verdict(result), "note": ""})
    return made


def code_diff(a, b):
    """Diff the code kept with two runs -> ([{file, lines}], note), at most MAX_DIFF_LINES."""
    folders = code_folder(a), code_folder(b)
    if not all(folders):
        return [], "code/ is missing: the code cannot be compared"
    texts = []
    for folder in folders:
        files = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True)):
            if os.path.isfile(path) and os.path.basename(path) != "git.txt" and size_of(path) < 400_000:
                try:
                    with open(path, encoding="utf-8", errors="replace") as f:
                        files[os.path.relpath(path, folder)] = f.read().splitlines()
                except OSError:
                    return [], f"{path} cannot be read: the code cannot be compared"
        texts.append(files)
    made, left = [], MAX_DIFF_LINES
    for name in sorted(texts[0].keys() | texts[1].keys()):
        old, new = texts[0].get(name, []), texts[1].get(name, [])
        if old != new and left > 0:
            lines = list(difflib.unified_diff(old, new, a["name"], b["name"], lineterm="", n=2))[2:]
            made.append({"file": name, "lines": [line[:400] for line in lines[:left]]})
            left -= len(lines)
    return made, f"The diff is cut at {MAX_DIFF_LINES:,} lines." if left < 0 else ""


def compare(groups):
    """Collect what only the page of several groups has: verdicts, settings that differ, code diff."""
    (first, base), *others = groups.items()
    verdicts = [v for name, runs in others for v in compare_pair(first, name, base, runs)]
    everyone = [run for runs in groups.values() for run in runs]
    settings = [run["config"].get("settings") for run in everyone]
    settings = [s if isinstance(s, dict) else {} for s in settings]
    names = [n for n in dict.fromkeys(itertools.chain(*settings))
             if n != "name" and len({json.dumps(s.get(n)) for s in settings}) > 1]
    diffs = []
    for name, runs in others:
        files, note = code_diff(base[0], runs[0])
        diffs.append(
            {"what": f"{base[0]['name']} \u2192 {runs[0]['name']}", "group": name, "files": files, "note": note})
    return {
        "verdicts": verdicts, "runs": [run["name"] for run in everyone], "diffs": diffs,
        "settings": [{"name": n, "values": [text_of(s[n], 400) if n in s else "" for s in settings]} for n in names]}
