"""
Knights and Knaves: who tells the truth? Logic-RL's puzzles byte for byte, and the reader of answers.

    knights_and_knaves(3, start=100, count=900)     Logic-RL's training puzzles of 3 people
    read_roles("Zoey is a knight, ...", names)      -> {"Zoey": "knight", ...}
"""

import re

import numpy as np

from tasks.rows import BadRow, Source, clean_text

NAMES = """Emma Liam Olivia Noah Ava Ethan Sophia Mason Isabella William Mia James Charlotte Benjamin Amelia Lucas
Harper Henry Evelyn Alexander Abigail Michael Emily Daniel Elizabeth Jacob Sofia Logan Avery Jackson Ella Sebastian
Scarlett Jack Grace Aiden Chloe Owen Victoria Samuel Riley Matthew Aria Joseph Lily Luke Aurora David Zoey Oliver
Penelope""".split()

SAYINGS = [  # {N} the name, {C} the content
    "{N} said that {C}.", "{N} told you that {C}.", '{N} said, "{C}."', '{N} stated, "{C}".',
    'According to {N}, "{C}".', "In {N}'s words: \"{C}\".", '{N} remarked, "{C}".', '"{C}," {N} declared.',
    '{N} was heard saying, "{C}".', "{N} expressed that {C}.", '"{C}" - {N}.', 'As {N} put it, "{C}".',
    '{N} asserted: "{C}".', '"{C}," {N} mentioned.', '{N} commented, "{C}".', 'In a statement by {N}: "{C}".',
    '{N} noted, "{C}".', '"{C}," {N} claimed.',
]


def knights_and_knaves(n_people, start, count):
    """
    Make the puzzles number start .. start+count-1 of n_people (2..8), equal to the published ones byte for byte.

    Make rows {"quiz", "names", "solution", "solution_text_format", "index"}: solution is one bool per name (True: a
    knight), solution_text_format the lines "(1) Zoey is a knight". Index 0-99 is the official test split and
    100-1099 the train split of K-and-K/knights-and-knaves. An own, shorter implementation of the algorithm of
    AlphaPav/mem-kk-logic @35385cf, lib_kk.py (MIT); the order of the draws is part of the data.
    """
    if not 2 <= n_people <= 8:
        raise ValueError(f"knights_and_knaves knows 2 to 8 people, got {n_people}")
    if start < 0 or count < 0:
        raise ValueError(f"knights_and_knaves wants start and count >= 0, got {start} and {count}")
    puzzles = find_puzzles(n_people, start + count)
    return [make_row(n_people, index, *puzzles[index]) for index in range(start, start + count)]


def make_row(n_people, index, statements, solution):
    """Write a puzzle as text. Names and sayings have a random stream of their own, one per index."""
    rng = np.random.default_rng(1234 + index)
    names = [str(name) for name in rng.choice(NAMES, size=n_people, replace=False)]
    said = [str(rng.choice(SAYINGS)) for _ in names]
    people = ", ".join(names[:-1]) + ", and " + names[-1]
    quiz = (
        "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves "
        f"always lie. You meet {n_people} inhabitants: {people}."
    )
    for name, saying, statement in zip(names, said, statements, strict=False):
        quiz += " " + saying.replace("{N}", name).replace("{C}", say(statement, names))
    return {"quiz": quiz + " So who is a knight and who is a knave?", "names": names, "solution": list(solution),
            "solution_text_format": written(names, solution), "index": index}


def say(statement, names):
    """Write a statement as a sentence."""
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return f"{names[parts[0]]} is a {role(kind == 'telling-truth')}"
    left, *right = [say(part, names) for part in parts]
    if kind == "not":
        return left.replace(" is a ", " is not a ")
    return {"and": f"{left} and {{}}", "or": f"{left} or {{}}", "->": f"If {left} then {{}}",
            "<=>": f"{left} if and only if {{}}"}[kind].format(*right)


FOUND = {}  # n_people -> (generator, puzzles found so far): a longer call continues where a shorter one stopped


def find_puzzles(n_people, count):
    """Return the first `count` puzzles of one size, [(statements, solution)]: one random stream per size, in order."""
    if n_people not in FOUND:
        FOUND[n_people] = (search(n_people), [])
    puzzles, found = FOUND[n_people]
    while len(found) < count:
        found.append(next(puzzles))
    return found


def search(n_people):
    """Yield the puzzles of one size: random statements that exactly one world fits."""
    rng = np.random.default_rng(1234)
    seen = set()
    worlds = knight_worlds(n_people)
    while True:
        statements = tuple(draw_statement(rng, n_people, speaker, 2) for speaker in range(n_people))
        if statements in seen:
            continue
        possible = (1 << (1 << n_people)) - 1
        for speaker, statement in enumerate(statements):  # a knight exactly when the statement is true
            possible &= ~(worlds[speaker] ^ truth(statement, worlds))
        if possible.bit_count() == 1:
            seen.add(statements)
            world = possible.bit_length() - 1
            yield statements, [bool(world >> person & 1) for person in range(n_people)]


def draw_statement(rng, n_people, speaker, depth):
    """Draw a statement, as nested tuples. A leaf still draws its kind first, because the original does."""
    kind = rng.integers(0, 6)
    if depth == 1 or kind == 0:
        while True:
            lying, person = rng.integers(0, 2), int(rng.integers(0, n_people))
            if not (lying and person == speaker):  # nobody says "I am a knave"
                return ("lying" if lying else "telling-truth", person)
    if kind == 1:
        return ("not", draw_statement(rng, n_people, speaker, depth - 1))
    left = right = draw_statement(rng, n_people, speaker, depth - 1)
    while right == left:
        right = draw_statement(rng, n_people, speaker, depth - 1)
    return (("and", "or", "->", "<=>")[kind - 2], left, right)


