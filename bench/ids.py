"""
Seconds that one rank spends to pickle and read back the ids of all rollouts of a step, as lists and as int32 arrays.

    python bench/ids.py [--responses 1024] [--tokens 16384] [--repeats 3] [--out FILE]
"""

import argparse
import pickle
import statistics
import time

import numpy as np
from common import command, say


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="", help="a file to which the lines are added")
    args = parser.parse_args()
    arrays = list(np.random.default_rng(0).integers(0, 151936, (args.responses, args.tokens), dtype=np.int32))
    lines = [f"`{command()}`"]
    for how, ids in (("lists", [array.tolist() for array in arrays]), ("int32 arrays", arrays)):
        spent = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            text = pickle.dumps(ids)
            pickle.loads(text)
            spent.append(time.perf_counter() - start)
        lines.append(f"ids as {how}: {len(text) / 1e6:.0f} MB, median {statistics.median(spent):.2f} s of "
                     + ", ".join(f"{s:.2f}" for s in spent))
    say(lines, args.out)


if __name__ == "__main__":
    main()
