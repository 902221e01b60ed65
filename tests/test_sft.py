"""python -m pytest tests/test_sft.py: the schedule of sft.py, and what it makes of each line of its data."""

import gzip
import json
import re

import pytest
from conftest import save_tiny_model
from test_data import CHATML, CLOCKS, THINKS, ChatSettings, byte_tokenizer, write_jsonl

import sft
import train_grpo
from onebox.config import ConfigError
from policy import learning_rate
from tasks import templates
from tools import check


def test_no_step_of_sft_has_lr_0_and_its_schedule_is_the_common_one():
    assert sft.learning_rate is learning_rate
    lrs = [learning_rate(step, 1.0, "cosine", 0, 4, 0.0) for step in (1, 2, 3, 4)]
    assert lrs == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    for cfg in (sft.Config(), sft.Config(lr_min_ratio=0.1), sft.Config(num_steps=7), sft.Config(num_steps=21)):
        lrs = [learning_rate(step, cfg.lr, "cosine", cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
               for step in range(1, cfg.num_steps + 1)]
        assert 0 < min(lrs) and max(lrs) <= cfg.lr


def test_messages_are_rendered_with_arguments_and_date_of_the_settings():
    row = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    tokenizer = byte_tokenizer(adds=(), chat_template=CLOCKS["smollm3"] + THINKS)
    chat = templates.check_chat(ChatSettings({"enable_thinking": False}, "2025-02-03"), tokenizer)
    text = tokenizer.decode(sft.to_prompt(row, tokenizer, chat)[0])
    assert text.startswith("Today Date: 03 February 2025\n") and text.endswith("<think></think>")
    assert tokenizer.decode(sft.to_prompt(row, tokenizer)[0]).startswith("Today Date: 26 July 2024\n")


def test_check_shows_date_and_arguments_of_the_chat_template(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    template = "day {{ strftime_now('%d') }} {{ messages[0].content }} {{ think }}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    (tmp_path / "r_test.jsonl").write_text(json.dumps({"question": "1 + 2", "answer": "3"}) + "\n")
    (tmp_path / "r.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    cfg = train_grpo.Config(model=model, data="custom", template="chat", reward="math", max_prompt_len=64,
                            data_path=str(tmp_path / "r.jsonl"), eval_path=str(tmp_path / "r_test.jsonl"),
                            max_response_len=64, chat_template_kwargs={"think": "no"}, chat_date="2025-02-03")
    check.check_recipe(cfg)
    said = capsys.readouterr().out
    date = "it reads the date 2025-02-03 (chat_date), on every day"
    assert f"chat       ok: arguments {{'think': 'no'}} (chat_template_kwargs); {date}" in said
    assert "\nday 03 1 + 1 no\n" in said
    with pytest.raises(ConfigError, match="reads no argument 'thin' of yours; did you mean 'think'"):
        check.check_recipe(train_grpo.Config(**{**vars(cfg), "chat_template_kwargs": {"thin": "no"}}))


# ---------------------------------------------------------------- lines

USER = {"role": "user", "content": "1+1?"}
PREFILL = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# passes over other roles in silence, as many templates do
ONLY_USERS = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}"
# as Qwen3 does it: thinking is written out of either place for the last turn, and an empty one where there is none
QWEN3 = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
         "{% set parts = m.content.split('</think>') %}"
         "<think>\n{{ m.reasoning_content if m.reasoning_content else "
         "parts[0].split('<think>')[-1].strip() if parts|length > 1 else '' }}\n"
         "</think>\n\n{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# as R1's distilled models do it: thinking is opened in the prompt, and left out of what has been said
R1 = ("{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1].lstrip() }}{% endfor %}"
      "{% if add_generation_prompt %}assistant:<think>\n{% endif %}")
TRIMS = CHATML.replace("m['content']", "m['content'].strip()")
GREETS = "{% if messages[0].role == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}" + CHATML


def turn(content, **more):
    return {"messages": [USER, {"role": "assistant", "content": content, **more}]}


def trained(row, template=None):
    """-> (prompt, response) as text, of one line."""
    tokenizer = byte_tokenizer(adds=(), chat_template=template)
    ids, response = sft.to_prompt(row, tokenizer)
    return tokenizer.decode(ids), response


@pytest.mark.parametrize("template, row, prompt, response", [
    (CHATML, turn("2"), "assistant\n", "2"), (CHATML, turn("2\n"), "assistant\n", "2\n"),
    (TRIMS, turn(" 2\n"), "assistant\n", "2"),
    (CHATML, turn("e"), "assistant\n", "e"),  # a letter that the template's own text holds too
    (CHATML, turn("<think>\na\n</think>\n2"), "assistant\n", "<think>\na\n</think>\n2"),
    (PREFILL, turn("<think>\na\n</think>\n2"), "<think>\n", "a\n</think>\n2"),
    (PREFILL, turn("<think>a</think>2"), "<think>\n", "a</think>2"),
    (PREFILL, turn("a</think>2"), "<think>\n", "a</think>2"),
    (QWEN3, turn("2"), "assistant\n", "<think>\n\n</think>\n\n2"),
    (QWEN3, turn("2", reasoning_content="a"), "assistant\n", "<think>\na\n</think>\n\n2"),
    (QWEN3, turn("<think>a</think>2"), "assistant\n", "<think>\na\n</think>\n\n2"),
    (R1, turn("<think>\na\n</think>\n2"), "assistant:<think>\n", "a\n</think>\n2"),
    (THINKS, turn("2", tool_calls=None, reasoning_content=None), "1+1?\n", "assistant: 2"),  # no generation prompt
    (None, {"prompt": "1+1? <think>", "response": "a</think>2", "tools": []}, "1+1? <think>", "a</think>2"),
])
def test_the_thinking_of_a_message_is_trained_once(template, row, prompt, response):
    got = trained(row, template)
    assert got[0].endswith(prompt) and got[1] == response


@pytest.mark.parametrize("template, row, message", [
    (CHATML, turn("2", reasoning_content="because"), "does not write the reasoning of the last message"),
    (R1, turn("2", reasoning_content="because"), "does not write the reasoning"),
    (CHATML, turn("2", thinking="because"), "reasoning"),
    (PREFILL, turn("2"), "opens <think> for the assistant, and its message never closes it"),
    (CHATML, turn("2", tool_calls=[{"function": {"name": "f"}}]), "holds tool_calls, which would be lost"),
    (CHATML, {**turn("2"), "tools": [{}]}, "holds tools, which would be lost"),
    (CHATML, turn("2", weight=0), "has weight 0"),
    (CHATML, turn(None), "must be text, not NoneType"), (CHATML, turn(["yes", "no"]), "must be text, not list"),
    (CHATML, turn([{"type": "text", "text": "2"}]), "must be text, not list"),
    (CHATML, turn(2), "must be text, not int"),
    (CHATML, turn(" "), "not empty"), (CHATML, {"messages": [USER, USER]}, "must be the assistant's"),
    (CHATML, {"messages": [turn("2")["messages"][1]]}, "at least two"), (CHATML, {"messages": "hello"}, "at least two"),
    (CHATML, {**turn("2"), "prompt": "1+1?", "response": "3"}, "both messages and a prompt"),
    (ONLY_USERS, {"messages": [{"role": "human", "content": "1+1?"}, turn("2")["messages"][1]]},
     "does not write .* role 'human'"),
    (ONLY_USERS, {"messages": [{"role": "developer", "content": "be brief"}, *turn("2")["messages"]]},
     "role 'developer'"),
    (None, {"prompt": "1+1?", "response": "2", "system_prompt": "be brief"}, "holds system_prompt"),
    (None, {"prompt": "1+1?", "response": "2", "cot": "one and one"}, "holds cot"),
    (None, {"prompt": "a", "response": " \n"}, "not empty"),
    (None, {"prompt": "1+1?", "response": "2", "system": "be brief"}, "holds system, which would be lost"),
    (None, {"prompt": "1+1?", "response": "2", "reasoning": "a"}, "holds reasoning"),
    (None, {"prompt": "1+1? <think>\n", "response": "<think>a</think>2"},
     "<think> stands at the end of the prompt and again"),
    (None, {"instruction": "1+1?", "output": "2"},
     "wanted are prompt and response, or messages; the line has instruction, output"),
    (None, {"prompt": "1+1?", "response": ""}, "not empty"), (None, {"prompt": 1, "response": "2"}, "must be text"),
    (None, {"prompt": "1+1?", "completion": "2"},
     "wanted are prompt and response, or messages; the line has prompt, completion"),
    (None, ["1+1?", "2"], "not an object"),
])
def test_what_would_be_lost_makes_a_bad_line(template, row, message):
    with pytest.raises(ValueError, match=message):
        trained(row, template)


@pytest.mark.parametrize("good, odd, message", [
    ({"prompt": "a", "response": "b"}, b'{"prompt": "caf\xe9", "response": "b"}', "not UTF-8"),
    ({"prompt": "a", "response": "b"}, b'{"prompt": "a", ', "not JSON"),
    ({"prompt": "a", "response": "b"}, b"7", "not an object"),
    ({"prompt": "a", "response": "b"}, b'{"prompt": "", "response": "b"}', "the prompt is empty"),
    ({"prompt": "a", "response": "b"}, b'{"prompt": "a", "response": "\\ud800"}', "Error"),
    (turn("2"), {"messages": [{"role": "system", "content": "a"}, *turn("2")["messages"]]},
     r"TemplateError: System role\\nnot"),
    (turn("2"), {"messages": [USER, {"content": "2"}]}, "must be the assistant's"),
    (turn("2"), turn("2" * 300), "max_len is 200"),
])
def test_one_odd_line_is_counted_and_shown_with_its_number(good, odd, message, tmp_path, capsys):
    path = write_jsonl(tmp_path / "s.jsonl", [good] * 200 + [odd])
    examples = sft.load_examples(str(path), byte_tokenizer(adds=(), chat_template=GREETS), 200)
    said = capsys.readouterr().out
    assert len(examples) == 200 and "1 of 201 lines not used; first: line 201: " in said and said.count("\n") == 1
    assert re.search(message, said), said


def test_more_than_one_percent_of_bad_lines_stops_and_three_are_shown(tmp_path, capsys):
    rows = [{"prompt": "a", "response": "b"}] * 400 + [b"x", b"", b"7", b'"', b"[]", b"{}"]
    path, first = write_jsonl(tmp_path / "s.jsonl", rows), "line 401: not JSON; line 403: not an object; line 404: not"
    with pytest.raises(ConfigError, match=f"5 of 405 lines cannot be used .* {first}") as no:
        sft.load_examples(str(path), byte_tokenizer(adds=()), 200)
    assert "line 405" not in str(no.value) and "\n" not in str(no.value)


def test_sft_reads_the_same_files_as_the_other_scripts(tmp_path):
    row, tokenizer = {"prompt": "a", "response": "b"}, byte_tokenizer(adds=())
    files = {"bom.jsonl": b"\xef\xbb\xbf" + json.dumps(row).encode(), "list.json": json.dumps([row]).encode(),
             "packed.jsonl.gz": gzip.compress(json.dumps(row).encode()), "table.csv": b"prompt,response\na,b\n"}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        [(prompt, response)] = sft.load_examples(str(tmp_path / name), tokenizer, 200)
        assert tokenizer.decode(prompt) == "a" and response == tokenizer("b")["input_ids"] + [tokenizer.eos_token_id]
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    for name, message in {"empty.jsonl": "is empty", "none.jsonl": "is not there", ".": "is a directory"}.items():
        with pytest.raises(ConfigError, match=message):
            sft.load_examples(str(tmp_path / name), tokenizer, 200)


@pytest.mark.parametrize("row", [
    {**turn("2"), "prompt": "1+1?", "prompt_id": "a"}, turn("2", weight=1),
    {**turn("2"), "instruction": "1+1?", "system": ""},
])
def test_what_a_line_says_twice_is_not_lost(row):
    assert trained(row, CHATML) == trained(turn("2"), CHATML)


def test_a_response_that_ends_in_eos_does_not_get_another(tmp_path):
    tokenizer = byte_tokenizer(adds=())
    path = write_jsonl(tmp_path / "s.jsonl", [{"prompt": "a", "response": "b<eos>"}])
    [(_, response)] = sft.load_examples(str(path), tokenizer, 9)
    assert tokenizer.decode(response) == "b<eos>"
