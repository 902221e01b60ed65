"""
Parts that a recipe weighs beside a reward: formats, lengths, repetition, language. docs/systems.md has a table of them.

    reward_parts = {"tag_count": 0.5, "soft_overlong": {"weight": 1.0, "cache": 4096}}

PARTS judge one response (rewards.add_parts). GROUP_PARTS compare the responses to one prompt, once all of a step are
gathered (rewards.Scorer.add_group_parts). From open-r1 @1416fa0 src/open_r1/rewards.py unless said otherwise.
"""

import itertools
import math
import re
from dataclasses import replace

import numpy as np

from onebox.text import suggest
from tasks.formats import think_answer_format
from tasks.language import JAPANESE, SCRIPTS, scripts_of, share_of_scripts

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
    token_ids = np.asarray(token_ids).tolist()
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


def language(sample, score, script=None):
    """
    Return the share of the response's words in the scripts of the question, 0 to 1. DeepSeek-R1 (2501.12948), which
    adds it to the reward of an answer. The question is the row's, else the prompt; `script` names one instead of it.
    """
    question = sample.row.get("question")
    scripts = scripts_of(question if isinstance(question, str) and question.strip() else sample.prompt)
    if script:
        scripts = JAPANESE if script in ("HIRAGANA", "KATAKANA") else {script}
    return share_of_scripts(sample.text, scripts)


def dense_repetition_share(sample, score, ngram=40):
    """Return minus the share of tokens that dense_repetition marks: one number a response, so GRPO can have it too."""
    return sum(dense_repetition(sample.token_ids, ngram, -1.0)) / max(1, len(sample.token_ids))


