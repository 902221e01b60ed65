"""
python -m pytest tests/test_faults.py: runs that are killed, stopped, starved of disk or restarted end as the run that
never was, to the bit (docs/faults.md). The scripts are real; the engine mostly fake_engine.py's.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import COLUMN, ROOT, save_tiny_model
from runs import (
    GRPO,
    PPO,
    SFT,
    Server,
    assert_same,
    checkpoints,
    environment,
    everything_of,
    metrics_of,
    write_examples,
)
from test_checkpoint import flip

SCRIPTS = {"train_grpo.py": GRPO, "train_ppo.py": PPO, "sft.py": [*SFT, "--name", "run"]}
POINTS = [
    "sync:1", "metrics:1", "save_write:2", "save_manifest:2", "after_rename:2", "evaluate:2", "rollout:3", "logprobs:3",
    "backward:3", "optimizer:3", "metrics:3", "evaluate:4", "prune:4", "export:4"
]
OF_SFT = [point for point in POINTS if point.split(":")[0] not in ("sync", "rollout", "logprobs", "evaluate")]


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def straight(server, tied_model, tmp_path_factory):
    """{script: folder of the run that nothing happened to}, with noise from the global generators in each step."""
    folders = {}

    def folder(script, *more):
        if (script, more) not in folders:
            folders[script, more] = tmp_path_factory.mktemp("straight")
            write_examples(folders[script, more])
            done = start(server, folders[script, more], script, tied_model, *more)
            assert done.returncode == 0, done.stderr[-3000:]
        return folders[script, more]

    return folder


def start(server, folder, script, model, *more, **job):
    write_examples(folder)
    env = {"NOISE": "1", **job.pop("env", {})}
    return server.run(folder, script, [*SCRIPTS[script], "--model", model, *more], env=env, **job)


@pytest.mark.parametrize("script, more, points", [
    ("train_grpo.py", (), POINTS), ("train_ppo.py", (), ["logprobs:2", "backward:3", "save_write:4", "evaluate:4"]),
    ("train_ppo.py", ("--dtype", "bfloat16"), ["save_manifest:2", "optimizer:4"]),  # sharded by FSDP
    ("sft.py", (), ["backward:1", "save_manifest:2", "metrics:4"])], ids=["grpo", "ppo", "ppo, sharded", "sft"])
def test_a_run_killed_again_and_again_is_the_one_never_killed(server, straight, tied_model, tmp_path, script, more,
                                                              points):
    """kill -9 at one point after the other, in one directory; each start goes on from where the last one got to."""
    for point in points:
        done = start(server, tmp_path, script, tied_model, "--keep_checkpoints", 1, *more, env={"FAULT_AT": point})
        assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stderr[-2000:])
        if point.startswith("evaluate"):  # the checkpoint of that step is there already: nothing was lost
            assert f"step_00000{point[-1]}" in checkpoints(tmp_path / "out/run")
    done = start(server, tmp_path, script, tied_model, "--keep_checkpoints", 1, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(everything_of(straight(script, *more)), everything_of(tmp_path))
    assert checkpoints(tmp_path / "out/run") == ["step_000004"]
    assert not [n for n in os.listdir(tmp_path / "out/run") if n.startswith("tmp") or n.startswith("model.")]


@pytest.mark.slow
@pytest.mark.parametrize("script, point", [(s, p) for s in SCRIPTS for p in (OF_SFT if s == "sft.py" else POINTS)])
def test_a_run_killed_once_at_each_point_is_the_one_never_killed(server, straight, tied_model, tmp_path, script, point):
    keep = ("--keep_checkpoints", 1)
    done = start(server, tmp_path, script, tied_model, *keep, env={"FAULT_AT": point})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    newest = {"prune:4": 4, "export:4": 4, "after_rename:2": 2, "evaluate:2": 2, "evaluate:4": 4}.get(
        point, 2 * (point[-1] in "34"))
    done = start(server, tmp_path, script, tied_model, *keep)
    assert done.returncode == 0 and (not newest
                                     or f"resumed out/run at step {newest}" in done.stdout), done.stderr[-3000:]
    assert_same(everything_of(straight(script)), everything_of(tmp_path))


def test_flipped_bytes_cost_two_steps_and_change_nothing(server, straight, tied_model, tmp_path):
    shutil.copytree(straight("train_grpo.py"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "out/run/model")
    flip(str(tmp_path / "out/run/step_000004/dcp/__0_0.distcp"), 100_000)
    done = start(server, tmp_path, "train_grpo.py", tied_model)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING: out/run/step_000004 is damaged (dcp/__0_0.distcp has another sha256" in done.stdout
    assert "resumed out/run at step 2" in done.stdout and "WARNING" in open(tmp_path / "out/run/log.txt").read()
    assert_same(everything_of(straight("train_grpo.py")), everything_of(tmp_path))
    assert checkpoints(tmp_path / "out/run") == ["corrupt_step_000004", "step_000002", "step_000004"]


def test_a_run_with_only_damaged_checkpoints_never_starts_from_scratch(server, straight, tied_model, tmp_path):
    shutil.copytree(straight("sft.py"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "out/run/model")
    for step in (2, 4):
        os.truncate(tmp_path / f"out/run/step_{step:06d}/dcp/__0_0.distcp", 1000)
    before = metrics_of(tmp_path / "out/run")
    done = start(server, tmp_path, "sft.py", tied_model)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "holds no checkpoint that can be used" in done.stderr
    assert metrics_of(tmp_path / "out/run") == before


# ---------------------------------------------------------------------------------------------------------------
# disk
# ---------------------------------------------------------------------------------------------------------------

FULL_AT = """
import resource
from onebox import checkpoint, rundir
real_save = checkpoint.save
def save(folder, step, *args):
    if step in {steps}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    problem = real_save(folder, step, *args)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return problem
