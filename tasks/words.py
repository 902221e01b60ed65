"""
What a model writes, as numbers: the thinking, and the words in it of a model that goes step by step or checks itself.

Pure functions of text, without torch: metrics.py counts with them while training, tools/report on stored rollouts.
"""

import re

# The survey's words of step-by-step reasoning: "Step 1", "Step2", ...; First, Second, Next, Finally as markers
# (capitalised, or before a comma: "the first number" is none); items numbered "1.", "2)" at the start of a line ("1.5"
# is none).
STEPS = re.compile(r"\b(?:[Ss]tep ?\d+|(?:First|Second|Next|Finally)(?:ly)?\b"
                   r"|(?:first|second|next|finally)(?:ly)?(?=,))")
ITEMS = re.compile(r"\n[ \t*#>-]{0,12}\d{1,2}[.)](?!\d)")

# Words of a model that checks itself. This project's list: words of the two published ones below, and "no" and "wait"
# of the demo's search; lower case, as whole words.
REFLECTION = ("rethink", "recheck", "try again", "re-evaluate", "reevaluate", "check again", "think again", "too high",
              "too low", "close but", "try another approach", "try different", "double-check", "reconsider", "wait",
              "no")
REFLECTION_PATTERN = re.compile(r"\b(?:" + "|".join(REFLECTION) + r")\b")
# The survey's list. Where it names a phrase and a longer one around it ("let's try again"), the shorter counts both.
REFLECTION_SURVEY = ("rethink", "recheck", "try again", "let's correct it and verify the steps again", "re-evaluate",
                     "re - evaluate", "check again", "let's think again", "too high", "too low", "close but",
                     "try another approach", "try different")
# The longest published one: keyword_count.py of "Understanding R1-Zero-Like Training" (arXiv 2503.20783).
REFLECTION_PUBLISHED = ("recheck", "rethink", "reassess", "reevaluate", "re-evaluate", "reevaluation", "re-examine",
                        "reexamine", "reconsider", "reanalyze", "double-check", "check again", "think again",
                        "verify again", "go over the steps")


def split_thinking(text):
    """Split a text into (thinking, answer part) at the first </think>, else at the first <answer>."""
    for tag in ("</think>", "<answer>"):
        at = text.find(tag)
        if at >= 0:
            return text[:at], text[at:]
    return text, ""


def word_counts(thinking):
    """
    Count how often the words of each group stand in one thinking: {column: count}. The published lists count as they
    were published, as parts of lower-case text ("rechecked" holds "recheck").
    """
    lower = thinking.lower().replace("\u2019", "'")
    return {"reasoning_words": len(STEPS.findall(thinking)) + len(ITEMS.findall("\n" + thinking)),
            "reflection_words": len(REFLECTION_PATTERN.findall(lower)),
            "reflection_words_survey": sum(map(lower.count, REFLECTION_SURVEY)),
            "reflection_words_published": sum(map(lower.count, REFLECTION_PUBLISHED))}


def counts_of(text, num_tokens, tokenizer):
    """
    Count in a response of num_tokens tokens the words of its thinking, as word_counts does, and as answer_len the
    tokens of its answer part, which are those of its text tokenized again.
    """
    thinking, answer = split_thinking(text)
    answer_ids = tokenizer([answer], add_special_tokens=False)["input_ids"][0] if answer else []
    return {"answer_len": min(len(answer_ids), num_tokens), **word_counts(thinking)}


def word_columns(counts):
    """
    Average over responses, from the word_counts of each: words of each group (`reasoning_words`, ...) and the share of
    responses with at least one (`reasoning_share`, ...). Per 1,000 thinking tokens: 1000 * words / think_len.
    """
    row = {}
    for column in word_counts(""):
        row[column] = sum(c[column] for c in counts) / max(1, len(counts))
        row[column.replace("words", "share")] = sum(c[column] > 0 for c in counts) / max(1, len(counts))
    return row
