"""Rewards and prompt templates of one's own: python -m pytest tests/test_own.py"""

import dataclasses
import gzip
import json
import os
import textwrap

import pytest

import data
import rewards
from conftest import ROOT, save_tiny_model
from onebox.config import ConfigError
from runs import Server, assert_same, everything_of
from tasks import own
from tasks.workers import Workers
from tools import why


def write(folder, text, name="mine.py"):
    """A file of the user's."""
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def reward_file(folder, body, before="", options=""):
    """ "FILE:mine", a reward whose body is given."""
    decorator = f"from rewards import own_reward\n@own_reward({options})\n" if options else ""
    return write(folder, f"import math, time\nimport numpy as np\n{before}\n{decorator}def mine(sample):\n"
                 + textwrap.indent(textwrap.dedent(body), "    ")) + ":mine"


def score_all(cases, **settings):
    """Scores of (reward, response, answer), by one Scorer."""
    scorer = rewards.Scorer(num_workers=1, **settings)
    for key, (reward, response, answer) in enumerate(cases):
        scorer.submit(key, reward, response, answer, num_tokens=5, max_tokens=9, row={"label": "yes", "n": 3},
                      prompt="ask", token_ids=[4, 5])
    scores = scorer.collect()
    scorer.close()
    return [scores[key] for key in range(len(cases))]


# ---------------------------------------------------------------- what it gets and gives


@pytest.mark.parametrize("body, total, parts, correct", [
    ("return 0.25", 0.25, {"mine": 0.25}, False),
    ("return True", 1.0, {"mine": 1.0}, True),
    ("return np.float32(0.5)", 0.5, {"mine": 0.5}, False),
    ("return {'a': 0.75, 'b': np.int64(1)}", 1.75, {"a": 0.75, "b": 1.0}, True),
    ("return sample.finish({'a': 0.5}, correct=True)", 0.5, {"a": 0.5}, True),
    ("return float(sample.row['label'] == sample.said)", 1.0, {"mine": 1.0}, True),
    ("return float(sample.num_tokens) / sample.max_tokens + len(sample.token_ids)", 5 / 9 + 2,
     {"mine": 5 / 9 + 2}, True),
    ("return float((sample.thinking, sample.answer_part, sample.said) == ('hm', '<answer>yes</answer>', 'yes'))", 1.0,
     {"mine": 1.0}, True),
    ("return -3", -3.0, {"mine": -3.0}, False),
])
def test_an_own_reward_returns_a_number_parts_or_a_score(tmp_path, body, total, parts, correct):
    [score] = score_all([(reward_file(tmp_path, body), "hm</think><answer>yes</answer>", "5")])
    assert (score.total, score.parts, score.correct, "error" in score.flags) == (pytest.approx(total), parts, correct,
                                                                                 False)


def test_a_reward_of_completion_and_equal_is_called_as_those_of_this_project(tmp_path):
    name = write(tmp_path, """
        def mine(completion, equal):
            right = equal([completion.answer], completion.said, "strict") == "right"
            return completion.finish({"answer": float(right)}, right, True)
    """) + ":mine"
    assert [s.total for s in score_all([(name, "0.5", r"\frac12"), (name, "0.6", r"\frac12")])] == [1.0, 0.0]


@pytest.mark.parametrize("body, told", [
    ("pass", "it is None, a NoneType; a reward returns a number, a dict of numbers or sample.finish(...): does every"),
    ("return '1'", "it is 1, a str"), ("return [1.0]", "a list"), ("return {}", "a dict"),
    ("return {'a': None}", "part 'a' is None"), ("return math.nan", "is nan"), ("return 1e300", "is 1e+300"),
    ("return -math.inf", "is -inf"), ("return 1 / 0", "ZeroDivisionError"),
    ("return sample.text.split('</think>')[7]", "IndexError"), ("exit()", "SystemExit"),
    ("return sample.no_such_thing", "AttributeError"),
])
@pytest.mark.parametrize("options, value", [("", 0.0), ("on_error=-0.5", -0.5), ("on_error=-0.5, killable=True", -0.5)])
def test_what_is_no_number_is_counted_shown_three_times_and_worth_a_stated_value(tmp_path, body, told, options, value,
                                                                                 capfd):
    name = reward_file(tmp_path, f"if sample.text == 'fine':\n    return 1\n{body}", options=options)
    scores = score_all([(name, text, "5") for text in ["odd", "fine", "odd 2", "odd 3", "odd 4", "odd 5"]])
    assert [s.total for s in scores] == [value, 1.0, value, value, value, value]
    assert [("error" in s.flags, s.correct, s.format_ok) for s in scores[:2]] == [(True, False, False),
                                                                                  (False, True, True)]
    said = capfd.readouterr().err
    assert said.count("failed on a response, which scores") == 3 and told in said and "4 responses so far" in said