def overlong(sample, score, cache=None):
    return soft_overlong(sample.num_tokens, sample.max_tokens, cache or max(1, sample.max_tokens // 4))


def length_cosine(sample, score):
    """Give open-r1's function defaults, in tokens instead of characters: right 1 -> 0.5, wrong -1 -> -0.5."""
    return cosine(sample.num_tokens, sample.max_tokens, *((1.0, 0.5) if score.correct else (-1.0, -0.5)))


# A part is a function of (sample, score, **options). sample: rewards.Completion. score: its Score without parts.
PARTS = {
    "think_answer_format": lambda sample, score: think_answer_format(sample.text),
    "tag_count": lambda sample, score: tag_count(sample.text),
    "reasoning_steps": lambda sample, score: reasoning_steps(sample.text),
    "cosine": length_cosine,
    "repetition": lambda sample, score, ngram=3: repetition(sample.text, ngram),
    "sparse_repetition": lambda sample, score, ngram=20: (  # demystify
        0.0 if score.correct else repetition(sample.text, ngram)),
    "dense_repetition": dense_repetition_share,
    "soft_overlong": overlong,
    "stop_properly": lambda sample, score: -float(sample.truncated),  # ProRL v2 multiplies the reward instead
    "language": language,
}
OF_FORMAT = ("think_answer_format", "tag_count", "reasoning_steps")  # add nothing to a truncated response


# ---------------------------------------------------------------- parts that need the group


def kimi_length(lengths, right):
    """
    Rate each length within its group by l = 0.5 - (length - shortest) / (longest - shortest): l if right, min(0, l) if
    wrong; 0 where all are equally long. Kimi k1.5 (2501.12599) section 2.3.3, which turns it on after a first phase of
    training without.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    ranks = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [rank if good else min(0.0, rank) for rank, good in zip(ranks, right, strict=True)]


def length_by_pass_rate(lengths, right):
    """
    Give minus pass rate x length / longest of the group: hard prompts keep their long thinking. prime-rl PR #710
    without its bonus for the shortest right answer. 0 in a group of one, which compares nothing.
    """
    longest, pass_rate = max(lengths), sum(right) / len(right)
    return [-pass_rate * length / longest if longest and len(lengths) > 1 else 0.0 for length in lengths]


# A group part is a function of (lengths in tokens, whether each is right) -> one value a response.
GROUP_PARTS = {"kimi_length": kimi_length, "length_by_pass_rate": length_by_pass_rate}


# ---------------------------------------------------------------- weights

AT_LEAST_1 = (lambda value: type(value) is int and value >= 1, "a whole number of at least 1")
OPTIONS = {  # part -> {option: (check, what it must be, an example)}; a part that is not here has a weight only
    "soft_overlong": {"cache": (*AT_LEAST_1, 4096)},
    "repetition": {"ngram": (*AT_LEAST_1, 3)},
    "sparse_repetition": {"ngram": (*AT_LEAST_1, 20)},
    "dense_repetition": {"ngram": (*AT_LEAST_1, 40)},
    "language": {"script": (lambda value: value in SCRIPTS, f"one of {', '.join(SCRIPTS)}", "CYRILLIC")},
}


def check_weights(weights, max_tokens=None, group_size=None):
    """
    Raise ValueError unless each of {part: weight} is a finite number, or {"weight": 1.0, option: value} with options
    that the part has. max_tokens of a response and group_size refuse what cannot work with them.
    """
    for name in weights:
        options = dict(weights[name]) if isinstance(weights[name], dict) else {"weight": weights[name]}
        weight, known = options.pop("weight", None), OPTIONS.get(name, {})
        form = {"weight": 1.0} | {option: example for option, (_, _, example) in known.items()}
        form = f"write {name!r}: {form}" if known else f"write {name!r}: 1.0"
        if type(weight) not in (int, float) or not abs(weight) <= MAX_REWARD:
            raise ValueError(f"the weight of reward part {name!r} must be a finite number, not {weight!r}: {form}")
        for option, value in options.items():
            if option not in known:
                raise ValueError(f"reward part {name!r} has no option {option!r}; "
                                 f"{suggest(option, known)} {form}".replace("  ", " "))
            fits, what, _ = known[option]
            if not fits(value):
                raise ValueError(f"option {option!r} of reward part {name!r} must be {what}, not {value!r}: {form}")
        if name == "soft_overlong" and max_tokens and options.get("cache", 1) > max_tokens:
            raise ValueError(f"the cache of reward part 'soft_overlong' is {options['cache']:,} tokens of a response "
                             f"that has {max_tokens:,} at most: make it smaller, or max_response_len larger")
        if name in GROUP_PARTS and group_size == 1:
            raise ValueError(f"reward part {name!r} compares the responses to one prompt, and group_size = 1 leaves "
                             "nothing to compare: make it 2 or more")


def finite(value, name):
    """Return it as a float; raise ValueError if it is not finite, or larger than MAX_REWARD."""
    value = float(value)
    if not abs(value) <= MAX_REWARD:
        raise ValueError(f"{name} is {value}")
    return value


def weight_and_options(weight):
    """Split what a recipe says of a part: a number, or a dict with its weight and options."""
    options = dict(weight) if isinstance(weight, dict) else {"weight": weight}
    return options.pop("weight"), options


def plus(score, name, value, weight, failed=False):
    """Return the score with weight x value added as a part of that name; failed: with the flag 'error' too."""
    parts = {**score.parts, name: score.parts.get(name, 0.0) + weight * value}
    flags = frozenset(score.flags | {"error"}) if failed else score.flags
    return replace(score, parts=parts, total=float(sum(parts.values())), flags=flags)


def add_parts_of_one(score, weights, sample, notes=None):
    """
    Return the score plus weight x part for each of PARTS in `weights`. Truncated: parts OF_FORMAT add nothing. A part
    that raises or is not finite adds nothing, with the flag 'error' and a note.
    """
    without = score
    for name in (name for name in weights if name not in GROUP_PARTS):
        (weight, options), value, failed = weight_and_options(weights[name]), 0.0, False
        try:
            value = finite(PARTS[name](sample, without, **options), "it")
        except (Exception, SystemExit) as error:
            failed = True
            if notes is not None:
                notes.append(("error", f"part {name}: {type(error).__name__}: {error}"))
        score = plus(score, name, 0.0 if sample.truncated and name in OF_FORMAT else value, weight, failed)
    return score


def add_parts_of_groups(rollouts, weights):
    """
    Add weight x part to r.score for each of GROUP_PARTS in `weights`. rollouts: those of one prompt, r.prompt, stand
    together, and every rank has all of them. A truncated response is wrong, whatever its reward says.

    Return [(rollout, what went wrong)]: a part that raises or is not finite adds nothing to its group.
    """
    problems, names = [], [name for name in weights if name in GROUP_PARTS]
    for group in (list(group) for _, group in itertools.groupby(rollouts, lambda r: r.prompt)) if names else ():
        lengths = [len(r.response_ids) for r in group]
        right = [bool(r.score.correct) and not r.truncated and not r.phantom for r in group]
        for name in names:
            (weight, options), failed = weight_and_options(weights[name]), False
            try:
                values = GROUP_PARTS[name](lengths, right, **options)
                values = [finite(value, "it") for _, value in zip(group, values, strict=True)]
            except (Exception, SystemExit) as error:
                values, failed = [0.0] * len(group), True
                problems.append((group[0], f"part {name}: {type(error).__name__}: {error}"))
            for r, value in zip(group, values, strict=True):
                r.score = plus(r.score, name, value, weight, failed)
    return problems
