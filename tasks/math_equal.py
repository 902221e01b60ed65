"""
Are two mathematical answers equal? Strings and exact fractions decide most pairs here; sympy the rest
(tasks/workers.py).

    decide(golds, prediction, rules)        -> True, False, or None: only sympy can tell

Structure (lists, brackets, equations, units, percent signs, bases) is compared here, by our rules. Sympy only sees two
scalar expressions, which keeps its generous readings out ('5,5', '6=5' and '5\\%' are not 5).
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate


@dataclass(frozen=True)
class Rules:
    percent: str = "strict"     # '5\%' for 5: "strict" wrong, "value" is 0.05, "drop" is 5
    brackets: bool = True       # '[1,2)' is not '(1,2)'
    ordered: bool = False       # '2,1' is not '1,2'
    rel_tol: float = 0.0        # of two numbers
    decimals: int = 0           # > 0: with a decimal point in either, equal after rounding to so many places, not to 0


RULES = {
    "strict": Rules(),                                          # evaluation, understand-r1-zero's full grader
    "open_r1": Rules(percent="value", decimals=6),              # math-verify's rounding, without its set readings
    "simplerl": Rules(percent="drop", brackets=False, ordered=True, rel_tol=1e-4),      # Qwen2.5-Math math_equal
}

MAX_ANSWER, MAX_DEPTH = 200, 20  # characters of a prediction (or twice the gold's), nested brackets


# ---------------------------------------------------------------- spelling: rewrites that keep the value
UNICODE = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "°": r"^\circ ",
           "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ",
           "≈": r"\approx ", "√": r"\sqrt "}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
ALIASES = [(re.compile(pattern), to) for pattern, to in [
    (r"(?<=[0-9])(?:, ?\\! ?|\{,\}|\\,)(?=[0-9]{3}(?![0-9]))", ""),                    # 1,\!000  1{,}000  1\,000
    (r"(?<!\\)\\[!,;: ]|\\q?quad\b|(?<!\\)~|\\(?:display|text)style\b", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:mbox|text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|operatorname|boldsymbol|bold)\s*\{", r"\\text{"),
    (r"\\leq(?:slant)?(?![a-z])|<=", r"\\le "), (r"\\geq(?:slant)?(?![a-z])|>=", r"\\ge "),
    (r"\\neq?(?![a-z])", r"\\ne "),
    (r"\\lt(?![a-z])", "<"), (r"\\gt(?![a-z])", ">"),
    (r"\\lbrace", r"\\{"), (r"\\rbrace", r"\\}"), (r"\\lbrack|\\lparen", "["), (r"\\rbrack", "]"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])|\\text\{\s*degrees?\s*\}", r"^\\circ "),
    (r"\^\\circ\s*\\text\{\s*([CF])\s*\}", r"^\\circ \1"),
    (r"\\(?:boxed|fbox)\s*\{([^{}]*)\}", r"\1"),
    (r"\\text\{\s*,?\s*(and|or)\s*\}", r" \1 "),
    (r"(?<=[\^_])\{([0-9A-Za-z])\}", r"\1"),                                                   # x^{2}, a_{1}
    (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"), (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9])", r"\\frac\1{\2}"),
    (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
    (r"(?<=[0-9]) ?x ?(?=\{?10\}?\^)", r"\\times "),                                                 # 6.63 x 10^{-34}
    (r"\\varnothing(?![a-z])|\\\{\s*\\\}", r"\\emptyset "), (r"\\R(?![a-zA-Z])", r"\\mathbb{R}"),
    (r"(\\times|\\cdot) +(?=[0-9{])", r"\1"), (r"(?<![0-9.}])\{10\}(?=\^)", "10"),
]]
PREAMBLE = re.compile(r"(?:\\text\{)?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*:?\s*\}?", re.IGNORECASE)
PLAIN = re.compile(r"(?<![A-Za-z\\])(?:(infinity)|(pi|(?:sin|cos|tan|ln|log)(?= ?(?:[0-9(\\{]|[a-z](?![a-z])))))"
                   r"(?![A-Za-z])")
HAS_PLAIN = re.compile(r"pi|sqrt|sin|cos|tan|ln|log|infinity")
PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])\\?sqrt ?(?=\()")
INTEGER = re.compile(r"-?[0-9]{1,30}")
WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
SPACE = re.compile(r"(?<![0-9A-Za-z.])\s+|\s+(?![0-9A-Za-z.])")         # a blank between two words or digits stays
THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def tidy(text):
    """
    Return one spelling for what LaTeX writes in several ways: \\dfrac12 -> \\frac{1}{2}, \\left( 3 \\right) -> (3),
    90^{\\circ} -> 90^\\circ, $x$ -> x, 10,\\!000 -> 10000. The value never changes; idempotent on short answers.
    """
    if INTEGER.fullmatch(text):         # nothing to rewrite, and the commonest
        return text
    if not text.isascii():
        for char, latex in UNICODE.items():
            text = text.replace(char, latex)
        text = re.sub("[⁰¹²³⁴-⁹⁻⁺]+", lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub(r"(?<!\\)(?:\$|\\[()\[\]])", "", text)        # math mode off: $ \( \) \[ \], but not \$
    for pattern, to in ALIASES:
        text = pattern.sub(to, text)
    text = PREAMBLE.sub("", text, count=1) if PREAMBLE.match(text) else text
    text = text.strip().rstrip("\\. ")
    while (whole := WHOLE_TEXT.fullmatch(text)) or text[:1] == "{" and closes_at(text) == len(text) - 1:
        text = (whole[1] if whole else text[1:-1]).strip().rstrip(".")
    if HAS_PLAIN.search(text) and "\\text" not in text:           # 2pi, sqrt(2)/2
        text = PLAIN.sub(lambda m: "\\infty " if m[1] else f"\\{m[2]} ", text)
        text = re.sub(r"(?<![A-Za-z\\])sqrt ?([0-9]+)", r"\\sqrt{\1}", text)
        while (root := PLAIN_ROOT.search(text)) and (end := closes_at(text[root.end():])) > 0:
            start, end = root.end(), root.end() + end
            text = f"{text[:root.start()]}\\sqrt{{{text[start + 1:end]}}}{text[end + 1:]}"
    return SPACE.sub("", re.sub(r"\s+", " ", text))


def closes_at(text):
    """Return the index where the bracket that opens `text` closes, or -1."""
    depths = accumulate((char in "([{") - (char in ")]}") for char in text)
    return next((i for i, depth in enumerate(depths) if depth == 0), -1)


def split_top(text, separators):
    """Split at the separators (a regex) outside all brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        elif depth <= 0 and (found := separators.match(text, i)):
            parts.append(text[start:i].strip())
            start = i = found.end()
            continue
        i += 1
    return parts + [text[start:].strip()]