checkpoint.save, rundir.RETRY_S = save, 0
"""


def test_a_full_disk_does_not_stop_training_and_saves_are_retried(server, straight, tied_model, tmp_path):
    """A limit on file sizes, which the kernel enforces, during the save of step 2; step 3 has room again."""
    done = start(server,
                 tmp_path,
                 "train_grpo.py",
                 tied_model,
                 "--keep_checkpoints",
                 9,
                 setup=FULL_AT.format(steps={2}))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING: step 2 could not be saved" in done.stdout
    assert checkpoints(tmp_path / "out/run") == ["step_000003", "step_000004"]
    assert_same(everything_of(straight("train_grpo.py")), everything_of(tmp_path))


def test_a_disk_that_stays_full_ends_the_run_with_the_old_checkpoint(server, straight, tied_model, tmp_path):
    done = start(server, tmp_path, "sft.py", tied_model, setup=FULL_AT.format(steps={3, 4}))
    assert done.returncode == 3 and "3 checkpoints in a row could not be written" in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and checkpoints(tmp_path / "out/run") == ["step_000002"]
    done = start(server, tmp_path, "sft.py", tied_model)
    assert done.returncode == 0 and "resumed out/run at step 2" in done.stdout
    assert_same(everything_of(straight("sft.py")), everything_of(tmp_path))


FILL = """
import os
from kill_at import at
from onebox import rundir
rundir.RETRY_S = 0
def fill():
    fd = os.open("out/fill", os.O_CREAT | os.O_WRONLY)
    try:
        while os.write(fd, bytes(4096)):
            pass
    except OSError:
        os.close(fd)
at("sync", 2, fill)
at("sync", 3, lambda: os.remove("out/fill"))
"""


@pytest.mark.slow
def test_a_small_file_system_that_fills_up_behaves_the_same(server, straight, tied_model, tmp_path):
    """A real ENOSPC, in metrics.jsonl and log.txt too: a tmpfs, where we may mount one."""
    os.makedirs(tmp_path / "out")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path / "out"],
                      capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    try:
        done = start(server, tmp_path, "train_grpo.py", tied_model, setup=FILL)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "step 2 could not be saved" in done.stdout and "the rollouts of step 2 are not kept" in done.stdout
        a, b = everything_of(straight("train_grpo.py")), everything_of(tmp_path)
        assert a["samples"].keys() - b["samples"].keys() == {"step_000002.jsonl.gz"}  # they alone are lost
        assert_same({k: v for k, v in a.items() if k != "samples"}, b)
    finally:
        subprocess.run(["umount", tmp_path / "out"], check=True)


# ---------------------------------------------------------------------------------------------------------------
# signals, time limit, two processes, changed data
# ---------------------------------------------------------------------------------------------------------------

SIGNAL_AT = """
import os, signal, time
from kill_at import at
def send():
    for number in {signals}:
        os.kill(os.getpid(), number)
        time.sleep({wait})
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started with & inherit that it is ignored
at("{point}", {step}, send)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(server, straight, tied_model, tmp_path, number):
    done = start(server,
                 tmp_path,
                 "train_grpo.py",
                 tied_model,
                 setup=SIGNAL_AT.format(point="optimizer", step=3, signals=[int(number)], wait=0.3))
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"stopped by {number.name} after step 3; the same command continues" in done.stdout
    assert checkpoints(tmp_path / "out/run") == ["step_000002", "step_000003"]
    assert not os.path.exists(tmp_path / "out/run/model")
    done = start(server, tmp_path, "train_grpo.py", tied_model)
    assert done.returncode == 0 and "resumed out/run at step 3" in done.stdout, done.stderr[-3000:]
    assert_same(everything_of(straight("train_grpo.py")), everything_of(tmp_path))


