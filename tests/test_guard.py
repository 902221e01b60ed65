"""
python -m pytest tests/test_guard.py: what the guard sees in series made by hand, and what it does to a run, through
kills. Series have 16 prompts a step and a reward of std 0.45, so that chance moves a mean by 0.45 / sqrt(16) = 0.11.
"""

import copy
import json
import os
import random
import signal

import pytest
from conftest import ROOT, run_script
from runs import GRPO, PPO, Server, assert_same, checkpoints, everything_of, metrics_of

import train_grpo
import train_ppo
from onebox.rundir import Progress
from onebox.steering import adapt_entropy_coef, adapt_temperature, control_entropy, current_settings
from tools import guard
from tools.alarms import alarms

SETTINGS = dict(prompts_per_step=16, eval_prompts=128, eval_samples=2, dynamic_sampling=0, num_steps=100, lr=1e-4,
                kl_in="none", kl_coef=0.001,
                updates_per_step=1, epochs_per_step=1, clip_low=0.2, clip_high=0.2, entropy_coef=0.0,
                entropy_target=0.0, temperature=1.0, mismatch_cap=2.0, on_truncated="keep", guard="observe")


def row(step, noise=None, **values):
    """A row of a run that goes well, with Gaussian noise of the size that 16 prompts have."""
    gauss = (lambda size: noise.gauss(0, size)) if noise else (lambda size: 0.0)
    made = dict(step=step, reward=0.5 + gauss(0.09), reward_std=0.45, correct=0.45,
                truncated=max(0.0, 0.05 + gauss(0.03)), format_error=max(0.0, 0.1 + gauss(0.03)),
                entropy=0.25 + gauss(0.01), response_len=60 + gauss(5),
                zero_variance_groups=max(0.0, 0.1 + gauss(0.07)), grad_norm=0.1 * 2 ** gauss(0.5), approx_kl=0.0,
                mismatch_mean=1e-6)
    return made | values


def events_of(rows, **settings):
    return alarms(rows, SETTINGS | settings)


def well(count, seed=0, start=1):
    noise = random.Random(seed)
    return [row(step, noise) for step in range(start, start + count)]


# ---------------------------------------------------------------- what is no alarm


def test_a_thousand_steps_of_noise_are_no_alarm():
    assert events_of(well(1000)) == [] and events_of(well(1000, seed=1)) == []


def test_the_noise_of_four_prompts_is_no_alarm():
    """A step's reward moves by 0.45 / sqrt(4) = 0.22, so three in a row lie 0.3 below the best level now and then."""
    rows = [r | {"reward": 0.5 + 2.4 * (r["reward"] - 0.5)} for r in well(600, seed=3)]
    assert events_of(rows, prompts_per_step=4) == []


def test_learning_is_no_alarm():
    """Reward up, length doubled, entropy down to a third, formats right, groups agree because they are right."""
    noise, rows = random.Random(0), []
    for step in range(1, 201):
        way = step / 200
        rows.append(row(step, noise, reward=0.3 + 0.65 * way + noise.gauss(0, 0.09 * (1 - way)),
                        correct=0.2 + 0.78 * way, reward_std=0.45 * (1 - 0.8 * way), response_len=60 * (1 + way),
                        entropy=0.3 - 0.2 * way,
                        format_error=0.2 * (1 - way), zero_variance_groups=0.9 * way))
    assert events_of(rows) == []


def test_one_bad_batch_is_no_alarm():
    rows = well(60)
    rows[40] |= {"reward": 0.05, "truncated": 0.5, "grad_norm": 3.0}
    assert events_of(rows) == []


def test_entropy_that_falls_or_rises_without_harm_is_no_alarm():
    for factor in (0.97, 1.03):  # to a fifth and to five times what it was
        rows = [r | {"entropy": 0.25 * factor ** r["step"]} for r in well(55)]
        assert events_of(rows) == [], factor


def test_missing_values_and_first_steps_are_no_alarm():
    nothing = {"step": 1, "reward": None, "entropy": float("nan"), "grad_norm": None}
    assert events_of([nothing]) == [] and events_of([row(0), row(1)]) == []
    rows = well(60)
    for r in rows[10:40]:
        r.update(dict.fromkeys(("reward", "reward_std", "entropy", "truncated", "approx_kl"), None))
    assert events_of(rows) == []
    assert events_of([{"step": step} for step in range(50)]) == []


