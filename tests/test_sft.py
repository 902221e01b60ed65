"""python -m pytest tests/test_sft.py: the schedule of sft.py, and what it makes of each line of its data."""

import json

import pytest
from conftest import save_tiny_model
from test_data import CLOCKS, THINKS, ChatSettings, byte_tokenizer

import check
import sft
import templates
import train_grpo
from config import ConfigError
from train_grpo import learning_rate


def test_no_step_of_sft_has_lr_0_and_the_schedule_is_that_of_the_training_scripts():
    cfg = sft.Config(lr=1.0, warmup_steps=0, num_steps=4)
    assert [sft.learning_rate(s, cfg) for s in (1, 2, 3, 4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    for cfg in (sft.Config(), sft.Config(lr_min_ratio=0.1), sft.Config(num_steps=7), sft.Config(num_steps=21)):
        for step in range(1, cfg.num_steps + 1):
            there = learning_rate(step, cfg.lr, "cosine", cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
            assert sft.learning_rate(step, cfg) == pytest.approx(there, abs=1e-6 * cfg.lr) and there > 0


def test_messages_are_rendered_with_the_arguments_and_the_date_of_the_settings():
    row = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    tokenizer = byte_tokenizer(adds=(), chat_template=CLOCKS["smollm3"] + THINKS)
    chat = templates.check_chat(ChatSettings({"enable_thinking": False}, "2025-02-03"), tokenizer)
    text = tokenizer.decode(sft.to_prompt(row, tokenizer, chat)[0])
    assert text.startswith("Today Date: 03 February 2025\n") and text.endswith("<think></think>")
    assert tokenizer.decode(sft.to_prompt(row, tokenizer)[0]).startswith("Today Date: 26 July 2024\n")


def test_check_shows_date_and_arguments_of_the_chat_template(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("day {{ strftime_now('%d') }} {{ messages[0].content }} {{ think }}")
    (tmp_path / "r_test.jsonl").write_text(json.dumps({"question": "1 + 2", "answer": "3"}) + "\n")
    (tmp_path / "r.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    cfg = train_grpo.Config(model=model, data="custom", template="chat", reward="math", data_path=str(tmp_path / "r.jsonl"),
                            eval_path=str(tmp_path / "r_test.jsonl"), max_prompt_len=64, max_response_len=64,
                            chat_template_kwargs={"think": "no"}, chat_date="2025-02-03")
    check.check_recipe(cfg)
    said = capsys.readouterr().out
    assert "chat       ok: arguments {'think': 'no'} (chat_template_kwargs); the date it is told is 2025-02-03" in said
    assert "\nday 03 1 + 1 no\n" in said
    with pytest.raises(ConfigError, match="reads no argument 'thin' of yours; did you mean 'think'"):
        check.check_recipe(train_grpo.Config(**{**vars(cfg), "chat_template_kwargs": {"thin": "no"}}))
