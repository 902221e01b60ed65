"""
A completion and its reference answer -> a score. Every reward of the published R1 reproductions, in one place.

    score("logic_rl_kk", response, answer)          -> Score(total, correct, format_ok, parts, flags); never raises
    Scorer(num_workers).submit(key, ...), .collect() -> the same for a batch, while the engine still generates
    python rewards.py --why RESPONSE.txt --reward logic_rl_kk --answer '{"names": ...}'     explains a score

`response` is the completion alone (a prefilled <think> belongs to the prompt), decoded with its special tokens.
The texts are hostile: no eval, no regex that can backtrack, time linear in the length, sympy only in killable
processes (tasks/math_equal.py). A truncated completion is never correct and has the failure value of its format.
"""
import argparse
import copy
import difflib
import json
import math
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tasks import math_equal


@dataclass(frozen=True)
class Score:
    total: float                # the sum of parts
    correct: bool
    format_ok: bool             # the published format condition held
    parts: dict                 # name -> what it added
    flags: frozenset = frozenset()      # monitors: several_answers answer_in_thinking several_boxes empty_thinking
                                        # non_ascii_answer truncated timeout error no_length


@dataclass
class Sample:
    """One completion on its way through a reward function."""
    text: str                           # one trailing end-of-text stripped
    answer: object
    truncated: bool = False
    num_tokens: int | None = None       # of the response
    max_tokens: int | None = None       # it was allowed
    flags: set = field(default_factory=set)
    notes: list | None = None           # (rule, finding) pairs for --why

    def note(self, rule, finding):
        if self.notes is not None:
            self.notes.append((rule, finding))

    def finish(self, parts, correct=False, format_ok=False):
        return Score(float(sum(parts.values())), correct, format_ok, parts, frozenset(self.flags))


# ----------------------------------------------------------------------------------------------------------------------
# Finding things in a completion

EOS_TEXTS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
BLANKS = " \t\r\n"
EMPTY_BOX = re.compile(r"(?:[\s.~_{}…]|\\[ ,;:!_]|\\(?:q?quad|[lc]?dots|text)(?![a-zA-Z]))*")
MAX_BRACES = 50_000             # with more of them the text holds no answer; a 32k-token solution has a fifth of it
BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|(?<!\\)\\[{}]|[{}]")


def strip_eos(text):
    """One end-of-text at the very end is the engine's; a second one is the model's own text."""
    for eos in EOS_TEXTS:
        if text.endswith(eos):
            return text[:-len(eos)]
    return text


def tag_error(text):
    """What is wrong with the tags: there must be no <think> (it is prefilled), then one </think> <answer> </answer>."""
    for tag, wanted in (("<think>", 0), ("</think>", 1), ("<answer>", 1), ("</answer>", 1)):
        if text.count(tag) != wanted:
            return f"{tag} {text.count(tag)} times, not {wanted}"
    if not text.find("</think>") < text.find("<answer>") < text.find("</answer>"):
        return "the tags stand in the wrong order"
    return ""


def between(text, start, end):
    """The text after the first `start` up to the next `end`."""
    return text.partition(start)[2].partition(end)[0]


