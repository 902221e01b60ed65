"""
Math problems: a question and a gold answer, or a list of acceptable ones. The columns that people's files have, and
what a gold may be. tasks/sources.py lists the public sets; tasks/math_equal.py decides what equals a gold.
"""

import decimal
import json
import re

from tasks.formats import boxes, filled_boxes
from tasks.math_equal import tidy
from tasks.rows import BadRow, clean_text, filled

# ---------------------------------------------------------------- golds


def without_fbox(text):
    """Take the \\fbox off a solution that has a \\boxed: only that holds its answer, the other frames a step."""
    return re.sub(r"\\fbox(?=\s*\{)", "", text) if "\\boxed" in text else text


def last_boxed(text):
    """Return what is in the last filled \\boxed{...} of a solution, or in MATH's rare "\\boxed 2"; None without one."""
    text = without_fbox(text)
    bare = list(re.finditer(r"\\boxed\s+([^\s{$.]+)", text))
    found = filled_boxes(text[bare[-1].end():] if bare else text)
    return found[-1] if found else bare[-1][1] if bare else None


def answer_or_box(row):
    """
    Read the gold of a row: an answer column if there is one, else the last closed \\boxed{} of its solution (MATH,
    Minerva), what follows ####, or a solution that is one formula or one word. BadRow where there is none.
    """
    nested = row.get("reward_model")  # verl's place for it
    golds = [row.get("gt_answer"),  # SimpleRL has it beside `answer`, and it is the clean one
             nested.get("ground_truth") if isinstance(nested, dict) else None, row.get("ground_truth"),
             row.get("answer")]  # last: beside the others it may be the worked solution, as in verl's extra_info
    # "notfound" and "proof" are NuminaMath 1.5's nothing, "nan" is pandas'
    golds = [gold for gold in golds if filled(gold) and gold not in ("notfound", "proof", "nan")]
    if golds:  # a flag or a struct under one of these names does not hide the answer under another
        return next((gold for gold in golds if gold != [] and not isinstance(gold, (bool, dict))), golds[0])
    gold = gold_of_solution(row["solution"]) if isinstance(row.get("solution"), str) else None
    if gold is None:
        raise BadRow("no answer, and no closed \\boxed{} in the solution")
    return gold


def gold_of_solution(text):
    """Return the last closed \\boxed{}, what follows ####, or a text of one formula or word ("$2$", TRL); else None."""
    if (box := last_boxed(text)) is not None:
        return box
    if "\\boxed" in text:  # it never closes
        return None
    if "####" in text:
        return text.rpartition("####")[2]
    formula = re.fullmatch(r"\s*(?:\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|(\S+))\s*", text, flags=re.DOTALL)
    return next(group for group in formula.groups() if group is not None) if formula else None


def clean_gold(gold):
    """Return a gold as a string, or a list of such; BadRow where it is empty or no text or number."""
    if isinstance(gold, (list, tuple)):
        if not gold:
            raise BadRow("empty answer")
        return [clean_gold(one) for one in gold]
    if isinstance(gold, bool) or gold is None:
        raise BadRow(f"answer is {gold}")
    if isinstance(gold, float):
        gold = decimal.Decimal(repr(gold))  # 1e23 is the number that was written, not the nearest float
    if isinstance(gold, decimal.Decimal) and gold.is_finite():
        gold = format(gold.to_integral_value() if gold == gold.to_integral_value() else gold, "f")
        gold = "0" if gold == "-0" else gold
    if isinstance(gold, int):
        try:
            gold = str(gold)  # of any size: it never becomes a float on the way
        except ValueError as error:
            raise BadRow("answer of more than 4,300 digits") from error
    return clean_text(gold, "answer").strip()


def gold_answers(answer):
    """Return the golds of an answer as a list: of a worked solution the last box, of a GSM8K rationale the end."""
    golds = []
    for gold in answer if isinstance(answer, (list, tuple)) else [answer]:
        if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
            raise TypeError(f"a gold is a string, not {gold!r}")
        gold = str(gold)
        found = filled_boxes(without_fbox(gold))
        gold = found[-1] if found else gold.rpartition("####")[2]
        golds.append(gold.strip())
    return golds


# ---------------------------------------------------------------- the task: what tasks/__init__.py lists

