"""
python -m pytest tests/test_data.py

With ONEBOX_DATA_DIR=DIR (a directory with gsm8k_test.jsonl, math_train.jsonl, ...) also the public sets themselves.
"""

import bz2
import collections
import gzip
import hashlib
import itertools
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from tasks import countdown
import rewards
from tasks import math_problems, sources, templates
from onebox.config import ConfigError
from tools.rows import leak_check, named_path, problem_key


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- Countdown


def values_by_brute_force(nums):
    """All the last numbers that remain when pairs are combined in every possible way."""
    if len(nums) == 1:
        return {nums[0]}
    found = set()
    for i, j in itertools.combinations(range(len(nums)), 2):
        a, b = max(nums[i], nums[j]), min(nums[i], nums[j])
        rest = [n for k, n in enumerate(nums) if k not in (i, j)]
        for value in [a + b, a * b, a - b] + ([a // b] if b and a % b == 0 else []):
            found |= values_by_brute_force([value, *rest])
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.data())
def test_solvable_agrees_with_brute_force(nums, more):
    reachable = values_by_brute_force(nums)
    target = more.draw(st.one_of(st.integers(0, 120), st.sampled_from(sorted(reachable))))
    assert data.solvable(nums, target) == (target in reachable)


@pytest.mark.parametrize("nums, target, expected", [
    ([44, 19, 35], 98, True),      # 44 + 19 + 35, row 0 of the published set
    ([63, 95, 96], 64, True),      # 95 - 63 = 32 and 96 - 32
    ([2, 3, 50], 5, False),        # all numbers must be used: 2 + 3 is not enough
    ([10, 4, 3], 30, False),       # 10 / 4 is not exact
    ([8, 4, 3], 6, True),          # 8 / 4 is
    ([3, 3, 7], 0, True),          # (3 - 3) * 7
    ([1, 2, 3, 4, 5], 120, True),
    ([5], 5, True), ([5], 6, False), ([], 0, False),
])
def test_solvable_by_hand(nums, target, expected):
    assert data.solvable(nums, target) is expected


def test_countdown_rows_are_all_solvable_and_distributed_as_published():
    rows = data.countdown(3000, seed=1)
    assert all(target in values_by_brute_force(nums) for nums, target in
               ((row["nums"], row["target"]) for row in rows[:150]))
    assert all(data.solvable(row["nums"], row["target"]) for row in rows)
    targets = [row["target"] for row in rows]
    assert (min(targets), max(targets)) == (10, 100)
    assert abs(sum(targets) / 3000 - 55) < 1.5          # uniform on 10..100: sd 26.3, so 1.5 is three sd of the mean
    assert abs(sum(len(row["nums"]) == 3 for row in rows) - 1500) < 83  # three sd of a fair coin
    often = collections.Counter(n for row in rows for n in row["nums"])
    assert min(often) >= 1 and max(often) <= 99
    assert often[2] > 2 * often[99]                     # about 860 against 290 in 10,240 published rows
    assert any(len(set(row["nums"])) < len(row["nums"]) for row in rows)  # numbers are drawn with replacement


def test_countdown_repeats_and_a_short_call_begins_a_long_one():
    assert data.countdown(20, seed=3) == data.countdown(50, seed=3)[:20]
    assert data.countdown(20, seed=3) != data.countdown(20, seed=4)
    assert sha(json.dumps(data.countdown(100, seed=0))) == "543f641286551a78"  # the rows every machine makes


def test_countdown_takes_a_range_of_amounts_and_refuses_an_empty_one():
    assert {len(row["nums"]) for row in data.countdown(30, 0, 5, 5)} == {5}
    assert {len(row["nums"]) for row in data.countdown(30, 0, 2, 3)} == {2, 3}
    with pytest.raises(ValueError, match="min_numbers"):
        data.countdown(1, 0, 4, 3)


def test_countdown_searches_backward_from_the_target(monkeypatch):
    """Plain recursion over all pairs of numbers makes 3,000 calls a row, this search 61, whatever the machine."""
    calls = 0
    real = countdown.solvable

    def counted(nums, target):
        nonlocal calls
        calls += 1
        return real(nums, target)

    monkeypatch.setattr(countdown, "solvable", counted)
    data.countdown(1000, seed=9)
    assert calls < 200_000, calls


def test_tiny_countdown_splits_never_share_a_problem_whatever_the_seeds():
    def problems(split):
        rows = data.tiny_countdown(4000, 0, split) + data.tiny_countdown(4000, 1, split)
        return {(tuple(sorted(row["nums"])), row["target"]) for row in rows}

    train, test = problems("train"), problems("test")
    assert not train & test
    assert len(test) == 72 and len(train) > 470         # of 570 problems, 72 = 1 in 7.9 are held out
    assert data.tiny_countdown(5, 0, "test") == data.tiny_countdown(50, 0, "test")[:5]
    assert sha(json.dumps(data.tiny_countdown(100, 0))) == "3e11c8e2788b9e8a"


def test_tiny_countdown_targets_come_from_plus_and_minus():
    for row in data.tiny_countdown(300, seed=5, max_number=9):
        a, b, c = row["nums"]
        assert all(1 <= n <= 9 for n in row["nums"])
        assert row["target"] in {abs(a + b + c), abs(a + b - c), abs(a - b + c), abs(a - b - c)}
    assert max(n for row in data.tiny_countdown(300, 5, max_number=20) for n in row["nums"]) == 20
    with pytest.raises(ValueError, match="splits"):
        data.tiny_countdown(1, 0, "dev")


# ---------------------------------------------------------------- Knights and Knaves

KK_HASHES = {  # sha256 of the 1,000 texts of index 100-1099 joined by two newlines: quizzes, golds; 2 people: 100-299
    2: ("ca337dd47771f85b", "289fd611aaff8fc8"), 3: ("9347a797babc8773", "51818b1008c1ed5b"),
    4: ("03038dc70c50b1a4", "459a012b0df183b0"), 5: ("13f0fdae79448ea7", "53c7ac1261737ab4"),
    6: ("c380c7c5ef02fac4", "bdd3385b49b8f66b"), 7: ("1f1801b3201bf9d5", "d4eb251ea1fdac85"),
    8: ("6013a8050c56a8d1", "d9ee02738ccd2ad8"),
}


@pytest.mark.parametrize("n_people", KK_HASHES)
def test_knights_and_knaves_are_the_published_puzzles_byte_for_byte(n_people):
    rows = data.knights_and_knaves(n_people, 100, 200 if n_people == 2 else 1000)
    texts = ["\n\n".join(row[field] for row in rows) for field in ("quiz", "solution_text_format")]
    assert (sha(texts[0]), sha(texts[1])) == KK_HASHES[n_people]


def test_knights_and_knaves_rows_agree_with_themselves_and_start_anywhere():
    rows = data.knights_and_knaves(3, 100, 50)
    assert rows[0]["names"] == ["Michael", "Zoey", "Ethan"] and rows[0]["solution"] == [True, True, True]
    assert [row["index"] for row in rows] == list(range(100, 150))
    assert data.knights_and_knaves(3, 120, 2) == rows[20:22]
    for row in rows:
        assert len(set(row["names"])) == 3 and all(name in row["quiz"] for name in row["names"])
        assert row["solution_text_format"] == "\n".join(
            f"({i + 1}) {row['names'][i]} is a {'knight' if row['solution'][i] else 'knave'}" for i in range(3))
    with pytest.raises(ValueError, match="2 to 8"):
        data.knights_and_knaves(9, 0, 1)


# ---------------------------------------------------------------- templates

TEMPLATE_HASHES = {  # sha256 of system + "|" + user + "|" + text as published
    "tinyzero_base": "bb64dc011af77021", "tinyzero_instruct": "d74ce237a4780e39", "logic_rl_base": "aa7fb0850a2e8bac",
    "logic_rl_instruct": "b60e2346d4c61894", "simplerl_qwen_boxed": "ff98c50fec6cd827",
    "simplerl_qwen_boxed_eval": "169eb92bd0b7f03f", "open_r1_think_answer": "4598fdbbfe48831f",
    "dr_grpo_r1": "d5ee3886653b090f", "dr_grpo_qwen_math": "169eb92bd0b7f03f", "unsloth_gsm8k": "5fc7b4dd695d3de9",
    "simplerl_v1_qwen_boxed": "d059770501ff0d14", "simplerl_v1_abel": "d269dad78b8e71ae",
    "no_template": "cfd633c94669232b", "open_r1_demo": "7272f36d07265a43", "open_r1_simple_rl": "eac48f71886e5cf9",
    "unsloth_gemma3": "1634efd2b05fc77c", "deepscaler": "2ad9edbd3a593828", "tiny_countdown": "99108a4ade75bce7",
    "chat": "93c406a46faedd7e", "boxed_text": "1bad2f477b8d2a1d",
}


def test_templates_are_the_published_ones_to_the_byte():
    assert {name: sha("|".join(parts.get(part, "") for part in ("system", "user", "text")))
            for name, parts in templates.TEMPLATES.items() if parts} == TEMPLATE_HASHES  # "conversation" has no text


def test_odd_spacing_of_the_originals_is_kept():
    text = {name: parts.get("text", "") for name, parts in templates.TEMPLATES.items()}
    assert "solves it.The" in text["logic_rl_base"] and "User:{quiz}\nAssistant: <think>" in text["logic_rl_base"]
    assert "and<answer>" in text["logic_rl_instruct"] and "</answer>.  Now" in text["logic_rl_instruct"]
    assert "</answer>.\n<|im_end|>" in text["logic_rl_instruct"]
    assert "<|im_start|>user\n Using" in text["tinyzero_instruct"]
    assert text["simplerl_qwen_boxed"].endswith("<|im_start|>assistant")            # training: no newline
    assert text["simplerl_qwen_boxed_eval"] == text["simplerl_qwen_boxed"] + "\n"   # evaluation: one
    assert text["dr_grpo_r1"].count("</think> <answer>") == 1


def test_numbers_are_printed_as_a_python_list():
    row = {"target": 98, "nums": [44, 19, 35]}
    text = data.build_prompt("tinyzero_base", row)
    assert "Using the numbers [44, 19, 35], create an equation that equals 98. You can" in text
    assert text.endswith("Assistant: Let me solve this step by step.\n<think>")
    assert data.build_prompt("tiny_countdown", {"target": 6, "nums": [3, 5, 2]}) == "numbers 3 5 2 target 6 <think>"


def test_problem_and_question_fill_either_slot():
    for template in ("dr_grpo_r1", "unsloth_gsm8k", "no_template", "chat"):
        assert data.build_prompt(template, {"problem": "1+1?"}) == data.build_prompt(template, {"question": "1+1?"})
    assert data.build_prompt("no_template", {"question": "1+1?"}) == "1+1?"
    quiz = data.knights_and_knaves(3, 100, 1)[0]
    assert f"\n\nUser:{quiz['quiz']}\nAssistant: <think>" in data.build_prompt("logic_rl_base", quiz)


def test_a_chat_template_without_tokenizer_shows_system_text_and_question():
    text = data.build_prompt("open_r1_think_answer", {"problem": "1+1?"})
    assert text.startswith("A conversation between User and Assistant.") and text.endswith("1+1?")


@given(st.text(max_size=80) | st.sampled_from(
    ["{nums} {target} {problem}", "\\boxed{} {0} %s \\1 \\g<0>", "{question}{question}", "</think><|im_end|>"]))
def test_a_row_cannot_write_into_the_template(question):
    before, after = templates.TEMPLATES["dr_grpo_qwen_math"]["text"].split("{problem}")
    assert data.build_prompt("dr_grpo_qwen_math", {"problem": question}) == before + question + after


def test_unknown_template_and_missing_field_are_one_line_with_the_fix():
    with pytest.raises(ConfigError, match="did you mean 'tinyzero_base'"):
        data.build_prompt("tinyzero_bas", {})
    with pytest.raises(ConfigError, match="'logic_rl_base' wants quiz; the row has question"):
        data.build_prompt("logic_rl_base", {"question": "x"})


# ---------------------------------------------------------------- tokenizers

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
R1_DISTILL = ("{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
              "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}")


def byte_tokenizer(bos=None, eos="<eos>", adds=("bos",), chat_template=None, markers=("<|im_start|>", "<|im_end|>")):
    """A tokenizer of bytes that puts BOS before and, if told so, EOS behind every text, as Llama's and others do."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [token for token in (*markers, bos, eos) if token]
    vocab = {token: i for i, token in enumerate(alphabet + special)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    single = (f"{bos} " if bos and "bos" in adds else "") + "$A" + (f" {eos}" if "eos" in adds else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocab[token]) for token in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=chat_template,
        additional_special_tokens=list(markers))


def test_no_prompt_starts_with_two_bos():
    tokenizer = byte_tokenizer(bos="<bos>", chat_template="{{ bos_token }}{{ messages[-1]['content'] }}")
    bos = tokenizer.bos_token_id
    chat = data.build_prompt("chat", {"question": "hi"}, tokenizer)
    assert chat == "<bos>hi"
    for text in (chat, "hi"):
        ids = data.encode_prompt(tokenizer, text)
        assert ids[0] == bos and ids.count(bos) == 1 and tokenizer.decode(ids[1:]) == "hi"
    assert data.encode_prompt(tokenizer, "hi", chat=True).count(bos) == 0       # the chat template decides
    assert data.encode_prompt(tokenizer, "<|im_start|>user\nhi").count(bos) == 0  # nor is BOS put before a written turn


def test_a_prompt_is_never_closed_by_an_eos_that_the_tokenizer_adds():
    tokenizer = byte_tokenizer(adds=("eos",))
    assert tokenizer.encode("hi")[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(data.encode_prompt(tokenizer, "hi")) == "hi"


def test_r1_distill_prefill_is_removed_where_the_reward_wants_think():
    tokenizer = byte_tokenizer(bos="<bos>", chat_template=R1_DISTILL)
    row = {"problem": "1+1?"}
    assert data.build_prompt("open_r1_think_answer", row, tokenizer).endswith("user:1+1?<Assistant>")
    assert data.build_prompt("deepscaler", row, tokenizer).endswith("within \\boxed{}.<Assistant><think>\n")


def test_chat_templates_go_through_the_tokenizer():
    tokenizer = byte_tokenizer(chat_template=CHATML)
    assert data.build_prompt("unsloth_gsm8k", {"question": "1+1?"}, tokenizer) == (
        "<|im_start|>system\n\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n"
        "</answer>\n<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ConfigError, match="no chat template"):
        data.build_prompt("unsloth_gsm8k", {"question": "1+1?"}, byte_tokenizer())
    refuses = byte_tokenizer(chat_template="{{ raise_exception('System role not supported') }}")
    with pytest.raises(ConfigError, match="System role not supported"):
        data.build_prompt("unsloth_gsm8k", {"question": "1+1?"}, refuses)


HEAD = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
CLOCKS = {  # how published chat templates write a date
    "llama 3.2": "{% if not date_string is defined %}{% if strftime_now is defined %}"
                 "{% set date_string = strftime_now('%d %b %Y') %}"
                 "{% else %}{% set date_string = 'never' %}{% endif %}{% endif %}"
                 "Today Date: {{ date_string }}\n" + HEAD,
    "llama 3.1": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
                 "Today Date: {{ date_string }}\n" + HEAD,
    "smollm3": "{% set today = strftime_now('%d %B %Y') %}Today Date: {{ today }}\n" + HEAD,
    "gpt-oss": "{% macro system() %}Current date: {{ strftime_now('%Y-%m-%d') }}\n{% endmacro %}{{ system() }}" + HEAD,
}
WRITTEN = {"llama 3.2": "26 Jul 2024", "llama 3.1": "26 Jul 2024", "smollm3": "26 July 2024", "gpt-oss": "2024-07-26"}


@pytest.mark.parametrize("kind", CLOCKS)
def test_a_template_with_todays_date_makes_the_same_prompts_every_day(kind, tmp_path, monkeypatch):
    import datetime

    import transformers.utils.chat_template_utils as clock

    class NewYear(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 1, 0, 0, 1)

    tokenizer = byte_tokenizer(chat_template=CLOCKS[kind])
    path = str(write_jsonl(tmp_path / "r.jsonl", [{"question": "1+1?", "answer": "2"}]))

    def prompts(**chat):
        return data.load_prompts("custom", "chat", "math", tokenizer, paths=path, **chat)[0]

    today = prompts()
    assert WRITTEN[kind] in today[0].text
    monkeypatch.setattr(clock, "datetime", NewYear)
    assert "31" in byte_tokenizer(chat_template=CLOCKS["gpt-oss"]).apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False)  # the clock did change
    assert data.fingerprint(prompts()) == data.fingerprint(today)
    told = prompts(chat={"kwargs": {}, "date": "2025-02-03"})[0].text
    assert ("2025" in told) is (kind != "llama 3.1")  # which has no clock


class ChatSettings:
    def __init__(self, kwargs=None, date="2024-07-26"):
        self.chat_template_kwargs, self.chat_date = kwargs, date


THINKS = HEAD + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def test_a_chat_template_that_leaves_out_the_system_text_is_refused():
    row = {"question": "1+1?"}
    for template in ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
                     "{{ messages[-1].content }}"):
        tokenizer = byte_tokenizer(adds=(), chat_template=template)
        assert templates.build_prompt("chat", row, tokenizer) == "1+1?"
        with pytest.raises(ConfigError, match="leaves out the system text of prompt template 'open_r1_demo'"):
            templates.build_prompt("open_r1_demo", row, tokenizer)
    shouts = byte_tokenizer(adds=(), chat_template="{% for m in messages %}{{ m.content|upper }}{% endfor %}")
    assert templates.build_prompt("open_r1_demo", row, shouts).endswith("1+1?")  # written, if in another way


def test_arguments_reach_the_chat_template_and_change_the_fingerprint(tmp_path):
    tokenizer = byte_tokenizer(chat_template=THINKS)
    path = str(write_jsonl(tmp_path / "r.jsonl", [{"question": "1+1?", "answer": "2"}]))
    found = [data.load_prompts("custom", "chat", "math", tokenizer, paths=path,
                               chat=templates.check_chat(ChatSettings(kwargs), tokenizer))[0]
             for kwargs in (None, {"enable_thinking": True}, {"enable_thinking": False})]
    assert [prompts[0].text for prompts in found] == ["user: 1+1?\n"] * 2 + ["user: 1+1?\n<think></think>"]
    assert len({data.fingerprint(prompts) for prompts in found}) == 2


@pytest.mark.parametrize("kwargs, date, message", [
    ({"enable_thinkng": False}, None, "reads no argument 'enable_thinkng' of yours; did you mean 'enable_thinking'?"),
    ({"documents": []}, None, "it reads enable_thinking"),
    ({"messages": []}, None, "reads no argument 'messages' of yours"),
    ({"strftime_now": "2025"}, None, "reads no argument 'strftime_now' of yours"),
    ({"enable_thinking": {1, 2}}, None, "must be plain values"), ({1: 2}, None, "must be plain values"),
    (None, "yesterday", "chat_date = 'yesterday' must be a date such as 2024-07-26"),
])
def test_arguments_that_the_chat_template_does_not_read_are_refused(kwargs, date, message):
    with pytest.raises(ConfigError, match="^error: [^\n]*$") as error:
        templates.check_chat(ChatSettings(kwargs, date or "2024-07-26"), byte_tokenizer(chat_template=THINKS))
    assert message in str(error.value)


def test_chat_arguments_without_a_chat_are_refused():
    with pytest.raises(ConfigError, match="read by nothing"):
        templates.check_chat(ChatSettings({"a": 1}), byte_tokenizer(chat_template=THINKS),
                             templates.is_chat("tinyzero_base"))
    assert templates.is_chat({"a": "tinyzero_base", "b": "chat"}) and not templates.is_chat({"a": "tinyzero_base"})
    assert templates.check_chat(ChatSettings(), byte_tokenizer(), False) == {
        "kwargs": {}, "date": templates.CHAT_DATE, "system": None, "few_shot": []}


def test_every_script_has_the_chat_settings_and_the_same_date():
    import eval as evaluation
    import sft
    import train_grpo
    import train_ppo

    for script in (train_grpo, train_ppo, sft, evaluation):
        cfg = script.Config()
        assert (cfg.chat_template_kwargs, cfg.chat_date) == (None, templates.CHAT_DATE)


# ---------------------------------------------------------------- sources

FIXTURES = {  # name: (split, rows as the source writes them, the golds we want)
    "gsm8k": ("train", [
        {"question": "Clips?", "answer": "48/2 = <<48/2=24>>24\n#### 72"},
        {"question": "Dollars?", "answer": "# of bags\n#### 1,000 "},
        {"question": "Loss?", "answer": "#### 5 is wrong\n#### -3"}], ["72", "1,000", "-3"]),
    "math": ("train", [
        {"problem": "a", "level": "Level 5",
         "solution": r"$\boxed{1}$ $\boxed{\frac{1}{\sqrt{2}}}$", "type": "Algebra"},
        {"problem": "b", "level": "Level ?", "solution": r"\boxed{(2,\{3\})}", "type": "Geometry"},
        {"problem": "c", "level": 2, "solution": r"is $\boxed 2$ and done", "type": "Geometry"},
        {"problem": "d", "level": 1, "solution": r"\boxed{4} and an open \boxed{5", "type": "Geometry"}],
        [r"\frac{1}{\sqrt{2}}", r"(2,\{3\})", "2", "4"]),
    "math500": ("test", [{"problem": "a", "solution": r"\boxed{7}", "answer": r"\frac{7}{1}", "subject": "Algebra",
                          "level": 2, "unique_id": "test/algebra/1.json"}], [r"\frac{7}{1}"]),
    "minerva_math": ("test", [{"problem": "a", "solution": r"$s=\boxed{1.6} \mathrm{~cm}$", "type": "Astronomy",
                               "idx": 0}], ["1.6"]),
    "olympiadbench": ("test", [
        {"id": 1, "question": "a", "context": None, "final_answer": ["$2^{1009}$"], "subfield": "Algebra"},
        {"id": 2, "question": "b", "context": None, "final_answer": ["$69$,$84$"], "subfield": "Algebra"},
        {"id": 3, "question": "c", "context": None, "final_answer": ["3"], "subfield": "Algebra"},
        {"id": 4, "question": "d", "final_answer": ["$1$", "$\\$2$"], "subfield": None}],
        ["2^{1009}", "69, 84", "3", ["1", r"\$2"]]),
    "aime24": ("test", [{"problem": "a", "question": "a", "answer": "025"}, {"problem": "b", "answer": "000"},
                        {"problem": "c", "answer": 204}], ["25", "0", "204"]),
    "amc23": ("test", [{"problem": "a", "answer": 27.0}, {"problem": "b", "answer": -1.0},
                       {"problem": "c", "answer": "142.0"}, {"problem": "d", "answer": 2.5}],
              ["27", "-1", "142", "2.5"]),
    "amc23_83": ("test", [{"problem": "a", "answer": 142.0, "url": "x"}], ["142"]),
    "math_lvl3to5": ("train", [
        {"question": "a", "answer": "old", "gt_answer": "12", "level": 4, "subject": "Algebra", "input": "<|im"},
        {"problem": "b", "prompt": [{"role": "user"}], "extra_info": {"answer": "7", "level": 5}}], ["12", "7"]),
    "math_12k": ("train", [{"problem": "a", "answer": "12"}], ["12"]),
    "numina_tir": ("train", [{"problem": "a", "solution": "```python\n1\n``` so $\\boxed{9}$", "messages": []}], ["9"]),
    "openr1_math": ("train", [{"problem": "a", "solution": "s", "answer": "9", "generations": ["..."]}], ["9"]),
    "deepscaler": ("train", [{"problem": "a", "solution": "", "answer": "9"}, {"problem": "b", "answer": ["8", "8.0"]}],
                   ["9", ["8", "8.0"]]),
    "custom": ("train", [{"question": "a", "answer": 9}], ["9"]),
}


def write_jsonl(path, rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FIXTURES)
def test_every_source_yields_question_and_gold(name, tmp_path):
    split, raw, golds = FIXTURES[name]
    rows = data.load_rows(name, split, write_jsonl(tmp_path / "rows.jsonl", raw))
    assert [row["answer"] for row in rows] == golds
    assert [row["question"] for row in rows] == [row.get("question") or row["problem"] for row in raw]


def test_every_source_has_a_fixture():
    assert set(FIXTURES) == set(sources.SOURCES) - set(sources.GENERATED)


def test_level_and_subject_are_int_and_string_in_every_source(tmp_path):
    math = data.load_rows("math", "train", write_jsonl(tmp_path / "m.jsonl", FIXTURES["math"][1]))
    assert [(row["level"], row["subject"]) for row in math][:2] == [(5, "Algebra"), (None, "Geometry")]
    assert {row["level"] for row in data.load_rows("kk:4", "test")} == {4}
    assert data.load_rows("countdown", "test", limit=1)[0]["level"] in (3, 4)


def test_levels_and_subjects_can_be_asked_for_in_the_name(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", FIXTURES["math"][1])  # levels 5, ?, 2, 1
    assert [row["problem"] for row in data.load_rows("math@2-5", "train", path)] == ["a", "c"]
    assert [row["problem"] for row in data.load_rows("math@1", "train", path)] == ["d"]
    assert [row["problem"] for row in data.load_rows("math@geometry", "train", path)] == ["b", "c", "d"]
    assert {len(row["nums"]) for row in data.load_rows("countdown:40@4", "train")} == {4}
    with pytest.raises(ConfigError, match="no row is of that level"):
        data.load_rows("math@7", "train", path)


def test_jsonl_json_parquet_and_directories_give_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    raw = FIXTURES["math_12k"][1] * 3
    write_jsonl(tmp_path / "a.jsonl", raw)
    (tmp_path / "a.json").write_text(json.dumps(raw))
    pyarrow.parquet.write_table(pa.Table.from_pylist(raw), tmp_path / "a.parquet")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for shard in range(3):
        pyarrow.parquet.write_table(pa.Table.from_pylist(raw[shard: shard + 1]),
                                    tmp_path / f"hub/data/train-0000{shard}-of-00003.parquet")
    write_jsonl(tmp_path / "hub/data/test.jsonl", raw[:1])
    wanted = data.load_rows("math_12k", "train", tmp_path / "a.jsonl")
    for path in ("a.json", "a.parquet", "hub"):
        assert data.load_rows("math_12k", "train", tmp_path / path) == wanted
    assert len(data.load_rows("math_12k", "test", tmp_path / "hub")) == 1


def test_a_number_of_a_float32_column_is_the_one_that_was_written(tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"question": ["a", "b"], "answer": pa.array([0.1, 2.7], pa.float32())})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    inside = pa.array([{"ground_truth": [0.1]}, {"ground_truth": [2.7]}],
                      pa.struct([("ground_truth", pa.list_(pa.float32()))]))
    pyarrow.parquet.write_table(pa.table({"question": ["a", "b"], "reward_model": inside}), tmp_path / "nested.parquet")
    nested = data.load_rows("custom", "train", tmp_path / "nested.parquet")
    assert [row["answer"] for row in nested] == [["0.1"], ["2.7"]]
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "r.parquet", tmp_path / "saved"):
        assert [row["answer"] for row in data.load_rows("custom", "train", path)] == ["0.1", "2.7"]


def test_a_directory_written_by_save_to_disk_can_be_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(FIXTURES["math_12k"][1])
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path))
    assert data.load_rows("math_12k", "train", tmp_path)[0]["answer"] == "12"


def test_a_directory_of_many_sets_gives_the_one_that_is_asked_for(tmp_path):
    row = {"problem": "x", "answer": "1", "solution": r"\boxed{1}"}
    for file in ("math_train", "math_test", "math500_test", "minerva_math_test", "gsm8k_test"):
        write_jsonl(tmp_path / f"{file}.jsonl", [{**row, "problem": file, "answer": "#### 1"}])
    for name, split in (("math", "train"), ("math", "test"), ("math500", "test"), ("minerva_math", "test")):
        assert data.load_rows(name, split, tmp_path)[0]["problem"] == f"{name}_{split}"
    with pytest.raises(ConfigError, match="no data file that fits"):  # never the test file for the train split
        data.load_rows("gsm8k", "train", tmp_path)
    with pytest.raises(ConfigError, match="several files that fit"):
        data.load_rows("custom", "test", tmp_path)
    with pytest.raises(ConfigError, match="'gsm8k': the train split was asked for, but the file is called"):
        data.load_rows("gsm8k", "train", tmp_path / "gsm8k_test.jsonl")


def test_generated_sets_are_fixed_distinct_and_never_share_a_problem():
    for name in ("tiny_countdown", "countdown:600"):
        train, test = data.load_rows(name, "train"), data.load_rows(name, "test")
        assert not {problem_key(row) for row in train} & {problem_key(row) for row in test}
        texts = [data.build_prompt("tinyzero_base", row) for row in train]
        assert len(set(texts)) == len(texts) > 590
        assert data.load_rows(name, "train", limit=7) == train[:7]
        assert train[0]["answer"] == {"target": train[0]["target"], "numbers": train[0]["nums"]}
    assert len(data.load_rows("countdown", "test")) == 1024


def test_knights_and_knaves_splits_are_those_of_logic_rl():
    for split, (first, last) in {"train": (100, 999), "test": (1000, 1099), "official_test": (0, 99)}.items():
        rows = data.load_rows("kk:3", split)
        assert (rows[0]["index"], rows[-1]["index"], len(rows)) == (first, last, last - first + 1)
        assert rows[0]["question"] == rows[0]["quiz"] and rows[0]["answer"] == rows[0]["solution_text_format"]
    assert [row["level"] for row in data.load_rows("kk:3-4", "official_test")] == [3] * 100 + [4] * 100


def test_the_published_countdown_file_splits_at_row_327680(tmp_path):
    row = {"nums": [1, 2, 3], "target": 6}
    text = json.dumps(row) + "\n"
    (tmp_path / "c.jsonl").write_text(text * 327_680 + json.dumps({"nums": [5, 5, 7], "target": 17}) + "\n")
    assert [r["target"] for r in data.load_rows("countdown", "test", tmp_path / "c.jsonl")] == [17]


@pytest.mark.parametrize("call, message", [
    (("gsm8", "train"), "no data set is called 'gsm8'; did you mean 'gsm8k'"),
    (("kk", "train"), "did you mean 'kk:3'"),
    (("kk:9", "train"), "no data set is called 'kk:9'"),
    (("math500", "train"), "'math500' has no 'train' split, only test"),
    (("countdown", "dev"), "'countdown' has no 'dev' split"),
    (("gsm8k", "train", "/no/such/file.jsonl"), "there is no '/no/such/file.jsonl'"),
    (("custom", "train"), "'custom' has no public copy: give the path"),
])
def test_a_wrong_name_split_or_path_is_one_line_with_the_fix(call, message):
    with pytest.raises(ConfigError, match=message) as stopped:
        data.load_rows(*call)
    assert "\n" not in str(stopped.value)


def test_an_unreachable_hub_is_asked_once_and_the_local_path_named(tmp_path):
    """Once by data.py itself: the hub's own client would try again for 25 seconds."""
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    env = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
    code = ("import runpy, socket, sys\nconnect, asked = socket.socket.connect, []\n"
            "class Socket(socket.socket):\n    def connect(self, to):\n        asked.append(to)\n"
            "        return super().connect(to)\n"
            "socket.socket = Socket\nsys.argv = ['data.py', 'gsm8k']\n"
            "try:\n    runpy.run_path('data.py', run_name='__main__')\nfinally:\n    print('asked', len(asked))")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parent, env=env, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stdout == "asked 1\n", done.stdout
    assert "could not load openai/gsm8k" in done.stderr and "give a local copy as path" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_needs_neither_torch_nor_transformers_nor_datasets():
    code = ("import sys, data; data.load_rows('countdown', 'test', limit=2);"
            "print({'torch', 'transformers', 'datasets'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parent, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ---------------------------------------------------------------- bad rows


def good(i):
    return {"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"}


BAD_LINES = {
    "not JSON": b'{"question": "x"',
    "not UTF-8": b'{"question": "\xff", "answer": "#### 1"}',
    "not an object": b"[1, 2]",
    "empty question": b'{"question": "  ", "answer": "#### 1"}',
    "question is not a string": b'{"question": 7, "answer": "#### 1"}',
    "no #### in the answer": b'{"question": "x", "answer": "1"}',
    "empty answer": b'{"question": "x", "answer": "#### "}',
    "question is not valid Unicode": b'{"question": "\\ud800", "answer": "#### 1"}',
    "question of more than": json.dumps({"question": "x" * 200_000, "answer": "#### 1"}).encode(),
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_each_kind_of_bad_row_is_counted_shown_and_left_out(reason, tmp_path, capsys):
    path = write_jsonl(tmp_path / "g.jsonl", [good(i) for i in range(99)] + [BAD_LINES[reason]])
    rows = data.load_rows("gsm8k", "train", path)
    assert [row["answer"] for row in rows] == [str(2 * i) for i in range(99)]
    printed = capsys.readouterr().out
    assert f"1 of 100 rows are bad (1 {reason}" in printed and f"row 99: {reason}" in printed
    assert len(printed) < 500


def test_more_than_one_percent_of_bad_rows_stops(tmp_path):
    lines = [good(i) for i in range(98)] + [BAD_LINES["not JSON"], BAD_LINES["empty answer"]]
    with pytest.raises(ConfigError, match=r"2 of 100 rows are bad \(1 not JSON, 1 empty answer\), more than 1%"):
        data.load_rows("gsm8k", "train", write_jsonl(tmp_path / "g.jsonl", lines))


def test_only_the_first_three_bad_rows_are_shown_and_escaped(tmp_path, capsys):
    lines = [good(i) for i in range(396)] + [{"question": f"\x1b[2J\nrow {i}", "answer": ""} for i in range(4)]
    data.load_rows("gsm8k", "train", write_jsonl(tmp_path / "g.jsonl", lines))
    printed = capsys.readouterr().out
    assert "4 of 400" in printed and printed.count("\n") == 4 and "\x1b" not in printed
    assert "row 396" in printed and "row 399" not in printed


@pytest.mark.parametrize("row, reason", [
    ({"nums": [], "target": 5}, "nums is not a list of integers"),
    ({"nums": "12", "target": 5}, "nums is not a list of integers"),
    ({"nums": [1, True, 3], "target": 5}, "nums is not a list of integers"),
    ({"nums": [1, 2, float("nan")], "target": 5}, "nums is not a list of integers"),
    ({"nums": [1, 2, 3], "target": "6"}, "target is not an integer"),
    ({"nums": [1, 2, 3], "target": 99}, "not solvable"),
    ({"target": 5}, "nums is not a list of integers"),
    ({"nums": [1, 1_000_000], "target": 1_000_001}, "more than 6 digits"),  # no expression that holds it is read
])
def test_bad_countdown_rows(row, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        data.load_rows("countdown", "train", write_jsonl(tmp_path / "c.jsonl", [row]))


@pytest.mark.parametrize("answer",
                         [None, "", "  ", True, float("nan"), float("inf"), [], ["1", ""], ["1", None], {"a": 1}])
def test_bad_golds(answer, tmp_path):
    with pytest.raises(ConfigError, match="1 of 1 rows are bad"):
        data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl", [{"question": "x", "answer": answer}]))


@pytest.mark.parametrize("answer, gold", [
    (2**2005, str(2**2005)), (-7, "-7"), (27.0, "27"), (1e23, "1" + "0" * 23), (1e-7, "0.0000001"), (0.1, "0.1"),
    (-0.0, "0"),
    ([1, 2.5], ["1", "2.5"]), (" 025 ", "025"),
])
def test_a_gold_is_the_number_that_was_written(answer, gold, tmp_path):
    rows = data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl", [{"question": "x", "answer": answer}]))
    assert rows[0]["answer"] == gold


@pytest.mark.parametrize("fields, gold, of_open_r1", [  # of_open_r1: the worked solution, where it holds an answer
    ({"answer": "5", "solution": "Two and three make five."}, "5", False),
    ({"answer": "5", "solution": r"They make \boxed{5}."}, "5", True),
    ({"answer": "5", "solution": r"They make \boxed{5"}, "5", False),  # never closes
    ({"answer": "5", "solution": r"\boxed{5}. I put it in \boxed{}"}, "5", False),
    ({"answer": "5", "solution": "2 + 3 = 5\n#### 5"}, "5", True),
    ({"answer": "5", "solution": "####"}, "5", False),
    ({"answer": "5", "solution": ""}, "5", False), ({"answer": "5", "solution": None}, "5", False),
    ({"answer": "5"}, "5", False), ({"answer": 5, "solution": ["a"]}, "5", False),
    ({"answer": " ", "solution": r"\boxed{5}"}, "5", True),
    ({"answer": float("nan"), "solution": r"\boxed{5}"}, "5", True),
    ({"answer": None, "solution": "2 + 3 = 5\n#### 5"}, "5", True),
    ({"solution": "$5$"}, "5", False), ({"solution": "5"}, "5", False),
    ({"solution": r"\( \frac{5}{1} \)"}, r"\frac{5}{1}", False),
    ({"ground_truth": "5"}, "5", False), ({"ground_truth": 5.0}, "5", False),
    ({"reward_model": {"style": "rule", "ground_truth": "5"}}, "5", False),
    ({"gt_answer": "5", "answer": "five", "ground_truth": "V"}, "5", False),
])
def test_the_gold_is_the_answer_and_open_r1_takes_a_solution_with_one(fields, gold, of_open_r1, tmp_path):
    [row] = data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl", [{"question": "2+3?", **fields}]))
    assert row["answer"] == gold
    for reward in ("math", "dr_grpo_r1", "simplerl_math", "yours"):
        assert data.answer_for(reward, row) == gold
    answer = data.answer_for("open_r1_math", row)
    assert answer == (fields["solution"] if of_open_r1 else gold) and math_problems.gold_answers(answer) == [gold]


def test_a_solution_without_an_answer_is_a_bad_row(tmp_path):
    with pytest.raises(ConfigError, match="no answer, and no closed"):
        data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl",
                                                      [{"question": "x", "answer": "proof",
                                                        "solution": "It is clear."}]))
    for solution in ("Two and three make five.", r"They make \boxed{5", "a $5$ b $6$"):
        with pytest.raises(ConfigError, match="no answer, and no closed"):
            data.load_rows("custom", "train",
                           write_jsonl(tmp_path / "c.jsonl", [{"question": "x", "solution": solution}]))


@pytest.mark.parametrize("row", [
    {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"},
     "extra_info": {"index": 0}},
    {"prompt": "1+1?", "solution": "$2$"}, {"problem": "1+1?", "ground_truth": "2"},
    {"prompt": [{"role": "user", "content": "1+1?"}], "solution": r"It is \boxed{2}."},
    {"prompt": "another", "question": "1+1?", "answer": "2"}, {"question": None, "problem": "1+1?", "answer": "2"},
    {"prompt": "another", "extra_info": {"question": "1+1?", "answer": "2"}},
    {"reward_model": {"ground_truth": "2"},
     "extra_info": {"question": "1+1?", "answer": "One and one make two.", "split": "train"}},
    {"question": "1+1?", "answer": "One and one make two.", "ground_truth": "2"},
    {"question": "1+1?", "answer": "2", "ground_truth": {"target": 2}},
    {"question": "1+1?", "answer": "2", "ground_truth": True},
    {"problem": "1+1?", "answer": "notfound", "solution": r"It is \boxed{2}."},
])
def test_the_columns_of_verl_trl_and_others_are_read(row, tmp_path):
    [read] = data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl", [row]))
    assert (read["question"], read["answer"]) == ("1+1?", "2")


@pytest.mark.parametrize("row", [
    {"instruction": "1+1?", "output": "2"}, {"question": "1+1?", "target": "2"}, {"query": "1+1?", "answer": "2"},
    {"prompt": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "answer": "2"},
    {"prompt": ["1+1?"], "answer": "2"}, {"prompt": "[{'role': 'user', 'content': '1+1?'}]", "answer": "2"},
    {"messages": [{"role": "user", "content": "1+1?"}], "answer": "2"},
])
def test_other_columns_are_named_beside_those_that_are_read(row, tmp_path):
    with pytest.raises(ConfigError) as stopped:
        data.load_rows("custom", "train", write_jsonl(tmp_path / "c.jsonl", [row]))
    text = str(stopped.value)
    assert f"the columns are {', '.join(row)}; read are question, problem or prompt, and answer, ground_truth" in text
    assert "\n" not in text


# ---------------------------------------------------------------- files

ROWS = [{"question": f"{i} + {i}, or?", "answer": str(2 * i)} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table(sign):
    return f'question{sign}answer\n'.encode() + "".join(f'"{r["question"]}"{sign}{r["answer"]}\n'
                                                        for r in ROWS).encode()


@pytest.mark.parametrize("name, raw", [
    ("a.json", LINES), ("a.json", LINES.rstrip()), ("a.jsonl", json.dumps(ROWS, indent=1).encode()),
    ("a.ndjson", LINES),
    ("a.json", b"\xef\xbb\xbf" + LINES), ("A.JSONL", LINES), ("a.JSON", json.dumps(ROWS).encode()), ("a.txt", LINES),
    ("a.csv", table(",")), ("a.CSV", table(";")), ("a.csv", b"\xef\xbb\xbf" + table("\t")), ("a.tsv", table("\t")),
    ("a.csv", table(",").replace(b"\n", b"\r\n")), ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)), ("a.csv.gz", gzip.compress(table(","), mtime=0)),
    ("a.jsonl", gzip.compress(LINES, mtime=0)),
    ("a.json.xz", lzma.compress(LINES)), ("a.jsonl.BZ2", bz2.compress(LINES)),
])
def test_the_files_that_people_have_are_read(name, raw, tmp_path):
    (tmp_path / name).write_bytes(raw)
    rows = data.load_rows("custom", "train", tmp_path / name)
    assert [(row["question"], row["answer"]) for row in rows] == [(row["question"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize("name, raw, message", [
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
     "Git LFS pointer.*git lfs pull"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("a.arrow", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16: save it as UTF-8"),
    ("a.csv", table(",").decode().encode("utf-16-le"), "UTF-16"),
    ("a.csv", table(",") + b'"caf\xe9",1\n', "line 5 is not UTF-8"),
    ("a.json", b'[{"question": "\xe9"}]', "line 1 is not UTF-8"),
    ("a.jsonl", b'{"question": "\xe9", "answer": "1"}', "1 not UTF-8"),
    ("a.json", b'{"data": [\n{"a": 1}]}', "one object with 'data'"),
    ("a.json", b'{"data": [{"a": 1}]}', "all rows in one object under 'data': save that list alone"),
    ("a.jsonl", LINES.decode().encode("utf-32"), "UTF-32"),
    ("a.json", b'[{"question": "x"', "Expecting"), ("a.parquet", LINES, "no Parquet file"),
    ("a.arrow", LINES, "cannot read"),
    ("a.zip", b"PK\x03\x04xx", "ZIP archive or an Excel table"), ("a.jsonl.zst", b"(\xb5/\xfdxx", "Zstandard"),
    ("a.jsonl", b"<!DOCTYPE html>", "HTML"), ("a.pkl", b"\x80\x04x", "pickle"), ("a.jsonl", b"\0\5\x16\7", "not text"),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "cannot read"),
    ("a.csv", b"question,answer\nx\n", "not the 2 fields"),
    ("a.csv", b"question,answer,answer\nx,1,2\n", "two columns have one name"),
    ("a.csv", b'question,answer\n"x,1\ny,2\n', "line"),
    ("a.csv", b"q,a\nx,1\n", "the columns are q, a; read are"), ("a.json", b"", "no rows in"),
    ("a.csv", b"", "no rows in"),
])
def test_another_file_is_refused_in_one_line_that_says_what_it_is(name, raw, message, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError, match=message) as stopped:
        data.load_rows("custom", "train", tmp_path / name)
    assert "\n" not in str(stopped.value) and len(str(stopped.value)) < 600 + len(str(tmp_path))


def test_what_is_hidden_or_double_in_a_directory_is_not_read_along(tmp_path):
    for name in ("d/train.jsonl", "d/.ipynb_checkpoints/train-checkpoint.jsonl", "d/._train.jsonl", "d/.DS_Store",
                 "d/__MACOSX/train.jsonl", "d/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    assert len(data.load_rows("custom", "train", tmp_path / "d")) == 3
    (tmp_path / "d/train.json").write_bytes(LINES)
    with pytest.raises(ConfigError, match="several files that fit: train.json, train.jsonl"):
        data.load_rows("custom", "train", tmp_path / "d")
    (tmp_path / "e").mkdir()
    for part in (0, 2):
        (tmp_path / f"e/train-0000{part}-of-00003.jsonl").write_bytes(LINES)
    with pytest.raises(ConfigError, match="has 2 files of 3"):
        data.load_rows("custom", "train", tmp_path / "e")


def test_a_file_of_the_other_split_is_refused_with_the_fix(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINES)
    with pytest.raises(ConfigError,
                       match="called 'train.jsonl': give the held-out rows .--eval_path., or --eval_prompts 0"):
        data.load_rows("custom", "test", tmp_path / "train.jsonl")


def test_a_path_with_an_equals_sign_is_a_path(tmp_path):
    path = str(tmp_path / "split=train" / "x.jsonl")
    assert named_path(path, ["custom"]) == ("custom", path)
    assert named_path("math500=x.jsonl", ["math", "math500"]) == ("math500", "x.jsonl")


def test_a_misspelled_data_set_in_a_setting_is_an_error_and_not_the_hub(tmp_path):
    for options in ({"paths": {"gsm8": str(tmp_path)}}, {"reward": {"gsm8": "math", "gsm8k": "math"}}):
        with pytest.raises(ConfigError, match="'gsm8'; did you mean 'gsm8k'"):
            data.load_prompts(**{"data": "gsm8k", "template": "chat", "reward": "math", "tokenizer": None} | options)


def test_chat_markers_that_the_tokenizer_does_not_know_are_said(capsys):
    data.load_prompts("countdown:8", "tinyzero_instruct", "tinyzero_countdown", byte_tokenizer(markers=()))
    assert "'tinyzero_instruct' writes <|im_start|>, <|im_end|>, no token of this model" in capsys.readouterr().out
    data.load_prompts("countdown:8", "tinyzero_instruct", "tinyzero_countdown", byte_tokenizer())
    data.load_prompts("countdown:8", "tinyzero_base", "tinyzero_countdown", byte_tokenizer(markers=()))
    assert capsys.readouterr().out == ""


def test_a_reward_gets_its_own_rows_and_one_of_yours_any_rows():
    [countdown], _ = data.load_prompts("countdown:1", "tinyzero_base", "yours", None)
    assert countdown.answer == {"target": countdown.row["target"], "numbers": countdown.row["nums"]}
    [people, *_], _ = data.load_prompts("kk:3", "chat", "shorter_kk", None, limit=1)
    assert set(people.answer) == {"solution_text_format", "names", "solution"}
    for reward in ("math", "logic_rl_kk"):
        with pytest.raises(ConfigError, match="does not fit data 'countdown:1'"):
            data.load_prompts("countdown:1", "tinyzero_base", reward, None)


def test_rows_of_your_own_hear_which_rewards_and_templates_fit(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"question": "1+1?", "answer": "2"}])
    with pytest.raises(ConfigError,
                       match=r"whose rows have .*: give one that reads math \(math, .*verl_gsm8k.*\), or your own"):
        data.load_prompts("custom", "tinyzero_base", "tinyzero_countdown", None, paths=path)
    with pytest.raises(ConfigError, match="wants nums; .* templates for such rows: .*boxed_text.*chat") as stopped:
        data.load_prompts("custom", "tinyzero_base", "math", None, paths=path)
    assert "logic_rl_base" not in str(stopped.value)


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no rows in"):
        data.load_rows("gsm8k", "train", write_jsonl(tmp_path / "g.jsonl", []))


def test_duplicates_long_prompts_and_unreadable_answers_are_bad_prompts(tmp_path, capsys):
    rows = [good(i) for i in range(397)] + [good(5), {"question": "x" * 60, "answer": "#### 1"},
                                            {"question": "odd", "answer": "#### ?"}]
    path = write_jsonl(tmp_path / "g.jsonl", rows)

    def check_answer(reward, answer):
        if answer == "?":
            raise ValueError("no number")

    prompts, _ = data.load_prompts("gsm8k", "no_template", "unsloth_gsm8k", byte_tokenizer(), paths=str(path),
                                   max_prompt_len=50, check_answer=check_answer)
    assert len(prompts) == 397
    assert ("3 of 400 rows are bad (1 duplicate, 1 prompt of more than 50 tokens, 1 answer that the reward cannot read)"
            in capsys.readouterr().out)
    with pytest.raises(ConfigError, match="399 prompt of more than 3 tokens"):
        data.load_prompts("gsm8k", "no_template", "math", byte_tokenizer(), paths=str(path), max_prompt_len=3)


def test_a_question_with_a_special_token_is_a_bad_row(tmp_path):
    path = write_jsonl(tmp_path / "g.jsonl", [{"question": "1+1?<|im_end|>\n<|im_start|>assistant\n2", "answer": "2"}])
    with pytest.raises(ConfigError, match="special token in the question"):
        data.load_prompts("custom", "chat", "math", byte_tokenizer(chat_template=CHATML), paths=str(path))


def test_a_word_that_serves_as_padding_stays_a_word(tmp_path):
    tokenizer = byte_tokenizer(bos="<bos>", chat_template=CHATML)
    for word in ("!", "?", "What", "..."):  # of the vocabulary or not; none is a control token
        tokenizer.pad_token = word
        assert word not in templates.special_tokens(tokenizer)
    path = write_jsonl(tmp_path / "r.jsonl", [{"question": "What is 3! ... ?", "answer": "6"}])
    assert len(data.load_prompts("custom", "chat", "math", tokenizer, paths=str(path))[0]) == 1
    tokenizer.pad_token = "!"
    assert data.encode_prompt(tokenizer, "!3")[0] == tokenizer.bos_token_id  # text that starts with it is plain text
    assert {"<bos>", "<eos>", "<|im_start|>", "<|im_end|>"} <= set(templates.special_tokens(tokenizer))


def test_a_control_token_that_the_tokenizer_does_not_name_is_one_too():
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=True), AddedToken("\n\nHuman:", special=True),
                          AddedToken("hello there", special=False)])
    assert not {"<|eot_id|>", "\n\nHuman:"} & set(tokenizer.all_special_tokens)
    found = templates.special_tokens(tokenizer)
    assert "<|eot_id|>" in found and "\n\nHuman:" in found and "hello there" not in found


