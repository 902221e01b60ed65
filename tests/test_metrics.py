"""python -m pytest tests/test_metrics.py: the columns of metrics.jsonl, by hand."""

import json
import math
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.words import counts_of, split_thinking, word_columns, word_counts
from onebox import metrics, rundir
from onebox.distributed import Broken, Clock
from onebox.metrics import (
    StepStats,
    advantage_columns,
    console_lines,
    correlation,
    empty_row,
    explain_values,
    more_seconds,
    rollout_row,
    seconds,
    summarize,
    trained_rows,
)
from onebox.rundir import Progress
from policy import pack
from rewards import Score
from rollout import Rollout
from tools.advice import count_graphs, long_tail, no_signal

# ---------------------------------------------------------------------------------------------------------------
# rollouts
# ---------------------------------------------------------------------------------------------------------------


def tokenizer(texts, add_special_tokens):
    return {"input_ids": [text.split() for text in texts]}


def rollout(text, total, correct, format_ok, source="a", finish="stop", flags=()):
    ids = text.split() + (["<eos>"] if finish == "stop" else [])
    score = Score(total, correct, format_ok, {"x": total}, frozenset(flags))
    return Rollout(0, 0, [1], ids, np.zeros(len(ids)), finish, text, score, source,
                   counts=counts_of(text, len(ids), tokenizer))


def of_rewards(*rewards):
    return [rollout("1", reward, False, True) for reward in rewards]


def test_summaries_are_means_over_the_rollouts():
    row = summarize([rollout("2 no 3 no wait yes </think> <answer> 3 </answer>", 1.0, True, True),
                     rollout("1 note </think> <answer> 1 </answer>", 0.1, False, True, flags=["several_answers"]),
                     rollout("1 no 1 1", 0.0, False, False, finish="length")])
    assert (row["reward"], row["correct"], row["wrong_answer"], row["format_error"], row["truncated"]) == pytest.approx(
        (1.1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3))
    assert row["response_len"] == pytest.approx((11 + 7 + 4) / 3) and row["response_len_max"] == 11
    assert row["answer_len"] == pytest.approx((4 + 4 + 0) / 3)
    assert row["reflection_words"] == pytest.approx((3 + 0 + 1) / 3)  # "note" is not "no"
    assert row["flag/several_answers"] == pytest.approx(1 / 3) and row["flag/timeout"] == 0
    assert not any(name.startswith("source/") for name in row) and "zero_variance_groups" not in row


def test_zero_variance_groups_are_a_share_of_all_that_were_sampled():
    for rewards, group_size, share in [((1, 1, 0, 1, 0, 0, 2, 1), 2, 2 / 4), ((1, 1, 0, 1, 0, 0, 2, 1), 4, 0),
                                       ((0, 0, 0, 0, 0, 0), 3, 1), ((0, 0, 0), 1, 0), ((), 4, 0)]:  # 1: no group varies
        row = summarize(of_rewards(*rewards), group_size)
        assert row["zero_variance_groups"] == share, (rewards, group_size)


class Words:
    """A tokenizer of whole words without a stream of tokens: no `ends`."""

    backend_tokenizer = None