def test_a_reward_may_ask_the_mathematicians_several_questions(tmp_path):
    # each verdict belongs to its question: with one verdict for all of them, the first case would score 1.5
    name = reward_file(tmp_path, r"""
        first, second = sample.said.split(";")
        return 1.0 * sample.is_right(first, r"2\sqrt{2}") + 0.5 * sample.is_right(second, r"\frac{\sqrt{2}}{7}")
    """)
    scores = score_all([(name, r"\sqrt{8};\sqrt{3}", "5"), (name, r"\sqrt{8};\sqrt{2/49}", "5"),
                        (name, r"\sqrt{3};\sqrt{2/49}", "5")])
    assert [s.total for s in scores] == [1.0, 1.5, 0.5] and not any(s.flags for s in scores)


def test_several_rewards_are_weighed(tmp_path):
    name = reward_file(tmp_path, "return len(sample.text)")
    reward = rewards.named([("math", 1.0), (name, -0.01), ("tinyzero_countdown", 0.0)][:2])
    assert rewards.terms(reward) == [(1.0, "math"), (-0.01, name)] and rewards.reads(reward) == "math"
    right, wrong = score_all([(reward, r"\boxed{5}", "5"), (reward, r"\boxed{6}", "5")])
    assert (right.total, right.parts, right.correct) == (pytest.approx(0.91), {"math": 1.0, "mine": -0.09}, True)
    assert (wrong.total, wrong.correct) == (pytest.approx(-0.09), False)
    [once] = score_all([(f"unsloth_gsm8k + 2 * {name}", "x", "5")])
    assert once.parts == {"unsloth_gsm8k/xmlcount": 0.0, "unsloth_gsm8k/soft_format": 0.0, "mine": 2.0,
                          "unsloth_gsm8k/strict_format": 0.0, "unsloth_gsm8k/integer": 0.0, "unsloth_gsm8k/answer": 0.0}


@pytest.mark.parametrize("reward, told", [
    ([("math", 1.0), ("logic_rl_kk", 1.0)], "reads rows of two kinds"), ([], "several rewards are written"),
    ([("math", "1")], "several rewards are written"), (["math"], "several rewards are written"),
    ("math + 0.5 * mth", "no reward 'mth'; did you mean 'math'?"), ("there.py:mine", "there is no file 'there.py'"),
    ([("math", float("nan"))], "several rewards are written"),
])
def test_a_reward_that_is_none_is_refused_in_one_line(reward, told):
    with pytest.raises(ConfigError) as stopped:
        data.check_rewards(reward)
    assert told in str(stopped.value) and "\n" not in str(stopped.value)


@pytest.mark.parametrize("text, function, told", [
    ("def mine(sample): return 1", "minne", "no function 'minne'; did you mean 'mine'?"),
    ("mine = 5", "mine", "no function 'mine'"), ("def mine(:", "mine", "cannot be run: SyntaxError"),
    ("import no_such_module", "mine", "cannot be run: ModuleNotFoundError"), ("exit()", "mine", "SystemExit"),
])
def test_a_file_without_the_function_is_refused_in_one_line(tmp_path, text, function, told):
    with pytest.raises(ConfigError) as stopped:
        data.check_rewards(f"{write(tmp_path, text)}:{function}")
    assert told in str(stopped.value) and "\n" not in str(stopped.value)


# ---------------------------------------------------------------- in a process that can be killed


def test_a_killable_reward_that_hangs_or_dies_scores_on_error_and_stops_nothing(tmp_path):
    name = reward_file(tmp_path, """
        print("a print is no answer")
        if sample.text == "hang":
            while True: pass
        if sample.text == "die":
            os._exit(1)
        if sample.text == "memory":
            return len([0] * 10**9)
        return sample.is_right(r"\\sqrt{8}", r"2\\sqrt{2}") + sample.n
    """.replace("sample.n", "sample.row['n']"), before="import os", options="on_error=-2, killable=True, seconds=1")
    scores = score_all([(name, text, "5") for text in ("fine", "hang", "die", "memory", "fine")], timeout_s=1.0)
    assert [s.total for s in scores] == [4.0, -2.0, -2.0, -2.0, 4.0]
    assert [set(s.flags) for s in scores] == [set(), {"timeout"}, {"error"}, {"error"}, set()]


