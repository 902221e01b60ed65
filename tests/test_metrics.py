"""python -m pytest tests/test_metrics.py: the columns of metrics.jsonl, by hand."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onebox.analysis import split_thinking, word_columns, word_counts
from onebox.metrics import StepStats, hacked, more_seconds, seconds, summarise
from rewards import Score
from rollout import Rollout
from train_ppo import dual_clip, policy_loss


def tokenizer(texts, add_special_tokens):
    return {"input_ids": [text.split() for text in texts]}


def rollout(text, total, correct, format_ok, source="a", finish="stop", flags=()):
    ids = text.split() + (["<eos>"] if finish == "stop" else [])
    return Rollout(0, 0, [1], ids, np.zeros(len(ids)), finish, text, Score(total, correct, format_ok, {"x": total}, frozenset(flags)), source)


def test_summaries_are_means_over_the_rollouts():
    row = summarise([rollout("2 no 3 no wait yes </think> <answer> 3 </answer>", 1.0, True, True),
                     rollout("1 note </think> <answer> 1 </answer>", 0.1, False, True, flags=["several_answers"]),
                     rollout("1 no 1 1", 0.0, False, False, finish="length")], tokenizer)
    assert (row["reward"], row["correct"], row["wrong_answer"], row["format_error"], row["truncated"]) == pytest.approx(
        (1.1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3))
    assert row["response_len"] == pytest.approx((11 + 7 + 4) / 3) and row["response_len_max"] == 11
    assert row["answer_len"] == pytest.approx((4 + 4 + 0) / 3)
    assert row["reflection_words"] == pytest.approx((3 + 0 + 1) / 3)  # "note" is not "no"
    assert row["flag/several_answers"] == pytest.approx(1 / 3) and row["flag/timeout"] == 0
    assert not any(name.startswith("source/") for name in row)


def test_a_mixture_reports_each_source():
    row = summarise([rollout("1", 1.0, True, True, "kk:3"), rollout("1", 0.0, False, False, "gsm8k"),
                     rollout("1", 1.0, True, True, "gsm8k")], tokenizer)
    assert row["source/gsm8k/correct"] == 0.5 and row["source/kk:3/reward"] == 1.0
    assert row["source/gsm8k/share"] == pytest.approx(2 / 3)


def test_thinking_ends_at_its_tag_else_at_the_answer():
    assert split_thinking("a</think>b") == ("a", "</think>b")
    assert split_thinking("a<answer>b") == ("a", "<answer>b")
    assert split_thinking("a") == ("a", "")


def test_words_of_reasoning_and_reflection_are_counted_once_each_as_the_lists_say():
    text = ("Step 1: add. First, 3 - 2 = 1.5 and the next number.\n2. Second try\n  **3)** then, finally, no notes.\n"
            "Wait, that is too high. Let\u2019s try again: rechecked, re - evaluate, Re-evaluate. Let's think again")
    counts = word_counts(text)
    assert counts["reasoning_words"] == 6  # Step 1; First; 2.; Second; 3); finally, -- not "1.5", not "the next number"
    assert counts["reflection_words"] == 6  # no, Wait, too high, try again, re-evaluate, think again
    # too high, try again, recheck, re - evaluate, re-evaluate, let's think again
    assert counts["reflection_words_survey"] == 6
    assert counts["reflection_words_published"] == 3  # recheck, re-evaluate, think again
    assert set(word_counts("").values()) == {0}


def test_shares_are_of_responses_with_at_least_one_word():
    row = word_columns(["no no no", "yes", "wait", "Step 1 Step 2"])
    assert row["reflection_words"] == 1.0 and row["reflection_share"] == 0.5
    assert row["reasoning_words"] == 0.5 and row["reasoning_share"] == 0.25
    assert row["reflection_share_survey"] == 0 and set(word_columns([]).values()) == {0}


def test_counting_words_stays_linear_in_hostile_text():
    for text in ("re " * 100_000, "\n" * 300_000, "too" + " " * 300_000, "re" + " -" * 150_000, "* " * 150_000):
        start = time.process_time()
        word_counts(text)
        assert time.process_time() - start < 2


def test_the_alarm_rings_when_reward_rises_and_held_out_success_falls():
    before = {"step": 10, "reward": 0.5, "eval_correct": 0.4}
    assert "exploiting" in hacked(before, {"step": 20, "reward": 0.6, "eval_correct": 0.3})
    for reward, correct in ((0.6, 0.4), (0.4, 0.3), (0.51, 0.3), (0.6, 0.39)):
        assert hacked(before, {"step": 20, "reward": reward, "eval_correct": correct}) == ""
    assert hacked(None, before) == ""


def test_token_statistics_by_hand(one_process):
    stats = StepStats(torch.device("cpu"))
    cfg = SimpleNamespace(clip_low=0.2, clip_high=0.2)
    old = torch.tensor([-1.0, -1.0, -2.0, -2.0])
    new = old + torch.tensor([0.5, 0.0, -0.5, 0.1])
    batch = SimpleNamespace(rollout_logprobs=old + torch.tensor([0.0, 0.2, 0.0, -0.1]), ref_logprobs=old.clone())
    stats.add(batch, new, torch.tensor([1.0, 2.0, 3.0, 4.0]), old, torch.tensor([1.0, 1.0, -1.0, 1.0]), torch.tensor(0.3), cfg)
    stats.reduce()
    row = stats.row()
    assert row["entropy"] == pytest.approx(2.5) and row["clip_frac"] == pytest.approx(2 / 4)
    assert row["mismatch_mean"] == pytest.approx(0.3 / 4) and row["mismatch_max"] == pytest.approx(0.2)
    assert row["kl"] == pytest.approx(0) and row["trained_tokens"] == 4
    stats.check_mismatch(0.1)
    with pytest.raises(RuntimeError, match="engine and trainer disagree"):
        stats.check_mismatch(0.05)


def test_an_evaluation_adds_its_seconds_to_those_of_its_step():
    row = seconds({"step": 2.0, "train": 1.5}, tokens=30)
    more = more_seconds(row, {"step": 3.0, "eval": 2.0, "save": 0.5})
    told = [more[f"seconds_{name}"] for name in ("step", "train", "eval", "save", "other")]
    assert told == [5.0, 1.5, 2.0, 0.5, 1.0] and row["tokens_per_second"] == 15 and "tokens_per_second" not in more


@pytest.mark.parametrize("passes", [1, 2, 6])
def test_the_kl_to_the_start_model_is_that_of_the_policy_that_sampled_however_far_the_updates_go(one_process, passes):
    # four tokens drawn just as the policy says, 1/2 1/4 1/4, from a start model with 1/4 1/4 1/2: KL = ln(2) / 4
    old = torch.tensor([0.5, 0.5, 0.25, 0.25]).log()
    batch = SimpleNamespace(rollout_logprobs=old, ref_logprobs=torch.tensor([0.25, 0.25, 0.25, 0.5]).log())
    stats, cfg = StepStats(torch.device("cpu")), SimpleNamespace(clip_low=0.2, clip_high=0.2)
    if passes > 1:  # as the scripts do with several updates or epochs
        stats.compare(batch, old)
        stats.compared = True
    for number in range(passes):
        new = (old.exp() + torch.tensor([0.04, 0.04, -0.04, 0.0]) * number).log()
        stats.add(batch, new, torch.zeros(4), old, torch.ones(4), torch.tensor(0.0), cfg)
        stats.reduce()
    row = stats.row()
    assert row["kl_k1"] == pytest.approx(math.log(2) / 4) and row["kl"] == pytest.approx(math.log(2) / 4)
    assert row["trained_tokens"] == 4 * passes
    assert StepStats(torch.device("cpu")).row()["kl"] is None


def test_a_token_counts_as_clipped_where_its_gradient_is_0(one_process):
    old = torch.zeros(6)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 4.0, 4.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    for cfg, clip, count in ((SimpleNamespace(clip_low=0.2, clip_high=0.2), 0.0, 3),
                             (SimpleNamespace(clip_low=0.2, clip_high=0.2, dual_clip=3.0), 3.0, 4)):
        logprobs = ratio.log().requires_grad_()
        loss = dual_clip(policy_loss(logprobs, old, advantages, 0.2, 0.2), advantages, clip)
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        batch = SimpleNamespace(rollout_logprobs=old, ref_logprobs=None)
        stats = StepStats(torch.device("cpu"))
        stats.add(batch, logprobs.detach(), old, old, advantages, loss.sum().detach(), cfg)
        stats.reduce()
        assert (batch.clipped == (gradient == 0)).all() and stats.row()["clip_frac"] == pytest.approx(count / 6)