def test_kept_rollouts_are_the_last_whole_groups_token_by_token(one_process):
    rollouts = [Rollout(i // 2, i % 2, [7], [5, 6, 8][:1 + i % 2], np.zeros(1 + i % 2, np.float32), "stop", "a",
                        Score(float(i), False, True, {}), asked=SimpleNamespace(uid=f"p{i // 2}", text="?", answer="1",
                                                                                    reward="math"))
                for i in range(6)]
    updates = [pack(rollouts, part, 1000, 0, 1, one_process[2]) for part in ([0, 1, 2, 3], [4])]  # 5 is masked
    for batch in (batch for micro_batches in updates for batch in micro_batches):
        batch.logprobs = batch.response_index / 8  # of tokens of response 3: 0.375
        batch.advantages = torch.where(batch.targets == 6, 0.5, -0.5)
    for keep, first in ((0, 6), (1, 4), (2, 4), (3, 2), (4, 2), (100, 0)):
        rows = trained_rows(9, rollouts, updates, SimpleNamespace(keep_rollouts=keep, group_size=2), Words())
        assert [row["reward"] for row in rows] == list(range(first, 6)), keep
    third, fourth, masked = rows[2], rows[3], rows[5]
    assert [fourth[name] for name in ("step", "split", "uid", "sample", "gold")] == [9, "train", "p1", 1, "1"]
    assert fourth["logprobs"] == [0.375, 0.375] and fourth["advantages"] == [-0.5, 0.5] and fourth["advantage"] == 0
    assert third["advantage"] == -0.5 and "advantages" not in third  # one number for all tokens
    assert fourth["reward_name"] == "math"  # rewards.py --why scores it again
    unpacked = trained_rows(9, rollouts, [], SimpleNamespace(keep_rollouts=2, group_size=2), Words())
    assert [(row["reward"], row["advantage"]) for row in unpacked] == [(4, 0), (5, 0)]  # no group had a signal
    assert masked["advantage"] == 0 and "logprobs" not in masked and masked["rollout_logprobs"] == [0, 0]


def test_values_of_tokens_come_from_all_ranks_in_one_exchange_and_rank_0_alone_makes_rows(one_process, monkeypatch):
    rollouts = [Rollout(0, k, [7], [5, 6], np.zeros(2, np.float32), "stop", "a", Score(1.0, False, True, {}),
                        asked=SimpleNamespace(uid="p", text="?", answer="1", reward="math")) for k in range(2)]
    (batch,), exchanges = pack(rollouts, [0], 1000, 0, 1, one_process[2]), []
    batch.logprobs, batch.entropy, cfg = torch.tensor([-0.5, -0.25]), torch.ones(2), SimpleNamespace(
        keep_rollouts=2, group_size=2)

    def gather(items):  # response 1 lies on another rank
        exchanges.append([i for i, _ in items])
        return [(1, {"logprobs": np.array([-1.0, -2.0], np.float32)}), *items]

    monkeypatch.setattr(metrics, "gather", gather)
    rows = trained_rows(9, rollouts, [[batch]], cfg, Words())
    assert [row["logprobs"] for row in rows] == [[-0.5, -0.25], [-1, -2]] and exchanges == [[0]]
    assert rows[0]["entropy"] == [1, 1] and "entropy" not in rows[1]
    monkeypatch.setattr(metrics.dist, "get_rank", lambda: 1)
    assert trained_rows(9, rollouts, [[batch]], cfg, Words()) == [] and exchanges == [[0], [0]]


def test_rows_of_training_hold_token_ids_and_every_digit_that_a_replay_needs():
    logprobs = np.array([-0.123456789, -1e-7, -33.3333333], np.float32)
    r = Rollout(0, 0, (7, 8), [5, 6, 1], logprobs, "stop", "a", Score(1.0, True, True, {}),
                asked=SimpleNamespace(uid="p", text="?", answer="1", reward="math"))
    row = json.loads(json.dumps(rollout_row(r, 1, "train", Words(), {"old_logprobs": logprobs, "ratio": logprobs})))
    assert (row["prompt_ids"], row["response_ids"]) == ([7, 8], [5, 6, 1])
    for name in ("rollout_logprobs", "old_logprobs"):
        assert (np.array(row[name], np.float32) == logprobs).all(), name
    assert row["ratio"] == rollout_row(r, 1, "held-out", Words())["rollout_logprobs"] == [-0.1235, -0.0, -33.3333]


def test_without_tools_a_kept_rollout_does_not_say_where_its_tokens_end(monkeypatch):
    r = Rollout(0, 0, (7, 8), [5, 6, 1], np.zeros(3), "stop", "a", Score(1.0, True, True, {}),
                asked=SimpleNamespace(uid="p", text="?", answer="1", reward="math"))
    monkeypatch.setattr("tools.token_ends.token_ends", lambda r, tokenizer: [0, 1, 1])
    whole = rollout_row(r, 1, "train", Words())
    monkeypatch.setattr(metrics, "has_tools", lambda: False)
    assert whole["ends"] == [0, 1, 1] and rollout_row(r, 1, "train", Words()) == whole | {"ends": []}


