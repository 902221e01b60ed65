"""
What tools/tune.py searches. Copy this file, edit the copy, and give it as --space FILE.

A line is a setting of the script and what may become of it; the recipe's own value is always one of the candidates:

    lr = "times", 1 / 30, 30                the recipe's value times a factor between these, even on a log scale
    temperature = "between", 0.6, 1.2       any value between these
    clip_high = "one of", 0.2, 0.28, 0.4    one of these values
    group_size = "times one of", 0.5, 1, 2  the recipe's value times one of these factors

group_size keeps the samples of a step: prompts_per_step changes with it, unless that has a line of its own. A size that
does not divide the samples becomes the nearest that does, and updates_per_step the next smaller that divides the
prompts. A setting that only the other script has is left out: adv_std in PPO.
"""

lr = "times", 1 / 30, 30
clip_high = "one of", 0.2, 0.28, 0.4
temperature = "one of", 0.7, 0.85, 1.0, 1.2
group_size = "times one of", 0.5, 1, 2
updates_per_step = "one of", 1, 2, 4
adv_std = "one of", True, False
entropy_target = "one of", 0.0, 0.2, 0.4  # nats a token; 0: off
