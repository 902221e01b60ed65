"""python -m pytest tests/test_replay.py: a saved step, computed again, is that step; what cannot be is one line."""

import gzip
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT
from runs import GRPO, Server

from onebox.rundir import as_json
from tools.report.read import read_run, read_rollouts
from train_grpo import Config

STEP = ["--max_response_len", "10", "--group_size", "2", "--prompts_per_step", "2", "--mismatch_cap", "0"]
# rewards that differ inside of a group, of responses that a random model gives
VARIED = """
import dataclasses, rollout
deliver = rollout.deliver_scores
def deliver_scores(scores, rollouts, record):
    deliver(scores, rollouts, record)
    for key, r in rollouts.items():
        if key in scores:
            r.score = dataclasses.replace(r.score, total=sum(map(int, r.response_ids)) % 5 / 4)
rollout.deliver_scores = deliver_scores
"""
WHOLE = [*GRPO, "--num_steps", "2", "--save_every", "1", "--keep_checkpoints", "5", "--keep_rollouts", "8",
         "--eval_prompts", "0", "--lr_schedule", "constant"]
RUNS = {
    "train_grpo.py": [*WHOLE, "--kl_in", "loss_k3", "--kl_coef", "0.1"],
    "train_ppo.py": [*WHOLE, "--kl_in", "reward_k1", "--kl_coef", "0.1", "--kl_target", "0.001", "--kl_horizon", "20",
                     "--critic_lr", "1e-2"],
}
COLUMNS = ("loss", "entropy", "grad_norm", "clip_frac", "approx_kl", "kl", "kl_k1", "mismatch_mean", "mismatch_max",
           "reward", "trained_tokens")
OF_PPO = ("value_loss", "critic_grad_norm", "value_clip_frac", "explained_variance", "value_mean", "return_mean")


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module", params=RUNS)
def trained(request, server, tied_model, tmp_path_factory):
    """A run of two steps that kept everything: (folder, script, its arguments)."""
    folder, args = tmp_path_factory.mktemp("run"), [*RUNS[request.param], "--model", tied_model]
    done = server.run(folder, request.param, args, setup=VARIED)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, request.param, args


def rows_of(file):
    with gzip.open(file, "rt") as f:
        return [json.loads(line) for line in f]


