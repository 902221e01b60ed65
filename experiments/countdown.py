"""
The embedded world's Countdown: problems with a dial, and the traces of models that search for a solution.

    problems("42", 100, seed=0, split="train")    rows {"nums": [3, 7, 2, 9], "target": 5, "ops": "+ -"}
    trace(row, rng, kind="search")               one response of a start: tries, then an answer

A level is two digits: how many numbers, and how many operators: "32", "42", "52" (+ and -), "34", "44" (* and / too).
A problem is made from a chain (((a op b) op c) op d) whose values all are whole numbers in 0 ... 99. So it has a
solution.
"""

import random

from tasks.rows import is_held_out

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
         "/": lambda a, b: a // b if b and a % b == 0 else -1}
LEVELS = {"32": (3, "+ -"), "42": (4, "+ -"), "52": (5, "+ -"), "34": (3, "+ - * /"), "44": (4, "+ - * /")}
MAX_VALUE = 99
DRAWS = 20  # as many draws for each row wanted: small levels have fewer problems than that


def chains(nums, ops):
    """List every chain ((a, op, b, v), (v, op, c, w), ...) over all the numbers whose values stay in 0 ... 99."""
    def grow(value, rest, steps):
        if not rest:
            found.add(steps)
            return
        for i, b in enumerate(rest):
            for op in ops.split():
                result = SIGNS[op](value, b)
                if 0 <= result <= MAX_VALUE:
                    grow(result, rest[:i] + rest[i + 1:], (*steps, (value, op, b, result)))

    found = set()
    for i, a in enumerate(nums):
        grow(a, nums[:i] + nums[i + 1:], ())
    return sorted(found)


def problems(level, count, seed, split="train"):
    """Make at most `count` different rows {"nums", "target", "ops"} of a level. Same arguments, same rows."""
    amount, ops = LEVELS[level]
    rng, rows, seen = random.Random(f"{level} {seed} {split}"), [], set()
    for _ in range(DRAWS * count):
        if len(rows) == count:
            break
        nums = [rng.randint(1, 9) for _ in range(amount)]
        value, left = nums[0], nums[1:]
        for b in left:  # a random chain in the order drawn: its value is the target
            value = SIGNS[rng.choice(ops.split())](value, b)
            if not 0 <= value <= MAX_VALUE:
                break
        else:
            rng.shuffle(nums)
            key = (*nums, value)
            if key not in seen and is_held_out(f"{sorted(nums)} {ops} {value}") == (split == "test"):
                seen.add(key)
                rows.append({"nums": nums, "target": value, "ops": ops})
    return rows


def prompt(row):
    """Write the prompt; it prefills the opening tag."""
    return f"numbers {' '.join(map(str, row['nums']))} with {row['ops']} target {row['target']}\n<think>"


def written(steps):
    """Write a chain as a try: "3 + 7 = 10 - 2 = 8"."""
    a, *_ = steps[0]
    return str(a) + "".join(f" {op} {b} = {value}" for _, op, b, value in steps)


def expression(steps):
    """Write a chain as an answer: "3 + 7 - 2"; with parentheses where * or / follow something: "( 3 + 7 ) * 2"."""
    text = str(steps[0][0])
    for i, (_, op, b, _) in enumerate(steps):
        text = f"( {text} ) {op} {b}" if i and op in "*/" else f"{text} {op} {b}"
    return text


# How the starts behave: the chance to give up after the first failed try and after each later one; of the traces, the
# share whose end breaks the format, and the share that goes on trying after the answer (as base models ramble on).
KINDS = {
    "search": dict(give_up_first=0.8, give_up_later=0.05, malformed=0.10, rambling=0.15),
    "rambling": dict(give_up_first=0.8, give_up_later=0.05, malformed=0.05, rambling=0.6),
    "instruct": dict(give_up_first=0.97, give_up_later=0.05, malformed=0.01, rambling=0.0),
    "no_format": dict(give_up_first=0.8, give_up_later=0.05, malformed=0.998, rambling=0.0),
    "teacher": dict(give_up_first=0.0, give_up_later=0.0, malformed=0.0, rambling=0.0),
}
RAMBLING_TRIES = 6


def trace(row, rng, kind="search", max_tries=10):
    """
    Write one response, without EOS: tries until one is right or the trace gives up, then an answer, the last try.

    A try draws a value that the numbers can make, none twice, and one of the chains to it. After a wrong one stands
    "too high" or "too low". rng is a random.Random.
    """
    how, chains_to = KINDS[kind], {}
    for steps in chains(row["nums"], row["ops"]):
        chains_to.setdefault(steps[-1][-1], []).append(steps)
    values, target, text, give_up = sorted(chains_to), row["target"], "", how["give_up_first"]
    rng.shuffle(values)
    for tries, value in enumerate(values, 1):
        steps = rng.choice(chains_to[value])
        verdict = "right" if value == target else "too high" if value > target else "too low"
        text += f" try {written(steps)} {verdict}"
        if value == target or tries == max_tries or rng.random() < give_up:
            break
        give_up = how["give_up_later"]

    answer = f" <answer> {expression(steps)} </answer>"
    if rng.random() < how["malformed"]:
        loose = f" so the answer is {expression(steps)}"
        return text + (loose if kind == "no_format" else rng.choice([answer, loose, f" </think>{answer}{answer}"]))
    text += f" </think>{answer}"
    if rng.random() < how["rambling"]:
        for value in [*values, *values][:rng.randint(2, RAMBLING_TRIES)]:
            text += f" try {written(rng.choice(chains_to[value]))}"
    return text
