"""
RL alone, fine-tuning alone, or fine-tuning and then RL?

Fine-tuning: a few steps on long, right searches. Its success is that of step 0 of the run that goes on with RL.
"""
from experiments.harness import Claim, arm, main

SECTION = "1 (open-r1), 3.2.3"
SURVEY = "open-r1 has all three ways; fine-tuning must hold long chains of thought if RL is to go on from it."
FIGURE = "none"
SHOWN = ("eval_correct", "response_len")
ARMS = {"rl": arm("countdown"), "sft + rl": arm("countdown", after=arm("sft_teacher"))}

CLAIMS = [
    Claim("fine-tuning over the start, points",
          lambda runs: 100 * (runs["sft + rl"].eval()[0] - runs["rl"].eval()[0]), above=0.0),
    Claim("final held-out success, sft + rl less sft, points",
          lambda runs: 100 * (runs["sft + rl"].eval()[-1] - runs["sft + rl"].eval()[0]), above=0.0),
    Claim("final held-out success, sft + rl less rl, points",
          lambda runs: 100 * (runs["sft + rl"].eval()[-1] - runs["rl"].eval()[-1]), above=0.0),
]

NOTE = """
The survey reports no such comparison; it says that open-r1 can do all three, and what fine-tuning must hold. Our "rl"
begins with a fine-tuned start too: what "sft" adds is 12 steps on long, right searches, which are also more training.
"""

if __name__ == "__main__":
    main(__spec__.name)
