"""
Do one process and two give the same run, and is two faster?

The survey: 8 GPUs and 32. Here the two processes of torchrun share the two cores.
"""
from experiments.harness import Claim, arm, late, main, mean, percent_more

SECTION = "3.2.1"
SURVEY = "8 GPUs (half of the run) and 32 give about the same result; 32 are 3.2 times as fast."
FIGURE = "none"
SHOWN = ("correct", "seconds_step")
ARMS = {"one": arm("countdown"), "two": arm("countdown", processes=2)}


def seconds(run):
    return mean([all_ - evaluation for all_, evaluation in zip(run["seconds_step"], run["seconds_eval"], strict=True)])


CLAIMS = [
    Claim("reward of the first step, two less one", lambda runs: runs["two"]["reward"][0] - runs["one"]["reward"][0],
          within=0.001, form="{:.4f}"),
    Claim("final held-out success, two less one, points",
          lambda runs: 100 * (runs["two"].eval()[-1] - runs["one"].eval()[-1]), within=8.0),
    Claim("final length, two over one, % more",
          lambda runs: percent_more(late(runs["two"]["response_len"]), late(runs["one"]["response_len"])), within=10.0),
    Claim("seconds of a step, one over two (one has a neighbor on the other core)",
          lambda runs: seconds(runs["one"]) / seconds(runs["two"]), above=1.0, form="{:.2f}"),
]

NOTE = """
The survey's 8 GPUs ran half of the training only. Our arms ran at other times, "one" with a neighbor on the other
core, "two" alone: the seconds were not measured under equal load.
"""

if __name__ == "__main__":
    main(__spec__.name)
