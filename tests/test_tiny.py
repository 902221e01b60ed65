"""The demo's untrained model and its search traces.   pytest tests/test_tiny.py"""

import json
import os
import random
import re
import sys

import pytest
import torch
from conftest import ROOT, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import tiny
from bench import demo_base
from onebox.config import read_recipe
from data import build_prompt, tiny_countdown
from rewards import score

TRY = re.compile(r"(\d+) ([+-]) (\d+) = (\d+) ([+-]) (\d+) = (\d+) target \d+ (yes|no)")


@pytest.fixture(scope="module")
def traces():
    """2,000 pairs (row, response)."""
    rng = random.Random(0)
    return [(row, tiny.trace(row, rng)) for row in tiny_countdown(2000, 0)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that `python tiny.py --traces 500` writes."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tiny.py", "--out", str(folder), "--traces", "500"])
        tiny.main()
    return folder


def graded(row, response):
    return score("tinyzero_countdown", response, {"target": row["target"], "numbers": row["nums"]})


def test_chains_of_1_2_4_by_hand():
    # what would go below zero on the way, like 1-2+4, is left out
    texts = [f"{a}{op1}{b}{op2}{c}={w}" for a, op1, b, _, op2, c, w in tiny.chains([1, 2, 4])]
    assert sorted(t for t in texts if t.endswith("=7")) == ["1+2+4=7", "1+4+2=7", "2+1+4=7", "2+4+1=7", "4+1+2=7",
                                                            "4+2+1=7"]
    assert sorted(t for t in texts if t.endswith("=5")) == ["2+4-1=5", "2-1+4=5", "4+2-1=5", "4-1+2=5"]
    assert sorted(t for t in texts if t.endswith("=3")) == ["1+4-2=3", "4+1-2=3", "4-2+1=3"]
    assert sorted(t for t in texts if t.endswith("=1")) == ["4-1-2=1", "4-2-1=1"]
    assert len(texts) == 15


def test_every_target_can_be_reached():
    assert all(row["target"] in {chain[-1] for chain in tiny.chains(row["nums"])}
               for row in tiny_countdown(2000, 1) + tiny_countdown(2000, 1, "test"))


def test_every_step_of_a_trace_is_right_and_uses_each_number_once(traces):
    for row, response in traces:
        tries = TRY.findall(response)
        assert tries
        for a, op1, b, v, op2, c, w, verdict in tries:
            assert int(v) == (int(a) + int(b) if op1 == "+" else int(a) - int(b)) >= 0
            assert int(w) == (int(v) + int(c) if op2 == "+" else int(v) - int(c)) >= 0
            assert sorted(map(int, (a, b, c))) == sorted(row["nums"])
            assert verdict == ("yes" if int(w) == row["target"] else "no")


def test_a_trace_stops_at_its_first_yes_and_answers_with_its_last_try(traces):
    for _, response in traces:
        *before, (a, op1, b, _, op2, c, _, verdict) = TRY.findall(response)
        assert all(earlier[-1] == "no" for earlier in before)
        assert f"<answer> {a} {op1} {b} {op2} {c} </answer>" in response


def test_a_well_formed_trace_scores_1_if_it_found_the_target_and_a_tenth_if_it_gave_up(traces):
    malformed = 0
    for row, response in traces:
        result = graded(row, response)
        malformed += not result.format_ok
        if result.format_ok:
            assert result.total == (1.0 if " yes " in response else 0.1)
        else:
            assert result.total == 0.0
    assert 0.04 < malformed / len(traces) < 0.08   # 6 %, standard error 0.5 %


def test_the_share_of_giving_up_is_as_set(traces):
    first = [response for _, response in traces if TRY.findall(response)[0][-1] == "no"]
    gave_up = sum(len(TRY.findall(response)) == 1 for response in first) / len(first)
    assert abs(gave_up - tiny.GIVE_UP_FIRST) < 0.04
    later = [TRY.findall(response)[1:] for response in first]
    nos = sum(one[-1] == "no" for tries in later for one in tries)
    gave_up = sum(bool(tries) and tries[-1][-1] == "no" for tries in later) / nos
    assert abs(gave_up - tiny.GIVE_UP_LATER) < 0.04


def test_no_try_repeats_the_value_that_was_just_wrong(traces):
    for _, response in traces:
        values = [one[6] for one in TRY.findall(response)]
        assert all(now != before for before, now in zip(values, values[1:], strict=False))


def test_success_by_hand(monkeypatch):
    # 1 2 4 make 7, 5, 3 and 1, each as likely: the first try is right with 1/4, each later one (its predecessor's value
    # excluded) with 1/3. Giving up with 1/2 always: found = 1/4 + 3/4 * 1/2 * s, s = 1/3 + 2/3 * 1/2 * s = 1/2 -> 7/16
    monkeypatch.setattr(tiny, "GIVE_UP_FIRST", 0.5)
    monkeypatch.setattr(tiny, "GIVE_UP_LATER", 0.5)
    rng = random.Random(0)
    found = sum(" yes " in tiny.trace({"nums": [1, 2, 4], "target": 5}, rng) for _ in range(4000)) / 4000
    assert abs(found - 7 / 16) < 0.03


