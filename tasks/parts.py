"""
Parts that a recipe weighs beside a reward (rewards.add_parts): formats, lengths, repetition.

From open-r1 @1416fa0 src/open_r1/rewards.py unless said otherwise.
"""

import math
import re

from tasks.formats import think_answer_format

MAX_REWARD = 1e6  # of a total or a part: a number beyond it is a mistake, and would drown every other advantage


def tag_count(text):
    """Return 0.25 for each of four tags that stands exactly once with its newlines."""
    return sum(0.25 for tag in ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>") if text.count(tag) == 1)


STEP = re.compile(r"Step [0-9]+:|\A[0-9]+\.|\n-|\n\*|First,|Second,|Next,|Finally,")


def reasoning_steps(text):
    """Return min(1, n / 3) for n step marks; as published a numbered list counts only at the very start of the text."""
    return min(1.0, sum(1 for _ in zip(range(3), STEP.finditer(text), strict=False)) / 3)


def cosine(length, max_length, at_zero, at_max):
    """
    Go from at_zero to at_max along half a cosine: at_max + (at_zero - at_max) (1 + cos(pi length / max_length)) / 2.
    Beyond max_length it stays at at_max; open-r1's turns back, so that twice the length is worth as much as none.
    """
    return at_max + (at_zero - at_max) * (1 + math.cos(math.pi * min(1.0, max(0.0, length / max_length)))) / 2


def repetition(text, n=3, max_penalty=-1.0):
    """Return (1 - unique / all n-grams) x max_penalty over lower-cased words; 0 below n words. demystify: n=20."""
    words = text.lower().split()
    if len(words) < n:
        return 0.0
    grams = len(words) - n + 1
    return (1 - len({tuple(words[i:i + n]) for i in range(grams)}) / grams) * max_penalty


def dense_repetition(token_ids, n=40, penalty=-0.05):
    """
    Give `penalty` to each token inside a second or later occurrence of an n-gram, once a token, right or wrong.
    demystify-long-cot @e90cf9b. token_ids (T,) -> (T,)
    """
    rewards, seen, marked = [0.0] * len(token_ids), set(), 0
    for start in range(len(token_ids) - n + 1):
        gram = tuple(token_ids[start:start + n])
        if gram in seen:
            for i in range(max(start, marked), start + n):
                rewards[i] = penalty
            marked = start + n
        seen.add(gram)
    return rewards


def soft_overlong(num_tokens, max_tokens=16384, cache=4096):
    """Return 0 up to max_tokens - cache, falling to -1 at max_tokens, -1 beyond. DAPO (2503.14476) Eq. 13."""
    return min(0.0, max(-1.0, (max_tokens - cache - num_tokens) / cache)) + 0.0


PARTS = {
    "think_answer_format": lambda text, score, num, most: think_answer_format(text),
    "tag_count": lambda text, score, num, most: tag_count(text),
    "reasoning_steps": lambda text, score, num, most: reasoning_steps(text),
    "cosine": lambda text, score, num, most: cosine(num, most, *((1.0, 0.5) if score.correct else (-1.0, -0.5))),
    "repetition": lambda text, score, num, most: repetition(text),
    "sparse_repetition": lambda text, score, num, most: 0.0 if score.correct else repetition(text, n=20),  # demystify
    "soft_overlong": lambda text, score, num, most, cache=None: soft_overlong(num, most, cache or max(1, most // 4)),
}


def check_weights(weights):
    """Raise ValueError unless each of {part: weight} is a finite number, or {"weight", "cache"} of soft_overlong."""
    for name in weights:
        options = weights[name] if isinstance(weights[name], dict) else {"weight": weights[name]}
        weight, cache = options.get("weight"), options.get("cache", 1)
        if type(weight) not in (int, float) or not abs(weight) <= MAX_REWARD:
            raise ValueError(f"the weight of reward part {name!r} must be a finite number, not {weight!r}")
        if not {*options} <= ({"weight", "cache"} if name == "soft_overlong" else {"weight"}):
            raise ValueError(f"reward part {name!r} takes a weight, soft_overlong also "
                             f"{{'weight': 1.0, 'cache': 4096}}, not {options!r}")
        if type(cache) is not int or cache < 1:
            raise ValueError(f"the cache of reward part {name!r} is a number of tokens, not {cache!r}")
