"""
Puzzles made here instead of downloaded: Countdown, the demo's tiny Countdown, Knights and Knaves.

    countdown(1000, seed=0)                       rows {"target": 98, "nums": [44, 19, 35]}, TinyZero's task
    tiny_countdown(1000, seed=0)                  rows of the same form, for a model of a million weights
    knights_and_knaves(3, start=100, count=900)   Logic-RL's training puzzles of 3 people, byte for byte
    generate("kk", "3-7", "train")                the fixed data sets made of them

The same arguments give the same rows on every machine: all draws come from numpy's PCG64 (default_rng), and the
tests hold their hashes.
"""

import functools
import hashlib

import numpy as np

MAX_NUMBER, MIN_TARGET, MAX_TARGET = 99, 10, 100  # Countdown as published

# ---------------------------------------------------------------- Countdown


def countdown(count, seed, min_numbers=3, max_numbers=4):
    """
    `count` solvable rows {"target": int, "nums": [int, ...]}; a shorter call gives the first rows of a longer one.

    The rule behind Jiayi-Pan/Countdown-Tasks-3to4 (kanishkg/stream-of-search's, with max_target 100): the target is
    uniform on 10..100 and the amount of numbers uniform on min_numbers..max_numbers; then the numbers are drawn
    uniformly from 1..99, with replacement, and they alone are drawn again until the row is solvable. So targets are
    flat, while small numbers, which help more often, are over-represented.
    """
    if not 2 <= min_numbers <= max_numbers <= 6:
        raise ValueError(f"countdown wants 2 <= min_numbers <= max_numbers <= 6, got {min_numbers} and {max_numbers}")
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        target = int(rng.integers(MIN_TARGET, MAX_TARGET + 1))
        amount = int(rng.integers(min_numbers, max_numbers + 1))
        while True:
            draws = rng.integers(1, MAX_NUMBER + 1, size=(8, amount)).tolist()  # one call of numpy costs eight draws
            nums = next((nums for nums in draws if solvable(nums, target)), None)
            if nums is not None:
                rows.append({"target": target, "nums": nums})
                break
    return rows


def solvable(nums, target):
    """
    Whether some tree of a+b, a*b, larger-smaller and exact larger/smaller makes target of nums, each used once.

    All intermediate values are integers >= 0, as in the published set. Up to four numbers the search goes backward
    from the target, where few values are possible, and the two ends meet in one set intersection.
    """
    if len(nums) == 3:
        a, b, c = nums
        return not (combine(a, b).isdisjoint(partners(target, c)) and combine(a, c).isdisjoint(partners(target, b))
                    and combine(b, c).isdisjoint(partners(target, a)))
    if len(nums) < 3:
        return len(nums) > 0 and target in (combine(*nums) if len(nums) == 2 else nums)
    if len(nums) == 4:
        a, b, c, d = nums
        for last, rest in ((a, (b, c, d)), (b, (a, c, d)), (c, (a, b, d)), (d, (a, b, c))):
            if any(solvable(rest, value) for value in partners(target, last)):
                return True
        for left, right in (((a, b), (c, d)), ((a, c), (b, d)), ((a, d), (b, c))):
            if any(not partners(target, value).isdisjoint(combine(*right)) for value in combine(*left)):
                return True
        return False
    for i in range(len(nums)):
        for j in range(i + 1, len(nums)):
            rest = [n for k, n in enumerate(nums) if k not in (i, j)]
            if any(solvable([value, *rest], target) for value in combine(nums[i], nums[j])):
                return True
    return False


