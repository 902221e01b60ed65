"""
python -m pytest tests/test_tune.py: the tuner on runs that are made up, a small script in place of train_grpo.py.

A made-up run solves skill(lr) x step / num_steps of 100 problems: 1 at the best lr, 0.25 less for each factor of 2
away. With a larger lr it meets the guard, or crashes.
"""

import json
import math
import os
import re
import shutil
import signal
import sys
import time

import pytest
from conftest import ROOT, run_script

import train_grpo
import train_ppo
from onebox.config import ConfigError, load_config
from tools import space, trials, tune

BEST_LR = 1e-3
RECIPE = """_script = "train_grpo.py"
name = "small"
num_steps = 16
lr = 1e-3
prompts_per_step = 12
group_size = 4
eval_prompts = 100
"""
RUN = r'''
import fcntl, json, math, os, signal, sys, time
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder, steps, names = os.path.join("out", given["--name"]), int(given["--num_steps"]), {}
exec(open(sys.argv[1]).read(), names)
lr = float(given.get("--lr", names["lr"]))
os.makedirs(folder + "/samples", exist_ok=True)
lock = open(folder + "/lock", "a+")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))

def append(name, row):
    with open(name if name == "clock" else f"{folder}/{name}", "a") as f:
        f.write(json.dumps(row) + "\n")

append("starts", {"steps": steps, "pid": os.getpid(), "argv": sys.argv[1:],
                  **{k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}})
append("clock", 3)
if lr > 0.5:
    sys.exit("error: lr = 0.6 is not for this script: take less\nsome more lines")
done = len(open(folder + "/metrics.jsonl").readlines()) if os.path.exists(folder + "/metrics.jsonl") else 0
if done >= steps:
    append("again", steps)
for step in range(done + 1, steps + 1):
    evaluation = 2 if step == steps else 0
    append("clock", 10 + evaluation)
    append("metrics.jsonl", {"step": step, "seconds_step": 10.0 + evaluation, "seconds_eval": evaluation})
    if lr > 0.1 and step == 3:
        append("guard.jsonl", {"step": 2, "saw": "starved", "line": "no harm", "action": "none"})
        append("guard.jsonl", {"step": 3, "saw": "divergence", "action": "roll back",
                               "line": "step 3: grad_norm 40 times the | median"})
        while len(signals) < 2:  # a run that hangs in a long step: the second signal ends it at once
            time.sleep(0.01)
        sys.exit(143)
    if os.path.exists("hang") and step == 3:
        append("clock", json.load(open("hang")))
        while not signals:
            time.sleep(0.01)
    os.makedirs(f"{folder}/step_{step:06d}", exist_ok=True)
    if step == steps:
        share = max(0, 1 - abs(math.log2(lr / 1e-3)) / 4) * step / 16
        right = {str(i): [float(i < 100 * share), int(i < 50 * share)] for i in range(100)}
        append("samples/held_out.jsonl", {"step": step, "correct": right})
        os.makedirs(folder + "/model", exist_ok=True)
    if signals:
        append("stopped", step)
        break
'''


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    """tune("--trials", 3, ..., space="...") runs the tuner with made-up runs in tmp_path and returns its tune.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "POLL_S", 0.01)
    monkeypatch.setattr(tune, "command_of", lambda *what: [sys.executable, "-S", "-E", "run.py", *tune.argv_of(*what)])
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "small.py").write_text(RECIPE)
    (tmp_path / "space.py").write_text('lr = "times", 0.001, 1000\n')

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["tools.tune", "small.py", "--space", "space.py", *map(str, argv)])
        tune.main()
        return known()

    yield run
    signal.signal(signal.SIGTERM, before)


def known(name="small-tune"):
    with open(f"out/{name}/tune.json") as f:
        return json.load(f)


def plan(*argv):
    return tune.plan_of(*tune.parse(["small.py", "--space", "space.py", *map(str, argv)]))


def search(lrs, *argv):
    """Run made-up trials of these lrs, in this order."""
    one = plan(*argv)
    with tune.lock(one.folder):
        state = tune.open_state(one)
        factors = [lr / one.cfg.lr for lr in lrs]
        tune.search(one, state, "target", one.seconds,
                    [({"lr": f}, space.settings_of(one.space, {"lr": f}, one.cfg)) for f in factors])
        tune.finish(one, state)
    return state["trials"]


def rows(run, name):
    if not os.path.exists(f"out/{run}/{name}"):
        return []
    with open(f"out/{run}/{name}") as f:
        return [json.loads(line) for line in f]


def lr_with(skill):
    return BEST_LR * 2 ** (4 * (1 - skill))


# ---------------------------------------------------------------- halving


def test_the_better_half_of_a_rung_goes_on_and_the_first_one_always(tuner):
    """
    floor(n / 2) of n go on, at least 1, judged when a trial arrives. 0.5 is alone. 0.3 is second of 2. 0.75 is first
    everywhere. 0.6 is second of 4 at step 2, and at step 4 second of 3. 0.2 is last.
    """
    found = search([lr_with(skill) for skill in (0.5, 0.3, 0.75, 0.6, 0.2)])
    assert [trial["end"] for trial in found] == ["finished", "lost at step 2", "finished", "lost at step 4",
                                                 "lost at step 2"]
    assert [len(trial["scores"]) for trial in found] == [4, 1, 4, 2, 1]
    assert [start["steps"] for start in rows("small-tune-t003", "starts")] == [2, 4]
    assert [row["step"] for row in rows("small-tune-t002", "metrics.jsonl")] == list(range(1, 17))
    assert "Best: small-tune-t002" in open("out/small-tune/trials.md").read()


def test_the_pruner_gives_the_same_answer_when_it_is_asked_again(tuner):
    """Optuna remembers in the study that a rung was judged, and of the second question it would say: go on."""
    one = plan()
    made = [{"run": str(i), "drawn": {"lr": 1.0 + i}, "scores": [score], "end": "lost at step 2" * i}
            for i, score in enumerate((0.5, 0.4))]
    assert [tune.told(one, made)[1] for _ in range(3)] == [True] * 3
    assert not tune.told(one, made[:1])[1]


def test_of_equals_about_half_go_on(tuner):
    """20 trials at 0, of dead models or of a task too hard for two steps: neither all of them nor the first alone."""
    one, made = plan(), []
    for number in range(20):
        made.append({"run": f"small-tune-t{number:03d}", "drawn": {"lr": 1.0 + number}, "scores": [0.0], "end": ""})
        made[-1]["end"] = "lost at step 2" * tune.told(one, made)[1]
    assert 6 <= sum(not trial["end"] for trial in made) <= 14


def test_checkpoints_of_trials_that_ended_are_removed_but_for_the_best(tuner):
    search([lr_with(skill) for skill in (0.5, 0.3, 0.75)])
    left = {run: sorted(name for name in os.listdir(f"out/{run}") if re.match("step_|model", name))
            for run in ("small-tune-t000", "small-tune-t001", "small-tune-t002")}
    assert left["small-tune-t000"] == left["small-tune-t001"] == []
    assert {"model", "step_000016"} <= set(left["small-tune-t002"])


def test_at_once_in_two_slots_each_with_one_thread(tuner):
    found = search([lr_with(skill) for skill in (0.5, 0.75, 0.6, 0.9)], "--slots", 2)
    assert all(trial["end"] for trial in found)
    starts = [start for trial in found for start in rows(trial["run"], "starts")]
    assert {start["OMP_NUM_THREADS"] for start in starts} == {"1"}


def test_each_slot_has_its_own_gpus(tuner):
    one = plan()
    one.gpus, one.slots, one.processes = ["4", "5", "6", "7"], 2, 2
    os.makedirs(one.folder + "/logs")
    for slot, wanted in enumerate(("4,5", "6,7")):
        trial = {"run": f"r{slot}", "phase": "target", "settings": {}, "scores": []}
        tune.start(one, trial, slot).process.wait()
        assert rows(f"r{slot}", "starts")[0]["CUDA_VISIBLE_DEVICES"] == wanted


# ---------------------------------------------------------------- alarms and crashes


def test_an_alarm_loses_at_once_and_its_process_is_ended(tuner):
    """It was the best one until then: a score from before an alarm neither wins nor stands in the way of others."""
    open("small.py", "a").write("lr = 0.2\n")
    found = search([0.2, lr_with(0.3)])
    assert [trial["end"] for trial in found] == ["guard: step 3: grad_norm 40 times the | median", "finished"]
    assert len(found[0]["scores"]) == 1 and len(rows("small-tune-t000", "metrics.jsonl")) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(rows("small-tune-t000", "starts")[-1]["pid"], 0)
    table = open("out/small-tune/trials.md").read()
    assert "guard: step 3: grad_norm 40 times the \\| median" in table and "Best: small-tune-t001" in table


def test_an_alarm_is_the_worst_to_the_sampler_and_competes_with_none(tuner):
    one = plan()
    made = [{"run": "a", "drawn": {"lr": 1.0}, "scores": [0.9, 0.9], "end": "guard: step 5, gibberish"},
            {"run": "b", "drawn": {"lr": 2.0}, "scores": [0.1], "end": ""}]
    study, loses = tune.told(one, made)
    assert not loses and study.trials[0].intermediate_values == {} and study.trials[0].state.name == "PRUNED"


def test_a_crash_loses_with_its_reason_and_the_search_goes_on(tuner):
    found = search([lr_with(0.5), 0.6, lr_with(0.75)])
    assert [trial["end"] for trial in found] == [
        "finished", "crashed: error: lr = 0.6 is not for this script: take less", "finished"]


def test_three_crashes_at_the_beginning_are_the_recipe_s_fault(tuner):
    open("small.py", "a").write("lr = 0.6\n")
    for _ in range(2):  # the second time without a run
        with pytest.raises(ConfigError) as error:
            search([0.6, 0.7, 0.8, lr_with(0.5)])
        assert "first three trials crashed: error: lr = 0.6 is not for this script" in str(error.value)
    assert not os.path.exists("out/small-tune-t003") and len(rows("small-tune-t000", "starts")) == 1


def test_a_run_that_ends_well_without_its_evaluation_has_crashed(tuner, monkeypatch):
    monkeypatch.setattr(tune, "command_of", lambda *_: [sys.executable, "-c", "print('stopped by max_hours')"])
    with pytest.raises(ConfigError, match="crashed: stopped by max_hours"):
        search([1e-3, 2e-3, 4e-3])


# ---------------------------------------------------------------- kill and resume


class Killed(BaseException):
    pass


def without_seconds(state):
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in state["trials"]]


@pytest.mark.parametrize("written", [True, False])
def test_a_tuner_killed_at_any_of_its_saves_goes_on_to_the_same_table(tuner, monkeypatch, written):
    """Kill it just after, or just before, each third write of tune.json; and at each start again, at the next one."""
    wanted = without_seconds(tuner("--trials", 6))
    assert len({json.dumps(trial["settings"]) for trial in wanted}) == 6
    whole, kills = tune.save, 0
    shutil.rmtree("out")
    for _ in range(100):
        calls = []

        def save(one, state, calls=calls):
            calls.append(1)
            if len(calls) < 3 or written and len(calls) == 3:
                whole(one, state)
            if len(calls) >= 3:
                raise Killed

        monkeypatch.setattr(tune, "save", save)
        try:
            tuner("--trials", 6)
            break
        except Killed:
            kills += 1
    assert kills >= 5
    assert without_seconds(known()) == wanted
    for trial in wanted:
        assert not rows(trial["run"], "again")
        steps = [row["step"] for row in rows(trial["run"], "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))


def test_kill_9_stops_the_run_after_its_step_and_the_same_command_takes_it_up(tuner):
    with open("hang", "w") as f:
        f.write("0")
    child = os.fork()
    if not child:
        try:
            tuner("--trials", 1)
        finally:
            os._exit(1)
    until = time.monotonic() + 60
    while len(rows("small-tune-t000", "metrics.jsonl")) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.remove("hang")
    state = tuner("--trials", 1)
    assert rows("small-tune-t000", "stopped") == [3]  # its own doing, after the signal of the kernel
    assert [start["steps"] for start in rows("small-tune-t000", "starts")] == [2, 4, 4, 8, 16]
    assert [row["step"] for row in rows("small-tune-t000", "metrics.jsonl")] == list(range(1, 17))
    assert state["trials"][0]["end"] == "finished"


def test_two_tuners_do_not_share_a_name(tuner):
    with tune.lock("out/small-tune"), pytest.raises(ConfigError, match="in use by another tools.tune"):
        tuner()


def test_another_command_is_refused_and_what_differs_is_named(tuner):
    tuner("--trials", 1)
    for argv, text, line in [(["--seed", 3], "", "seed: 0 there, 3 now"), (["--lr", 2e-3], "", "lr: 0.001 there"),
                             (["--sampler", "random"], "", "sampler: 'tpe' there, 'random' now"),
                             ([], "clip_high = 'one of', 0.3, 0.2\n", "space: clip_high: None there")]:
        with open("space.py", "w") as f:
            f.write('lr = "times", 0.001, 1000\n' + text)
        with pytest.raises(ConfigError) as error:
            tuner("--trials", 1, *argv)
        assert line in str(error.value) and "\n" not in str(error.value)
    with open("space.py", "w") as f:
        f.write('lr = "times", 0.001, 1000\n')
    assert len(tuner("--trials", 2, "--minutes", 30, "--slots", 2)["trials"]) == 2  # these may change


# ---------------------------------------------------------------- time


@pytest.fixture
def clock(tuner, monkeypatch):
    """Time that only runs let pass: 3 s a start, 10 s a step, 2 s an evaluation."""
    def now():
        if not os.path.exists("clock"):
            return 0.0
        with open("clock") as f:
            return float(sum(json.loads(line) for line in f.read().splitlines(keepends=True) if line.endswith("\n")))
    monkeypatch.setattr(tune, "now", now)
    return now


def test_a_rung_that_does_not_fit_is_not_started_and_more_minutes_go_on(tuner, clock):
    """Rungs of 2, 2, 4 and 8 more steps take 5 + 20, 25, 45 and 85 s: 180 s in all, and 95 s before the last."""
    state = tuner("--minutes", 179 / 60)
    assert state["seconds"] == 95 and len(state["trials"]) == 1 and state["trials"][0]["seconds"] == [25, 25, 45, 0]
    assert "stopped by the clock" in open("out/small-tune/trials.md").read()
    state = tuner("--minutes", 180 / 60)
    assert state["seconds"] == 180 and [trial["end"] for trial in state["trials"]] == ["finished"]
    assert tuner("--minutes", 204 / 60)["seconds"] == 180  # a new trial wants 25 s
    assert tuner("--minutes", 205 / 60)["seconds"] == 205


def test_the_estimate_of_a_rung_is_that_of_its_steps(tuner, clock):
    tuner("--minutes", 179 / 60)
    one, state = plan(), known()
    assert tune.seconds_wanted(one, state["trials"], state["trials"][0]) == 85
    assert tune.seconds_wanted(one, state["trials"]) == 25 and tune.seconds_wanted(one, []) == 0


def test_when_time_is_over_runs_are_stopped_after_their_step_and_stay_open(tuner, clock):
    with open("hang", "w") as f:
        f.write("1000")
    state = tuner("--minutes", 10)
    assert rows("small-tune-t000", "stopped") == [3] and state["trials"][0]["end"] == "" and state["seconds"] >= 600
    os.remove("hang")
    assert tuner("--minutes", 100, "--trials", 1)["trials"][0]["end"] == "finished"
    assert not rows("small-tune-t000", "again")


# ---------------------------------------------------------------- what is drawn


def test_a_restart_draws_what_the_first_start_would_have_drawn_and_never_one_twice(tuner):
    one, made = plan(), []
    for number in range(15):
        drawn, settings = tune.draw(one, made)
        assert (drawn, settings) == tune.draw(one, json.loads(json.dumps(made)))
        assert settings not in [trial["settings"] for trial in made]
        made.append({"run": str(number), "drawn": drawn, "settings": settings, "scores": [0.1],
                     "end": "lost at step 2"})
    assert made[0]["settings"] == {}


def test_another_seed_draws_others_and_a_small_space_ends(tuner, capsys):
    first = [{"run": "0", "drawn": {"lr": 1.0}, "settings": {}, "scores": [0.1], "end": "lost at step 2"}]
    assert tune.draw(plan("--seed", 1), first) != tune.draw(plan("--seed", 2), first)
    with open("space.py", "w") as f:
        f.write('adv_std = "one of", True, False\n')
    assert len(tuner()["trials"]) == 2 and "no new settings" in capsys.readouterr().out


def test_group_size_keeps_the_samples_and_updates_divide_the_prompts(tuner):
    cfg = train_grpo.Config(prompts_per_step=12, group_size=4, updates_per_step=4)
    lines = {"group_size": ("times one of", [1, 0.5, 2, 3, 0.1]), "updates_per_step": ("one of", [4, 5, 1])}

    def settings(size, updates=0):
        return space.settings_of(lines, {"group_size": size, "updates_per_step": updates}, cfg)

    assert settings(0) == {}
    assert settings(1) == {"group_size": 2, "prompts_per_step": 24}
    assert settings(2) == {"group_size": 8, "prompts_per_step": 6, "updates_per_step": 3}  # 4 does not divide 6
    assert settings(3) == {"group_size": 12, "prompts_per_step": 4}
    assert settings(4) == {"group_size": 2, "prompts_per_step": 24}  # not 0, and not a group of one
    assert settings(0, 2) == {"updates_per_step": 1}
    assert settings(0, 1) == {}  # 5 becomes 4
    odd = train_grpo.Config(prompts_per_step=5, group_size=7)
    assert space.settings_of(lines, {"group_size": 1}, odd) == {"group_size": 5, "prompts_per_step": 7}  # of 35, near 4
    ppo = train_ppo.Config(prompts_per_step=8, group_size=1)
    assert space.settings_of(lines, {"group_size": 1}, ppo) == {}  # not 0
    assert space.settings_of(lines, {"group_size": 2}, ppo) == {"group_size": 2, "prompts_per_step": 4}


def test_values_are_the_recipe_s_times_a_factor_in_three_digits():
    assert space.value_of("times", [1 / 30, 30], 1.23456, 1e-3) == 0.00123
    assert space.value_of("times", [1 / 30, 30], 1.0, 1.23456e-3) == 1.23456e-3
    assert space.value_of("between", [100, 400], 123.6, 200) == 124
    assert space.value_of("one of", [True, None, 0.2], 1, True) is None


def test_what_the_script_refuses_is_not_run(tuner):
    """dual_clip must be 0 or above 1; of four candidates two are possible, and the recipe's own is one of them."""
    with open("space.py", "w") as f:
        f.write('dual_clip = "one of", 0.3, 0.5, 3.0\n')
    assert [trial["settings"] for trial in tuner()["trials"]] == [{}, {"dual_clip": 3.0}]