# ---------------------------------------------------------------- what is one, and its name


def collapsed(step, seed=7, **values):
    noise = random.Random(seed + step)
    return row(step, noise, reward=0.03, correct=0.01, reward_std=0.1) | values


def alarm(bad, before=40, **settings):
    rows = well(before) + [bad(step) for step in range(before + 1, before + 11)]
    found = events_of(rows, **settings)
    return found[0] if found else None


GIBBERISH = dict(entropy=0.8, truncated=0.6, format_error=0.7, response_len=140)


def test_a_reward_that_falls_is_an_alarm_within_four_steps_and_says_since_when():
    event = alarm(collapsed)
    assert event["saw"] == "divergence" and 42 <= event["step"] <= 44 and event["since"] == 41
    assert event["action"] == "roll back" and event["settings"] == {"lr": pytest.approx(2e-5)}
    before, now = event["numbers"]["reward"]
    assert abs(before - 0.5) < 0.1 and now == 0.03
    assert event["line"].startswith(f"step {event['step']}: divergence since step 41 (")
    assert "lr 0.0001 -> 2e-05" in event["line"]


@pytest.mark.parametrize("settings, change", [
    (dict(), {"lr": pytest.approx(2e-5)}), (dict(temperature=1.4), {"temperature": 1.0}),
    (dict(entropy_coef=0.1, temperature=1.4), {"entropy_coef": 0.0}),
    (dict(entropy_target=0.3), {"entropy_coef": 0.0, "entropy_target": 0.0})])
def test_gibberish_is_entropy_up_and_mended_by_what_drives_it(settings, change):
    event = alarm(lambda step: collapsed(step, **GIBBERISH), **settings)
    assert event["saw"] == "gibberish" and event["step"] <= 44 and event["settings"] == change
    assert {"entropy", "truncated", "format_error"} <= event["numbers"].keys()


@pytest.mark.parametrize("settings, change", [
    (dict(clip_high=100.0), {"updates_per_step": 1}), (dict(), {"updates_per_step": 1}),
    (dict(updates_per_step=1, epochs_per_step=4), {"epochs_per_step": 1})])
def test_off_policy_is_approx_kl_up_under_several_updates(settings, change):
    settings = {"updates_per_step": 8} | settings
    rows = [r | {"approx_kl": 1e-3} for r in well(40)]
    rows += [collapsed(step, approx_kl=0.5) for step in range(41, 51)]
    event = events_of(rows, **settings)[0]
    assert event["saw"] == "off-policy" and event["step"] <= 44 and event["settings"] == change


def test_entropy_gone_is_entropy_down_and_groups_that_agree():
    event = alarm(lambda step: collapsed(step, entropy=0.05, zero_variance_groups=0.8), temperature=0.5)
    assert event["saw"] == "entropy gone" and event["settings"] == {"temperature": 1.0}


def test_a_length_cap_is_truncation_that_rises_while_the_reward_stands():
    def rows(gain):
        return well(20) + [row(step, random.Random(step), truncated=min(0.6, 0.05 + 0.03 * (step - 20)),
                               reward=0.5 + gain * (step - 20)) for step in range(21, 51)]
    event = events_of(rows(0.0))[0]
    assert (event["saw"], event["action"], event["settings"]) == ("length cap", "none", {})
    assert "raise max_response_len" in event["line"]  # which a run cannot: its engine's memory is laid out
    assert not [e for e in events_of(rows(0.015)) if e["saw"] == "length cap"]  # it pays: longer and better


def test_a_reward_hack_is_held_out_success_that_falls_while_the_reward_does_not():
    rows = well(60)
    for r in rows:
        r["reward"] += max(0, r["step"] - 20) / 100
        r["correct"] = r["reward"]
    for step, success in ((10, 0.5), (20, 0.52), (30, 0.5), (40, 0.3), (50, 0.2)):
        rows[step - 1]["eval_correct"] = success
    event = events_of(rows)[0]
    assert (event["saw"], event["step"], event["action"], event["to_step"]) == ("reward hack", 40, "stop", 20)
    assert event["settings"] == {} and "no setting mends it" in event["line"]
    for r in rows:
        r["correct"] = 0.1  # what training itself finds right fell too: no hole in what is right
    assert events_of(rows)[0]["saw"] == "divergence"