def outside_thinking(text):
    """What follows the last </think>; all of a text without tags; nothing where the thinking never ends."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def boxes(text):
    """The contents of all closed \\boxed{...}, in the order they open."""
    start = min((i for i in (text.find("\\boxed"), text.find("\\fbox")) if i >= 0), default=-1)
    end = text.rfind("}") + 1
    if start < 0 or text.count("{", start, end) + text.count("}", start, end) > MAX_BRACES:
        return []
    opened, closed = [], []
    for match in BOX_OR_BRACE.finditer(text, start, end):
        token = match[0]
        if token[-1] == "{" and token != "\\{":
            opened.append(match.end() if len(token) > 1 else None)
        elif token == "}" and opened:
            if (begin := opened.pop()) is not None:
                closed.append((begin, match.start()))
    return [text[begin:end] for begin, end in sorted(closed)]


def filled_boxes(text):
    """boxes() without those that hold nothing, such as the instruction 'in \\boxed{}' quoted after the answer."""
    return [box for box in boxes(text) if len(box) > 50 or not EMPTY_BOX.fullmatch(box)]


def last_box(sample, text):
    """
    The last closed \\boxed{} with content of this text (what is outside the thinking), "" where all are empty, or None
    without one: the answer of a math reward.
    """
    found = filled_boxes(text) or boxes(text)[-1:]
    if len(found) > 1:
        sample.flags.add("several_boxes")
    if not found and "</think>" in sample.text and boxes(sample.text):
        sample.flags.add("answer_in_thinking")
    box = found[-1] if found else None
    sample.note("last closed \\boxed{} outside the thinking", "none" if box is None else box)
    if box is not None and not box.isascii():
        sample.flags.add("non_ascii_answer")
    return box


def watch_tags(sample):
    """The monitors that read tags; they change no score."""
    text = sample.text
    thinking, closed, _ = text.partition("</think>")
    if text.count("<answer>") > 1:
        sample.flags.add("several_answers")
    if -1 < text.find("<answer>") < text.rfind("</think>"):
        sample.flags.add("answer_in_thinking")
    if closed and not thinking.replace("<think>", "", 1).strip():
        sample.flags.add("empty_thinking")
    if not text.rpartition("<answer>")[2].partition("</answer>")[0].isascii() and "<answer>" in text:
        sample.flags.add("non_ascii_answer")


def gold_answers(answer):
    """A gold or a list of acceptable ones; of a worked solution the last box, of a GSM8K rationale the end."""
    golds = []
    for gold in answer if isinstance(answer, (list, tuple)) else [answer]:
        if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
            raise TypeError(f"a gold is a string, not {gold!r}")
        gold = str(gold)
        found = filled_boxes(gold)
        gold = found[-1] if found else gold.rpartition("####")[2]
        golds.append(gold.strip())
    return golds


# ----------------------------------------------------------------------------------------------------------------------
# Countdown and Knights & Knaves

MAX_EXPRESSION, MAX_NESTING = 256, 32
TOKEN = re.compile(r"[ \t\r\n]*(0(?![0-9])|[1-9][0-9]{0,5}(?![0-9])|[-+*/()])")


def evaluate(expression):
    """
    '(44 + 19) * 2' -> (Fraction(126), [44, 19, 2]); exact, and without eval. ValueError where it is no expression:
        expr = term (("+" | "-") term)*     term = atom (("*" | "/") atom)*     atom = INT | "(" expr ")"
    INT has 1 to 6 ASCII digits and no leading zero; no unary signs, no **, //, decimals, =.
    Division by zero is a ZeroDivisionError.
    """
    expression = expression.strip(BLANKS)
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


def tinyzero_countdown(sample, equal):
    """
    0 wrong format, 0.1 right format, 1.0 right answer. TinyZero @95df88f verl/utils/reward_score/countdown.py, except:
    blanks may follow and surround the answer, exact arithmetic instead of eval, each tag exactly once, no other text
    after </answer>, and what stands before </think> is no answer.
    """
    watch_tags(sample)
    error = "truncated" if sample.truncated else tag_error(sample.text)
    if not error and sample.text.rpartition("</answer>")[2].strip(BLANKS):
        error = "text after </answer>"
    sample.note("format: one </think> <answer> </answer>, nothing after", error or "yes")
    if error:
        return sample.finish({"format": 0.0, "answer": 0.0})
    expression = between(sample.text, "<answer>", "</answer>")
    sample.note("expression", expression)
    try:
        value, numbers = evaluate(expression)
    except (ValueError, ZeroDivisionError) as e:
        sample.note("parsed", f"no: {e}")
        return sample.finish({"format": 0.1, "answer": 0.0}, format_ok=True)
    target, given = Fraction(sample.answer["target"]), sorted(int(n) for n in sample.answer["numbers"])
    sample.note("value = target, exactly", f"{value} for {target}")
    sample.note("uses each number once", f"{sorted(numbers)} of {given}")
    correct = value == target and sorted(numbers) == given
    return sample.finish({"format": 0.1, "answer": 0.9 if correct else 0.0}, correct, True)


MAX_KK_ANSWER = 10_000


def logic_rl_kk(sample, equal):
    """
    3 right, -0.5 wrong, -1 unreadable, -3 wrong format. Logic-RL @9d2c457 (since e3e47ae) reward_score/kk.py:
    format +1 / -1; answer +2 / -1.5 / -2. Text between the tags and after </answer> is allowed, as published.
    """
    watch_tags(sample)
    error = "truncated" if sample.truncated else tag_error(sample.text)
    sample.note("format: one </think> <answer> </answer>", error or "yes")
    if error:
        return sample.finish({"format": -1.0, "answer": -2.0})
    said = between(sample.text, "<answer>", "</answer>")
    sample.note("answer", said)
    names, solution = sample.answer["names"], sample.answer["solution"]
    count = 0 if len(said) > MAX_KK_ANSWER else said.lower().count("knight") + said.lower().count("knave")
    sample.note("'knight' and 'knave' occur", f"{count} times for {len(names)} people")
    roles = {}
    if count == len(names):
        for name in names:
            match = re.search(rf"\b{re.escape(name)}\b\s+is\s+a\s+\b(knight|knave)\b", said, re.IGNORECASE)
            sample.note(f"'{name} is a ...'", match[1].lower() if match else "not found")
            roles |= {name: match[1].lower()} if match else {}
    if len(roles) < len(names) or not names:
        return sample.finish({"format": 1.0, "answer": -2.0}, format_ok=True)
    correct = all(roles[name] == ("knight" if is_knight else "knave") for name, is_knight in zip(names, solution, strict=False))
    return sample.finish({"format": 1.0, "answer": 2.0 if correct else -1.5}, correct, True)


# ----------------------------------------------------------------------------------------------------------------------
# Math. `equal(golds, prediction, rules)` is "right", "wrong", "timeout" or "error"; each reward asks it at most once

def is_right(sample, equal, prediction, rules="strict"):
    golds = gold_answers(sample.answer)
    verdict = equal(golds, prediction, rules)
    sample.note(f"equal to the gold ({rules} rules)", f"{verdict}: {prediction} for {' or '.join(golds)}")
    if verdict in ("timeout", "error"):
        sample.flags.add(verdict)
    return verdict == "right"


def boxed(sample, equal):
    """
    1 if the last closed \\boxed{} equals the gold, else 0; format: there is such a box. The strict grader of
    evaluation; also understand-r1-zero @dfca49d boxed_reward_fn ("full"), where text after a stop word is still read.
    """
    watch_tags(sample)
    box = last_box(sample, outside_thinking(sample.text))
    if sample.truncated or box is None:
        return sample.finish({"answer": 0.0})
    correct = is_right(sample, equal, box)
    return sample.finish({"answer": float(correct)}, correct, True)


def dr_grpo_r1(sample, equal):
    """
    1 / 0. understand-r1-zero @dfca49d answer_tag_reward_fn: '</think> <answer>' with exactly one space, and
    '</answer>'; the last answer block counts, or the last box in it. Never a format bonus.
    """
    watch_tags(sample)
    format_ok = not sample.truncated and "</think> <answer>" in sample.text and "</answer>" in sample.text
    sample.note("format: '</think> <answer>' and '</answer>'", "yes" if format_ok else "no")
    if not format_ok:
        return sample.finish({"answer": 0.0})
    prediction = sample.text.rpartition("<answer>")[2].replace("</answer>", "").strip()
    if "\\boxed" in prediction:
        prediction = last_box(sample, prediction) or ""
    correct = is_right(sample, equal, prediction)
    return sample.finish({"answer": float(correct)}, correct, True)


def deepscaler_math(sample, equal):
    """
    1 / 0. DeepScaleR @95ef74f deepscaler/rewards/math_reward.py: the last box after the first </think>; without
    </think> nothing counts (the opening tag may be prefilled); any of a list of golds.
    """
    watch_tags(sample)
    _, closed, solution = sample.text.partition("</think>")
    box = last_box(sample, solution)
    format_ok = bool(closed) and box is not None and not sample.truncated
    sample.note("format: </think>, then a box", "yes" if format_ok else "no")
    correct = format_ok and is_right(sample, equal, box)
    return sample.finish({"answer": float(correct)}, correct, format_ok)


def simplerl_math(sample, equal):
    """
    +1 equal, -0.5 not equal, -1 no closed box. simpleRL-reason @2702a87 (v0) with Qwen2.5-Math's math_equal: relative
    tolerance 1e-4, bracket types ignored, lists in order; but 500 and 0.05 are not 5, and a box must close.
    """
    watch_tags(sample)
    cut = min((i for i in map(sample.text.find, EOS_TEXTS[:3]) if i >= 0), default=len(sample.text))
    box = last_box(sample, outside_thinking(sample.text[:cut]))
    if sample.truncated or box is None:
        return sample.finish({"answer": -1.0})
    correct = is_right(sample, equal, box, "simplerl")
    return sample.finish({"answer": 1.0 if correct else -0.5}, correct, True)


EXCEED_MARGIN = 16      # tokens


def demystify_cosine(sample, equal):
    """
    Right 2 -> 1, wrong -10 -> 0 as the length goes 0 -> max_tokens along half a cosine; -10 and never correct where
    num_tokens + 16 >= max_tokens or truncated. demystify-long-cot @e90cf9b, the default of its scripts. Its repetition
    penalty is per token (dense_repetition). Without lengths: the values at length 0, flag no_length.
    """
    watch_tags(sample)
    length, longest = sample.num_tokens, sample.max_tokens
    if length is None or longest is None or longest <= 0:
        sample.flags.add("no_length")
        length, longest = 0, 1 << 30
    box = last_box(sample, outside_thinking(sample.text))
    exceeds = sample.truncated or length + EXCEED_MARGIN >= longest
    sample.note(f"tokens + {EXCEED_MARGIN} < max_tokens", f"{'no' if exceeds else 'yes'}: {length:,} of {longest:,}")
    if exceeds:
        return sample.finish({"cosine": -10.0})
    correct = box is not None and is_right(sample, equal, box)
    at_zero, at_max = (2.0, 1.0) if correct else (-10.0, 0.0)
    return sample.finish({"cosine": cosine(length, longest, at_zero, at_max)}, correct, box is not None)


FORMULA = re.compile(r"\$\$([^$]{1,500})\$\$|(?<!\\)\$([^$\n]{1,500})\$|\\\(([^\n]{1,500}?)\\\)|\\\[(.{1,500}?)\\\]"
                     r"|(-?\\frac\{-?[0-9]+\}\{-?[0-9]+\})", re.DOTALL)


def formula_after_answer(text):
    """
    Without a box math-verify takes a formula ($...$, \\(...\\), \\[...\\] or \\frac{1}{2}) that begins within 50
    characters after the word 'answer', as in <answer>$5$</answer>; a bare 5 is no LaTeX.
    """
    position = text.rfind("<answer>") if "<answer>" in text else max(text.rfind("answer"), text.rfind("Answer"))
    match = FORMULA.search(text[position:position + 600]) if position >= 0 else None
    if not match or match.start() > len("<answer>") + 50:
        return None
    return next(group for group in match.groups() if group is not None)


def open_r1_math(sample, equal):
    """
    answer 1 / 0 and format 1 / 0, weight 1 each. open-r1 @571661a accuracy_reward and format_reward with the regex of
    d12886d. LaTeX answers only: the last box, else a formula; a bare number earns nothing. As we differ: \\frac12 is
    accepted, trailing white space is not text, nothing else may follow </answer>.
    """
    watch_tags(sample)
    format_ok = not sample.truncated and think_answer_format(sample.text) == 1.0
    sample.note("format: <think>...</think> <answer>...</answer>", "yes" if format_ok else "no")
    prediction = last_box(sample, outside_thinking(sample.text))
    if prediction is None:
        prediction = formula_after_answer(outside_thinking(sample.text))
        sample.note("else a formula after the word 'answer'", "none" if prediction is None else prediction)
    correct = not sample.truncated and prediction is not None and is_right(sample, equal, prediction, "open_r1")
    return sample.finish({"answer": float(correct), "format": float(format_ok)}, correct, format_ok)


HASHES = re.compile(r"#### (-?[0-9.,]{1,200})")


def verl_gsm8k(sample, equal):
    """
    1 / 0. verl @945104d verl/utils/reward_score/gsm8k.py ("strict"), the prompt of base models with worked examples: the
    first '#### N' of the completion; format: there is one. As we differ: 18.00 and '18.' are 18, truncated is 0.
    """
    found = HASHES.search(sample.text)
    sample.note("the first '#### N'", found[1] if found else "none")
    if sample.truncated or not found:
        return sample.finish({"answer": 0.0})
    correct = is_right(sample, equal, found[1].rstrip(".,"))
    return sample.finish({"answer": float(correct)}, correct, True)


INTEGER = re.compile(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+")


def unsloth_gsm8k(sample, equal):
    """
    xmlcount 0.5 + soft_format 0.5 + strict_format 0.5 + integer 0.5 + answer 2 = 4; truncated: all 0.
    unslothai/notebooks @bdda2ef Llama3.1_(8B)-GRPO, except that in soft and strict '.' matches a newline (as published
    they exclude each other) and 1,000 is 1000. xmlcount falls without bound: see xml_count.
    """
    watch_tags(sample)
    names = ("xmlcount", "soft_format", "strict_format", "integer", "answer")
    if sample.truncated:
        return sample.finish(dict.fromkeys(names, 0.0))
    text, gold = sample.text, gold_answers(sample.answer)[0]
    said = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    sample.note("answer: after the last <answer>, else all", said)
    soft = two_blocks(text, "<reasoning>", r"</reasoning>\s*<answer>", "</answer>", to_the_end=False)
    strict = two_blocks(text.removesuffix("\n") if text.endswith("\n\n") else text,
                        "<reasoning>\n", r"\n</reasoning>\n<answer>\n", "\n</answer>\n", to_the_end=True)
    integer = bool(INTEGER.fullmatch(said))
    correct = bool(said) and (said == gold or INTEGER.fullmatch(said.removeprefix("-")) is not None
                              and said.replace(",", "") == gold.replace(",", ""))
    values = (xml_count(text), 0.5 * soft, 0.5 * strict, 0.5 * integer, 2.0 * correct)
    return sample.finish(dict(zip(names, values, strict=False)), correct, soft)


def xml_count(text):
    """
    0.125 for each of four tags that stands exactly once with its newlines, less 0.001 a character after </answer>.
    As published it is taken off twice: for what follows the last '\\n</answer>\\n', and again for what follows the last
    '\\n</answer>', less one character. Where the text ends in </answer> without a newline, the first finds nothing
    and takes off 0.001 for each character of the whole text: a perfect response of 1,000 characters gets -0.499.
    """
    count = 0.125 * ((text.count("<reasoning>\n") == 1) + (text.count("\n</reasoning>\n") == 1))
    if text.count("\n<answer>\n") == 1:
        count += 0.125 - 0.001 * len(text.rpartition("\n</answer>\n")[2])
    if text.count("\n</answer>") == 1:
        count += 0.125 - 0.001 * (len(text.rpartition("\n</answer>")[2]) - 1)
    return round(count, 6)


# ----------------------------------------------------------------------------------------------------------------------
# Parts a recipe can weigh beside a reward (add_parts); open-r1 @1416fa0 src/open_r1/rewards.py unless said otherwise

def two_blocks(text, opening, middle, closing, to_the_end):
    """The regex opening.*?middle.*?closing, from the start (to the end), '.' matching newlines, in linear time."""
    found = re.compile(middle).search(text, len(opening)) if text.startswith(opening) else None
    if not found:
        return False
    return text.endswith(closing) and len(text) - len(closing) >= found.end() if to_the_end else \
        text.find(closing, found.end()) >= 0


def think_answer_format(text):
    r"""1 for ^<think>.*?</think>\s*<answer>.*?</answer>$ as a full match (regex of 2025-02-08, DOTALL), else 0."""
    return float(two_blocks(text.rstrip(), "<think>", r"</think>\s*<answer>", "</answer>", to_the_end=True))


def tag_count(text):
    """0.25 for each of four tags that stands exactly once with its newlines."""
    return sum(0.25 for tag in ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>") if text.count(tag) == 1)


STEP = re.compile(r"Step [0-9]+:|\A[0-9]+\.|\n-|\n\*|First,|Second,|Next,|Finally,")


def reasoning_steps(text):
    """min(1, n / 3) for n step marks; as published a numbered list counts only at the very start of the text."""
    return min(1.0, sum(1 for _ in zip(range(3), STEP.finditer(text), strict=False)) / 3)


def cosine(length, max_length, at_zero, at_max):
    """
    at_zero -> at_max along half a cosine: at_max + (at_zero - at_max) (1 + cos(pi length / max_length)) / 2.
    Stays at at_max beyond max_length; open-r1's turns back, so that twice the length is worth as much as none.
    """
    return at_max + (at_zero - at_max) * (1 + math.cos(math.pi * min(1.0, max(0.0, length / max_length)))) / 2


def length_rewards(lengths, corrects):
    """
    Kimi k1.5 (2501.12599): 0.5 - (len - min) / (max - min) over one group; a wrong answer gets min(0, that); all
    lengths equal: 0. lengths, corrects (G,) -> (G,)
    """
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest:
        return [0.0] * len(lengths)
    values = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [value if correct else min(0.0, value) for value, correct in zip(values, corrects, strict=False)]


def repetition(text, n=3, max_penalty=-1.0):
    """(1 - unique / all n-grams) x max_penalty over lower-cased words; 0 below n words. demystify: n=20."""
    words = text.lower().split()
    if len(words) < n:
        return 0.0
    grams = len(words) - n + 1
    return (1 - len({tuple(words[i:i + n]) for i in range(grams)}) / grams) * max_penalty


def dense_repetition(token_ids, n=40, penalty=-0.05):
    """
    Per token: `penalty` for each token inside a second or later occurrence of an n-gram, once a token, right or wrong.
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
    """0 up to max_tokens - cache, down to -1 at max_tokens, -1 beyond. DAPO (2503.14476) Eq. 13."""
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