# ---------------------------------------------------------------- scalars: numbers, units, bases
DEC = r"(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})"
NUMBER = re.compile(rf"({DEC})")
POWER = re.compile(rf"(?:({DEC})(?:\\times|\\cdot|\*))?10\^(?:[{{(]([-+]?[0-9]{{1,3}})[)}}]|([-+]?[0-9]{{1,3}}))"
                   rf"|({DEC})[eE]([-+]?[0-9]{{1,3}})")
FRACTION = re.compile(rf"([0-9]{{1,30}}(?= ?\\))? ?\\frac\{{(-?{DEC})\}}\{{(-?{DEC})\}}")
REPEATING = re.compile(r"([0-9]{0,30})\.([0-9]{0,30})\\overline\{([0-9]{1,30})\}")
RATIO = re.compile(rf"(?:([0-9]{{1,30}}) )?({DEC})/({DEC})")
RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in|sim)(?![a-z])")
WORDS = re.compile(r"[A-Za-z][A-Za-z '-]{2,}")
BASE = re.compile(r"([0-9A-Za-z]+)_(?:\{(?:\\text\{)?([0-9A-Za-z]+)\}?\}|([0-9]))")


def number(text):
    """Read '-3', '2.50', '1.2\\times10^{3}', '4e33', '\\frac{1}{2}', '3/4', '1\\frac{1}{2}' -> Fraction; else None."""
    sign = 1
    while text[:1] in ("-", "+"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:]
    if text[:1] == "(" and closes_at(text) == len(text) - 1:
        inside = number(text[1:-1])
        return None if inside is None else sign * inside
    if (m := NUMBER.fullmatch(text)):
        return sign * Fraction(m[1])
    if (m := POWER.fullmatch(text)):
        mantissa, exponent = (m[1] or "1", m[2] or m[3]) if m[4] is None else (m[4], m[5])
        return sign * Fraction(mantissa) * Fraction(10) ** int(exponent)
    if (m := REPEATING.fullmatch(text)):                                        # 0.1\overline{6} = 1/6
        head, cycle = Fraction(f"{m[1] or 0}.{m[2] or 0}"), Fraction(int(m[3]), 10 ** len(m[3]) - 1)
        return sign * (head + cycle / 10 ** len(m[2]))
    m = FRACTION.fullmatch(text) or RATIO.fullmatch(text)
    if m and Fraction(m[3]) != 0:
        value = Fraction(m[2]) / Fraction(m[3])
        return sign * (Fraction(m[1]) + value if m[1] else value)
    return None


