"""
A completion and its reference answer -> a score. Every reward of the published R1 reproductions, in one place.

    score("logic_rl_kk", response, answer)          -> Score(total, correct, format_ok, parts, flags); never raises
    Scorer(num_workers).submit(key, ...), .collect() -> the same for a batch, while the engine still generates
                                                       (both in tasks/scoring.py, which calls all rewards)
    python rewards.py --why RESPONSE.txt --reward logic_rl_kk --answer '{"names": ...}'     explains a score

`response` is the completion alone (a prefilled <think> belongs to the prompt), decoded with its special tokens. The
texts are hostile: no eval, no regex that can backtrack, time linear in the length, sympy only in processes that can be
killed (tasks/workers.py). A truncated completion is never correct and gets the failing value of its format.

A reward of your own is a function in your recipe: docs/your_own.md. To add one here, write a function of (completion,
equal) with @reward() above it; recipes then name it. To add a part that recipes weigh beside a reward, put a function
into PARTS (tasks/parts.py). Several: [("math", 1.0), (my_reward, 0.5)], or "math + 0.5 * recipes/mine.py:my_reward".
"""

import re

from tasks.formats import (BLANKS, EOS_TEXTS, formula_after_answer, outside_thinking, tag_error, think_answer_format,
                           two_blocks, xml_count)
from tasks.judged import Completion, Score, checked, equals_gold, is_right, last_box
from tasks.math_problems import gold_answers
from tasks.own import named, own_reward, terms
from tasks.parts import GROUP_PARTS, PARTS, add_parts_of_groups, cosine, dense_repetition
from tasks.scoring import (PERFECT, READS, REWARDS, Scorer, add_parts, check, check_answer, perfect_response, predicted,
                           reads, reward, run, run_one, score)
from tasks.workers import ask_now

__all__ = ["Completion", "Score", "named", "own_reward", "terms", "GROUP_PARTS", "PARTS", "add_parts_of_groups",
           "dense_repetition", "PERFECT", "READS", "REWARDS", "Scorer", "add_parts", "check", "check_answer",
           "perfect_response", "predicted", "reads", "reward", "run", "score", "ask_now", "run_one", "checked"]


# ---------------------------------------------------------------- rewards
# `equal(golds, prediction, rules)` is "right", "wrong", "timeout" or "error".

WANTS_SOLUTION = {"open_r1_math"}  # its gold is the worked solution, as published
BOXED = "{think}\nThe answer is \\boxed{{answer}}."


@reward("countdown", 1.0, "{think}\n<answer> {answer} </answer>")
def tinyzero_countdown(completion, equal):
    """
    Give 1 for the right answer, 0.1 for the right format, else 0. TinyZero @95df88f reward_score/countdown.py, except:
    blanks may follow and surround the answer, exact arithmetic instead of eval, each tag exactly once, no other text
    after </answer>, and no answer before </think>.
    """
    text = completion.text
    error = "truncated" if completion.truncated else tag_error(text)
    if not error and text.rpartition("</answer>")[2].strip(BLANKS):
        error = "text after </answer>"
    completion.note("format: one </think> <answer> </answer>, nothing after", error or "yes")
    if error:
        return completion.finish({"format": 0.0, "answer": 0.0})
    right = is_right(completion, "countdown")
    return completion.finish({"format": 0.1, "answer": 0.9 if right else 0.0}, bool(right), True)


@reward("kk", 3.0, "{think}\n<answer>\n{answer}\n</answer>")
def logic_rl_kk(completion, equal):
    """
    Give 3 if right, -0.5 if wrong, -1 if unreadable, -3 for a wrong format. Logic-RL @9d2c457 (since e3e47ae)
    reward_score/kk.py: format +1 / -1; answer +2 / -1.5 / -2. Text between the tags and after </answer> is allowed, as
    published.
    """
    error = "truncated" if completion.truncated else tag_error(completion.text)
    completion.note("format: one </think> <answer> </answer>", error or "yes")
    if error:
        return completion.finish({"format": -1.0, "answer": -2.0})
    right = is_right(completion, "kk")
    return completion.finish({"format": 1.0, "answer": {True: 2.0, False: -1.5, None: -2.0}[right]}, bool(right), True)


