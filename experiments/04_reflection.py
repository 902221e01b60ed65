"""
Do words of reflection rise, then fall slightly once one difficulty is mastered, and does a mixture with hard problems
keep them?
"""
from experiments.harness import Claim, arm, early, late, main, percent_more, smooth

SECTION = "3.2.3, 4"
SURVEY = "Reflection rises, then falls slightly as the model fits one difficulty; hard problems are to keep it."
FIGURE = "3.2.3(9)"
SHOWN = ("reflection_words_survey",)
ARMS = {"easy": arm("countdown_easy"), "mixed": arm("countdown_mixed")}


def words(runs, name):
    return runs[name]["reflection_words_survey"]


def fall(runs, name):
    """Return by how many % the end lies below the highest point, smoothed over 5 steps."""
    return -percent_more(late(words(runs, name)), max(smooth(words(runs, name), 5)))


CLAIMS = [
    Claim("easy alone: rise from the start to the highest, %",
          lambda runs: percent_more(max(smooth(words(runs, "easy"), 5)), early(words(runs, "easy"), 2)), above=10.0),
    Claim("easy alone: fall from the highest to the end, %", lambda runs: fall(runs, "easy"), above=5.0),
    Claim("fall of the easy alone less that of the mixture, points",
          lambda runs: fall(runs, "easy") - fall(runs, "mixed"), above=0.0),
]

if __name__ == "__main__":
    main(__spec__.name)