SCALES = {"hundred": 100, "thousand": 1000, "million": 10 ** 6, "billion": 10 ** 9, "trillion": 10 ** 12, "dozen": 12}
NOT_UNITS = set("not is and or to than less more least most about minus plus times over mod modulo base remainder no "
                "none wrong half quarter third infinity if for only pi sqrt sin cos tan log ln exp nan inf".split())
UNITS = {name: names.split()[0] for names in (
    "cm centimeter centimetre", "mm millimeter", "m meter metre", "km kilometer kilometre", "inch in inche",
    "foot feet ft", "mile mi", "yard yd", "second sec s", "minute min", "hour hr h", "day", "week", "month", "year yr",
    "dollar usd buck", "cent", "gram g", "kg kilogram", "pound lb", "ounce oz", "liter litre l", "ml milliliter",
    "gallon gal", "degree deg", "radian rad", "acre", "kmh km/h kph", "mph") for name in names.split()}
TEXT_UNIT = re.compile(r"(.*[^\\{,;=]) ?\\text\{([^{}]*)\}(?:\^([23]))?\.?", re.DOTALL)
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
WORD_UNIT = re.compile(r"(.*[0-9})]) ?([A-Za-z][A-Za-z./ ]*[A-Za-z.])(?:\^([23]))?", re.DOTALL)


def unit_name(words, power):
    """Name a unit: 'square inches' -> 'inch^2', an unknown word -> '' (any); None if it may change the value."""
    words = words.replace(".", " ").lower().replace("miles per hour", "mph").split()
    if len(words) > 4 or any(w in NOT_UNITS or not re.fullmatch(r"[a-z'/-]+", w) for w in words):
        return None
    power = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}.get(words[0] if words else "", power)
    word = words[-1] if words else ""
    name = UNITS.get(word) or UNITS.get(word.removesuffix("s")) or ""
    return f"{name}^{power}" if name and power else name


def quantity(text):
    """Split '\\$36' -> ('36', 'dollar', 1), '5\\text{ thousand m}' -> ('5', 'm', 1000), '5\\%' -> (5, 'percent', 1)"""
    unit, scale = "", 1
    for _ in range(3):
        if text.endswith("%"):
            text, unit = text[:-1].removesuffix("\\").rstrip(), "percent"
        elif (m := re.fullmatch(r"(.+)\^\\circ ?([CFK]?)", text)) and not TRIGONOMETRIC.search(text):
            text, unit = m[1], "degree"
        elif re.match(r"[-+]?\\\$", text):
            text, unit = text.replace("\\$", "", 1).strip(), "dollar"
        elif (m := TEXT_UNIT.fullmatch(text) or WORD_UNIT.fullmatch(text)):
            words = m[2].split()
            if words and words[-1].lower().strip(".") in ("percent", "percentage"):
                text, unit = m[1], "percent"
                continue
            while words and words[0].lower() in SCALES:
                scale, words = scale * SCALES[words.pop(0).lower()], words
            name = unit_name(" ".join(words), m[3])
            if name is None:
                return None
            text, unit = m[1].strip(), unit or name
        else:
            break
    return text, unit, scale


