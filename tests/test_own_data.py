"""Rows and prompts of one's own: python -m pytest tests/test_own_data.py"""

import csv
import gzip
import json

import pytest

import data
import rewards
from onebox.config import ConfigError
from tasks import own, sources, templates
from test_data import CHATML, byte_tokenizer, write_jsonl

REVIEWS = [{"id": i, "body": f"film {i}", "label": ["bad", "good"][i % 2], "meta": {"gold": str(i)}} for i in range(6)]
MAPPED = {"question": "body", "answer": "label"}


def one_line(error, *texts):
    assert all(text in str(error.value) for text in texts) and "\n" not in str(error.value), str(error.value)


# ---------------------------------------------------------------- columns


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "gz", "jsonl", "txt", "no ending", "json", "parquet",
                                  "directory", "save_to_disk"])
def test_columns_give_any_table_our_names(kind, tmp_path):
    import datasets

    flat = [{k: v for k, v in row.items() if k != "meta"} for row in REVIEWS]
    path = tmp_path / {"semicolons": "a.csv", "gz": "a.csv.gz", "no ending": "rows", "directory": "d",
                       "save_to_disk": "d"}.get(kind, f"a.{kind}")
    if kind in ("csv", "semicolons", "tsv"):
        write_csv(path, flat, {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind])
    elif kind == "gz":
        path.write_bytes(gzip.compress(write_csv(tmp_path / "plain.csv", flat).read_bytes()))
    elif kind in ("jsonl", "txt", "no ending"):
        write_jsonl(path, flat)
    elif kind == "json":
        path.write_text(json.dumps(flat, indent=1))
    elif kind == "parquet":
        datasets.Dataset.from_list(flat).to_parquet(str(path))
    elif kind == "directory":
        (path / ".ipynb_checkpoints").mkdir(parents=True)
        write_csv(path / "train.csv", flat)
        for foreign in ("._train.csv", ".ipynb_checkpoints/train-checkpoint.csv", "README.md", "notes.docx", "a.png"):
            (path / foreign).write_bytes(b"\0\5\26\7")
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(flat)}).save_to_disk(str(path))
    rows = data.load_rows("custom", "train", str(path), columns=MAPPED)
    assert [(row["question"], row["answer"], row["label"]) for row in rows] == [
        (f"film {i}", ["bad", "good"][i % 2], ["bad", "good"][i % 2]) for i in range(6)]


def test_columns_look_inside_a_column_and_come_before_other_golds(tmp_path):
    rows = [{**row, "question": "another", "ground_truth": "wrong", "reward_model": {"ground_truth": "wrong"}}
            for row in REVIEWS]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = data.load_rows("custom", "train", path, columns={"question": "body", "answer": "meta.gold"})
    assert [(row["question"], row["answer"]) for row in loaded[:2]] == [("film 0", "0"), ("film 1", "1")]


@pytest.mark.parametrize("columns, told", [
    ({"question": "body", "answer": "lable"}, ["the answer from 'lable', which no row has; did you mean 'label'?"]),
    ({"question": "text", "answer": "label"}, ["no row has", "the columns are id, body, label, meta"]),
    ({"body": "question", "label": "answer"}, ["the wrong way round: write {'question': 'body', 'answer': 'label'}"]),
    ({"question": "body", "anwser": "label"}, ["'anwser', which nothing reads; did you mean 'answer'?"]),
    ({"question": 3}, ["from 3, which no row has"]), ({"answer": "meta.silver"}, ["'meta.silver', which no row has"]),
])
def test_columns_that_are_not_there_are_named_beside_those_that_are(columns, told, tmp_path):
    with pytest.raises(ConfigError) as stopped:
        data.load_rows("custom", "train", write_jsonl(tmp_path / "a.jsonl", REVIEWS), columns=columns)
    one_line(stopped, *told)


def test_without_columns_the_error_guesses_them(tmp_path):
    with pytest.raises(ConfigError) as stopped:
        data.load_rows("custom", "train", write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}]))
    one_line(stopped, "the columns are text, label; read are question",
             "perhaps columns = {'question': 'text', 'answer': 'label'}")


def load(path, template, reward, columns=None, tokenizer=None, name="custom", chat=None, **settings):
    return data.load_prompts(name, template, reward, tokenizer, paths=str(path), columns=columns, chat=chat,
                             check_answer=rewards.check_answer, **settings)[0]


