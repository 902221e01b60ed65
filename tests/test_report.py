"""python -m pytest tests/test_report.py: what tools/report computes, and what it makes of damaged and hostile runs."""

import gzip
import json
import os
import random
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from fake_run import HOSTILE, guard_event, make_run, rollout_row, write_rollouts

from onebox.files import read_json
from tools.report import page, pictures, read
from tools.report.compare import paired_bootstrap, verdict
from tools.report.read import clean_rollout, completion, pick_groups, shorten


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "a", skill=0.3), make_run(folder / "b", skill=0.8, seed=1)


def make(*arguments, ok=True):
    """Run tools.report as a user would start it, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "tools.report", *map(str, arguments)], capture_output=True,
                          timeout=600, cwd=ROOT)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err and (done.returncode == 0) == ok, out + err
    return out if ok else err


def page_data(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def load(folder):
    run = page.read_run(str(folder))
    page.read_rollouts(run)
    return run


# ---- the verdict -------------------------------------------------------------------------------------------------
def test_a_constant_difference_has_no_spread_and_noise_has():
    before = {str(i): 0.25 for i in range(50)}
    assert paired_bootstrap(before, {k: 0.75 for k in before}) == (50, 50.0, 50.0, 50.0)
    noise = {str(i): 0.25 + (0.5 if i % 2 else -0.25) for i in range(50)}
    problems, difference, low, high = paired_bootstrap(before, noise)
    assert problems == 50 and difference == pytest.approx(12.5) and low < 12.5 < high
    assert paired_bootstrap(before, {"elsewhere": 1.0}) is None


def test_the_interval_is_that_of_the_mean():
    """100 problems, 0 or 100 points in equal parts: the standard error of the mean is 5 points, 1.96 of it 9.8."""
    before, after = {str(i): 0 for i in range(100)}, {str(i): i % 2 for i in range(100)}
    _, difference, low, high = paired_bootstrap(before, after)
    assert difference == 50 and low == pytest.approx(50 - 9.8, abs=0.8) and high == pytest.approx(50 + 9.8, abs=0.8)
    assert paired_bootstrap(before, after) == paired_bootstrap(before, after)  # the same on every call


def test_pairing_sees_what_two_separate_intervals_would_not():
    """Problems differ widely, the change is +2 points on nearly all of them: only the pairs show it."""
    before = {str(i): (i % 50) / 50 for i in range(200)}
    after = {k: v + (0.02 if int(k) % 10 else -0.02) for k, v in before.items()}
    _, difference, low, high = paired_bootstrap(before, after)
    assert difference == pytest.approx(1.6) and low > 1.2 and high < 2.0


def test_the_verdict_is_one_line_with_both_numbers():
    assert verdict((200, 3.14, 0.41, 5.9)) == "+3.1 points, 95 % [0.4, 5.9]"
    assert verdict((200, 0.4, -1.2, 2.0)) == "no difference can be told: +0.4 points, 95 % [-1.2, 2.0]"
    assert verdict((200, -3.0, -5.0, -1.0)) == "-3.0 points, 95 % [-5.0, -1.0]"
    assert verdict((200, 0.0, 0.0, 0.0)).startswith("no difference can be told")
    assert verdict((3, 100.0, 100.0, 100.0)).startswith("no difference can be told from 3 problems")


def test_two_runs_are_compared_on_their_last_common_evaluation(runs, tmp_path):
    longer = make_run(tmp_path / "longer", steps=40, skill=0.8, seed=2)
    out = make(runs[0], longer, "--out", tmp_path / "c.html")
    line = next(line for line in out.splitlines() if line.startswith("longer against a"))
    assert "step 20, 40 problems" in line and re.search(r": \S.* points, 95 % \[", line)
    data = page_data(tmp_path / "c.html")
    assert [s["name"] for s in data["compare"]["settings"]] == ["num_steps", "lr"]
    diff = data["compare"]["diffs"][0]["files"]
    assert [f["file"] for f in diff] == ["train_grpo.py"] and "+EDIT = 2  # <b>not bold</b>" in diff[0]["lines"]
    assert os.path.exists(tmp_path / "c.png") and os.path.exists(tmp_path / "c_plots" / "eval_correct.png")


def test_a_run_against_itself_makes_no_difference(runs, tmp_path):
    out = make(f"one $\u4e00={runs[0]}", f"same={runs[0]}", "--out", tmp_path / "x.png")
    assert "no difference can be told: +0.0 points, 95 % [0.0, 0.0]" in out and os.path.exists(tmp_path / "x.html")


def test_other_problems_under_the_same_names_are_not_paired(runs, tmp_path):
    other = make_run(tmp_path / "other", seed=3)
    rows = [rollout_row(random.Random(0), 20, "held-out", f"test/{i}", 0, "x", True, gold="another") for i in range(3)]
    write_rollouts(other, 20, rows)
    assert "the same names stand for other problems" in make(runs[0], other, "--out", tmp_path / "c.html")


def test_without_held_out_results_the_few_kept_rollouts_are_compared(runs, tmp_path):
    old = make_run(tmp_path / "old", seed=4)
    os.remove(os.path.join(old, "samples", "held_out.jsonl"))
    out = make(runs[0], old, "--out", tmp_path / "c.html")
    assert "no difference can be told from 3 problems" in out and "which are few" in out


def test_benchmarks_of_both_runs_are_compared(tmp_path):
    folders = [make_run(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    for i, folder in enumerate(folders):
        os.makedirs(os.path.join(folder, "eval", "step_000020"))
        with open(os.path.join(folder, "eval", "step_000020", "gsm8k.jsonl"), "w") as f:
            f.writelines(
                json.dumps({"uid": f"g/{p}", "sample": k, "correct": bool(i or p % 2)}) + "\n" for p in range(40)
                for k in (0, 1, "greedy"))
            f.write('{"uid": "g/1", "sam')  # killed
        with open(os.path.join(folder, "eval", "table.json"), "w") as f:
            json.dump(
                {
                    "rows": [{
                        "step": 20, "benchmark": "gsm8k", "avg_at_k": 0.5 + i / 2, "pass_at_k": 1, "k": 2, "low": 0.4,
                        "high": 0.6, "truncated": 0.0, "mean_len": 10, "problems": 40}, "nonsense"]}, f)
    out = make(*folders, "--out", tmp_path / "c.html")
    assert re.search(r"b against a, gsm8k, step 20, 40 problems: \+50\.0 points, 95 % \[3\d\.\d, 6\d\.\d\]", out)
    assert page_data(tmp_path / "c.html")["tables"][0]["eval"][0]["avg_at_k"] == 0.5


def test_seeds_of_a_group_become_mean_and_band(runs):
    steps, mean, low, high = pictures.series([load(run) for run in runs], "correct")
    assert (steps[-1], mean[-1], low[-1], high[-1]) == (20, pytest.approx(0.55), 0.3, 0.8)


def run_of(*rows):
    return {"rows": [{"step": step, **row} for step, row in enumerate(rows)]}


def test_charts_that_hold_nothing_are_listed_not_drawn():
    run = run_of({"reward": 0.0, "kl": None, "clip_frac": 0.0, "entropy": 0.5, "truncated": 0.0, "wrong_answer": 1.0},
                 {"reward": 0.0, "kl": None, "clip_frac": 0.0, "entropy": 0.0, "truncated": 0.0, "wrong_answer": 0.5})
    charts, empty = pictures.charts_of({"run": [run]})
    assert empty == ["reward", "kl", "clip_frac"]  # of columns that the run has: critic columns are none of a GRPO run
    drawn = {chart["name"]: [column for _, _, column, _ in chart["lines"]] for chart in charts}
    assert drawn == {"errors": ["wrong_answer", "truncated"], "entropy": ["entropy"]}  # beside others a zero says much


def test_in_a_comparison_a_chart_is_empty_where_it_is_for_every_run():
    clipped, never = run_of({"clip_frac": 0.0}, {"clip_frac": 0.1}), run_of({"clip_frac": 0.0}, {"clip_frac": 0.0})
    charts, empty = pictures.charts_of({"a": [clipped], "b": [never]})
    assert empty == [] and [len(chart["lines"]) for chart in charts] == [2]
    assert pictures.charts_of({"a": [never], "b": [never]}) == ([], ["clip_frac"])


def test_the_page_and_the_console_name_the_empty_charts(tmp_path):
    folder = make_run(tmp_path / "run", steps=2, hostile=False)
    with open(os.path.join(folder, "metrics.jsonl"), "w") as f:
        f.writelines(json.dumps({"step": i, "reward": 0.5, "clip_frac": 0.0, "kl": None}) + "\n" for i in range(3))
    assert "empty (0 or null at every step): kl, clip_frac" in make(folder)
    assert page_data(os.path.join(folder, "report.html"))["empty"] == ["kl", "clip_frac"]
    assert sorted(os.listdir(os.path.join(folder, "plots"))) == ["overview.png", "reward.png"]


def test_settings_of_a_base_class_have_their_meaning_too(tmp_path):
    folder = make_run(tmp_path / "run", steps=1)
    os.makedirs(os.path.join(folder, "code", "onebox"))
    with open(os.path.join(folder, "code", "onebox", "rundir.py"), "w") as f:
        f.write("class RunSettings:\n    num_steps: Positive[int] = 1  # how many\n    lr: float = 3.0  # not this\n")
    with open(os.path.join(folder, "code", "train_grpo.py"), "w") as f:
        f.write("class Config(RunSettings):\n    lr: float = 1e-6  # peak\n    name: str = f()  # computed\n")
    found = {row["name"]: row for row in page.settings_of(page.read_run(folder))}
    assert (found["num_steps"]["meaning"], found["num_steps"]["differs"]) == ("how many", False)
    assert (found["lr"]["default"], found["lr"]["meaning"]) == ("1e-06", "peak") and found["name"]["default"] == ""


# ---- one run -----------------------------------------------------------------------------------------------------
def test_the_page_holds_settings_curves_examples_and_rollouts(runs):
    out = make(runs[0])
    data = page_data(os.path.join(runs[0], "report.html"))
    assert "page: " in out and os.path.getsize(os.path.join(runs[0], "report.html")) < 1e6
    run = data["runs"][0]
    assert [(s["name"], s["default"], s["meaning"]) for s in run["settings"]
            if s["differs"]] == [("lr", "1e-06", "peak"), ("name", "run", "of the run"), ("num_steps", "100", "steps")]
    assert {f["label"]: f["note"] for f in run["facts"]}["wall time"] == "0.0233 process-hours"  # 21 rows x 2 s x 2
    assert {"Correctness", "Reward", "Length", "Mismatch", "Reward by source"} <= {c["title"] for c in data["curves"]}
    viewer = data["viewer"][0]["steps"]
    assert ([s["step"] for s in viewer] == list(range(21)) and len(viewer[3]["groups"]) == 2 and
            len(viewer[3]["groups"][0]["samples"]) == 4)
    assert {f"test/{i}" for i in range(3)} == {e["uid"] for e in data["tables"][0]["examples"]}
    assert [s["step"] for s in data["tables"][0]["examples"][0]["steps"]] == [0, 10, 20]
    row = data["tables"][0]["analyses"]["rows"][-1]
    assert row["step"] == 20 and row["reflection_words_per_1000"] == pytest.approx(1000 * 2 / 35, rel=1e-3)
    for name in ("success", "reward", "length", "mismatch", "overview"):
        assert os.path.getsize(os.path.join(runs[0], "plots", f"{name}.png")) > 1000


def test_offsets_are_utf16_and_the_thinking_ends_at_its_tag():
    text = "a\U0001f600 b</think>c"
    shown = shorten(text, [1, 2, 4, 12, 13, 13], {"ratio": [1.0, 1.23456789, 1, 1, None, 2]}, text.index("</think>"))
    assert shown["pieces"] == [1, 2, 2, 8, 1, 0] and sum(shown["pieces"]) == len(text.encode("utf-16-le")) // 2
    assert shown["think"] == 5 and shown["ratio"] == [1, 1.235, 1, 1, None, 2]


def test_a_very_long_response_keeps_head_and_tail_with_their_tokens():
    n = 5 * read.MAX_TOKENS
    text = "x" * n + "</think>y"
    shown = shorten(text, [*range(1, n + 1), n + 8, n + 9], {"entropy": [float(i) for i in range(n + 2)]}, n)
    assert len(shown["pieces"]) == len(shown["entropy"]) == read.MAX_TOKENS + 1 and sum(shown["pieces"]) == len(
        shown["text"])
    assert shown["text"][shown["think"]:] == "</think>y" and shown["entropy"][-1] == pytest.approx(n + 1, rel=1e-2)
    assert "tokens left out" in shown["text"] and None in shown["entropy"]
    assert len(shorten("z" * 10**6, [], {}, 10**6 - 5)["text"]) < read.MAX_CHARS + 100


def test_mismatch_is_that_of_the_policy_that_sampled():
    row = rollout_row(random.Random(0), 1, "train", "u", 0, "a b", True, logprobs=[-9.0, -9.0, -9.0],
                      old_logprobs=[-1.0, -2.0, -3.0], rollout_logprobs=[-1.5, -2.0, -2.5])
    clean = completion(clean_rollout(row, 1))
    assert clean["mismatch"] == [-0.5, 0, 0.5] and clean["mean_mismatch"] == pytest.approx(1 / 3, rel=1e-2)


def test_columns_that_do_not_fit_their_tokens_are_left_out():
    row = rollout_row(random.Random(0), 1, "train", "u", 0, "a b", True)
    assert "entropy" not in completion(clean_rollout(row | {"entropy": [1.0]}, 1))
    assert "pieces" not in completion(clean_rollout(row | {"ends": [1, 99, 3]}, 1))
    assert "pieces" not in completion(clean_rollout(row | {"ends": [3, 1, 3]}, 1))
    assert completion(clean_rollout(row | {"ratio": [float("nan"), 10**400, "x"]}, 1))["ratio"] == [None] * 3
    assert clean_rollout({"step": 1, "uid": "u", "prompt": "p"}, 1) is None
    bare = clean_rollout({"uid": 3, "prompt": "p", "response": "r"}, 1)
    assert bare["uid"] == "3" and bare["reward"] is None and bare["split"] == "train"


def test_the_page_stays_small_and_says_what_it_left_out(tmp_path):
    folder = make_run(tmp_path / "long", steps=60, hostile=False)
    run = load(folder)
    steps, left = pick_groups(run, 100_000)
    assert len(json.dumps(steps)) < 110_000 and "of 61 steps" in left and "groups of the steps shown" in left
    shown = [s["step"] for s in pick_groups(run, 40_000)[0]]  # what is left still spans the run
    assert len(shown) < len(steps) and shown[0] == 0 and shown[-1] == 60 and 20 < shown[len(shown) // 2] < 40
    assert read.spread(list(range(7))) == [0, 6, 3, 1, 4, 2, 5] and read.spread([5]) == [5]
    assert {0, 20, 40, 60} <= set(run["rollouts"]) and len(run["rollouts"]) <= read.MAX_STEPS + 4


def test_a_file_with_damaged_text_is_read_by_the_report_and_refused_by_a_run(tmp_path):
    path = tmp_path / "a.json"
    for content, strict, replaced in ((b'{"name": "a\xff", "b": 1}', {}, {"name": "a\ufffd", "b": 1}),
                                      ("{\"name\": \"\u2603\"}".encode(), {"name": "\u2603"}, {"name": "\u2603"}),
                                      (b"[" * 100_000, {}, {}), (b"[1]", {}, {}), (b'{"a": ', {}, {})):
        path.write_bytes(content)
        assert (read_json(path), read_json(path, errors="replace")) == (strict, replaced)
    (tmp_path / "config.json").write_bytes(b'{"settings": {"name": "a\xff", "lr": 1.0}}')
    assert read.setting(read.read_run(str(tmp_path)), "lr") == 1.0


# ---- the guard ---------------------------------------------------------------------------------------------------
EVENTS = [guard_event(4), guard_event(6, "change", True), guard_event(12, "roll back", True),
          guard_event(17, "stop", True), guard_event(18, "roll back")]
DID = [(4, "observed"), (6, "change"), (12, "roll back"), (17, "stop"), (18, "observed")]


class Axis:
    """What draw() asks of a matplotlib axis, and the vertical lines that it drew."""

    def __init__(self):
        self.marks, self.spines = [], dict.fromkeys(("top", "right"), self)

    def axvline(self, step, **style):
        self.marks.append((step, style))

    def __getattr__(self, name):
        return lambda *arguments, **more: None


def test_every_event_of_the_guard_is_a_mark_in_every_chart_and_picture(tmp_path, monkeypatch):
    """Solid in the color of what was done at steps 6, 12 and 17; dotted gray where the guard only observed."""
    run, drawn = load(make_run(tmp_path / "run", events=EVENTS)), []
    charts, _ = pictures.charts_of({"run": [run]})
    assert len(charts) > 8 and all([(m["step"], m["did"]) for m in chart["marks"]] == DID for chart in charts)
    data = page.page_data({"run": [run]})
    assert [(m["step"], m["did"], m["color"]) for m in data["marks"]] == [(*mark, None) for mark in DID]
    assert data["marks"][2]["line"] == "step 12: divergence since step 10 (reward 0.5 -> 0.125): roll back"
    axis = Axis()
    pictures.draw(axis, charts[0], {})
    assert [(step, style["color"], style["linestyle"]) for step, style in axis.marks] == [
        (step, pictures.MARKS[did], ":" if did == "observed" else "-") for step, did in DID]
    assert [style["label"] for _, style in axis.marks] == ["guard: observed", "guard: change", "guard: roll back",
                                                           "guard: stop", "_"]  # each kind once in the legend
    draw = pictures.draw_marks
    monkeypatch.setattr(pictures, "draw_marks", lambda *all: (drawn.append(all[1:]), draw(*all)))
    assert pictures.pictures({"run": [run]}, str(tmp_path / "plots"), str(tmp_path / "all.png")) == len(charts)
    assert len(drawn) == len(charts) + 6 and all(chart["marks"] for chart, _ in drawn)  # 6 of them in the overview too
    assert [named for _, named in drawn] == [True] * (len(charts) + 1) + [False] * 5  # where the first one says it


def test_a_mark_outside_the_steps_of_a_chart_is_not_drawn():
    charts, _ = pictures.charts_of({"a": [run_of({"reward": 1.0}, {"reward": 0.5}) | {
        "guard": [read.clean_event(guard_event(step)) for step in (-1, 0, 1, 2, 10**8)]}]})
    axis = Axis()
    pictures.draw(axis, charts[0], {})
    assert [step for step, _ in axis.marks] == [0, 1] and len(charts[0]["marks"]) == 5


def test_in_a_comparison_marks_have_the_color_of_their_run_and_means_of_seeds_have_none(tmp_path):
    a, b = (load(make_run(tmp_path / name, events=EVENTS[1:3], hostile=False)) for name in "ab")
    marks = pictures.marks_of({"x": [a], "seeds": [a, b], "y": [b]})
    assert [(m["step"], m["color"], m["line"][:8]) for m in marks] == [
        (6, 0, "x: step "), (12, 0, "x: step "), (6, 2, "y: step "), (12, 2, "y: step ")]
    axis = Axis()
    pictures.draw(axis, pictures.charts_of({"a": [a], "b": [b]})[0][0], {})
    assert [style["color"] for _, style in axis.marks] == [pictures.COLORS[i] for i in (0, 0, 1, 1)]
    assert [style["label"] for _, style in axis.marks] == ["guard: acted", "_", "_", "_"]


def test_the_page_and_the_console_tell_what_the_guard_saw(tmp_path):
    folder = make_run(tmp_path / "run", events=EVENTS)
    out = make(folder)
    assert "guard: step 12: divergence since step 10 (reward 0.5 -> 0.125): roll back\n" in out
    assert out.count("guard: step ") == 5 and out.count("  (observed only)\n") == 2
    told = page_data(os.path.join(folder, "report.html"))["runs"][0]["guard"]
    assert told[2] == {"step": 12, "saw": "divergence", "since": 10, "numbers": [["reward", 0.5, 0.125]],
                       "action": "roll back", "settings": {"lr": "2e-05"}, "to_step": 10, "acted": True,
                       "line": "step 12: divergence since step 10 (reward 0.5 -> 0.125): roll back"}


def test_of_many_events_those_that_the_guard_acted_on_are_shown_first(tmp_path):
    """30 observed ones and one that acted at step 40: 19 lines and that one are printed, 11 are counted."""
    folder = make_run(tmp_path / "run", hostile=False, events=[*map(guard_event, range(30)),
                                                               guard_event(40, "change", True)])
    out = make(folder)
    assert out.count("guard: step ") == 20 and "guard: step 40" in out and "guard: 11 more in guard.jsonl" in out


def test_a_run_without_events_has_no_marks_and_no_note(tmp_path):
    run = load(make_run(tmp_path / "run", hostile=False))
    data = page.page_data({"run": [run]})
    assert run["guard"] == data["marks"] == data["runs"][0]["guard"] == [] and run["notes"] == []


def test_a_damaged_guard_file_is_a_note_and_what_is_whole_is_read(tmp_path):
    folder = make_run(tmp_path / "run", hostile=False)
    with open(os.path.join(folder, "guard.jsonl"), "w") as f:
        f.write(json.dumps(guard_event(6)) + "\n[1]\n{\"saw\": \"no step\"}\n{\"step\": true}\n"
                + json.dumps(guard_event(3)) + '\n{"step": 9, "sa')
    run = load(folder)
    assert [event["step"] for event in run["guard"]] == [3, 6]
    assert run["notes"] == ["guard.jsonl: 2 broken lines left out, lines without a step left out"]
    os.remove(os.path.join(folder, "guard.jsonl"))
    os.makedirs(os.path.join(folder, "guard.jsonl"))
    assert load(folder)["guard"] == [] and "guard.jsonl: cannot be read" in load(folder)["notes"][0]


def test_values_of_any_type_in_a_guard_file_become_plain_ones():
    odd = read.clean_event({
        "step": 1, "saw": [1], "since": "x", "numbers": {"a": 3, "b": [1], "c": [float("nan"), "x"], "d": [10**400, 2]},
        "action": {"x": 1}, "settings": {"lr": None, "t": [2]}, "to_step": 1.5, "line": {"a": 1}, "acted": True})
    assert odd == {"step": 1, "saw": "[1]", "since": None, "numbers": [("c", None, None), ("d", None, 2)],
                   "action": '{"x": 1}', "settings": {"lr": "null", "t": "[2]"}, "to_step": None, "line": '{"a": 1}',
                   "acted": False}  # what was done must be one of ACTIONS
    assert read.clean_event({"step": 2}) == {
        "step": 2, "saw": "?", "since": None, "numbers": [], "action": "none", "settings": {}, "to_step": None,
        "line": "step 2: ?", "acted": False}
    assert [read.clean_event({"step": step}) for step in (None, True, "3", 2.0, 10**12, [])] == [None] * 6
    assert read.clean_event(guard_event(1, "stop", "yes"))["acted"] is False
    assert len(read.clean_event({"step": 1, "line": "x" * 10**6})["line"]) < 1100


def test_hostile_text_of_a_guard_file_stays_text(tmp_path):
    event = guard_event(6, saw=HOSTILE, line=HOSTILE, action=HOSTILE, settings={HOSTILE: HOSTILE},
                        numbers={HOSTILE: [1, 2]})
    folder = make_run(tmp_path / "run", events=[event, guard_event(8, "change", True, saw=HOSTILE, line=HOSTILE)])
    out = make(folder)
    assert not set(out) & {chr(c) for c in (*range(10), *range(11, 32), 127, 0x202E, 0x2028)}
    with open(os.path.join(folder, "report.html"), encoding="utf-8") as f:
        text = f.read()
    assert text.count("</script>") == text.count("<script") == 2 and "<img" not in text
    data = page_data(os.path.join(folder, "report.html"))
    assert data["marks"][0]["line"] == data["runs"][0]["guard"][0]["line"] == HOSTILE  # unchanged in the data


# ---- hostile and damaged -----------------------------------------------------------------------------------------
def test_model_text_cannot_end_the_data_or_reach_the_console(runs):
    out = make(runs[0])
    assert not set(out) & {chr(c) for c in (*range(10), *range(11, 32), 127, 0x202E, 0x2028)}
    with open(os.path.join(runs[0], "report.html"), encoding="utf-8") as f:
        text = f.read()
    assert text.isascii() or not re.search("[\u2028\u202e\x00\x1b]", text)
    assert (text.count("</script>") == 2 and text.count("<script") == 2 and "<img" not in text and
            "window.broken" in text)
    groups = page_data(os.path.join(runs[0], "report.html"))["viewer"][0]["steps"][-1]["groups"]
    assert next(g for g in groups
                if g["prompt"] == HOSTILE)["samples"][0]["text"].startswith(HOSTILE)  # unchanged in the data
    assert "connect-src" not in text and "default-src 'none'" in text and "unsafe" not in text


@pytest.mark.parametrize("argument, message", [("nowhere", "nowhere is not there"), ("--what", "--what is not known"),
                                               ("A=", "no run given"), (ROOT + "/tests", "is not a run")])
def test_bad_arguments_are_one_line(argument, message, tmp_path):
    error = make(argument, ok=False)
    assert message in error and error.count("\n") == 1


def damage(folder, what):
    metrics, config, samples = (os.path.join(folder, n) for n in ("metrics.jsonl", "config.json", "samples"))
    last = os.path.join(samples, "step_000020.jsonl.gz")
    if what == "half a line":
        with open(metrics, "a") as f:
            f.write('{"step": 21, "rew')
    elif what == "empty metrics":
        open(metrics, "w").close()
    elif what == "no metrics":
        os.remove(metrics)
    elif what == "nonsense in metrics":
        with open(metrics, "w") as f:
            f.write('[1]\n"x"\n{"step": "3"}\n{"step": 1, "reward": "a", "correct": {}, "entropy": 1e999, "kl": NaN}\n'
                    '{"step": true}\n' + "[" * 100_000)
    elif what == "no config":
        os.remove(config)
    elif what == "config of another shape":
        with open(config, "w") as f:
            json.dump(
                {"settings": [1], "origin": 3, "command": "x", "versions": [], "world_size": "two", "machine": None}, f)
    elif what == "no samples":
        for name in os.listdir(samples):
            os.remove(os.path.join(samples, name))
    elif what == "half a gzip":
        with open(last, "rb") as f:
            whole = f.read()
        with open(last, "wb") as f:
            f.write(whole[:len(whole) // 2])
    elif what == "no gzip at all":
        with open(last, "wb") as f:
            f.write(b"\x00\xff not gzip")
    elif what == "odd rollouts":
        with gzip.open(last, "wt") as f:
            f.write("\n".join(
                json.dumps(r) for r in ({
                    "uid": "u", "prompt": "p", "response": "r", "parts": [1], "flags": {}, "ends": "no", "tokens": -5,
                    "reward": "x", "advantage": [], "sample": None, "source": 3, "gold": {"a": [1]}, "finish_reason": 7,
                    "correct": None, "step": "x"}, {"uid": None}, [], 3, {"uid": "u", "prompt": 3, "response": "r"})))
    elif what == "the old format":
        for name in os.listdir(samples):
            os.remove(os.path.join(samples, name))
        for step in (0, 20):
            with open(os.path.join(samples, f"step_{step:06d}.jsonl"), "w") as f:
                f.writelines(
                    json.dumps({
                        "step": step, "uid": f"t/{i}", "sample": 0, "prompt": "p", "response": "no wait </think> 3",
                        "reward": 1.0, "correct": step > 0, "format_ok": True, "parts": {}, "tokens": 5,
                        "finish_reason": "stop"}) + "\n" for i in range(9))
    elif what == "odd evaluations":
        os.makedirs(os.path.join(folder, "eval"))
        with open(os.path.join(folder, "eval", "table.json"), "w") as f:
            f.write('{"rows": 3}')
        with open(os.path.join(samples, "held_out.jsonl"), "w") as f:
            f.write('{"step": 20, "correct": {"a": "x", "b": [], "c": [null, 1], "d": {}}}\n'
                    '{"step": 20, "correct": 3}\n{"st')


DAMAGES = {
    "half a line": "1 broken line", "empty metrics": "holds no complete step", "no metrics": "metrics.jsonl is missing",
    "nonsense in metrics": "broken lines", "no config": "config.json is missing", "config of another shape": "",
    "no samples": "samples/ holds no rollouts", "half a gzip": "cannot be read to its end",
    "no gzip at all": "cannot be read to its end", "odd rollouts": "left out", "the old format": "",
    "odd evaluations": "table.json is damaged"}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_run_gives_a_partial_report_that_says_so(what, tmp_path, runs, monkeypatch, capsys):
    folder = make_run(tmp_path / "run", hostile=False)
    damage(folder, what)
    monkeypatch.setattr(page, "pictures", lambda groups, folder, overview: 0)  # slow; one test below draws them
    for arguments in ([folder], [runs[0], folder, "--out", str(tmp_path / "c.html")]):
        monkeypatch.setattr(sys, "argv", ["tools.report", *arguments])
        page.main()
        assert DAMAGES[what] in capsys.readouterr().out
    data = page_data(os.path.join(folder, "report.html"))
    assert any(DAMAGES[what] in note for note in data["runs"][0]["notes"]) or not DAMAGES[what]
    if what == "the old format":
        assert (data["tables"][0]["examples"][0]["learned"] == 1 and
                data["viewer"][0]["steps"][0]["groups"][0]["split"] == "held-out")


def test_pictures_of_a_run_with_nothing_but_nonsense(tmp_path):
    folder = make_run(tmp_path / "run")
    damage(folder, "nonsense in metrics")
    assert "page: " in make(folder)


def test_a_place_that_cannot_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    error = make(runs[0], "--out", tmp_path / "file" / "x.html", ok=False)
    assert "cannot write" in error and error.count("\n") == 1