def close(a, b, rules, has_point):
    if rules.rel_tol:
        return abs(a - b) <= Fraction(rules.rel_tol) * max(abs(a), abs(b))
    if rules.decimals and has_point:
        return a == b or round(a, rules.decimals) == round(b, rules.decimals) != 0
    return a == b


def letters(text):
    """Return the free letters of an expression: '\\frac{x}{2}' -> {'x'}"""
    return set(re.findall(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", " ", text)))


def compare_scalar(gold, prediction, rules, cas):
    if "%" in prediction + gold and rules.percent == "drop":
        gold, prediction = gold.replace("\\%", "").replace("%", ""), prediction.replace("\\%", "").replace("%", "")
    g, p = quantity(gold), quantity(prediction)
    if g is None or p is None:
        return gold.casefold() == prediction.casefold()
    (g_text, g_unit, g_scale), (p_text, p_unit, p_scale) = g, p
    if p_unit == "percent" and g_unit != "percent" and rules.percent == "strict":
        return False
    if g_unit and p_unit and g_unit != p_unit and "percent" not in (g_unit, p_unit):
        return False
    if g_text == p_text:
        return g_scale == p_scale and (g_unit == p_unit or p_unit != "percent")
    g_base, p_base = BASE.fullmatch(g_text), BASE.fullmatch(p_text)
    if p_base or g_base and g_base[1].isalnum() and g_base[1][0].isdigit():
        g_digits, p_digits = ((m[1], m[2] or m[3]) if m else (t, "10") for m, t in ((g_base, g_text), (p_base, p_text)))
        return g_digits == p_digits                     # a value in another base is not the answer in this one
    g_value, p_value = number(g_text), number(p_text)
    if g_value is not None and p_value is not None:
        g_value, p_value, point = g_value * g_scale, p_value * p_scale, "." in g_text + p_text
        if g_unit == "percent" != p_unit and rules.percent != "drop":           # '50' or '0.5' for the gold '50\%'
            return close(g_value, p_value, rules, point) or close(g_value / 100, p_value, rules, point)
        return close(g_value, p_value / 100 if p_unit == "percent" != g_unit else p_value, rules, point)
    if WORDS.fullmatch(g_text) or WORDS.fullmatch(p_text):
        return g_text.casefold().replace(" ", "") == p_text.casefold().replace(" ", "")         # \text{even}, Even
    if len(g_text) == len(p_text) == 1:         # 'A' is not 'a', which math-verify would accept
        return False
    if g_scale != p_scale or p_value is not None and letters(g_text) - {"e", "i"} or g_value is not None and (
            letters(p_text) - {"e", "i"} or RELATION.search(p_text)):
        return False
    return cas(g_text, p_text, rules) if askable(g_text, p_text) else False


# ---------------------------------------------------------------- structure: lists, intervals, sets, equations
COMMA = re.compile(r",|;| ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) ?")
EQUALS = re.compile(r"=|\\approx ?")
CUP = re.compile(r"\\cup ?")
MATRIX = re.compile(r"([(\[|]?)\\begin\{([pbvBV]?matrix|smallmatrix|array)\}(?:\{[lcr| ]+\})?(.*)\\end\{\2\}([)\]|]?)",
                    re.DOTALL)
ROW = re.compile(r"\\\\(?:\[[0-9.]+[a-z]{2}\])?")
SYMBOL = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\{[^{}]*\}|[0-9A-Za-z]))?'?(?:\([a-z0-9](?:,[a-z0-9])*\))?")
MEMBER = re.compile(r"(?:[A-Za-z](?:\([a-z]\))?|\([a-z](?:,[a-z])+\)) ?\\in(?![a-z]) ?")