def test_a_mixture_reports_each_source():
    row = summarize([rollout("1", 1.0, True, True, "kk:3"), rollout("1", 0.0, False, False, "gsm8k"),
                     rollout("1", 1.0, True, True, "gsm8k")])
    assert row["source/gsm8k/correct"] == 0.5 and row["source/kk:3/reward"] == 1.0
    assert row["source/gsm8k/share"] == pytest.approx(2 / 3)


def test_thinking_ends_at_its_tag_else_at_the_answer():
    assert split_thinking("a</think>b") == ("a", "</think>b")
    assert split_thinking("a<answer>b") == ("a", "<answer>b")
    assert split_thinking("a") == ("a", "")


def test_words_of_reasoning_and_reflection_are_counted_as_listed():
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
    row = word_columns([word_counts(text) for text in ("no no no", "yes", "wait", "Step 1 Step 2")])
    assert row["reflection_words"] == 1.0 and row["reflection_share"] == 0.5
    assert row["reasoning_words"] == 0.5 and row["reasoning_share"] == 0.25
    assert row["reflection_share_survey"] == 0 and set(word_columns([]).values()) == {0}


def test_counting_words_stays_linear_in_hostile_text():
    for text in ("re " * 100_000, "\n" * 300_000, "too" + " " * 300_000, "re" + " -" * 150_000, "* " * 150_000):
        start = time.process_time()
        word_counts(text)
        assert time.process_time() - start < 2


# ---------------------------------------------------------------------------------------------------------------
# rows and lines
# ---------------------------------------------------------------------------------------------------------------


def of_silence(raised, cut, right, unformed, total=64):
    """The row of a step in which no response taught anything: how many raised, were cut off, were right, ..."""
    return {"reward": 0.1, "num_rollouts": total, "flag/error": raised / total, "truncated": cut / total,
            "correct": right / total, "format_error": unformed / total, "wrong_answer": 0.0}


def test_a_run_that_has_nothing_to_learn_from_says_so_after_5_steps_and_then_every_10():
    row = of_silence(0, 0, 0, 64)
    assert [steps for steps in range(36) if no_signal(steps, row)] == [5, 10, 20, 30]
    assert no_signal(20, row, "out/a/samples/step_000020.jsonl.gz") == (
        "warning: nothing to learn from for 20 steps: 64 of 64 responses end without the format (mean reward 0.100; "
        "flag/error 0, truncated 0, correct 0, format_error 64): ask for it in the template, learn it with sft.py "
        "first, or let your own reward say format_ok where it holds. An example: python rewards.py --why "
        "out/a/samples/step_000020.jsonl.gz")
    assert no_signal(20, row).endswith("An example: none is kept to read: --keep_rollouts 16")


@pytest.mark.parametrize("counts, told, fix", [
    ((64, 0, 0, 64), "64 of 64 responses made the reward or a part of it raise an error, or", "correct its code"),
    ((33, 64, 0, 64), "33 of 64 responses made", "flag/error"),             # whatever else they have in common
    ((32, 0, 0, 32), "32 of 64 responses made", "flag/error"),              # the other half is wrong: the first of two
    ((0, 64, 0, 64), "64 of 64 responses do not end", "max_response_len"),  # and so miss the format too
    ((0, 40, 0, 60), "40 of 64 responses do not end", "max_response_len"),  # 20 more miss it, 4 are wrong
    ((0, 20, 0, 60), "40 of 64 responses end without the format", "template"),
    ((0, 0, 0, 64), "64 of 64 responses end without the format", "template"),
    ((0, 0, 64, 0), "64 of 64 responses are right already", "harder"),
    ((0, 0, 64, 64), "64 of 64 responses are right already", "harder"),     # a reward that says nothing of a format
    ((0, 0, 56, 64), "56 of 64 responses are right already", "harder"),
    ((0, 10, 54, 10), "54 of 64 responses are right already", "harder"),
    ((0, 0, 0, 0), "64 of 64 responses have the format and a wrong answer", "easier"),
    ((0, 20, 4, 24), "36 of 64 responses have the format and a wrong answer", "easier"),
    ((0, 0, 32, 0), "32 of 64 responses are right, but the rewards of every group agree", "middling"),
    ((0, 20, 20, 30), "20 of 64 responses are right, but the rewards of every group agree", "middling"),
])
def test_a_dead_reward_says_which_cause_it_is(counts, told, fix):
    line = no_signal(5, of_silence(*counts), "x")
    assert told in line and fix in line and "\n" not in line, line
    names = ("flag/error", "truncated", "correct", "format_error")
    assert ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True)) in line  # all of them