@reward("math", 1.0, BOXED, names=("math", "dr_grpo_math"))
def boxed(completion, equal):
    """
    Give 1 if the last closed \\boxed{} equals the gold, else 0; format: there is such a box. The strict grader of
    evaluation; also understand-r1-zero @dfca49d boxed_reward_fn ("full"), where text after a stop word is still read.
    """
    box = last_box(completion, outside_thinking(completion.text))
    if completion.truncated or box is None:
        return completion.finish({"answer": 0.0})
    correct = equals_gold(completion, equal, box)
    return completion.finish({"answer": float(correct)}, correct, True)


@reward("math", 1.0, "{think} <answer>\\boxed{{answer}}</answer>")
def dr_grpo_r1(completion, equal):
    """
    Give 1 or 0. understand-r1-zero @dfca49d answer_tag_reward_fn: '</think> <answer>' with exactly one space, and
    '</answer>'; the last answer block counts, or the last box in it. There is no format bonus.
    """
    text = completion.text
    format_ok = not completion.truncated and "</think> <answer>" in text and "</answer>" in text
    completion.note("format: '</think> <answer>' and '</answer>'", "yes" if format_ok else "no")
    if not format_ok:
        return completion.finish({"answer": 0.0})
    prediction = text.rpartition("<answer>")[2].replace("</answer>", "").strip()
    if "\\boxed" in prediction:
        prediction = last_box(completion, prediction) or ""
    correct = equals_gold(completion, equal, prediction)
    return completion.finish({"answer": float(correct)}, correct, True)


@reward("math", 1.0, BOXED)
def deepscaler_math(completion, equal):
    """
    Give 1 or 0. DeepScaleR @95ef74f deepscaler/rewards/math_reward.py: the last box after the first </think>; without
    </think> nothing counts (the opening tag may be prefilled); any of a list of golds.
    """
    _, closed, solution = completion.text.partition("</think>")
    box = last_box(completion, solution)
    format_ok = bool(closed) and box is not None and not completion.truncated
    completion.note("format: </think>, then a box", "yes" if format_ok else "no")
    correct = format_ok and equals_gold(completion, equal, box)
    return completion.finish({"answer": float(correct)}, correct, format_ok)


@reward("math", 1.0, BOXED)
def simplerl_math(completion, equal):
    """
    Give 1 if equal, -0.5 if not, -1 without a closed box. simpleRL-reason @2702a87 (v0) with Qwen2.5-Math's math_equal:
    relative tolerance 1e-4, bracket types ignored, lists in order; but 500 and 0.05 are not 5, and a box must close.
    """
    text = completion.text
    cut = min((i for i in map(text.find, EOS_TEXTS[:3]) if i >= 0), default=len(text))
    box = last_box(completion, outside_thinking(text[:cut]))
    if completion.truncated or box is None:
        return completion.finish({"answer": -1.0})
    correct = equals_gold(completion, equal, box, "simplerl")
    return completion.finish({"answer": 1.0 if correct else -0.5}, correct, True)


EXCEED_MARGIN = 16  # tokens


@reward("math", 2.0, BOXED)
def demystify_cosine(completion, equal):
    """
    Give 2 -> 1 if right, -10 -> 0 if wrong, along half a cosine as the length goes 0 -> max_tokens; -10 and never
    correct where num_tokens + 16 >= max_tokens or truncated. demystify-long-cot @e90cf9b, the default of its scripts.
    Its repetition penalty is per token (dense_repetition). Without lengths: the values at length 0, flag no_length.
    """
    box = last_box(completion, outside_thinking(completion.text))
    length, longest = completion.num_tokens, completion.max_tokens
    if length is None or longest is None or longest <= 0:
        completion.flags.add("no_length")
        length, longest = 0, 1 << 30
    exceeds = completion.truncated or length + EXCEED_MARGIN >= longest
    completion.note(f"tokens + {EXCEED_MARGIN} < max_tokens", f"{not exceeds}: {length:,} of {longest:,}")
    if exceeds:
        return completion.finish({"cosine": -10.0})
    correct = box is not None and equals_gold(completion, equal, box)
    at_zero, at_max = (2.0, 1.0) if correct else (-10.0, 0.0)
    return completion.finish({"cosine": cosine(length, longest, at_zero, at_max)}, correct, box is not None)