def test_the_tokenizer_knows_every_word_and_gives_the_text_back(traces):
    tokenizer = tiny.build_tokenizer()
    for row, response in traces[:300]:
        text = build_prompt("tiny_countdown", row) + response
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) == len(text.split())
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_prompt_and_response_tokenized_apart_are_the_tokens_of_the_whole():
    tokenizer, row = tiny.build_tokenizer(), {"nums": [3, 5, 2], "target": 6}
    prompt, response = build_prompt("tiny_countdown", row), tiny.trace(row, random.Random(0))
    assert prompt == "numbers 3 5 2 target 6 <think>"
    parts = tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
    assert parts == tokenizer(prompt + response)["input_ids"]


def test_a_seed_decides_weights_and_traces():
    weights = [next(tiny.build_model(seed).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    row = {"nums": [3, 5, 2], "target": 6}
    assert tiny.trace(row, random.Random(7)) == tiny.trace(row, random.Random(7))


def test_the_written_directory_loads_and_knows_its_end_of_text(written):
    tokenizer = AutoTokenizer.from_pretrained(written / "model")
    model = AutoModelForCausalLM.from_pretrained(written / "model")
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)    # no id without a word
    ids = tokenizer("numbers 3 5 2 target 16 <think>", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 7)                          # word-level, no token added in front or behind
    assert model(ids).logits.isfinite().all()


def test_the_tokenizer_survives_being_loaded_and_saved_again(written, tmp_path):
    text = "numbers 3 5 2 target 16 <think> 3 + 5 = 8"
    AutoModelForCausalLM.from_pretrained(written / "model").save_pretrained(tmp_path)   # model_type "qwen2" is the trap
    AutoTokenizer.from_pretrained(written / "model").save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.decode(again(text)["input_ids"]) == text


def test_written_traces_hold_no_held_out_problem(written):
    lines = [json.loads(line) for line in (written / "traces.jsonl").read_text().splitlines()]
    assert len(lines) == 500
    held_out = {(tuple(sorted(row["nums"])), row["target"]) for row in tiny_countdown(5000, 0, "test")}
    for line in lines:
        assert set(line) == {"prompt", "response"} and "<eos>" not in line["response"]
        _, a, b, c, _, target, _ = line["prompt"].split()
        assert (tuple(sorted(map(int, (a, b, c)))), int(target)) not in held_out


# ---------------------------------------------------------------- the base in demo_base/


@pytest.fixture(scope="module")
def record():
    with open(os.path.join(demo_base.BASE, "record.json")) as f:
        return json.load(f)


def test_the_shipped_base_is_the_one_on_record_and_its_settings_are_those_of_the_recipe(record):
    assert demo_base.hashes(os.path.join(demo_base.BASE, "model")) == record["sha256"]
    recipe = read_recipe(os.path.join(ROOT, "recipes", "demo_sft.py"), "sft.py")
    assert {name: record["settings"][name] for name in recipe} == recipe
    assert record["seed"] == record["settings"]["seed"] == 0
    log = open(os.path.join(demo_base.BASE, "log.txt")).read()
    assert f"step  {recipe['num_steps']}/{recipe['num_steps']} | loss 0.1" in log
    assert sum(os.path.getsize(os.path.join(demo_base.BASE, "model", name)) for name in record["sha256"]) < 2_500_000
    for name, script in (("demo", "train_grpo.py"), ("demo_ppo", "train_ppo.py")):
        start = read_recipe(os.path.join(ROOT, "recipes", f"{name}.py"), script)["model"]
        assert os.path.samefile(os.path.join(ROOT, start), os.path.join(demo_base.BASE, "model"))


def test_the_shipped_base_searches_but_gives_up_early(record):
    """Greedy, 72 problems: on record 15 to 25 % right. Two more or fewer where rounding decides between equal words."""
    found, on_record = demo_base.right(os.path.join(demo_base.BASE, "model"), 0), record["held_out"]["greedy_right"]
    assert record["held_out"]["problems"] == len(demo_base.held_out_problems()) == 72
    assert abs(found - on_record) <= 2 and 0.1 < on_record / 72 < 0.3
    sampled = record["held_out"]["sampled_right"] / (72 * record["held_out"]["samples"])
    assert 0.3 < sampled < 0.45  # what RL starts from


@pytest.mark.slow
def test_the_recipe_makes_the_shipped_base_again(record, tmp_path):
    """
    `make base` in one process, on whatever processor. Its losses are those on record while rounding is small: it grows
    from 1e-7 to 1e-5 in the first 20 steps, and by step 150 two builds are two samples of the same training, so that of
    the end only the mean loss and the success can be compared. Other data, order, weights or lr differ by 0.01 at once.
    """
    made = run_script("-m", "tools.tiny", "--out", "out/tiny-0", "--seed", "0", cwd=tmp_path)
    assert made.returncode == 0, made.stderr[-2000:]
    done = run_script(os.path.join(ROOT, "sft.py"), os.path.join(ROOT, "recipes/demo_sft.py"), cwd=tmp_path,
                      timeout=7200)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "out/demo-base"
    losses = demo_base.losses(run)
    assert losses["first"] == pytest.approx(record["losses"]["first"], abs=1e-3) and len(losses["first"]) == 20
    assert losses["last"] == pytest.approx(record["losses"]["last"], abs=0.002)  # found: 0.0001
    # 8 samples of each of 72 problems: 38 % with a standard error of 2 points, 2.9 of a difference, and three of them
    samples = record["held_out"]["samples"]
    assert abs(demo_base.right(run / "model", samples) - record["held_out"]["sampled_right"]) < 0.087 * 72 * samples