def test_much_that_only_the_reward_finds_right_is_a_reward_hack_before_anything_falls():
    rows = [r | {"correct": 0.8, "reward": 0.8 + (r["reward"] - 0.5)} for r in well(60)]
    for step in (10, 20, 30, 40):
        rows[step - 1]["eval_correct"] = 0.2
    [event] = events_of(rows)
    assert (event["saw"], event["step"], event["action"]) == ("reward hack", 30, "none")  # after a quarter of 100 steps
    assert events_of([r | {"correct": 0.5} for r in rows]) == []  # training problems may be easier


def test_held_out_success_may_fall_as_far_as_chance_explains():
    """128 problems, 0.5 and 0.38: a standard error of sqrt(2 * 0.25 / 128) = 0.062, times 2.6 = 0.16."""
    for now, told in ((0.36, False), (0.30, True)):
        rows = well(60)
        rows[19]["eval_correct"], rows[39]["eval_correct"] = 0.5, now
        assert bool(events_of(rows)) == told, now


def test_an_engine_that_disagrees_is_a_mismatch():
    event = alarm(lambda step: row(step, mismatch_mean=0.03))
    assert event["saw"] == "mismatch" and event["step"] == 42 and event["action"] == "none"  # nothing is lost yet
    assert alarm(lambda step: collapsed(step, mismatch_mean=0.05))["saw"] == "mismatch"
    # above the bound of bfloat16, which ends a run by default, it needs no past
    assert events_of([row(1), row(2, mismatch_mean=0.06)])[0]["step"] == 2
    assert alarm(lambda step: row(step, mismatch_mean=0.03), mismatch_cap=0.0)["settings"] == {"mismatch_cap": 2.0}


def test_groups_that_agree_in_being_wrong_are_starved():
    event = alarm(lambda step: row(step, zero_variance_groups=1.0, correct=0.0, reward=0.5))
    assert event["saw"] == "starved" and event["step"] == 45
    assert alarm(lambda step: row(step, zero_variance_groups=1.0, correct=1.0, reward=1.0)) is None  # all is learned


@pytest.mark.parametrize("far, change, published", [
    (dict(kl_in="loss_k3", kl_coef=1.0), {"kl_coef": 0.01}, dict(kl_in="loss_k3", kl_coef=0.04)),
    (dict(temperature=1.5), {"temperature": 1.0}, dict(temperature=1.2)),
    (dict(temperature=0.1), {"temperature": 1.0}, dict(temperature=0.6))])
def test_a_run_that_a_setting_far_out_holds_back_gets_less_of_it(far, change, published):
    rows = well(60)
    for step in (10, 20, 30, 40):
        rows[step - 1]["eval_correct"] = 0.3
    event = events_of(rows, **far)[0]
    assert (event["saw"], event["step"], event["settings"]) == ("held back", 30, change)  # after a quarter of 100 steps
    assert events_of(rows, **published) == []  # it may be the task
    rows[29]["eval_correct"] = 0.6
    assert events_of(rows[:35], **far) == []  # it has risen


def test_what_no_setting_mends_is_said_every_twenty_steps_and_hides_nothing_else():
    rows = well(20) + [row(step, zero_variance_groups=1.0, correct=0.0) for step in range(21, 62)]
    assert [e["step"] for e in events_of(rows)] == [25, 45] and {e["saw"] for e in events_of(rows)} == {"starved"}
    rows[35:] = [collapsed(step, zero_variance_groups=1.0) for step in range(36, 62)]
    assert [e["saw"] for e in events_of(rows)][:2] == ["starved", "divergence"]


def test_groups_that_agree_in_being_right_or_are_replaced_are_no_alarm():
    rows = [row(step, zero_variance_groups=0.95, correct=0.9) for step in range(1, 60)]
    assert events_of(rows) == []
    rows = [r | {"correct": 0.1} for r in rows]
    assert events_of(rows, dynamic_sampling=3) == [] and events_of(rows)[0]["saw"] == "starved"


def test_the_row_of_step_0_is_no_part_of_the_training_baseline():
    """Held-out problems may be easier: 0.75 there, 0.35 in training."""
    rows = [row(0, reward=0.75, correct=0.75, eval_correct=0.75)]
    rows += [r | {"reward": r["reward"] - 0.15} for r in well(300)]
    assert events_of(rows) == []