@pytest.mark.parametrize("line, said", [
    ('learning_rate = "times", 0.1, 10', "learning_rate is no setting"), ('lr = 0.1, 10', "must begin with one of"),
    ('clip_hihg = "one of", 0.2', "did you mean 'clip_high'"), ('lr = "times", 10, 0.1', "the smaller first"),
    ('lr = "times", 0, 10', "above 0"), ('lr = "between", 0.1, 0.2', "must lie between 0.1 and 0.2"),
    ('eval_samples = "one of", 1, 2', "would not be measured alike"), ('entropy_coef = "times", 1, 2', "'one of'"),
    ('lr_schedule = "times one of", 1, 2', "'one of'"), ("adv_eps = 1e-5\nimport math", "must begin with"),
    ("_x = 1", "searches no setting"), ('lr = "one of",', "one value or more")])
def test_a_bad_line_of_the_space_is_an_error_in_one_line(tuner, line, said):
    with open("space.py", "w") as f:
        f.write(line + "\n")
    with pytest.raises(ConfigError) as error:
        plan()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_default_space_fits_both_scripts(monkeypatch):
    monkeypatch.chdir(ROOT)
    grpo, ppo = (tune.plan_of(*tune.parse([f"recipes/{name}.py"])) for name in ("demo", "demo_ppo"))
    assert list(grpo.space)[:2] == ["lr", "clip_high"] and grpo.left_out == []
    assert grpo.space["updates_per_step"] == ("one of", [8, 1, 2, 4])  # the recipe's own, 8, is always a candidate
    assert ppo.left_out == ["adv_std"] and "adv_std" not in ppo.space
    assert grpo.rungs == [2, 5, 10] and ppo.rungs == [2, 4, 8]
    assert grpo.schedules == {"lr_schedule": "constant"}
    assert "lr_schedule constant in all runs" in trials.head(ppo, {"seconds": 0})