@pytest.fixture
def own_reward(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(sample): return 1.0\ndef ask(row): return row['body'] + '?'\n"
                    "def talk(row): return [{'role': 'user', 'content': row['body']}]\n"
                    "def wrong(row): return row['n']\ndef raises(row): return row['no']\n")
    return f"{file}:mine"


def test_rows_need_an_answer_only_for_a_reward_that_reads_it_and_a_question_only_for_its_template(tmp_path, own_reward):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": f"b{i}", "answer": {"a": i}} for i in range(3)])
    found = load(path, "{body}", own_reward)
    assert [(p.text, p.answer) for p in found] == [(f"b{i}", {"a": i}) for i in range(3)]
    path = write_jsonl(tmp_path / "b.jsonl", [{"question": f"q{i}"} for i in range(3)])
    assert [(p.text, p.answer) for p in load(path, "no_template", own_reward)][:1] == [("q0", None)]
    with pytest.raises(ConfigError) as stopped:
        load(path, "no_template", "math")
    one_line(stopped, "3 no answer")
    with pytest.raises(ConfigError) as stopped:
        load(write_jsonl(tmp_path / "c.jsonl", [{"body": "b", "answer": "5"}]), "no_template", own_reward)
    one_line(stopped, "empty question")


def test_a_part_of_a_file_is_the_rest_of_it(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": str(i), "answer": "1"} for i in range(10)])

    def questions(part, split="train"):
        return [int(row["question"]) for row in data.load_rows("custom", split, f"{path}[{part}]")]

    assert questions(":70%") + questions("70%:", "test") == list(range(10)) == questions(":")
    assert questions("2:5") == [2, 3, 4] and questions(":1") == [0]
    with pytest.raises(ConfigError, match="no rows"):
        questions("20:")
    odd = write_jsonl(tmp_path / "a[1:2]", [{"question": "a", "answer": "1"}])  # a file of that name is that file
    assert len(data.load_rows("custom", "train", str(odd))) == 1


# ---------------------------------------------------------------- the hub


@pytest.mark.parametrize("name, asked", [
    ("org/set", ("org/set", None, "train")), ("org/set:main", ("org/set", "main", "train")),
    ("org/set:main:validation", ("org/set", "main", "validation")), ("org/set::dev", ("org/set", None, "dev")),
])
def test_any_set_of_the_hub_is_read_with_its_config_and_split(name, asked, monkeypatch):
    import datasets

    calls = []

    def load_dataset(hub, config, split):
        calls.append((hub, config, split))
        return datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1?"}],
                                            "reward_model": {"ground_truth": "2"}, "data_source": "x"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    prompts, mixture = data.load_prompts(name, "no_template", "math", None)
    assert calls == [asked] and (prompts[0].text, prompts[0].answer, prompts[0].uid) == ("1+1?", "2", f"{name}/0")
    assert prompts[0].row["data_source"] == "x" and mixture[0].name == name


def test_a_hub_without_the_split_tells_how_to_name_another(monkeypatch):
    import datasets

    def load_dataset(hub, config, split):
        raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    with pytest.raises(ConfigError) as stopped:
        data.load_rows("org/set", "test")
    one_line(stopped, "Should be one of ['train']", "is named org/set:CONFIG:SPLIT")


@pytest.mark.parametrize("name, told", [
    ("rows.csv", "say data = 'custom' and data_path = 'rows.csv'"), ("a/b/c", "no data set is called 'a/b/c'"),
    ("gms8k", "did you mean 'gsm8k'"), ("gsm8k:main", "no data set is called"), ("custom:a/b", "no data set is called"),
    ("data/train.jsonl", "is a file"),
])
def test_a_name_that_is_none_is_refused(name, told):
    with pytest.raises(ConfigError) as stopped:
        data.load_rows(name, "train")
    one_line(stopped, told)


# ---------------------------------------------------------------- prompts

ROW = {"question": "1+1?", "body": "good {question}", "n": 3, "answer": "2"}


def test_a_text_with_slots_is_filled_from_any_column_once():
    text, chat = templates.render("{n}: {body} {problem}\n\\boxed{} {a b}", ROW)
    assert (text, chat) == ("3: good {question} 1+1?\n\\boxed{} {a b}", False)


def test_a_slot_looks_inside_a_column_and_writes_objects_as_json():
    row = {"question": "q", "record": {"name": "Ana", "tags": ["a", "b"]}}
    assert templates.render("{record.name}: {record}", row)[0] == 'Ana: {"name": "Ana", "tags": ["a", "b"]}'
    with pytest.raises(ConfigError, match="wants record.nam"):
        templates.render("{records.nam}".replace("records", "record"), {"question": "q"})


def test_a_worked_example_without_a_column_is_named():
    chat = templates.check_chat(settings(few_shot=(("2+2?", "4"),)))
    with pytest.raises(ConfigError, match="few_shot: prompt template '{body}' wants body"):
        templates.render("{body}", ROW, chat=chat)


@pytest.mark.parametrize("template, text", [
    ('Return {{"a": {n}}} for {body}', 'Return {"a": 3} for good {question}'), ("{{answer}} {n}", "{answer} 3"),
    ('Return {"a": {"b": 1}} for {n}', 'Return {"a": {"b": 1}} for 3'), (r"\boxed{{}} {n}", r"\boxed{} 3"),
    (r"\boxed{} {n} }}", r"\boxed{} 3 }}"), ("{n:>5} {n}", "{n:>5} 3"), ("a } {n}", "a } 3"),
])
def test_doubled_braces_are_single_ones_in_a_format_string_and_stay_in_any_other_text(template, text):
    assert templates.render(template, ROW) == (text, False)


def test_an_own_chat_goes_through_the_models_template():
    chat_of_mine = {"system": "Be {n}.", "user": "{body}"}
    text, chat = templates.render(chat_of_mine, ROW, byte_tokenizer(chat_template=CHATML))
    assert chat and text == ("<|im_start|>system\nBe 3.<|im_end|>\n<|im_start|>user\ngood {question}<|im_end|>\n"
                             "<|im_start|>assistant\n")
    assert templates.is_chat(chat_of_mine) and templates.is_chat(
        {"a": chat_of_mine, "b": "{n}"}) and not templates.is_chat({"b": "{n}"})
    assert not templates.is_chat({"text": "{n}"})


@pytest.mark.parametrize("name, text, chat", [("ask", "good {question}?", False), ("talk", None, True)])
def test_a_function_writes_raw_text_or_messages(name, text, chat, own_reward):
    found = templates.render(own_reward.replace("mine", name).replace(f"{name}.py", "mine.py"), ROW,
                             byte_tokenizer(chat_template=CHATML))
    assert found[1] == chat and found[0] == (text or "<|im_start|>user\ngood {question}<|im_end|>\n"
                                             "<|im_start|>assistant\n")


@pytest.mark.parametrize("template, told", [
    ("{question} {answer}", "shows the model the column 'answer', which holds the answer"),
    ("{extra_info.answer} {n}", "shows the model the column 'extra_info.answer'"),
    ("{questoin}", "wants questoin; the row has question, body, n, answer"),
    ("chatt", "did you mean 'chat'?"), ("Answer:", "one of your own holds slots such as {question}"),
    ({"system": "only"}, None), ("{file}:wrong", "it wants a text, or a list of messages"),
    ("{file}:raises", "KeyError: 'no'"), ("{file}:aks", "did you mean 'ask'?"),
])
def test_a_template_that_cannot_be_used_is_refused_in_one_line(template, told, own_reward):
    if isinstance(template, str):
        template = template.replace("{file}", own_reward.partition(":")[0])
    assert told or not templates.is_entry(template)
    if told:
        with pytest.raises(ConfigError) as stopped:
            templates.render(template, ROW)
        one_line(stopped, told)


def test_the_column_that_the_answer_is_taken_from_may_not_be_shown(tmp_path, own_reward):
    path = write_jsonl(tmp_path / "a.jsonl", REVIEWS)
    with pytest.raises(ConfigError) as stopped:
        load(path, "{body} {label}", own_reward, columns=MAPPED)
    one_line(stopped, "shows the model the column 'label'")


def settings(**chat):
    class Settings:
        chat_template_kwargs, chat_date, system_prompt, few_shot = None, templates.CHAT_DATE, None, ()
    for name, value in chat.items():
        setattr(Settings, name, value)
    return Settings


def test_system_prompt_and_few_shot_are_turns_of_a_chat():
    chat = templates.check_chat(settings(system_prompt="Be brief.", few_shot=(("2+2?", "4"), ("3+3?", "6"))))
    text, _ = templates.render("unsloth_gsm8k", ROW, byte_tokenizer(chat_template=CHATML), chat)
    turns = [part.split("\n", 1) for part in text.split("<|im_start|>")[1:]]
    assert [(role, said.removesuffix("<|im_end|>\n")) for role, said in turns] == [
        ("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6"),
        ("user", "1+1?"), ("assistant", "")]
    none = templates.check_chat(settings(system_prompt=""))
    assert "system" not in templates.render("unsloth_gsm8k", ROW, byte_tokenizer(chat_template=CHATML), none)[0]


def test_few_shot_of_a_raw_text_repeats_it():
    chat = templates.check_chat(settings(few_shot=(({"body": "x", "n": 1}, "one"),)))
    assert templates.render("{body} {n} ->", ROW, chat=chat)[0] == "x 1 -> one\n\ngood {question} 3 ->"
    chat = templates.check_chat(settings(few_shot=(("2+2?", "4"),)))
    assert templates.render("no_template", ROW, chat=chat)[0] == "2+2? 4\n\n1+1?"


@pytest.mark.parametrize("template, chat, told", [
    ("no_template", dict(system_prompt="a"), "system_prompt is for chats, and template 'no_template' is raw text"),
    ("no_template", dict(few_shot=("2+2?", "4")), "few_shot wants pairs of a question"),
    ("no_template", dict(few_shot=(("2+2?", 4),)), "few_shot wants pairs"),
    ("{file}:ask", dict(few_shot=(("2+2?", "4"),)), "is a function that writes raw text: let it write them"),
])
def test_what_a_template_cannot_follow_is_refused(template, chat, told, own_reward):
    with pytest.raises(ConfigError) as stopped:
        templates.render(template.replace("{file}", own_reward.partition(":")[0]), ROW,
                         chat=templates.check_chat(settings(**chat)))
    one_line(stopped, told)


TALK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"}, {"role": "user", "content": "and 2+2?"}]


@pytest.mark.parametrize("prompt", [TALK, json.dumps(TALK)])
def test_a_conversation_is_asked_as_it_is_and_by_no_other_template(prompt, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "reward_model": {"ground_truth": "4"}}])
    [found] = load(path, "conversation", "math", tokenizer=byte_tokenizer(chat_template=CHATML))
    assert found.text == "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TALK) + \
        "<|im_start|>assistant\n" and found.answer == "4"
    with pytest.raises(ConfigError) as stopped:
        load(path, "chat", "math", tokenizer=byte_tokenizer(chat_template=CHATML))
    one_line(stopped, 'prompt of several messages; template = "conversation" asks them as they are')


