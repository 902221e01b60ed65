"""python -m pytest tests/test_end_to_end.py: the scripts as a user starts them, a tiny random model and real vLLM."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import groupby

import numpy as np
import pytest
from conftest import (COLUMN, LOGPROB, LOGPROB_MEAN, ROOT, run_script, save_tiny_model, share_of_the_way,
                      without_an_engine)
from runs import GRPO, PPO, Server, assert_same, everything_of

from tasks.parts import kimi_length

COLUMNS = """step reward correct format_error wrong_answer truncated response_len think_len answer_len entropy grad_norm
kl clip_frac mismatch_mean mismatch_max zero_variance_groups lr seconds_rollout seconds_reward seconds_train
seconds_sync tokens_per_second""".split()
TINY = """--data tiny_countdown --template tiny_countdown --reward tinyzero_countdown --max_prompt_len 16
--max_response_len 24 --prompts_per_step 4 --group_size 4 --num_steps 3 --eval_every 2 --save_every 2 --eval_prompts 6
--eval_samples 2 --checkpointing False --entropy_coef 0.01 --report_every 0 --max_num_seqs 16 --lr 3e-3
--max_tokens_per_gpu 200""".split()


def train(folder, model, *args, nproc=1, env=None, kill_at=None):
    """Run train_grpo.py; kill_at "evaluate:3": with SIGKILL at that point, see tests/kill_at.py."""
    os.makedirs(folder, exist_ok=True)
    script = [os.path.join(ROOT, "train_grpo.py")]
    if kill_at:
        script, env = [os.path.join(ROOT, "tests", "kill_at.py"), "train_grpo.py"], {**(env or {}), "FAULT_AT": kill_at}
    return run_script(*script, *TINY, "--model", model, *args, nproc=nproc, cwd=folder, env=env)


def rows_of(folder, name="run"):
    with open(os.path.join(folder, "out", name, "metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


def samples_of(folder, step, name="run"):
    with gzip.open(os.path.join(folder, "out", name, "samples", f"step_{step:06d}.jsonl.gz"), "rt") as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, tied_model):
    """Three steps on one rank, with three updates' worth of variety: entropy bonus, evaluation, checkpoints."""
    folder = tmp_path_factory.mktemp("one")
    done = train(folder, tied_model, "--report_every", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_a_run_leaves_everything_it_promises(one_rank):
    folder, done = one_rank
    run = os.path.join(folder, "out", "run")
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert set(COLUMNS) <= set(row), set(COLUMNS) - set(row)
    assert [row["step"] for row in rows if "eval_correct" in row] == [0, 2, 3]
    assert all("eval_correct_greedy" in row for row in rows if "eval_correct" in row)
    for row in rows[1:]:
        assert row["mismatch_mean"] < LOGPROB_MEAN and row["grad_norm"] > 0 and row["tokens_per_second"] > 0
        assert row["think_len"] + row["answer_len"] == pytest.approx(row["response_len"])
        assert row["correct"] + row["wrong_answer"] + row["format_error"] == pytest.approx(1)
    assert [row["lr"] for row in rows[1:]] == [3e-3] * 3
    samples = samples_of(folder, 0)
    assert len({row["response"] for row in samples if row["sample"] != "greedy"}) > 6  # 6 problems x 2 samples
    with open(os.path.join(run, "config.json")) as f:
        assert json.load(f)["settings"]["group_size"] == 4
    for name in ("log.txt", "code/train_grpo.py", "code/git.txt", "samples/step_000000.jsonl.gz", "plots/overview.png",
                 "samples/step_000003.jsonl.gz", "model/config.json", "model/model.safetensors", "model/tokenizer.json",
                 "step_000003/state.json"):
        assert os.path.exists(os.path.join(run, name)), name
    assert "step    3/3" in done.stdout and "step    3/3" in open(os.path.join(run, "log.txt")).read()
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and max(map(len, lines)) <= 160  # three steps, three evaluations
    words = {word for line in lines for word in line.split() if word.replace("_", "").isalpha()}
    assert words <= rows[-1].keys()  # the console calls everything as metrics.jsonl does


def test_the_kept_rollouts_hold_what_the_step_computed_for_every_token(one_rank):
    rows = [row for row in samples_of(one_rank[0], 1) if row["split"] == "train"]
    assert len(rows) == 16 and len({row["uid"] for row in rows}) == 4  # 4 prompts x 4 samples, the whole step
    for row in rows:
        assert len(row["ends"]) == row["tokens"] == len(row["entropy"]) == len(row["rollout_logprobs"])
        assert row["ends"] == sorted(row["ends"]) and row["ends"][-1] == len(row["response"])
        assert np.abs(np.subtract(row["logprobs"], row["rollout_logprobs"])).max() < LOGPROB
        assert set(row["ratio"]) == {1.0} and not any(row["clipped"])  # one update: on-policy
    for group in (rows[i:i + 4] for i in range(0, 16, 4)):
        assert abs(sum(row["advantage"] for row in group)) < 1e-3
    metrics = rows_of(one_rank[0])[1]
    tokens = sum(row["tokens"] for row in rows)
    assert metrics["reward"] == pytest.approx(sum(row["reward"] for row in rows) / 16)
    assert metrics["entropy"] == pytest.approx(sum(sum(row["entropy"]) for row in rows) / tokens, abs=1e-4)


def test_the_same_command_again_is_complete_and_makes_no_engine(one_rank, tied_model, tmp_path):
    again = train(one_rank[0], tied_model, env=without_an_engine(tmp_path))
    assert again.returncode == 0 and "is complete: step 3 of 3" in again.stdout, again.stderr[-2000:]
    assert len(rows_of(one_rank[0])) == 4


def test_other_settings_in_the_same_directory_are_refused(one_rank, tied_model):
    other = train(one_rank[0], tied_model, "--lr", "1e-5", nproc=None)
    assert other.returncode != 0 and "lr: 0.003 there, 1e-05 now" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks_train_as_one_up_to_rounding(one_rank, tied_model, tmp_path, tensor_parallel):
    """Two engines that share the prompts, and one engine cut over both ranks, sample and learn what one rank does."""
    done = train(tmp_path, tied_model, "--tensor_parallel", tensor_parallel, nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(rows_of(one_rank[0]), rows_of(tmp_path), strict=True):
        for name in ("reward", "correct", "response_len", "entropy", "grad_norm", "loss", "truncated"):
            if a.get(name) is not None:
                assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)
    weights = [load_weights(os.path.join(folder, "out/run/model")) for folder in (one_rank[0], tmp_path)]
    # Adam makes a whole step, of either sign, of a gradient that is rounding alone: one such weight of 70,000 is
    # 2 / 265 of the way, an eighth of it allows for 270. Half a batch forgotten would turn every fourth sign: all of it
    assert share_of_the_way(load_weights(tied_model), *weights) < 0.125


def load_weights(folder):
    from safetensors.numpy import load_file

    return load_file(os.path.join(folder, "model.safetensors"))


def test_resume_after_sigkill_in_the_last_evaluation_is_bit_identical(one_rank, tied_model, tmp_path):
    """kill -9 in the held-out evaluation of step 3, with the real engine; tests/test_faults.py has the rest."""
    first = train(tmp_path, tied_model, kill_at="evaluate:3")
    assert first.returncode != 0 and "step    3/3" not in first.stdout, first.stderr[-3000:]
    assert "SIGKILL" in first.stderr
    second = train(tmp_path, tied_model)
    assert second.returncode == 0 and "resumed out/run at step 3" in second.stdout, second.stderr[-3000:]
    assert_same(everything_of(one_rank[0]), everything_of(tmp_path))


def test_the_evaluation_of_the_exported_model_is_the_runs_last_evaluation(one_rank):
    folder = one_rank[0]
    done = run_script(os.path.join(ROOT, "eval.py"), "--model", "out/run/model", "--limit", "6", "--samples", "2",
                      "--max_prompt_len", "16", "--max_response_len", "24", "--output", "e.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(os.path.join(folder, "e.jsonl")) as f:
        found = [json.loads(line) for line in f]
    last = [row for row in samples_of(folder, 3) if row["split"] == "held-out"]
    assert len(found) == len(last) == 18
    assert [row["response"] for row in found] == [row["response"] for row in last]


def test_several_updates_with_a_reference_masking_and_dynamic_sampling(tied_model, tmp_path):
    """The options that the plain run does not touch, together: old and reference log-probs, k1, masks, resampling."""
    done = train(tmp_path, tied_model, "--updates_per_step", "2", "--kl_in", "reward_k1", "--kl_coef", "0.1",
                 "--on_truncated", "mask", "--dynamic_sampling", "3", "--loss_agg", "constant", "--temperature", "0.8",
                 "--num_steps", "2", "--eval_prompts", "0", "--adv_std", "False", "--stop", "('</answer>',)",
                 "--reward_parts", "{'cosine': 1.0}", "--max_response_len", "40", "--wandb", "offline", nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert abs(rows[0]["kl"]) < 1e-9 < rows[1]["kl"]  # of the policy that sampled, which is the reference in step 1
    assert rows[0]["mismatch_mean"] < LOGPROB_MEAN and rows[0]["part/cosine"] < 0
    for row in rows:  # masked: none of the truncated responses' 40 tokens each was trained on
        tokens = row["response_len"] * row["num_rollouts"]
        assert 0 < row["trained_tokens"] <= tokens - row["truncated"] * row["num_rollouts"] * 40 + 0.5
    assert os.path.isdir(os.path.join(tmp_path, "out/run/wandb")) and "wandb:" not in done.stdout
    assert rows[0]["seconds_logprobs"] > 0


def test_the_canary_stops_a_run_whose_engine_has_other_weights(tied_model, untied_model, tmp_path):
    """Start the engine from another model and leave the sync out: no weight may change; the message names causes."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, rollout\n"
        "rollout.sync_weights = lambda model, engine, dtype, version: engine.update_weight_version(str(version))\n"
        "make = rollout.make_engine\n"
        f"rollout.make_engine = lambda path, **kw: make({save_tiny_model(tmp_path / 'other', seed=1)!r}, **kw)\n"
        "import train_grpo\nsys.exit(train_grpo.main())\n")
    done = run_script(driver, *TINY, "--model", tied_model, "--eval_prompts", "0", cwd=tmp_path)
    assert done.returncode != 0 and "engine and trainer disagree" in done.stderr and "prefix cache" in done.stderr
    assert not os.path.exists(tmp_path / "out/run/model")


def test_sft_lowers_the_loss_and_counts_bad_lines(tied_model, tmp_path):
    row = {"prompt": "numbers 1 2 3 target 6 <think>", "response": "1 + 2 = 3 </think> <answer> 1 + 2 + 3 </answer>"}
    rows = [row] * 200
    with open(tmp_path / "d.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
        f.write('{"prompt": "numbers 1"}\n')
    args = ["--model", tied_model, "--data", "d.jsonl", "--num_steps", "12", "--tokens_per_step", "400", "--lr", "3e-3",
            "--warmup_steps", "1", "--checkpointing", "False"]
    done = run_script(os.path.join(ROOT, "sft.py"), *args, nproc=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 201 lines not used" in done.stdout
    losses = [row["loss"] for row in rows_of(tmp_path, "sft")]
    assert losses[-1] < 0.3 * losses[0]
    with open(tmp_path / "d.jsonl", "a") as f:
        f.write("not json\n" * 5)
    shutil.rmtree(tmp_path / "out")
    refused = run_script(os.path.join(ROOT, "sft.py"), *args, cwd=tmp_path)
    assert refused.returncode != 0 and "6 of 206 lines cannot be used" in refused.stderr


# ---------------------------------------------------------------- the loop, with a stand-in for vLLM (fake_engine.py)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


SAY_SYNCS = """
import rollout
sync = rollout.wake_and_sync
def say_and_sync(model, engine, dtype, version, device):
    print(f"synced {version}")
    sync(model, engine, dtype, version, device)
rollout.wake_and_sync = say_and_sync
"""


@pytest.mark.parametrize("script, args", [("train_grpo.py", GRPO), ("train_ppo.py", PPO)])
def test_the_version_of_the_weights_is_the_number_of_steps_in_them(server, tied_model, tmp_path, script, args):
    """Evaluated as version s after step s, sampled from as version s in step s + 1: on a CPU one sync does for both."""
    args = [*args, "--model", tied_model, "--num_steps", "2", "--eval_every", "1"]
    done = server.run(tmp_path, script, args, setup=SAY_SYNCS)
    assert done.returncode == 0, done.stderr[-3000:]
    synced = [line for line in done.stdout.splitlines() if line.startswith("synced")]
    assert synced == ["synced 0", "synced 1", "synced 2"]
    with open(tmp_path / "tokens.jsonl") as f:
        calls = [(version, temperature) for version, _, _, temperature, _ in map(json.loads, f)]
    assert [call for call, _ in groupby(calls)] == [
        (0, 1.0), (0, 0.0), (0, 1.0),  # the evaluation before step 1, its greedy part, step 1
        (1, 1.0), (1, 0.0), (1, 1.0),  # the evaluation after step 1, its greedy part, step 2
        (2, 1.0), (2, 0.0)]


DROP_WEIGHTS = SAY_SYNCS + """
sleep = rollout.Engine.sleep
def sleep_and_drop(engine):
    sleep(engine)
    engine.version = None
    print("asleep")
rollout.Engine.sleep = sleep_and_drop
"""


@pytest.mark.parametrize("script, args", [("train_grpo.py", GRPO), ("train_ppo.py", PPO)])
def test_where_sleep_drops_the_weights_one_sync_does_for_an_evaluation_and_the_next_step(server, tied_model, tmp_path,
                                                                                         script, args):
    """As on a GPU. Evaluated after each of 3 steps: 4 syncs. The export gets the memory of an engine that was awake."""
    args = [*args, "--model", tied_model, "--num_steps", "3", "--eval_every", "1"]
    done = server.run(tmp_path, script, args, setup=DROP_WEIGHTS)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("synced", "asleep", "done"))]
    assert [line.split()[0] for line in said] == ["asleep", *["synced", "asleep"] * 4, "done:"]
    assert [line for line in said if "synced" in line] == [f"synced {step}" for step in range(4)]


SHORT = """
import rollout
fake = rollout.generate
rollout.generate = lambda llm, wanted, **options: fake(llm, wanted, **options | {"stop_ids": range(1, 41)})
"""  # 40 of 128 words end a response, so that lengths vary


@pytest.mark.parametrize("script", ["train_grpo.py", "train_ppo.py"])
def test_a_finish_share_trains_on_the_groups_that_finish_first_and_names_the_others(server, tied_model, tmp_path,
                                                                                    script):
    """
    Of the 4 groups drawn a step 2 are kept, those whose longest response is shortest; the others have no token after
    that. A run that stops after step 2 and goes on is one that did not.
    """
    args = [*GRPO, "--model", tied_model, "--finish_share", "0.5", "--keep_rollouts", "8", "--eval_prompts", "0",
            "--save_every", "1", "--lr_schedule", "constant"]
    for folder, steps in (("whole", 3), ("twice", 2), ("twice", 3)):
        done = server.run(tmp_path / folder, script, [*args, "--num_steps", steps], setup=SHORT)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "twice"))
    with open(tmp_path / "whole" / "tokens.jsonl") as f:
        tokens = list(map(json.loads, f))
    with open(tmp_path / "whole" / "out" / "run" / "log.txt") as f:
        named = dict(line.removeprefix("step ").split(": finish_share left out ") for line in f if "left out" in line)
    for row in rows_of(tmp_path / "whole"):
        drawn, kept, step = {}, {}, row["step"]  # {group: lengths}
        for version, prompt, _, _, response in tokens:
            if version == step - 1:
                drawn.setdefault(prompt, []).append(len(response))
        for one in samples_of(tmp_path / "whole", step):
            kept.setdefault(one["uid"], []).append(one["tokens"])
        longest = sorted(map(max, drawn.values()))
        assert [len(lens) for lens in drawn.values()] == [4] * 4 and sorted(map(max, kept.values())) == longest[:2]
        assert longest[2:] == longest[1:2] * 2  # nobody went on after the second group was complete
        left_out = set(named[str(step)].split(", "))
        assert len(left_out) == row["dropped_groups"] == len(kept) == 2 and not left_out & kept.keys()
        assert row["dropped_tokens"] == sum(map(sum, drawn.values())) - sum(map(sum, kept.values()))
        assert (row["prompts_seen"], row["num_rollouts"]) == (4 * step, 8)


@pytest.mark.parametrize("dynamic_sampling", [0, 1])
@pytest.mark.parametrize("script", ["train_grpo.py", "train_ppo.py"])
def test_where_there_is_nothing_to_learn_no_weight_moves(server, tied_model, tmp_path, script, dynamic_sampling):
    """
    A random model earns 0 everywhere: momentum and weight decay must not act on a gradient of zero. With dynamic
    sampling the step has no group left, hence no update. After five steps the run says why, and names responses to
    read, which `rewards.py --why` explains.
    """
    done = server.run(tmp_path, script, [
        *GRPO, "--model", tied_model, "--entropy_coef", "0", "--weight_decay", "0.5", "--num_steps", "5",
        "--eval_prompts", "0", "--dynamic_sampling", dynamic_sampling])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step    5/5" in done.stdout and "Warning" not in done.stderr
    [warning] = [line for line in done.stdout.splitlines() if "nothing to learn from" in line]
    count = 8 * (1 + dynamic_sampling)
    cut = round(rows_of(tmp_path)[-1]["truncated"] * count)
    assert f"for 5 steps: {cut} of {count} responses do not end (mean reward 0.000" in warning
    command = warning.partition("An example: python ")[2].split()
    assert command == ["rewards.py", "--why", "out/run/samples/step_000005.jsonl.gz"]
    command = [sys.executable, os.path.join(ROOT, command[0]), *command[1:]]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and f"--sample 0 of 0 to {count - 1}" in shown.stdout, shown.stderr
    assert "; truncated " in shown.stdout and "not as kept" not in shown.stdout and "total" in shown.stdout
    for row in rows_of(tmp_path):
        assert (row["zero_variance_groups"], row["num_rollouts"]) == (1.0, 8 * (1 + dynamic_sampling))
        assert (row["skipped_updates"], row["grad_norm"]) == ((None, None) if dynamic_sampling else (1, 0.0))
        assert row["prompts_seen"] == 2 * (1 + dynamic_sampling) * row["step"]
        assert row["corr_length_advantage"] is None
    before, after = load_weights(tied_model), load_weights(os.path.join(tmp_path, "out/run/model"))
    assert all((before[name] == after[name]).all() for name in after)


@pytest.mark.parametrize("script", ["train_grpo.py", "train_ppo.py"])
def test_parts_of_the_group_reach_the_rewards_that_are_learned_from(server, tied_model, tmp_path, script):
    done = server.run(tmp_path, script, [
        *GRPO, "--model", tied_model, "--num_steps", "1", "--eval_prompts", "0", "--max_response_len", "60",
        "--max_tokens_per_gpu", "200", "--reward_parts",
        "{'kimi_length': 2.0, 'dense_repetition': {'weight': 1.0, 'ngram': 1}}"])
    assert done.returncode == 0, done.stderr[-3000:]
    with gzip.open(tmp_path / "out/run/samples/step_000001.jsonl.gz", "rt") as f:
        rows = [json.loads(line) for line in f]
    groups, values = [rows[:4], rows[4:]], []  # two prompts, four responses each: all are kept
    for group in groups:
        assert len({row["uid"] for row in group}) == 1
        values += kimi_length([row["tokens"] for row in group], [row["correct"] for row in group])
    assert min(values) == -0.5
    assert [row["parts"]["kimi_length"] for row in rows] == pytest.approx([2 * value for value in values])
    assert all(row["reward"] == pytest.approx(sum(row["parts"].values())) for row in rows)
    [metrics] = rows_of(tmp_path)
    assert metrics["part/kimi_length"] == pytest.approx(2 * sum(values) / 8)
    assert metrics["part/dense_repetition"] == pytest.approx(sum(row["parts"]["dense_repetition"] for row in rows) / 8)
    assert -1 <= metrics["part/dense_repetition"] < 0 and -1 <= metrics["corr_length_advantage"] < 0


# ---------------------------------------------------------------- evaluation


def test_evaluating_changes_nothing_of_the_training(one_rank, tied_model, tmp_path):
    """The same three steps without any evaluation: the same weights and the same metrics, bit for bit."""
    done = train(tmp_path, tied_model, "--eval_prompts", "0", "--save_every", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (load_weights(os.path.join(folder, "out/run/model")) for folder in (one_rank[0], tmp_path))
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    ours, theirs = ([row for row in rows_of(folder) if row["step"]] for folder in (one_rank[0], tmp_path))
    assert len(ours) == len(theirs) == 3 and not any(name.startswith("eval") for row in theirs for name in row)
    for one, other in zip(ours, theirs, strict=True):
        for name in other:
            # what a clock says
            if not name.startswith(("seconds", "tokens_per_second", "mfu", "mbu", "roofline")):
                assert one[name] == other[name], name


def test_every_held_out_problem_is_on_record_at_every_evaluation(one_rank):
    with open(os.path.join(one_rank[0], "out/run/samples/held_out.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    assert [line["step"] for line in lines] == [0, 2, 3] and all(len(line["correct"]) == 6 for line in lines)
    for line, row in zip(lines, [row for row in rows_of(one_rank[0]) if "eval_correct" in row], strict=True):
        shares = np.array(list(line["correct"].values()))
        assert shares.mean(axis=0) == pytest.approx([row["eval_correct"], row["eval_correct_greedy"]])


def test_a_sweep_of_a_run_repeats_its_evaluations_and_prints_the_table(one_rank):
    run = one_rank[0] / "out/run"
    done = run_script(os.path.join(ROOT, "eval.py"), "--sweep", "out/run", cwd=one_rank[0])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((run / "eval/table.json").read_text())["rows"]
    assert [(row["step"], row["benchmark"]) for row in rows] == [(step, "tiny_countdown") for step in (0, 2, 3)]
    for step in (0, 2, 3):  # the weights of that step, and no others: each response is the one the run itself sampled
        own = [row["response"] for row in samples_of(one_rank[0], step) if row["split"] == "held-out"]
        lines = (run / f"eval/step_{step:06d}/tiny_countdown.jsonl").read_text().splitlines()
        swept = [json.loads(line)["response"] for line in lines]
        assert len(own) == 18 and own == swept
    for row, metrics in zip(rows, [row for row in rows_of(one_rank[0]) if "eval_correct" in row], strict=True):
        assert (row["avg_at_k"], row["greedy"]) == pytest.approx(
            (metrics["eval_correct"], metrics["eval_correct_greedy"]))
        assert {"pass_at_k", "maj_at_k", "k", "low", "high", "truncated", "mean_len", "problems"} <= set(row)
    markdown = (run / "eval/table.md").read_text().splitlines()
    assert markdown[0] == "| step | tiny_countdown | average |" and len(markdown) == 5
    assert (run / "eval/table.csv").read_text().splitlines()[0] == "step,tiny_countdown,average"
    assert "step  tiny_countdown  average" in done.stdout