TASK = "math"
SOURCES = {}  # none is generated
SLOTS = {"problem": (("problem", "question"), str), "question": (("question", "problem"), str)}


def holds(row):
    """Return True: a row that no other task claims is a math problem."""
    return True


def clean(row, source, needs=("question", "answer")):
    """
    Return a row of a file in our form; BadRow with the reason where that cannot be. needs: what it must hold. Without a
    need the question may be "", the answer None or what the row has (your own template, your own reward).
    """
    question, conversation = question_of(row)
    row = {**row, "question": clean_text(question, "question") if question or "question" in needs else ""}
    if conversation:
        row["conversation"] = conversation
    try:
        row["answer"] = clean_gold(source.gold(row))
    except BadRow:
        if "answer" in needs:
            raise
        row["answer"] = row.get("answer") if filled(row.get("answer")) else None
    digits = re.search(r"\d+", str(row.get("level")))  # 5, "Level 5"; two rows of MATH have "Level ?"
    row["level"] = int(digits.group()) if digits else None
    subject = row.get("subject") or row.get("type") or row.get("subfield")
    return {**row, "subject": subject if isinstance(subject, str) else None}


def question_of(row):
    """
    Return (`question` or `problem`, None); else of the `prompt` of verl and TRL, a text or a list of messages, (the
    last one's text, all messages if there are several). BadRow for messages that do not end with the user's.
    """
    for field in ("question", "problem"):
        if filled(row.get(field)):
            return row[field], None
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.lstrip().startswith("[{"):
        try:
            prompt = json.loads(prompt)
        except ValueError as error:
            raise BadRow("prompt is not one message of the user, nor a list of them") from error
    if not isinstance(prompt, list):
        return (prompt if filled(prompt) else ""), None
    if not prompt or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in prompt) \
            or prompt[-1]["role"] != "user":
        raise BadRow("prompt is not one message of the user, nor messages that end with one")
    prompt = [{"role": turn["role"], "content": clean_text(turn.get("content"), "message")} for turn in prompt]
    return prompt[-1]["content"], prompt if len(prompt) > 1 else None


def columns_hint(rows, bad, columns=None):
    """Name the columns that are there, those that are read and near ones, where rows lack a question or an answer."""
    if not any(reason.startswith(("empty question", "no answer", "prompt is not")) for _, reason, _ in bad):
        return ""
    there = dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row)
    near = {ours: guess for ours, names in GUESSES.items() if ours not in (columns or {})
            for guess in [next((name for name in there if name.lower() in names), None)] if guess}
    hint = f": perhaps columns = {near}" if near else "; columns = {'question': ..., 'answer': ...} maps others"
    return (f"; the columns are {', '.join(there)}; read are question, problem or prompt, and answer, "
            f"ground_truth, reward_model or a solution with a \\boxed{{}}{hint}")


GUESSES = {"question": ("text", "input", "inputs", "instruction", "query", "review", "sentence", "content", "q",
                        "task"),
           "answer": ("label", "output", "outputs", "target", "response", "gold", "category", "class", "result", "a",
                      "expected", "reference", "final_answer", "completion")}


def answer_of(row):
    """Return what a reward compares with: a gold, or a list of acceptable ones."""
    return row["answer"]


def solution_of(row):
    """Return the worked solution of a row where it holds an answer, as open-r1 published it; else the gold."""
    text = row.get("solution")
    if isinstance(text, str):
        found = boxes(without_fbox(text)) or [text.rpartition("####")[2] * ("####" in text)]
        if found[-1].strip():
            return text
    return row["answer"]


def check_answer(answer):
    """Raise ValueError unless it is such an answer."""
    golds = answer if isinstance(answer, (list, tuple)) else [answer]
    if not golds or not all(isinstance(gold, str) for gold in golds):
        raise ValueError("the gold is a string or a list of strings")
    if not all(tidy(gold) and len(gold) <= 1000 for gold in gold_answers(answer)):
        raise ValueError("a gold holds an answer, bare or in a closed \\boxed{}")


def perfect_answer(answer):
    """Return the text that is right."""
    return gold_answers(answer)[0]


def problem_key(row):
    """Return what makes two rows the same problem: the question without case and white space."""
    return "".join((row.get("question") or row.get("problem") or "").casefold().split())