def test_a_second_signal_ends_the_run_at_once(server, tied_model, tmp_path):
    """A second apart, both inside step 1: the step is not finished, nothing is saved."""
    done = start(server,
                 tmp_path,
                 "sft.py",
                 tied_model,
                 setup=SIGNAL_AT.format(point="optimizer", step=1, signals=[15, 15], wait=1))
    assert done.returncode == 128 + signal.SIGTERM and "SIGTERM: stopping after this step" in done.stdout
    assert checkpoints(tmp_path / "out/run") == [] and not os.path.exists(tmp_path / "out/run/metrics.jsonl")


@pytest.mark.parametrize("script, point", [("train_grpo.py", "rollout"), ("sft.py", "backward"),
                                           pytest.param("train_ppo.py", "save_write", marks=pytest.mark.slow)])
def test_ctrl_c_is_one_line_and_the_stack_is_in_the_crash_report(server, straight, tied_model, tmp_path, script, point):
    step = 4 if point == "save_write" else 3
    done = start(server,
                 tmp_path,
                 script,
                 tied_model,
                 setup=SIGNAL_AT.format(point=point, step=step, signals=[2], wait=0))
    assert done.returncode == 130, (done.returncode, done.stderr[-2000:], done.stdout[-1000:])
    [crash] = os.listdir(tmp_path / "out/run/crash")
    assert done.stderr == (
        f"interrupted in step {step}; the batch, all stacks and the last metrics are in out/run/crash/{crash}; "
        "the same command continues\n")
    text = open(tmp_path / "out/run/crash" / crash / "error.txt").read()
    assert "KeyboardInterrupt" in text and "Traceback" in text and f"{script}" in text
    done = start(server, tmp_path, script, tied_model)
    assert done.returncode == 0 and "resumed out/run at step 2" in done.stdout, done.stderr[-3000:]
    assert_same(everything_of(straight(script)), everything_of(tmp_path))


def test_ctrl_c_in_an_evaluation_names_its_step(server, tied_model, tmp_path):
    setup = SIGNAL_AT.format(point="evaluate", step=2, signals=[2], wait=0)
    for _ in range(2):  # the second start finds the checkpoint of step 2 and no row
        done = start(server, tmp_path, "train_grpo.py", tied_model, setup=setup)
        assert done.returncode == 130 and done.stderr.startswith("interrupted in step 2; "), done.stderr[-2000:]


REFUSE = """
from kill_at import replace
from onebox.config import ConfigError
import policy, tools.dry_step
def no(*args, **settings):
    raise ConfigError("{told}", exit_code={code})
replace({function}, no)
"""


@pytest.mark.parametrize("script, code, function, told",
                         [("train_grpo.py", 4, "tools.dry_step, 'dry_step'", "out of memory in the dry step"),
                          ("sft.py", 1, "policy, 'load_policy'", "heads")])
def test_a_start_that_is_refused_leaves_no_directory(server, tied_model, tmp_path, script, code, function, told):
    setup = REFUSE.format(function=function, told=told, code=code)
    args = ["--dry_step", "on"] if script != "sft.py" else []
    done = start(server, tmp_path, script, tied_model, *args, setup=setup)
    assert done.returncode == code and told in done.stderr and not os.path.exists(tmp_path / "out/run")
    os.makedirs(tmp_path / "out/run")  # but one that was there is the user's
    (tmp_path / "out/run/notes.txt").write_text("mine")
    done = start(server, tmp_path, script, tied_model, *args, setup=setup)
    assert done.returncode == code and os.path.exists(tmp_path / "out/run/notes.txt")