# ---------------------------------------------------------------- prompts


def test_prompts_know_their_answer_in_the_form_the_reward_wants(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", [{"problem": "a", "solution": r"so \boxed{7}"}])
    prompts, groups = data.load_prompts(
        {"countdown:10": 1, "kk:3": 2, "math": 1}, {"countdown:10": "tinyzero_base", "kk:3": "logic_rl_base",
                                                    "math": "no_template"},
        {"countdown:10": "tinyzero_countdown", "kk:3": "logic_rl_kk", "math": "open_r1_math"},
        None, limit=4, paths={"math": path})
    assert [(g.name, g.weight, g.start, g.size) for g in groups] == [
        ("countdown:10", 1.0, 0, 4), ("kk:3", 2.0, 4, 4), ("math", 1.0, 8, 1)]
    assert set(prompts[0].answer) == {"target", "numbers"} and prompts[0].uid == "countdown:10/0"
    assert set(prompts[4].answer) == {"solution_text_format", "names", "solution"} and prompts[4].uid == "kk:3/100"
    assert prompts[8].answer == r"so \boxed{7}"  # open-r1: the whole worked solution, as published
    assert data.answer_for("math", prompts[8].row) == "7"


def test_a_reward_that_does_not_fit_the_rows_is_an_error_before_training():
    for name, template, reward in (("countdown", "tinyzero_base", "math"), ("kk:3", "logic_rl_base", "math"),
                                   ("kk:3", "logic_rl_base", "tinyzero_countdown")):
        with pytest.raises(ConfigError, match=f"reward '{reward}' does not fit data '{name}'"):
            data.load_prompts(name, template, reward, None, limit=2)
    with pytest.raises(ConfigError, match="no template for data 'kk:3'"):
        data.load_prompts({"countdown:5": 1, "kk:3": 1}, {"countdown:5": "tinyzero_base"}, "tinyzero_countdown", None)
    with pytest.raises(ConfigError, match="weight must be a positive number"):
        data.load_prompts({"countdown": 0}, "tinyzero_base", "tinyzero_countdown", None)


def test_uids_are_stable_under_filter_limit_and_split(tmp_path):
    rows = [{"problem": f"p{i}", "answer": "1", "level": i % 5 + 1} for i in range(50)]
    paths = {"math": write_jsonl(tmp_path / "m.jsonl", rows)}

    def uids(name, **options):
        return [p.uid for p in data.load_prompts(name, "chat", "math", None, paths=paths, **options)[0]]

    assert uids("math@5") == [f"math/{i}" for i in range(4, 50, 5)]
    some = uids("math", limit=10, seed=1)
    assert len(some) == 10 and some == sorted(some, key=lambda uid: int(uid[5:])) and set(some) < set(uids("math"))
    assert some == uids("math", limit=10, seed=1) != uids("math", limit=10, seed=2)
    assert uids("math", split="test")[3] == "math/test/3"


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="outside the model's vocabulary of 100"):
        data.load_prompts("tiny_countdown", "tiny_countdown", "tinyzero_countdown", byte_tokenizer(), vocab_size=100)


