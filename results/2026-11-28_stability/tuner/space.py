"""Temperature is left out: success is sampled, at the recipe's temperature."""
lr = "times", 1 / 60, 10
clip_high = "one of", 0.2, 0.28, 0.4
group_size = "times one of", 0.5, 1, 2
updates_per_step = "one of", 1, 2, 4
adv_std = "one of", True, False
entropy_target = "one of", 0.0, 0.2, 0.3
