"""
Run: python -m pytest tests/test_rewards.py

Scores as tables of (completion, answer, score). EOS is the end-of-text that vLLM leaves (skip_special_tokens=False).
ONEBOX_DATA_DIR=<a directory of JSONL files> adds the golds of the public sets.
"""
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards import Score, score
from tasks import countdown, formats, math_problems, parts
from tools.why import explain

EOS = "<|endoftext|>"
COUNTDOWN = {"target": 98, "numbers": [44, 19, 35]}
PEOPLE = {"names": ["Zoey", "Oliver"], "solution": [True, False],
          "solution_text_format": "(1) Zoey is a knight\n(2) Oliver is a knave"}
RANGES = {"tinyzero_countdown": (0, 1), "logic_rl_kk": (-3, 3), "simplerl_math": (-1, 1), "open_r1_math": (0, 2),
          "dr_grpo_math": (0, 1), "dr_grpo_r1": (0, 1), "demystify_cosine": (-10, 2), "deepscaler_math": (0, 1),
          "unsloth_gsm8k": (-math.inf, 4), "verl_gsm8k": (0, 1), "math": (0, 1)}
TRUNCATED = {"logic_rl_kk": -3, "simplerl_math": -1, "demystify_cosine": -10}       # the others: 0


def T(answer, thinking="reason"):
    return f"{thinking}</think>\n<answer>{answer}</answer>"


def answer_for(reward, gold="5"):
    return {"tinyzero_countdown": COUNTDOWN, "logic_rl_kk": PEOPLE}.get(reward, gold)


def perfect(reward, gold="5"):
    """A completion that earns full marks."""
    return {"tinyzero_countdown": T("44+19+35"), "logic_rl_kk": T(PEOPLE["solution_text_format"]),
            "open_r1_math": f"<think>a</think>\n<answer>$\\boxed{{{gold}}}$</answer>",
            "dr_grpo_r1": f"a</think> <answer>{gold}</answer>",
            "deepscaler_math": f"<think>a</think> \\boxed{{{gold}}}",
            "unsloth_gsm8k": f"<reasoning>\nwork\n</reasoning>\n<answer>\n{gold}\n</answer>\n",
            "verl_gsm8k": f"work\n#### {gold}",
            }.get(reward, f"so the answer is $\\boxed{{{gold}}}$.")


# ----------------------------------------------------------------------------------------------------------------------
# Countdown

RIGHT, WRONG, NO_FORMAT = 1.0, 0.1, 0.0
EXAMPLE = "(1 + 2) / (3 * 5)"
FAKE_TURN = "\nAssistant: " + T("44+19+35")
NESTED = "(" * 199 + "44" + ")" * 199 + "+19+35"
COUNTDOWN_CASES = [
    ("1 control", T("44 + 19 + 35"), RIGHT),
    ("2 parentheses, one EOS", T("(44+19)+35") + EOS, RIGHT),
    ("2b newline", T("44+19+35") + "\n", RIGHT),
    ("2b newline and EOS", T("44+19+35") + "\n" + EOS, RIGHT),
    ("2b answer on its own line", T("\n44+19+35\n"), RIGHT),
    ("2b im_end", T("44+19+35") + "<|im_end|>", RIGHT),
    ("2b </s>", T("44+19+35") + "</s>", RIGHT),
    ("3 two EOS", T("44+19+35") + EOS + EOS, NO_FORMAT),
    ("4 trailing text", T("44+19+35") + "\nThe answer is 98", NO_FORMAT),
    ("4b trailing text on the same line", T("44+19+35") + " done", NO_FORMAT),
    ("6 numbers not used", T("98"), WRONG),
    ("7 equation", T("44+19+35=98"), WRONG),
    ("8 missing", T("44+19"), WRONG),
    ("9 extra", T("44+19+35+0"), WRONG),
    ("10 reused", T("44+44+10"), WRONG),
    ("11 power tower", T("44**19**35"), WRONG),
    ("12 power tower", T("9**9**9**9"), WRONG),
    ("13 floor division", T("99//1"), WRONG),
    ("14 leading point", T(".44+19+35"), WRONG),
    ("14 trailing point", T("44.+19+35"), WRONG),
    ("14 decimal", T("4.4+19+35"), WRONG),
    ("14 last trailing point", T("44+19+35."), WRONG),
    ("15 glued", T("4419+35"), WRONG),
    ("16 leading zero", T("044+19+35"), WRONG),
    ("17 decimal zero", T("44+19+35.0"), WRONG),
    ("18 unary plus", T("+44+19+35"), WRONG),
    ("18 unary minus", T("--44+19+35"), WRONG),
    ("18 unary inside", T("44+19+(+35)"), WRONG),
    ("19 full-width", T("４４+19+35"), WRONG),
    ("20 Arabic-Indic", T("٤٤+19+35"), WRONG),
    ("21 times and divided signs", T("44×19÷35"), WRONG),
    ("21 U+2212", T("44−19+35"), WRONG),
    ("22 zero-width space", T("4\u200b4+19+35"), WRONG),
    ("23 NBSP", T("44\u00a0+19+35"), WRONG),
    ("24 spans lines", T("(44+\n19)+35"), RIGHT),
    ("25 199 parentheses", T(NESTED), WRONG),
    ("25 201 parentheses", T("(" * 201 + "44" + ")" * 201 + "+19+35"), WRONG),
    ("25 100,000 parentheses", T("(" * 100_000), WRONG),
    ("25 32 levels", T("(" * 32 + "44+19+35" + ")" * 32), RIGHT),
    ("25 33 levels", T("(" * 33 + "44+19+35" + ")" * 33), WRONG),
    ("26 a million characters", T("1" * 1_000_000), WRONG),
    ("26 257 characters", T("44+19+35".center(20) + " " * 300 + "+0"), WRONG),
    ("27 division by zero", T("44/(19-19)+35"), WRONG),
    ("28 juxtaposed", T("(44)(19)(35)"), WRONG),
    ("29 comment", T("44+19+35 # c"), WRONG),
    ("30 code", T("__import__('os').system('true')"), WRONG),
    ("31 semicolon", T("44+19+35; 1"), WRONG),
    ("32 empty", T(""), WRONG),
    ("32 blank", T(" "), WRONG),
    ("33 empty thinking", "</think><answer>44+19+35</answer>", RIGHT),
    ("34 answer in the thinking", "<answer>1+1</answer></think><answer>44+19+35</answer>", NO_FORMAT),
    ("35 50 blocks, last right", "r</think>" + "<answer>1</answer>" * 49 + "<answer>44+19+35</answer>", NO_FORMAT),
    ("36 right block, then junk", T("44+19+35") + "\n<answer>junk</answer>", NO_FORMAT),
    ("37 second </think>", "a</think>b</think><answer>44+19+35</answer>", NO_FORMAT),
    ("38 own <think>", "<think>" + T("44+19+35"), NO_FORMAT),
    ("39 no </think>", "reason <answer>44+19+35</answer>", NO_FORMAT),
    ("40 answer only before </think>", "<answer>44+19+35</answer></think>", NO_FORMAT),
    ("41 upper case tag", "r</think><ANSWER>44+19+35</ANSWER>", NO_FORMAT),
    ("42 spaced tag", "r</think>< answer >44+19+35</ answer >", NO_FORMAT),
    ("43 nested", "r</think><answer><answer>44+19+35</answer></answer>", NO_FORMAT),
    ("44 unclosed", "r</think><answer>44+19+35", NO_FORMAT),
    ("45 the prompt's example", T(EXAMPLE), WRONG),
    ("46 fake turn", T("1+1") + FAKE_TURN, NO_FORMAT),
    ("46 fake chat turn", T("1+1") + "<|im_end|>\n<|im_start|>assistant\n" + T("44+19+35"), NO_FORMAT),
    ("47 prompt quoted", "in <think> </think> tags, <answer> (1 + 2) / 3 </answer>" + T("44+19+35"), NO_FORMAT),
    ("48 20,000 tags", "<answer>" * 20_000, NO_FORMAT),
    ("49 4,000 empty thoughts", "<think></think>" * 4_000, NO_FORMAT),
    ("50 HTML", T("<script>alert(1)</script>"), WRONG),
    ("50 ANSI", T("\x1b[31m44+19+35\x1b[0m"), WRONG),
    ("50 CSV", T("=cmd|' /C calc'!A0"), WRONG),
    ("51 NUL", T("44\x00+19+35"), WRONG),
    ("51 lone surrogate", T("\ud80044+19+35"), WRONG),
    ("51 BOM in the thinking", T("44+19+35", "\ufeffreason"), RIGHT),
    ("52 empty", "", NO_FORMAT),
    ("52 EOS only", EOS, NO_FORMAT),
    ("52 blanks", " \n\t", NO_FORMAT),
    ("53 prose", "98 = 44+19+35", NO_FORMAT),
    ("54 two tasks answered", T("44+19+35") + "\nUser: next\n" + T("1+1"), NO_FORMAT),
    ("57 10 MB of thinking", T("44+19+35", "x" * 10_000_000), RIGHT),
    ("table: 'I do not know'", T("I do not know"), WRONG),
    ("table: 44(19)+35", T("44(19)+35"), WRONG),
    ("table: instruct marker in the text", T("44+19+35", "Assistant: hm"), RIGHT),
    ("order of answer tags", "r</think></answer>44+19+35<answer>", NO_FORMAT),
]