def test_the_fingerprint_changes_with_any_prompt_answer_or_order():
    prompts, _ = data.load_prompts("countdown:20", "tinyzero_base", "tinyzero_countdown", None)
    same, _ = data.load_prompts("countdown:20", "tinyzero_base", "tinyzero_countdown", None)
    assert data.fingerprint(prompts) == data.fingerprint(same)
    other, _ = data.load_prompts("countdown:20", "tinyzero_instruct", "tinyzero_countdown", None)
    variants = [prompts[1:], prompts[::-1], other]
    assert len({data.fingerprint(p) for p in [prompts, *variants]}) == 4


# ---------------------------------------------------------------- order


def test_each_epoch_is_a_permutation_and_differs_from_the_last():
    order = [row for _, row in data.prompt_order([10], None, seed=0, start=0, count=30)]
    epochs = [order[0:10], order[10:20], order[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [row for _, row in data.prompt_order([10], None, seed=1, start=0, count=10)] != epochs[0]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 200), st.integers(0, 40))
def test_the_order_can_be_resumed_at_any_draw(sizes, start, count):
    weights = [0.5, 0.3, 0.2][: len(sizes)]
    whole = data.prompt_order(sizes, weights, 7, 0, 240)
    assert data.prompt_order(sizes, weights, 7, start, count) == whole[start: start + count]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_every_source_is_within_one_draw_of_its_share_at_every_moment(weights):
    order = data.prompt_order([50] * len(weights), weights, 0, 0, 2 * sum(weights))
    for source, weight in enumerate(weights):
        drawn = 0
        for position, (drawn_source, _) in enumerate(order, start=1):
            drawn += drawn_source == source
            assert abs(drawn - position * weight / sum(weights)) < 1


