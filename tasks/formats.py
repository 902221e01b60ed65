"""
How completions are written: tags, boxes and blocks, read in time linear in the length of a hostile text.
"""

import re

EOS_TEXTS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
BLANKS = " \t\r\n"


def strip_eos(text):
    """Remove one end-of-text at the very end, which is the engine's; a second one is the model's own text."""
    for eos in EOS_TEXTS:
        if text.endswith(eos):
            return text[:-len(eos)]
    return text


# ---------------------------------------------------------------- tags


def tag_error(text):
    """Say what is wrong with the tags: no <think> (it is prefilled), then one </think> <answer> </answer>."""
    for tag, wanted in (("<think>", 0), ("</think>", 1), ("<answer>", 1), ("</answer>", 1)):
        if text.count(tag) != wanted:
            return f"{tag} {text.count(tag)} times, not {wanted}"
    if not text.find("</think>") < text.find("<answer>") < text.find("</answer>"):
        return "the tags stand in the wrong order"
    return ""


def between(text, start, end):
    """Return the text after the first `start` up to the next `end`."""
    return text.partition(start)[2].partition(end)[0]


def outside_thinking(text):
    """Return what follows the last </think>: all of a text without tags, nothing where the thinking never ends."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def tag_monitors(text):
    """Return the names of what looks odd about the tags; no score depends on them."""
    thinking, closed, _ = text.partition("</think>")
    last_answer = text.rpartition("<answer>")[2].partition("</answer>")[0]
    odd = {"several_answers": text.count("<answer>") > 1,
           "answer_in_thinking": -1 < text.find("<answer>") < text.rfind("</think>"),
           "empty_thinking": closed and not thinking.replace("<think>", "", 1).strip(),
           "non_ascii_answer": "<answer>" in text and not last_answer.isascii()}
    return {name for name, found in odd.items() if found}


def two_blocks(text, opening, middle, closing, to_the_end):
    """Match the regex opening.*?middle.*?closing from the start (to the end), '.' matching newlines, in linear time."""
    found = re.compile(middle).search(text, len(opening)) if text.startswith(opening) else None
    if not found:
        return False
    if to_the_end:
        return text.endswith(closing) and len(text) - len(closing) >= found.end()
    return text.find(closing, found.end()) >= 0


def think_answer_format(text):
    r"""Return 1 for a full match of ^<think>.*?</think>\s*<answer>.*?</answer>$ (open-r1, 2025-02-08), else 0."""
    return float(two_blocks(text.rstrip(), "<think>", r"</think>\s*<answer>", "</answer>", to_the_end=True))


def xml_count(text):
    """
    Return 0.125 for each of four tags that stands exactly once with its newlines, less 0.001 a character after
    </answer>.

    As published, that is subtracted twice: for what follows the last '\\n</answer>\\n', and again for what follows the
    last '\\n</answer>', less one character. Where the text ends in </answer> without a newline, the first finds nothing
    and subtracts 0.001 for each character of the whole text: a perfect response of 1,000 characters gets -0.499.
    """
    count = 0.125 * ((text.count("<reasoning>\n") == 1) + (text.count("\n</reasoning>\n") == 1))
    if text.count("\n<answer>\n") == 1:
        count += 0.125 - 0.001 * len(text.rpartition("\n</answer>\n")[2])
    if text.count("\n</answer>") == 1:
        count += 0.125 - 0.001 * (len(text.rpartition("\n</answer>")[2]) - 1)
    return round(count, 6)


# ---------------------------------------------------------------- boxes and formulas

EMPTY_BOX = re.compile(r"(?:[\s.~_{}…]|\\[ ,;:!_]|\\(?:q?quad|[lc]?dots|text)(?![a-zA-Z]))*")
MAX_BRACES = 50_000  # with more of them the text holds no answer; a 32k-token solution has a fifth of it
BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|(?<!\\)\\[{}]|[{}]")


def boxes(text):
    """Return the contents of all closed \\boxed{...}, in the order they open."""
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
    """Return boxes() without those that hold nothing, such as the quoted instruction 'in \\boxed{}'."""
    return [box for box in boxes(text) if len(box) > 50 or not EMPTY_BOX.fullmatch(box)]


FORMULA = re.compile(r"\$\$([^$]{1,500})\$\$|(?<!\\)\$([^$\n]{1,500})\$|\\\(([^\n]{1,500}?)\\\)|\\\[(.{1,500}?)\\\]"
                     r"|(-?\\frac\{-?[0-9]+\}\{-?[0-9]+\})", re.DOTALL)


def formula_after_answer(text):
    """
    Return what math-verify takes where there is no box: a formula ($...$, \\(...\\), \\[...\\] or \\frac{1}{2}) that
    begins within 50 characters after the word 'answer', as in <answer>$5$</answer>; None without one. A bare 5 is no
    LaTeX.
    """
    position = text.rfind("<answer>") if "<answer>" in text else max(text.rfind("answer"), text.rfind("Answer"))
    match = FORMULA.search(text[position:position + 600]) if position >= 0 else None
    if not match or match.start() > len("<answer>") + 50:
        return None
    return next(group for group in match.groups() if group is not None)