@pytest.mark.parametrize(("completion", "total"), [case[1:] for case in COUNTDOWN_CASES],
                         ids=[case[0] for case in COUNTDOWN_CASES])
def test_countdown_case_scores_as_the_table_says_at_once(completion, total):
    start = time.process_time()
    result = score("tinyzero_countdown", completion, COUNTDOWN)
    assert time.process_time() - start < 5  # of CPU; some 10 ms, where a pattern that backtracks takes minutes
    assert (result.total, result.correct, result.format_ok) == (total, total == RIGHT, total > 0)


@pytest.mark.parametrize(("expression", "numbers", "target", "total"), [
    ("8/(3-8/3)", [8, 3, 8, 3], 24, RIGHT),                              # row 55: exact rationals
    ("10/3*3", [10, 3, 3], 10, RIGHT),
    ("99*98*97*96*95*94", [99, 98, 97, 96, 95, 94], 99 * 98 * 97 * 96 * 95 * 94, RIGHT),        # row 56: no float
    ("99*98*97*96*95*94", [99, 98, 97, 96, 95, 94], 99 * 98 * 97 * 96 * 95 * 94 + 1, WRONG),
    ("2 ** 3", [2, 3], 8, WRONG), ("7 // 2", [7, 2], 3, WRONG), ("1.5 * 2", [1, 2, 5], 3, WRONG),
    ("-5 + 3", [5, 3], -2, WRONG), ("07 + 3", [7, 3], 10, WRONG), ("12", [1, 2], 12, WRONG),
    ("3-5", [3, 5], -2, RIGHT), ("1/2", [1, 2], 0, WRONG), ("10-2-3", [10, 2, 3], 5, RIGHT),
    ("12/2/3", [12, 2, 3], 2, RIGHT), ("2+3*4", [2, 3, 4], 14, RIGHT), ("5+5", [5], 10, WRONG),
    ("5+0", [5, 0], 5, RIGHT),
])
def test_countdown_arithmetic_is_exact_and_uses_each_number_once(expression, numbers, target, total):
    assert score("tinyzero_countdown", T(expression), {"target": target, "numbers": numbers}).total == total


def test_countdown_parser_has_python_precedence_on_random_expressions():
    from fractions import Fraction
    rng = random.Random(0)

    def build(depth):
        if depth == 0 or rng.random() < 0.3:
            number = rng.randint(1, 99)
            return str(number), f"Fraction({number})"
        (a, fa), (b, fb), op = build(depth - 1), build(depth - 1), rng.choice("+-*/")
        return (f"({a}){op}({b})", f"({fa}){op}({fb})") if rng.random() < 0.5 else (f"{a} {op} {b}", f"{fa}{op}{fb}")
    for _ in range(300):
        ours, theirs = build(4)
        if len(ours) > countdown.MAX_EXPRESSION:
            continue
        try:
            expected = eval(theirs, {"Fraction": Fraction})         # our own text, not a model's
        except ZeroDivisionError:
            with pytest.raises(ZeroDivisionError):
                countdown.evaluate(ours)
            continue
        assert countdown.evaluate(ours)[0] == expected, ours


# ----------------------------------------------------------------------------------------------------------------------
# Knights & Knaves

KK_CASES = [
    ("73 right", T("(1) Zoey is a knight (2) Oliver is a knave"), 3),
    ("73 lines", T("\n(1) Zoey is a knight\n(2) Oliver is a knave\n"), 3),
    ("74 both roles", T("Zoey is a knight, Zoey is a knave"), -1),
    ("75 a name missing", T("Zoey is a knight"), -1),
    ("76 not a knight", T("Zoey is not a knight, Oliver is a knave"), -1),
    ("77 an extra name", T("Zoey is a knight, Oliver is a knave, Ava is a knave"), -1),
    ("78 knighthood", T("Zoey is a knighthood, Oliver is a knave"), -1),
    ("79 substring of a name", T("Zoe is a knight, Oliver is a knave"), -1),
    ("80 contradiction", T("Zoey is a knight, Oliver is a knave, Oliver is a knight"), -1),
    ("complete but wrong", T("Zoey is a knave, Oliver is a knave"), -0.5),
    ("second block", T("Zoey is a knight, Oliver is a knave") + "<answer>x</answer>", -3),
    ("own <think>", "<think>" + T("Zoey is a knight, Oliver is a knave"), -3),
    ("answer inside the thinking", "<answer>Zoey is a knight, Oliver is a knave</answer></think>", -3),
    ("false that", T("It is false that Zoey is a knight, Oliver is a knave"), 3),
    ("text between the tags", "r</think> so <answer>Zoey is a knight, Oliver is a knave</answer>", 3),
    ("text after", T("Zoey is a knight, Oliver is a knave") + " and so on" + EOS, 3),
    ("empty thinking", "</think><answer>Zoey is a knight, Oliver is a knave</answer>", 3),
    ("upper case", T("ZOEY IS A KNIGHT, OLIVER IS A KNAVE"), 3),
    ("is the knight", T("Zoey is the knight, Oliver is a knave"), -1),
    ("bold", T("**Zoey** is a knight, Oliver is a knave"), -1),
    ("extra (a knave lies)", T("Zoey is a knight (a knave lies), Oliver is a knave"), -1),
    ("answer quoted in the thinking", T("Zoey is a knight, Oliver is a knave", "in <answer>"), -3),
    ("empty answer", T(""), -1),
    ("blanks", T("Zoey  is\na   knight Oliver\tis a knave"), 3),
    ("no tags", "Zoey is a knight, Oliver is a knave", -3),
    ("empty", "", -3),
    ("10 MB answer", T("Zoey is a knight " * 500_000), -1),
]


@pytest.mark.parametrize(("completion", "total"), [case[1:] for case in KK_CASES], ids=[case[0] for case in KK_CASES])
def test_knights_and_knaves_case_scores_as_the_table_says(completion, total):
    result = score("logic_rl_kk", completion, PEOPLE)
    assert (result.total, result.correct, result.format_ok) == (total, total == 3, total > -3)
    assert result.parts == {3: {"format": 1, "answer": 2}, -0.5: {"format": 1, "answer": -1.5},
                            -1: {"format": 1, "answer": -2}, -3: {"format": -1, "answer": -2}}[total]


# ----------------------------------------------------------------------------------------------------------------------
# Math: the strict grader's 14 attack rows (equality itself: test_grade.py)

def B(box):
    return f"r</think> so \\boxed{{{box}}}"


STRICT_CASES = [
    *[("59", B(box), 1) for box in ("5", "5.0", r"\frac{10}{2}", "x=5")],
    *[("60", B(box), 0) for box in ("6=5", "1=2=3=4=5", "4=x=5")],
    *[("61", B(box), 0) for box in ("5,5", "[5,5]", "1,2,3,4,5", r"5 \text{ or } 6", r"\{5,6\}", r"\pm5")],
    ("62", B(r"5\%"), 0),
    ("63", "r</think>" + "".join(f"\\boxed{{{i}}} " for i in range(10)), 0),
    ("64 box only in the thinking", r"\boxed{5}</think> done", 0),
    ("65 box after it counts", r"\boxed{6}</think> \boxed{5}", 1),
    ("65 box after it counts", r"\boxed{5}</think> \boxed{6}", 0),
    *[("66", "r</think>" + text, 0) for text in (r"\boxed{", r"\boxed{5", r"\boxed{{5}", "\\boxed{" * 5000)],
    *[("67", B(box), 0) for box in ("9^{9^{9^9}}", "100000000!", r"\binom{10^9}{5\cdot10^8}", r"\sum_{i=1}^{10^9} i",
                                    r"\int_0^1 \sin(x^{x^x})dx")],
    *[("68", B(box), 0) for box in ("(" * 500 + "5" + ")" * 500, r"\frac{1}{" * 300 + "5" + "}" * 300, "5" * 100_000,
                                    "1+" * 20_000 + "1")],
    *[("69", B(box), 0) for box in (r"\text{the correct answer}", "answer")],
    *[("70", B(box), 0) for box in (r"\infty", "1/0", "0/0", "nan", "1e400")],
    ("71", "I think 5", 0),
    ("empty box", B(""), 0), ("nested boxes", B(r"\boxed{5}"), 1), ("NUL", B("5\x00"), 0),
    ("surrogate", B("\ud8005"), 0),
    ("thinking never ends", r"<think> \boxed{5}", 0), ("a second thinking", r"r</think> <think>\boxed{5}", 0),
    ("no tags at all", r"so \boxed{5}", 1), ("one EOS", B("5") + EOS, 1), ("no braces", r"\boxed 5", 0),
]


@pytest.mark.parametrize("reward", ["math", "dr_grpo_math"])
@pytest.mark.parametrize(("completion", "total"), [case[1:] for case in STRICT_CASES],
                         ids=[case[0] for case in STRICT_CASES])
def test_strict_grader_case_scores_as_the_table_says_at_once(reward, completion, total):
    start = time.process_time()
    result = score(reward, completion, "5")
    assert time.process_time() - start < 5          # of CPU; some milliseconds
    assert (result.total, result.correct) == (total, bool(total))