def test_a_dead_own_reward_is_constant_or_too_slow():
    row = of_silence(0, 0, 0, 0) | {"reward": 0.5, "reward_std": 0.0}
    assert "64 of 64 responses get one reward, 0.5, and none counts as right" in no_signal(5, row)
    assert "have the format and a wrong answer" in no_signal(5, row | {"reward_std": 0.2})
    assert "64 of 64 responses made the reward" in no_signal(5, of_silence(0, 0, 0, 64) | {"flag/timeout": 1.0})


def test_a_long_tail_says_what_it_costs_and_which_settings_change_it():
    assert long_tail({"seconds_tail": 20.0, "seconds_rollout": 60.0}) == long_tail({"seconds_tail": None}) == ""
    assert long_tail({"seconds_tail": 0.9, "seconds_rollout": 1.0}) == ""  # of a second nothing can be won
    line = long_tail({"seconds_tail": 24.0, "seconds_rollout": 60.0})
    assert "took 24 of the 60 s of this rollout" in line and "\n" not in line
    assert all(name in line for name in ("max_num_seqs", "max_response_len", "repetition_stop", "finish_share"))


def test_a_long_tail_is_said_at_first_and_then_every_20_steps_while_it_holds(tmp_path):
    run, said = rundir.Run.__new__(rundir.Run), []
    run.main, run.path, run.cfg, run.progress, run.clock = True, str(tmp_path), rundir.RunSettings(), Progress(), Clock(
        torch.device("cpu"))
    run.cfg = SimpleNamespace(**vars(run.cfg), num_steps=100)
    run.tail_due, run.write_row, run.report = 0, lambda row: None, lambda: None
    for step in range(1, 51):
        run.say = lambda text, step=step: said.append(step) if "the last 5 %" in text else None
        run.log({**ROW, "step": step, "seconds_tail": 2.0 if step in (1, 2, 23, 24) else 5.0, "seconds_rollout": 10.0})
    assert said == [3, 25, 45]  # due again from 23 on, where it does not hold


def test_an_evaluation_adds_its_seconds_to_those_of_its_step():
    row = seconds({"step": 2.0, "train": 1.5}, tokens=30)
    more = more_seconds(row, {"step": 3.0, "eval": 2.0, "save": 0.5})
    told = [more[f"seconds_{name}"] for name in ("step", "train", "eval", "save", "other")]
    assert told == [5.0, 1.5, 2.0, 0.5, 1.0] and row["tokens_per_second"] == 15 and "tokens_per_second" not in more


ROW = {"step": 7, "reward": 0.25, "correct": 0.125, "format_error": 0.5, "truncated": 0.0, "response_len": 310.2,
       "grad_norm": 0.5, "entropy": 0.25, "kl": None, "seconds_step": 4.25, "skipped_updates": 0}
HELD_OUT = {"eval_correct": 0.5, "eval_correct_greedy": 0.625, "seconds_eval": 12.0}
EXTREME = {"step": 99999, "reward": -123.456, "correct": 1.0, "format_error": 1.0, "truncated": 1.0,
           "response_len": 131072.0, "grad_norm": 123456.789, "entropy": 12.345, "kl": 123.456789,
           "explained_variance": -1e3, "seconds_step": 86400.0, "skipped_updates": 64,
           "eval_correct": 1.0, "eval_correct_greedy": 1.0, "seconds_eval": 86400.0}