def test_thirty_problems_and_many_evaluations_are_no_alarm():
    """Each evaluation is 30 fair coins; the best of 100 lies 2.4 standard errors of 0.09 above the mean."""
    noise, alarms_of_runs = random.Random(0), 0
    for run in range(20):
        rows = well(200, seed=run)
        for r in rows[9::10]:
            r |= {"eval_correct": sum(noise.random() < 0.5 for _ in range(30)) / 30, "eval_rollouts": 60}
        alarms_of_runs += len(events_of(rows))
    assert alarms_of_runs == 0


def test_a_reward_that_falls_while_held_out_success_stands_is_forgiven_there():
    """Harder prompts from step 31 on. The evaluation of step 32 is as good as the one before."""
    rows = well(30) + [r | {"reward": r["reward"] - 0.25} for r in well(60, start=31)]
    rows[19]["eval_correct"], rows[31]["eval_correct"] = 0.5, 0.5
    assert events_of(rows) == []


def test_a_rise_of_the_mismatch_with_the_entropy_is_no_fault_of_the_engine():
    rows = well(40) + [row(step, mismatch_mean=0.01 * 1.07 ** (step - 40), entropy=0.25 * 1.07 ** (step - 40))
                       for step in range(41, 62)]
    rows[:40] = [r | {"mismatch_mean": 0.01} for r in rows[:40]]  # as in bfloat16
    assert events_of(rows) == []


def test_no_row_makes_the_guard_raise():
    noise, odd = random.Random(0), (None, float("nan"), float("inf"), -1.0, 0.0, 0.5, 1e9, "text", True, {})
    state, names = guard.new_state(), [*guard.SIGNALS, "reward_std", "correct", "eval_correct", "eval_rollouts"]
    for step in range(400):
        r = {name: noise.choice(odd) for name in names if noise.random() < 0.8}
        r |= {name: noise.choice((None, float("nan"), 0.0, 0.3, 1.0)) for name in ("correct", "eval_correct")}
        state, event = guard.look(state, {"step": step, **r}, SETTINGS | {"guard": noise.choice(("act", "observe"))})
        json.dumps([state, event], allow_nan=False)


# ---------------------------------------------------------------- acting


def act(rows, settings):
    """Go through rows as onebox/steering.py does, with the settings as they become. Return the events."""
    state, events, settings = guard.new_state(), [], SETTINGS | {"guard": "act"} | settings
    for r in rows:
        state, event = guard.look(state, r, settings)
        if event and event["action"] != "none":
            events.append(event)
            settings = settings | event["settings"]
    return events, settings, state


def test_three_roll_backs_then_the_run_is_stopped_and_lr_keeps_its_bound():
    rows = [row(0, eval_correct=0.4), *well(10), *(collapsed(step) for step in range(11, 100))]
    for r in rows[15::5]:
        r["eval_correct"] = 0.02
    events, settings, state = act(rows, {})
    assert [e["action"] for e in events[:4]] == ["roll back"] * 3 + ["stop"]
    assert [e["to_step"] for e in events[:4]] == [0] * 4 and state["roll_backs"] == 3
    assert settings["lr"] == pytest.approx(1e-4 / 5 ** 3)


def test_no_setting_leaves_its_bounds_whatever_is_seen():
    began = {"lr": 1e-4}
    settings = SETTINGS | dict(temperature=1.7, kl_in="loss_k3", kl_coef=1.0, updates_per_step=16, epochs_per_step=4,
                               clip_high=100.0, entropy_coef=0.3, mismatch_cap=0.0)
    names = ("gibberish", "off-policy", "divergence", "entropy gone", "mismatch", "length cap", "held back",
             "reward hack", "starved")
    for saw in names * 40:
        change = guard.remedy(saw, settings, began)
        assert change.keys() <= {*settings}, saw
        settings |= change
    assert settings["lr"] == pytest.approx(1e-4 / 5 ** 4) and settings["kl_coef"] == pytest.approx(0.01)
    assert settings["temperature"] == 1.0
    assert settings["updates_per_step"] == settings["epochs_per_step"] == 1 and settings["entropy_coef"] == 0
    assert all(guard.remedy(saw, settings | {"lr": 1e-8}, began) == {} for saw in names)  # then it has nothing left