def test_the_last_of_several_boxes_counts_and_is_flagged():
    for reward in ("math", "dr_grpo_math", "simplerl_math", "open_r1_math", "deepscaler_math", "demystify_cosine"):
        text = "<think>r</think>" + "".join(f"\\boxed{{{i}}} " for i in range(10))
        right, wrong = score(reward, text, "9"), score(reward, text, "5")
        assert right.correct and not wrong.correct, reward
        assert "several_boxes" in right.flags & wrong.flags


MATH_REWARDS = ("math", "simplerl_math", "open_r1_math", "deepscaler_math", "demystify_cosine", "dr_grpo_math")


@pytest.mark.parametrize("text", [
    r"The answer is \boxed{42}. I put it in \boxed{} as asked.", r"\boxed{42} and \boxed{ }", r"\boxed{42}, \boxed{\,}",
    r"\boxed{42}; the form is \boxed{...}", r"\boxed{42} in \boxed{\text{}}", r"\boxed{42} \boxed{\ldots}",
    r"\boxed{42} \fbox{}", r"\boxed{42 \boxed{}}", r"\boxed{\boxed{42}}", r"\boxed  {42}", "\\boxed\n{42}",
    "\\boxed \t\n\n {42}", "\\fbox\n{42}", "\\boxed\n{\n42\n}", "\\boxed\n{42} and \\boxed {}", r"\fbox  {42}"])
def test_neither_an_empty_box_nor_blanks_hide_the_answer(text):
    for reward in MATH_REWARDS:
        result = score(reward, "<think>r</think>" + text, "42")
        assert result.correct and not score(reward, "<think>r</think>" + text, "43").correct, reward
        assert ("several_boxes" in result.flags) == (r"{\boxed{" in text), reward
    assert score("dr_grpo_r1", f"r</think> <answer>{text}</answer>", "42").correct


@pytest.mark.parametrize("text", [r"\boxed{}", r"\boxed{41} \boxed{}", r"\boxed{42} \boxed{41}", r"\boxed {} 42",
                                  r"\boxed x{42}", r"\boxed{42} then \boxed{0}", r"\boxedx{42}"])
def test_an_empty_box_is_no_answer_and_a_filled_one_still_counts_last(text):
    assert not score("math", text, "42").correct


def test_the_gold_of_a_solution_is_in_its_last_filled_box():
    assert math_problems.gold_answers(r"so \boxed{42}, as asked in \boxed{}") == ["42"]
    assert score("math", r"\boxed{42}", r"so \boxed {42}, as asked in \boxed{}").correct


def test_text_after_a_stop_word_is_read_by_dr_grpo_and_not_by_simplerl():
    text = r"\boxed{6}<|im_end|> \boxed{5}"
    assert score("dr_grpo_math", text, "5").total == 1
    assert score("simplerl_math", text, "5").total == -0.5
    assert score("simplerl_math", text, "6").total == 1


@pytest.mark.parametrize(("box", "gold", "total"), [
    ("5", "5", 1), ("500", "5", -0.5), ("0.05", "5", -0.5), ("1.18", "118", -0.5), ("", "5", -0.5), ("6", "5", -0.5),
    ("10000.9", "10000", 1), ("10002", "10000", -0.5), ("[1,2)", "(1,2)", 1), ("2,1", "1,2", -0.5), ("1,2", "1,2", 1),
    ("0.5", r"\frac{1}{2}", 1), (r"\frac{1}{2}", "0.5", 1), ("x=5", "5", 1), ("1,000", "1000", 1), ("1000", "1,000", 1),
    (r"5\text{ cm}", "5", 1), (r"90^\circ", r"90^\circ", 1), ("90", r"90^\circ", 1),
    (r"\text{Evelyn}", r"\text{Evelyn}", 1),
    ("Evelyn", r"\text{Evelyn}", 1), (r"\$36", r"\$36", 1), ("36", r"\$36", 1), ("6=5", "5", -0.5),
    (r"\pm5", "5", -0.5),
    (r"\sqrt{8}", r"2\sqrt{2}", 1), (r"\sqrt{8}", r"3\sqrt{2}", -0.5), ("2.8284", r"2\sqrt{2}", 1),
])
def test_simplerl_values_follow_the_published_table(box, gold, total):
    assert score("simplerl_math", f"so \\boxed{{{box}}}" + EOS, gold).total == total


@pytest.mark.parametrize(("text", "total"), [
    ("the answer is 5", -1), ("I boxed 5", -1), (r"\boxed{5", -1), (r"\boxed 5", -1), ("", -1),
    (r"\boxed{5}</think> 5", -1),
    (r"\boxed{6} The final answer is $5$. I hope", -0.5), (r"\boxed{6} \boxed{5}", 1), (r"\fbox{5}", 1)])
def test_simplerl_needs_a_closed_box(text, total):
    result = score("simplerl_math", text, "5")
    assert (result.total, result.format_ok) == (total, total > -1)


@pytest.mark.parametrize(("text", "format_value"), [
    ("<think>a</think><answer>5</answer>", 1), ("<think>\na\n</think>\n<answer>\n5\n</answer>", 1),
    ("<think>a</think><answer>5</answer>\nmore", 0), ("<think>a</think><answer>5</answer> more", 0),
    ("<think>a</think><answer>5</answer>\n", 1), ("<think>a</think><answer>5</answer>" + EOS, 1),
    ("<think>a</think>words<answer>5</answer>", 0), (" <think>a</think><answer>5</answer>", 0),
    ("a</think><answer>5</answer>", 0), ("<think>a</think><answer>5</answer><answer>5</answer>", 1),
    ("<think><answer>5</answer></think><answer>5</answer>", 1),
    ("<think><think>a</think></think><answer>5</answer>", 1),
    ("<think></think><answer></answer>", 1), ("<think>a</think><answer>5", 0), ("<think></answer>", 0),
    ("<think></think><answer></answer", 0)])
def test_open_r1_format_is_the_february_regex_as_a_full_match(text, format_value):
    result = score("open_r1_math", text, "5")
    assert (result.parts["format"], result.format_ok) == (format_value, bool(format_value))


@pytest.mark.parametrize(("answer", "gold", "accuracy"), [
    (r"\boxed{5}", "$5$", 1), (r"\boxed{5}", "5", 1), ("$5$", "5", 1), ("\n5\n", "$5$", 0), ("5", "$5$", 0),
    ("5", "5", 0),
    (r"\boxed{6} \boxed{5}", "5", 1), (r"\boxed{5} \boxed{6}", "5", 0), (r"\boxed{\frac12}", r"$\frac{1}{2}$", 1),
    (r"\boxed{\frac{1}{2}}", r"\frac12", 1), (r"\boxed{2\sqrt3}", r"2\sqrt{3}", 1),
    (r"\boxed{2\sqrt{3}}", r"2\sqrt3", 1),
    (r"\boxed{0.5}", r"\frac{1}{2}", 1), (r"\boxed{50\%}", "0.5", 1), (r"\boxed{5\%}", "5", 0),
    (r"\boxed{2,1}", "1,2", 1),
    (r"\boxed{[1,2]}", "(1,2)", 0), (r"\(5\)", "5", 1), (r"\[5\]", "5", 1), (r"The value is $x=5$.", "5", 1),
    (r"\boxed{5}", r"First $1+4$, hence $x = 5$ and the answer is $\boxed{5}$.", 1),
    (r"\boxed{6}", r"First $1+4$, hence $x = 5$ and the answer is $\boxed{5}$.", 0), (r"\frac{1}{2}", "0.5", 1),
])
def test_open_r1_accuracy_wants_latex_and_takes_the_whole_solution_as_gold(answer, gold, accuracy):
    result = score("open_r1_math", f"<think>a</think><answer>{answer}</answer>", gold)
    assert result.parts == {"answer": accuracy, "format": 1}


@pytest.mark.parametrize(("text", "total"), [
    ("r</think> <answer>5</answer>", 1), ("r</think>\n<answer>5</answer>", 0), ("r</think><answer>5</answer>", 0),
    ("r</think>  <answer>5</answer>", 0), ("r</think> <answer>The answer is 5</answer>", 1),
    (r"r</think> <answer>\boxed{5}</answer>", 1), ("r</think> <answer>$5$</answer>", 1),
    ("r</think> <answer>6</answer>", 0),
    ("r</think> <answer>6</answer> <answer>5</answer>", 1), ("r</think> <answer>5</answer> <answer>6</answer>", 0),
    ("r</think> <answer>5", 0), ("</think> <answer></answer>", 0)])
def test_dr_grpo_r1_wants_exactly_one_space_between_the_tags(text, total):
    assert score("dr_grpo_r1", text, "5").total == total
    assert score("dr_grpo_r1", text, ["7", "5"]).total == total         # any of a list


@pytest.mark.parametrize(("text", "gold", "total"), [
    (r"\boxed{500}", "5", 0), (r"\boxed{[1,2)}", "(1,2)", 0), (r"\boxed{2,1}", "1,2", 1), ("5", "5", 0)])
def test_dr_grpo_boxed_has_no_percentage_tolerance_and_minds_brackets(text, gold, total):
    assert score("dr_grpo_math", text, gold).total == total