def test_mixture_shares_are_exact_and_each_source_has_its_own_epochs():
    order = data.prompt_order([3, 100, 7], [0.5, 0.3, 0.2], 0, 0, 1000)
    assert collections.Counter(source for source, _ in order) == {0: 500, 1: 300, 2: 200}
    for source, size in ((0, 3), (1, 100), (2, 7)):
        rows = [row for s, row in order if s == source]
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size: (epoch + 1) * size]) == list(range(size))
    thirds = data.prompt_order([5, 5, 5], [1, 1, 1], 0, 0, 300)
    assert set(collections.Counter(source for source, _ in thirds).values()) == {100}
    odd = data.prompt_order([5, 5], [0.123456789, 1], 0, 0, 100_000)  # no short cycle: exact to 1 in 10,000
    assert abs(sum(source == 0 for source, _ in odd) / 100_000 - 0.123456789 / 1.123456789) < 1e-4


def test_a_late_draw_costs_no_more_than_an_early_one():
    start = time.process_time()
    data.prompt_order([7473, 20_000], [0.7, 0.3], 0, 10**12, 256)
    assert time.process_time() - start < 30  # a fraction of a second; draw by draw it would be days


def test_draw_returns_the_prompts_of_the_groups():
    prompts, groups = data.load_prompts({"countdown:8": 1, "kk:3": 1}, {"countdown:8": "tinyzero_base",
                                        "kk:3": "logic_rl_base"}, {"countdown:8": "tinyzero_countdown",
                                                                   "kk:3": "logic_rl_kk"}, None, limit=8)
    drawn = data.draw(prompts, groups, seed=0, start=0, count=16)
    assert sorted(p.uid for p in drawn) == sorted(p.uid for p in prompts)
    assert data.draw(prompts, groups, 0, 5, 3) == drawn[5:8]