def test_weights_are_good_once_a_later_evaluation_has_confirmed_it():
    rows = [row(0, eval_correct=0.4), *well(30)]
    for step, success in ((10, 0.45), (20, 0.46), (30, 0.2)):
        rows[step]["eval_correct"] = success
    [event], _, state = act(rows, {})
    assert (event["step"], event["to_step"]) == (30, 10)  # 20 may have begun to fall
    assert [step for step, _ in state["goods"]] == [10] and [step for step, _ in state["evals"]] == [0, 10]
    rows[20]["eval_correct"] = None
    assert act(rows, {})[0][0]["to_step"] == 0


def test_after_a_roll_back_the_past_is_that_of_the_weights_that_came_back():
    rows = [row(0, eval_correct=0.4), *well(20)]
    rows[10]["eval_correct"], rows[15]["eval_correct"] = 0.45, 0.45
    good = copy.deepcopy(guard.new_state())
    for r in rows[:11]:
        good, _ = guard.look(good, r, SETTINGS)
    rows += [collapsed(step) for step in range(21, 30)]
    at = events_of(rows)[0]["step"]
    [event], _, state = act(rows[:at + 1], {})
    assert event["action"] == "roll back" and event["to_step"] == 10
    assert state["past"] == good["past"] and state["rewards"] == good["rewards"] and state["sums"] == {}


def test_a_state_that_went_through_json_decides_the_same():
    rows = well(30) + [collapsed(step, **GIBBERISH) for step in range(31, 60)]
    straight, through, events = guard.new_state(), guard.new_state(), []
    for r in rows:
        before = copy.deepcopy(straight)
        after, a = guard.look(straight, r, SETTINGS)
        assert straight == before  # look changes nothing that it is given
        through, b = guard.look(json.loads(json.dumps(through)), json.loads(json.dumps(r)), SETTINGS)
        assert a == b and after == through
        straight, events = after, events + ([a] if a else [])
    assert events


def test_another_temperature_begins_another_past():
    """Rewards of 0.5 at temperature 0.1, then of 0.25 at 1: lower, but no collapse."""
    rows = [row(0, eval_correct=0.3), *well(80)]
    for r in rows[10::10]:
        r["eval_correct"] = 0.3
    for r in rows[31:]:
        r |= {"reward": r["reward"] - 0.25, "entropy": 0.9}
    events, settings, _ = act(rows, dict(temperature=0.1))
    assert [(e["step"], e["saw"]) for e in events] == [(30, "held back")] and settings["temperature"] == 1.0


def test_what_a_controller_would_undo_is_switched_off_too():
    settings = SETTINGS | dict(temperature=1.5, entropy_target=0.3, kl_in="reward_k1", kl_coef=1.0, kl_target=0.01,
                               critic_lr=1e-3)
    assert guard.remedy("gibberish", settings | {"entropy_coef": 0.0}, {"lr": 1e-4})["entropy_target"] == 0.0
    assert guard.remedy("held back", settings, {"lr": 1e-4}) == {"kl_coef": 0.01, "kl_target": 0.0}
    assert guard.remedy("entropy gone", settings, {"lr": 1e-4}) == {"lr": 2e-5, "critic_lr": 2e-4}


# ---------------------------------------------------------------- controllers


def test_the_entropy_coefficient_goes_up_below_the_target_and_down_above_it_and_counts_only_below():
    assert adapt_entropy_coef(0.01, 0.1, 0.2) == pytest.approx(0.015)
    assert adapt_entropy_coef(0.01, 0.3, 0.2) == pytest.approx(0.005)
    assert adapt_entropy_coef(0.0, 0.3, 0.2) == 0.0 and adapt_entropy_coef(1.0, 0.1, 0.2) == 1.0
    cfg, progress = train_grpo.Config(entropy_target=0.2, entropy_coef=0.01), Progress(kl_coef=0.001)
    coefs = []
    for entropy in (0.1, 0.1, 0.3, 0.1):
        control_entropy(cfg, progress, entropy)
        coefs.append(current_settings(cfg, progress).entropy_coef)
    assert coefs == pytest.approx([0.015, 0.020, 0.0, 0.020])  # it went down to 0.015 where it did not count


