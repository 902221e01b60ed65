"""
The embedded world's Knights and Knaves: puzzles of 2 to 4 people, and traces of a model that goes through the cases.

    puzzles(3, 100, seed=0, split="train")    rows {"quiz", "names", "solution", "solution_text_format"}
    trace(row, rng, kind="search")            one response: cases until one is consistent, then an answer

Rows and answers have the form of Logic-RL's (tasks/knights_and_knaves.py); the statements are simpler: who is what, or
two of these joined by "and" or "or". A puzzle has exactly one solution.
"""

import itertools
import random

from tasks.knights_and_knaves import role, written
from tasks.rows import is_held_out

NAMES = "Zoey Oliver Emma Liam".split()  # few, always in this order: a small model has to find who is who
DRAWS = 60  # as many draws for each row wanted: small levels have fewer problems than that


def draw_statement(rng, count, speaker):
    """Draw a statement: (joined by, ((person, is a knight), ...)). Nobody says "I am a knave"."""
    leaves = [(person, knight) for person in range(count) for knight in (True, False)
              if not (person == speaker and not knight)]
    joined = rng.choice(("", "and", "or"))
    chosen = rng.sample(leaves, 2 if joined else 1)
    while joined and chosen[0][0] == chosen[1][0]:  # "A is a knight or A is a knave" says nothing
        chosen = rng.sample(leaves, 2)
    return joined, tuple(chosen)


def is_true(statement, world):
    joined, leaves = statement
    found = [world[person] == knight for person, knight in leaves]
    return any(found) if joined == "or" else all(found)


def puzzles(count_people, count, seed, split="train"):
    """Make `count` different puzzles of so many people. The same arguments give the same puzzles."""
    rng, rows, seen = random.Random(f"{count_people} {seed} {split}"), [], set()
    worlds = list(itertools.product((True, False), repeat=count_people))
    for _ in range(DRAWS * count):
        if len(rows) == count:
            break
        said = tuple(draw_statement(rng, count_people, speaker) for speaker in range(count_people))
        fitting = [w for w in worlds if all(is_true(s, w) == w[i] for i, s in enumerate(said))]
        names = [NAMES[i] for i in sorted(rng.sample(range(len(NAMES)), count_people))]
        if len(fitting) != 1 or (key := (said, tuple(names))) in seen:
            continue
        # by the statements alone, so that other names do not hide a training puzzle; of 2 people there are too few
        side = repr(said if count_people > 2 else (said, names))
        if is_held_out(side) == (split == "test"):
            seen.add(key)
            rows.append({"quiz": quiz(said, names), "names": names, "solution": list(fitting[0]),
                         "solution_text_format": written(names, fitting[0]), "said": said})
    return rows


def quiz(said, names):
    return " ".join(f"{name} {sentence(statement, names)} ." for name, statement in zip(names, said, strict=True))


def sentence(statement, names):
    """Write "says Emma knight or Zoey knave"."""
    joined, leaves = statement
    return "says " + f" {joined} ".join(f"{names[person]} {role(knight)}" for person, knight in leaves)


def prompt(row):
    """Write the prompt; it prefills the opening tag."""
    return f"{row['quiz']}\n<think>"


# As in countdown.py: the chance to give up after the first contradiction and after a later one, bad ends, rambling.
KINDS = {
    "search": dict(give_up_first=0.7, give_up_later=0.05, malformed=0.25, rambling=0.1),
}


def case(world, row):
    """
    Write what the trace says of one case -> (text, whether it fits): what is supposed, then each speaker until the
    first contradiction. A statement is repeated, then come the roles supposed of those it names, with what that makes
    of it: each word can be copied, or follows from words that stand close by.
    """
    names = row["names"]
    text = " suppose" + "".join(f" {name} {role(knight)}" for name, knight in zip(names, world, strict=True)) + " :"
    for speaker, statement in enumerate(row["said"]):
        text += f" {names[speaker]} {sentence(statement, names)} :"
        for person, knight in statement[1]:
            text += f" {names[person]} {role(world[person])} {str(world[person] == knight).lower()}"
        truth = is_true(statement, world)
        text += f" = {str(truth).lower()} {names[speaker]} {role(world[speaker])}"
        if truth != world[speaker]:
            return text + " contradiction", False
        text += " ok"
    return text, True


MAX_CASES = 8  # more would not fit into 512 tokens


def trace(row, rng, kind="search"):
    """Write one response, without EOS: cases in random order until one fits or the trace gives up; then its answer."""
    how, text, give_up = KINDS[kind], "", KINDS[kind]["give_up_first"]
    worlds = list(itertools.product((True, False), repeat=len(row["names"])))
    rng.shuffle(worlds)
    for cases, world in enumerate(worlds, 1):
        said, fits = case(world, row)
        text += said
        if fits or cases == MAX_CASES or rng.random() < give_up:
            break
        text += " try again"
        give_up = how["give_up_later"]
    answer = f" <answer>\n{written(row['names'], world)}\n</answer>"
    if rng.random() < how["malformed"]:
        return text + rng.choice([answer, f" so {' '.join(written(row['names'], world).split())}"])
    text += f" </think>{answer}"
    if rng.random() < how["rambling"]:
        for other in worlds[:2]:
            text += case(other, row)[0]
    return text
