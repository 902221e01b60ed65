"""
python -m pytest tests/test_eval.py: the statistics by hand or by enumeration; files; eval.py as a user starts it.
"""

import csv
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script, without_an_engine

import eval as evaluation
import rewards
from eval import Config
from onebox import rundir
from onebox.config import ConfigError
from onebox.distributed import Clock
from onebox.rundir import Progress
from rollout import Rollout
from tasks.sources import BENCHMARKS
from tasks.words import counts_of
from tools import results, statistics, suite
from tools.suite import sweep_settings

# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_of_k_that_hold_a_correct_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [1] * c + [0] * (n - c)
        choices = list(itertools.combinations(samples, k))
        assert statistics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_by_hand_and_its_borders():
    assert statistics.pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the right one
    assert statistics.pass_at_k(32, 8, 1) == pytest.approx(0.25)
    assert statistics.pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)  # exact integers: nothing overflows
    for bad in ((4, 1, 5), (4, 1, 0), (4, 5, 1), (0, 0, 1)):
        with pytest.raises(ValueError, match="pass@k"):
            statistics.pass_at_k(*bad)


def test_the_majority_counts_equal_answers_as_one_and_no_answer_as_no_vote():
    equal = {frozenset(pair) for pair in (("1/2", "0.5"), ("0.5", r"\frac12"), ("1/2", r"\frac12"))}

    def vote(*answers):
        i = statistics.majority(answers, lambda i, j: frozenset((answers[i], answers[j])) in equal)
        return None if i is None else answers[i]

    assert vote("3", "1/2", "0.5", "3", r"\frac12") == "1/2"  # three spellings of a half against two 3
    assert vote("3", None, None, None) == "3"
    assert vote("3", "4", "4", "3") == "3"  # a tie: what was said first
    assert vote(None, None) is None and vote() is None


def completions(*groups, answers=None):
    """One problem a group of verdicts -> rows as in the JSONL."""
    return [{"uid": f"p/{i}", "sample": k, "correct": bool(right), "tokens": 10, "finish_reason": "stop",
             "extracted": answers[i][k] if answers else None}
            for i, group in enumerate(groups) for k, right in enumerate(group)]


def test_a_summary_checked_by_hand():
    rows = completions((1, 0, 0, 0), (1, 1, 0, 0), answers=[["7", "8", "8", "9"], ["5", "5", "6", None]])
    rows += [{"uid": f"p/{i}", "sample": "greedy", "correct": i == 1, "tokens": 30, "finish_reason": "length",
              "extracted": None} for i in range(2)]
    row = statistics.summarize(rows, seconds=2.0, same=lambda a, b: a["extracted"] == b["extracted"])
    assert (row["problems"], row["k"], row["avg_at_k"], row["greedy"]) == (2, 4, pytest.approx(3 / 8), 0.5)
    assert row["pass_at"] == {"1": pytest.approx(3 / 8), "2": pytest.approx((1 / 2 + 5 / 6) / 2), "4": 1.0}
    assert row["pass_at_k"] == 1.0
    assert row["maj_at_k"] == 0.5  # 8 wins the first problem and is wrong, 5 wins the second and is right
    assert (row["mean_len"], row["truncated"]) == (10, 0)  # of the samples, the greedy ones aside
    assert row["tokens_per_second"] == (8 * 10 + 2 * 30) / 2.0


def test_without_samples_the_greedy_response_is_the_one_sample():
    rows = [{**row, "sample": "greedy"} for row in completions((1,), (0,), (0,), (1,))]
    row = statistics.summarize(rows, 1.0, same=lambda a, b: False)
    assert (row["k"], row["avg_at_k"], row["pass_at_k"], row["greedy"], row["maj_at_k"]) == (1, 0.5, 0.5, 0.5, None)
    none_extracted = statistics.summarize(completions((1, 0, 0)), 1.0, same=lambda a, b: False)
    assert none_extracted["maj_at_k"] is None
    empty = statistics.summarize([], 0.0)
    assert (empty["problems"], empty["avg_at_k"], empty["tokens_per_second"]) == (0, 0, None)
    assert math.isnan(empty["low"])