def test_the_temperature_moves_by_2_percent_at_most_within_a_quarter_of_the_recipes():
    assert adapt_temperature(1.0, 0.1, 0.2, 1.0) == pytest.approx(1.01)   # half of the target is missing
    assert adapt_temperature(1.0, 0.9, 0.2, 1.0) == pytest.approx(0.98)
    assert adapt_temperature(1.25, 0.0, 0.2, 1.0) == 1.25 and adapt_temperature(0.75, 9.0, 0.2, 1.0) == 0.75
    assert adapt_temperature(1.9, 0.0, 0.2, 1.9) <= 2.0
    cfg = train_ppo.Config(entropy_target=0.2, entropy_control="temperature")
    progress = Progress(kl_coef=0.001)
    control_entropy(cfg, progress, 0.1)
    assert current_settings(cfg, progress).temperature == pytest.approx(1.01)
    control_entropy(cfg, progress, None)  # a step without an update
    assert current_settings(cfg, progress).temperature == pytest.approx(1.01)


# ---------------------------------------------------------------- in a run


FAKE = """
from tools import guard
from tools.alarms import alarms
def diagnose(state, row, settings):
    if row["step"] == 3 and state["roll_backs"] == 0:
        return "divergence", ["reward-"], True
def remedy(saw, settings, began):
    if saw != "divergence":
        return {}
    return {"lr": settings["lr"] / 5} if "adv_std" in settings else {"kl_coef": settings["kl_coef"] / 10}
guard.diagnose, guard.remedy = diagnose, remedy
"""
HASHES = FAKE + """
import hashlib, rollout
sync = rollout.wake_and_sync
def sync_and_note(model, engine, dtype, version, *more):
    sync(model, engine, dtype, version, *more)
    digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in engine.model.state_dict().values())).hexdigest()
    with open("hashes.txt", "a") as f:
        f.write(f"{version} {digest}\\n")
rollout.wake_and_sync = sync_and_note
"""
STOP = FAKE.replace('"divergence", ["reward-"]', '"reward hack", ["reward+"]')
RUNS = {"train_grpo.py": [*GRPO, "--num_steps", "6"], "train_ppo.py": [*PPO, "--num_steps", "6"]}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def start(server, folder, script, model, *more, setup=FAKE, **env):
    return server.run(folder, script, [*RUNS[script], "--model", model, *more], setup=setup, env=env)


@pytest.fixture(scope="module")
def acted(server, tied_model, tmp_path_factory):
    """{script: folder of a run that the guard has rolled back once, without a kill}."""
    folders = {}
    for script in RUNS:
        folders[script] = tmp_path_factory.mktemp("acted")
        done = start(server, folders[script], script, tied_model, "--guard", "act", setup=HASHES)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


def guard_rows(folder):
    file = os.path.join(folder, "out/run/guard.jsonl")
    return [json.loads(line) for line in open(file)] if os.path.exists(file) else []


@pytest.mark.parametrize("script", RUNS)
def test_a_roll_back_brings_weights_and_optimizer_back_and_changes_the_setting(acted, tmp_path, script):
    [event] = guard_rows(acted[script])
    assert (event["step"], event["action"], event["acted"]) == (3, "roll back", True) and event["to_step"] in (0, 2)
    rows = {r["step"]: r for r in metrics_of(acted[script] / "out/run")}
    assert [r["step"] for r in metrics_of(acted[script] / "out/run")] == list(range(7))  # every step keeps its row
    assert rows[4]["prompts_seen"] > rows[3]["prompts_seen"]  # other prompts than those after the step it went back to
    if script == "train_grpo.py":
        assert event["settings"] == {"lr": pytest.approx(0.0006)}
        assert rows[4]["lr"] < rows[3]["lr"] / 4  # there is a cosine beside it
    else:  # the controller of kl_coef goes on from what the guard has set
        assert rows[4]["kl_coef"] == event["settings"]["kl_coef"] == pytest.approx(rows[3]["kl_coef"] / 10, rel=0.3)
    hashes = dict(line.split() for line in open(acted[script] / "hashes.txt"))  # version of the engine: its weights
    assert hashes["3"] == hashes[str(event["to_step"])] != hashes["4"] != hashes["5"]


