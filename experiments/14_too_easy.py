"""
Does training on too easy problems alone let the thinking shrink, and does a mixture with hard ones prevent it?
"""
from experiments.harness import Claim, arm, late, main, percent_more, smooth

SECTION = "2.3.2, 4"
SURVEY = "Where easy problems are all answered right, the chain of thought degenerates; a mixture prevents it."
FIGURE = "none"
SHOWN = ("think_len", "source/countdown:32/response_len")
ARMS = {"easy": arm("countdown_easy"), "mixed": arm("countdown_mixed")}


def fall(values):
    """Return by how many % the end lies below the highest point, smoothed over 5 steps."""
    return -percent_more(late(values), max(smooth(values, 5)))


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

if __name__ == "__main__":
    main(__spec__.name)
