"""
The embedded world: starts (cold-started models of 0.09 to 4.2 million parameters), tokenizer and data of three tasks.

    python -m experiments.world                  lists the starts
    python -m experiments.world data             writes out/world/data/*.jsonl: problems of every task and level
    python -m experiments.world countdown        builds out/world-countdown/model: data, traces, sft.py (in minutes)

More than 2,000 of the ids are words that no trace holds. So they are never a target, and a trained model gives them
little: the tail into which hot sampling falls, as in models with a real vocabulary (README.md has it measured).
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

from experiments import arithmetic, countdown, knights
from onebox.files import read_json, write_atomic

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORLD = os.path.join("out", "world")  # relative to where the command runs, as out/ of every run is

VOCAB_SIZE = 2560
WORDS = """<think> </think> <answer> </answer> <reasoning> </reasoning> \\boxed{ \\boxed{} } ( ) + - * / = : . , numbers
with target try too high low right so the answer is suppose says a knight knave and or true false ok contradiction again
(1) (2) (3) (4) guess wait Please reason step by put your final within Think tags Respond in format conversation between
User Assistant A Let's think output Zoey Oliver Emma Liam Ava Noah Mia
Jack""".split() + [str(number) for number in range(100)]

SIZES = {  # hidden size, layers, heads of 32 or more (vLLM's CPU kernels want that): parameters with the embeddings
    "tiny": (32, 1, 1),      # 0.09 M
    "small": (64, 3, 2),     # 0.3 M
    "normal": (128, 4, 4),   # 0.9 M
    "large": (256, 6, 8),    # 4.2 M
}
STARTS = {  # name: task, kind of traces, size, steps of the cold start
    "countdown": ("countdown", "search", "normal", 1400),
    "countdown_instruct": ("countdown", "instruct", "normal", 1400),
    "countdown_rambling": ("countdown", "rambling", "normal", 1400),
    "countdown_no_format": ("countdown", "no_format", "normal", 1400),
    "countdown_small": ("countdown", "search", "small", 1400),
    "countdown_tiny": ("countdown", "search", "tiny", 1400),
    "countdown_large": ("countdown", "search", "large", 1400),
    "knights": ("knights", "search", "normal", 3200),
    "arithmetic": ("arithmetic", "", "normal", 1800),
}
MIXES = {  # of levels in the traces
    "countdown": {"32": 0.35, "42": 0.5, "52": 0.15},
    "knights": {"2": 0.4, "3": 0.4, "4": 0.2},
    "arithmetic": {str(level): 0.125 for level in range(2, 10)},
}
TRAIN, TEST = 4000, 200  # rows of a level, fewer where there are not so many problems
TRACES = {"countdown": 30_000, "knights": 30_000, "arithmetic": 30_000}
TAUGHT = 2_000


def build_tokenizer():
    """Build a tokenizer with a token per word, with and without the blank before it, and one for a line break."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tools import tiny

    words = ["<pad>", "<eos>", "<unk>", "\n"]
    words += [blank + word for word in WORDS for blank in (" ", "")]
    words += [f" word{i}" for i in range(VOCAB_SIZE - len(words))]  # never trained
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = Split(Regex(r"\n| ?[^ \n]+"), "isolated"), Fuse()
    return tiny.as_tokenizer(backend)


def build_model(size, seed):
    """Build an untrained Qwen2ForCausalLM, fp32."""
    from tools import tiny

    return tiny.build_model(seed, build_tokenizer(), *SIZES[size])


def rows_of(task, level, count, split):
    """Make the rows of a task and level, with the fields `prompt_...` that a recipe's template shows."""
    if task == "countdown":
        rows = countdown.problems(level, count, 0, split)
        return [{**row, "prompt_text": countdown.prompt(row)} for row in rows]
    if task == "knights":
        rows = knights.puzzles(int(level), count, 0, split)
        return [{**row, "prompt_text": knights.prompt(row)} for row in rows]
    return [{**row, **{f"prompt_{form}": arithmetic.prompt(row, form) for form in arithmetic.FORMS}}
            for row in arithmetic.problems(level, count, 0, split)]