def test_the_bootstrap_interval_of_100_coins_is_the_normal_one():
    low, high = statistics.interval([1.0] * 50 + [0.0] * 50)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.005)
    assert (low, high) == statistics.interval([1.0] * 50 + [0.0] * 50)  # always the same
    wide, narrow = statistics.interval([1.0, 0.0] * 5), statistics.interval([1.0, 0.0] * 500)
    assert narrow[1] - narrow[0] < 0.2 * (wide[1] - wide[0])


def test_problems_that_all_agree_are_no_certainty():
    assert statistics.interval([1.0] * 30) == pytest.approx((0.025 ** (1 / 30), 1.0))  # 0.884: exact binomial bound
    assert statistics.interval([0.0] * 30) == pytest.approx((0.0, 0.116), abs=1e-3)
    assert statistics.interval([0.0]) == pytest.approx((0.0, 0.975))
    assert statistics.interval([1.0]) == pytest.approx((0.025, 1.0))
    low, high = statistics.interval([0.5])
    assert low < 0.05 and high > 0.95
    assert all(math.isnan(x) for x in statistics.interval([]))


def test_the_interval_is_over_problems_not_over_samples():
    """Two problems with 1,000 samples each say little about a third problem."""
    rows = completions([1] * 1000, [0] * 1000)
    row = statistics.summarize(rows, 1.0)
    assert (row["low"], row["high"]) == (0.0, 1.0)


# ---------------------------------------------------------------- tables