def test_a_console_line_has_at_most_160_columns_whatever_the_row_holds():
    for row in (ROW, EXTREME, {**EXTREME, "kl": math.nan, "grad_norm": math.inf, "explained_variance": math.nan}):
        for line in console_lines(row, 100_000):
            assert len(line) <= 160 and "\n" not in line, (len(line), line)


def test_the_console_calls_everything_as_metrics_jsonl_does():
    row = {**ROW, "skipped_updates": 2, **HELD_OUT}
    words = " ".join(console_lines(row, 200)).replace("held-out:", "").split()
    assert {word for word in words if re.match("[a-z]", word)} == row.keys() - {"kl"}  # there is no reference
    of_critic = console_lines({**ROW, "kl": 0.1, "explained_variance": -0.5}, 200)[0]
    assert " explained_variance -0.50 " in of_critic and " kl 0.1000 " in of_critic and "format_error" not in of_critic


def test_held_out_success_has_a_console_line_of_its_own():
    (line,) = console_lines(ROW, 200)
    assert line == ("step    7/200  reward 0.250  correct 12%  truncated 0%  response_len 310  grad_norm 0.50  "
                    "entropy 0.25  seconds_step 4.2  format_error 50%")
    held_out = "held-out: eval_correct 50.0%  eval_correct_greedy 62.5%  seconds_eval 12.0"
    assert console_lines({**ROW, **HELD_OUT}, 200) == [line, f"step    7/200  {held_out}"]
    assert console_lines({**empty_row(), **HELD_OUT}, 200) == [f"step    0/200  {held_out}"]
    assert "skipped_updates 2" in console_lines({**ROW, "skipped_updates": 2}, 200)[0]
    no_update = {**ROW, "grad_norm": None, "entropy": None, "skipped_updates": None}  # dynamic sampling found no group
    assert "grad_norm" not in console_lines(no_update, 200)[0]


def test_the_row_before_any_update_has_all_columns_as_null():
    row = empty_row("advantage_std", "corr_length_advantage")
    assert row["step"] == 0 and row["corr_length_advantage"] is row["advantage_std"] is row["loss"] is None
    assert row["mfu"] is row["zero_variance_groups"] is None
    assert row["seconds_step"] == 0 and console_lines(row, 200) == []  # nothing to show but held-out success


# ---------------------------------------------------------------------------------------------------------------
# updates
# ---------------------------------------------------------------------------------------------------------------


def batch_of(old, rollout=None, ref=None):
    return SimpleNamespace(stands_for=1.0, old_logprobs=old, ref_logprobs=ref,
                           rollout_logprobs=old if rollout is None else rollout)


def test_graphs_that_are_compiled_again_and_again_are_said(monkeypatch):
    """Of the first three steps 6 graphs are due. Then 2 a step: the fifth such step has made 10, more than 8."""
    run, said, logged, total = rundir.Run.__new__(rundir.Run), [], [], iter([4, 6, 6, 8, 10, 12, 14, 16, 16, 18])
    run.say, run.append = said.append, lambda file, text: logged.append(text)
    dynamo = SimpleNamespace(counters={"stats": {"unique_graphs": 0}})
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", dynamo)
    warned = []
    for step in range(1, 11):
        dynamo.counters["stats"]["unique_graphs"] = next(total)
        count_graphs(run, step)
        warned.append(len(said))
    assert warned == [0] * 7 + [1] * 3 and "10 graphs were compiled after the first steps" in said[0]
    assert logged == [f"step {step}: torch.compile made 2 graphs\n" for step in (4, 5, 6, 7, 8, 10)]


