"""
python -m pytest tests/test_checkpoint.py: checkpoints written, damaged and read back in this process; what a run does
with them is in test_faults.py.
"""

import errno
import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, full, master, save_tiny_model
from test_policy import make_rollouts

import policy as model
from onebox import checkpoint, crash, distributed, rundir
from onebox.config import ConfigError


def fresh(path, device, dtype="bfloat16", **options):
    """always_fsdp: one process trains FSDP's shards, as eight do."""
    policy = model.load_policy(path, device, dtype, **options)
    return policy, torch.optim.AdamW(policy.parameters(), lr=1e-3)


def train(policy, optimizer, steps, device):
    for _ in range(steps):
        (batch,) = model.pack(make_rollouts(), range(5), 1000, 0, 1, device)
        model.token_logprobs(policy, batch, 1.0)[0].mean().backward()
        model.optimizer_step(policy, optimizer, 1e-3, 1.0)


def weights_of(policy):
    return [master(p).clone() for p in policy.parameters()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tied_model, one_process):
    """Checkpoints of steps 1, 2 and 3, of a policy after 1, 2 and 3 updates; its weights at each."""
    folder, pair, weights = tmp_path_factory.mktemp("saved"), fresh(tied_model, one_process[2]), {}
    for step in (1, 2, 3):
        train(*pair, 1, one_process[2])
        assert checkpoint.save(str(folder), step, {"model": pair}, {"prompts_seen": 10 * step}, keep=3) == ""
        weights[step] = weights_of(pair[0])
    return folder, weights


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of those three to damage, and what was said about it."""
    shutil.copytree(saved[0], tmp_path / "run")
    lines = []
    return str(tmp_path / "run"), lines.append, lines


def test_a_checkpoint_brings_back_weights_and_optimizer_to_the_bit(saved, tied_model, one_process):
    straight, second = fresh(tied_model, one_process[2]), fresh(tied_model, one_process[2])
    train(*straight, 4, one_process[2])
    checkpoint.load_state(str(saved[0]), 2, {"model": second})
    train(*second, 2, one_process[2])
    for a, b in zip(weights_of(straight[0]), weights_of(second[0]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_a_save_before_the_first_update_does_not_change_that_update(tmp_path, tied_model, one_process, dtype, kind):
    device, batches = one_process[2], model.pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    policy = model.load_policy(tied_model, device, dtype)
    other, after = (policy, model.make_adam(policy, 1e-3, 0.9, 0.999, 0.0)), {}
    for save in (False, True):
        trained = model.load_critic(tied_model, device, dtype) if kind == "critic" else model.load_policy(
            tied_model, device, dtype)
        optimizer = model.make_adam(trained, 1e-3, 0.9, 0.999, 0.0)
        begun = weights_of(trained)
        if save:
            models = {"model": other, "critic": (trained,
                                                 optimizer)} if kind == "critic" else {"model": (trained, optimizer)}
            assert checkpoint.save(str(tmp_path), 1, models, {"prompts_seen": 1}) == ""
        loss = model.token_values(trained, *batches) if kind == "critic" else model.token_logprobs(
            trained, *batches, 1.0)[0]
        loss.mean().backward()
        model.optimizer_step(trained, optimizer, 1e-3, 1.0)
        after[save] = weights_of(trained)
        assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}
        moved = max((a - b).abs().max() for a, b in zip(begun, after[save], strict=True))
        assert moved == pytest.approx(1e-3, rel=1e-2)  # Adam's first step is the lr; after an empty one 0.74 of it
    assert all(torch.equal(a, b) for a, b in zip(after[False], after[True], strict=True))


def test_adam_with_its_moments_there_from_the_start_is_adam(tied_model, one_process):
    ends = []
    for early in (False, True):
        policy = model.load_policy(tied_model, one_process[2], "float32")
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        optimizer = model.make_adam(policy, 1e-3, 0.9, 0.999, 0.01) if early else optimizer
        train(policy, optimizer, 3, one_process[2])
        ends.append(weights_of(policy) + [x for p in policy.parameters() for x in optimizer.state[p].values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


KINDS = {"fp32": dict(dtype="float32"), "bf16": {}, "offload": dict(offload=True), "fsdp": dict(always_fsdp=True)}


@pytest.mark.parametrize("first, then", [("fp32", "fsdp"), ("fsdp", "fp32"), ("fp32", "fp32"), ("fsdp", "bf16"),
                                         ("bf16", "fsdp"), ("bf16", "offload"), ("offload", "bf16"),
                                         ("offload", "fp32")])
def test_a_checkpoint_of_plain_tensors_masters_and_shards_is_the_same(tmp_path, tied_model, one_process, first, then):
    """A run may go on from either with either, to the bit; what computes in bf16 computes with the rounded masters."""
    here, there = (fresh(tied_model, one_process[2], **KINDS[kind]) for kind in (first, then))
    assert [hasattr(next(pair[0].parameters()), "full_tensor") for pair in (here, there)] == [
        first == "fsdp", then == "fsdp"]
    train(*here, 2, one_process[2])
    assert checkpoint.save(str(tmp_path), 2, {"model": here}, {}, keep=1) == ""
    checkpoint.load_state(str(tmp_path), 2, {"model": there})
    for a, b in zip(here[0].parameters(), there[0].parameters(), strict=True):
        assert torch.equal(master(a), master(b)) and torch.equal(full(b), master(b).to(b.dtype))
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(full(here[1].state[a][name]), full(there[1].state[b][name]))


def test_the_newest_stay_and_the_best_one_however_old(tmp_path, tied_model, one_process):
    pair, folder = fresh(tied_model, one_process[2]), str(tmp_path)
    for step, score, left in [(1, 0.5, [1]), (2, 0.7, [1, 2]), (3, None, [2, 3]), (4, 0.6, [2, 3, 4]),
                              (5, 0.1, [2, 4, 5]), (6, 0.7, [5, 6])]:  # at 6 as good as 2, and newer
        assert checkpoint.save(folder, step, {"model": pair}, {}, keep=2) == ""
        with open(tmp_path / "metrics.jsonl", "a") as f:  # the evaluation comes after the save
            f.write(
                json.dumps({"step": step, "eval_correct": score} if score else {"step": step}) + "\n" +
                '{"step": 9, "eva')
            f.write("\n")
        checkpoint.prune(folder, 2)
        assert checkpoint.saved_steps(folder) == left
    assert json.load(open(tmp_path / "best")) == {"step": 6, "score": 0.7}
    assert checkpoint.save(folder, 7, {"model": pair}, {}, keep=0) == ""  # whatever keep is, the newest stays
    assert checkpoint.saved_steps(folder) == [6, 7] and not [n for n in os.listdir(folder) if n.startswith("tmp")]


def test_the_manifest_holds_size_and_sha256_of_every_file(saved):
    path = os.path.join(saved[0], "step_000003")
    manifest = json.load(open(os.path.join(path, "MANIFEST.json")))
    files = {os.path.relpath(os.path.join(d, n), path) for d, _, names in os.walk(path) for n in names}
    assert set(manifest["files"]) == files - {"MANIFEST.json"} and "dcp/.metadata" in files
    assert manifest["step"] == 3 and manifest["world_size"] == 1
    sha = subprocess.run(["sha256sum", os.path.join(path, "state.json")], capture_output=True,
                         text=True).stdout.split()[0]
    assert manifest["files"]["state.json"] == [os.path.getsize(os.path.join(path, "state.json")), sha]


def flip(path, start=2000, count=64):
    """Overwrite `count` bytes in place: torch loads this without a word, see docs/faults.md."""
    with open(path, "r+b") as f:
        f.seek(start)
        old = f.read(count)
        f.seek(start)
        f.write(bytes(255 - b for b in old))


def without_state(path):
    with open(path + "/MANIFEST.json") as f:
        manifest = json.load(f)
    del manifest["files"]["state.json"]
    with open(path + "/MANIFEST.json", "w") as f:
        json.dump(manifest, f)
    os.remove(path + "/state.json")


DAMAGE = {
    "flipped bytes in the weights": lambda p: flip(p + "/dcp/__0_0.distcp",
                                                   os.path.getsize(p + "/dcp/__0_0.distcp") // 2),
    "flipped bytes in the metadata": lambda p: flip(p + "/dcp/.metadata", 100, 8),
    "truncated shard": lambda p: os.truncate(p + "/dcp/__0_0.distcp", 5000),
    "empty shard": lambda p: os.truncate(p + "/dcp/__0_0.distcp", 0),
    "missing shard": lambda p: os.remove(p + "/dcp/__0_0.distcp"),
    "missing metadata": lambda p: os.remove(p + "/dcp/.metadata"),
    "missing manifest": lambda p: os.remove(p + "/MANIFEST.json"),
    "half a manifest": lambda p: os.truncate(p + "/MANIFEST.json", 40),
    "a manifest of nonsense": lambda p: open(p + "/MANIFEST.json", "w").write('{"step": 3, "files": {"state.json": 7}}'
                                                                              ),
    "a manifest that leaves the state out": lambda p: without_state(p),
    "a manifest of another step": lambda p: shutil.copy(p.replace("step_000003", "step_000002") + "/MANIFEST.json", p),
    "missing state": lambda p: os.remove(p + "/state.json"),
    "another state": lambda p: flip(p + "/state.json", 0, 1),
    "a file in its place": lambda p: (shutil.rmtree(p), open(p, "w").close()),
    "a directory in place of a shard": lambda p:
    (os.remove(p + "/dcp/__0_0.distcp"), os.makedirs(p + "/dcp/__0_0.distcp")),
    "nothing at all": lambda p: (shutil.rmtree(p), os.makedirs(p)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(copy, one_process, what):
    folder, say, lines = copy
    DAMAGE[what](folder + "/step_000003")
    state = checkpoint.find(folder, {}, say=say)
    assert (state["step"], state["prompts_seen"]) == (2, 20)
    assert checkpoint.saved_steps(folder) == [1, 2] and os.path.exists(folder + "/corrupt_step_000003")
    assert len(lines) == 1 and "step_000003 is damaged" in lines[0], lines


def test_two_damaged_ones_lead_to_the_third_and_none_left_is_an_error_with_exit_code_3(copy, one_process):
    folder, say, lines = copy
    for step in (3, 2):
        flip(f"{folder}/step_{step:06d}/dcp/__0_0.distcp")
    assert checkpoint.find(folder, {}, say=say)["step"] == 1 and len(lines) == 2
    flip(f"{folder}/step_000001/dcp/__0_0.distcp")
    for _ in range(2):  # and again at the next start: the corrupt ones are still there
        with pytest.raises(ConfigError, match="no checkpoint that can be used") as error:
            checkpoint.find(folder, {}, say=say)
        assert error.value.exit_code == 3
    assert len([n for n in os.listdir(folder) if n.startswith("corrupt_step")]) == 3


def test_a_second_damaged_checkpoint_of_the_same_step_does_not_replace_the_first(copy, one_process):
    folder, say, _ = copy
    os.makedirs(folder + "/corrupt_step_000003")
    os.remove(folder + "/step_000003/MANIFEST.json")
    assert checkpoint.find(folder, {}, say=say)["step"] == 2
    assert {"corrupt_step_000003", "corrupt_step_000003_2"} <= set(os.listdir(folder))


def test_weights_that_are_not_finite_are_damage_although_every_hash_is_right(copy, tied_model, one_process):
    folder, say, lines = copy
    pair = fresh(tied_model, one_process[2])
    checkpoint.load_state(folder, 3, {"model": pair})
    before = weights_of(pair[0])
    with torch.no_grad():
        next(pair[0].parameters()).master[3, 3] = float("nan")
    assert checkpoint.save(folder, 4, {"model": pair}, {}, keep=4) == ""
    state = checkpoint.find(folder, {}, say=say)
    assert state["step"] == 4
    state = checkpoint.load(folder, state, {"model": pair}, say=say)
    assert state["step"] == 3 and "is not finite" in lines[0] and lines[-1] == f"resumed {folder} at step 3"
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(pair[0]), strict=True))


def test_hashing_can_be_left_out_but_sizes_never(copy, one_process, monkeypatch):
    folder, say, _ = copy
    monkeypatch.setenv("CHECKPOINT_SKIP_SHA256", "1")
    flip(folder + "/step_000003/dcp/__0_0.distcp")
    assert checkpoint.find(folder, {}, say=say)["step"] == 3
    os.truncate(folder + "/step_000003/dcp/__0_0.distcp", 5000)
    assert checkpoint.find(folder, {}, say=say)["step"] == 2


def test_a_checkpoint_from_before_manifests_is_told_apart_from_a_damaged_one(copy, one_process):
    folder, say, _ = copy
    os.remove(folder + "/step_000003/MANIFEST.json")
    with open(folder + "/step_000003/state.json", "w") as f:
        json.dump({"step": 3, "prompts_seen": 30}, f)
    with pytest.raises(ConfigError, match="before checkpoints had a MANIFEST"):
        checkpoint.find(folder, {}, say=say)
    assert checkpoint.saved_steps(folder) == [1, 2, 3]  # nothing was touched


def test_leftovers_of_a_kill_are_removed_and_a_new_run_starts_at_0(copy, tmp_path, one_process):
    folder, say, _ = copy
    for name in ("tmp_step_000004/dcp", "tmp_pruned_000001", "model.tmp", "model.old", "model"):
        os.makedirs(os.path.join(folder, name))
    assert checkpoint.find(folder, {}, say=say)["step"] == 3
    assert not [n for n in os.listdir(folder) if n.startswith("tmp") or n in ("model.tmp", "model.old")]
    assert os.path.isdir(folder + "/model")
    os.makedirs(tmp_path / "new")
    assert checkpoint.find(str(tmp_path / "new"), {}, say=say) == {"step": 0}


def test_other_data_are_refused_unless_allowed_and_another_model_always(saved, one_process, tied_model, tmp_path):
    pair, folder, said = fresh(tied_model, one_process[2]), str(tmp_path), []
    before = {"model": "m", "training": "t", "held-out": "h"}
    assert checkpoint.save(folder, 1, {"model": pair}, {"fingerprints": before}) == ""
    assert checkpoint.find(folder, before)["step"] == 1
    with pytest.raises(ConfigError, match="the training and held-out data are not those") as error:
        checkpoint.find(folder, {"model": "m", "training": "T", "held-out": "H"})
    assert error.value.exit_code == 2
    assert checkpoint.find(folder, {**before, "training": "T"}, True,
                           said.append)["step"] == 1 and "training data changed" in said[0]
    with pytest.raises(ConfigError, match="model.s files are not those"):
        checkpoint.find(folder, {**before, "model": "M"}, True)


def test_the_fingerprint_of_a_model_sees_its_config_tokenizer_and_weights(tied_model, tmp_path):
    seen = {checkpoint.fingerprint_of_model(tied_model)}
    for name, start in (("config.json", 30), ("tokenizer.json", 100), ("model.safetensors", 60000)):
        shutil.copytree(tied_model, tmp_path / name)
        assert checkpoint.fingerprint_of_model(tmp_path / name) in seen  # a copy has other times, and is the same model
        flip(tmp_path / name / name, start, 1)
        seen.add(checkpoint.fingerprint_of_model(tmp_path / name))
    assert len(seen) == 4


# ---------------------------------------------------------------------------------------------------------------
# a disk that refuses
# ---------------------------------------------------------------------------------------------------------------


def as_nobody(folder):
    """chmod 555; root writes there all the same, so become nobody for the moment."""
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


def as_before(folder):
    if os.getuid() == 0:
        os.seteuid(0)
    os.chmod(folder, 0o755)


def test_a_read_only_directory_fails_the_save_and_leaves_what_is_there(tied_model, one_process):
    pair, folder = fresh(tied_model, one_process[2]), tempfile.mkdtemp()  # nobody may not even enter pytest's
    assert checkpoint.save(folder, 1, {"model": pair}, {}) == ""
    as_nobody(folder)
    try:
        problem = checkpoint.save(folder, 2, {"model": pair}, {})
    finally:
        as_before(folder)
    assert "PermissionError" in problem and checkpoint.find(folder, {})["step"] == 1
    assert checkpoint.save(folder, 2, {"model": pair}, {}) == "" and checkpoint.find(folder, {})["step"] == 2
    shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["os.fsync", "os.rename", "os.makedirs", "dcp.save"])
def test_no_space_fails_the_save_and_leaves_what_is_there(copy, tied_model, one_process, monkeypatch, where):
    folder, say, _ = copy
    pair = fresh(tied_model, one_process[2])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"os": os, "dcp": checkpoint.dcp}[where.split(".")[0]], where.split(".")[1], full)
        assert "No space left" in checkpoint.save(folder, 4, {"model": pair}, {}, keep=2)
    assert checkpoint.find(folder, {}, say=say)["step"] == 3 and checkpoint.saved_steps(folder) == [1, 2, 3]
    assert checkpoint.save(folder, 4, {"model": pair}, {}, keep=2) == "" and checkpoint.saved_steps(folder) == [3, 4]


OUT_OF_MEMORY = RuntimeError("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62")


@pytest.mark.parametrize(
    "error",
    [OUT_OF_MEMORY, MemoryError(), OSError(errno.ENOMEM, "full"),
     KeyboardInterrupt()],
    ids=lambda error: type(error).__name__)
def test_out_of_memory_in_a_checkpoint_is_no_damage(copy, one_process, tied_model, monkeypatch, error):
    """It was put aside as corrupt, one after the other, and a save was tried again and ended with "make room"."""
    folder, *_ = copy
    wrapped = checkpoint.dcp.CheckpointException("as DCP raises it, on all ranks", {0: (error, None)})
    for raised in (wrapped, error) if isinstance(error, Exception) else (wrapped,):
        for name in ("load", "save"):
            monkeypatch.setattr(checkpoint.dcp, name, lambda *args, raised=raised, **kwargs: throw(raised))
        models = {"model": fresh(tied_model, one_process[2])}
        with pytest.raises(type(error)) as found:
            checkpoint.load(folder, {"step": 3}, models)
        assert crash.out_of_memory(found.value) == isinstance(error, Exception)
        with pytest.raises(crash.NoMemory if isinstance(error, Exception) else KeyboardInterrupt):
            checkpoint.save(folder, 4, models, {})
        assert [n for n in sorted(os.listdir(folder))
                if not n.startswith("tmp_")] == ["step_000001", "step_000002", "step_000003"]


def throw(error):
    raise error


@pytest.mark.parametrize("number, newest", [(errno.ENOMEM, 3), (errno.EIO, 2)])
def test_a_file_that_the_disk_cannot_read_is_damage_but_out_of_memory_is_not(copy, one_process, monkeypatch, number,
                                                                             newest):
    folder, say, _ = copy
    hash_of = checkpoint.size_and_sha256
    monkeypatch.setattr(checkpoint, "size_and_sha256",
                        lambda path: throw(OSError(number, "no")) if "step_000003" in path else hash_of(path))
    if number == errno.ENOMEM:
        with pytest.raises(OSError, match="no"):
            checkpoint.find(folder, {}, say=say)
    else:
        assert checkpoint.find(folder, {}, say=say)["step"] == newest
    assert checkpoint.saved_steps(folder) == list(range(1, newest + 1))


def test_a_save_wants_more_than_twice_the_room_of_the_last_one(copy, tied_model, one_process, monkeypatch):
    folder, _, _ = copy
    size = sum(s for s, _ in json.load(open(folder + "/step_000003/MANIFEST.json"))["files"].values())
    pair = fresh(tied_model, one_process[2])
    for free, message in ((2.19 * size, "wants 2.2 times"), (2.21 * size, "")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(1, 1, free))
        assert message in checkpoint.save(folder, 5, {"model": pair},
                                          {}) and (message or os.path.isdir(folder + "/step_000005"))


def test_failed_saves_are_retried_and_three_in_a_row_end_the_run(tmp_path, one_process, monkeypatch):
    answers, calls = ["full", "full", "", "full", "full", "full"], []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *_: calls.append(step) or answers[len(calls) - 1])
    run = make_run(tmp_path, save_every=10)
    for step in range(1, 21):
        if run.save_is_due(step):
            run.save(rundir.Progress(step))
    assert calls == [10, 11, 13, 20] and run.failures == 1  # at 10, one step later, two steps later; then all is well
    monkeypatch.setattr(rundir, "RETRY_S", 0)
    with pytest.raises(ConfigError, match="3 checkpoints in a row") as error:
        run.save(rundir.Progress(21), stopping=True)
    assert error.value.exit_code == 3 and calls[4:] == [21, 21
                                                        ] and "3 failed in a row" in (tmp_path / "log.txt").read_text()


def test_the_last_step_is_saved_and_no_step_twice(tmp_path, one_process, monkeypatch):
    calls = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *_: calls.append(step) or "")
    run = make_run(tmp_path, save_every=0)
    assert [step for step in range(1, 31) if run.save_is_due(step)] == [30]
    for _ in range(2):  # once because it is due, once because the run stops
        run.save(rundir.Progress(30), stopping=True)
    assert calls == [30]


def test_an_export_replaces_the_one_before_whole_or_not_at_all(tied_model, one_process, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    pair, folder, tokenizer = fresh(tied_model,
                                    one_process[2]), str(tmp_path / "model"), AutoTokenizer.from_pretrained(tied_model)
    checkpoint.export_hf(pair[0], tokenizer, folder, torch.float32, 1)
    rename = os.rename

    def fails(a, b):
        if a.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(a, b)

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="could not be written") as error:
        patch.setattr(os, "rename", fails)
        checkpoint.export_hf(pair[0], tokenizer, folder, torch.float32, 2)
    assert error.value.exit_code == 3 and checkpoint.exported_step(folder) == -1  # not a mixture: the run exports again
    checkpoint.export_hf(pair[0], tokenizer, folder, torch.float32, 2)
    assert checkpoint.exported_step(folder) == 2 and os.listdir(tmp_path) == ["model"]


REFUSED = [  # what published files hold and transformers does not write, what is written, what is said
    ({"temperature": 0.6, "top_p": 0.9,
      "do_sample": False}, {"do_sample": False}, "temperature = 0.6 left out, top_p = 0.9 left out"),
    ({"top_k": 20}, {"top_k": 20, "do_sample": True}, "do_sample = True set"),
    ({"temperature": 0.6,
      "early_stopping": True}, {"temperature": 0.6,
                                "do_sample": True}, "do_sample = True set, early_stopping = True left out"),
    ({"length_penalty": 1.2, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}, "length_penalty = 1.2 left out"),
    ({"pad_token_id": -1}, {}, "pad_token_id = -1 left out"),
    ({"output_scores": True, "min_p": 0.1}, {"min_p": 0.1,
                                             "do_sample": True}, "do_sample = True set, output_scores = True left out"),
    ({"use_cache": False,
      "cache_implementation": "static"}, {"use_cache": False}, "cache_implementation = 'static' left out"),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"do_sample": True, "temperature": 0.6, "top_k": 20}, ""),
]


@pytest.mark.parametrize("found, written, said", REFUSED)
def test_a_generation_config_that_transformers_does_not_write_is_mended_and_said(tmp_path, found, written, said):
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps(found | {"eos_token_id": 1}))
    settled, changes = checkpoint.generation_config(GenerationConfig.from_pretrained(tmp_path), [1, 8])
    settled.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "generation_config.json").read_text())
    again.pop("transformers_version")
    assert again == {**written, "eos_token_id": [1, 8]} and ", ".join(changes) == said


def test_an_export_of_such_a_model_stops_where_the_run_did(tmp_path, one_process):
    from transformers import AutoTokenizer

    from eval import resolve_model

    model, said = save_tiny_model(tmp_path / "base", layers=1), []
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [1, 3], "temperature": 0.6}')
    policy, folder = fresh(model, one_process[2])[0], str(tmp_path / "model")
    checkpoint.export_hf(policy, AutoTokenizer.from_pretrained(model), folder, torch.float32, 1, [1, 3, 8], said.append)
    assert resolve_model(folder, 32)[3] == [1, 3, 8]
    assert len(said) == 1 and "do_sample = True set" in said[0] and "\n" not in said[0]


# ---------------------------------------------------------------------------------------------------------------
# the run directory
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    name: str = "run"
    lr: float = 1e-3
    num_steps: int = 5
    group_size: int = 8
    seed: int = 0


def test_all_changed_settings_are_listed_and_only_harmless_ones_are_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("out/run/step_000002")  # metrics.jsonl may be gone: a checkpoint is a run too
    record = {"script": os.path.basename(__file__), "settings": rundir.as_json(Config())}
    del record["settings"]["seed"]  # a setting that this run did not know: it had the default
    with pytest.raises(ConfigError, match="config.json is not there or cannot be read"):
        rundir.run_folder(Config())  # nobody can tell what run this was
    with open("out/run/config.json", "w") as f:
        json.dump(record, f)
    assert rundir.run_folder(Config()) == "out/run"
    assert rundir.run_folder(Config(num_steps=9)) == "out/run"
    assert rundir.changed_settings("out/run", Config(num_steps=9)) == {"num_steps": "num_steps: 5 there, 9 now"}
    with pytest.raises(ConfigError,
                       match=r"lr: 0.001 there, 0.002 now, group_size: 8 there, 4 now, seed: 0 there, 1 now"):
        rundir.run_folder(Config(lr=2e-3, group_size=4, seed=1))
    with open("out/run/config.json", "w") as f:
        json.dump({**record, "script": "sft.py"}, f)
    with pytest.raises(ConfigError, match=r"script: 'sft.py' there"):
        rundir.run_folder(Config())


def test_what_moved_continues_where_its_contents_agree_and_only_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import train_ppo

    base = train_ppo.Config(name="a", model="m", critic_model="c", data_path="x.jsonl", eval_path="y.jsonl")
    prints = {"model": "1", "critic": "2", "training": "3", "held-out": "4"}
    os.makedirs("out/a/step_000002")
    record = {"script": "train_ppo.py", "settings": rundir.as_json(base), "fingerprints": prints}
    with open("out/a/config.json", "w") as f:
        json.dump(record, f)
    os.rename("out/a", "out/b")
    moved = replace(base,
                    name="b",
                    model="/new/m",
                    critic_model="/new/c",
                    data_path={"math": "/new/x"},
                    eval_path="/new/y")
    assert rundir.run_folder(moved, prints) == "out/b"
    assert set(rundir.changed_settings("out/b", moved)) == {"name", "model", "critic_model", "data_path",
                                                            "eval_path"}  # said
    for other, code, message in [({"model": "9"}, 1, "the model's files are not those that out/b was started with"),
                                 ({"critic": "9"}, 1, "the critic's files are not those that out/b was started with"),
                                 ({"training": "9"}, 2, "the training data are not those that out/b was started with"),
                                 ({"held-out": "9"}, 2, "the held-out data are not those")]:
        for cfg in (moved, replace(base, name="b")):
            with pytest.raises(ConfigError, match=message) as error:
                rundir.run_folder(cfg, {**prints, **other})
            assert error.value.exit_code == code
    assert rundir.run_folder(replace(moved, allow_data_change=True), {**prints, "training": "9"}) == "out/b"
    with pytest.raises(ConfigError, match="other settings .lr: 1e-06 there, 2e-06 now.;"):
        rundir.run_folder(replace(moved, lr=2e-6), {**prints, "model": "9"})
    del record["fingerprints"]  # a run from before they were kept: nobody can tell
    with open("out/b/config.json", "w") as f:
        json.dump(record, f)
    with pytest.raises(ConfigError, match="other settings .model: 'm' there, '/new/m' now"):
        rundir.run_folder(moved, prints)


@pytest.mark.parametrize("change", [{"data_limit": 3}, {"chat_date": "2025-02-03"}, {"columns": {"question": "q"}}])
@pytest.mark.parametrize("script", ["train_grpo", "train_ppo"])
def test_what_is_asked_may_be_said_otherwise_while_the_prompts_stay_the_same(tmp_path, monkeypatch, script, change):
    """A limit of 3 of 3 rows, or a date that no template reads, changes nothing; else the fingerprints differ."""
    monkeypatch.chdir(tmp_path)
    base, prints = importlib.import_module(script).Config(name="a"), {"model": "1", "training": "3 rows"}
    os.makedirs("out/a/step_000002")
    record = {"script": f"{script}.py", "settings": rundir.as_json(base), "fingerprints": prints}
    with open("out/a/config.json", "w") as f:
        json.dump(record, f)
    assert rundir.run_folder(replace(base, **change), prints) == "out/a"
    with pytest.raises(ConfigError, match="the training data are not those that out/a was started with") as error:
        rundir.run_folder(replace(base, **change), {**prints, "training": "2 rows"})
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "script, settings, may",
    [
        ("train_grpo", {}, True),
        ("train_grpo", {"warmup_steps": 2}, True),
        ("train_grpo", {"lr_schedule": "cosine"}, False),
        ("train_grpo", {"lr_schedule": "linear", "lr_min_ratio": 0.5}, False),
        ("train_grpo", {"lr_schedule": "linear", "lr_min_ratio": 1.0}, True),  # ends where it begins
        ("train_ppo", {"critic_lr_schedule": "cosine"}, False),
        ("train_ppo", {"critic_lr_schedule": "cosine", "estimator": "reinforce_pp"}, True),  # no critic
        ("sft", {}, False),
        ("sft", {"lr_min_ratio": 1.0}, True)
    ])
def test_num_steps_may_change_where_no_lr_follows_from_it(tmp_path, monkeypatch, script, settings, may):
    monkeypatch.chdir(tmp_path)
    make = importlib.import_module(script).Config
    cfg = make(name="run", **settings)
    os.makedirs("out/run/step_000002")
    with open("out/run/config.json", "w") as f:
        json.dump({"script": f"{script}.py", "settings": rundir.as_json(cfg)}, f)
    longer = make(name="run", num_steps=cfg.num_steps + 7, **settings)
    if may:
        assert rundir.run_folder(longer) == "out/run"
        return
    with pytest.raises(
            ConfigError,
            match=rf"num_steps: {cfg.num_steps} there, {cfg.num_steps + 7} now.*--model out/run/model") as error:
        rundir.run_folder(longer)
    assert "\n" not in str(error.value) and rundir.run_folder(cfg) == "out/run"


def test_a_directory_belongs_to_one_process_and_a_killed_one_leaves_no_lock(tmp_path, one_process):
    folder = str(tmp_path / "out" / "run")
    held = rundir.lock(folder)
    code = (
        "import sys, time\nfrom onebox import distributed, rundir\ndistributed.init_distributed()\n"
        "lock = rundir.lock(sys.argv[1])\n"
        "print('mine', flush=True)\ntime.sleep(600)")
    env = os.environ | {"PYTHONPATH": ROOT}
    env = {k: v for k, v in env.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    other = subprocess.run([sys.executable, "-c", code, folder], env=env, capture_output=True, text=True, timeout=600)
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert f"is in use by pid {os.getpid()} on " in other.stderr
    held.close()
    other = subprocess.Popen([sys.executable, "-c", code, folder], env=env, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(ConfigError, match=f"in use by pid {other.pid} on "):
        rundir.lock(folder)
    other.kill()
    other.wait()
    rundir.lock(folder).close()


def make_run(folder, **settings):
    """A run of 30 steps in this directory that has not opened it: no lock, no config.json."""
    run = rundir.Run.__new__(rundir.Run)
    run.path, run.main, run.wandb, run.unwritten, run.about = str(folder), True, None, {}, {}
    run.failures, run.retry_at, run.saved_step, run.models, run.fingerprints = 0, float("inf"), 0, {}, {}
    run.cfg = SimpleNamespace(**vars(rundir.RunSettings(**settings)), num_steps=30)
    run.clock = distributed.Clock(torch.device("cpu"))
    os.makedirs(folder / "samples", exist_ok=True)
    return run


def test_a_resumed_run_forgets_the_rows_and_samples_after_its_checkpoint(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    for step in range(5):
        run.write_row({"step": step, "loss": 1.0})
        for name in (f"step_{step:06d}.jsonl", f"rollouts_{step:06d}.jsonl.gz"):
            (tmp_path / "samples" / name).write_text("x")
        with open(tmp_path / "samples" / "held_out.jsonl", "a") as f:
            f.write(json.dumps({"step": step, "uid": "a"}) + "\n")
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 1, "lo')  # a kill in the middle of a line
    assert run.forget_after(2) == [0, 1, 2]
    assert [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert [json.loads(line)["step"] for line in open(tmp_path / "samples" / "held_out.jsonl")] == [0, 1, 2]
    assert len(os.listdir(tmp_path / "samples")) == 3 * 2 + 1
    assert run.forget_after(0) == []  # without a checkpoint the run starts anew
    assert os.path.getsize(tmp_path / "metrics.jsonl") == 0 and os.listdir(tmp_path / "samples") == ["held_out.jsonl"]


@pytest.mark.parametrize("state, progress", [
    ({"step": 3, "prompts_seen": 30, "bad_steps": 1, "silent_steps": 4, "evaluated": {"step": 2}},
     rundir.Progress(3, 30, nonfinite_updates=1, silent_steps=4)),
    ({"step": 3, "examples_seen": 7}, rundir.Progress(3, 7)),
    ({"step": 3, "kl_coef": 0.5, "row": {"step": 3}}, rundir.Progress(3, kl_coef=0.5)),  # its row was logged
    ({"step": 4, "row": {"step": 4}}, rundir.Progress(4, row={"step": 4}))])
def test_a_state_of_today_and_of_older_code_is_read(tmp_path, one_process, monkeypatch, state, progress):
    run = make_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "eval_correct": 0.5}\n{"step": 3}\n')
    monkeypatch.setattr(checkpoint, "load", lambda *_: dict(state))
    run.state = {}
    assert run.resume({}) == progress


def test_held_out_rollouts_join_those_of_the_step_once(tmp_path):
    run = make_run(tmp_path)
    run.write_samples(3, [{"split": "train", "uid": "a"}])
    for _ in range(2):  # an evaluation that is made again
        run.write_samples(3, [{"split": "held-out", "uid": "b"}])
    with gzip.open(tmp_path / "samples" / "step_000003.jsonl.gz", "rt") as f:
        assert [json.loads(line)["uid"] for line in f] == ["a", "b"]


def test_rows_that_a_full_disk_refuses_are_written_when_there_is_room_again(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path)
    run.write_row({"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))  # half a row, then nothing: as ENOSPC does
    run.write_row({"step": 2})
    run.write_row({"step": 3})
    assert open(tmp_path / "metrics.jsonl").read() == '{"step": 1}\n' and "cannot be written" in capsys.readouterr().out
    monkeypatch.setattr(os, "write", write)
    run.write_row({"step": 4})
    assert [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_the_generators_follow_from_seed_step_and_rank_alone():
    def draw():
        import random

        import numpy as np
        return random.random(), np.random.rand(), torch.rand(1).item()

    distributed.seed_generators(0, 3, 1)
    first = draw()
    draw()
    distributed.seed_generators(0, 3, 1)
    assert draw() == first
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 0)):
        distributed.seed_generators(*other)
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_run_that_ended_early_for_good_is_complete(tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "trained.json").write_text('{"step": 40, "num_steps": 100}')
    monkeypatch.setattr(rundir, "run_folder", lambda cfg, fingerprints: str(tmp_path))
    monkeypatch.setattr(rundir, "Run", lambda *_: "goes on")
    assert rundir.open_run(SimpleNamespace(num_steps=100), {}, None, {}) is None
    assert "is complete: step 40 of 100" in capsys.readouterr().out
    assert rundir.open_run(SimpleNamespace(num_steps=200), {}, None, {}) == "goes on"


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, one_process):
    from onebox import crash

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(crash, "CONTEXT", {})
    monkeypatch.setattr(rundir, "CONTEXT", crash.CONTEXT)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="out/run cannot be written"):
        rundir.lock("out/run")
    crash.remove_new_folder()  # there is none, and nothing of another run is removed
    assert "made" not in crash.CONTEXT


# ---------------------------------------------------------------- "auto"


def started(cfg, device, capsys):
    """Start a run as open_run does, and let it be killed. Return (its plain cfg, config.json, what it said)."""
    run = rundir.Run(f"out/{cfg.name}", cfg, {}, device, {})
    run.lock.close()
    with open(f"out/{cfg.name}/config.json") as f:
        return run.cfg, json.load(f), capsys.readouterr().out


@pytest.fixture
def auto(tmp_path, monkeypatch, tied_model, one_process):
    """A Config with nothing but "auto", and a function that sets the memory that is available."""
    import train_grpo
    from tools import memory

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.provenance.save_code", lambda *_, **__: None)
    known = {}
    for module in (crash, rundir):
        monkeypatch.setattr(module, "CONTEXT", known)

    def room(gb):
        monkeypatch.setattr(memory, "memory_available", lambda: gb * 1e9)

    room(1000)
    return train_grpo.Config(name="a", model=tied_model, max_prompt_len=16, max_response_len=16), room


def test_what_auto_became_first_is_what_every_later_start_has(auto, one_process, capsys):
    cfg, room = auto
    plain, record, said = started(cfg, one_process[2], capsys)
    chosen = {"checkpointing": False, "compile": False, "max_tokens_per_gpu": 16384, "offload": "none"}
    assert record["resolved"] == chosen and {name: getattr(plain, name) for name in chosen} == chosen
    assert {record["settings"][name] for name in chosen} == {"auto"}  # as asked
    assert "auto: checkpointing False, compile False, max_tokens_per_gpu 16384, offload none: activations" in said

    room(0)  # now it would recompute
    with open("out/a/metrics.jsonl", "w") as f:
        f.write(json.dumps({"step": 0}) + "\n")
    plain, record, said = started(cfg, one_process[2], capsys)
    assert record["resolved"] == chosen and plain.checkpointing is False and "other settings" not in said
    plain, record, _ = started(replace(cfg, checkpointing="selective"), one_process[2], capsys)
    assert plain.checkpointing == "selective" and "checkpointing" not in record["resolved"]  # what is given wins
    assert started(replace(cfg, name="b"), one_process[2], capsys)[0].checkpointing is True


def test_the_half_that_was_left_after_out_of_memory_is_of_what_auto_became(auto, one_process, capsys):
    cfg, _ = auto
    started(cfg, one_process[2], capsys)
    assert "max_tokens_per_gpu = 8192 instead of 16384" in crash.halve_tokens()
    run = rundir.Run("out/a", cfg, {}, one_process[2], {})
    run.lock.close()
    assert (run.cfg.max_tokens_per_gpu, run.max_tokens) == (16384, 8192)


def test_without_tools_or_a_known_model_auto_is_what_needs_little_memory(auto, one_process, monkeypatch):
    cfg, safe = auto[0], {"checkpointing": True, "compile": False, "max_tokens_per_gpu": 16384, "offload": "none"}
    found, why = rundir.plain_settings(replace(cfg, model="out/none/model"), one_process[2], {})
    assert found == safe and "not computed" in why and "no recipe makes it" in why and "\n" not in why
    monkeypatch.setitem(sys.modules, "tools.memory", None)
    assert rundir.plain_settings(cfg, one_process[2], {})[0] == safe
    kept = {"resolved": {"checkpointing": False}}
    assert rundir.plain_settings(cfg, one_process[2], kept)[0] == safe | {"checkpointing": False}
    plain = replace(cfg, **safe)
    assert rundir.plain_settings(plain, one_process[2], kept) == ({}, "")
    compiled = {"resolved": {"checkpointing": False, "compile": True}}
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert rundir.plain_settings(cfg, torch.device("cuda"), compiled)[0] == safe | {"checkpointing": False}
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gcc")
    assert rundir.plain_settings(cfg, torch.device("cuda"), {})[0] == safe | {"compile": True}