HOSTILE = ['a"b', "two\nlines", "\x1b[31mred\x1b[0m", "=1+1", "@SUM(A1)", "-2", "pipe|pipe", "\u202eevil", "\x00",
           "<b>", "a,b", "\t=1", "\ud800"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_break_neither_console_nor_markdown_nor_csv(name):
    text = results.to_text(["benchmark", "n"], [[name, 1], ["x", -2.5]])
    assert len(text.splitlines()) == 3 and all(c.isprintable() for line in text.split("\n") for c in line)
    markdown = results.to_markdown(["benchmark", "n"], [[name, 1]])
    assert len(markdown.splitlines()) == 3 and "<b" not in markdown
    assert len(re.findall(r"(?<!\\)\|", markdown.splitlines()[2])) == 3
    rows = list(csv.reader(io.StringIO(results.to_csv([{"benchmark": name, "n": -2.5}]))))
    assert len(rows) == 2 and rows[1][1] == "-2.5"  # a number stays one
    assert rows[1][0][0] not in "=+-@" and all(c.isprintable() for c in rows[1][0])


def test_the_sweep_table_averages_only_whole_lines():
    rows = [{"step": s, "benchmark": b, "avg_at_k": v} for s, b, v in
            [(0, "gsm8k", 0.5), (0, "kk", 0.25), (20, "gsm8k", 0.75), (20, "kk", 0.5), (100, "gsm8k", 0.8)]]
    head, lines = results.sweep_cells(rows)
    assert head == ["step", "gsm8k", "kk", "average"]
    assert lines == [[0, "50.0", "25.0", "37.5"], [20, "75.0", "50.0", "62.5"], [100, "80.0", "-", "-"]]


# ---------------------------------------------------------------- what a name stands for


def test_a_suite_names_known_benchmarks_or_the_nearest():
    assert suite.parse_suite(" gsm8k, kk,gsm8k ") == ["gsm8k", "kk"]
    with pytest.raises(ConfigError, match="no benchmark is called 'gsm8'; did you mean 'gsm8k'.*known: gsm8k, math500"):
        suite.parse_suite("gsm8,kk")
    with pytest.raises(ConfigError, match="names no benchmark"):
        suite.parse_suite(" , ")


def test_every_benchmark_has_a_source_a_reward_and_templates():
    import data
    from tasks.templates import TEMPLATES

    for name, b in BENCHMARKS.items():
        assert data.parse_name(b.source) and b.reward in rewards.REWARDS and {b.chat, b.text} <= set(TEMPLATES), name
    assert list(BENCHMARKS)[:6] == "gsm8k math500 minerva olympiadbench aime24 amc23".split()


def test_a_directory_gives_each_benchmark_its_own_file_and_never_anothers(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text("{}\n")
    assert suite.find_path("gsm8k", "gsm8k", str(tmp_path), alone=False) == str(tmp_path)
    assert suite.find_path("kk", "kk:2-8", str(tmp_path), alone=False) is None  # generated
    with pytest.raises(ConfigError, match="no file called math500"):
        suite.find_path("math500", "math500", str(tmp_path), alone=False)
    with pytest.raises(ConfigError, match="one file for several"):
        suite.find_path("gsm8k", "gsm8k", str(tmp_path / "gsm8k_test.jsonl"), alone=False)
    with pytest.raises(ConfigError, match="is not there"):
        suite.find_path("gsm8k", "gsm8k", str(tmp_path / "nowhere"), alone=True)
    assert suite.find_path("minerva", "minerva_math", {"minerva": "m.jsonl"}, alone=False) == "m.jsonl"


LOCAL = {"gsm8k": 1319, "math500": 500, "minerva": 272, "olympiadbench": 675, "aime24": 30, "amc23": 40}


@pytest.mark.skipif("ONEBOX_DATA_DIR" not in os.environ, reason="needs local copies of the public data sets")
@pytest.mark.parametrize("name", LOCAL)
def test_local_copies_load_whole(name):
    import data

    b = BENCHMARKS[name]
    path = suite.find_path(name, b.source, os.environ["ONEBOX_DATA_DIR"], alone=False)
    prompts, _ = data.load_prompts(b.source, "no_template", b.reward, None, split=b.split, paths=path,
                                   check_answer=rewards.check_answer)
    assert LOCAL[name] - 3 <= len(prompts) <= LOCAL[name]


def test_the_answer_a_reward_reads_is_what_is_voted_on():
    assert rewards.predicted("math", r"so \boxed{1} or \boxed{\frac{1}{2}}", "0.5") == r"\frac{1}{2}"
    assert rewards.predicted("dr_grpo_r1", "x</think> <answer>7</answer>", "7") == "7"
    assert rewards.predicted("verl_gsm8k", "so\n#### 1,080.\n#### 3", "1080") == "1,080"
    assert rewards.predicted("math", r"\boxed{5}", "5", truncated=True) is None
    assert rewards.predicted("math", "no box", "5") is None
    assert rewards.predicted("math", r"\boxed{ }", "5") is None
    right = "tinyzero_countdown", "x</think> <answer>1+2</answer>", {"target": 3, "numbers": [1, 2]}
    assert rewards.score(*right).correct and rewards.predicted(*right) is None


def test_verl_gsm8k_reads_the_first_number_after_hashes():
    for text, gold, total in (
            ("x\n#### 18", "18", 1), ("#### 1,080", "1080", 1), ("#### 18.00", "18", 1), ("#### -3", "-3", 1),
            ("#### 18\n\nQuestion: y\n#### 7", "7", 0), ("####18", "18", 0), ("18", "18", 0), ("", "18", 0)):
        assert rewards.score("verl_gsm8k", text, gold).total == total, text
    assert rewards.score("verl_gsm8k", "#### 18", "18", truncated=True).total == 0


# ---------------------------------------------------------------- completions on disk


def a_row(uid="p/0", sample=0, **more):
    return {"uid": uid, "sample": sample, "prompt": "q", "response": "r\u2028\n", "correct": True, "reward": 1.0,
            "tokens": 3, "finish_reason": "stop", **more}


def append(folder, name, rank, *rows):
    with open(results.file_of(folder, name, f".part{rank}"), "a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def test_half_a_last_line_is_forgotten_and_damage_elsewhere_is_refused(tmp_path):
    folder, settings, wanted = str(tmp_path), {"seed": 0}, {("p/0", 0), ("p/1", 0), ("p/1", "greedy")}
    results.write_settings(folder, "gsm8k", settings)
    append(folder, "gsm8k", 0, a_row(), a_row("p/1"))
    file = tmp_path / "gsm8k.part0.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole.split(b"\n")[0]) + 1, len(whole)):
        file.write_bytes(whole[:cut])
        found = results.read_rows(folder, "gsm8k", settings, wanted)
        assert set(found) == ({("p/0", 0), ("p/1", 0)} if cut == len(whole) - 1 else {("p/0", 0)})
    results.compact(folder, "gsm8k", found)  # then another session on another rank's file
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["gsm8k.part.jsonl"]
    append(folder, "gsm8k", 1, a_row("p/1", "greedy"))
    assert len(results.read_rows(folder, "gsm8k", settings, wanted)) == len(found) + 1
    for damage in (b"{}\n", b"not json\n", whole.replace(b"p/0", b"q/9"), b"[1]\n", b"\xff\xfe\n", b"\n"):
        file.write_bytes(damage + whole)
        with pytest.raises(ConfigError, match=r"part0.jsonl, line 1 is no completion of this evaluation"):
            results.read_rows(folder, "gsm8k", settings, wanted)


def test_other_settings_are_refused_and_named(tmp_path):
    results.write_settings(str(tmp_path), "gsm8k", {"temperature": 1.0, "model": "a"})
    with pytest.raises(ConfigError, match=r"temperature: 1.0 there, 0.6 now, model: 'a' there, 'b' now"):
        results.read_rows(str(tmp_path), "gsm8k", {"temperature": 0.6, "model": "b"}, set())
    assert results.read_rows(str(tmp_path), "math500", {"temperature": 0.6}, set()) == {}  # another benchmark may join
    for damage in ("{", "[]", '{"gsm8k": 1}'):
        (tmp_path / "settings.json").write_text(damage)
        with pytest.raises(ConfigError, match="settings.json cannot be read"):
            results.read_rows(str(tmp_path), "gsm8k", {}, set())


def test_ranks_of_one_session_share_its_seconds_and_sessions_add_up(tmp_path):
    rows = {(f"p/{i}", 0): a_row(f"p/{i}", session=session, at=at)
            for i, (session, at) in enumerate([("a", 5.0), ("a", 7.0), ("b", 2.0)])}
    assert results.finish(str(tmp_path), "kk", {}, rows, list(rows))[1] == 9.0
    again = results.read_rows(str(tmp_path), "kk", {}, set(rows))
    assert results.finish(str(tmp_path), "kk", {}, again, list(rows))[1] == 9.0  # kept in settings.json


def test_what_the_clock_cut_off_is_made_again(tmp_path):
    results.write_settings(str(tmp_path), "kk", {})
    append(str(tmp_path), "kk", 0, a_row(finish_reason="deadline"))
    assert results.read_rows(str(tmp_path), "kk", {}, {("p/0", 0)}) == {}
    assert len(results.read_rows(str(tmp_path), "kk", {}, {("p/0", 0)}, cut_off=True)) == 1


def test_a_table_keeps_what_a_later_sweep_does_not_make_again(tmp_path):
    """Other benchmarks, and steps whose checkpoint is gone; not what was made with other settings."""
    folder, settings = str(tmp_path), {"kk": {"seed": 0}}
    row = {"avg_at_k": 0.5, **dict.fromkeys(("pass_at_k", "maj_at_k", "k", "low", "high", "greedy", "truncated",
                                             "mean_len", "problems"), 1)}
    made = ((10, "kk", 0), (20, "kk", 0), (20, "gsm8k", 7), (5, "kk", 1))
    old = [{"step": step, "benchmark": name, **row} for step, name, _ in made]
    for step, name, seed in made:
        results.write_settings(f"{folder}/step_{step:06d}", name, {"seed": seed, "model": str(step)})
    results.save_sweep(folder, settings, [{"step": 20, "benchmark": "kk", **row, "avg_at_k": float("nan")}], old)
    found = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(r["step"], r["benchmark"], r["avg_at_k"]) for r in found] == [
        (10, "kk", 0.5), (20, "gsm8k", 0.5), (20, "kk", None)]
    (tmp_path / "table.json").write_text('{"rows": [{"step": 1}]}')
    with pytest.raises(ConfigError, match="table.json cannot be read"):
        results.read_table(folder + "/table.json")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_each_missing_completion_is_asked_for_once(tmp_path, monkeypatch, temperature, one_process):
    keys = [("p/0", "greedy"), ("p/1", "greedy")] + [("p/0", 0)] * (temperature > 0)
    task = SimpleNamespace(name="kk", keys=lambda: keys, settings={"temperature": temperature})
    asked = []
    monkeypatch.setattr(suite, "generate_missing", lambda task, keys, t, *_: asked.extend((key, t) for key in keys))
    monkeypatch.setattr(suite, "finish", lambda folder, name, settings, rows, order: (rows, 0.0))
    monkeypatch.setattr(suite, "summarize", lambda *_: {})
    suite.run_benchmark(task, str(tmp_path), {"model": "w"}, lambda: None, None)
    assert sorted(asked, key=str) == sorted(((key, 0.0 if key[1] == "greedy" else 0.7) for key in keys), key=str)


def test_results_of_another_benchmark_stay_with_the_same_weights_only(tmp_path):
    def result(name):
        return {"benchmark": name, **statistics.summarize(completions((1, 0)), 1.0)}

    for name, weights in (("gsm8k", "w"), ("kk", "w"), ("math500", "v")):
        results.write_settings(str(tmp_path), name, {"model": weights})
    results.save_results(str(tmp_path), [result("gsm8k")], {"weights": "w"}, [])
    old = results.read_table(str(tmp_path / "results.json")) + [result("math500")]
    results.save_results(str(tmp_path), [result("kk")], {"weights": "w"}, old)
    assert [row["benchmark"] for row in results.read_table(str(tmp_path / "results.json"))] == ["gsm8k", "kk"]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


# ---------------------------------------------------------------- the script, with a tiny model and real vLLM

EVAL = os.path.join(ROOT, "eval.py")
ASK = ["--data", "tiny_countdown", "--limit", "12", "--samples", "3", "--max_response_len", "24", "--max_num_seqs", "4"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tied_model):
    """One rank, not interrupted."""
    folder = tmp_path_factory.mktemp("eval")
    done = run_script(EVAL, "--model", tied_model, *ASK, "--output", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def rows_of(folder):
    with open(os.path.join(folder, "results.json")) as f:
        return [{k: v for k, v in row.items() if "second" not in k} for row in json.load(f)["rows"]]


def content(folder, name="tiny_countdown"):
    with open(os.path.join(folder, f"{name}.jsonl"), "rb") as f:
        return f.read()


def test_an_evaluation_leaves_table_results_and_completions(evaluated):
    folder, done = evaluated
    rows = [json.loads(line) for line in content(folder / "whole").splitlines()]
    assert [row["sample"] for row in rows] == [0, 1, 2] * 12 + ["greedy"] * 12
    assert all(set(results.FIELDS) <= set(row) for row in rows)
    assert {*results.FIELDS} == {*"uid sample prompt response correct reward tokens finish_reason".split()}
    assert len({row["response"] for row in rows[:36]}) > 30
    for file in ("results.json", "results.md", "results.csv", "settings.json"):
        assert (folder / "whole" / file).stat().st_size > 0
    assert sorted(p.name for p in (folder / "whole").iterdir()) == [
        "lock", "results.csv", "results.json", "results.md", "settings.json", "tiny_countdown.jsonl"]
    assert "95 % interval" in done.stdout and "tinyzero_countdown" in done.stdout
    found = rows_of(folder / "whole")[0]
    assert (found["problems"], found["k"], found["completions"], found["maj_at_k"]) == (12, 3, 48, None)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_on_two_ranks_and_ends_the_same(evaluated, tied_model):
    folder, _ = evaluated
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1"}
    part = folder / "killed" / "tiny_countdown.part0.jsonl"
    child = subprocess.Popen([sys.executable, EVAL, "--model", tied_model, *ASK, "--output", "killed"], cwd=folder,
                             env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while child.poll() is None and time.monotonic() < deadline:
        if part.exists() and part.read_bytes().count(b"\n") > 5:
            break
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    lines = part.read_bytes().splitlines(keepends=True)
    kept = lines[:8]
    part.write_bytes(b"".join(kept) + b'{"uid": "tiny_countdown/te')
    done = run_script(EVAL, "--model", tied_model, *ASK, "--output", "killed", cwd=folder, nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(kept) > 5
    assert content(folder / "killed") == content(folder / "whole")
    assert rows_of(folder / "killed") == rows_of(folder / "whole")


@pytest.mark.slow
def test_the_same_again_asks_nothing_and_other_settings_are_refused(evaluated, tied_model, untied_model):
    folder, _ = evaluated
    before = content(folder / "whole")
    env = without_an_engine(folder)
    again = run_script(EVAL, "--model", tied_model, *ASK, "--output", "whole", cwd=folder, env=env)
    assert again.returncode == 0 and content(folder / "whole") == before, again.stderr[-2000:]
    other = run_script(EVAL, "--model", untied_model, *ASK, "--output", "whole", cwd=folder)
    assert other.returncode == 1 and "with other settings (model: '" in other.stderr, other.stderr[-500:]
    assert len(other.stderr.strip().splitlines()) == 1 and content(folder / "whole") == before


BAD = [
    (["--suite", "gsm9k"], "did you mean 'gsm8k'?"),
    (["--suite", "gsm8k,math500", "--data_path", "nowhere"], "'nowhere' is not there"),
    (["--suite", "gsm8k,math500", "--data_path", "empty"], "no file called gsm8k*.jsonl"),
    (["--suite", "gsm8k", "--data_path", "empty/none.jsonl"], "no rows in"),
    (["--suite", "gsm8k", "--data", "kk:3"], "suite and data were both given"),
    (["--suite", "kk", "--samples", "{'gsm8k': 3}"], "samples names 'gsm8k', which is not evaluated"),
    (["--suite", "kk", "--samples", "4", "--temperature", "0"], "4 samples at temperature 0"),
    (["--suite", "kk", "--reward", "logic_rl"], "did you mean 'logic_rl_kk'"),
    (["--suite", "kk", "--template", "logic_rl"], "no prompt template is called 'logic_rl'"),
    (["--data", "tiny_countdown", "--stop_ids", "5000"], "must be token ids, 0 to 127"),
    (["--data", "tiny_countdown", "--stop_ids", "<eos>"], "must be token ids, 0 to 127; a text is for --stop"),
    (["--data", "tiny_countdown", "--output", "rows.jsonl"], "holds no completions of eval.py"),
    (["--data", "tiny_countdown", "--max_response_len", "510"], "is more than the 512 positions"),
    (["--model", "out/nothing"], "model directory 'out/nothing' is not there"),
    (["--sweep", "empty"], "is no run's directory: it has no config.json"),
    (["--sweep", "sft"], "is not of a run of train_grpo.py or train_ppo.py: it has no data_path"),
    (["--sweep", "started"], "has no checkpoint and no exported model yet"),
    (["--output", "empty/none.jsonl/x"], "no results can be written to 'empty/none.jsonl/x'"),
    (["--output", "nowhere/x.jsonl"], "there is no directory 'nowhere'"),
]


def test_bad_input_is_one_line_and_an_exit_code_before_weights_load(tied_model, tmp_path):
    """In one process, each through the script's own entry: starting Python fifteen times would take a minute."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "none.jsonl").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')  # no results: a user's own data
    (tmp_path / "started").mkdir()
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json").write_text('{"settings": {"model": "m", "data": "d"}}')
    settings = {"model": tied_model, "data": "tiny_countdown", "eval_data": "", "eval_path": "", "data_path": "",
                "stop": [], "eval_samples": 1, "eval_prompts": 2, "template": "tiny_countdown", "seed": 0,
                "reward": "tinyzero_countdown", "max_prompt_len": 16, "max_response_len": 24, "temperature": 1.0,
                "dtype": "auto"}
    (tmp_path / "started" / "config.json").write_text(json.dumps({"settings": settings}))
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import contextlib, io, json, sys, traceback\nimport eval, rollout\nfrom onebox.crash import entry\n"
        "rollout.make_engine = lambda *a, **k: sys.exit('weights were loaded')\n"
        "for args in json.load(open('cases.json')):\n"
        "    sys.argv, err = ['eval.py', *args], io.StringIO()\n"
        "    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):\n"
        "        try:\n            entry(eval.main)\n        except SystemExit as stop:\n            code = stop.code\n"
        "        except BaseException:\n            code = traceback.format_exc()\n"
        "    print('CASE ' + json.dumps([code, err.getvalue()]))\n")
    start = ["--model", tied_model, "--max_response_len", "24"]
    (tmp_path / "cases.json").write_text(json.dumps([[*start, *args] for args, _ in BAD]))
    done = run_script(driver, cwd=tmp_path)
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert len(found) == len(BAD), done.stderr[-2000:]
    for (args, message), (code, stderr) in zip(BAD, found, strict=True):
        assert code in (1, 2) and message in stderr and stderr.startswith("error: "), (args, code, stderr)
        assert len(stderr.strip().splitlines()) == 1, (args, stderr)


def test_a_sweep_takes_the_runs_own_settings_unless_others_are_given(tmp_path):
    settings = {"model": "m", "data": "countdown", "eval_data": {"math500": 1.0, "aime24": 1.0}, "eval_path": "",
                "data_path": "d", "stop": ["</answer>"], "eval_samples": 3, "eval_prompts": 50, "seed": 5,
                "template": "dr_grpo_r1", "reward": "dr_grpo_r1", "max_prompt_len": 99, "max_response_len": 77,
                "temperature": 0.7, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    cfg = sweep_settings(Config(sweep=str(tmp_path), seed=1), {"sweep": "", "seed": ""})
    assert (cfg.seed, cfg.data, cfg.data_path, cfg.limit) == (1, {"math500": 1.0, "aime24": 1.0}, "d", 50)
    assert cfg.samples == 3
    assert (cfg.chat_template_kwargs, cfg.chat_date) == (None, "2024-07-26")  # a run from before it had them
    assert (cfg.stop, cfg.temperature, cfg.template, cfg.max_response_len) == (("</answer>",), 0.7, "dr_grpo_r1", 77)
    settings |= {"chat_template_kwargs": {"enable_thinking": False}, "chat_date": "2025-02-03"}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    cfg = sweep_settings(Config(sweep=str(tmp_path), suite="math500,kk"), {"sweep": "", "suite": ""})
    assert (cfg.chat_template_kwargs, cfg.chat_date) == ({"enable_thinking": False}, "2025-02-03")
    assert cfg.template == {"math500": "dr_grpo_r1"} == cfg.reward and cfg.data == "" and cfg.samples is None


class StubEngine:
    """Answers as `correct` says: {(prompt, sample): bool}; a greedy response is correct for prompt 1 only."""

    def __init__(self, correct):
        import torch

        self.correct, self.clock, self.calls = correct, Clock(torch.device("cpu")), []

    def tokenizer(self, texts, **_):
        return {"input_ids": [[] for _ in texts]}

    def wake(self, policy, version):
        self.calls.append(("wake", policy, version))

    def sleep(self):
        self.calls.append("sleep")

    def sample(self, prompts, seeds, scorer, temperature):
        assert len({seed for row in seeds for seed in row}) == (sum(map(len, seeds)) if temperature else 1)
        self.clock.phase("rollout")
        correct = self.correct if temperature else {(i, 0): i == 1 for i in range(len(prompts))}
        return [Rollout(i, k, [1], [5, 6], [-0.5, -0.5], "stop", "a", source=p.source, asked=p,
                        counts=counts_of("a", 2, self.tokenizer),
                        score=rewards.Score(1.0, correct[i, k], True, {}))
                for i, p in enumerate(prompts) for k in range(len(seeds[i]))]


class StubRun:
    def __init__(self):
        self.cfg = settings()
        self.correct, self.rows, self.logged, self.main = {}, [], [], True

    def held_out(self, step, per_problem):
        self.correct[step] = per_problem

    def write_samples(self, step, rows):
        self.rows += rows

    def say(self, text):
        self.said = text

    def log(self, row):
        self.logged.append(row)


PROMPTS = [SimpleNamespace(uid=f"{source}/test/{i}", source=source, text="q", answer="5", reward="math")
           for i, source in enumerate(["aime24", "aime24", "gsm8k"])]
CORRECT = {(0, 0): True, (0, 1): False, (1, 0): False, (1, 1): False, (2, 0): True, (2, 1): True}


def settings(**more):
    return SimpleNamespace(**dict(eval_samples=2, seed=0, temperature=1.0, eval_every=2, num_steps=5) | more)


def test_an_evaluation_in_training_tells_benchmarks_and_problems_apart(monkeypatch):
    """Two problems of one source, one of another; two samples each: 1 of 2, 0 of 2 and 2 of 2 correct."""
    monkeypatch.setattr(evaluation, "KEPT_PROMPTS", 1)
    engine, run = StubEngine(CORRECT), StubRun()
    row = evaluation.evaluate(engine, None, PROMPTS, settings(), run, step=3)
    assert run.correct == {3: {"aime24/test/0": [0.5, 0], "aime24/test/1": [0.0, 1], "gsm8k/test/2": [1.0, 0]}}
    assert (row["eval_correct"], row["eval_correct_greedy"]) == (0.5, pytest.approx(1 / 3))
    assert (row["eval/aime24/correct"], row["eval/aime24/correct_greedy"]) == (0.25, 0.5)
    assert (row["eval/gsm8k/correct"], row["eval/gsm8k/correct_greedy"]) == (1.0, 0.0)
    assert all(name.startswith("eval") for name in row)
    assert [(line["sample"], line["split"], line["step"]) for line in run.rows] == [
        (0, "held-out", 3), (1, "held-out", 3), ("greedy", "held-out", 3)]
    seconds = engine.clock.take()
    assert seconds["eval"] > 0 and seconds.get("rollout", 0) == 0  # its sampling is no rollout time of the step


def test_step_0_has_the_columns_of_a_step_too():
    run = StubRun()
    row = evaluation.evaluate(StubEngine({}), None, PROMPTS[:1], settings(eval_samples=0), run, step=0)
    assert run.correct == {0: {"aime24/test/0": [None, 0]}} and not any("aime24" in name for name in row)
    assert (row["reward"], row["eval_reward"], row["correct"], row["eval_rollouts"]) == (1.0, 1.0, 0.0, 0)


def test_a_step_is_logged_with_an_evaluation_where_one_is_due():
    evaluated = []
    for step in range(6):
        engine, run, progress = StubEngine(CORRECT), StubRun(), Progress(step=step, row={"step": step, "lr": 1.0})
        evaluation.evaluate_and_log(progress, run, engine, "policy", None, PROMPTS, settings())
        evaluated += [step] * ("eval_correct" in run.logged[0])
        assert engine.calls == ([("wake", "policy", step)] if step in evaluated else [])  # awake for the next step
        assert hasattr(run, "said") == (step == 0)  # the first one may take long
        assert run.logged[0]["lr"] == 1.0 and progress.row == {"step": step, "lr": 1.0}
    assert evaluated == [0, 2, 4, 5]  # before any update, every second, the last
    run = StubRun()
    evaluation.evaluate_and_log(Progress(step=2, row={"step": 2}), run, None, None, None, [], settings())
    assert run.logged == [{"step": 2}]  # --eval_prompts 0


def test_a_resumed_run_drops_what_held_out_says_of_later_steps(tmp_path):
    run = rundir.Run.__new__(rundir.Run)
    run.main, run.path, run.unwritten, run.wandb = True, str(tmp_path), {}, None
    (tmp_path / "samples").mkdir()
    for step in (0, 10, 20):
        run.held_out(step, {"p/0": [0.5, 1]})
        run.write_row({"step": step, "eval_correct": 0.5})
    with open(tmp_path / "samples/held_out.jsonl", "a") as f:
        f.write('{"step": 30, "corr')
    run.forget_after(10)
    with open(tmp_path / "samples/held_out.jsonl") as f:
        assert [json.loads(line) for line in f] == [{"step": s, "correct": {"p/0": [0.5, 1]}} for s in (0, 10)]


def test_an_evaluation_whose_row_was_not_written_any_more_is_forgotten(tmp_path):
    run = rundir.Run.__new__(rundir.Run)
    run.main, run.path, run.unwritten, run.wandb = True, str(tmp_path), {}, None
    (tmp_path / "samples").mkdir()
    for step in (0, 10):
        run.held_out(step, {"p/0": [0.5, 1]})
    run.write_row({"step": 0, "eval_correct": 0.5})
    assert run.forget_after(10) == [0]  # the checkpoint of step 10 is there, its row is not
    with open(tmp_path / "samples/held_out.jsonl") as f:
        assert [json.loads(line)["step"] for line in f] == [0]