def test_deepscaler_reads_the_last_box_after_the_first_closing_tag():
    assert score("deepscaler_math", r"<think>\boxed{6}</think> \boxed{4} \boxed{5}", ["7", "5"]).total == 1
    assert score("deepscaler_math", r"<think>\boxed{5} and so on", "5").total == 0
    assert score("deepscaler_math", r"\boxed{5}", "5").total == 0
    assert score("deepscaler_math", r"<think>\boxed{5}</think> 5", "5").total == 0


@pytest.mark.parametrize(("num_tokens", "right", "wrong"), [
    (0, 2, -10), (1, 2.0, -10.0), (3584, 1.8536, -8.5355), (7168, 1.5, -5), (10752, 1.1464, -1.4645), (14319, 1, 0),
    (14320, -10, -10), (14336, -10, -10), (20000, -10, -10)])
def test_demystify_cosine_has_the_golden_values(num_tokens, right, wrong):
    for box, value in (("5", right), ("6", wrong)):
        result = score("demystify_cosine", f"\\boxed{{{box}}}", "5", num_tokens=num_tokens, max_tokens=14336)
        assert result.total == pytest.approx(value, abs=1e-4)
        assert result.correct == (box == "5" and num_tokens < 14320)
    assert score("demystify_cosine", "no box", "5", num_tokens=7168, max_tokens=14336).total == pytest.approx(-5)


UNSLOTH = "<reasoning>\nwork\n</reasoning>\n<answer>\n72\n</answer>\n"


@pytest.mark.parametrize(("text", "gold", "values"), [
    (UNSLOTH, "72", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH.replace("work", "two\nlines"), "72", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH[:-1], "72", (0.45, 0.5, 0, 0.5, 2)),
    (UNSLOTH.replace("\n", ""), "72", (0, 0.5, 0, 0.5, 2)),
    ("72", "72", (0, 0, 0, 0.5, 2)),
    (UNSLOTH + "x" * 100, "72", (0.3, 0.5, 0, 0.5, 2)),
    (UNSLOTH.replace("72", "1000"), "1,000", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH.replace("72", "1,000"), "1000", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH.replace("72", "1,000"), "1,000", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH.replace("72", "72.0"), "72", (0.5, 0.5, 0.5, 0, 0)),
    (UNSLOTH.replace("72", "$72"), "72", (0.5, 0.5, 0.5, 0, 0)),
    (UNSLOTH.replace("72", "-5"), "-5", (0.5, 0.5, 0.5, 0, 2)),
    (UNSLOTH.replace("72", "7,2"), "72", (0.5, 0.5, 0.5, 0, 0)),
    (UNSLOTH.replace("72", "73"), "72", (0.5, 0.5, 0.5, 0.5, 0)),
    (UNSLOTH.replace("72", "٧٢"), "72", (0.5, 0.5, 0.5, 0, 0)),
    (UNSLOTH + "<|im_end|>", "72", (0.5, 0.5, 0.5, 0.5, 2)),
    (UNSLOTH, "48 + 24 = 72\n#### 72", (0.5, 0.5, 0.5, 0.5, 2)),
    # as published: without a newline at the end, xmlcount loses 0.001 for each of the 1,000 characters of the response
    ("<reasoning>\n" + "w" * 953 + "\n</reasoning>\n<answer>\n72\n</answer>", "72", (-0.499, 0.5, 0, 0.5, 2)),
    ("", "72", (0, 0, 0, 0, 0)),
])
def test_unsloth_parts_follow_the_table(text, gold, values):
    result = score("unsloth_gsm8k", text, gold)
    assert tuple(result.parts.values()) == pytest.approx(values)
    assert list(result.parts) == ["xmlcount", "soft_format", "strict_format", "integer", "answer"]


# ----------------------------------------------------------------------------------------------------------------------
# Every reward

@pytest.mark.parametrize("reward", RANGES)
def test_a_perfect_completion_has_full_marks_a_truncated_one_fails(reward):
    most = RANGES[reward][1]
    result = score(reward, perfect(reward), answer_for(reward), num_tokens=0, max_tokens=1000)
    assert (result.total, result.correct, result.format_ok) == (most, True, True)
    cut = score(reward, perfect(reward), answer_for(reward), truncated=True, num_tokens=1000, max_tokens=1000)
    assert (cut.total, cut.correct, cut.format_ok) == (TRUNCATED.get(reward, 0), False, False)
    assert "truncated" in cut.flags and set(cut.parts) == set(result.parts)


JUNK = ["{", "}", "{}", "\\boxed{", "\\boxed", "\\boxed{5}", "<answer>", "</think> ", "<think></think>", "\\", "$",
        "answer ", "Zoey is a ", "<reasoning></reasoning> ", "(", "\ud800"]


@pytest.mark.parametrize("reward", [name for name in RANGES if name != "dr_grpo_math"])        # that is math
@pytest.mark.parametrize("junk", JUNK)
def test_ten_megabytes_score_in_linear_time(reward, junk):
    """About half a second of processor time on a quiet machine; anything quadratic would take hours."""
    start = time.process_time()
    score(reward, "</think><answer>\\boxed{" + junk * (10_000_000 // len(junk)) + "}", answer_for(reward))
    assert time.process_time() - start < 5


PIECES = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "5", "44+19+35", "$",
                          " ", "\n", "<reasoning>\n", "\n</reasoning>\n", EOS, "Zoey is a knight", "Oliver is a knave",
                          "\\frac", "=", "%", "\x00", "\ud800", "٤", "answer", "\\pm", ",", "(", ")", "^", "_",
                          "\\text{", "or", "1,000", "e9", "&", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\cup",
                          "[", "]", "."])
TEXTS = st.one_of(st.text(alphabet=st.characters(), max_size=60), st.lists(PIECES, max_size=14).map("".join))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXTS, reward=st.sampled_from(list(RANGES)), truncated=st.booleans(), num_tokens=st.integers(0, 2000),
       gold=st.sampled_from(["5", r"\frac{1}{2}", "(1,2)", r"\text{Evelyn}", "x=5", r"50\%", "12_5"]))
def test_any_text_scores_finite_in_range_and_always_the_same(text, reward, truncated, num_tokens, gold):
    state = random.getstate()
    first, second = (score(reward, text, answer_for(reward, gold), truncated=truncated, num_tokens=num_tokens,
                           max_tokens=1024) for _ in range(2))
    assert first == second and random.getstate() == state
    low, high = RANGES[reward]
    assert math.isfinite(first.total) and low <= first.total <= high
    assert sum(first.parts.values()) == first.total
    assert not (truncated and (first.correct or first.format_ok))
    assert "error" not in first.flags


@settings(max_examples=150, deadline=None, derandomize=True)
@given(box=TEXTS, gold=st.sampled_from(["5", r"\frac{1}{2}", "(1,2)", "1,2", r"2\sqrt{2}", r"90^\circ"]))
def test_no_box_breaks_a_math_reward(box, gold):
    for reward in ("math", "simplerl_math", "open_r1_math"):
        result = score(reward, f"\\boxed{{{box}}}", gold)
        assert "error" not in result.flags and "timeout" not in result.flags


def test_an_unknown_reward_is_an_error_that_names_the_nearest():
    for call in (lambda: score("logic_rl", "", {}), lambda: rewards.check("logic_rl")):
        with pytest.raises(ValueError, match="did you mean 'logic_rl_kk'.*unsloth_gsm8k"):
            call()
    rewards.check("math", {"tag_count": 0.5})
    with pytest.raises(ValueError, match="no reward part 'tags'.*tag_count"):
        rewards.check("math", {"tags": 0.5})


@pytest.mark.parametrize(("reward", "answer"), [
    ("tinyzero_countdown", {"target": 98}), ("tinyzero_countdown", {"target": "98", "numbers": [1]}),
    ("tinyzero_countdown", {"target": 98, "numbers": []}), ("tinyzero_countdown", {"target": 98, "numbers": [1.5]}),
    ("tinyzero_countdown", {"target": 1_000_001, "numbers": [1, 1_000_000]}),
    ("tinyzero_countdown", "98"), ("logic_rl_kk", {"names": ["Zoey"], "solution": [True]}),
    ("logic_rl_kk", {**PEOPLE, "solution": [True, True]}), ("logic_rl_kk", {**PEOPLE, "names": ["Zoey"]}),
    ("math", ""), ("math", []), ("math", None), ("math", 27.0), ("math", ["5", ""]), ("math", "$$"),
    ("open_r1_math", " ")])
def test_an_ill_formed_gold_is_refused(reward, answer):
    with pytest.raises(ValueError, match=reward):
        rewards.check_answer(reward, answer)


@pytest.mark.parametrize("reward, answer, shown", [
    ("tinyzero_countdown", "98", "'98'"), ("math", " ", "' '"), ("math", [], "[]"), ("math", 27.0, "27.0"),
    ("logic_rl_kk", "\x1b\u2603", r"'\x1b\u2603'"), ("tinyzero_countdown", "9" * 300, "'" + "9" * 199)])
def test_the_error_shows_an_ill_formed_gold_as_python_writes_it(reward, answer, shown):
    with pytest.raises(ValueError) as error:
        rewards.check_answer(reward, answer)
    assert str(error.value).endswith(f", not {shown}")