@pytest.mark.parametrize("row", [
    {"prompt": [{"role": "user", "content": "a"}, {"role": "system", "content": "<|im_end|>"},
                {"role": "user", "content": "b"}]},
    {"question": "a", "body": "b <|im_end|>"}, {"question": "<|im_start|>"},
    {"question": "a", "list": [{"text": "b <|im_end|>"}]},
])
def test_a_special_token_in_any_column_that_the_prompt_shows_is_a_bad_row(row, tmp_path, own_reward):
    rows = [{"body": "b"} if "list" in row else {}, {} if "list" in row else {"hidden": "a <|im_end|>"}]
    rows = [{**rows[0], **row, "answer": "1"}, {**rows[1], "question": "fine", "body": "fine", "answer": "1"}]
    template = "{question} {body}" if "body" in row else "conversation" if "prompt" in row else "chat"
    template = own_reward.replace(":mine", ":ask") if "list" in row else template
    found = load(write_jsonl(tmp_path / "a.jsonl", rows), template, own_reward,
                 tokenizer=byte_tokenizer(chat_template=CHATML), limit=1)
    assert [p.row["question"] for p in found] == ["fine"]


def test_every_column_belongs_to_the_fingerprint_of_an_own_reward(tmp_path, own_reward):
    rows = [{"question": "q", "label": "good", "answer": "1"}]
    first, other = (data.fingerprint(load(write_jsonl(tmp_path / "a.jsonl", [rows[0] | {"label": label}]),
                                          "{question}", own_reward)) for label in ("good", "bad"))
    assert first != other