def add_parts(score, weights, response, num_tokens, max_tokens, notes=None):
    """
    The score plus weight x part for each of {"reasoning_steps": 0.5, ...}. Truncated: the format parts add nothing.
    cosine has open-r1's function defaults (right 1 -> 0.5, wrong -1 -> -0.5), in tokens instead of characters. The
    cache of soft_overlong is a quarter of max_tokens, or as set: {"soft_overlong": {"weight": 1.0, "cache": 4096}}.
    A part that raises or is not finite adds nothing, with the flag 'error'.
    """
    parts, flags, text = dict(score.parts), set(score.flags), strip_eos(response)
    for name, weight in weights.items():
        options = dict(weight) if isinstance(weight, dict) else {"weight": weight}
        weight = options.pop("weight")
        try:
            value = float(PARTS[name](text, score, num_tokens, max_tokens, **options))
            if not abs(value) <= MAX_REWARD:
                raise ValueError(f"it is {value}")
        except (Exception, SystemExit) as e:
            value, flags = 0.0, flags | {"error"}
            if notes is not None:
                notes.append(("error", f"part {name}: {type(e).__name__}: {e}"))
        if "truncated" in score.flags and name in ("think_answer_format", "tag_count", "reasoning_steps"):
            value = 0.0
        parts[name] = parts.get(name, 0.0) + weight * value
    return replace(score, parts=parts, total=float(sum(parts.values())), flags=frozenset(flags))