def test_well_formed_golds_are_accepted():
    for reward, answer in (("tinyzero_countdown", COUNTDOWN), ("logic_rl_kk", PEOPLE), ("math", "5"),
                           ("math", ["5", r"\frac12"]),
                           ("open_r1_math", r"A long solution, so $\boxed{5}$.")):
        rewards.check_answer(reward, answer)


@pytest.mark.parametrize("weight", ["1", None, True, math.nan, math.inf])
def test_the_weight_of_a_part_is_a_finite_number(weight):
    with pytest.raises(ValueError, match="the weight of reward part 'tag_count' must be a finite number"):
        rewards.check("math", {"tag_count": weight})


def odd_rewards():
    """Rewards of one's own: {name: (function, what is told of it)}; each works on the response "fine"."""
    def of(value):
        return lambda sample, equal: sample.finish({"own": value if sample.text != "fine" else 1.0}, True, True)

    def returns(value):
        return lambda sample, equal: value if sample.text != "fine" else sample.finish({"own": 1.0}, True, True)

    def leaves(sample, equal):
        if sample.text != "fine":
            raise SystemExit("bye")
        return sample.finish({"own": 1.0}, True, True)

    return {"index": (lambda sample, equal: sample.finish({"own": float(sample.text[3] == "e")}, True, True),
                      "IndexError"),
            "leaves": (leaves, "SystemExit: bye"), "nan": (of(math.nan), "own is nan"),
            "inf": (of(-math.inf), "own is -inf"),
            "huge": (of(1e300), "own is 1e+300"), "text": (of("a lot"), "TypeError"),
            "none": (returns(None), "it returned NoneType, not a Score"),
            "float": (returns(1.0), "it returned float"),
            "sum": (returns(Score(1.0, True, True, {"own": 0.5})), "not the sum of its parts"),
            "hidden nan": (returns(Score(1.0, True, True, {"own": math.nan, "other": 1.0})), "own is nan")}


@pytest.mark.parametrize("name", odd_rewards())
def test_where_an_own_reward_fails_the_response_is_worth_0_and_it_is_told(name, monkeypatch, capsys):
    function, told = odd_rewards()[name]
    monkeypatch.setitem(rewards.REWARDS, "own", function)
    assert score("own", "fine", {"any": "answer"}).total == 1.0
    failed = score("own", "odd", "5")
    assert (failed.total, failed.correct, failed.format_ok, failed.flags) == (0.0, False, False, {"error"})
    scorer = rewards.Scorer(num_workers=1)
    for batch in range(2):
        for key, text in enumerate(["odd", "fine", "odd", "odd"] + ["odd", "fine"] * 2):
            scorer.submit(key, "own", text, "5")
        assert [scorer.collect()[key].total for key in range(1)] == [0.0]
        said = capsys.readouterr().err
        assert said.count("warning: rank 0: reward 'own' failed on a response, which scores 0") == (3 if batch == 0
                                                                                                    else 0)
        assert batch or told in said and "response: odd" in said
        assert f"has failed on {4 if batch == 0 else 8} responses so far" in said
    scorer.close()


def test_an_own_reward_may_return_numpy_numbers_and_a_score_without_parts(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "own", lambda s,
                        equal: s.finish({"own": np.float32(0.5)}, np.bool_(True), np.int64(1)))
    result = score("own", "x", "5")
    assert (result.total, result.correct, result.format_ok) == (0.5, True, True)
    assert json.dumps([result.total, result.correct, result.format_ok,
                       result.parts]) == '[0.5, true, true, {"own": 0.5}]'
    monkeypatch.setitem(rewards.REWARDS, "own", lambda s, equal: Score(2.0, True, True, {}))
    assert rewards.add_parts(score("own", "x", "5"), {"tag_count": 1.0}, "x", 1, 2).total == 2.0


def test_a_reward_that_changes_the_answer_changes_only_its_own_copy(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda sample,
                        equal: sample.finish({"mine": float(sample.answer["numbers"].pop())}))
    answer = {"target": 3, "numbers": [1, 2]}
    assert [rewards.score("mine", "x", answer).total for _ in range(3)] == [2.0, 2.0, 2.0]
    assert answer == {"target": 3, "numbers": [1, 2]}


def test_a_reward_without_a_docstring_is_explained_too(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda sample, equal: sample.finish({"mine": 1.0}))
    assert "mine: no docstring" in explain("mine", "x", "5")


@pytest.mark.parametrize("names, solution", [(3, [True]), (None, None), ("Ann", "k"), (["Ann"], True)])
def test_names_and_roles_that_are_no_lists_are_a_value_error(names, solution):
    with pytest.raises(ValueError, match="names and solution are lists"):
        rewards.check_answer("logic_rl_kk", {"names": names, "solution": solution, "solution_text_format": "x"})


def test_a_published_reward_that_a_fork_broke_scores_0(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "math", lambda sample, equal: sample.no_such_thing)
    assert (score("math", "x", "5").total, score("math", "x", "5").flags) == (0.0, {"error"})


def test_a_part_that_fails_adds_nothing_and_is_told(monkeypatch, capsys):
    monkeypatch.setitem(rewards.PARTS, "half", lambda sample, score: 1 / 0)
    monkeypatch.setitem(rewards.PARTS, "nan", lambda sample, score: math.nan)
    scorer = rewards.Scorer(num_workers=1, part_weights={"half": 1.0, "nan": 1.0, "tag_count": 1.0})
    scorer.submit(0, "math", r"\boxed{5}", "5", num_tokens=5, max_tokens=10)
    result = scorer.collect()[0]
    scorer.close()
    assert result.total == 1.0 and "error" in result.flags
    assert "part half: ZeroDivisionError" in capsys.readouterr().err


def test_every_published_reward_says_what_rows_it_reads():
    assert set(rewards.READS) == set(rewards.REWARDS) and set(rewards.READS.values()) == {"countdown", "kk", "math"}


def test_a_bad_row_scores_the_failure_value_with_the_flag_error():
    result = score("logic_rl_kk", perfect("logic_rl_kk"), {"names": None})
    assert (result.total, result.flags) == (-3, {"error"})
    assert score("math", None, "5").flags == {"error"}


@pytest.mark.parametrize(("reward", "text", "flag"), [
    ("tinyzero_countdown", T("1") + T("2"), "several_answers"),
    ("tinyzero_countdown", "<answer>44+19+35</answer></think>", "answer_in_thinking"),
    ("math", r"\boxed{5}</think> done", "answer_in_thinking"),
    ("math", r"\boxed{4} \boxed{5}", "several_boxes"),
    ("logic_rl_kk", " </think><answer>x</answer>", "empty_thinking"),
    ("open_r1_math", r"<think> </think><answer>\boxed{5}</answer>", "empty_thinking"),
    ("tinyzero_countdown", T("４４+19+35"), "non_ascii_answer"), ("math", r"\boxed{５}", "non_ascii_answer"),
    ("demystify_cosine", r"\boxed{5}", "no_length")])
def test_monitor_flags(reward, text, flag):
    assert flag in score(reward, text, answer_for(reward)).flags
    assert flag == "no_length" or flag not in score(reward, perfect(reward), answer_for(reward)).flags


# ----------------------------------------------------------------------------------------------------------------------
# Parts a recipe can weigh

def test_tag_count_pays_a_quarter_for_each_tag_with_its_newlines():
    assert parts.tag_count("<think>\na\n</think>\n<answer>\n5\n</answer>") == 1
    assert parts.tag_count("<think>a</think><answer>5</answer>") == 0
    assert parts.tag_count("<think>\na\n</think>\n<think>\n") == 0.25


@pytest.mark.parametrize(("text", "value"), [
    ("1. a\n2. b\n3. c", 1 / 3), ("Step 1: a\nStep 2: b\nStep 3: c\nStep 4: d", 1), ("First, a. Second, b.", 2 / 3),
    ("\n- a\n* b", 2 / 3), ("nothing", 0)])
def test_reasoning_steps_counts_up_to_three_marks(text, value):
    assert parts.reasoning_steps(text) == pytest.approx(value)


def test_cosine_does_not_turn_back_beyond_the_maximum():
    assert parts.cosine(2000, 1000, 1.0, 0.5) == 0.5
    assert parts.cosine(500, 1000, 1.0, 0.5) == pytest.approx(0.75)


def test_repetition_is_the_share_of_repeated_ngrams():
    assert parts.repetition("a b c d") == 0
    assert parts.repetition("a a a a a") == pytest.approx(-2 / 3)         # 3 trigrams, one of them unique
    assert parts.repetition("A a") == 0 and parts.repetition("") == 0
    assert parts.repetition("go " * 100, n=20, max_penalty=-0.05) == pytest.approx(-0.05 * 80 / 81)


def test_dense_repetition_marks_each_token_of_a_later_occurrence_once():
    assert parts.dense_repetition([1, 2, 3, 1, 2, 4], n=2) == [0, 0, 0, -0.05, -0.05, 0]
    assert parts.dense_repetition([7] * 6, n=3) == [0, -0.05, -0.05, -0.05, -0.05, -0.05]
    assert parts.dense_repetition([1, 2], n=40) == [0, 0]