# What may stand before '=' without changing the answer: the name of one quantity, ...
INDEX = r"(?:_(?:\{[^{}]*\}|[0-9A-Za-z]))?"
NAME = re.compile("|".join((
    SYMBOL.pattern, r"[A-Z]{2,4}|[A-Z][a-z]{2,}", r"\[[A-Z]{3,6}\]",                         # AB, Area, [ABC]
    rf"(?:m ?)?\\(?:angle|measuredangle|triangle) ?[A-Z]{{1,3}}{INDEX}",
    rf"\\(?:vec|overrightarrow|overline|hat|widehat|bar|tilde|mathcal)(?: [A-Za-z]|\{{[A-Za-z]{{1,3}}{INDEX}\}})",
    rf"\|(?:[A-Za-z]{INDEX}|[A-Z]{{2}}|\\vec\{{[a-z]\}})\|",
    r"\\text\{(?![^{}]*\b(?:[Nn]ot?|none|never|wrong|false)\b)[^{}=<>]*\} ?(?:[A-Za-z]|\([A-Za-z]+\))?",
    r"[A-Za-z](?:\^\{-1\})?\((?:[A-Z]|\\cup ?|\\cap ?|[0-9.,|]|[a-z]\([0-9]\))+\)",      # P(A\cup B), f(g(2))
    r"[A-Z]\([A-Z](?:[<>=]|\\[lg]e ?)[0-9]+\)|[a-zA-Z]\^\{-1\}\([a-z]\)")))                # P(X=2), f^{-1}(x)
# ... in a prediction whose right side is a number also a combination of letters (m+n, 100a+b, ab, \frac{m}{n}), ...
TERM = rf"(?:10{{1,3}})?(?:(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta) ?){INDEX}(?:\^[0-9])?)+"
COMBINATION = re.compile(rf"{TERM}(?:[-+:/]{TERM})*|\\frac\{{{TERM}\}}\{{{TERM}\}}")
# ... and before a set, a tuple or a matrix also products, powers and set operations of capitals
CAPITALS = re.compile(r"[A-Z](?:\^(?:\{[^{}]*\}|[0-9A-Za-z]))?(?:(?:[-+]|\\(?:cup|cap|times|setminus|cdot) ?)?"
                      r"[A-Z](?:\^(?:\{[^{}]*\}|[0-9A-Za-z]))?)*")
POINT = re.compile(r"([A-Z](?:_[0-9])?'?)([(].*[)])", re.DOTALL)
LABEL = re.compile(r"(\\text\{[^{}]*[:=]\}|[A-Z]:)(.+)", re.DOTALL)
FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln)(?![a-z])")


def structure(text):
    """Return (kind, brackets, elements): scalar, list, set, tuple (intervals too), union, matrix or determinant"""
    text = MEMBER.sub("", text, count=1) if MEMBER.match(text) else text
    text = text[1:-1] if text[:1] == "{" and closes_at(text) == len(text) - 1 else text
    if (m := MATRIX.fullmatch(text)) and m[1] + m[4] in ("", "()", "[]", "||") and "\\begin" not in m[3]:
        rows = [row.split("&") for row in ROW.split(m[3].strip().removesuffix("\\\\"))]
        kind = "determinant" if m[1] == "|" or m[2][0] in "vV" else "matrix"
        return kind, str([len(row) for row in rows]), [cell.strip() for row in rows for cell in row]
    parts = split_top(text, COMMA)
    parts = [part for i, part in enumerate(parts) if part or not 0 < i < len(parts)]            # '1, and 2'
    parts = [signed for part in parts for signed in ((part.replace("\\pm", "+"), part.replace("\\pm", "-"))
                                                     if part.count("\\pm") == 1 else (part,))]
    parts = [part[1:] if part[:1] == "+" else part for part in parts]
    if len(parts) > 1:
        return "list", "", parts
    text = parts[0]
    union = split_top(text, CUP)
    if len(union) > 1:
        return "union", "", union
    if text.startswith("\\{") and text.endswith("\\}") and closes_at(text[1:]) == len(text) - 2:
        return "set", "", split_top(text[2:-2], COMMA)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closes_at(text) == len(text) - 1:
        inside = split_top(text[1:-1], COMMA)
        if len(inside) > 1 or text[0] == "[":
            return "tuple", text[0] + text[-1], inside
    return "scalar", "", [text]


