"""
Scores per second of each reward, on responses of realistic length, one core.

    python bench/rewards.py [--chars 6000] [--seconds 1.0] [--out results/X]

typical    a right and a wrong completion in the published form, --chars of thinking (6,000 characters ~ 1,500 tokens)
long       the same with 120,000 characters (~ 32k tokens)
hostile    120,000 characters of what is slowest for this reward, of ten kinds of junk
sympy      answers that strings and fractions cannot decide, each another, through one and two grader processes
The workers are started before the clock runs.
"""

import time

from common import parser_of, save  # puts the repository before this folder: its rewards.py is the one that is meant

import rewards

RIGHT = {"countdown": {"target": 98, "numbers": [44, 19, 35]}, "math": "5",
         "kk": {"names": ["Zoey", "Oliver", "Ava"], "solution": [True, False, True], "solution_text_format":
                "(1) Zoey is a knight\n(2) Oliver is a knave\n(3) Ava is a knight"}}
WRONG = {"countdown": {"target": 99, "numbers": [44, 19, 36]},
         "math": "6", "kk": {**RIGHT["kk"], "solution": [False] * 3}}
THINKING = "Let me try 44 + 19 = 63, and then $x = \\frac{1}{2}$; no, that is not right. Zoey said Oliver lies.\n"
JUNK = ("{", "}", "\\boxed{", "\\boxed{5}", "<answer>", "</think>", "<think></think>", "$", "answer ", "</reasoning> ")


def completion(reward, chars):
    """Return a perfect response with that many characters of thinking."""
    task = rewards.READS[reward]
    response, _ = rewards.perfect_response(reward, RIGHT[task], prefilled=task != "math")
    return response.replace("I worked it out.", (THINKING * (chars // len(THINKING) + 1))[:chars])


def per_second(reward, text, seconds):
    """Score a text against its answer and another one, in turns."""
    task, count, start = rewards.READS[reward], 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        rewards.score(reward, text, (RIGHT, WRONG)[count % 2][task], num_tokens=1500, max_tokens=4096)
        count += 1
    return count / spent


def sympy_per_second(num_workers, count=300):
    scorer = rewards.Scorer(num_workers)
    for i in range(num_workers):
        scorer.submit(i, "math", f"\\boxed{{\\sqrt{{{8 + i}}}}}", r"2\sqrt{2}")
    scorer.collect()
    start = time.perf_counter()
    for i in range(count):
        scorer.submit(i, "math", f"\\boxed{{\\frac{{\\sqrt{{{i + 2}}}}}{{3}} + {i % 7}}}", r"2\sqrt{2}")
    scorer.collect(budget_s=600)
    spent = time.perf_counter() - start
    scorer.close()
    return count / spent


def main():
    parser = parser_of(__doc__, "X.md gets the table")
    parser.add_argument("--chars", type=int, default=6000, help="characters of thinking in a typical response")
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    args = parser.parse_args()
    lines = ["| reward | typical, scores/s | long, scores/s | hostile, scores/s | slowest junk |",
             "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)

    def add(*cells):
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)

    for reward in rewards.REWARDS:
        typical, long = (per_second(reward, completion(reward, chars), args.seconds) for chars in (args.chars, 120_000))
        hostile = {junk: per_second(reward, "</think><answer>\\boxed{" + junk * (120_000 // len(junk)) + "}",
                                    args.seconds / 5) for junk in JUNK}
        worst = min(hostile, key=hostile.get)
        add(reward, f"{typical:,.0f}", f"{long:,.0f}", f"{hostile[worst]:,.0f}", f"`{worst}`")
    for num_workers in (1, 2):
        add(f"math, sympy needed, {num_workers} grader process{'es' * (num_workers > 1)}",
            f"{sympy_per_second(num_workers):,.0f}", "", "", "")
    save(args.out, lines, "one core")


if __name__ == "__main__":
    main()
