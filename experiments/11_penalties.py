"""
Do penalties on length and repetition shorten the responses without loss, until they are hacked?

Kimi's length reward within each group, with a small weight and a large one, and open-r1's repetition penalty.
"""
from experiments.harness import Claim, arm, late, main, percent_more

SECTION = "2.3.2"
SURVEY = "Penalties on repetition and length keep the thinking short, but may be hacked: short right answers are " \
         "paid for at the cost of branching."
FIGURE = "none"
SHOWN = ("response_len", "correct")
ARMS = {"none": arm("countdown"), "length 0.1": arm("countdown", reward_parts={"kimi_length": 0.1}),
        "length 1": arm("countdown", reward_parts={"kimi_length": 1.0}),
        "repetition": arm("countdown", reward_parts={"repetition": 0.5})}


def shorter(name):
    return lambda runs: -percent_more(late(runs[name]["response_len"]), late(runs["none"]["response_len"]))


def loss(name):
    return lambda runs: 100 * (runs["none"].eval()[-1] - runs[name].eval()[-1])


CLAIMS = [
    Claim("length 0.1: shorter by, %", shorter("length 0.1"), above=5.0),
    Claim("length 0.1: held-out success lost, points", loss("length 0.1"), within=5.0),
    Claim("repetition: shorter by, %", shorter("repetition"), above=5.0),
    Claim("repetition: held-out success lost, points", loss("repetition"), within=5.0),
    Claim("length 1, hacked: held-out success lost, points", loss("length 1"), above=5.0),
]

NOTE = """
Kimi's term is not the survey's: of right answers the shorter one earns more in both, but the survey's punishes short
wrong answers, to keep the search alive, and Kimi's long ones. So a loss of search here does not speak about the
survey's penalty. "Too low try" stands behind each failed try, so a penalty on repeated 3-grams punishes searching
itself. Where success is to stay within 5 points, a gain of more counts as "opposite".
"""

if __name__ == "__main__":
    main(__spec__.name)
