"""Rewards and prompt templates of one's own: python -m pytest tests/test_own.py"""

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

import data
import rewards
from conftest import ROOT, save_tiny_model
from onebox.config import ConfigError
from runs import Server, assert_same, everything_of
from tasks import own, own_check
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
    ("return '1'", "it is '1', a str"), ("return [1.0]", "a list"), ("return {}", "a dict"),
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


def test_what_a_response_runs_can_neither_forge_a_score_nor_outlive_its_time(tmp_path):
    name = reward_file(tmp_path, """
        return 0.25 * (subprocess.run([sys.executable, "-c", sample.text], timeout=60).returncode == 0)
    """, before="import subprocess, sys", options="killable=True, seconds=5")
    score = '[{"total": 9.0, "correct": true, "format_ok": true, "parts": {"a": 9.0}, "flags": []}, []]'
    forged = [f"print({json.dumps([number, score])!r}, flush=True)" for number in (0, -1)]
    sleeps = "import time\nopen('slept', 'w').write(str(__import__('os').getpid()))\ntime.sleep(600)"
    os.chdir(tmp_path)
    scores = score_all([(name, text, None) for text in [*forged, "print('[abc]')", "print('[]')", "exit(1)", sleeps]])
    assert [s.total for s in scores] == [0.25, 0.25, 0.25, 0.25, 0.0, 0.0] and scores[-1].flags == {"timeout"}
    pid = int(open("slept").read())
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in open(f"/proc/{pid}/stat").read().split()[2]


def test_slow_rewards_are_waited_for_and_a_slow_import_costs_no_response(tmp_path, capfd):
    name = reward_file(tmp_path, "time.sleep(0.4)\nreturn 1", before="time.sleep(2.5)",
                       options="killable=True, seconds=2")
    scorer = rewards.Scorer(num_workers=1)
    for key in range(6):
        scorer.submit(key, name, "x", None)
    assert [score.total for score in scorer.collect(budget_s=0.1).values()] == [1.0] * 6
    scorer.close()


def test_the_tokens_and_golds_that_a_reward_gets_are_copies(tmp_path):
    name = reward_file(tmp_path, "sample.row['answer'].pop()\nreturn len(sample.row['answer']) + len(sample.token_ids)")
    golds, ids = ["a", "b"], [4, 5]
    scorer = rewards.Scorer(num_workers=1)
    for key in range(2):
        scorer.submit(key, name, "x", golds, row={"answer": golds}, token_ids=ids)
    assert [score.total for score in scorer.collect().values()] == [3.0, 3.0] and (golds, ids) == (["a", "b"], [4, 5])
    with pytest.raises(TypeError):
        rewards.Completion("x", None).is_right("5")
    (tmp_path / "b").mkdir()
    scorer.submit(0, reward_file(tmp_path / "b", "return len(sample.token_ids) - sample.token_ids.pop()"), "x", None,
                  token_ids=ids)
    assert "error" in scorer.collect()[0].flags and ids == [4, 5]
    scorer.close()


@pytest.mark.parametrize("options", ["on_error=math.nan", "full_mark='1'", "seconds=0", "killable=1", "perfect=5"])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match="own_reward"):
        own.load(reward_file(tmp_path, "return 1", options=options))


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
        own_check.check(name, prompts(name), workers, said.append)
    finally:
        workers.close()
    return said


def test_a_good_reward_is_checked_in_one_line_that_tells_its_time(tmp_path):
    [line] = check(reward_file(tmp_path, "return float(sample.said == sample.answer)"))
    assert "checked on 3 rows and 15 hostile texts" in line and "ms for one" in line