def test_soft_overlong_falls_linearly_over_the_cache():
    assert [parts.soft_overlong(n) for n in (0, 12288, 14336, 16384, 99999)] == [0, 0, -0.5, -1, -1]


def test_the_cache_of_soft_overlong_is_a_quarter_unless_it_is_set():
    base = score("math", "", "5")

    def part(weight, num_tokens, max_tokens):
        return rewards.add_parts(base, {"soft_overlong": weight}, "", num_tokens, max_tokens).total

    lengths = (15360, 16384, 18432, 20480)                  # DAPO: 16,384 tokens and a cache of 4,096, a fifth
    dapo = {"weight": 1.0, "cache": 4096}
    assert [part(dapo, n, 20480) for n in lengths] == [0, 0, -0.5, -1]
    assert [part(1.0, n, 20480) for n in lengths] == [0, -0.2, -0.6, -1]        # a quarter: 5,120
    assert [part(dapo | {"weight": 0.5}, n, 20480) for n in lengths] == [0, 0, -0.25, -0.5]
    for most in (1, 2, 3):                                  # a quarter of so few is no token: one
        assert [part(1.0, n, most) for n in (most - 1, most, most + 1)] == [0, -1, -1]


@pytest.mark.parametrize("weights", [
    {"soft_overlong": "1"}, {"soft_overlong": None}, {"soft_overlong": True}, {"soft_overlong": math.nan},
    {"tag_count": math.inf}, {"soft_overlong": {"cache": 4096}}, {"soft_overlong": {"weight": 1.0, "cache": 0}},
    {"soft_overlong": {"weight": 1.0, "cache": 0.2}}, {"soft_overlong": {"weight": 1.0, "cash": 4096}},
    {"tag_count": {"weight": 1.0, "cache": 4096}}, {"soft_overlong": (1.0, 4096)}])
def test_a_part_whose_weight_is_no_number_is_refused_at_start(weights):
    with pytest.raises(ValueError, match="reward part"):
        rewards.check("math", weights)


def test_a_part_is_a_number_or_a_weight_with_options_and_survives_json():
    weights = {"soft_overlong": {"weight": 1.0, "cache": 4096}, "tag_count": 1, "cosine": {"weight": -0.5},
               "language": {"weight": 0.1, "script": "CJK"}, "kimi_length": 0.2}
    rewards.check("math", weights)
    assert json.loads(json.dumps(weights)) == weights       # config.json is compared with the settings at a restart


def one_part(weight, text="", name="", **about):
    """What a part with weight 1 gives: options as in a recipe, `about` a response as rewards.add_parts takes it."""
    settings = {"num_tokens": 10, "max_tokens": 100, **about}
    weights = {name: weight if isinstance(weight, dict) else {"weight": weight}}
    result = rewards.add_parts(Score(0.0, settings.pop("correct", False), True, {}), weights, text, **settings)
    assert not result.flags
    return result.parts[name]


RUSSIAN, CHINESE, JAPANESE = "Сколько будет два плюс три", "二加三等于多少", "りんごは全部でいくつありますか。"


@pytest.mark.parametrize(("question", "text", "share"), [
    ("What is two plus three", "<think> It is five </think> <answer> 5 </answer>", 1),  # the tags are no words
    ("What is two plus three", "Это пять, so five", 2 / 4),
    ("What is two plus three", "C'est cinq", 1),                     # French or English: both are Latin
    (RUSSIAN, "Ответ: x + y = \\frac{1}{2}, \\boxed{5}", 1),     # commands and variables are no words
    (RUSSIAN, "Ответ \\text{пять рублей} or five", 3 / 5),         # but what stands in \text is
    (RUSSIAN, "<think> Это </think> <answer> five </answer>", 1 / 2), (RUSSIAN, "Нужно 加 потому", 2 / 3),
    (JAPANESE, "五五々ー five", 3 / 4),
    (CHINESE, "答案是 five", 3 / 4), (CHINESE, "答案是五", 1), (CHINESE, "The answer is five", 0),
    (JAPANESE, "リンゴは五つ", 1),                                    # katakana too, which this question does not have
    (CHINESE, "リンゴは五つ", 1 / 6),                                 # four kana and つ are none of Chinese
    ("몇 개 인가요", "정답은 다섯 개", 1), ("몇 개 인가요", "five", 0),
    ("कितने सेब हैं", "उत्तर पाँच five", 2 / 3),                          # vowel signs do not end a word
    ("ＨＯＷ many", "ﾘﾝｺﾞ ｆｉｖｅ", 1 / 4),                            # half and full width are forms of their script
    ("$2 + 3$", "Пять", 1), (RUSSIAN, "", 1), (RUSSIAN, "2 + 3 = x α", 1),  # nothing to compare
    ("Сколько one two three four five six seven eight", "Пять", 1),  # one word of nine is a tenth
    ("Сколько one two three four five six seven eight nine ten", "Пять", 0),  # one of eleven is not
])
def test_language_is_the_share_of_words_in_the_scripts_of_the_question(question, text, share):
    assert one_part(1.0, text, "language", row={"question": question}, prompt="ignored") == pytest.approx(share)
    assert one_part(1.0, text, "language", prompt=question) == pytest.approx(share)  # without the row: of the prompt


def test_a_script_may_be_named_instead_of_the_question():
    for script, share in (("LATIN", 1 / 4), ("CYRILLIC", 2 / 4), ("KATAKANA", 1 / 4), ("CJK", 1 / 4)):
        asked = {"weight": 1.0, "script": script}
        assert one_part(asked, "Это пять five 五", "language", row={"question": CHINESE}) == share, script


def test_language_is_linear_in_hostile_text():
    for text in ("a" * 300_000, "\\" * 300_000, "\\begin{" * 60_000, "<think" * 60_000, "<|" * 150_000,
                 "\u0301" * 300_000, "五a" * 150_000, "\ud800" * 300_000):
        start = time.process_time()
        assert 0 <= one_part(1.0, text, "language", row={"question": "how many"}) <= 1
        assert time.process_time() - start < 2


def test_stop_properly_is_minus_1_for_a_response_that_did_not_end_by_itself():
    assert one_part(1.0, "x", "stop_properly", truncated=True) == -1
    assert one_part(1.0, "x", "stop_properly", truncated=False) == 0
    cut = score("math", "x", "5", truncated=True)               # the flag says it too
    assert rewards.add_parts(cut, {"stop_properly": 0.5}, "x", 5, 10).total == -0.5


def test_dense_repetition_is_minus_the_share_of_repeated_tokens():
    ids = [1, 2, 3, 1, 2, 4]                                    # the second (1, 2): two of six
    assert one_part({"weight": 1.0, "ngram": 2}, name="dense_repetition", token_ids=ids) == pytest.approx(-2 / 6)
    assert one_part({"weight": 1.0, "ngram": 3}, name="dense_repetition", token_ids=ids) == 0
    assert one_part(1.0, name="dense_repetition", token_ids=[7] * 41) == pytest.approx(-40 / 41)  # 40, as demystify's
    assert one_part(1.0, name="dense_repetition", token_ids=[7] * 40) == one_part(1.0, name="dense_repetition") == 0


def test_the_ngram_of_repetition_is_an_option():
    text = "a b a b"                                            # trigrams: two, both unique; bigrams: ab ba ab
    assert one_part(1.0, text, "repetition") == 0
    assert one_part({"weight": 1.0, "ngram": 2}, text, "repetition") == pytest.approx(-1 / 3)
    assert one_part({"weight": 1.0, "ngram": 2}, text, "sparse_repetition") == pytest.approx(-1 / 3)
    assert one_part({"weight": 1.0, "ngram": 2}, text, "sparse_repetition", correct=True) == 0


@pytest.mark.parametrize(("weights", "told"), [
    ({"soft_overlong": {"weight": 1.0, "cash": 4096}}, "no option 'cash'; did you mean 'cache'? write 'soft_overlong'"),
    ({"language": {"weight": 1.0, "script": "FRENCH"}}, "must be one of ARABIC, "),
    ({"language": {"weight": 1.0, "scripts": "LATIN"}}, "write 'language': {'weight': 1.0, 'script': 'CYRILLIC'}"),
    ({"dense_repetition": {"weight": 1.0, "ngram": 0}}, "must be a whole number of at least 1, not 0"),
    ({"repetition": {"weight": 1.0, "ngram": 2.0}}, "must be a whole number of at least 1, not 2.0"),
    ({"sparse_repetition": {"weight": 1.0, "n": 3}}, "write 'sparse_repetition': {'weight': 1.0, 'ngram': 20}"),
    ({"kimi_length": {"weight": 1.0, "beta": 3}}, "no option 'beta'; write 'kimi_length': 1.0"),
    ({"length_by_pass_rate": "1"}, "must be a finite number, not '1': write 'length_by_pass_rate': 1.0"),
    ({"kimi_lenght": 1.0}, "did you mean 'kimi_length'?")])
def test_a_misspelled_option_is_refused_in_one_line_with_the_right_form(weights, told):
    with pytest.raises(ValueError) as error:
        rewards.check("math", weights)
    assert told in str(error.value) and "\n" not in str(error.value), error.value


