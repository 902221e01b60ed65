"""
Does hot training on the hard task collapse, while three stages (easy, hard, annealed) do not?

Four people, temperature 1.8 for 45 steps, against 15 steps on 2 and 3 people at 1.0, 15 on four at 1.1, and 15 on four
at 0.9 with a falling learning rate.
"""
from experiments.harness import Claim, arm, late, main

SECTION = "3.2.3"
SURVEY = "Five people at temperature 1.2 with 32 samples collapse near step 140: no end of text, lengths at the cap, " \
         "format errors explode. Three stages with a milder second do not."
FIGURE = "3.2.3(2), 3.2.3(5)"
SHOWN = ("eval_correct", "truncated", "response_len")
stage1 = arm("knights_easy")
stage2 = arm("knights_hard", after=stage1, num_steps=15, temperature=1.1)
ARMS = {"direct, hot": arm("knights_hard", num_steps=45, temperature=1.8), "stage 1": stage1, "stage 2": stage2,
        "stage 3": arm("knights_hard", after=stage2, num_steps=15, temperature=0.9, lr_schedule="cosine")}

CLAIMS = [
    Claim("direct, hot: truncated at the end, %",
          lambda runs: 100 * late(runs["direct, hot"]["truncated"], 5), above=50.0),
    Claim("direct, hot: format errors at the end, %",
          lambda runs: 100 * late(runs["direct, hot"]["format_error"], 5), above=50.0),
    Claim("stages: truncated at the end, %", lambda runs: 100 * late(runs["stage 3"]["truncated"], 5), below=5.0),
    Claim("held-out success at the end, stages less direct, points",
          lambda runs: 100 * (runs["stage 3"].eval()[-1] - runs["direct, hot"].eval()[-1]), above=5.0),
]

if __name__ == "__main__":
    main(__spec__.name)