def named(text):
    """Split a named tuple, set or matrix: '(x,y)=(1,2)' -> (('x', 'y'), '(1,2)'); else (None, text)"""
    if (m := POINT.fullmatch(text) or LABEL.fullmatch(text)) and structure(m[2])[0] not in ("scalar", "list"):
        return m[1], m[2]
    left, _, body = text.partition("=")
    if not left or not body or left.count("{") != left.count("}"):
        return None, text
    kind, _, elements = structure(body)
    if kind == "scalar" or kind == "list" and body[0] != "{":
        return None, text
    if NAME.fullmatch(left) or CAPITALS.fullmatch(left):
        return left, body
    left_kind, _, names = structure(left)
    distinct = len(names) > 1 and len({*names}) == len(names) == len(elements) and all(map(SYMBOL.fullmatch, names))
    return (tuple(names), body) if distinct and left_kind == kind in ("tuple", "matrix", "set") else (None, text)


FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
RELATIONS = re.compile(r"(<|>|\\(?:le|ge|ne)(?![a-z]) ?)")
REALS = re.compile(r"\\mathbb\{R\}(?:(?:\\setminus|\\backslash|-) ?\\\{(.+)\\\})?|(?:all )?real(?:s| numbers)", re.I)
AND = re.compile(r"(?<![a-zA-Z\\])and(?![a-zA-Z])")


def interval(text):
    """Read 'x>3' -> ('x', '(3,\\infty)'), '\\mathbb{R}' -> ('', '(-\\infty,\\infty)'); None for another text."""
    if (m := REALS.fullmatch(MEMBER.sub("", text, count=1))):
        gaps = split_top(m[1], COMMA) if m[1] else []
        if len(gaps) > 1 and None in [number(gap) for gap in gaps]:
            return None
        ends = ["-\\infty", *(sorted(gaps, key=number) if len(gaps) > 1 else gaps), "\\infty"]
        return "", "\\cup".join(f"({low},{high})" for low, high in zip(ends, ends[1:], strict=False))
    if not AND.search(text) and len(parts := split_top(text, COMMA)) > 1:               # x<1 or x>3
        found = [interval(part) for part in parts]
        one_name = None not in found and len({name for name, _ in found}) == 1
        return (found[0][0], "\\cup".join(body for _, body in found)) if one_name else None
    parts = [part.strip() for part in RELATIONS.split(text)]
    if len(parts) > 1 and parts[1] in (">", "\\ge"):
        parts = [FLIPPED.get(part, part) for part in reversed(parts)]                    # 'x > 3' as '3 < x'
    signs, low, first, second, high = parts[1::2], "-\\infty", "<", "<", "\\infty"
    if len(parts) == 5:
        low, first, name, second, high = parts
    elif len(parts) == 3 and unknown(parts[0]):
        name, second, high = parts
    elif len(parts) == 3:
        low, first, name = parts
    if len(parts) not in (3, 5) or not (unknown(name) and low and high) or letters(low + high) - {"e"} or "=" in text:
        return None
    if signs == ["\\ne"]:
        bound = high if name == parts[0] else low
        return name, f"(-\\infty,{bound})\\cup({bound},\\infty)"
    if not {*signs} <= {"<", "\\le"}:
        return None
    return name, f"{'(' if first == '<' else '['}{low},{high}{')' if second == '<' else ']'}"


def unknown(text):
    return SYMBOL.fullmatch(text) and text not in ("e", "i", "\\pi", "\\infty")


def same_form(gold, prediction):
    """
    Return both sides without what only names or spells them: '(x,y)=(1,2)' for '(1,2)', 'x>3' for '(3,\\infty)'. None
    if the two names contradict each other.
    """
    (g_name, g_body), (p_name, p_body) = named(gold), named(prediction)
    for names, body, other in ((g_name, g_body, prediction), (p_name, p_body, gold)):
        if isinstance(names, tuple) and structure(other)[0] == "list" and other.count("=") == len(names):     # x=1,y=2
            listed = ",".join(f"{name}={value}" for name, value in zip(names, structure(body)[2], strict=True))
            return (listed, prediction) if other is prediction else (gold, listed)
    kinds = {structure(g_body)[0], structure(p_body)[0]}
    if len(kinds) == 1 or kinds == {"list", "set"}:
        if isinstance(g_name, tuple) and isinstance(p_name, tuple) and {*g_name} == {*p_name} and p_body[0] in "([":
            values = dict(zip(p_name, structure(p_body)[2], strict=True))
            p_body, p_name = p_body[0] + ",".join(values[name] for name in g_name) + p_body[-1], g_name
        words = any("\\text" in name for name in (g_name or "", p_name or ""))
        if g_name and p_name and g_name != p_name and type(g_name) is type(p_name) and not words:
            return None
        gold, prediction = g_body, p_body
    g_range, p_range = interval(g_body), interval(p_body)
    if (g_range or p_range) and all(found or structure(body)[0] in ("tuple", "union")
                                    for found, body in ((g_range, g_body), (p_range, p_body))):
        (g_name, gold), (p_name, prediction) = g_range or ("", g_body), p_range or ("", p_body)
        return None if g_name and p_name and g_name != p_name else (gold, prediction)
    return gold, prediction