@pytest.mark.parametrize("body, options, told", [
    ("return sample.row['labl']", "", "fails on all 18 responses tried on 3 rows: KeyError: 'labl'; the response was"),
    ("return '1'", "", "it is '1', a str"),
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
num_steps, LOW = 5, 1
def twice(x): return 2 * x
class Judge:
    def say(self, sample): return twice(len(sample.text)) + LIMIT
try:
    from helper import two
except ImportError:
    two = None
if LOW:
    def maybe(x): return x
def mine(sample):
    from deep import kit
    return Judge().say(sample) + len(GOOD) + helper.one() + sum(STEPS) + kit.value()
reward = mine
"""
FILES = {"mine.py": FILE, "words.py": "GOOD = {'a'}\n", "deep/__init__.py": "", "deep/more.py": "Z = 1\n",
         "deep/kit.py": "from .more import Z\ndef value(): return Z\n", "base.py": "D = 1\n",
         "helper.py": "from base import *\ndef one(): return D\n"}


def source(folder, **changed):
    """The source as a fresh process sees it."""
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder, changed.get(name.replace("/", "_")[:-3], text), name)
    command = f"from tasks import own; print(own.identity({str(folder / 'mine.py')!r} + ':mine'))"
    return subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    return source(tmp_path_factory.mktemp("sources") / "a")


@pytest.mark.parametrize("changed", [
    dict(mine=FILE.replace("LIMIT = 3", "LIMIT = 4")), dict(mine=FILE.replace("2 * x", "3 * x")),
    dict(mine=FILE.replace("STEPS.append(2)", "STEPS.append(3)")), dict(words="GOOD = {'b'}\n"),
    dict(mine=FILE.replace("def mine", "@staticmethod\ndef mine")), dict(helper="def one(): return 2\n"),
    dict(mine=FILE.replace("+ LIMIT", "- LIMIT")), dict(mine=FILE.replace("return x\ndef mine", "return -x\ndef mine")),
    dict(mine=FILE.replace("two = None", "two = 1")), dict(deep_kit="def value(): return 1\n"), dict(base="D = 2\n"),
    dict(deep_more="Z = 2\n"), dict(mine=FILE.replace("num_steps, LOW = 5, 1", "num_steps, LOW = 5, 0")),
    dict(mine=FILE.replace("import re\n", "import re\nglobals()['len'] = max\n")),
])
def test_whatever_may_decide_what_a_reward_does_is_part_of_its_source(tmp_path, changed, unchanged):
    assert source(tmp_path / "b", **changed) != unchanged


@pytest.mark.parametrize("changed", [
    dict(mine=FILE.replace("lr = 1e-6", "lr = 2e-6")), dict(mine=FILE + "# a comment\nnum_steps = 5\n"),
    dict(mine=FILE.replace("reward = mine", "reward = [(mine, 1.0)]")),
])
def test_other_settings_are_not(tmp_path, changed, unchanged):
    assert source(tmp_path / "b", **changed) == unchanged


@pytest.mark.parametrize("text, other", [
    ("import functools\ndef f(sample, k): return k\nreward = functools.partial(f, k=1)", ("k=1", "k=2")),
    ("reward = lambda sample: 1.0", ("1.0", "0.0")),
    ("# \x0c\x0c\x0c\x0c\ndef reward(sample):\n    one = 1\n    return 1.0", ("1.0", "0.0")),  # no line of Python's
    ("class J:\n    options = {}\n    def __init__(self, k): self.k = k\n"
     "    def __call__(self, sample): return self.k\nreward = J(1)", ("J(1)", "J(2)")),
])
def test_the_line_that_makes_a_reward_belongs_to_its_source(tmp_path, text, other):
    found = [own.source_of(write(folder, one) + ":reward")
             for folder, one in ((tmp_path / "a", text), (tmp_path / "b", text.replace(*other))) if not folder.mkdir()]
    assert found[0] != found[1]
    assert score_all([(f"{tmp_path / 'a' / 'mine.py'}:reward", "x", None)])[0].total == 1.0


def test_a_partial_keeps_the_options_of_its_function(tmp_path):
    name = write(tmp_path, "from functools import partial\nfrom rewards import own_reward\n@own_reward(on_error=-3)\n"
                 "def f(sample, k): return 1 / k\nmine = partial(f, k=0)\n") + ":mine"
    assert score_all([(name, "x", None)])[0].total == -3.0


def test_a_file_with_a_bom_and_notes_that_no_json_holds_are_fine(tmp_path):
    name = reward_file(tmp_path, "sample.note('a', {(1, 2): 3})\nsample.note('long', 'x' * 10_000_000)\nreturn 1",
                       options="killable=True, seconds=2")
    path = name.rpartition(":")[0]
    with open(path, "rb") as f:
        text = f.read()
    with open(path, "wb") as f:
        f.write(b"\xef\xbb\xbf" + text)
    assert score_all([(name, "x", None)])[0].total == 1.0


def test_a_job_larger_than_a_pipe_waits_for_its_file_without_blocking(tmp_path):
    name = reward_file(tmp_path, "return len(sample.row['text'])", before="time.sleep(3)", options="killable=True")
    scorer = rewards.Scorer(num_workers=1)
    scorer.verdicts.ask(None, ["1"], r"\sqrt{2}", "strict")  # starts the process
    while not scorer.verdicts.poll(1.0):
        pass
    start = time.monotonic()
    scorer.submit(0, name, "x", None, row={"text": "a" * 300_000})
    own_seconds = time.monotonic() - start  # the recipe runs here too, for 3 seconds
    assert own_seconds < 5.5 and scorer.collect()[0].total == 300_000
    scorer.close()


def test_an_inherited_reward_brings_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "base_recipe", raising=False)
    write(tmp_path, "LIMIT = 3\ndef mine(sample): return LIMIT\nreward = mine\n", "base_recipe.py")
    assert "LIMIT = 3" in "".join(own.source_of(write(tmp_path, "from base_recipe import *\nlr = 1\n") + ":mine"))


def test_a_file_that_is_edited_while_it_is_used_changes_nothing_or_stops_the_run(tmp_path):
    here = reward_file(tmp_path, "return 1.0")
    (tmp_path / "other").mkdir()
    elsewhere = reward_file(tmp_path / "other", "return 1.0", options="killable=True")
    scorer = rewards.Scorer(num_workers=1)
    for edited in (False, True):
        scorer.submit(0, here, "x", None)
        assert scorer.collect()[0].total == 1.0
        if not edited:
            scorer.submit(0, elsewhere, "x", None)
            assert scorer.collect()[0].total == 1.0
            for name in (here, elsewhere):
                path = name.rpartition(":")[0]
                with open(path) as f:
                    text = f.read()
                with open(path, "w") as f:
                    f.write(text.replace("1.0", "-7.0"))
    scorer.close()  # a new grader process would load the other file
    with pytest.raises(ConfigError, match="was edited while this process uses it") as stopped:
        scorer.submit(0, elsewhere, "x", None)
        scorer.collect()
    assert stopped.value.exit_code == 2
    scorer.close()


def test_a_helper_that_another_module_hides_is_refused(tmp_path):
    write(tmp_path, "A = 1\n", "colorsys.py")
    import colorsys  # noqa: F401   the standard library's
    with pytest.raises(ConfigError, match="imports colorsys, which is .* and not the file beside it"):
        own.load(write(tmp_path, "import colorsys\ndef mine(sample): return 1\n") + ":mine")


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


def test_a_reward_that_raises_on_all_but_its_own_form_needs_a_perfect_response(tmp_path):
    body = "import json\nreturn float(json.loads(sample.text) == sample.row['record'])"
    rows = [data.Prompt(f"custom/{i}", "custom", "ask", (1,), "", None, {"question": "q", "record": {"n": i}})
            for i in range(3)]
    for options, told in (("on_error=-1", "if none of them can be right, own_reward(perfect=...) names one that is"),
                          ("perfect=lambda row: row['no']",
                           "KeyError"), ("perfect='{answer}'", "fails"),
                          ("perfect=lambda row: __import__('json').dumps(row['record'])", None)):
        folder = tmp_path / str(len(options))
        folder.mkdir()
        workers, said = Workers(num_workers=1), []
        name = reward_file(folder, body, options=options)
        if told:
            with pytest.raises(ConfigError) as stopped:
                own_check.check(name, rows, workers, said.append)
            assert told in str(stopped.value), (told, str(stopped.value))
        else:
            own_check.check(name, rows, workers, said.append)
            assert any("fails on" in line for line in said)
        workers.close()


def test_an_option_that_is_misspelled_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="own_reward has no option 'killabel'; did you mean 'killable'"):
        own.load(reward_file(tmp_path, "return 1", options="killabel=True"))


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


TASK_FILE = '''
"""Which of two numbers is larger?"""
from tasks.rows import BadRow, Source

TASK = "larger"
SOURCES = {"larger": Source({"train": "train", "test": "test"}, argument="(:[0-9]+)?")}
SLOTS = {"a": (("a",), str), "b": (("b",), str)}


def holds(row):
    return {"a", "b"} <= row.keys()


def generate(name, argument, split, limit=None):
    first = 0 if split == "train" else 1000
    rows = [{"a": first + i, "b": first + i * 7 % 11, "level": None, "subject": None, "question": f"{first + i}",
             "answer": str(max(first + i, first + i * 7 % 11))} for i in range(40)]
    return rows[:limit]


def clean(row, source):
    if "a" not in row:
        raise BadRow("no a")
    return row


def answer_of(row):
    return row["answer"]


def check_answer(answer):
    if not isinstance(answer, str):
        raise ValueError("a text")


def perfect_answer(answer):
    return answer


def problem_key(row):
    return row["a"], row["b"]


def judge(sample):
    """1 for the larger number."""
    return float(sample.said == sample.answer)
'''


def test_a_task_is_one_file(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
        ".git", ".venv", "out", "results", "__pycache__", "tests"))
    (copy / "tasks" / "larger.py").write_text(TASK_FILE)
    done = subprocess.run([sys.executable, "data.py", "larger", "--count", "1"],
                          cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0 and '"answer": "0"' in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "train_grpo.py", "--check", "--data", "larger", "--template",
                           "{a} or {b}? The larger is", "--reward", "tasks/larger.py:judge", "--model", "no/such",
                           "--eval_prompts", "10"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 or 7? The larger is" in done.stdout or "0 or 0? The larger is" in done.stdout
    assert "check passed" in done.stdout