def test_responses_that_got_a_pass_stand_for_those_that_got_none():
    """4 tokens with a gradient, 2 of 6 without: means are over 4 + 6 tokens, of which the 2 count three times."""
    stats = StepStats()
    learning, silent = batch_of(torch.full((4,), -1.0)), batch_of(torch.full((2,), -1.0), torch.tensor([-1.5, -1.3]))
    silent.stands_for = 3.0
    for batch, entropy in ((learning, 1.0), (silent, 2.0)):
        logprobs = batch.old_logprobs
        stats.add(batch, logprobs, torch.full_like(logprobs, entropy), torch.zeros(()), torch.zeros(len(logprobs)) > 0)
    stats.check_mismatch()
    stats.end_update(1.0)
    row = stats.row()
    assert row["trained_tokens"] == 10 and row["entropy"] == pytest.approx((4 * 1.0 + 6 * 2.0) / 10)
    assert row["mismatch_mean"] == pytest.approx(3 * (0.5 + 0.3) / 10) and row["mismatch_max"] == pytest.approx(0.5)


def test_token_statistics_by_hand(one_process):
    stats = StepStats()
    old = torch.tensor([-1.0, -1.0, -2.0, -2.0])
    new = old + torch.tensor([0.5, 0.0, -0.5, 0.1])
    batch = batch_of(old, rollout=old + torch.tensor([0.0, 0.2, 0.0, -0.1]), ref=old.clone())
    entropy, clipped = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([True, False, True, False])
    stats.add(batch, new, entropy, torch.tensor(0.3), clipped)
    stats.check_mismatch()
    assert stats.end_update(2.0)
    row = stats.row()
    assert row["entropy"] == pytest.approx(2.5) and row["clip_frac"] == pytest.approx(2 / 4)
    assert row["loss"] == pytest.approx(0.3)
    assert row["mismatch_mean"] == pytest.approx(0.3 / 4) and row["mismatch_max"] == pytest.approx(0.2)
    assert row["approx_kl"] == pytest.approx((sum(math.exp(x) - 1 - x for x in (0.5, -0.5, 0.1))) / 4)
    assert row["kl"] == pytest.approx(0) and row["trained_tokens"] == 4 and row["grad_norm"] == 2.0
    assert batch.ratio.tolist() == pytest.approx([math.exp(x) for x in (0.5, 0, -0.5, 0.1)])  # kept for samples/
    assert batch.clipped.tolist() == [True, False, True, False] and batch.entropy.tolist() == [1, 2, 3, 4]


def test_the_canary_stops_where_engine_and_trainer_disagree_on_average(one_process):
    old = torch.tensor([-1.0, -1.0, -2.0, -2.0])  # off by 0.3 / 4 = 0.075
    for bound, gaps in ((0.1, [0.0, 0.2, 0.0, -0.1]), (0.05, [0.0, 0.2, 0.0, -0.1]), (0.1, [0.0, math.nan, 0.0, 0.0])):
        stats = StepStats(max_mismatch=bound)
        stats.add_mismatch(batch_of(old, rollout=old + torch.tensor(gaps)))
        if bound == 0.1 and not math.isnan(sum(gaps)):
            stats.check_mismatch()
            continue
        with pytest.raises(Broken, match="engine and trainer disagree.*No weight was changed"):
            stats.check_mismatch()
    StepStats(max_mismatch=0.1).check_mismatch()  # a step without a token compares nothing


@pytest.mark.parametrize("passes", [1, 2, 6])
def test_kl_is_that_of_the_policy_that_sampled_however_far_updates_go(one_process, passes):
    # four tokens drawn just as the policy says, 1/2 1/4 1/4, from a start model with 1/4 1/4 1/2: KL = ln(2) / 4
    old = torch.tensor([0.5, 0.5, 0.25, 0.25]).log()
    batch, stats = batch_of(old, ref=torch.tensor([0.25, 0.25, 0.25, 0.5]).log()), StepStats()
    if passes > 1:  # as the scripts do with several updates or epochs
        stats.add_mismatch(batch)
        stats.check_mismatch()
    for number in range(passes):
        new = (old.exp() + torch.tensor([0.04, 0.04, -0.04, 0.0]) * number).log()
        stats.add(batch, new, torch.zeros(4), torch.tensor(0.0), torch.zeros(4, dtype=torch.bool))
        stats.check_mismatch()
        stats.end_update(1.0)
    row = stats.row()
    assert row["kl_k1"] == pytest.approx(math.log(2) / 4) and row["kl"] == pytest.approx(math.log(2) / 4)
    assert row["trained_tokens"] == 4 * passes