def test_after_a_roll_back_at_an_evaluation_the_engine_gets_the_weights_that_came_back(server, tied_model, tmp_path):
    """There it is awake and already holds version 4: those that were evaluated, not those of step 2."""
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act",
                 setup=HASHES.replace('row["step"] == 3', 'row["step"] == 4'))
    assert done.returncode == 0, done.stderr[-3000:]
    [event] = guard_rows(tmp_path)
    versions = [line.split() for line in open(tmp_path / "hashes.txt")]
    assert [version for version, _ in versions].count("4") == 2  # for the evaluation, and for step 5
    hashes = dict(versions)  # of each version the last
    assert event["step"] == 4 and hashes["4"] == hashes[str(event["to_step"])]


@pytest.mark.parametrize("script, points", [
    ("train_grpo.py", ["metrics:2", "metrics:3", "rollout:4", "save_write:4", "evaluate:4", "export:6"]),
    ("train_ppo.py", ["metrics:3", "evaluate:4"])])
def test_a_roll_back_survives_kills_to_the_bit(server, acted, tied_model, tmp_path, script, points):
    """metrics:3 is the moment between the row that raises the alarm and the roll-back."""
    for point in points:
        done = start(server, tmp_path, script, tied_model, "--guard", "act", FAULT_AT=point)
        assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stderr[-2000:])
    done = start(server, tmp_path, script, tied_model, "--guard", "act")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(everything_of(acted[script]), everything_of(tmp_path))
    assert guard_rows(tmp_path) == guard_rows(acted[script])


LOADED = FAKE + """
import os, signal
from onebox import checkpoint
load = checkpoint.load_state
def load_then_die(folder, step, models):
    load(folder, step, models)
    rows = open("out/run/metrics.jsonl").read() if os.path.exists("out/run/metrics.jsonl") else ""
    if os.path.exists("die") and '"step": 3' in rows:
        os.remove("die")
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.load_state = load_then_die
"""


def test_a_kill_in_the_middle_of_a_roll_back_changes_nothing(server, acted, tied_model, tmp_path):
    """Killed with the old weights loaded, before guard.jsonl says so."""
    (tmp_path / "die").write_text("")
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", setup=LOADED)
    assert done.returncode == -signal.SIGKILL and guard_rows(tmp_path) == []
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", setup=LOADED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(everything_of(acted["train_grpo.py"]), everything_of(tmp_path))
    assert guard_rows(tmp_path) == guard_rows(acted["train_grpo.py"])


def test_a_damaged_checkpoint_is_passed_over(server, tied_model, tmp_path):
    damage = FAKE + """
from onebox import checkpoint
load = checkpoint.load_state
def damaged(folder, step, models):
    if step == 2:
        raise checkpoint.Damaged("planted")
    load(folder, step, models)
checkpoint.load_state = damaged
look = guard.look
def good_is_2(state, row, settings):
    state, event = look(state, row, settings)
    if event:
        event["to_step"] = 2
    return state, event
guard.look = good_is_2
"""
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", setup=damage)
    assert done.returncode == 0, done.stderr[-3000:]
    assert guard_rows(tmp_path)[0]["to_step"] == 0 and "corrupt_step_000002" in checkpoints(tmp_path / "out/run")