def test_what_cannot_work_with_the_lengths_or_the_group_of_a_run_is_refused():
    dapo = {"soft_overlong": {"weight": 1.0, "cache": 4096}}
    rewards.check("math", dapo, max_tokens=4096)
    with pytest.raises(ValueError, match="4,096 tokens of a response that has 4,095 at most"):
        rewards.check("math", dapo, max_tokens=4095)
    for name in rewards.GROUP_PARTS:
        rewards.check("math", {name: 1.0}, group_size=2)
        with pytest.raises(ValueError, match=f"{name}.*group_size = 1 leaves nothing to compare"):
            rewards.check("math", {name: 1.0}, group_size=1)


@pytest.mark.parametrize(("lengths", "right", "values"), [
    ((100, 200, 300), (True, True, True), (0.5, 0, -0.5)),
    ((100, 200, 300), (False, False, False), (0, 0, -0.5)),     # a short wrong one gets nothing for being short
    ((100, 150, 300), (False, True, True), (0, 0.25, -0.5)),
    ((200, 200), (True, False), (0, 0)), ((7,), (True,), (0,)), ((0, 0), (True, True), (0, 0))])
def test_kimi_length_ranks_a_response_within_its_group(lengths, right, values):
    assert parts.kimi_length(lengths, right) == list(values)


@pytest.mark.parametrize(("lengths", "right", "values"), [
    ((100, 200), (True, True), (-0.5, -1)), ((100, 200), (True, False), (-0.25, -0.5)),
    ((100, 200), (False, False), (0, 0)),                       # a problem that nobody solves may be long
    ((50, 100, 200, 200), (False, False, False, True), (-1 / 16, -1 / 8, -1 / 4, -1 / 4)),
    ((7,), (True,), (0,)), ((0, 0), (True, True), (0, 0))])
def test_length_by_pass_rate_costs_more_where_the_prompt_is_easy(lengths, right, values):
    assert parts.length_by_pass_rate(lengths, right) == list(values)


def in_group(prompt, length, correct, **more):
    score = Score(float(correct), correct, True, {"answer": float(correct)})
    return SimpleNamespace(**{"prompt": prompt, "sample": 0, "response_ids": [1] * length, "score": score, "text": "x",
                              "truncated": False, "phantom": False} | more)


def test_group_parts_compare_the_responses_to_one_prompt_and_no_others():
    rollouts = [in_group(0, 100, True), in_group(0, 200, True), in_group(1, 50, False), in_group(1, 250, True)]
    scorer = rewards.Scorer(num_workers=1, part_weights={"length_by_pass_rate": 2.0, "tag_count": 1.0,
                                                         "kimi_length": {"weight": 0.5}})
    assert scorer.add_group_parts(rollouts) is rollouts
    by_pass_rate, kimi = (-1, -2, -0.2, -1), (0.25, -0.25, 0, -0.25)
    assert [r.score.parts for r in rollouts] == [
        {"answer": answer, "length_by_pass_rate": a, "kimi_length": b}  # in the recipe's order; tag_count was before
        for answer, a, b in zip((1, 1, 0, 1), by_pass_rate, kimi, strict=True)]
    assert all(r.score.total == pytest.approx(sum(r.score.parts.values())) for r in rollouts)
    assert rollouts[0].score.correct and not rollouts[0].score.flags
    scorer.part_weights = {"tag_count": 1.0}
    before = [r.score for r in rollouts]
    assert [r.score for r in scorer.add_group_parts(rollouts)] == before
    scorer.close()


def test_a_truncated_response_is_wrong_in_its_group_whatever_the_reward_says():
    for cut in ({"truncated": True}, {"phantom": True}):
        rollouts = [in_group(0, 100, True, **cut), in_group(0, 200, True)]
        rewards.add_parts_of_groups(rollouts, {"kimi_length": 1.0})
        assert [r.score.parts["kimi_length"] for r in rollouts] == [0, -0.5]
        rewards.add_parts_of_groups(rollouts, {"length_by_pass_rate": 1.0})
        assert [r.score.parts["length_by_pass_rate"] for r in rollouts] == [-0.25, -0.5]  # one of two is right


def test_a_response_alone_gets_no_group_part():
    base = score("math", r"\boxed{5}", "5")
    assert rewards.add_parts(base, {"kimi_length": 1.0, "length_by_pass_rate": 1.0}, "x", 5, 10) == base


def test_a_group_part_that_fails_adds_nothing_and_is_told(monkeypatch, capsys):
    monkeypatch.setitem(rewards.GROUP_PARTS, "short", lambda lengths, right: [1.0])
    scorer = rewards.Scorer(num_workers=1, part_weights={"short": 1.0})
    rollouts = scorer.add_group_parts([in_group(0, 100, True), in_group(0, 200, False)])
    scorer.close()
    assert [(r.score.total, r.score.flags) for r in rollouts] == [(1.0, {"error"}), (0.0, {"error"})]
    assert "part short: ValueError" in capsys.readouterr().err


def test_weighed_parts_are_added_to_the_total():
    text = "<think>\nFirst, a\n</think>\n<answer>\n$5$\n</answer>"
    base = score("open_r1_math", text, "5")
    result = rewards.add_parts(base, {"tag_count": 2.0, "soft_overlong": 1.0}, text, num_tokens=900, max_tokens=1000)
    assert result.total == pytest.approx(base.total + 2 - 0.6) and sum(result.parts.values()) == result.total


# ----------------------------------------------------------------------------------------------------------------------
# Scorer and command line

def test_a_scorer_gives_the_scores_of_score():
    cases = [(reward, perfect(reward), answer_for(reward)) for reward in RANGES]
    cases += [("math", f"\\boxed{{{box}}}", gold) for box, gold in
              ((r"\sqrt{8}", r"2\sqrt{2}"), (r"\sqrt{18}", r"2\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"),
              (r"\sqrt{8}", r"2\sqrt{2}"))]
    scorer = rewards.Scorer(num_workers=1)
    try:
        for i, case in enumerate(cases):
            scorer.submit(i, *case)
        scores = scorer.collect()
        assert scores == {i: score(*case) for i, case in enumerate(cases)}
        assert [scores[len(RANGES) + i].total for i in range(4)] == [1, 0, 1, 1]
        assert scorer.collect() == {}
    finally:
        scorer.close()