# ----------------------------------------------------------------------------------------------------------------------
# By name

REWARDS = {
    "tinyzero_countdown": tinyzero_countdown,
    "logic_rl_kk": logic_rl_kk,
    "simplerl_math": simplerl_math,
    "open_r1_math": open_r1_math,
    "dr_grpo_math": boxed,
    "dr_grpo_r1": dr_grpo_r1,
    "demystify_cosine": demystify_cosine,
    "deepscaler_math": deepscaler_math,
    "unsloth_gsm8k": unsloth_gsm8k,
    "verl_gsm8k": verl_gsm8k,
    "math": boxed,
}

# What the rows of a published reward must hold. A reward of your own is not named here, and gets what the rows have.
READS = {"tinyzero_countdown": "countdown", "logic_rl_kk": "kk", **dict.fromkeys((
    "simplerl_math", "open_r1_math", "dr_grpo_math", "dr_grpo_r1", "demystify_cosine", "deepscaler_math", "unsloth_gsm8k",
    "verl_gsm8k", "math"), "math")}


def check(reward, part_weights=()):
    """ValueError unless there are such a reward and such parts, with finite weights: for start-up."""
    for what, names, known in (("reward", [reward], REWARDS), ("reward part", part_weights, PARTS)):
        for name in names:
            if not isinstance(name, str) or name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                raise ValueError(f"no {what} {name!r}; " + (f"did you mean {near[0]!r}? " if near else "")
                                 + f"known: {', '.join(known)}")
    for name in part_weights:
        options = part_weights[name] if isinstance(part_weights[name], dict) else {"weight": part_weights[name]}
        weight, cache = options.get("weight"), options.get("cache", 1)
        if type(weight) not in (int, float) or not abs(weight) <= MAX_REWARD:
            raise ValueError(f"the weight of reward part {name!r} must be a finite number, not {weight!r}")
        if not {*options} <= ({"weight", "cache"} if name == "soft_overlong" else {"weight"}):
            raise ValueError(f"reward part {name!r} takes a weight, soft_overlong also {{'weight': 1.0, 'cache': 4096}}, "
                             f"not {options!r}")
        if type(cache) is not int or cache < 1:
            raise ValueError(f"the cache of reward part {name!r} is a number of tokens, not {cache!r}")