def test_columns_of_a_source_are_those_of_its_levels(tmp_path, own_reward):
    rows = [{"question": "wrong", "text": "right", "level": 3, "answer": "1"}]
    [found] = load(write_jsonl(tmp_path / "a.jsonl", rows), "{question}", own_reward, name="custom:a@3",
                   columns={"custom:a": {"question": "text"}})
    assert found.text == "right"


def test_an_explicit_answer_is_the_answer(tmp_path, own_reward):
    rows = [{"q": str(i), "label": label, "solution": "42"} for i, label in enumerate(["proof", "lemma", "nan"])]
    found = load(write_jsonl(tmp_path / "a.jsonl", rows), "{q}", own_reward, columns={"answer": "label"})
    assert [prompt.answer for prompt in found] == ["proof", "lemma", "nan"]


def test_another_source_of_a_reward_is_another_fingerprint(tmp_path, own_reward):
    path, found = write_jsonl(tmp_path / "a.jsonl", REVIEWS), []
    for text in ("1.0", "1.0", "0.5"):
        (tmp_path / "mine.py").write_text(f"def mine(sample): return {text}\n")
        own.identity.cache_clear()  # as a new process
        found.append(data.fingerprint(load(path, "{body}", own_reward)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("row, template, columns, told", [
    ({"text": "", "label": "a"}, "{text}", None, "empty text"), ({
        "text": None, "label": "a"}, "{text}", None, "empty text"),
    ({"text": "t", "label": ""}, "{text}", {"answer": "label"}, "empty answer"),
    ({"text": "", "label": "a"}, {"user": "{question}"}, {"question": "text"}, "empty question"),
    ({"text": "t", "label": None, "solution": r"\boxed{8}"}, "{text}", {"answer": "label"}, "empty answer"),
])
def test_an_empty_cell_that_is_asked_for_is_a_bad_row(row, template, columns, told, tmp_path, own_reward):
    with pytest.raises(ConfigError) as stopped:
        load(write_jsonl(tmp_path / "a.jsonl", [row]), template, own_reward, columns=columns)
    one_line(stopped, f"1 {told}")


@pytest.mark.parametrize("template, columns", [("{body} {meta}", {"answer": "meta.gold"}),
                                               ({"user": "{label}"}, {"answer": "label"})])
def test_no_column_that_holds_the_answer_is_shown(template, columns, tmp_path, own_reward):
    with pytest.raises(ConfigError, match="shows the model the column"):
        load(write_jsonl(tmp_path / "a.jsonl", REVIEWS), template, own_reward, columns=columns)


def test_swapped_columns_may_be_shown(tmp_path, own_reward):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "gold", "answer": "asked"}])
    [found] = load(path, "{question}", own_reward, columns={"question": "answer", "answer": "question"})
    assert (found.text, found.answer) == ("asked", "gold")


