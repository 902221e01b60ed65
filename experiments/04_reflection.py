"""
Do words of reflection rise, then fall slightly once one difficulty is mastered, and does a mixture with hard problems
keep them?
"""
from experiments.harness import Claim, arm, early, fall, fall_from_before, main, percent_more, smooth

SECTION = "3.2.3, 4"
SURVEY = "Reflection rises, then falls slightly as the model fits one difficulty; hard problems are to keep it."
FIGURE = "3.2.3(9), 3.2.4(4)"
SHOWN = ("reflection_words_survey",)
ARMS = {"easy": arm("countdown_easy"), "mixed": arm("countdown_mixed")}


def words(runs, name):
    return runs[name]["reflection_words_survey"]


CLAIMS = [
    Claim("easy alone: rise from the start to the highest, %",
          lambda runs: percent_more(max(smooth(words(runs, "easy"), 5)), early(words(runs, "easy"), 2)), above=10.0),
    Claim("easy alone: fall from the highest to the end, %", lambda runs: fall(words(runs, "easy")), above=5.0),
    Claim("fall of the easy alone less that of the mixture, points",
          lambda runs: fall(words(runs, "easy")) - fall(words(runs, "mixed")), above=0.0),
]

ADDED = [
    Claim("easy alone: fall from the highest before the last 10 steps, %",
          lambda runs: fall_from_before(words(runs, "easy")), above=5.0),
    Claim("the same, less that of the mixture, points",
          lambda runs: fall_from_before(words(runs, "easy")) - fall_from_before(words(runs, "mixed")), above=0.0),
]

NOTE = """
"Too high" or "too low" stands behind each failed try, so these words count failed tries: this and 14 look at the same
two runs with nearly the same measure. The survey's finding is of Knights and Knaves (3.2.3) and of PPO on Countdown
(3.2.4). The highest point is picked from a noisy curve, and may lie in the last steps: the lines that were added look
for it before the last 10.
"""

if __name__ == "__main__":
    main(__spec__.name)