def test_max_hours_ends_the_run_after_its_step(server, straight, tied_model, tmp_path):
    """A process that has run for two hours, by its monotonic clock."""
    late = "from onebox import distributed; distributed.START -= 7200"
    done = start(server, tmp_path, "sft.py", tied_model, "--max_hours", 1.9, setup=late)
    assert done.returncode == 0 and "stopped by max_hours = 1.9 after step 1" in done.stdout, done.stderr[-2000:]
    done = start(server, tmp_path, "sft.py", tied_model, "--max_hours", 2.1, setup=late)
    assert done.returncode == 0 and "resumed out/run at step 1" in done.stdout and "done: out/run" in done.stdout
    assert "max_hours: 1.9 there, 2.1 now" in done.stdout
    assert_same(everything_of(straight("sft.py")), everything_of(tmp_path))


def test_changed_examples_are_refused_unless_allowed(server, tied_model, tmp_path):
    args = [*SCRIPTS["sft.py"], "--model", tied_model, "--lr_min_ratio", "1"]  # a constant lr: more steps may follow
    write_examples(tmp_path)
    assert server.run(tmp_path, "sft.py", [*args, "--num_steps", 2]).returncode == 0
    write_examples(tmp_path, count=41)
    refused = server.run(tmp_path, "sft.py", args)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "training data are not those" in refused.stderr
    allowed = server.run(tmp_path, "sft.py", [*args, "--allow_data_change"])
    assert allowed.returncode == 0 and "WARNING: the training data changed since step 2" in allowed.stdout


def test_a_run_whose_directory_model_and_data_moved_continues(server, tied_model, tmp_path):
    def run(name, model, data, steps):
        args = [*SFT, "--name", name, "--model", model, "--data", data, "--num_steps", steps, "--lr_min_ratio",
                "1"]  # a constant lr
        return server.run(tmp_path, "sft.py", args)

    write_examples(tmp_path)
    shutil.copytree(tied_model, tmp_path / "there")
    assert run("a", "there", "d.jsonl", 2).returncode == 0
    os.rename(tmp_path / "out/a", tmp_path / "out/b")
    os.rename(tmp_path / "there", tmp_path / "here")
    os.rename(tmp_path / "d.jsonl", tmp_path / "e.jsonl")
    write_examples(tmp_path, count=41)
    other = save_tiny_model(tmp_path / "other", seed=1)
    for model, data, code, reason in ((other, "e.jsonl", 1, "the model's files"), ("here", "d.jsonl", 2,
                                                                                   "the training data")):
        refused = run("b", model, data, 3)
        assert refused.returncode == code and f"{reason} are not those that out/b was started with" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    moved = run("b", "here", "e.jsonl", 3)
    assert moved.returncode == 0 and "resumed out/b at step 2" in moved.stdout, moved.stderr[-2000:]
    assert "name: 'a' there, 'b' now, " in moved.stdout


@pytest.mark.slow
def test_changed_prompts_and_another_tokenizer_are_refused(server, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    rows = [{"nums": [1, 2, n], "target": 3 + n} for n in range(1, 40)]
    for name, part in (("train.jsonl", rows[:30]), ("test.jsonl", rows[30:])):
        with open(tmp_path / name, "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in part)
    args = [
        *GRPO, "--data", "countdown", "--data_path", "train.jsonl", "--eval_path", "test.jsonl", "--data_limit", "0",
        "--model", model, "--lr_schedule", "constant", "--eval_prompts", 20
    ]  # all of them, so that the new one is among them
    assert server.run(tmp_path, "train_grpo.py", [*args, "--num_steps", 2]).returncode == 0
    with open(tmp_path / "test.jsonl", "a") as f:
        f.write(json.dumps({"nums": [7, 7, 7], "target": 21}) + "\n")
    held_out = server.run(tmp_path, "train_grpo.py", args)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    with open(tmp_path / "model/tokenizer_config.json", "a") as f:
        f.write("\n")
    with open(tmp_path / "test.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows[30:])
    tokenizer = server.run(tmp_path, "train_grpo.py", args)
    assert held_out.returncode == 2 and "held-out data are not those" in held_out.stderr
    assert tokenizer.returncode == 1 and "model's files are not those" in tokenizer.stderr


# ---------------------------------------------------------------------------------------------------------------
# ranks: torchrun
# ---------------------------------------------------------------------------------------------------------------


def torchrun(folder, nproc, *args, restarts=0, env=None, timeout=900, wait=True, script="tests/fake_engine.py"):
    write_examples(folder)
    keep = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **(env or {}))
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}",
         f"--max-restarts={restarts}", "--shutdown-timeout=60", os.path.join(ROOT, script), *map(str, args)],
        cwd=folder, env=keep, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if not wait:
        return process
    process.stdout, (out, err) = None, process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.mark.slow