def test_what_the_wall_budget_leaves_scores_the_failure_value():
    scorer = rewards.Scorer(num_workers=1)
    try:
        for i in range(50):
            scorer.submit(i, "simplerl_math", f"\\boxed{{\\sqrt{{{i + 2}}}}}", r"\frac{\sqrt{2}}{7}")
        scores = scorer.collect(budget_s=0.0)           # all are unjudged: nothing was waited for
        assert len(scores) == 50
        assert {s.total for s in scores.values()} == {-0.5} and all("timeout" in s.flags for s in scores.values())
        scorer.submit(0, "math", r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
        assert scorer.collect()[0].correct                      # and the next batch is not affected
    finally:
        scorer.close()


def test_graders_are_not_asked_about_a_response_that_is_left_out():
    """Responses 0 and 1 ask the same, 2 something else; 4 was cut off and never submitted."""
    scorer = rewards.Scorer(num_workers=0)
    for key in range(3):
        scorer.submit(key, "math", r"\boxed{\sqrt{8}}" if key < 2 else r"\boxed{\sqrt{32}}", r"2\sqrt{2}")
    for key in (0, 2, 4):
        scorer.forget(key)
    assert scorer.verdicts.undecided() == {1}
    assert [prediction for *_, prediction, _ in scorer.verdicts.graders.queue] == [r"\sqrt{8}"]
    assert list(scorer.collect(budget_s=0.0)) == [1]


def test_a_grader_that_works_on_a_response_that_is_left_out_delays_and_harms_nothing():
    scorer = rewards.Scorer(num_workers=1)
    try:
        for others in (1, 0):
            scorer.submit(0, "math", rf"\boxed{{\sqrt{{{18 + others}}}}}", r"2\sqrt{2}")
            while not any(worker.job for worker in scorer.verdicts.graders.workers) and scorer.verdicts.undecided():
                scorer.poll(1.0)
            scorer.forget(0)
            for key in range(1, 1 + others):
                scorer.submit(key, "math", r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
            scores = scorer.collect()
            assert list(scores) == [1] * others and all(one.correct for one in scores.values())
            assert not any(worker.job for worker in scorer.verdicts.graders.workers)  # nor after the batch
    finally:
        scorer.close()


def test_token_ids_may_be_an_array(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda sample, equal: sample.finish({"mine": sum(sample.token_ids)}))
    for ids, total in ((np.array([4, 5], np.int32), 9.0), ([4, 5], 9.0), (np.array([], np.int32), 0.0), (None, 0.0)):
        found = rewards.run("mine", None, "x", "5", token_ids=ids)
        assert (found.total, found.flags) == (total, frozenset())


def test_a_note_of_an_endless_answer_is_short():
    sample = rewards.Completion("x", "72", equal=lambda *_: "wrong")
    assert not sample.is_right("y" * 5_000_000)
    assert len(sample.notes[-1][1]) == len("wrong: ") + 1000 + len(" for 72")


def test_scoring_alone_says_that_the_rewards_are_not_defined_yet():
    code = "from tasks.scoring import score; score('math', '\\\\boxed{5}', '5')"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(rewards.__file__).parent, capture_output=True)
    assert done.stderr.endswith(b"ValueError: no reward 'math'; import rewards first, which defines them\n")


def test_scoring_imports_neither_torch_nor_sympy():
    code = "import sys, rewards; rewards.score('math', r'\\boxed{\\sqrt{8}}', r'2\\sqrt{2}').correct or sys.exit(1); " \
           "sys.exit(any(name in sys.modules for name in ('torch', 'sympy', 'math_verify')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(rewards.__file__).parent).returncode == 0


def why(*arguments, text=""):
    command = [sys.executable, "rewards.py", "--why", "-", *arguments]
    return subprocess.run(command, cwd=Path(rewards.__file__).parent, input=text.encode(errors="surrogatepass"),
                          capture_output=True)


def test_why_explains_rule_finding_value_and_total():
    out = why("--reward", "logic_rl_kk", "--answer", json.dumps(PEOPLE),
              text=T("Zoey is a knight, Oliver is a knight")).stdout.decode()
    for words in ("2 times for 2 people", "'Oliver is a ...'", "knight", "-1.5", "total", "-0.5", "correct no"):
        assert words in out, out
    out = why("--reward", "math", "--answer", "5", "--truncated", text=B("5")).stdout.decode()
    assert "correct no" in out and "truncated" in out


def test_why_escapes_hostile_text_and_names_bad_input():
    shown = why("--reward", "tinyzero_countdown", "--answer", json.dumps(COUNTDOWN),
                text=T("\x1b[31m\ud80044\x00")).stdout
    assert b"\x1b" not in shown and b"\x00" not in shown and b"\\x1b" in shown
    assert b"did you mean 'math'" in why("--reward", "maths", "--answer", "5").stderr
    assert b"numbers" in why("--reward", "tinyzero_countdown", "--answer", '{"target": 3}').stderr


def kept(folder, *rows, zipped=True):
    """Write a file of a run's samples/ beside its config.json; each row changes a right answer to Countdown."""
    os.makedirs(folder / "samples")
    (folder / "config.json").write_text(json.dumps({"settings": {"max_response_len": 100}}))
    text = T("44 + 19 + 35")
    base = {"step": 7, "split": "train", "uid": "countdown/3", "sample": 0, "prompt": "make 98", "response": text,
            "reward": 1.5, "correct": True, "format_ok": True, "tokens": 40,
            "parts": {"format": 0.1, "answer": 0.9, "tag_count": 0.5},
            "finish_reason": "stop", "truncated": False, "gold": COUNTDOWN, "flags": [],
            "reward_name": "tinyzero_countdown"}
    path = folder / "samples" / f"step_000007.jsonl{'.gz' * zipped}"
    content = "".join(json.dumps(base | row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    return str(path)


def why_kept(path, *arguments):
    done = subprocess.run([sys.executable, "rewards.py", "--why", path, *arguments], capture_output=True, text=True,
                          cwd=Path(rewards.__file__).parent)
    assert "Traceback" not in done.stderr
    return done.stdout if done.returncode == 0 else done.stderr


def test_why_explains_a_response_that_a_run_kept(tmp_path):
    out = why_kept(kept(tmp_path / "a", {"split": "held-out", "uid": "countdown/test/1"}, {},
                        {"truncated": True, "finish_reason": "length", "flags": ["truncated"], "reward": 0.5,
                         "parts": {"format": 0.0, "answer": 0.0, "tag_count": 0.5}, "correct": False}))
    for words in ("step 7, train, countdown/3: --sample 0 of 0 to 1; right 0; truncated 1\n", "prompt   make 98",
                  "<answer>44 + 19 + 35</answer>", "ended by stop after 40 tokens",  # the training responses alone
                  "reward 1.5 = format 0.1 + answer 0.9 + tag_count 0.5; correct yes, format ok, flags: none",
                  "tinyzero_countdown: Give 1 for the right answer", "total"):
        assert words in out, out
    assert "+0.9" in out and "not as kept" not in out
    cut = why_kept(str(tmp_path / "a/samples/step_000007.jsonl.gz"), "--sample", "1")
    assert "ended by length" in cut and "truncated" in cut and "not as kept" not in cut


def test_why_knows_the_length_that_a_run_allowed(tmp_path):
    row = {"reward_name": "demystify_cosine", "response": B("5"), "gold": "5", "tokens": 50, "parts": {"cosine": 1.5}}
    out = why_kept(kept(tmp_path / "a", row))                       # half of 100 tokens: half way from 2 to 1
    assert "50 of 100" in out and "+1.5" in out and "not as kept" not in out
    out = why_kept(kept(tmp_path / "b", row | {"parts": {"cosine": 2.0}}, zipped=False))
    assert "not as kept: cosine." in out


@pytest.mark.parametrize(("row", "told"), [
    ({"reward_name": "mine"}, "Not scored again: no reward 'mine'"),
    ({"reward_name": None}, "Not scored again: the file, of an older version, does not name the reward"),
    ({"gold": None}, "Not scored again: tinyzero_countdown fails on what the file holds (")])
def test_why_says_when_a_kept_response_cannot_be_scored_again(tmp_path, row, told):
    out = why_kept(kept(tmp_path / "a", row))
    assert told in out and "reward 1.5 = format 0.1" in out, out


def test_why_refuses_other_files_in_one_line(tmp_path):
    path = kept(tmp_path / "a", {})
    (tmp_path / "rows.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(Path(path).read_bytes()[:-20])
    for arguments, told in (((path, "--sample", "1"), "has 1 responses: --sample 0 to 0, not 1"),
                            ((str(tmp_path / "rows.jsonl"),), "does not hold the responses of a run"),
                            ((str(tmp_path / "none.jsonl"),), "No such file"),
                            ((str(tmp_path / "cut.jsonl.gz"),), "end"),
                            ((str(tmp_path / "a.txt"),), "--reward and --answer are needed")):
        out = why_kept(*arguments)
        assert out.startswith(("rewards.py: ", "usage: ")) and told in out, out


# ----------------------------------------------------------------------------------------------------------------------
# The golds of the public sets

DATA = Path(os.environ.get("ONEBOX_DATA_DIR", "/nonexistent"))


def rows(name):
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("set ONEBOX_DATA_DIR to a directory with the public sets as JSONL")
    return [json.loads(line) for line in path.open()]


def golds(name):
    if name.startswith("gsm8k"):
        return [row["answer"].rpartition("####")[2].strip() for row in rows(name)]
    if name == "minerva_math_test":
        return [formats.boxes(row["solution"])[-1] for row in rows(name)]
    if name == "olympiadbench_test":
        return [row["final_answer"][0] for row in rows(name)]
    return [str(row["answer"]) for row in rows(name)]


SETS = ["gsm8k_train", "gsm8k_test", "math_train", "math_test", "math500_test", "minerva_math_test",
        "olympiadbench_test", "aime24_test", "amc23_test40"]


@pytest.mark.parametrize("name", SETS)
def test_a_gold_in_the_right_form_has_full_marks_on_99_percent_of_a_set(name):
    answers = golds(name)
    for reward in ("math", "simplerl_math", "open_r1_math", "dr_grpo_math", "dr_grpo_r1", "deepscaler_math",
                   "demystify_cosine", *(["unsloth_gsm8k"] if name.startswith("gsm8k") else [])):
        full = sum(score(reward, perfect(reward, gold), gold, num_tokens=0, max_tokens=99).total == RANGES[reward][1]
                   for gold in answers)
        assert full >= 0.99 * len(answers), (reward, full, len(answers))


@pytest.mark.parametrize("name", SETS)
def test_another_rows_gold_scores_correct_in_almost_no_case(name):
    answers, rng = golds(name), random.Random(0)
    pairs = [(gold, other) for gold, other in ((gold, rng.choice(answers)) for gold in answers) if gold != other][:500]
    scorer = rewards.Scorer(num_workers=1)
    try:
        for i, (gold, other) in enumerate(pairs):
            scorer.submit(i, "math", f"\\boxed{{{other}}}", gold)
        hits = [pairs[i] for i, result in scorer.collect(budget_s=120).items() if result.correct]
    finally:
        scorer.close()
    assert len(hits) <= 0.005 * len(pairs), hits


def test_worked_solutions_serve_as_open_r1_golds():
    for row in rows("math500_test"):
        assert score("open_r1_math", perfect("open_r1_math", row["answer"]), row["solution"]).total == 2


def test_published_countdown_rows_are_well_formed():
    for row in rows("countdown_3to4_first10240")[:1000]:
        answer = {"target": row["target"], "numbers": row["nums"]}
        rewards.check_answer("tinyzero_countdown", answer)
        assert score("tinyzero_countdown", T("1+1"), answer).total == 0.1


def test_an_interrupted_question_is_not_answered_to_the_next_asker(monkeypatch):
    from tasks import workers

    assert rewards.score("math", r"\boxed{5}", "5").correct
    poll, calls = workers.Verdicts.poll, []

    def interrupted(self, *arguments, **settings):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return poll(self, *arguments, **settings)

    monkeypatch.setattr(workers.Verdicts, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.ask_now([r"2\sqrt{2}+x"], r"\sqrt{8}+y", "strict")
    assert workers.ask_now(["5"], "5", "strict") == "right"  # decided at once; the one before is wrong
