"""
Which scripts a text is written in, word by word. A script is not a language: French and English are both Latin.
"""

import functools
import re
import unicodedata
from collections import Counter

SCRIPTS = ("ARABIC", "ARMENIAN", "BENGALI", "BOPOMOFO", "CHEROKEE", "CJK", "CYRILLIC", "DEVANAGARI", "ETHIOPIC",
           "GEORGIAN", "GREEK", "GUJARATI", "GURMUKHI", "HANGUL", "HEBREW", "HIRAGANA", "KANNADA", "KATAKANA", "KHMER",
           "LAO", "LATIN", "MALAYALAM", "MONGOLIAN", "MYANMAR", "NKO", "ORIYA", "SINHALA", "SYRIAC", "TAMIL", "TELUGU",
           "THAANA", "THAI", "TIBETAN", "TIFINAGH")  # as Unicode's names of letters begin
SAME = {"IDEOGRAPHIC": "CJK"}  # the sign that repeats the one before
JAPANESE = frozenset({"CJK", "HIRAGANA", "KATAKANA"})  # one language in three scripts
CHARACTERS = JAPANESE | {"BOPOMOFO"}  # written without spaces: each character counts as a word
VARIABLES = ("LATIN", "GREEK")  # a single letter of these is a variable: x, n, α
MARK = ""  # belongs to the letter before it: accents, vowel signs, joiners
MIN_SHARE = 0.1  # of a question's words; with fewer a script does not belong to it

# Not language: commands and environments of LaTeX (what stands in \text{} is), the tags, markers of chat templates.
IGNORED = re.compile(r"\\(?:begin|end)\{[a-zA-Z*]{0,30}\}|\\[a-zA-Z]+|</?(?:think|answer|reasoning)>"
                     r"|<\|[a-z_]{1,30}\|>")


@functools.cache
def script_of(character):
    """Return one of SCRIPTS for a letter, MARK for what belongs to the letter before it, None for all else."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":
        return MARK
    words = unicodedata.name(character, "").split() if category[0] == "L" else []
    if words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    if "SOUND" in words:  # of kana: voiced, or a long vowel
        return MARK
    script = SAME.get(words[0], words[0]) if words else None
    return script if script in SCRIPTS else None


def words_by_script(text):
    """
    Count the words of each script, {"LATIN": 12, ...}, in time linear in the text.

    A word is a run of letters of one script, or one character of Chinese or Japanese. What is no language does not
    count: digits, single Latin and Greek letters, LaTeX commands, the tags.
    """
    counts, script, letters = Counter(), None, 0
    for character in IGNORED.sub(" ", text) + " ":
        found = script_of(character)
        if found == MARK:
            continue
        if found != script or found in CHARACTERS:
            if script and (letters > 1 or script not in VARIABLES):
                counts[script] += 1
            script, letters = found, 0
        letters += 1
    return dict(counts)


def scripts_of(question):
    """Return the scripts of at least a tenth of a question's words; with kana in it, all three of Japanese."""
    counts = words_by_script(question)
    found = {script for script, count in counts.items() if count >= MIN_SHARE * sum(counts.values())}
    return found | JAPANESE if found & {"HIRAGANA", "KATAKANA"} else found


def share_of_scripts(text, scripts):
    """Return the share of a text's words that are in one of these scripts; 1 without words, or without scripts."""
    counts = words_by_script(text)
    if not counts or not scripts:
        return 1.0
    return sum(counts.get(script, 0) for script in scripts) / sum(counts.values())