def choice(text):
    """Split '(C) 12', 'C. 12' or '\\text{C. } 12' -> ('C', '12'), else ('', text)"""
    m = CHOICE.fullmatch(text)
    return (m[1] or m[2] or m[3], m[4]) if m and not LETTER.fullmatch(m[4]) and len(split_top(m[4], COMMA)) == 1 and (
        m[1] or m[4][0] not in "-+*/^_|=<>&") else ("", text)


CHOICE = re.compile(r"(?:\\text\{\(?([A-J])[.):]+\}|\(([A-J])\)|([A-J])[.:)]) ?(.+)", re.DOTALL)
LETTER = re.compile(r"\(?[A-J]\)?")
BLANK = re.compile(r"(?<![0-9.]) | (?![0-9.])")  # one that separates no two numbers: 'e^{2 i t}'


def compare(gold, prediction, rules, cas):
    """Return True, False, or what cas(gold, prediction, rules) says of scalars that strings leave open."""
    if len(prediction) > max(MAX_ANSWER, 2 * len(gold)):
        return False
    g, p = tidy(gold), tidy(prediction)
    if not g or not p or nesting(p) > max(MAX_DEPTH, nesting(g)):
        return False
    (g_choice, g_rest), (p_choice, p_rest) = choice(g), choice(p)
    if p_choice and not g_choice and p_choice not in letters(g) - {g}:
        if g in (p_choice, f"({p_choice})"):
            return True
        p = p_rest if not LETTER.fullmatch(g) else p
    elif g_choice and not p_choice:
        if p in (g_choice, f"({g_choice})"):
            return True
        g = g_rest
    g_number, p_number = without_thousands(g, gold), without_thousands(p, prediction)
    right = BLANK.sub("", g) == BLANK.sub("", p) or compare_structure(g_number, p_number, rules, cas)
    if not right and g == g_number and p != p_number:                   # '100,200' for the gold '100, 200': a list
        right = compare_structure(g, p, rules, cas)
    return right


def without_thousands(text, raw):
    """Remove the commas of 10,000, unless the raw text has signs of a list."""
    if "," not in text or re.search(r"[(\[]|\\\{|,\s|,\\[ ;:q]|,\s*\$|\$\s*,", raw):
        return text
    return THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)


def nesting(text):
    """Return how deep the brackets of a text are nested."""
    return max(accumulate(((char in "([{") - (char in ")]}") for char in text), initial=0))


NAMED = re.compile(r"[=<>]|\\(?:[lgn]e|mathbb)(?![a-z])|\A[A-Z](?:[_'0-9]{0,3}\(|:)|\A\\text\{|\A(?:all )?real")


def compare_structure(gold, prediction, rules, cas):
    if gold == prediction:
        return True
    if NAMED.search(gold) or NAMED.search(prediction):
        if (bare := same_form(gold, prediction)) is None:
            return False
        if bare[0] == bare[1]:
            return True
        gold, prediction = bare
    (g_kind, g_brackets, g), (p_kind, p_brackets, p) = structure(gold), structure(prediction)
    if g_kind == p_kind == "scalar":
        return compare_equation(g[0], p[0], rules, cas)
    if g_kind != p_kind and {g_kind, p_kind} != {"list", "set"}:
        return False
    if len(g) != len(p) or len(g) > 50 or g_brackets != p_brackets and (
            rules.brackets or g_kind in ("matrix", "determinant")):
        return False
    if g_kind in ("tuple", "matrix", "determinant") or rules.ordered and g_kind == "list":
        return every(compare_structure(a, b, rules, cas) for a, b in zip(g, p, strict=True))
    return same_elements(g, p, rules, cas)