@pytest.mark.slow
def test_two_ranks_roll_back_together(tied_model, tmp_path):
    """Sharded by FSDP; rank 0 alone knows what the guard remembers, both load."""
    args = [*RUNS["train_grpo.py"], "--model", tied_model, "--guard", "act"]
    done = run_script(os.path.join(ROOT, "tests", "fake_engine.py"), "train_grpo.py", *args, nproc=2, cwd=tmp_path,
                      env={"SETUP": FAKE, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"})
    assert done.returncode == 0, done.stderr[-3000:]
    [event] = guard_rows(tmp_path)
    assert event["acted"] and event["step"] == 3 and event["to_step"] in (0, 2)
    rows = metrics_of(tmp_path / "out/run")
    assert [r["step"] for r in rows] == list(range(7)) and rows[4]["lr"] < rows[3]["lr"] / 4
    assert rows[4]["changed"] == {"lr": pytest.approx(0.0006)} and "changed" not in rows[3]


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_run_that_observed_may_begin_to_act(server, tied_model, tmp_path, save_every):
    """Checkpoints of then are gone: what is good is known again from the next evaluation on, of step 4."""
    more = ["--save_every", save_every]
    observe = FAKE.replace('row["step"] == 3', 'row["step"] == 5')
    first = start(server, tmp_path, "train_grpo.py", tied_model, "--num_steps", "3", "--keep_checkpoints", "1", *more,
                  "--lr_schedule", "constant", setup=observe)
    assert first.returncode == 0, first.stderr[-2000:]
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", "--keep_checkpoints", "1", *more,
                 "--lr_schedule", "constant", setup=observe)
    assert done.returncode == 0, done.stderr[-3000:]
    [event] = guard_rows(tmp_path)
    assert event["step"] == 5 and event["acted"] and event["to_step"] in (3, 4, 5)  # 5: it keeps its weights
    log = open(tmp_path / "out/run/log.txt").read()
    assert ("with weights of step" in log) == (event["to_step"] == 5)


def test_a_verdict_ends_the_run_with_the_last_good_weights_and_code_6(server, tied_model, tmp_path):
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", setup=STOP)
    assert done.returncode == 6 and "the guard ended it" in done.stderr and "reward hack" in done.stderr
    assert guard_rows(tmp_path)[0]["action"] == "stop" and metrics_of(tmp_path / "out/run")[-1]["step"] == 3
    assert os.path.exists(tmp_path / "out/run/model/model.safetensors")
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", setup=STOP)
    assert done.returncode == 0 and "is complete" in done.stdout


@pytest.mark.parametrize("step", [3, 4])
def test_a_verdict_survives_kills_to_the_bit(server, tied_model, tmp_path, step):
    """Step 4 has a checkpoint of its own, step 3 gets one when it ends the run: started again, it must not train on."""
    stop = STOP.replace('row["step"] == 3', f'row["step"] == {step}')
    for folder, points in ((tmp_path / "straight", []), (tmp_path / "killed", [f"metrics:{step}", f"export:{step}"])):
        for point in [*points, ""]:
            done = start(server, folder, "train_grpo.py", tied_model, "--guard", "act", setup=stop, FAULT_AT=point)
            assert done.returncode == (-signal.SIGKILL if point else 6), done.stderr[-2000:]
    assert_same(everything_of(tmp_path / "straight"), everything_of(tmp_path / "killed"))
    assert guard_rows(tmp_path / "straight") == guard_rows(tmp_path / "killed")


@pytest.mark.parametrize("script", RUNS)
def test_off_and_observe_are_the_same_run_to_the_bit(server, tied_model, tmp_path, script):
    """With alarms in it: observe says what it sees and touches nothing."""
    folders = [tmp_path / how for how in ("off", "observe")]
    for folder in folders:
        done = start(server, folder, script, tied_model, "--guard", folder.name)
        assert done.returncode == 0, done.stderr[-3000:]
    off, observe = map(everything_of, folders)
    for found in (off, observe):
        for name in ("guard", "time", "created"):
            found["state"].pop(name, None)
    assert_same(off, observe)
    assert guard_rows(folders[0]) == [] and [e["acted"] for e in guard_rows(folders[1])] == [False]
    assert 'would' in open(folders[1] / "out/run/log.txt").read()


def test_controllers_survive_a_kill_to_the_bit(server, tied_model, tmp_path):
    # 9 is above any entropy of 128 tokens: the bonus grows every step
    more = ["--entropy_target", "9", "--entropy_coef", "0.01", "--guard", "off"]
    for folder, points in ((tmp_path / "straight", []), (tmp_path / "killed", ["metrics:3", "save_write:4"])):
        for point in [*points, ""]:
            done = start(server, folder, "train_grpo.py", tied_model, *more, setup="", FAULT_AT=point)
            assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr[-2000:]
    a, b = everything_of(tmp_path / "straight"), everything_of(tmp_path / "killed")
    assert_same(a, b)
    assert a["state"]["changed"]["entropy_coef"] == pytest.approx(0.01 + 0.005 * 5)  # steps 1 to 5, when 6 was saved


def test_acting_needs_held_out_problems(server, tied_model, tmp_path):
    done = start(server, tmp_path, "train_grpo.py", tied_model, "--guard", "act", "--eval_prompts", "0")
    assert done.returncode == 1 and "eval_prompts" in done.stderr and not os.path.exists(tmp_path / "out/run")
