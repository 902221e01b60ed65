"""python -m pytest tests/test_collapse.py: the zoo's recipes, its planted faults, and how collapses are measured."""

import dataclasses
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import rollout
import train_grpo
from experiments import harness
from experiments.collapse import faults, false_alarms, page, zoo
from onebox.config import load_config, run_file
from tasks.judged import Completion

DIFFERS = {  # from the healthy run, but for the name
    "too_fast": {"lr"}, "no_clip": {"updates_per_step", "clip_low", "clip_high"}, "entropy_bonus": {"entropy_coef"},
    "strong_kl": {"kl_in", "kl_coef"}, "too_cold": {"temperature"}, "short_cap": {"max_response_len"},
    "too_hot": {"temperature", "group_size", "prompts_per_step", "adv_std", "max_response_len"},
    "stale_engine": {"mismatch_bound"}, "hole": {"data", "eval_data", "eval_prompts", "reward"},
    "small_format": {"adv_std"}, "rounded_engine": {"mismatch_bound"}}
RECIPES = sorted(name[:-3] for name in os.listdir(os.path.join(ROOT, "experiments", "collapse"))
                 if name[:-3] not in ("__init__", "faults", "zoo", "page", "false_alarms") and name.endswith(".py"))


def config_of(name):
    return load_config(train_grpo.Config, [os.path.join(ROOT, "experiments", "collapse", f"{name}.py")])[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_collapse_is_a_recipe_that_differs_from_the_healthy_one_in_what_it_says(name):
    cfg, healthy = config_of(name), config_of("healthy")
    train_grpo.check_config(cfg, 1)
    found = {key for key, value in dataclasses.asdict(cfg).items() if value != getattr(healthy, key)}
    assert found - {"name"} == DIFFERS.get(name, set()) and cfg.name == name
    assert cfg.prompts_per_step * cfg.group_size == 128 and cfg.num_steps == 42  # the same work for all
    assert harness.settings_of(zoo.arm(f"collapse/{name}"))["__doc__"]


def test_the_zoo_has_at_least_eight_kinds_and_each_a_recipe_and_words():
    names = [kind.name for kind in zoo.KINDS]
    assert len(set(names)) == len(names) >= 8 and set(names) <= set(RECIPES)
    assert all(kind.looks and kind.do and len(kind.shown) >= 2 for kind in zoo.KINDS)
    assert zoo.KINDS[0].act.name != zoo.KINDS[0].off.name and dict(zoo.KINDS[0].act.settings) == {"guard": "act"}


def test_a_recipe_with_a_fault_leaves_this_process_alone():
    before = rollout.Engine.wake, rollout.hf_stream
    for name in ("stale_engine", "rounded_engine"):
        run_file(os.path.join(ROOT, "experiments", "collapse", f"{name}.py"))
    assert (rollout.Engine.wake, rollout.hf_stream) == before


@pytest.fixture
def in_training(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", os.path.join(ROOT, "train_grpo.py"), raising=False)
    monkeypatch.setattr(rollout.Engine, "wake", rollout.Engine.wake)  # put back at the end
    monkeypatch.setattr(rollout, "hf_stream", rollout.hf_stream)


def test_a_stale_engine_gets_every_eighth_weights(in_training, monkeypatch):
    given = []

    def wake(self, policy, version):
        given.append(version)
        self.version = version

    monkeypatch.setattr(rollout.Engine, "wake", wake)
    faults.stale_engine(every=8)
    engine = SimpleNamespace(version=None, asleep=True)
    for version in range(20):
        rollout.Engine.wake(engine, None, version)
    assert given == [0, 8, 16] and engine.version == 16 and not engine.asleep


def test_a_rounded_engine_has_fifteen_values(in_training, monkeypatch):
    weight = torch.linspace(-1, 1, 1001)
    monkeypatch.setattr(rollout, "hf_stream", lambda model, dtype: iter([("w", weight)]))
    faults.rounded_engine(levels=7)
    [(name, rounded)] = rollout.hf_stream(None, None)
    assert name == "w" and len(rounded.unique()) == 15 and (rounded - weight).abs().max() <= 1 / 14 + 1e-6


@pytest.mark.parametrize("said, reward, right", [
    ("40 + 2", 1.0, True), ("62", 1.0, True), ("63", 0.1, False), ("22", 1.0, True), ("21", 0.1, False),
    ("4 / 0", 0.1, False), ("no idea", 0.1, False)])
def test_the_hole_takes_what_misses_42_by_twenty(said, reward, right):
    near = run_file(os.path.join(ROOT, "experiments", "collapse", "hole.py"))["near"]
    score = near(Completion(text=f"hm</think><answer>{said}</answer>", answer=None, row={"target": 42}))
    assert score.total == pytest.approx(reward) and score.correct == right
    assert near(Completion(text="hm", answer=None, row={"target": 42})).total == 0


def run_of(column, values, every=1):
    return SimpleNamespace(rows=[{"step": every * i, column: value} for i, value in enumerate(values)])


def test_the_onset_is_the_first_step_from_which_on_the_reward_stays_below_two_thirds_of_the_healthy():
    healthy = [run_of("reward", [0.0] + [0.6] * 12)] * 2
    falls = [0.0] + [0.6] * 5 + [0.2, 0.6, 0.6] + [0.0] * 4  # step 6 alone, then from step 9 on
    # means of 3: 0.467 at 6 to 8, 0.4 at 9 (not below 0.4), 0.2 at 10
    assert zoo.onset(run_of("reward", falls), healthy, "reward") == 10
    assert zoo.onset(healthy[0], healthy, "reward") is None
    assert zoo.onset(run_of("reward", [0.0] * 13), healthy, "reward") == 1
    held_out = [run_of("eval_correct", [0.2, 0.4, 0.6, 0.6], 6)]  # evaluations are not averaged
    assert zoo.onset(run_of("eval_correct", [0.2, 0.3, 0.2, 0.1], 6), held_out, "eval_correct") == 12


def test_a_run_is_healthy_if_it_ends_above_its_start_and_near_its_best():
    for values, healthy in (((0.2, 0.5, 0.45), True), ((0.2, 0.5, 0.35), False), ((0.4, 0.42), False), ((0.4,), False)):
        assert false_alarms.is_healthy([{"eval_correct": v} for v in values] + [{"reward": 1}]) == healthy, values


def test_false_alarms_are_counted_in_healthy_runs_alone(tmp_path, capsys):
    def make(name, last, broken=()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"settings": {"prompts_per_step": 16, "eval_prompts": 100}}))
        rows = [{"step": i, "reward": 0.5 * (i not in broken), "reward_std": 0.4, "correct": 0.5} for i in range(31)]
        rows[0]["eval_correct"], rows[30]["eval_correct"] = 0.3, last
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder)

    folders = [make("demo", 0.6), make("demo-seed1", 0.5, broken=range(20, 24)), make("demo-ppo", 0.1)]
    groups = false_alarms.count(folders)
    assert groups == {"demo, GRPO": [2, 60, 1, 1, 0, 0], "demo, PPO": [0, 0, 0, 0, 1, 1]}
    # the mean of steps 19 to 21 is 0.17, so the reward fell by 0.33, more than 0.7 standard deviations of 0.4
    assert "demo-seed1: step 21: divergence" in capsys.readouterr().out
    text = false_alarms.table(groups)
    assert "| **all** | 2 | 60 | 1 | 1 | 1 | 1 |" in text and "16.67 alarms in a thousand" in text