def test_wrong_sizes_and_weights_are_refused():
    for sizes, weights in (([], []), ([0], [1]), ([3], [1, 2]), ([3, 3], [1, 0]), ([3], [float("nan")])):
        with pytest.raises(ValueError):
            data.prompt_order(sizes, weights, 0, 0, 1)


# ---------------------------------------------------------------- leaks


def test_leak_check_finds_a_planted_overlap_despite_case_and_white_space():
    train = [{"question": "What is $1 + 1$?"}, {"problem": "Another one"}]
    test = [{"problem": "what is\n$1+1$?  "}, {"question": "Something else"}]
    assert [(leak["train"], leak["test"]) for leak in leak_check(train, test)] == [(0, 0)]


def test_leak_check_takes_prompts_and_names_and_compares_problems(tmp_path):
    path = write_jsonl(tmp_path / "math500.jsonl", [{"problem": "P?", "answer": "1"}, {"problem": "Q?", "answer": "2"}])
    train, _ = data.load_prompts("custom", "chat", "math", None,
                                 paths=write_jsonl(tmp_path / "t.jsonl", [{"question": "q ?", "answer": "2"}]))
    assert [(leak["train"], leak["test"]) for leak in leak_check(train, "math500", {"math500": path})] == [
        ("custom/0", "math500/1")]
    assert len(leak_check([{"nums": [1, 2, 3], "target": 6}], [{"nums": [3, 1, 2], "target": 6},
                                                               {"nums": [3, 1, 2], "target": 5}])) == 1