def every(verdicts):
    """Compute all() over True, False and None: one False decides, None stays open."""
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def same_elements(gold, prediction, rules, cas):
    """Tell whether both have the same elements in any order, each as often; None if unsure."""
    left, unsure = list(prediction), False
    for g in gold:
        verdicts = []
        for i, p in enumerate(left):
            verdicts.append(compare_structure(g, p, rules, cas))
            if verdicts[-1]:
                del left[i]
                break
        else:
            if None not in verdicts:
                return False
            unsure = True
    return None if unsure else True


def compare_equation(gold, prediction, rules, cas):
    """Compare equations. 'x=5' and 'm+n=5' are 5: the left side names a quantity; '6=5', '2x=5' and '4=x=5' are not."""
    g, p = split_top(gold, EQUALS), split_top(prediction, EQUALS)
    if len(g) == 2 and not g[0]:                                # the gold '\\approx 8.24'
        return compare_structure(g[1], p[-1], rules, cas) if len(p) == 1 or not p[0] else False
    if len(p) > 1 and not all(p):
        return False
    if len(g) == len(p) == 2:
        if g[0] == p[0]:
            return compare_structure(g[1], p[1], rules, cas)
        if NAME.fullmatch(g[0]) and NAME.fullmatch(p[0]) and g[1] == p[1]:
            return False
        return cas(gold, prediction, rules) if askable(gold, prediction) else False
    if len(p) > 1:                                              # 'x=2+3=5': each side must be the answer
        if len(g) > 1:
            return False
        sides = p[1:]
        if len(p) == 2 and FUNCTION.search(p[0]) and not letters(p[0]):     # '\\sin 30^\\circ = 1/2', if that is true
            sides = [*sides, p[0]]
        elif not NAME.fullmatch(p[0]) and not (                 # 'x^2+y^2=5' is a curve
                COMBINATION.fullmatch(p[0]) and len(letters(p[0])) > 1 and letters(p[0]) - {"x", "y", "z"}
                and not letters("".join(sides)) - {"e", "i"}):
            return False
        return every(compare_structure(gold, side, rules, cas) for side in sides)
    if len(g) > 1:
        sides = [g[-1]] if NAME.fullmatch(g[0]) else [] if letters("".join(g)) else g
        verdicts = [compare_structure(side, prediction, rules, cas) for side in sides]
        return True if True in verdicts else None if None in verdicts else False
    return compare_scalar(gold, prediction, rules, cas)


# ---------------------------------------------------------------- the verdict, and what sympy may see
RISKY = re.compile(r"!|\\(?:sum|int|prod|lim|d?binom|choose|iint|oint|bigcup|infty)(?![a-z])|(?:/|\})\{?0+(?![.0-9])")
LONG = re.compile(r"[0-9]{31}|\^\{?[-+(]*[0-9]{4}")
NESTED_POWER = re.compile(r"\^[({][^(){}^]*\^|\^[^(){}]\^|\^\{[^}]*\^")
PRINTABLE = re.compile(r"[ -~\n]*")


def askable(gold, prediction):
    """Tell whether sympy may see this. Refuse within microseconds most of what could hang it (the rest is killed)."""
    return bool(PRINTABLE.fullmatch(prediction) and PRINTABLE.fullmatch(gold) and not LONG.search(prediction)
                and not (NESTED_POWER.search(prediction) and not NESTED_POWER.search(gold))
                and not (RISKY.search(prediction) and not RISKY.search(gold))
                and re.search(r"[0-9A-Za-z]", prediction) and "\\text" not in prediction)


def decide(golds, prediction, rules, cas=None):
    """Decide whether the prediction equals one of the golds: True, False, or None where only `cas` could tell."""
    verdicts = []
    for gold in golds:
        verdicts.append(compare(gold, prediction, RULES[rules], cas or (lambda *_: None)))
        if verdicts[-1]:
            return True
    return None if None in verdicts else False