def check_answer(reward, answer):
    """ValueError unless `answer` is a reference answer that this reward can read: for loading data. Yours may read any."""
    check(reward)
    if reward not in READS:
        return

    def demand(condition, what):
        if not condition:
            raise ValueError(f"{reward}: {what}, not {ascii(answer)[:200]}")

    def is_int(x):
        return isinstance(x, int) and not isinstance(x, bool)

    if reward == "tinyzero_countdown":
        demand(isinstance(answer, dict) and is_int(answer.get("target")), "answer needs an int 'target'")
        numbers = answer.get("numbers")
        demand(isinstance(numbers, (list, tuple)) and numbers and all(is_int(n) and 0 <= n < 10**6 for n in numbers),
               "answer needs 'numbers', a list of ints of at most 6 digits")
    elif reward == "logic_rl_kk":
        demand(isinstance(answer, dict) and {"solution_text_format", "names", "solution"} <= set(answer),
               "answer needs solution_text_format, names and solution")
        names, solution = answer["names"], answer["solution"]
        demand(isinstance(names, (list, tuple)) and isinstance(solution, (list, tuple)), "names and solution are lists")
        demand(len(names) == len(solution) > 0 and all(isinstance(n, str) and n for n in names),
               "as many names as roles")
        lines = [f"({i + 1}) {name} is a {'knight' if is_knight else 'knave'}"
                 for i, (name, is_knight) in enumerate(zip(names, solution, strict=False))]
        demand("\n".join(lines) == answer["solution_text_format"], "solution_text_format must say what solution says")
    else:
        golds = answer if isinstance(answer, (list, tuple)) else [answer]
        demand(golds and all(isinstance(gold, str) for gold in golds), "the gold is a string or a list of strings")
        for gold in gold_answers(answer):
            demand(math_equal.tidy(gold) and len(gold) <= 1000, "a gold holds an answer, bare or in a closed \\boxed{}")