def test_columns_are_null_without_an_update_and_kl_without_a_reference(one_process):
    assert set(StepStats().row().values()) == {None}
    stats = StepStats()
    stats.add(batch_of(torch.zeros(1)), torch.zeros(1), torch.zeros(1), torch.tensor(0.0), torch.zeros(1))
    stats.check_mismatch()
    stats.end_update(1.0)
    row = stats.row()
    assert row["kl"] is row["kl_k1"] is None and row["mismatch_mean"] == 0 and row.keys() == StepStats().row().keys()


def test_an_update_without_signal_or_finite_gradient_counts_as_skipped():
    stats = StepStats()
    assert stats.end_update(3.0) and stats.end_update(0.0, skipped=True) and stats.end_update(6.0)
    assert not stats.end_update(math.nan)
    assert not stats.end_update(9.0, critic_grad_norm=math.inf)
    row = stats.row()
    assert row["skipped_updates"] == 3 and row["grad_norm"] == (3 + 0 + 6 + 9) / 4  # of those that are finite


def test_the_correlation_of_length_and_advantage_by_hand():
    assert correlation([1, 2, 3], [1, 0, 2]) == pytest.approx(0.5)      # sums of products: 1 / sqrt(2 * 2)
    assert correlation([10, 20], [-1, 1]) == pytest.approx(1) and correlation([10, 20], [1, -1]) == pytest.approx(-1)
    for x, y in (([], []), ([5], [1]), ([5, 5], [1, -1]), ([5, 6], [0, 0]), ([1, 2, 3], [0.1, 0.1, 0.3 / 3])):
        assert correlation(x, y) is None, (x, y)


def test_the_columns_of_advantages_leave_out_what_the_loss_does_not_see():
    advantages, lengths = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([10, 20, 10, 1])
    row = advantage_columns(advantages, lengths, torch.tensor([True, True, True, False]))
    assert row["corr_length_advantage"] == pytest.approx(-1)            # the short, truncated one is masked
    assert row["advantage_std"] == pytest.approx((4 / 3) ** 0.5)        # of all four
    row = advantage_columns(advantages, lengths, torch.ones(4, dtype=torch.bool))
    assert row["corr_length_advantage"] == pytest.approx(-1 / (180.75 * 4) ** 0.5)
    row = advantage_columns(torch.zeros(0), torch.tensor([]), torch.tensor([]))  # dynamic sampling dropped all groups
    assert row == {"advantage_std": 0, "corr_length_advantage": None}


def test_the_correlation_of_ppo_takes_the_mean_advantage_of_each_response():
    values = {0: np.zeros(1), 1: np.zeros(2), 2: np.zeros(3)}
    advantages = {0: np.array([1.0]), 1: np.array([-3.0, 3.0]), 2: np.array([1.0, 2.0, 3.0])}  # means 1, 0, 2
    assert explain_values(values, advantages, advantages)["corr_length_advantage"] == pytest.approx(0.5)
    assert explain_values({}, {}, {})["corr_length_advantage"] is None


def test_explained_variance_is_1_for_foresight_and_0_for_a_constant():
    returns = {0: np.array([0.0, 1.0]), 1: np.array([2.0])}
    assert explain_values(returns, returns, returns)["explained_variance"] == 1
    assert explain_values({0: np.full(2, 5.0), 1: np.full(1, 5.0)}, returns, returns)["explained_variance"] == 0
    row = explain_values({1: np.array([1.0]), 0: np.array([0.0, 0.5])}, returns, returns)  # in whatever order
    assert row["explained_variance"] == pytest.approx(0.75) and row["value_mean"] == 0.5 and row["return_mean"] == 1