def traces(task, kind, count, seed):
    """Yield {"prompt", "response"}: problems of the training split of all levels, each with a trace of the start."""
    rng, mix = random.Random(f"{task} {kind} {seed}"), MIXES[task]
    pools = {level: rows_of(task, level, TRAIN, "train") for level in mix}
    for _ in range(count):
        row = rng.choice(pools[rng.choices(list(mix), list(mix.values()))[0]])
        if task == "arithmetic":
            form = rng.choice(list(arithmetic.FORMS))
            yield {"prompt": row[f"prompt_{form}"], "response": arithmetic.trace(row, rng, form)}
        else:
            module = {"countdown": countdown, "knights": knights}[task]
            yield {"prompt": row["prompt_text"], "response": module.trace(row, rng, kind)}


def write_lines(path, rows):
    """Write JSON Lines, complete or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_data():
    """
    Write the problems of every task and level, out/world/data/TASK_LEVEL_SPLIT.jsonl, and long right searches to
    fine-tune on, unless those that are there were made by today's generators.
    """
    stamp = os.path.join(WORLD, "data", "digest.json")
    digest = hashlib.sha256(repr([TEST, TAUGHT, *map(digest_of, STARTS)]).encode()).hexdigest()[:16]
    if read_json(stamp).get("digest") == digest:
        return
    taught = traces("countdown", "teacher", TAUGHT, 1)
    write_lines(os.path.join(WORLD, "data", "countdown_teacher.jsonl"),
                (one for one in taught if " right </think>" in one["response"]))
    for task, mix in MIXES.items():
        for level in mix:
            for split, count in (("train", TRAIN), ("test", TEST)):
                path = os.path.join(WORLD, "data", f"{task}_{level}_{split}.jsonl")
                write_lines(path, rows_of(task, level, count, split))
    write_lines(stamp, [{"digest": digest}])


def folder_of(start):
    return os.path.join("out", f"world-{start}")


def digest_of(start):
    """Return a digest of what decides a start: its entry, its task's mix, the generator's code."""
    task, _, size, _ = STARTS[start]
    with open(os.path.join(ROOT, "experiments", f"{task}.py"), "rb") as f:
        code = f.read()
    entry = (STARTS[start], SIZES[size], MIXES[task], TRACES[task], TRAIN, VOCAB_SIZE, WORDS)
    return hashlib.sha256(repr(entry).encode() + code).hexdigest()[:16]


def cut():
    """Return to how many steps SURVEY_STEPS cuts every start and run, None without it."""
    return int(os.environ.get("SURVEY_STEPS") or 0) or None


def command_of(start, seed=0):
    """Return the sft.py command that trains a start from what prepare() writes."""
    steps = cut() or STARTS[start][-1]
    return [sys.executable, os.path.join(ROOT, "sft.py"), os.path.join(ROOT, "experiments/recipes/start.py"),
            "--model", f"{WORLD}/untrained/{start}/model", "--data", f"{WORLD}/untrained/{start}/traces.jsonl",
            "--name", os.path.basename(folder_of(start)), "--num_steps", str(steps), "--seed", str(seed)]


def prepare(start, seed=0):
    """Write the untrained model and the traces of a start."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    task, kind, size, _ = STARTS[start]
    folder = os.path.join(WORLD, "untrained", start)
    model = build_model(size, seed)
    model.save_pretrained(os.path.join(folder, "model"))
    build_tokenizer().save_pretrained(os.path.join(folder, "model"))
    write_lines(os.path.join(folder, "traces.jsonl"), traces(task, kind, TRACES[task], seed))
    print(f"{folder}: {model.num_parameters():,} untrained weights, {VOCAB_SIZE:,} ids, {TRACES[task]:,} traces")


def main():
    wanted = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess.run then ends sft.py too
    if cut() and os.path.basename(os.getcwd()) != "survey-steps":
        raise SystemExit("error: SURVEY_STEPS is for python -m experiments.survey, which keeps cut starts apart")
    if not wanted:
        for start, (task, kind, size, steps) in STARTS.items():
            print(f"{start:24}{task} {kind} {size}, {steps} steps")
    for start in wanted:
        if start == "data":
            write_data()
            continue
        if start not in STARTS:
            raise SystemExit(f"error: no start {start!r}; known: {', '.join(STARTS)}")
        prepare(start)
        subprocess.run(command_of(start), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if not os.path.exists(os.path.join(folder_of(start), "model", "config.json")):
            raise SystemExit(f"error: {folder_of(start)} was stopped before its end; the same command goes on")
        write_lines(os.path.join(folder_of(start), "complete.json"), [{"digest": digest_of(start)}])


if __name__ == "__main__":
    main()
