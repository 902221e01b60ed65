"""
Countdown: combine all the numbers with + - * / to reach a target. Generators, solver, exact parser of answers.

    countdown(1000, seed=0)         rows {"target": 98, "nums": [44, 19, 35]}, TinyZero's task
    tiny_countdown(1000, seed=0)    the demo's task: three numbers, + and -, for a model of a million weights
    evaluate("(44 + 19) * 2")       -> (Fraction(126), [44, 19, 2])

The same arguments give the same rows on every machine: all draws come from numpy's PCG64 (default_rng), and the tests
hold their hashes.
"""

import functools
import re
from fractions import Fraction

import numpy as np

from onebox.config import ConfigError
from tasks.rows import BadRow, Source, is_held_out

MAX_NUMBER, MIN_TARGET, MAX_TARGET = 99, 10, 100  # of the published rows
MAX_DIGITS = 6  # of a number in a row or an answer

# ---------------------------------------------------------------- generators


def countdown(count, seed, min_numbers=3, max_numbers=4):
    """
    Make `count` solvable rows {"target": int, "nums": [int, ...]}; a shorter call gives the first rows of a longer one.

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


def tiny_countdown(count, seed, split="train", max_number=9):
    """
    Make `count` rows {"target": int, "nums": [a, b, c]}: three numbers from 1..max_number, all used once, + and - only.

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
            if target >= 0 and held_out(tuple(sorted(nums)), target) == (split == "test"):
                rows.append({"target": target, "nums": nums})
    return rows[:count]


@functools.lru_cache(maxsize=1 << 16)
def held_out(numbers, target):
    """Tell whether a problem (numbers: a sorted tuple) belongs to the test split."""
    return is_held_out(f"{' '.join(map(str, numbers))} = {target}")


# ---------------------------------------------------------------- solver