def test_two_ranks_then_one_then_two_sample_and_learn_the_same(server, straight, tied_model, tmp_path):
    quiet = {"NOISE": ""}
    args = [*GRPO, "--model", tied_model, "--save_every", "1", "--eval_prompts", "0", "--lr_schedule", "constant"]
    for nproc, steps, begun in ((2, 1, "step    1/1"), (1, 3, "resumed out/run at step 1"),
                                (2, 4, "resumed out/run at step 3")):
        done = torchrun(tmp_path, nproc, "train_grpo.py", *args, "--num_steps", steps, env=quiet)
        assert done.returncode == 0 and begun in done.stdout, done.stderr[-3000:]
    plain = tmp_path / "plain"
    assert server.run(plain, "train_grpo.py", args).returncode == 0
    tokens = [{tuple(row[:3]): row[4]
               for row in map(json.loads, open(folder / "tokens.jsonl"))}
              for folder in (plain, tmp_path)]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 4 * 2 * 4  # steps, prompts, samples
    a, b = ({row["step"]: row for row in metrics_of(folder / "out/run")} for folder in (plain, tmp_path))
    assert a.keys() == b.keys()
    for step in a:
        for name in ("reward", "loss", "grad_norm", "entropy", "prompts_seen", "response_len"):
            if a[step][name] is not None:
                assert a[step][name] == pytest.approx(b[step][name], **COLUMN), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["backward:3:1", "save_write:4:1", "after_rename:4:0"])
def test_torchrun_recovers_by_itself_from_a_rank_that_is_killed(tied_model, tmp_path, point):
    args = ["train_grpo.py", *GRPO, "--model", tied_model]
    whole = torchrun(tmp_path / "whole", 2, *args)
    killed = torchrun(tmp_path / "killed", 2, *args, restarts=3, env={"FAULT_AT": point})
    assert whole.returncode == 0 and killed.returncode == 0, killed.stderr[-3000:]
    assert f"resumed out/run at step {4 if 'rename' in point else 2}" in killed.stdout
    a, b = (everything_of(folder) for folder in (tmp_path / "whole", tmp_path / "killed"))
    assert_same(a, b)


HOLD = """
import os, subprocess, sys; sys.path.insert(0, {tests!r})
from onebox import crash
import fake_engine, kill_at
def hold():
    grader = subprocess.Popen(["sleep", "1000"], start_new_session=True)  # a grader is in a session of its own too
    print("HELD", os.getpid(), grader.pid, flush=True)
    while True:  # busy, as a step is
        sum(range(1000))
fake_engine.install()
point, step = os.environ.get("HOLD_AT", "sync:0").split(":")
kill_at.at(point, int(step), hold)
script = sys.argv.pop(1)
crash.entry(__import__(script.removesuffix(".py")).main)
"""