def run(reward, equal, response, answer, truncated=False, num_tokens=None, max_tokens=None, notes=None):
    """
    The reward function, made total: where it raises, or returns what is no Score of finite numbers, the score is 0, of a
    published reward its failing value, with the flag 'error' and a note that says what went wrong. Neither a bad row nor
    a bug may end a run of days; Scorer counts and tells them.
    """
    try:
        # a copy: a reward that takes something out of the answer must not change what the next response is graded against
        sample = Sample(strip_eos(response), copy.deepcopy(answer), bool(truncated), num_tokens, max_tokens, notes=notes)
        sample.flags |= {"truncated"} if truncated else set()
        return checked(REWARDS[reward](sample, equal))
    except (Exception, SystemExit) as e:  # SystemExit: ConfigError and DataError are such
        if notes is not None:
            notes.append(("error", f"{type(e).__name__}: {e}"))
    failed = Score(0.0, False, False, {})
    try:
        if reward in READS:
            failed = checked(REWARDS[reward](Sample("", answer, truncated=True), equal))
    except (Exception, SystemExit):
        pass  # a published reward that a fork has replaced: told above
    return replace(failed if failed.total <= 0 else Score(0.0, False, False, {}), flags=frozenset({"error"}))


MAX_REWARD = 1e6        # of a total or a part: a number beyond it is a mistake, and would drown every other advantage