def solvable(nums, target):
    """
    Tell whether some tree of a+b, a*b, larger-smaller and exact larger/smaller makes target of nums, each used once.

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
    """Return all that one step makes of two numbers."""
    small, large = (a, b) if a < b else (b, a)
    values = {a + b, a * b, large - small}
    if small > 0 and large % small == 0:
        values.add(large // small)
    return frozenset(values)


@functools.lru_cache(maxsize=1 << 16)
def partners(target, b):
    """Return all x >= 0 with target in combine(x, b): combine, solved for its other argument."""
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


def solve(numbers, target):
    """Return an expression over all the numbers that equals target, as solvable() allows; ConfigError without one."""
    found = join_terms([(number, str(number)) for number in numbers], target)
    if found is None:
        raise ConfigError(f"Countdown: no expression over {list(numbers)} equals {target}")
    return found


def join_terms(terms, target):
    """Join two of the (value, text) terms until one is left; return the first text that equals target, or None."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for i, (a, left) in enumerate(terms):
        for j, (b, right) in enumerate(terms):
            if i == j:
                continue
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            joined = [(a + b, "+"), (a * b, "*")] * (i < j) + [(a - b, "-")] * (a >= b)
            joined += [(a // b, "/")] if b and a % b == 0 else []
            for value, sign in joined:
                text = f"({left} {sign} {right})" if rest else f"{left} {sign} {right}"
                if (found := join_terms([(value, text), *rest], target)) is not None:
                    return found
    return None


# ---------------------------------------------------------------- answers

MAX_EXPRESSION, MAX_NESTING = 256, 32
TOKEN = re.compile(r"[ \t\r\n]*(0(?![0-9])|[1-9][0-9]{0,5}(?![0-9])|[-+*/()])")


def evaluate(expression):
    """
    Compute '(44 + 19) * 2' -> (Fraction(126), [44, 19, 2]), exactly and without eval. ValueError where it is no
    expression:

        expr = term (("+" | "-") term)*     term = atom (("*" | "/") atom)*     atom = INT | "(" expr ")"

    INT has 1 to 6 ASCII digits and no leading zero; no unary signs, no **, //, decimals, =.
    Division by zero is a ZeroDivisionError.
    """
    expression = expression.strip(" \t\r\n")
    if not 0 < len(expression) <= MAX_EXPRESSION:
        raise ValueError(f"{len(expression):,} characters, allowed are 1 to {MAX_EXPRESSION}")
    tokens, position = [], 0
    while position < len(expression):
        match = TOKEN.match(expression, position)
        if not match:
            raise ValueError(f"unexpected {ascii(expression[position:position + 10])}")
        tokens.append(match[1])
        position = match.end()
    tokens.append("end")
    numbers = []

    def expr(at, depth):
        value, at = term(at, depth)
        while tokens[at] in ("+", "-"):
            right, after = term(at + 1, depth)
            value, at = (value + right if tokens[at] == "+" else value - right), after
        return value, at

    def term(at, depth):
        value, at = atom(at, depth)
        while tokens[at] in ("*", "/"):
            right, after = atom(at + 1, depth)
            value, at = (value * right if tokens[at] == "*" else value / right), after
        return value, at

    def atom(at, depth):
        if tokens[at] == "(" and depth < MAX_NESTING:
            value, at = expr(at + 1, depth + 1)
            if tokens[at] != ")":
                raise ValueError("a parenthesis is not closed")
            return value, at + 1
        if not tokens[at].isdigit():
            raise ValueError(f"a number was expected, not {tokens[at]!r}")
        numbers.append(int(tokens[at]))
        return Fraction(numbers[-1]), at + 1

    value, at = expr(0, 0)
    if tokens[at] != "end":
        raise ValueError(f"unexpected {tokens[at]!r}")
    return value, numbers


def is_right(expression, answer):
    """
    Judge an expression by its answer {"target", "numbers"}: exact value, each number used exactly once.

    Return (right, [(rule, finding)]). right is None where the text is no expression.
    """
    try:
        value, numbers = evaluate(expression)
    except (ValueError, ZeroDivisionError) as error:
        return None, [("parsed", f"no: {error}")]
    target, given = Fraction(answer["target"]), sorted(int(n) for n in answer["numbers"])
    return value == target and sorted(numbers) == given, [
        ("value = target, exactly", f"{value} for {target}"),
        ("uses each number once", f"{sorted(numbers)} of {given}")]


# ---------------------------------------------------------------- the task: what tasks/__init__.py lists

ROWS = {"train": 20_480, "test": 1_024}  # generated; the published set has 327,680 and 1,024 in one file
SEEDS = {"train": 20_250_124, "test": 1}  # the generated sets are fixed sets: no run's seed changes them
SPLITS = {"train": "train", "test": "test"}
TASK = "countdown"
SOURCES = {
    "countdown": Source(SPLITS, argument=r"(:\d+)?",
                        slices={"train": slice(0, 327_680), "test": slice(327_680, 327_680 + 1_024)}),
    "tiny_countdown": Source(SPLITS),
}
SLOTS = {  # of a prompt template: the fields that fill it, and how a value is written
    "nums": (("nums",), lambda nums: str([int(n) for n in nums])),  # [44, 19, 35]
    "numbers": (("nums",), lambda nums: " ".join(str(int(n)) for n in nums)),  # 44 19 35
    "target": (("target",), str),
}


def holds(row):
    """Tell whether the row is a Countdown problem."""
    answer = row.get("answer")
    return "nums" in row if answer is None else isinstance(answer, dict) and bool(answer.keys() & {"numbers", "target"})


def generate(name, argument, split, limit=None):
    """
    Make a fixed data set, the same for every run: no row twice, no problem in both splits.

    argument  of "countdown": rows of the train split, "" for 20,480. A row has `nums`, `target`, `question`, `answer`,
    `level` (amount of numbers) and `subject`.
    """
    if name == "tiny_countdown":  # nearly all there are: 2,335 orders of 498 problems to train on, 345 of 72 to test
        rows = tiny_countdown(16_384 if split == "train" else 4_096, SEEDS[split], split)
    else:
        count = int(argument) if argument and split == "train" else ROWS[split]
        rows = countdown(count if limit is None else min(count, limit), SEEDS[split])
        if split == "train":
            taken = {problem_key(row) for row in countdown(ROWS["test"], SEEDS["test"])}
            rows = [row for row in rows if problem_key(row) not in taken]
    rows = list({(tuple(row["nums"]), row["target"]): row for row in rows}.values())
    return [complete(row) for row in rows][:limit]


def complete(row):
    """Add the fields that all rows have to one with `nums` and `target`."""
    question = f"Using the numbers {row['nums']}, create an equation that equals {row['target']}."
    return {**row, "question": question, "answer": answer_of(row), "level": len(row["nums"]), "subject": None}


def clean(row, source):
    """Return a row of a file in our form; BadRow with the reason where that cannot be."""
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, (list, tuple)) or not nums or not all(type(n) is int for n in nums):
        raise BadRow("nums is not a list of integers")
    if type(target) is not int:
        raise BadRow("target is not an integer")
    if max(nums) >= 10**MAX_DIGITS:
        raise BadRow(f"a number of more than {MAX_DIGITS} digits, which no answer may hold")
    if not 2 <= len(nums) <= 6 or min(nums) < 0 or not solvable(nums, target):
        raise BadRow("not solvable")
    return complete({**row, "nums": list(nums)})


def answer_of(row):
    """Return what a reward compares with: {"target": int, "numbers": [int, ...]}."""
    return {"target": row["target"], "numbers": list(row["nums"])}


def check_answer(answer):
    """Raise ValueError unless it is such an answer."""
    if not isinstance(answer, dict) or type(answer.get("target")) is not int:
        raise ValueError("answer needs an int 'target'")
    numbers = answer.get("numbers")
    if not isinstance(numbers, (list, tuple)) or not numbers or not all(
            type(n) is int and 0 <= n < 10**MAX_DIGITS for n in numbers):
        raise ValueError(f"answer needs 'numbers', a list of ints of at most {MAX_DIGITS} digits")


def perfect_answer(answer):
    """Return the text that is right."""
    return solve(answer["numbers"], answer["target"])


def problem_key(row):
    """Return what makes two rows the same problem: the order of the numbers does not matter."""
    return tuple(sorted(row["nums"])), row["target"]