def running(pids):
    """Those that still run; a zombie does not."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as f:
                found += [pid] * (f.read().rpartition(")")[2].split()[0] != "Z")
        except FileNotFoundError:
            pass
    return found


@pytest.mark.parametrize("script, nproc, point", [
    ("sft.py", 1, "save_write:4"),
    *(pytest.param(script, nproc, point, marks=pytest.mark.slow) for script in ("train_grpo.py", "train_ppo.py")
      for nproc in (1, 2) for point in ("rollout:3", "backward:3", "save_write:4", "save_manifest:4")
      if (script, point) != ("train_ppo.py", "rollout:3"))])
def test_trainers_whose_launcher_is_killed_end_by_themselves(server, straight, tied_model, tmp_path, script, nproc,
                                                             point):
    """kill -9 of torchrun while the ranks are busy at the point; they, and their graders, end by themselves."""
    driver = tmp_path / "driver.py"
    driver.write_text(HOLD.format(tests=os.path.join(ROOT, "tests")))
    args = [script, *SCRIPTS[script], "--model", tied_model]
    process = torchrun(tmp_path, nproc, *args, env={"HOLD_AT": point, "NOISE": "1"}, wait=False, script=driver)
    holding = 1 if point.startswith("save_manifest") else nproc  # the first rank alone writes the manifest
    held = []
    while len(held) < holding:
        line = process.stdout.readline()
        assert line, process.stderr.read()[-3000:]
        held += [list(map(int, line.split()[1:]))] if line.startswith("HELD") else []
    trainers = [int(pid) for pid in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()]
    assert len(trainers) == nproc and {pid for pid, _ in held} <= set(trainers)
    process.kill()
    out, err = process.communicate(timeout=600)  # both pipes close when the last of them has ended
    assert err.count("is gone: this run ends; the same command continues") == 1 and "Traceback" not in err, err
    everyone, deadline = [*trainers, *(pid for _, pid in held)], time.monotonic() + 600
    while running(everyone) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(everyone) == []
    done = start(server, tmp_path, script, tied_model) if nproc == 1 else torchrun(
        tmp_path, nproc, *args, env={"NOISE": "1"})
    assert done.returncode == 0 and "resumed out/run at step 2" in done.stdout, done.stderr[-3000:]
    if nproc == 1:
        assert_same(everything_of(straight(script)), everything_of(tmp_path))
    else:
        assert [row["step"] for row in metrics_of(tmp_path / "out/run")][-4:] == [1, 2, 3, 4]


def test_without_torchrun_a_parent_may_go_and_the_process_stays(tmp_path):
    """nohup and a closed terminal: only a launcher's death counts."""
    code = (
        "from onebox import distributed; import os, time\nparent = os.getppid()\nprint('up', flush=True)\n"
        "while os.getppid() == parent:\n    time.sleep(0.1)\ntime.sleep(1.5)\nprint('stayed', os.getppid(), flush=True)"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {code!r}]); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", parent],
                               env=environment(),
                               cwd=ROOT,
                               text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith("up")
    process.kill()
    out, _ = process.communicate(timeout=600)
    assert out.startswith("stayed") and int(out.split()[1]) != process.pid


HANG = """
import datetime, os, sys, time; sys.path.insert(0, {tests!r})
from onebox import crash
import torch.distributed as dist
import fake_engine, kill_at
init = dist.init_process_group
dist.init_process_group = lambda backend, timeout: init(backend, timeout=datetime.timedelta(seconds=60))
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    kill_at.at("backward", 3, lambda: time.sleep(1000), rank=1)
fake_engine.install()
import train_grpo
crash.entry(train_grpo.main)
"""


@pytest.mark.slow
def test_a_hung_rank_is_found_by_the_timeout_and_torchrun_restarts(tied_model, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(HANG.format(tests=os.path.join(ROOT, "tests")))
    whole = torchrun(tmp_path / "whole", 2, "train_grpo.py", *GRPO, "--model", tied_model)
    assert whole.returncode == 0, whole.stderr[-2000:]
    hung = torchrun(tmp_path / "hung", 2, *GRPO, "--model", tied_model, restarts=3, script=driver)
    assert hung.returncode == 0 and "resumed out/run at step 2" in hung.stdout, hung.stderr[-3000:]
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "hung"))


@pytest.mark.slow
def test_sigterm_to_torchrun_lets_all_ranks_save_the_same_step(tied_model, tmp_path):
    args = ["train_grpo.py", *GRPO, "--model", tied_model, "--num_steps", 400, "--eval_prompts", 0]
    process = torchrun(tmp_path, 2, *args, wait=False)
    for line in process.stdout:
        if line.startswith("step    2/"):
            process.terminate()
            break
    out, err = process.communicate(timeout=900)
    assert "stopped by SIGTERM after step" in out, err[-3000:]
    step = int(out.partition("stopped by SIGTERM after step ")[2].split(";")[0])
    assert f"step_{step:06d}" in checkpoints(tmp_path / "out/run")
    assert [row["step"] for row in metrics_of(tmp_path / "out/run")] == list(range(1, step + 1))
