"""
The embedded world's boxed arithmetic: sums with a dial, in the answer forms of the systems that were trained on math.

    problems("6", 100, seed=0, split="train")     rows {"question": "7 + 8 - 3 ...", "answer": "12"} with 6 operations
    trace(row, rng, form="boxed")                 one response: step by step or at a guess, then an answer

A level is the number of operations, "2" to "9". All values on the way are whole numbers in 0 ... 99.
"""

import random

from tasks.rows import is_held_out

MAX_VALUE = 99
DRAWS = 20  # as many draws for each row wanted: small levels have fewer problems than that

# How each system asks, in miniature, and how it wants the answer. {steps} is the thinking, {answer} a number.
FORMS = {
    "boxed": ("Please reason step by step , and put your final answer within \\boxed{{}} .\n{question}\n",
              "{steps}\nso \\boxed{{ {answer} }}"),  # SimpleRL, Demystify
    "think_answer": ("Think within <think> </think> tags , answer within <answer> </answer> tags .\n{question}\n",
                     "<think> {steps} </think> <answer> \\boxed{{ {answer} }} </answer>"),  # open-r1
    "reasoning": ("Respond in the format <reasoning> </reasoning> <answer> </answer> .\n{question}\n",
                  "<reasoning>\n{steps}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"),  # Unsloth
    "r1": ("A conversation between User and Assistant .\nUser : {question}\nAssistant : <think>",
           " {steps} </think> <answer> \\boxed{{ {answer} }} </answer>"),  # Dr. GRPO
    "think_boxed": ("{question}\nLet's think step by step and output the final answer within \\boxed{{}} .\n<think>",
                    " {steps} </think> so \\boxed{{ {answer} }}"),  # DeepScaleR
}


def problems(level, count, seed, split="train"):
    """Make `count` different rows {"question", "answer"} with `level` operations. Same arguments, same rows."""
    rng, rows, seen = random.Random(f"{level} {seed} {split}"), [], set()
    for _ in range(DRAWS * count):
        if len(rows) == count:
            break
        value = rng.randint(1, 9)
        question = str(value)
        for _ in range(int(level)):
            b, op = rng.randint(1, 9), rng.choice("+-")
            value = value + b if op == "+" else value - b
            question += f" {op} {b}"
            if not 0 <= value <= MAX_VALUE:
                break
        else:
            if question not in seen and is_held_out(question) == (split == "test"):
                seen.add(question)
                rows.append({"question": question, "answer": str(value)})
    return rows


def prompt(row, form="boxed"):
    return FORMS[form][0].format(question=row["question"])


GUESS = 0.7       # share of the start's traces that look at the question and guess
SLIP = 0.08       # chance that a step gets a wrong value
NOTICED = 0.5     # share of slips that the next words mend: "wait"
MALFORMED = 0.15  # share of traces whose end breaks the form


def trace(row, rng, form="boxed"):
    """
    Write one response, without EOS. Most guess; the others compute step by step, with slips of which half are noticed
    ("wait ...") and mended.
    """
    first, *rest = row["question"].split()
    value, steps = int(first), []
    if rng.random() < GUESS:
        value = max(0, int(row["answer"]) + rng.choice((-3, -2, -1, 0, 1, 2, 3)))
        steps = ["guess"]
    else:
        for op, b in zip(rest[::2], rest[1::2], strict=True):
            right = value + int(b) if op == "+" else value - int(b)
            right = max(0, min(MAX_VALUE, right))  # after a slip it may leave the numbers that have a token
            said = right if rng.random() >= SLIP else max(0, min(MAX_VALUE, right + rng.choice((-2, -1, 1, 2))))
            steps.append(f"{value} {op} {b} = {said}")
            if said != right and rng.random() < NOTICED:
                steps.append(f"wait {value} {op} {b} = {right}")
                said = right
            value = said
    text = FORMS[form][1].format(steps=" ".join(steps), answer=value)
    if rng.random() < MALFORMED:
        mark = next(mark for mark in (" <answer>", "\n<answer>", " \\boxed{") if mark in text)
        head = text.rpartition(mark)[0]
        text = rng.choice([head, f"{head} {value}"])
    return text