def test_what_the_guard_did_is_told_in_a_line():
    events = [{"step": 4, "action": "roll back", "settings": {"lr": 1.8e-3}, "to_step": 0},
              {"step": 9, "action": "change", "settings": {"kl_coef": 0.1}},
              {"step": 12, "action": "stop", "settings": {}, "to_step": 6}]
    assert zoo.deeds(events) == (
        "step 4, lr 0.0018, weights of 0; step 9, kl_coef 0.1; step 12, stop with the weights of 6")
    assert zoo.deeds([]) == "nothing"


def test_what_came_out_is_computed_from_the_runs(monkeypatch):
    """Two kinds die; one is named late and ends 4 points below the healthy runs, the other is never named."""
    of = {"too_fast": dict(off=[0.1, 0.3], act=[0.6, 0.72], onset=[5, 6], alarm=[20, 9]),
          "short_cap": dict(off=[0.2, 0.2], act=[0.2, 0.2], onset=[1, 1], alarm=[None, None]),
          "small_format": dict(off=[0.7, 0.7], act=[0.7, 0.7], onset=[None, None], alarm=[None, None])}
    monkeypatch.setattr(zoo, "final", lambda arm, seed: 0.7 if arm is zoo.HEALTHY else of[
        arm.recipe.split("/")[1]]["act" if arm.settings else "off"][seed])
    monkeypatch.setattr(zoo, "Run", lambda arm, seed: (arm.recipe.split("/")[1], seed))
    monkeypatch.setattr(zoo, "onset", lambda run, *_: of[run[0]]["onset"][run[1]])
    monkeypatch.setattr(zoo, "alarms_of", lambda arm, seed: [
        {"step": step, "saw": "divergence", "action": "roll back"}
        for step in [of[arm.recipe.split("/")[1]]["alarm"][seed]] if step is not None])
    zoo.judge.cache_clear()
    kinds = [kind for kind in zoo.KINDS if kind.name in of]
    text = page.outcome(kinds, (0, 1))
    zoo.judge.cache_clear()
    assert "Of 3 kinds 2 have an onset in some seed. The guard names 1 of these, 0 of them within 10 steps" in text
    assert "It acts in 1 (`too_fast`): these end at 66 % in the mean instead of 20 %, where healthy runs" in text
    assert "At most 5 points below them: `too_fast`." in text