def test_rungs_are_an_eighth_a_quarter_a_half_and_all_of_the_steps():
    assert tune.rungs_of(16) == [2, 4, 8, 16] and tune.rungs_of(100) == [13, 25, 50, 100]
    assert tune.rungs_of(10) == [2, 5, 10]  # not 3: one more step would not pay for another start
    assert tune.rungs_of(8) == [2, 4, 8] and tune.rungs_of(8, warmup_steps=3) == [4, 8]
    assert tune.rungs_of(3) == [3] and tune.rungs_of(1) == [1]


def test_both_schedules_of_ppo_become_constant(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = tune.plan_of(*tune.parse(["recipes/demo_ppo.py", "--critic_lr_schedule", "cosine"]))
    assert one.schedules == {"lr_schedule": "constant", "critic_lr_schedule": "constant"}


def test_the_command_of_a_run_is_read_as_it_is_meant(tuner, monkeypatch):
    one = plan("--lr", 0.015, "--stop", "</answer>", "--lr_schedule", "linear")
    trial = {"run": "x-t001", "phase": "target", "settings": {"adv_std": False, "lr": 2e-3}}
    cfg, _ = load_config(train_grpo.Config, tune.argv_of(one, trial, 4))
    assert (cfg.lr, cfg.adv_std, cfg.stop, cfg.num_steps, cfg.name) == (2e-3, False, ("</answer>",), 4, "x-t001")
    assert (cfg.eval_every, cfg.report_every, cfg.lr_schedule) == (0, 0, "constant")
    assert cfg.guard == "observe" and one.cfg.lr == 0.015
    monkeypatch.undo()
    command = tune.command_of(one, trial, 4)
    assert command[1] == os.path.join(ROOT, "train_grpo.py") and command[2] == "small.py"
    one.processes = 2
    assert tune.command_of(one, trial, 4)[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


# ---------------------------------------------------------------- scores and results


def test_the_score_is_the_lower_end_of_an_interval_over_problems():
    """48 of 96, with two and two more 50 of 100: 0.5 - 1.96 * sqrt(0.25 * 100 / 99 / 100)."""
    assert trials.score_of([1.0] * 48 + [0.0] * 48) == pytest.approx(0.5 - 1.96 * math.sqrt(0.25 / 99))
    assert trials.score_of([0.5] * 96) > trials.score_of([1.0] * 48 + [0.0] * 48)  # they vary less
    for n in (20, 200):
        scores = [trials.score_of([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
        assert scores == sorted(scores)  # also from 0 to 1 and from n - 1 to n, where a plain interval turns round


def test_where_temperature_is_searched_the_greedy_response_counts(tuner):
    """A made-up run solves half as many problems greedily as sampled."""
    with open("space.py", "w") as f:
        f.write('temperature = "one of", 0.7\n')
    assert tuner("--trials", 1)["trials"][0]["means"][-1] == 0.5
    shutil.rmtree("out")
    with open("space.py", "w") as f:
        f.write('clip_high = "one of", 0.3\n')
    assert tuner("--trials", 1)["trials"][0]["means"][-1] == 1.0
    assert plan("--entropy_control", "temperature").greedy  # which changes the temperature of the evaluation too


def test_the_winner_is_the_best_at_the_highest_rung_and_ties_go_to_the_rungs_below():
    def trial(run, scores, end="lost at step 2"):
        return {"run": run, "scores": scores, "end": end}
    made = [trial("a", [0.9]), trial("b", [0.1, 0.5]), trial("c", [0.2, 0.5]), trial("d", [0.3, 0.4]),
            trial("e", [0.9, 0.9], "guard: step 3, gibberish"), trial("f", [0.9], "crashed: error"), trial("g", [])]
    assert [one["run"] for one in trials.best_first(made)] == ["c", "b", "d", "a"]


def test_spearman_by_hand():
    """1 - 6 sum(d^2) / (n (n^2 - 1)): d = 0, 1, -1, 0 gives 1 - 12 / 60. With a tie: ranks 1, 2.5, 2.5, 4."""
    assert trials.spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert trials.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert trials.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(trials.spearman([1, 1], [1, 2])) and math.isnan(trials.spearman([], []))


def test_the_best_recipe_loads_and_says_what_it_is(tuner):
    search([lr_with(skill) for skill in (0.5, 0.3, 0.75)], "--weight_decay", 0.02, "--lr_schedule", "linear")
    cfg, _ = load_config(train_grpo.Config, ["out/small-tune/best.py"])
    asked, _ = load_config(train_grpo.Config, ["small.py", "--weight_decay", "0.02", "--name", "small-tune-best",
                                               "--lr", f"{lr_with(0.75):.3g}"])
    assert cfg == asked
    text, table = open("out/small-tune/best.py").read(), open("out/small-tune/trials.md").read()
    assert "trial small-tune-t002" in text and "After step 16 held-out 75.0 %" in text
    assert "the recipe as it is: held-out 50.0 %" in text
    assert "lr = 0.002  # instead of 0.001" in text
    for seed in (1, 2, 3):
        assert f"train_grpo.py out/small-tune/best.py --name small-tune-best-s{seed} --seed {seed}" in table


def test_a_recipe_of_the_repository_is_inherited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = tune.plan_of(*tune.parse([os.path.join(ROOT, "recipes", "demo.py"), "--lr", "0.01"]))
    made = {"run": "demo-tune-t003", "settings": {"clip_high": 0.4}, "means": [0.5], "scores": [0.4]}
    text = trials.recipe_of(one, made, made)
    (tmp_path / "best.py").write_text(text)
    cfg, _ = load_config(train_grpo.Config, ["best.py"])
    assert "from recipes.demo import *" in text
    assert (cfg.lr, cfg.clip_high, cfg.lr_schedule, cfg.data) == (0.01, 0.4, "constant", "tiny_countdown")


def test_the_proxy_is_searched_first_and_its_best_four_run_on_the_model(tuner, clock):
    state = tuner("--proxy", "smaller", "--minutes", 40, "--trials", 8)
    proxy, target = trials.trials_of(state, "proxy"), trials.trials_of(state, "target")
    assert len(proxy) == 8 and len(target) == 5 and target[0]["settings"] == {}
    best = [one["settings"] for one in trials.best_first(proxy) if one["settings"]][:4]
    assert [one["settings"] for one in target[1:]] == best
    for one, model in ((proxy[1], "smaller"), (target[1], "Qwen/Qwen2.5-3B")):
        argv = rows(one["run"], "starts")[0]["argv"]
        assert load_config(train_grpo.Config, argv)[0].model == model
    text = open("out/small-tune/trials.md").read()
    assert "proxy and target at step 2: Spearman 1.00 over 5 pairs" in text  # made-up runs are alike on both


def test_the_search_on_the_proxy_has_half_of_the_time(tuner, clock):
    """180 s for the default on the proxy, then 25 s for each trial that loses at once: 5 minutes hold at least 3."""
    state = tuner("--proxy", "smaller", "--minutes", 10)
    spent = sum(sum(one["seconds"]) for one in trials.trials_of(state, "proxy"))
    assert 180 <= spent <= 300 and state["seconds"] <= 600 and len(trials.trials_of(state, "target")) >= 2


def test_without_optuna_one_line_says_what_to_install(tuner, monkeypatch):
    monkeypatch.setattr(tune, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install optuna==5.0.0"):
        tuner()


def test_without_held_out_problems_there_is_no_score(tuner):
    with pytest.raises(ConfigError, match="eval_prompts = 0"):
        tuner("--eval_prompts", 0)


@pytest.mark.slow
def test_two_real_trials(tmp_path):
    small = ("--num_steps 4 --prompts_per_step 8 --group_size 4 --updates_per_step 1 --eval_prompts 8 --eval_samples 1 "
             f"--max_response_len 24 --model {ROOT}/demo_base/model").split()
    done = run_script("-m", "tools.tune", os.path.join(ROOT, "recipes", "demo.py"), "--trials", 2, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((tmp_path / "out/demo-tune/tune.json").read_text())
    assert state["trials"][0]["end"] == "finished" and len(state["trials"]) == 2
    assert all(trial["scores"] for trial in state["trials"] if not trial["end"].startswith("guard"))
    best = run_script(os.path.join(ROOT, "train_grpo.py"), "out/demo-tune/best.py", "--num_steps", 1, cwd=tmp_path)
    assert best.returncode == 0, best.stdout + best.stderr
