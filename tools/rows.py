"""
Print rows, prompts, and problems that are in two data sets: the command line of data.py, whose top lists the names.
"""

import argparse
import json
import os
import sys

from data import Prompt, __doc__ as names, build_prompt, countdown, load_rows, tiny_countdown
from onebox.text import excerpt
from tasks import task_of


def problem_key(row):
    """Return what makes two rows the same problem, for the task that they belong to."""
    return task_of(row)[1].problem_key(row)


def leak_check(train, test, paths=None):
    """
    Find problems that are in both -> [{"train": uid or index, "test": uid or "name/index", "question": excerpt}].

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
    """Yield (label, row) of Prompts, rows or names of test sets."""
    for index, item in enumerate([items] if isinstance(items, str) else items):
        if isinstance(item, str):
            rows = load_rows(item, "test", (paths or {}).get(item))
            yield from ((f"{item}/{i}", row) for i, row in enumerate(rows))
        else:
            yield (item.uid, item.row) if isinstance(item, Prompt) else (index, item)


def named_path(text, names):
    """Split "gsm8k=a.jsonl" into ("gsm8k", "a.jsonl"); a path that holds a "=" itself is the first name's."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and name in names and not os.path.exists(text) else (names[0], text)


def show():
    parser = argparse.ArgumentParser(description=names, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="a source to print; with --leak a train set, then test sets")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, help="of countdown and tiny_countdown: fresh rows")
    parser.add_argument("--template", help="print prompts instead of rows")
    parser.add_argument("--path", action="append", default=[], metavar="[NAME=]PATH", help="a local copy")
    parser.add_argument("--columns", type=json.loads, help='{"question": "their name of it", ...} as JSON')
    parser.add_argument("--leak", action="store_true", help="print problems that are in train and test sets")
    args = parser.parse_args()
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed {args.seed} must not be negative")
    if args.count < 1:
        parser.error(f"--count {args.count} must be at least 1")
    paths = dict(named_path(path, args.names) for path in args.path)
    name = args.names[0]
    if args.leak:
        found = leak_check(load_rows(name, args.split, paths.get(name)), args.names[1:], paths)
        for overlap in found[:20]:
            print(f"{name}/{overlap['train']}  =  {overlap['test']}  {overlap['question']}")
        print(f"{len(found):,} problems of {', '.join(args.names[1:])} are in {name} ({args.split})")
        return
    generator = {"countdown": countdown, "tiny_countdown": tiny_countdown}.get(name)
    if args.seed is not None and generator:
        rows = generator(args.count, args.seed)
    else:
        rows = load_rows(name, args.split, paths.get(name), limit=args.count, columns=args.columns)
    for row in rows:
        print(build_prompt(args.template, row) if args.template else json.dumps(row, ensure_ascii=False, default=str))


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