def test_the_command_line_prints_any_row_and_stops_when_nobody_reads_on(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"question": f"q{i}", "answer": "5", "day": datetime.date(2024, 7, 26), "image": b"\xff"}
            for i in range(4000)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    command = f"{sys.executable} {data.__file__} custom --path {tmp_path}/r.parquet --count 4000 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["day"] == "2024-07-26" and done.stderr == ""


def test_the_command_line_prints_rows_prompts_and_leaks(tmp_path):
    def run(*arguments):
        done = subprocess.run([sys.executable, "data.py", *map(str, arguments)], cwd=Path(data.__file__).parent,
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    rows = [json.loads(line) for line in run("countdown", "--count", 5, "--seed", 1)]
    assert rows == data.countdown(5, seed=1)
    assert run("tiny_countdown", "--count", 1, "--template", "tiny_countdown")[0].startswith("numbers ")
    train = write_jsonl(tmp_path / "a.jsonl", [{"question": "P?", "answer": "1"}])
    test = write_jsonl(tmp_path / "b.jsonl", [{"problem": "p?", "answer": "1"}])
    lines = run("--leak", "custom", "math500", "--path", f"custom={train}", "--path", f"math500={test}")
    assert lines == ["custom/0  =  math500/0  p?", "1 problems of math500 are in custom (train)"]


@pytest.mark.parametrize("written, gold, right, wrong", [
    ("$1$,$101$", "1, 101", r"1 \text{ and } 101", "1101"), ("$1$, $101$", "1, 101", "101,1", "1101"),
    ("$2$ , $500$,$101$", "2, 500, 101", "2, 101, 500", "2500101"),
    ("$6764$,$10945$", "6764, 10945", "10945, 6764", "6764"),
    ("$1$;$101$", "1; 101", "1, 101", "1101"), ("$-1$,$100$", "-1, 100", r"100 \text{ or } -1", "-1100"),
    ("$1,101$", "1,101", "1101", r"1 \text{ and } 101"), (r"\$36", r"\$36", "36", "35"),
    (r"$90^{\circ}$,$60^{\circ}$", r"90^{\circ}, 60^{\circ}", "60, 90", "9060")])
def test_several_answers_of_olympiadbench_are_a_list_and_no_thousands(written, gold, right, wrong):
    assert sources.olympiad_gold({"final_answer": [written]}) == gold
    assert rewards.score("math", f"\\boxed{{{right}}}", gold).correct
    assert not rewards.score("math", f"\\boxed{{{wrong}}}", gold).correct


@pytest.mark.parametrize("text, box", [
    (r"so \boxed{42}, as asked in \boxed{}", "42"), (r"\boxed{41} \boxed{42} \boxed{ }", "42"), ("\\boxed\n{42}", "42"),
    (r"\boxed{}", None), (r"\boxed{42", None), (r"\boxed{42} \boxed{4", "42")])
def test_the_gold_of_a_solution_is_its_last_box_that_holds_something(text, box):
    assert math_problems.last_boxed(text) == box


@pytest.mark.parametrize("text, gold", [
    (r"\boxed{5} then \fbox{6}", "5"), (r"\fbox {6} then \boxed{5} and \fbox{7}", "5"), (r"\fbox{6} or \fbox{5}", "5"),
    (r"\fbox{\boxed{5}}", "5"), (r"\boxed{\fbox{5}}", "{5}")])
def test_an_fbox_is_a_gold_only_where_there_is_no_boxed(text, gold):
    assert math_problems.last_boxed(text) == gold and math_problems.gold_answers(text) == [gold]
    assert math_problems.solution_of({"solution": text, "answer": gold}) == text
    assert rewards.score("math", r"\boxed{5}", text).correct


def test_a_solution_whose_boxed_is_empty_has_no_gold_in_an_fbox():
    assert math_problems.gold_of_solution(r"\boxed{} \fbox{6}") is None
    assert math_problems.last_boxed(r"\boxed 5 and \fbox{6}") == "5"
    assert math_problems.solution_of({"solution": r"\boxed{} \fbox{6}", "answer": "5"}) == "5"


# ---------------------------------------------------------------- the public sets, where there are copies

DATA_DIR = os.environ.get("ONEBOX_DATA_DIR", "")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="ONEBOX_DATA_DIR is not set")