def checked(score):
    """A Score as it is, in plain finite numbers; TypeError or ValueError for what a reward may not return."""
    if not isinstance(score, Score):
        raise TypeError(f"it returned {type(score).__name__}, not a Score: end it with return sample.finish({{'name': value}}, correct)")
    parts = {str(name): float(value) for name, value in score.parts.items()} or {"reward": float(score.total)}
    total = float(score.total)
    for name, value in [*parts.items(), ("total", total)]:
        if not abs(value) <= MAX_REWARD:
            raise ValueError(f"{name} is {value}")
    if abs(total - sum(parts.values())) > 1e-6 * max(1.0, abs(total)):
        raise ValueError(f"total {total:g} is not the sum of its parts, {sum(parts.values()):g}")
    return Score(total, bool(score.correct), bool(score.format_ok), parts, frozenset(map(str, score.flags)))


def predicted(reward, response, answer, truncated=False):
    """The answer that this reward compares with the gold, None without one: Countdown, K&K, no or an empty box, cut off."""
    asked = []

    def equal(golds, prediction, rules):
        asked.append(prediction)
        return "wrong"

    run(reward, equal, response, answer, truncated, num_tokens=0, max_tokens=1 << 30)
    return asked[0] if asked and asked[0].strip() else None


def score(reward, response, answer, *, truncated=False, num_tokens=None, max_tokens=None) -> Score:
    """
    The score of one completion. Never raises for a response, finite, deterministic; ValueError for an unknown reward.
    answer: Countdown {"target", "numbers"}; Knights & Knaves {"solution_text_format", "names", "solution"}; math a gold
    string or a list of acceptable ones. Waits for a grader process where only sympy can tell (3 s at most).
    """
    check(reward)
    return run(reward, ask_now, response, answer, truncated, num_tokens, max_tokens)


_pool, _pool_owner, _pool_lock, _known = None, 0, threading.Lock(), {}


def ask_now(golds, prediction, rules):
    """One verdict, through one grader process of this module, started when first needed."""
    global _pool, _pool_owner
    right = math_equal.decide(golds, prediction, rules)
    if right is not None:
        return "right" if right else "wrong"
    with _pool_lock:
        question = (tuple(golds), prediction, rules)
        if question not in _known:
            if _pool is None or _pool_owner != os.getpid():         # after a fork the pipes belong to the parent
                _pool, _pool_owner = math_equal.Workers(num_workers=1), os.getpid()
            _pool.submit(question, *question)
            verdicts = {}
            while question not in verdicts:
                verdicts = dict(_pool.poll(wait_s=1.0))
            remember(_known, question, verdicts[question])
            return verdicts[question]
        return _known[question]


def remember(known, question, verdict, most=100_000):
    """The samples of a group repeat one another's answers. Timeouts are not kept: they may be a busy machine's."""
    if len(known) >= most:
        known.clear()
    if verdict in ("right", "wrong"):
        known[question] = verdict