@reward("math", 2.0, "{think} <answer>\\boxed{{answer}}</answer>")
def open_r1_math(completion, equal):
    """
    Give answer 1 or 0 plus format 1 or 0. open-r1 @571661a accuracy_reward and format_reward with the regex of
    d12886d. LaTeX answers only: the last box, else a formula; a bare number earns nothing. Unlike it: \\frac12 is
    accepted, trailing white space is not text, nothing else may follow </answer>.
    """
    text = completion.text
    format_ok = not completion.truncated and think_answer_format(text) == 1.0
    completion.note("format: <think>...</think> <answer>...</answer>", "yes" if format_ok else "no")
    prediction = last_box(completion, outside_thinking(text))
    if prediction is None:
        prediction = formula_after_answer(outside_thinking(text))
        completion.note("else a formula after the word 'answer'", "none" if prediction is None else prediction)
    readable = not completion.truncated and prediction is not None
    correct = readable and equals_gold(completion, equal, prediction, "open_r1")
    return completion.finish({"answer": float(correct), "format": float(format_ok)}, correct, format_ok)


HASHES = re.compile(r"#### (-?[0-9.,]{1,200})")


@reward("math", 1.0, "I worked it out.\n#### {answer}")
def verl_gsm8k(completion, equal):
    """
    Give 1 or 0. verl @945104d verl/utils/reward_score/gsm8k.py ("strict"), the prompt of base models with worked
    examples: the first '#### N' of the completion; format: there is one. Unlike it: 18.00 and '18.' are 18, truncated
    is 0.
    """
    found = HASHES.search(completion.text)
    completion.note("the first '#### N'", found[1] if found else "none")
    if completion.truncated or not found:
        return completion.finish({"answer": 0.0})
    correct = equals_gold(completion, equal, found[1].rstrip(".,"))
    return completion.finish({"answer": float(correct)}, correct, True)


INTEGER = re.compile(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+")


@reward("math", lambda gold: 3.5 if gold.startswith("-") else 4.0,  # its integer part knows no sign
        "<reasoning>\nI worked it out.\n</reasoning>\n<answer>\n{answer}\n</answer>\n")
def unsloth_gsm8k(completion, equal):
    """
    Give xmlcount 0.5 + soft_format 0.5 + strict_format 0.5 + integer 0.5 + answer 2 = 4; 0 if truncated.
    unslothai/notebooks @bdda2ef Llama3.1_(8B)-GRPO, except that in soft and strict '.' matches a newline (as published
    they exclude each other) and 1,000 is 1000. xmlcount falls without bound: see xml_count.
    """
    text, names = completion.text, ("xmlcount", "soft_format", "strict_format", "integer", "answer")
    if completion.truncated:
        return completion.finish(dict.fromkeys(names, 0.0))
    gold = gold_answers(completion.answer)[0]
    said = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    completion.note("answer: after the last <answer>, else all", said)
    soft = two_blocks(text, "<reasoning>", r"</reasoning>\s*<answer>", "</answer>", to_the_end=False)
    strict = two_blocks(text.removesuffix("\n") if text.endswith("\n\n") else text,
                        "<reasoning>\n", r"\n</reasoning>\n<answer>\n", "\n</answer>\n", to_the_end=True)
    integer = bool(INTEGER.fullmatch(said))
    correct = bool(said) and (said == gold or INTEGER.fullmatch(said.removeprefix("-")) is not None
                              and said.replace(",", "") == gold.replace(",", ""))
    values = (xml_count(text), 0.5 * soft, 0.5 * strict, 0.5 * integer, 2.0 * correct)
    return completion.finish(dict(zip(names, values, strict=True)), correct, soft)


if __name__ == "__main__":
    from tools.why import main

    main()
