"""Compare two metrics.jsonl, all columns but those of the clock: python compare.py A/metrics.jsonl B/metrics.jsonl"""

import json
import sys

CLOCK = ("tokens_per_second", "mfu", "mbu", "roofline")


def rows(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


a, b = (rows(path) for path in sys.argv[1:3])
differ = {}
for x, y in zip(a, b, strict=False):
    for name in {**x, **y}:
        if not name.startswith("seconds") and name not in CLOCK and x.get(name, "none") != y.get(name, "none"):
            differ.setdefault(name, []).append((x["step"], x.get(name, "none"), y.get(name, "none")))
print(f"{len(a)} and {len(b)} rows; columns that differ: {differ or 'none'}")