def knight_worlds(n_people):
    """Return for each person the set of worlds in which they are a knight: bit w of the integer for world w of 2^n."""
    return [sum(1 << w for w in range(1 << n_people) if w >> person & 1) for person in range(n_people)]


def truth(statement, worlds):
    """Return the set of worlds in which a statement is true (only its low 2^n bits count)."""
    kind, *parts = statement
    if kind == "telling-truth":
        return worlds[parts[0]]
    if kind == "lying":
        return ~worlds[parts[0]]
    left, *rest = [truth(part, worlds) for part in parts]
    if kind == "not":
        return ~left
    right = rest[0]
    return {"and": left & right, "or": left | right, "->": ~left | right, "<=>": ~(left ^ right)}[kind]


# ---------------------------------------------------------------- answers

MAX_ANSWER = 10_000  # characters


def read_roles(text, names):
    """
    Read who is what in an answer such as "(1) Zoey is a knight (2) ...", by Logic-RL's rules.

    Return ({name: "knight" | "knave"}, [(rule, finding)]). The words knight and knave must occur once a person, else
    nobody is read.
    """
    count = 0 if len(text) > MAX_ANSWER else text.lower().count("knight") + text.lower().count("knave")
    notes = [("'knight' and 'knave' occur", f"{count} times for {len(names)} people")]
    roles = {}
    for name in names if count == len(names) else ():
        match = re.search(rf"\b{re.escape(name)}\b\s+is\s+a\s+\b(knight|knave)\b", text, re.IGNORECASE)
        notes.append((f"'{name} is a ...'", match[1].lower() if match else "not found"))
        roles |= {name: match[1].lower()} if match else {}
    return roles, notes


def is_right(text, answer):
    """Judge an answer -> (right, [(rule, finding)]); right is None where not everybody's role can be read."""
    names = answer["names"]
    roles, notes = read_roles(text, names)
    if len(roles) < len(names) or not names:
        return None, notes
    return all(roles[name] == role(knight) for name, knight in zip(names, answer["solution"], strict=False)), notes


def role(is_knight):
    return "knight" if is_knight else "knave"


def written(names, solution):
    """Return the lines "(1) Zoey is a knight" of a solution."""
    return "\n".join(f"({i}) {name} is a {role(knight)}"
                     for i, (name, knight) in enumerate(zip(names, solution, strict=False), start=1))


# ---------------------------------------------------------------- the task: what tasks/__init__.py lists

INDICES = {"train": (100, 900), "test": (1000, 100), "official_test": (0, 100)}  # (first index, count), Logic-RL's
TASK = "kk"
SOURCES = {"kk": Source({split: split for split in INDICES}, argument=":[2-8](-[2-8])?", example="kk:3",
                        uid="kk:{level}")}
SLOTS = {"quiz": (("quiz",), str)}
ANSWER = ("solution_text_format", "names", "solution")  # the fields that a reward compares with


def holds(row):
    """Tell whether the row is such a puzzle."""
    return "solution_text_format" in row


def generate(name, argument, split, limit=None):
    """Make a split of the puzzles of "3" or of "3-7" people; their number is the row's `level`."""
    low, _, high = argument.partition("-")
    sizes = range(int(low), int(high or low) + 1)
    return [complete(row) for n_people in sizes for row in knights_and_knaves(n_people, *INDICES[split])][:limit]


def complete(row):
    """Add the fields that all rows have."""
    return {**row, "question": row["quiz"], "answer": row["solution_text_format"], "level": len(row["names"]),
            "subject": None}


def clean(row, source):
    """Return a row of a file in our form; BadRow with the reason where that cannot be."""
    names, solution, text = row.get("names"), row.get("solution"), row.get("solution_text_format")
    if not (isinstance(names, list) and isinstance(solution, list) and isinstance(text, str)):
        raise BadRow("no names, solution or solution_text_format")
    if len(names) != len(solution) or len(text.splitlines()) != len(names):
        raise BadRow("names, solution and solution_text_format differ in length")
    return complete({**row, "quiz": clean_text(row.get("quiz"), "quiz")})


def answer_of(row):
    """Return what a reward compares with: {"solution_text_format", "names", "solution"}."""
    return {field: row[field] for field in ANSWER}


def check_answer(answer):
    """Raise ValueError unless it is such an answer."""
    if not isinstance(answer, dict) or not set(ANSWER) <= set(answer):
        raise ValueError("answer needs solution_text_format, names and solution")
    names, solution = answer["names"], answer["solution"]
    if not isinstance(names, (list, tuple)) or not isinstance(solution, (list, tuple)):
        raise ValueError("names and solution are lists")
    if not len(names) == len(solution) > 0 or not all(isinstance(name, str) and name for name in names):
        raise ValueError("as many names as roles")
    if written(names, solution) != answer["solution_text_format"]:
        raise ValueError("solution_text_format must say what solution says")


def perfect_answer(answer):
    """Return the text that is right."""
    return answer["solution_text_format"]


def problem_key(row):
    """Return what makes two rows the same problem: the quiz without case and white space."""
    return "".join(row["quiz"].casefold().split())