class Scorer:
    """
    Scores a batch while something else runs. submit() scores at once what needs no sympy and hands the rest to grader
    processes; collect() waits for them, budget_s at most. Until its verdict is in, a score is the failing one with the
    flag timeout. For one thread.
    """

    def __init__(self, num_workers=2, timeout_s=3.0, part_weights=None):
        self.graders, self.part_weights = math_equal.Workers(num_workers, timeout_s), part_weights or {}
        self.scores, self.waiting, self.known = {}, {}, {}
        self.failed = {}  # {key: (reward, what went wrong, response, worth)}, not yet told
        self.failures, self.told = {}, {}  # {reward: how many responses}, {reward: the number last told}

    def submit(self, key, reward, response, answer, truncated=False, num_tokens=None, max_tokens=None):
        check(reward)
        arguments = (response, answer, truncated, num_tokens, max_tokens)

        def equal(golds, prediction, rules):
            question = (tuple(golds), prediction, rules)
            right = math_equal.decide(golds, prediction, rules)
            if right is not None or question in self.known:
                return self.known.get(question) or ("right" if right else "wrong")
            if question not in self.waiting:
                self.graders.submit(question, *question)
            self.waiting.setdefault(question, []).append((key, reward, arguments))
            return "timeout"

        self.keep(key, reward, equal, arguments)
        self.poll()

    def keep(self, key, reward, equal, arguments):
        notes, (response, _, _, num_tokens, max_tokens) = [], arguments
        score = run(reward, equal, *arguments, notes=notes)
        if self.part_weights:
            score = add_parts(score, self.part_weights, response, num_tokens, max_tokens, notes)
        self.scores[key] = score
        self.failed.pop(key, None)  # a reward runs again when its verdict is in
        if problem := next((finding for rule, finding in notes if rule == "error"), None):
            self.failed[key] = reward, problem, response, score.total

    def poll(self, wait_s=0.0):
        """Take the verdicts that are in and hand out the next questions; cheap, for loops that wait elsewhere."""
        for question, verdict in self.graders.poll(wait_s):
            remember(self.known, question, verdict)
            for key, reward, arguments in self.waiting.pop(question):
                self.keep(key, reward, lambda *_, verdict=verdict: verdict, arguments)

    def settled(self):
        """{key: Score} of what no grader process has to decide any more; collect() will not return these again."""
        undecided = {key for asked in self.waiting.values() for key, *_ in asked}
        return {key: self.scores.pop(key) for key in [key for key in self.scores if key not in undecided]}

    def collect(self, budget_s=60.0):
        """All scores since the last collect, as {key: Score}."""
        deadline = time.monotonic() + budget_s
        while self.waiting and time.monotonic() < deadline:
            self.poll(min(1.0, max(0.0, deadline - time.monotonic())))
        if self.waiting:
            self.graders.drop()
            self.waiting.clear()
        scores, self.scores = self.scores, {}
        self.tell_failures()
        return scores

    def tell_failures(self):
        """On stderr, from every rank: the first three failures of a reward, then their number whenever it has doubled."""
        rank = os.environ.get("RANK", "0")
        for reward, problem, response, total in self.failed.values():
            self.failures[reward] = count = self.failures.get(reward, 0) + 1
            if count <= 3:
                self.told[reward] = count
                print(f"warning: rank {rank}: reward {reward!r} failed on a response, which is worth {total:g} (column flag/error): "
                      f"{shown(problem, 200)}; response: {shown(response)}", file=sys.stderr, flush=True)
        for reward, count in self.failures.items():
            if count >= 2 * self.told[reward]:
                self.told[reward] = count
                print(f"warning: rank {rank}: reward {reward!r} has failed on {count:,} responses so far", file=sys.stderr, flush=True)
        self.failed = {}

    def close(self):
        self.graders.close()


# ----------------------------------------------------------------------------------------------------------------------
# python rewards.py --why

def shown(text, most=100):
    """Hostile text made printable: escaped, cut in the middle."""
    text = ascii(str(text))[1:-1].replace("\\\\", "\\")
    return text if len(text) <= most else f"{text[:most // 2]} ... {text[-most // 2:]}"


def explain(reward, response, answer, **kwargs):
    """The score of a completion as readable lines: each rule, what it found, the parts, the total."""
    check(reward)
    notes = []
    result = run(reward, ask_now, response, answer, notes=notes, **kwargs)
    lines = [f"{reward}: {' '.join((REWARDS[reward].__doc__ or 'no docstring').split()).partition('. ')[0]}",
             f"response {len(response):,} characters: {shown(response)}", f"answer   {shown(answer)}", ""]
    width = max([len(rule) for rule, _ in notes], default=0)
    lines += [f"  {rule:<{width}}  {shown(finding)}" for rule, finding in notes] + [""]
    lines += [f"  {name:<{width}}  {value:+g}" for name, value in result.parts.items()]
    lines += [f"  {'total':<{width}}  {result.total:+g}", "",
              f"correct {'yes' if result.correct else 'no'}, format {'ok' if result.format_ok else 'wrong'}, "
              f"flags: {', '.join(sorted(result.flags)) or 'none'}"]
    return "\n".join(lines)


def parse_answer(reward, text):
    """--answer as JSON where the reward wants a dict or got a list of strings; else the string itself."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    if reward in ("tinyzero_countdown", "logic_rl_kk"):
        return answer
    return answer if isinstance(answer, list) and answer and all(isinstance(a, str) for a in answer) else text


def main():
    parser = argparse.ArgumentParser(description="Explain the score of a completion.")
    parser.add_argument("--why", metavar="FILE", required=True, help="the completion; - reads standard input")
    parser.add_argument("--reward", required=True, help=", ".join(REWARDS))
    parser.add_argument("--answer", required=True, help="JSON or the gold string")
    parser.add_argument("--truncated", action="store_true", help="it hit the length limit")
    parser.add_argument("--num_tokens", type=int)
    parser.add_argument("--max_tokens", type=int)
    args = parser.parse_args()
    try:
        check(args.reward)
        answer = parse_answer(args.reward, args.answer)
        check_answer(args.reward, answer)
        raw = sys.stdin.buffer.read() if args.why == "-" else open(args.why, "rb").read()
    except (ValueError, OSError) as e:
        sys.exit(f"rewards.py: {e}")
    print(explain(args.reward, raw.decode(errors="replace"), answer, truncated=args.truncated,
                  num_tokens=args.num_tokens, max_tokens=args.max_tokens))


if __name__ == "__main__":
    main()
