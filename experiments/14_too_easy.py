"""
Does training on too easy problems alone let the thinking shrink, and does a mixture with hard ones prevent it?
"""
from experiments.harness import Claim, arm, fall, fall_from_before, main

SECTION = "2.3.2, 3.2.4, 4"
SURVEY = "Where easy problems are all answered right, the chain of thought degenerates; a mixture prevents it."
FIGURE = "none"
SHOWN = ("think_len", "correct")
ARMS = {"easy": arm("countdown_easy"), "mixed": arm("countdown_mixed")}

CLAIMS = [
    Claim("easy alone: fall of the thinking from its highest to the end, %",
          lambda runs: fall(runs["easy"]["think_len"]), above=10.0),
    Claim("responses to easy problems: fall when alone less fall in the mixture, points",
          lambda runs: fall(runs["easy"]["response_len"]) - fall(runs["mixed"]["source/countdown:32/response_len"]),
          above=0.0),
    Claim("held-out success on hard problems, mixture less easy alone, points",
          lambda runs: 100 * (runs["mixed"].eval("eval/countdown:52/correct")[-1]
                              - runs["easy"].eval("eval/countdown:52/correct")[-1]), above=0.0),
]

NOTE = """
In 3.2.4 the survey calls the same shrinking a gain: fewer mistakes. A shorter search with the same success is no
degeneration. The mixture sees half as many easy problems a step, and trains on the kind of problem that the third
claim asks about. This and 04 look at the same two runs. The highest point may lie in the last steps: the line that
was added looks for it before the last 10.
"""

ADDED = [
    Claim("easy alone: fall of the thinking from its highest before the last 10 steps, %",
          lambda runs: fall_from_before(runs["easy"]["think_len"]), above=10.0),
]

if __name__ == "__main__":
    main(__spec__.name)