def write(file, rows):
    with gzip.open(file, "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def replayed(file):
    return json.loads(open(re.sub(r"\.jsonl\.gz$", ".replay.json", str(file))).read())


def files_of(folder):
    return {path: (os.stat(path).st_mtime_ns, open(path, "rb").read())
            for top, _, names in os.walk(folder) for path in (os.path.join(top, name) for name in names)}


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_kept_everything_is_computed_again(server, trained, step):
    """Step 1 from the model itself, step 2 from the checkpoint of step 1; nothing but the one file is written."""
    folder, script, args = trained
    file, before = f"out/run/samples/step_{step:06d}.jsonl.gz", files_of(folder / "out")
    done = server.run(folder, script, [*args, "--replay", file])
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    weights = "checkpoint out/run/step_000001" if step == 2 else f"model {args[-1]}"
    assert f"{weights}, the weights that sampled the file\nold_logprobs  of the file\n\nuid " in done.stdout
    assert max(map(len, done.stdout.splitlines()[4:])) <= 160
    with open(folder / "out/run/metrics.jsonl") as f:
        row = [json.loads(line) for line in f][step - 1]
    found = replayed(folder / file)
    for name in COLUMNS + OF_PPO * (script == "train_ppo.py"):
        assert row[name] == pytest.approx(found["totals"][name], rel=1e-5, abs=1e-7), name
    assert row["grad_norm"] > 0.01 and (step == 1 or row["kl"] > 1e-6)  # there was something to compare
    responses = found["responses"]
    assert len(responses) == 8 and sum(one["loss_share"] for one in responses) == pytest.approx(row["loss"], abs=1e-6)
    norms = [one["grad_norm"] for one in responses]
    assert max(norms) <= sum(norms) and row["grad_norm"] <= sum(norms)
    if script == "train_ppo.py":
        assert sum(one["value_loss_share"] for one in responses) == pytest.approx(row["value_loss"], rel=1e-5)
    assert found["script"] == script and found["settings"]["kl_in"] == args[args.index("--kl_in") + 1]
    after = files_of(folder / "out")
    assert {path for path in after if after[path] != before.get(path)} == {
        os.path.join(folder, "out/run/samples", f"step_{step:06d}.replay.json")} and before.keys() <= after.keys()


def test_a_run_goes_on_and_is_reported_with_a_replay_in_its_samples(server, trained):
    folder, script, args = trained
    file = folder / "out/run/samples/step_000002.replay.json"
    file.write_text(file.read_text() if file.exists() else "{}")
    done = server.run(folder, script, [*args, "--num_steps", "3"], setup=VARIED)
    assert done.returncode == 0 and "resumed out/run at step 2" in done.stdout, done.stderr[-3000:]
    run = read_run(str(folder / "out/run"))
    read_rollouts(run)
    assert sorted(run["rollouts"]) == [1, 2, 3] and not [note for note in run["notes"] if "samples" in note]


def test_other_settings_and_a_checkpoint_that_is_too_old_are_said(server, trained, tmp_path):
    folder, script, args = trained
    run = tmp_path / "elsewhere"
    os.makedirs(run / "samples")
    for name in ("config.json", "metrics.jsonl", "samples/step_000002.jsonl.gz"):
        (run / name).write_bytes((folder / "out/run" / name).read_bytes())
    done = server.run(tmp_path, script, [*args, "--entropy_coef", "0.5", "--lr", "1", "--replay",
                                         "elsewhere/samples/step_000002.jsonl.gz"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NOT the weights of step 1 that sampled the file" in done.stdout
    said = "other than the run's: entropy_coef: 0.01 there, 0.5 now, lr: 0.003 there, 1.0 now\n"
    assert f"settings      {said}" in done.stdout
    found = replayed(run / "samples/step_000002.jsonl.gz")
    assert found["totals"]["approx_kl"] > 1e-6  # one step of lr 3e-3 away
    shutil.copytree(folder / "out/run/step_000001", run / "step_000001")
    os.truncate(run / "step_000001/dcp/__0_0.distcp", 1000)
    done = server.run(tmp_path, script, [*args, "--replay", "elsewhere/samples/step_000002.jsonl.gz"])
    refused(done, "elsewhere/step_000001 cannot be loaded (dcp/__0_0.distcp has 1000 bytes", 3)
    assert sorted(os.listdir(run)) == ["config.json", "metrics.jsonl", "samples", "step_000001"]  # it is not renamed


def test_another_model_than_the_runs_is_taken_and_said(server, trained, untied_model):
    folder, script, args = trained
    done = server.run(folder, script, [*args, "--model", untied_model, "--replay",
                                       "out/run/samples/step_000002.jsonl.gz"])
    assert f"weights       model {untied_model}, which is not the one that the run began with" in done.stdout
    assert replayed(folder / "out/run/samples/step_000002.jsonl.gz")["totals"]["approx_kl"] > 0.1


def test_a_crash_report_is_replayed_as_the_step_that_crashed(server, trained, tmp_path):
    """A run that dies after its second update: from the checkpoint before it, its batch gives that step."""
    folder, script, args = trained
    module = script.removesuffix(".py")
    setup = VARIED + f"""
import {module} as script
summarize = script.summarize
def fails_in_step_2(*args, calls=[]):
    calls.append(1)
    return summarize(*args) if len(calls) < 2 else 1 / 0
script.summarize = fails_in_step_2
"""
    done = server.run(tmp_path, script, args, setup=setup)
    assert done.returncode == 1 and "ZeroDivisionError in step 2" in done.stderr
    [name] = os.listdir(tmp_path / "out/run/crash")
    file = f"out/run/crash/{name}/batch.jsonl.gz"
    done = server.run(tmp_path, script, [*args, "--replay", file])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint out/run/step_000001, the weights that sampled the file" in done.stdout
    assert "old_logprobs  of these weights, now" in done.stdout
    with open(folder / "out/run/metrics.jsonl") as f:
        row = [json.loads(line) for line in f][1]
    found = replayed(tmp_path / file)
    for name in ("loss", "entropy", "grad_norm", "mismatch_mean", "kl", "reward"):
        assert row[name] == pytest.approx(found["totals"][name], rel=1e-5, abs=1e-7), name


# ---------------------------------------------------------------------------------------------------------------------
# rows made by hand
# ---------------------------------------------------------------------------------------------------------------------


def row(uid, sample, reward, ids, **more):
    return {"step": 1, "uid": uid, "sample": sample, "reward": reward, "prompt_ids": [2, 20, 21], "response_ids": ids,
            "rollout_logprobs": [-1.0] * len(ids), "finish_reason": "stop", **more}


# 10 tokens: advantages 0.5, -0.5, 0, 0, so that shares are -0.5 * 2 / 10, 0.5 * 3 / 10, 0, 0
ROWS = [row("a", 0, 1.0, [5, 1]), row("a", 1, 0.0, [6, 7, 1]), row("b", 0, 0.5, [1]), row("b", 1, 0.5, [8, 9, 10, 1])]


@pytest.fixture
def replay(server, tied_model, tmp_path):
    """Replay rows, or what lies in step.jsonl.gz already -> (what the process said, what it wrote)."""
    def replay(*args, rows=None, script="train_grpo.py", **job):
        if rows is not None:
            write(tmp_path / "step.jsonl.gz", rows)
        args = [*STEP, "--model", tied_model, "--replay", "step.jsonl.gz", *args]
        args += ["--adv_std", "False"] if script == "train_grpo.py" else []
        done = server.run(tmp_path, script, args, **job)
        file = tmp_path / "step.replay.json"
        return done, json.loads(file.read_text()) if done.returncode == 0 and file.is_file() else None

    return replay


def of(found, name):
    return [one[name] for one in found["responses"]]


def test_shares_and_advantages_are_those_computed_by_hand(replay):
    done, found = replay(rows=ROWS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert of(found, "advantage") == [0.5, -0.5, 0, 0] and of(found, "tokens") == [2, 3, 1, 4]
    assert of(found, "loss_share") == pytest.approx([-0.1, 0.15, 0, 0], abs=1e-7)
    assert found["totals"]["loss"] == pytest.approx(0.05, abs=1e-7)
    assert of(found, "grad_norm")[2:] == [0, 0] and min(of(found, "grad_norm")[:2]) > 0  # zero variance: no gradient
    for one in found["responses"]:
        assert one["logprob_mean"] == pytest.approx(np.mean(one["logprobs"])) and one["ratio_mean"] == 1
        assert one["mismatch_mean"] == pytest.approx(np.mean(np.abs(np.array(one["logprobs"]) + 1)))
    assert "a run would stop here: engine and trainer disagree" in done.stdout  # -1.0 is not what the model says


def test_each_update_has_the_weights_of_its_own_tokens(replay):
    """5 tokens in each of two updates: -0.5 * 2 / 5 and 0.5 * 3 / 5; the loss of a step is the mean of its updates."""
    done, found = replay("--updates_per_step", "2", rows=ROWS)
    assert of(found, "loss_share") == pytest.approx([-0.2, 0.3, 0, 0], abs=1e-7)
    assert found["totals"]["loss"] == pytest.approx(0.05, abs=1e-7)
    assert found["totals"]["grad_norms"][1] == 0 < found["totals"]["grad_norms"][0]


def test_old_logprobs_of_the_file_give_the_ratio(replay):
    """Half as likely as in the file, with a clip at 0.8: loss -0.5 * 0.5 each token of the good one."""
    done, found = replay(rows=ROWS)
    logprobs = of(found, "logprobs")
    rows = [one | {"old_logprobs": [x + math.log(2) for x in old]} for one, old in zip(ROWS, logprobs, strict=True)]
    done, found = replay(rows=rows)
    assert of(found, "ratio_mean") == pytest.approx([0.5] * 4, rel=1e-5) and "old_logprobs  of the file" in done.stdout
    assert of(found, "loss_share") == pytest.approx([-0.05, 0.8 * 0.15, 0, 0], rel=1e-5)
    assert found["totals"]["clip_frac"] == pytest.approx(0.3) and of(found, "grad_norm")[1] == 0
    del rows[2]["old_logprobs"]  # one without: none of the file count
    done, found = replay(rows=rows)
    assert of(found, "ratio_mean") == [1] * 4 and "old_logprobs  of these weights, now" in done.stdout


def test_one_response_with_an_advantage_is_the_whole_gradient(replay):
    """REINFORCE without whitening: the advantage is the reward, 1, 0, 0, 0."""
    rows = [one | {"reward": float(i == 0)} for i, one in enumerate(ROWS)]
    done, found = replay("--estimator", "reinforce_pp", "--whiten", "False", rows=rows, script="train_ppo.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert of(found, "advantage") == [1, 0, 0, 0] and of(found, "grad_norm")[1:] == [0, 0, 0]
    assert of(found, "grad_norm")[0] == pytest.approx(found["totals"]["grad_norm"], rel=1e-5)


def test_while_only_the_critic_learns_the_policy_has_no_gradient(replay):
    args = ["--critic_warmup_steps", "1", "--num_steps", "3"]
    done, found = replay(*args, rows=ROWS, script="train_ppo.py")
    assert "step 1 is one of critic_warmup_steps" in done.stdout and found["totals"]["grad_norm"] == 0
    assert of(found, "grad_norm") == [0] * 4 and found["totals"]["critic_grad_norm"] > 0
    done, found = replay(*args, rows=[one | {"step": 2} for one in ROWS], script="train_ppo.py")
    assert "critic_warmup_steps" not in done.stdout and found["totals"]["grad_norm"] > 0


def test_an_edited_loss_is_what_is_replayed(replay):
    """A sign planted in policy_loss turns the loss and leaves the norms; the replay before stands beside it."""
    _, right = replay(rows=ROWS)
    edit = "import train_grpo\nloss = train_grpo.policy_loss\ntrain_grpo.policy_loss = lambda *x: -loss(*x)\n"
    done, wrong = replay(setup=edit)
    assert wrong["totals"]["loss"] == pytest.approx(-0.05, abs=1e-7)
    assert of(wrong, "loss_share") == pytest.approx([0.1, -0.15, 0, 0], abs=1e-7)
    assert of(wrong, "grad_norm") == pytest.approx(of(right, "grad_norm"), rel=1e-4)
    line = next(line for line in done.stdout.splitlines() if line.startswith("loss "))
    assert [float(x) for x in line.split()[1:3]] == pytest.approx([-0.05, 0.05], abs=1e-6)


def test_a_response_whose_loss_is_nan_is_found(replay):
    edit = """
import train_grpo
loss = train_grpo.token_loss
def token_loss(logprobs, entropy, batch, cfg):
    losses, clipped = loss(logprobs, entropy, batch, cfg)
    return losses / (batch.response_index != 1), clipped
train_grpo.token_loss = token_loss
"""
    done, found = replay(rows=ROWS, setup=edit)
    assert done.returncode == 0, done.stderr[-2000:]
    norms = of(found, "grad_norm")
    assert norms[1] is None is found["totals"]["grad_norm"] and norms[0] > 0  # not finite: null
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("a ")][1] == "nan"


def test_of_many_responses_those_that_matter_are_shown(replay):
    rows = [row(f"p{i}", k, float(k == 0 and i < 9), [5 + i, 1]) for i in range(30) for k in range(2)]
    done, found = replay("--prompts_per_step", "30", rows=rows)
    shown = [line for line in done.stdout.splitlines() if re.match(r"p\d", line)]
    assert len(found["responses"]) == 60 and 10 <= len(shown) <= 20 and "10 largest gradients" in done.stdout
    assert {line.split()[0] for line in shown} <= {f"p{i}" for i in range(9)}  # the others have no gradient


def test_a_part_of_a_step_is_replayed_and_said_to_be_one(replay):
    held_out = row("c", "greedy", 0.5, [5, 1], split="held-out")
    done, found = replay(rows=[held_out, *ROWS[:2]])
    assert len(found["responses"]) == 2 and found["totals"]["loss"] == pytest.approx(0.1, abs=1e-7)
    assert "a step has 4 responses" in done.stdout and "of the 2 in the file" in done.stdout
    assert "--keep_rollouts 4" in done.stdout


def test_masked_responses_and_groups_left_out_stay_so(replay):
    rows = [ROWS[0], ROWS[1] | {"finish_reason": "length"}, *ROWS[2:]]
    _, found = replay("--on_truncated", "mask", "--dynamic_sampling", "1", rows=rows)
    assert of(found, "uid") == ["a", "a"] and of(found, "in_loss") == [True, False]
    assert of(found, "loss_share") == pytest.approx([-0.5, 0], abs=1e-7)


def test_where_the_folder_cannot_be_written_the_result_lies_here(server, tied_model, tmp_path):
    os.makedirs(tmp_path / "theirs/step.replay.json")  # in the way
    write(tmp_path / "theirs/step.jsonl.gz", ROWS)
    done = server.run(tmp_path, "train_grpo.py", [*STEP, "--model", tied_model, "--replay", "theirs/step.jsonl.gz"])
    assert done.returncode == 0 and done.stdout.endswith("written to step.replay.json\n"), done.stderr[-2000:]
    assert len(json.loads((tmp_path / "step.replay.json").read_text())["responses"]) == 4


def changed(**values):
    """The rows with other fields in the second; None takes one out."""
    second = {name: value for name, value in (ROWS[1] | values).items() if value is not None}
    return gzip.compress("".join(json.dumps(one) + "\n" for one in [ROWS[0], second, *ROWS[2:]]).encode())


GOOD = changed()
BAD = {
    "nothing": (None, "No such file"),
    "empty": (b"", "holds no rollouts of a training step"),
    "empty gz": (gzip.compress(b""), "holds no rollouts of a training step"),
    "evaluation": (gzip.compress(json.dumps(row("a", 0, 1.0, [5], split="held-out")).encode()), "holds no rollouts"),
    "not gz": (b"\x93NUMPY\x01\x00v\x00", "cannot be read"),
    "torn gz": (GOOD[:len(GOOD) // 2], "cannot be read"),
    "damaged gz": (GOOD[:20] + b"\xff\xff\xff" + GOOD[23:], "cannot be read"),
    "torn line": (b'{"uid": "a", "sam', "line 1 is no JSON object"),
    "a list": (b"[1]\n", "line 1 is no JSON object"),
    "old samples": (changed(prompt_ids=None, response_ids=None), "line 2 has no token ids"),
    "missing": (changed(sample=None, rollout_logprobs=None), "line 2 lacks sample, rollout_logprobs"),
    "unscored crash": (changed(reward=None, score=[]), "line 2: this response has no score"),
    "scored crash without total": (changed(score={}), "line 2 lacks reward"),
    "nan": (changed(rollout_logprobs=[math.nan, -1, -1]), "line 2: rollout_logprobs must be 3 finite numbers"),
    "nan reward": (changed(reward=math.nan), "line 2: reward must be 1 finite number"),
    "infinite old": (changed(old_logprobs=[-math.inf, 0, 0]), "line 2: old_logprobs must be 3 finite"),
    "too short": (changed(rollout_logprobs=[-1.0]), "line 2: rollout_logprobs must be 3"),
    "text ids": (changed(response_ids=["a", "b", "c"]), "line 2: prompt_ids and response_ids must be"),
    "no prompt": (changed(prompt_ids=[]), "prompt_ids not empty"),
    "greedy": (changed(sample="greedy"), "line 2: sample must be the number in the group"),
    "a gap": (changed(sample=2), "begins a group with the samples [0, 2]"),
    "two prompts": (changed(uid="b"), "begins a group with the samples [0, 1]: a group is one uid"),
    "foreign ids": (changed(response_ids=[5, 128, 1]), "token 128 is outside the vocabulary of 128"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_what_cannot_be_replayed_is_one_line(replay, tmp_path, content, message):
    if content is not None:
        (tmp_path / "step.jsonl.gz").write_bytes(content)
    refused(replay()[0], message, 2)


def refused(done, message, code):
    assert done.returncode == code and message in done.stderr, done.stderr[-2000:]
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and not done.stdout


@pytest.mark.parametrize("rows, fix", [(ROWS[:3], "add what is missing"), (ROWS[1:], "samples [1]"),
                                       ([r for r in ROWS if r["sample"] == 0], "give --group_size 1")])
def test_groups_that_are_not_whole_are_refused(replay, rows, fix):
    refused(replay(rows=rows)[0], fix, 2)


def test_settings_that_do_not_go_with_a_replay_are_refused(replay):
    refused(replay("--check", rows=ROWS)[0], "--check and --replay are two things", 1)
    refused(replay(rows=ROWS, env={"WORLD_SIZE": "2", "RANK": "0"})[0], "--replay is one process", 1)
    refused(replay("--dynamic_sampling", "1", rows=ROWS[2:])[0], "no group varies", 2)
    refused(replay("--updates_per_step", "3", rows=ROWS)[0], "updates_per_step = 3 does not divide", 1)


@pytest.mark.parametrize("name, args", [
    ("on_policy", ["train_grpo.py", "recipes/demo.py"]),
    ("off_policy", ["train_grpo.py", "recipes/demo.py", "--adv_std", "True", "--loss_agg", "seq_mean"]),
    ("ppo", ["train_ppo.py", "recipes/demo_ppo.py", "--lam", "0.95", "--critic_warmup_steps", "0"])])
def test_the_reference_steps_are_what_the_scripts_compute(server, tmp_path, name, args):
    reference, (script, recipe, *more) = f"{ROOT}/results/2026-11-28_replay/{name}", args
    shutil.copy(f"{reference}.jsonl.gz", tmp_path)
    done = server.run(tmp_path, script, [
        f"{ROOT}/{recipe}", "--model", f"{ROOT}/demo_base/model", "--prompts_per_step", "4", "--group_size", "4",
        "--updates_per_step", "1", *more, "--replay", f"{name}.jsonl.gz"])
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = replayed(tmp_path / f"{name}.jsonl.gz"), replayed(f"{reference}.jsonl.gz")
    for column in set(COLUMNS + OF_PPO * (name == "ppo")) - {"kl", "kl_k1"}:  # there is no reference model
        assert ours["totals"][column] == pytest.approx(theirs["totals"][column], rel=1e-5, abs=1e-6), column
    for column in ("advantage", "logprob_mean", "loss_share", "grad_norm"):
        largest = max(map(abs, of(theirs, column)))
        assert of(ours, column) == pytest.approx(of(theirs, column), abs=1e-5 * largest), column


def test_replay_changes_nothing_of_a_run():
    """A run with it is the same run: it is one of the settings that may change."""
    from onebox.rundir import MAY_CHANGE

    assert "replay" in MAY_CHANGE and as_json(Config())["replay"] == ""
