"""python -m pytest tests/test_sft.py: the schedule of sft.py, and what it makes of each line of its data."""

import pytest

import sft
from train_grpo import learning_rate


def test_no_step_of_sft_has_lr_0_and_the_schedule_is_that_of_the_training_scripts():
    cfg = sft.Config(lr=1.0, warmup_steps=0, num_steps=4)
    assert [sft.learning_rate(s, cfg) for s in (1, 2, 3, 4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    for cfg in (sft.Config(), sft.Config(lr_min_ratio=0.1), sft.Config(num_steps=7), sft.Config(num_steps=21)):
        for step in range(1, cfg.num_steps + 1):
            there = learning_rate(step, cfg.lr, "cosine", cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
            assert sft.learning_rate(step, cfg) == pytest.approx(there, abs=1e-6 * cfg.lr) and there > 0