def test_own_text_and_reward_change_the_fingerprint(tmp_path, own_reward):
    path = write_jsonl(tmp_path / "a.jsonl", REVIEWS)
    first = data.fingerprint(load(path, "{body}", own_reward))
    assert first != data.fingerprint(load(path, "{body}!", own_reward))
    assert first != data.fingerprint(load(path, "{body}", "math", columns={"answer": "id"}))


@pytest.mark.parametrize("setting, value, told", [
    ("data_path", {"custom:suma": "a"}, "data_path names 'custom:suma', which is not among the data; did you mean "
                                        "'custom:sums'?"),
    ("eval_path", {"custom:tests": "a"}, "eval_path names 'custom:tests'"),
    ("template", {"custom:sums": "chat", "zebra": "chat"}, "'zebra', which is not among the data; the data are cust"),
    ("reward", {"gsm8k@4": "math"}, "reward names 'gsm8k@4'"), ("columns",
                                                                {"custom:sum": {"answer": "a"}}, "columns names"),
])
def test_a_source_that_no_data_has_is_refused_in_every_setting(setting, value, told):
    data_of_run = {"custom:sums": 1, "gsm8k@3": 1}
    for fine in ({setting: {"custom:sums": "x"}}, {"template": {"gsm8k": "x"}}, {"template": {"user": "{question}"}},
                 {"columns": {"answer": "label"}}, {"data_path": "a.csv"}):
        sources.check_names(data_of_run, data_of_run, **(fine if setting != "columns" else {}))
    with pytest.raises(ConfigError) as stopped:
        sources.check_names(data_of_run, data_of_run, **{setting: value})
    one_line(stopped, told)
