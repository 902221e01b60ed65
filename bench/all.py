"""
All CPU benchmarks one after the other, then one table of all that they found: `make bench`.

    python bench/all.py [--quick] [--only trl_step,scaling] [--out out/bench]

Each is a program of its own (its docstring says what it compares) and leaves OUT/NAME.md with its table and, where it
has them, raw numbers in OUT/NAME.json. The table is also in OUT/table.md. --quick: the smallest case of each, to see
that they run; about 10 minutes in place of an hour on two cores. Close other programs first.
"""

import argparse
import os
import platform
import subprocess
import sys
import time

from common import ROOT, command

BENCHMARKS = {  # name: (what it is called in the table, columns that name a case, command, what --quick adds)
    "trl_step": ("trainer step, ours / TRL", 5, "bench/trl_step.py --threads 2",
                 "--sizes 2 --dtypes float32 --repeats 1"),
    "trl_whole": ("whole step, ours / TRL + vLLM (patched)", 5,
                  "bench/trl_whole.py --threads 2 --sizes 4 --repeats 3 --kinds ours trl",
                  "--shapes ragged --longest 64 --repeats 1"),
    "scaling": ("scaling of the trainer step", 5, "bench/scaling.py", "--tokens 1024 2048 --vocabs 32000 64000"),
    "rewards": ("rewards, one core", 1, "bench/rewards.py", "--seconds 0.2"),
}


def rows_of(path, title, keys):
    """Read the Markdown tables of a benchmark's file as rows of three cells: title, case, what was measured."""
    found, header = [], None
    with open(path) as f:
        for line in f:
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else None
            if cells is None or set(cells[0]) <= {"-", "|"}:
                header = header if cells else None
            elif header is None:
                header = cells
            else:
                named = [f"{n} {c}" if c.replace(",", "").isdigit() else c for n, c in zip(header, cells, strict=True)]
                measured = [f"{n} {c}" for n, c in list(zip(header, cells, strict=True))[keys:] if c]
                found.append((title, ", ".join(c for c in named[:keys] if c), "; ".join(measured)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help=f"of {', '.join(BENCHMARKS)}, with commas between")
    parser.add_argument("--out", default="out/bench")
    args = parser.parse_args()
    chosen = [name for name in args.only.split(",") if name] or list(BENCHMARKS)
    if unknown := set(chosen) - set(BENCHMARKS):
        raise SystemExit(f"error: no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    args.out = os.path.abspath(args.out)
    os.makedirs(args.out, exist_ok=True)
    rows, failed = [], []
    for name in chosen:
        title, keys, program, quick = BENCHMARKS[name]
        stem = os.path.join(args.out, name)
        for old in (stem + ".md", stem + ".json"):
            if os.path.exists(old):
                os.remove(old)
        program = [sys.executable, *program.split(), *(quick.split() if args.quick else []), "--out", stem]
        print(f"\n{' '.join(program[1:])}", flush=True)
        start = time.monotonic()
        if subprocess.run(program, cwd=ROOT).returncode:  # the others are still worth having
            failed.append(name)
        print(f"({(time.monotonic() - start) / 60:.1f} minutes)", flush=True)
        if os.path.exists(stem + ".md"):  # also what one that failed later had found
            rows += rows_of(stem + ".md", title, keys)
    about = f"`{command()}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores"
    lines = [about, "",
             "| benchmark | case | measured |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    with open(os.path.join(args.out, "table.md"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} ended with an error, see above")


if __name__ == "__main__":
    main()