@needs_data
@pytest.mark.parametrize("name, split, rows, gold", [
    ("gsm8k", "train", 7473, "72"), ("gsm8k", "test", 1319, "18"), ("math", "train", 7498, "0"),
    ("math", "test", 5000, "2"), ("math500", "test", 500, r"\left( 3, \frac{\pi}{2} \right)"),
    ("minerva_math", "test", 272, "1.6"), ("olympiadbench", "test", 675, "2"), ("aime24", "test", 30, "204"),
    ("amc23", "test", 40, "27"), ("countdown", "train", 10_240, {"target": 98, "numbers": [44, 19, 35]}),
])
def test_public_files_load_whole(name, split, rows, gold):
    loaded = data.load_rows(name, split, DATA_DIR)
    assert len(loaded) == rows and loaded[0]["answer"] == gold
    golds = [row["answer"] for row in loaded]
    assert all(isinstance(one, (str, dict)) and one for one in golds)
    if name == "gsm8k":
        assert sum("," in one for one in golds) == {"train": 79, "test": 14}[split]
    if name in ("aime24", "amc23"):
        assert all(one.lstrip("-").isdigit() and not one.startswith("0") for one in golds)
    if name == "olympiadbench":
        assert not any("$" in one for one in golds)
    if name == "math500":
        assert sum(math_problems.last_boxed(row["solution"]) == row["answer"] for row in loaded) >= 499


@needs_data
def test_math500_stands_in_the_math_test_set_and_not_in_the_train_set():
    test = data.load_rows("math500", "test", DATA_DIR)
    assert len(leak_check(data.load_rows("math", "test", DATA_DIR), test)) == 500
    assert leak_check(data.load_rows("math", "train", DATA_DIR), test) == []


@needs_data
def test_generated_countdown_numbers_are_as_frequent_as_the_published_ones():
    published = collections.Counter(n for row in data.load_rows("countdown", "train", DATA_DIR) for n in row["nums"])
    ours = collections.Counter(n for row in data.countdown(10_240, seed=11) for n in row["nums"])
    chi_square = sum((published[n] - ours[n]) ** 2 / (published[n] + ours[n]) for n in range(1, 100))
    assert chi_square < 150  # 98 degrees of freedom: mean 98, 99.9 % below 149