def test_a_killable_reward_has_its_own_time_memory_and_directory(tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("yes")
    monkeypatch.chdir(tmp_path)
    name = reward_file(tmp_path, """
        if sample.text == "long":
            time.sleep(1.5)
        if sample.text == "much":
            return len(bytearray(1_500_000_000)) / 1.5e9
        return float(open("words.txt").read() == "yes")
    """, options="killable=True, seconds=6, memory_gb=3")
    assert [s.total for s in score_all([(name, text, "5") for text in ("fine", "long", "much")], timeout_s=1.0)] == [
        1.0, 1.0, 1.0]


def test_a_reward_that_changes_its_row_changes_only_its_own_copy(tmp_path):
    name = reward_file(tmp_path, "sample.row['list'].append(1)\nreturn len(sample.row['list'])")
    scorer, row = rewards.Scorer(num_workers=1), {"list": []}
    for key in range(3):
        scorer.submit(key, name, "x", None, row=row)
    assert [score.total for score in scorer.collect().values()] == [1.0, 1.0, 1.0] and row == {"list": []}
    scorer.close()


def test_a_row_reaches_a_killable_reward_with_its_types(tmp_path):
    name = reward_file(tmp_path, "return sample.row['when'].year", options="killable=True")
    scorer = rewards.Scorer(num_workers=1)
    scorer.submit(0, name, "x", None, row={"when": __import__("datetime").date(2026, 11, 28)})
    assert scorer.collect()[0].total == 2026
    scorer.close()


# ---------------------------------------------------------------- the check at start


def prompts(name, count=3):
    return [data.Prompt(f"custom/{i}", "custom", "ask", (1,), name, str(i), {"question": "ask", "answer": str(i)})
            for i in range(count)]


def check(name, **settings):
    said, workers = [], Workers(num_workers=1, **settings)
    try:
        own.check(name, prompts(name), workers, said.append)
    finally:
        workers.close()
    return said


def test_a_good_reward_is_checked_in_one_line_that_tells_its_time(tmp_path):
    [line] = check(reward_file(tmp_path, "return float(sample.said == sample.answer)"))
    assert "checked on 3 rows and 15 hostile texts" in line and "ms for one" in line


@pytest.mark.parametrize("body, options, told", [
    ("return sample.row['labl']", "", "fails on all 18 responses tried on 3 rows: KeyError: 'labl'; the row was"),
    ("return '1'", "", "it is 1, a str"),
    ("return float(sample.said == sample.answer)", "perfect='I say {answer}'", "perfect gets 0 for custom/0"),
    ("while len(sample.text) > 90_000: pass\nreturn len(sample.text)",
     "seconds=1", "needs more than 1 s for one text (open boxes"),
])
def test_a_reward_that_cannot_work_is_refused_at_start(tmp_path, body, options, told):
    with pytest.raises(ConfigError) as stopped:
        check(reward_file(tmp_path, body, options=options), timeout_s=1.0)
    assert told in str(stopped.value) and stopped.value.exit_code == 5 and "\n" not in str(stopped.value)


@pytest.mark.parametrize("body, options, told", [
    ("return float(sample.text.split('</think>')[1] == 'x')", "on_error=-1", "such a response scores -1"),
    ("return 0.5", "", "gave 0.5 to all"),
    ("return time.time() % 1", "", "to one and the same response"),
    ("while len(sample.text) > 150_000: pass\nreturn len(sample.text)", "killable=True, seconds=1", "fails on 2 of"),
])
def test_a_doubtful_reward_is_told_and_runs(tmp_path, body, options, told):
    said = check(reward_file(tmp_path, body, options=options), timeout_s=1.0)
    assert any(told in line and line.startswith("warning") for line in said[1:]), said


# ---------------------------------------------------------------- what belongs to the fingerprint

FILE = """
import re
from words import GOOD
import helper
lr = 1e-6
LIMIT = 3
STEPS = [1]
STEPS.append(2)
def unused(x): return 1
def twice(x): return 2 * x
class Judge:
    def say(self, sample): return twice(len(sample.text)) + LIMIT
def mine(sample):
    return Judge().say(sample) + len(GOOD) + helper.one() + sum(STEPS)
reward = mine
"""


def sources(folder, text=FILE, words="GOOD = {'a'}\nBAD = 1\n", helper="def one(): return 1\n"):
    folder.mkdir(exist_ok=True)
    write(folder, words, "words.py")
    write(folder, helper, "helper.py")
    return own.source_of(write(folder, text) + ":mine")


@pytest.mark.parametrize("changed", [
    dict(text=FILE.replace("LIMIT = 3", "LIMIT = 4")), dict(text=FILE.replace("2 * x", "3 * x")),
    dict(text=FILE.replace("STEPS.append(2)", "STEPS.append(3)")), dict(words="GOOD = {'b'}\nBAD = 1\n"),
    dict(text=FILE.replace("def mine", "@staticmethod\ndef mine")), dict(helper="def one(): return 2\n"),
    dict(text=FILE.replace("+ LIMIT", "- LIMIT")), dict(text=FILE.replace("import re\n", "") + "Judge = None\n"),
])
def test_whatever_the_function_refers_to_is_part_of_its_source(tmp_path, changed, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sources(tmp_path) != sources(tmp_path, **changed)


@pytest.mark.parametrize("changed", [
    dict(text=FILE.replace("lr = 1e-6", "lr = 2e-6")), dict(text=FILE.replace("return 1\n", "return 9\n")),
    dict(text=FILE + "# a comment\nnum_steps = 5\n"), dict(words="GOOD = {'a'}\nBAD = 2\n"),
])
def test_other_settings_and_functions_are_not(tmp_path, changed, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sources(tmp_path) == sources(tmp_path, **changed)


def test_helpers_in_packages_star_imports_and_imports_inside_belong_to_the_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kit" / "deep").mkdir(parents=True)
    for folder in ("kit", "kit/deep"):
        write(tmp_path / folder, "", "__init__.py")
    files = {"kit/deep/one.py": "A = 1\nB = 1\n", "kit/two.py": "C = 1\n", "three.py": "E = 1\n",
             "starred.py": "D = 1\ndef base(s): return D\n"}

    def source(**changed):
        for name, text in files.items():
            write(tmp_path, changed.get(name.split("/")[-1][:-3], text), name)
        return own.source_of(write(tmp_path, """
            from starred import *
            from kit.deep.one import A
            from kit import two
            def mine(sample):
                from three import E
                return base(sample) + A + two.C + E
        """) + ":mine")

    first = source()
    assert first == source(one="A = 1\nB = 2\n")
    for changed in (dict(one="A = 2\nB = 1\n"), dict(two="C = 2\n"), dict(three="E = 2\n"),
                    dict(starred="D = 2\ndef base(s): return D\n")):
        assert source(**changed) != first, changed


def test_an_inherited_reward_brings_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "LIMIT = 3\ndef mine(sample): return LIMIT\nreward = mine\n"
    first = [own.source_of(write(tmp_path, "from base_recipe import *\nlr = 1\n") + ":mine")
             for _ in [write(tmp_path, text, "base_recipe.py")]]
    again = [own.source_of(str(tmp_path / "mine.py") + ":mine")
             for _ in [write(tmp_path, text.replace("3", "4"), "base_recipe.py")]]
    assert "LIMIT = 3" in first[0] and first != again


def test_a_source_does_not_depend_on_where_the_file_lies(tmp_path):
    text = "LIMIT = 3\ndef mine(sample): return LIMIT\n"
    a, b = (write(folder, text) for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir())
    assert own.sources({f"{a}:mine"}).popitem()[1] == own.sources({f"{b}:mine"}).popitem()[1]


# ---------------------------------------------------------------- a run

RECIPE = '''
name = "run"
data = {"custom:short": 0.5, "custom:long": 0.5}
data_path = {"custom:short": "short.csv", "custom:long": "long.jsonl"}
eval_prompts = 0
columns = {"custom:short": {"question": "text", "answer": "label"}, "custom:long": {"question": "q"}}
template = {"custom:short": "{question} target", "custom:long": "no_template"}
max_prompt_len = 16
max_response_len = 10
prompts_per_step = 2
group_size = 4
num_steps = 4
save_every = 2
checkpointing = False
entropy_coef = 0.01
lr = 3e-3
max_tokens_per_gpu = 60
report_every = 0

from rewards import own_reward

GOOD = {"yes", "no"}


@own_reward(on_error=-1.0, killable=True)
def words(sample):
    """Share of good words; fails where a response begins with a parenthesis."""
    assert not sample.text.startswith("(")
    return sum(word in GOOD for word in sample.text.split()) / max(1, sample.num_tokens)


def longer(sample):
    return {"length": sample.num_tokens / sample.max_tokens, "label": float(sample.row["label"] in sample.text)}


reward = {"custom:short": [(longer, 1.0), (words, 0.5)], "custom:long": words}
'''


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def own_run(folder, model, server, recipe=RECIPE, args=(), name="mine.py", **job):
    folder.mkdir(exist_ok=True)
    (folder / "short.csv").write_text("text,label\n" + "".join(f"numbers {i},{i % 2}\n" for i in range(20)))
    (folder / "long.jsonl").write_text("".join(json.dumps({"q": f"target {i} numbers"}) + "\n" for i in range(20)))
    (folder / name).write_text(recipe)
    return server.run(folder, "train_grpo.py", [name, "--model", model, *args], **job)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, server):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    done = own_run(folder, model, server)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_mixture_with_own_rewards_trains_and_shows_each_part(finished):
    folder, done = finished
    rows = [json.loads(line) for line in open(folder / "out/run/metrics.jsonl")]
    assert {"part/longer/length", "part/longer/label", "part/words", "source/custom:short/reward"} <= rows[-1].keys()
    assert "reward mine.py:words: checked on 8 rows" in done.stdout and "in a process of its own" in done.stdout
    assert (folder / "out/run/code/own/mine.py").read_text() == RECIPE


def test_a_run_with_own_rewards_and_a_mixture_that_is_killed_continues_to_the_bit(finished, tmp_path, model, server):
    folder = tmp_path / "killed"
    killed = own_run(folder, model, server, setup="import kill_at\nkill_at.at('optimizer', 3)\n")
    assert killed.returncode != 0
    again = own_run(folder, model, server)
    assert again.returncode == 0, again.stderr
    assert_same(everything_of(finished[0]), everything_of(folder))


def test_a_run_refuses_another_source_of_its_reward_and_takes_a_moved_one(tmp_path, model, server):
    folder = tmp_path / "changed"
    assert own_run(folder, model, server, args=["--num_steps", "2"]).returncode == 0
    other = RECIPE.replace('{"yes", "no"}', '{"yes"}')
    refused = own_run(folder, model, server, recipe=other)
    assert refused.returncode == 2 and "the source of your own reward is not the one" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    accepted = own_run(folder, model, server, recipe=other, args=["--allow_data_change", "--num_steps", "3"])
    assert accepted.returncode == 0, accepted.stderr
    moved = own_run(folder, model, server, name="moved.py", recipe=other, args=["--allow_data_change"])
    assert moved.returncode == 0, moved.stderr
    renamed = own_run(folder, model, server, recipe=other.replace("words", "other_words"), args=["--num_steps", "5"])
    assert renamed.returncode == 1 and "holds a run with other settings" in renamed.stderr


def test_check_shows_own_rewards_and_prompts(tmp_path, model, server):
    done = own_run(tmp_path / "check", model, server, args=["--check"])
    assert done.returncode == 0, done.stderr
    assert "numbers 0 target" in done.stdout and "custom:short: 20 prompts" in done.stdout
    assert done.stdout.count("made up") == 10 and "check passed" in done.stdout


def test_the_fields_of_a_completion_are_those_that_the_page_names():
    page = open(os.path.join(ROOT, "docs/your_own.md")).read()
    fields = {field.name for field in dataclasses.fields(rewards.Completion)} - {"flags", "notes", "equal"}
    for name in fields | {"thinking", "answer_part", "said", "is_right"}:
        assert f"`{name}" in page, name


def test_the_recipe_of_the_page_passes_its_check(tmp_path, server):
    page = open(os.path.join(ROOT, "docs/your_own.md")).read()
    (tmp_path / "reviews.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    words = ("positive", "negative", "neutral")
    (tmp_path / "reviews.csv").write_text("text,sentiment\n" + "".join(f"film {i},{words[i % 3]}\n" for i in range(90)))
    done = server.run(tmp_path, "train_grpo.py", ["reviews.py", "--check", "--model", "no/such"])
    assert done.returncode == 0, done.stderr
    assert "custom: 81 prompts" in done.stdout and "custom: 9 prompts" in done.stdout


def test_why_explains_an_own_reward_with_the_row_it_reads(tmp_path, monkeypatch, capsys):
    name = reward_file(tmp_path, '"""1 for the label."""\nreturn float(sample.said == sample.row["label"])')
    (tmp_path / "said.txt").write_text("<answer>good</answer>")
    monkeypatch.setattr("sys.argv", ["rewards.py", "--why", str(tmp_path / "said.txt"), "--reward", name, "--answer",
                                     "good", "--row", '{"label": "good"}'])
    why.main()
    out = capsys.readouterr().out
    assert "mine.py:mine: 1 for the label." in out and "+1" in out and "correct yes" in out


def test_why_explains_a_kept_response_of_a_run_with_own_rewards(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["rewards.py", "--why", "out/run/samples/step_000002.jsonl.gz"])
    why.main()
    out = capsys.readouterr().out
    assert "mine.py:" in out and "not as kept" not in out and "Not scored again" not in out
    rows = [json.loads(line) for line in gzip.open("out/run/samples/step_000002.jsonl.gz", "rt")]
    assert all(row["row"]["question"] for row in rows)