@functools.lru_cache(maxsize=1 << 16)
def combine(a, b):
    """What one step makes of two numbers."""
    small, large = (a, b) if a < b else (b, a)
    values = {a + b, a * b, large - small}
    if small > 0 and large % small == 0:
        values.add(large // small)
    return frozenset(values)


@functools.lru_cache(maxsize=1 << 16)
def partners(target, b):
    """All x >= 0 with target in combine(x, b): combine, solved for its other argument."""
    values = {target + b}
    values.add(target - b if target >= b else b - target)
    if b > 0:
        if target > 0:
            values.add(target * b)
            if b % target == 0:
                values.add(b // target)
        if target % b == 0:
            values.add(target // b)
    return values


# ---------------------------------------------------------------- the demo's task: tiny Countdown

HELD_OUT = 8  # one problem in 8 is for testing


def tiny_countdown(count, seed, split="train", max_number=9):
    """
    `count` rows {"target": int, "nums": [a, b, c]}: three numbers from 1..max_number, all used once, + and - only.

    The target is the value of a random expression over the numbers: signs are drawn until the value is not negative
    (a first minus sign just means that another number comes first: 2-5+9 is 9-5+2). A problem, i.e. its sorted
    numbers and target, belongs to the split "train" or "test" by its hash alone, so the splits never meet, whatever
    the seeds; about one problem in 8 is a test problem. Rows may repeat: with max_number=9 there are 570 problems.
    """
    if split not in ("train", "test"):
        raise ValueError(f"tiny_countdown has the splits 'train' and 'test', got {split!r}")
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        block = rng.integers(1, max_number + 1, size=(256, 3)).tolist()
        signs = rng.choice([-1, 1], size=(256, 3)).tolist()
        for nums, sign in zip(block, signs, strict=False):
            target = sum(n * s for n, s in zip(nums, sign, strict=False))
            if target >= 0 and held_out(nums, target) == (split == "test"):
                rows.append({"target": target, "nums": nums})
    return rows[:count]


@functools.lru_cache(maxsize=1 << 16)
def _held_out(numbers, target):
    text = f"{' '.join(map(str, numbers))} = {target}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT == 0


def held_out(nums, target):
    """Whether a Countdown problem belongs to the test split: the same for every order of its numbers."""
    return _held_out(tuple(sorted(nums)), target)


# ---------------------------------------------------------------- Knights and Knaves

NAMES = """Emma Liam Olivia Noah Ava Ethan Sophia Mason Isabella William Mia James Charlotte Benjamin Amelia Lucas
Harper Henry Evelyn Alexander Abigail Michael Emily Daniel Elizabeth Jacob Sofia Logan Avery Jackson Ella Sebastian
Scarlett Jack Grace Aiden Chloe Owen Victoria Samuel Riley Matthew Aria Joseph Lily Luke Aurora David Zoey Oliver
Penelope""".split()

SAYINGS = [  # {N} the name, {C} the content
    "{N} said that {C}.", "{N} told you that {C}.", '{N} said, "{C}."', '{N} stated, "{C}".',
    'According to {N}, "{C}".', "In {N}'s words: \"{C}\".", '{N} remarked, "{C}".', '"{C}," {N} declared.',
    '{N} was heard saying, "{C}".', "{N} expressed that {C}.", '"{C}" - {N}.', 'As {N} put it, "{C}".',
    '{N} asserted: "{C}".', '"{C}," {N} mentioned.', '{N} commented, "{C}".', 'In a statement by {N}: "{C}".',
    '{N} noted, "{C}".', '"{C}," {N} claimed.',
]


def knights_and_knaves(n_people, start, count):
    """
    Puzzles number start .. start+count-1 of n_people (2..8), equal to the published ones byte for byte.

    -> rows {"quiz", "names", "solution", "solution_text_format", "index"}: solution is one bool per name (True: a
    knight), solution_text_format the lines "(1) Zoey is a knight". Index 0-99 is the official test split and
    100-1099 the train split of K-and-K/knights-and-knaves. An own, shorter implementation of the algorithm of
    AlphaPav/mem-kk-logic @35385cf, lib_kk.py (MIT); the order of the draws is part of the data.
    """
    if not 2 <= n_people <= 8:
        raise ValueError(f"knights_and_knaves knows 2 to 8 people, got {n_people}")
    if start < 0 or count < 0:
        raise ValueError(f"knights_and_knaves wants start and count >= 0, got {start} and {count}")
    puzzles = _kk_puzzles(n_people, start + count)
    return [_kk_row(n_people, index, *puzzles[index]) for index in range(start, start + count)]


def _kk_row(n_people, index, statements, solution):
    """The puzzle as text; names and sayings have a random stream of their own, one per index."""
    rng = np.random.default_rng(1234 + index)
    names = [str(name) for name in rng.choice(NAMES, size=n_people, replace=False)]
    said = [str(rng.choice(SAYINGS)) for _ in names]
    people = ", ".join(names[:-1]) + ", and " + names[-1]
    quiz = (
        "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves "
        f"always lie. You meet {n_people} inhabitants: {people}."
    )
    for name, saying, statement in zip(names, said, statements, strict=False):
        quiz += " " + saying.replace("{N}", name).replace("{C}", _kk_text(statement, names))
    identities = [f"({i}) {name} is a {'knight' if knight else 'knave'}"
                  for i, (name, knight) in enumerate(zip(names, solution, strict=False), start=1)]
    return {
        "quiz": quiz + " So who is a knight and who is a knave?",
        "names": names,
        "solution": list(solution),
        "solution_text_format": "\n".join(identities),
        "index": index,
    }


def _kk_text(statement, names):
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return f"{names[parts[0]]} is a {'knight' if kind == 'telling-truth' else 'knave'}"
    left, *right = [_kk_text(part, names) for part in parts]
    if kind == "not":
        return left.replace(" is a ", " is not a ")
    return {"and": f"{left} and {{}}", "or": f"{left} or {{}}", "->": f"If {left} then {{}}",
            "<=>": f"{left} if and only if {{}}"}[kind].format(*right)


_KK_FOUND = {}  # n_people -> (generator, puzzles found so far): a longer call continues where a shorter one stopped


def _kk_puzzles(n_people, count):
    """The first `count` puzzles of one size as (statements, solution): one random stream per size, in order."""
    if n_people not in _KK_FOUND:
        _KK_FOUND[n_people] = (_kk_search(n_people), [])
    search, found = _KK_FOUND[n_people]
    while len(found) < count:
        found.append(next(search))
    return found


def _kk_search(n_people):
    rng = np.random.default_rng(1234)
    seen = set()
    worlds = _kk_worlds(n_people)
    while True:
        statements = tuple(_kk_statement(rng, n_people, speaker, 2) for speaker in range(n_people))
        if statements in seen:
            continue
        possible = (1 << (1 << n_people)) - 1
        for speaker, statement in enumerate(statements):  # a knight exactly when the statement is true
            possible &= ~(worlds[speaker] ^ _kk_truth(statement, worlds))
        if possible.bit_count() == 1:
            seen.add(statements)
            world = possible.bit_length() - 1
            yield statements, [bool(world >> person & 1) for person in range(n_people)]


def _kk_statement(rng, n_people, speaker, depth):
    """One random statement, as nested tuples; a leaf still draws its kind first, because the original does."""
    kind = rng.integers(0, 6)
    if depth == 1 or kind == 0:
        while True:
            lying, person = rng.integers(0, 2), int(rng.integers(0, n_people))
            if not (lying and person == speaker):  # nobody says "I am a knave"
                return ("lying" if lying else "telling-truth", person)
    if kind == 1:
        return ("not", _kk_statement(rng, n_people, speaker, depth - 1))
    left = right = _kk_statement(rng, n_people, speaker, depth - 1)
    while right == left:
        right = _kk_statement(rng, n_people, speaker, depth - 1)
    return (("and", "or", "->", "<=>")[kind - 2], left, right)


def _kk_worlds(n_people):
    """For each person the set of worlds in which they are a knight: bit w of the integer for world w of 2^n."""
    return [sum(1 << w for w in range(1 << n_people) if w >> person & 1) for person in range(n_people)]


def _kk_truth(statement, worlds):
    """The set of worlds in which a statement is true (only its low 2^n bits count)."""
    kind, *parts = statement
    if kind == "telling-truth":
        return worlds[parts[0]]
    if kind == "lying":
        return ~worlds[parts[0]]
    left, *rest = [_kk_truth(part, worlds) for part in parts]
    if kind == "not":
        return ~left
    right = rest[0]
    return {"and": left & right, "or": left | right, "->": ~left | right, "<=>": ~(left ^ right)}[kind]


# ---------------------------------------------------------------- the generated data sets

COUNTDOWN_ROWS = {"train": 20_480, "test": 1_024}  # generated; the published set has 327,680 and 1,024
COUNTDOWN_SEEDS = {"train": 20_250_124, "test": 1}  # the generated sets are fixed sets: no run's seed changes them
KK_SPLITS = {"train": (100, 900), "test": (1000, 100), "official_test": (0, 100)}  # (first index, count), Logic-RL's
GENERATED = {"countdown": ("train", "test"), "tiny_countdown": ("train", "test"), "kk": tuple(KK_SPLITS)}  # -> splits


def generate(kind, argument, split, limit=None):
    """
    The rows of a generated data set: the same for every run, no row twice, train and test without a common problem.

    "countdown" (argument: rows of the train split, "" for 20,480), "tiny_countdown", "kk" (argument: people, "3" or
    "3-7"). Beside its own fields a row has question, answer, level (amount of numbers, or of people) and subject.
    """
    if kind == "kk":
        low, _, high = argument.partition("-")
        start, count = KK_SPLITS[split]
        return [{**row, "question": row["quiz"], "answer": row["solution_text_format"], "level": n, "subject": None}
                for n in range(int(low), int(high or low) + 1) for row in knights_and_knaves(n, start, count)][:limit]
    seed = COUNTDOWN_SEEDS[split]
    if kind == "tiny_countdown":  # nearly all there are: 2,335 orders of 498 problems to train on, 345 of 72 to test
        rows = tiny_countdown(16_384 if split == "train" else 4_096, seed, split)
    else:
        count = int(argument) if argument and split == "train" else COUNTDOWN_ROWS[split]
        rows = countdown(count if limit is None else min(count, limit), seed)
        if split == "train":
            taken = {problem_key(row) for row in countdown(COUNTDOWN_ROWS["test"], COUNTDOWN_SEEDS["test"])}
            rows = [row for row in rows if problem_key(row) not in taken]
    rows = list({(tuple(row["nums"]), row["target"]): row for row in rows}.values())
    return [countdown_fields(row) for row in rows][:limit]


def countdown_fields(row):
    nums, target = row["nums"], row["target"]
    question = f"Using the numbers {nums}, create an equation that equals {target}."
    answer = {"target": target, "numbers": nums}
    return {**row, "question": question, "answer": answer, "level": len(nums), "subject": None}


def problem_key(row):
    """The same for every order of the numbers."""
    return (tuple(sorted(row["nums"])), row["target"])
