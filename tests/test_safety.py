"""python -m pytest tests/test_safety.py: what a run does when a part of it breaks; docs/faults.md lists the cases."""

import gzip
import json
import os
import sys
import time
import types

import pytest
import torch
from conftest import COLUMN, LOGPROB_MEAN, ROOT, run_script
from runs import Server

import data
import rewards
import rollout
from onebox import crash, distributed, older, rundir
from onebox.config import ConfigError
from onebox.vllm_start import describe_head
from tasks import scoring
from tools.token_ends import token_ends
from tools.wandb_thread import WandbThread

TINY = [
    "--data", "tiny_countdown", "--template", "tiny_countdown", "--reward", "tinyzero_countdown", "--max_prompt_len",
    "16", "--max_response_len", "24", "--prompts_per_step", "4", "--group_size", "4", "--num_steps", "3",
    "--eval_prompts", "0", "--save_every", "1", "--checkpointing", "False", "--entropy_coef", "0.01", "--max_num_seqs",
    "16", "--lr", "3e-3", "--max_tokens_per_gpu", "200", "--report_every", "0"
]
# One part of the script breaks: FAULT names it, FAULT_STEP the call of optimizer_step before which it happens.
BREAK = """
import os, torch, policy
from kill_at import replace
fault, at, steps = os.environ.get("FAULT"), int(os.environ.get("FAULT_STEP", 2)), []
real_step, real_logprobs = policy.optimizer_step, policy.token_logprobs
local = lambda tensor: getattr(tensor, 'to_local', lambda: tensor)().detach()

def step(model, *args, **settings):
    steps.append(1)
    bad = {"nan_once": len(steps) == at, "nan_always": len(steps) >= at}.get(fault)
    if bad and policy.dist.get_rank() == policy.dist.get_world_size() - 1:  # one rank alone
        grads = [p.grad for p in model.parameters() if p.grad is not None and local(p.grad).numel()]
        local(grads[0])[0] = float("nan")
    norm = real_step(model, *args, **settings)
    if fault == "weights":  # a weight becomes NaN after an update
        local(next(p for p in model.parameters() if local(p).numel()).data)[0] = float("nan")
    return norm

def logprobs(model, batch, temperature):
    if fault == "memory" and len(steps) == at - 1 and len(batch.ids) > 100:
        raise torch.OutOfMemoryError("planted")
    return real_logprobs(model, batch, temperature)

replace(policy, "optimizer_step", step)
replace(policy, "token_logprobs", logprobs)
"""


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def rows_of(folder):
    with open(os.path.join(folder, "out/run/metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


def crash_files(folder):
    crash = os.path.join(folder, "out/run/crash")
    [report] = os.listdir(crash)
    return os.path.join(crash, report)


@pytest.fixture(scope="module")
def train(server, tied_model):
    """Return train(folder, fault, *settings): train_grpo.py with the stand-in for the engine and one planted fault."""
    return lambda folder, fault="", *args: server.run(folder, "train_grpo.py", [*TINY, "--model", tied_model, *args],
                                                      setup=BREAK, env={"FAULT": fault})


@pytest.fixture(scope="module")
def clean(tmp_path_factory, train):
    folder = tmp_path_factory.mktemp("clean")
    done = train(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows_of(folder)


def test_a_gradient_that_is_not_finite_is_skipped_by_all_ranks(tied_model, tmp_path):
    """The real engine, two processes."""
    driver = tmp_path / "driver.py"
    driver.write_text(f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n" + BREAK +
                      "import train_grpo\nfrom onebox import crash\ncrash.entry(train_grpo.main)\n")
    done = run_script(driver, *TINY, "--model", tied_model, nproc=2, cwd=tmp_path, env={"FAULT": "nan_once"})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path)
    assert [row["skipped_updates"] for row in rows] == [0, 1, 0]
    assert rows[1]["grad_norm"] is None  # NaN, as null
    assert rows[2]["mismatch_mean"] < LOGPROB_MEAN and rows[2]["grad_norm"] > 0  # weights and Adam are whole
    assert "skipped_updates 1" in done.stdout


def test_three_such_gradients_in_a_row_end_the_run_with_a_report(train, tmp_path):
    done = train(tmp_path, "nan_always", "--updates_per_step", "4")
    assert done.returncode == 6 and "three updates in a row" in done.stderr
    report = crash_files(tmp_path)
    assert report.replace(str(tmp_path) + "/", "") in done.stderr  # the message names it
    with open(os.path.join(report, "error.txt")) as f:
        text = f.read()
    assert "distributed.Broken: three updates" in text and "step 1; all threads" in text and "Thread 0x" in text
    with gzip.open(os.path.join(report, "batch.jsonl.gz"), "rt") as f:
        batch = [json.loads(line) for line in f]
    assert len(batch) == 16 and all(len(r["rollout_logprobs"]) == len(r["response_ids"]) for r in batch)


def test_a_weight_that_is_nan_stops_before_the_next_update(train, tmp_path):
    done = train(tmp_path, "weights")
    assert done.returncode == 6 and "error: Broken in step 2" in done.stderr
    assert [row["step"] for row in rows_of(tmp_path)] == [1]
    assert not os.path.exists(tmp_path / "out/run/model")
    again = train(tmp_path)  # its checkpoint is not used either, and nothing begins anew without a word
    assert again.returncode == 3 and "corrupt_step_000001" in again.stderr and "not finite" in again.stdout


def test_after_out_of_memory_the_same_command_takes_half_the_tokens(train, tmp_path, clean):
    """Tokens of a micro-batch: 200 at first, 100 then; the steps are those of the run that had memory enough."""
    done = train(tmp_path, "memory")
    assert done.returncode == 4 and "max_tokens_per_gpu = 100 instead of 200" in done.stderr
    again = train(tmp_path, "")
    assert again.returncode == 0 and "resumed out/run at step 1" in again.stdout, again.stderr[-3000:]
    assert "max_tokens_per_gpu = 100: an earlier start" in again.stdout
    for a, b in zip(clean, rows_of(tmp_path), strict=True):
        for name in ("reward", "response_len", "loss", "grad_norm", "entropy"):
            assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)


def test_a_weight_sync_that_fails_half_way_is_broken_and_not_a_retry(monkeypatch):
    seen = []

    def stream(model, dtype):
        for number in range(10):
            if number == 7:
                raise OSError("planted")
            seen.append(number)
            yield str(number), torch.zeros(1)

    monkeypatch.setattr(rollout, "hf_stream", stream)
    engine = types.SimpleNamespace(collective_rpc=lambda name, kwargs: list(kwargs["stream"]()))
    with pytest.raises(distributed.Broken, match=r"weight sync failed half-way \(OSError: planted\)"):
        rollout.sync_weights(None, engine, torch.float32, 3)
    assert seen == list(range(7))  # half of the engine's weights are new: only the end of the process is safe


# ---------------------------------------- without a run


@pytest.mark.parametrize("error,code,told",
                         [(ConfigError("lr = -1"), 1, "error: lr = -1"),
                          (data.DataError("no rows"), 2, "error: no rows"),
                          (ConfigError("all damaged", exit_code=3), 3, "all damaged"),
                          (torch.OutOfMemoryError("CUDA out of memory"), 4, "OutOfMemory"),
                          (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "RuntimeError"),
                          (distributed.Broken("NaN"), 6, "Broken"), (KeyError("bug"), 1, "KeyError")])
def test_every_kind_of_error_has_its_exit_code(error, code, told, capsys, monkeypatch):
    monkeypatch.setattr(crash, "CONTEXT", {})

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        crash.entry(main)
    assert ended.value.code == code and told in capsys.readouterr().err


def tokens_left(folder, asked):
    """The micro-batch size of a start, noted as rundir.Run does."""
    used = crash.size_left(folder, "max_tokens_per_gpu", asked, lambda text: None)
    crash.CONTEXT["max_tokens"] = asked, used
    return used


def cache_left(folder, asked, say=lambda text: None):
    crash.CONTEXT["cache_asked"] = asked
    return crash.size_left(folder, "kv_cache_gb", asked, say)


def test_every_crash_halves_the_micro_batch_and_a_new_setting_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path)})
    assert tokens_left(tmp_path, 4096) == 4096
    crash.halve_tokens()
    assert tokens_left(tmp_path, 4096) == 2048
    crash.halve_tokens()
    assert tokens_left(tmp_path, 4096) == 1024
    assert tokens_left(tmp_path, 3000) == 3000


NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\n")
FULL = [  # as PyTorch, vLLM, cuBLAS, NCCL, Triton and the host say it
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    RuntimeError("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering "
                 "`max_num_seqs` or `gpu_memory_utilization` when initializing the engine."),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.distributed.DistBackendError(NCCL + "Cuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError(NCCL + "Failed to CUDA calloc async 608 bytes"),
    torch.distributed.DistBackendError(NCCL + "Failed to CUDA host alloc 4096 bytes"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 80000000000 bytes. Error code 12 (Cannot allocate memory)"),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("std::bad_alloc"),
]
ROOM_ENOUGH = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    OSError(28, "No space left on device"),
    torch.distributed.DistBackendError(NCCL + "Cuda failure 1 'invalid argument'"),
    FileNotFoundError(2, "gone", "out of memory.jsonl"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
    KeyError("memory"),
    ImportError("/lib/libgomp-d22c30c5.so.1: cannot allocate memory in static TLS block"),  # on ARM hosts
]


def names(errors):
    return [f"{type(error).__name__}: {str(error)[-40:]}" for error in errors]


@pytest.mark.parametrize("error", FULL, ids=names(FULL))
def test_out_of_memory_is_recognized_whoever_says_it(error):
    def wrapped(how):
        try:
            try:
                raise error
            except Exception as inner:
                if how == "cause":
                    raise distributed.Broken("weight sync failed half-way") from inner
                if how == "context":
                    {}["while it was cleaned up"]
                raise ValueError("another matter") from None
        except Exception as outer:
            return outer

    assert crash.out_of_memory(error)
    assert crash.out_of_memory(wrapped("cause")) and crash.out_of_memory(wrapped("context"))
    assert not crash.out_of_memory(wrapped("from None"))


@pytest.mark.parametrize("error", ROOM_ENOUGH, ids=names(ROOM_ENOUGH))
def test_other_errors_are_not_taken_for_a_full_memory(error):
    assert not crash.out_of_memory(error)


CUDA = types.SimpleNamespace(type="cuda")
WAKE_UP = "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"  # a plain RuntimeError


def full_engine(at, seen):
    """An engine that has no memory left at one of its calls: weights, reload, kv_cache, step."""
    def call(name):
        def method(*args, **kwargs):
            seen.append(what := kwargs.get("tags", [name])[0])
            if what == at:
                raise RuntimeError(WAKE_UP)
            return True
        return method

    states = types.SimpleNamespace(output_processor=types.SimpleNamespace(request_states={}), step=call("step"),
                                   abort_request=call("abort"), has_unfinished_requests=call("unfinished"))
    return types.SimpleNamespace(wake_up=call("wake_up"),
                                 collective_rpc=call("reload"),
                                 reset_prefix_cache=call("reset"),
                                 update_weight_version=call("version"),
                                 enqueue=lambda prompts, *_, **__: map(str, range(len(prompts))),
                                 llm_engine=states)


@pytest.fixture
def without_vllm(monkeypatch):
    """Sampling parameters without the engine's package, which takes seconds to import."""
    kinds = types.SimpleNamespace(RequestOutputKind=types.SimpleNamespace(FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(SamplingParams=dict))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    monkeypatch.setattr(rollout, "shares_engine", lambda: False)


def sampled(engine, prompts=4):
    return list(
        rollout.generate(engine, [(i, 0, [5], i) for i in range(prompts)],
                         temperature=1.0,
                         max_tokens=4,
                         stop_ids=[1],
                         deadline_s=1e9,
                         version=0,
                         vocab_size=9))


@pytest.mark.parametrize("strings, skipped", [((), True), (("<|im_end|>",), False)])
def test_a_special_token_can_be_a_stop_string(strings, skipped, without_vllm):
    asked = []

    def enqueue(prompts, options, **_):
        asked.extend(options)
        raise distributed.Broken("enough")

    with pytest.raises(distributed.Broken):
        list(
            rollout.generate(types.SimpleNamespace(enqueue=enqueue), [(0, 0, [5], 0)],
                             temperature=1.0,
                             max_tokens=4,
                             stop_ids=[1],
                             deadline_s=9,
                             version=0,
                             vocab_size=9,
                             stop_strings=strings))
    assert [(one["skip_special_tokens"], one["detokenize"]) for one in asked] == [(skipped, not skipped)]


def ended(main, capsys):
    with pytest.raises(SystemExit) as end:
        crash.entry(main)
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("at, part, advice", [
    ("weights", "waking the engine's weights up", "take more GPUs, or --tensor_parallel"),
    ("reload", "the weight sync", "take more GPUs, or --tensor_parallel"),
    ("kv_cache", "waking the engine's cache up", "kv_cache_gb = 10 instead of 20"),
    ("step", "sampling", "kv_cache_gb = 10 instead of 20")])
def test_an_engine_out_of_memory_never_shrinks_the_micro_batches(
        at, part, advice, capsys, monkeypatch, tmp_path, without_vllm):
    """A cache of 20 GB, 6 of them for one sequence. Weights and sync have none beside them: halving does not help."""
    monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path), "step": 3})
    monkeypatch.setattr(rollout, "hf_stream", lambda *_: iter(()))
    assert tokens_left(tmp_path, 4096) == 4096 and cache_left(tmp_path, 0.0) == 0.0
    crash.CONTEXT["cache"] = 20.0, 6.0
    engine = full_engine(at, seen := [])

    def main():
        rollout.wake_and_sync(None, engine, torch.float32, 3, CUDA)
        sampled(engine)

    code, last = ended(main, capsys)
    assert code == 4 and f"out of memory in {part}: " in last and advice in last, last
    assert seen.count("step") == (at == "step") and "abort" not in seen  # neither asked again in halves nor stepped on
    crash.CONTEXT.clear()
    assert tokens_left(tmp_path, 4096) == 4096
    assert cache_left(tmp_path, 0.0) == (10.0 if "kv_cache_gb" in advice else 0.0)


def test_the_cache_is_halved_until_one_sequence_would_not_fit(monkeypatch, tmp_path, capsys):
    def no_room():
        raise crash.NoMemory("sampling", crash.halve_cache) from RuntimeError(WAKE_UP)

    said = []
    for start, size, told in ((1, 0.0, "kv_cache_gb = 10 instead of 20"), (2, 10.0, "kv_cache_gb = 5 instead of 10"),
                              (3, 5.0, "cannot be halved, one sequence of full length takes 3"), (4, 5.0,
                                                                                                  "cannot be halved")):
        monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path), "step": 1})
        assert cache_left(tmp_path, 0.0, said.append) == size
        crash.CONTEXT["cache"] = size or 20.0, 3.0
        code, last = ended(no_room, capsys)
        assert code == 4 and told in last, (start, last)
    assert said[0] == "kv_cache_gb = 10: an earlier start ran out of memory with more"
    assert cache_left(tmp_path, 8.0) == 8.0
    monkeypatch.setattr(crash, "CONTEXT", {"cache": (8.0, 3.0)})  # eval.py keeps nothing of a start
    assert "give --kv_cache_gb 4 instead of 8" in ended(no_room, capsys)[1]


def test_a_micro_batch_of_one_sequence_is_not_halved_any_more(monkeypatch, tmp_path, capsys):
    def no_room():
        raise FULL[6]

    monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path), "step": 1, "longest": 700})
    for size, told in ((2000, "max_tokens_per_gpu = 1000 instead of 2000"),
                       (1000, "max_tokens_per_gpu = 500 instead of 1000"),
                       (500, "= 500 is no more than the longest sequence, 700 tokens"), (500, "no more than")):
        assert tokens_left(tmp_path, 2000) == size
        code, last = ended(no_room, capsys)
        assert code == 4 and told in last, last


def test_models_that_do_not_fit_are_no_matter_of_micro_batches(monkeypatch, tmp_path, capsys):
    def no_room():
        raise FULL[0]

    monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path), "max_tokens": (4096, 4096)})
    code, last = ended(no_room, capsys)
    assert code == 4 and "out of memory before the first step: the models do not fit" in last
    assert not os.path.exists(tmp_path / "out_of_memory.json")


ENGINE_FULL = """
import rollout
from onebox import crash
make_engine, wake_and_sync = rollout.make_engine, rollout.wake_and_sync
def make(path, kv_cache_gb, **more):
    open("caches", "a").write(f"{kv_cache_gb} ")
    crash.CONTEXT["cache"] = kv_cache_gb or 0.5, 0.1
    return make_engine(path)
def sync(model, engine, dtype, version, *_):
    if version == 2 and crash.CONTEXT["cache"][0] > 0.3:
        with crash.memory_of("waking the engine's cache up", crash.halve_cache):
            raise RuntimeError("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62")
    wake_and_sync(model, engine, dtype, version)
rollout.make_engine, rollout.wake_and_sync = make, sync
"""


@pytest.mark.parametrize("script", ["train_grpo.py", pytest.param("train_ppo.py", marks=pytest.mark.slow)])
def test_the_same_command_goes_on_with_half_of_the_cache(script, server, tied_model, tmp_path):
    def start():
        return server.run(tmp_path, script, [*TINY, "--model", tied_model], setup=ENGINE_FULL)

    done = start()
    assert done.returncode == 4 and "kv_cache_gb = 0.25 instead of 0.5" in done.stderr, done.stderr[-2000:]
    done = start()
    assert done.returncode == 0 and "kv_cache_gb = 0.25: an earlier start" in done.stdout, done.stderr[-2000:]
    assert open(tmp_path / "caches").read().split() == ["0.0", "0.25"] and [row["step"]
                                                                            for row in rows_of(tmp_path)] == [1, 2, 3]
    assert "max_tokens_per_gpu = 1" not in done.stdout


@pytest.mark.parametrize("broken", ["import", "init", "log", "finish"])
def test_wandb_may_fail_anywhere_and_only_says_so(broken, monkeypatch):
    done, said = [], []

    def fail(where):
        def call(*args, **kwargs):
            done.append(where)
            if where == broken:
                raise OSError(28, "No space left on device")
            return module
        return call

    module = types.SimpleNamespace(init=fail("init"), log=fail("log"), finish=fail("finish"), Settings=lambda **kw: kw)
    monkeypatch.setitem(sys.modules, "wandb", None if broken == "import" else module)
    log = WandbThread(said.append, project="p")
    for step in range(3):
        log.log({"step": step})
    log.close(wait_s=10)
    assert not log.is_alive() and len(said) == 1 and "going on without it" in said[0]
    assert done.count("log") == {"import": 0, "init": 0, "log": 1, "finish": 3}[broken]


def test_a_slow_wandb_holds_nobody_up(monkeypatch):
    module = types.SimpleNamespace(init=lambda **kw: time.sleep(600), Settings=lambda **kw: kw)
    monkeypatch.setitem(sys.modules, "wandb", module)
    said, start = [], time.monotonic()
    log = WandbThread(said.append, project="p")
    for step in range(1000):
        log.log({"step": step})
    log.close(wait_s=0.2)
    assert time.monotonic() - start < 300 and "not waiting" in said[0]  # far from the 600 of init


def prompts(n=40):
    rows = data.tiny_countdown(n, 0)
    return [types.SimpleNamespace(uid=str(i), text="<think>", answer={"numbers": r["nums"], "target": r["target"]},
                                  reward="tinyzero_countdown", source="x") for i, r in enumerate(rows)]


def test_a_verifier_that_fails_its_own_golds_stops_the_run_with_code_5(monkeypatch):
    data.check_golds(prompts())
    real, calls = rewards.score, []

    def broken(*args, **kwargs):
        calls.append(1)
        score = real(*args, **kwargs)
        return score if len(calls) % 5 else rewards.Score(0.0, False, False, {})

    monkeypatch.setattr(scoring, "score", broken)
    with pytest.raises(ConfigError, match="fail 6 of 32 of their own gold answers") as stopped:  # every fifth of 32
        data.check_golds(prompts())
    assert stopped.value.exit_code == 5


def test_nothing_evaluates_text_or_unpickles_files_or_trusts_remote_code():
    """
    Model text and data files only meet json, ast.literal_eval and our own parsers; a .bin of weights the unpickler that
    makes nothing but tensors, as in transformers.
    """
    for name in sorted(os.listdir(ROOT)):
        if not name.endswith(".py"):
            continue
        with open(os.path.join(ROOT, name)) as f:
            code = f.read()
        for word in ("pickle.load", "trust_remote_code=True", "os.system(", "shell=True", "yaml.load"):
            assert word not in code, (name, word)
        for line in code.splitlines():
            assert "torch.load(" not in line or "weights_only=True)" in line, (name, line)
            for call in (" eval(", "=eval(", " exec("):
                assert call not in line.split("#")[0] or line.lstrip().startswith(("def ", '"')), (name, line)


def test_groups_that_agree_need_no_backward(server, tied_model, tmp_path):
    """Half of the groups agree: all of them backward, or only the others: the same."""
    count = """
import train_grpo, policy
real_backward = policy.torch.Tensor.backward
def backward(self, *args, **kw):
    open("backwards", "a").write("b")
    return real_backward(self, *args, **kw)
policy.torch.Tensor.backward = backward
"""
    advantages = """
real_advantages = train_grpo.group_advantages
def group_advantages(rewards, *args):
    found = real_advantages(rewards + policy.torch.arange(rewards.shape[1]), *args)
    found[::2] = 0  # every other group agrees
    return found
train_grpo.group_advantages = group_advantages
"""
    every = "train_grpo.needs_grad_mask = lambda advantages, cfg: policy.torch.ones(len(advantages), dtype=bool)\n"
    settings = [*TINY, "--model", tied_model, "--entropy_coef", "0", "--max_tokens_per_gpu", "60"]
    rows, backwards = [], []
    for name, setup in (("all", count + advantages + every), ("some", count + advantages)):
        done = server.run(tmp_path / name, "train_grpo.py", settings, setup=setup)
        assert done.returncode == 0, done.stderr[-2000:]
        rows.append(rows_of(tmp_path / name))
        backwards.append(os.path.getsize(tmp_path / name / "backwards"))
    assert backwards[1] < 0.7 * backwards[0]
    for a, b in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "entropy", "mismatch_mean", "trained_tokens", "reward", "response_len"):
            assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)


def byte_fallback_tokenizer(folder):
    """A vocabulary like Llama's: pieces with a leading blank, and <0x..> for the bytes that no piece covers."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "▁a", "▁b"]
    inner = Tokenizer(
        models.BPE({piece: i
                    for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "),
         decoders.ByteFallback(),
         decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("pieces", [["<0x0A>", "<0xE2>", "▁a"], ["<0xC3>", "<0xA9>", "▁b"], ["<0xFF>"] * 5 + ["▁a"]])
def test_bytes_that_are_no_character_do_not_end_a_run(pieces, tmp_path):
    tokenizer = byte_fallback_tokenizer(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(pieces)
    r = types.SimpleNamespace(response_ids=ids, text=tokenizer.decode(ids))
    ends = token_ends(r, tokenizer)
    assert len(ends) == len(ids) and ends == sorted(ends) and ends[-1] <= len(r.text)


def test_a_torn_note_of_running_out_of_memory_is_no_reason_not_to_start(tmp_path, monkeypatch):
    monkeypatch.setattr(crash, "CONTEXT", {"folder": str(tmp_path)})
    for torn in ("", "[]", '{"asked": 4096}', '{"asked": 4096, "max_tokens_per_gpu": null}'):
        (tmp_path / "out_of_memory.json").write_text(torn)
        assert tokens_left(tmp_path, 4096) == 4096


def test_the_layout_over_gpus_may_change_in_a_continued_run():
    assert {"shard_size", "tensor_parallel"} <= set(rundir.MAY_CHANGE)


# ---------------------------------------- processes and machines


def test_on_gpus_tensors_go_through_nccl_and_pickles_through_gloo(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", given.append)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **options: given.append(
        (backend, options)))
    monkeypatch.setenv("RANK", "3"), monkeypatch.setenv("LOCAL_RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.init_distributed(60) == (3, 4, torch.device("cuda", 1))
    device, (backend, options) = given
    assert backend == "cpu:gloo,cuda:nccl" and options["device_id"] == device == torch.device("cuda", 1)


GROUP = """
import os, sys
from onebox import crash, distributed
import torch.distributed as dist

def main():
    distributed.init_distributed()
    distributed.gather([1])
    if sys.argv[1] == "error":
        raise KeyError("planted")

try:
    crash.entry(main)
finally:
    print("left" if not dist.is_initialized() else "still there", os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
"""


@pytest.mark.parametrize("how, code, env, found",
                         [("well", 0, {}, "expandable_segments:True"),
                          ("error", 1, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, "None")])
def test_a_script_leaves_its_group_and_lets_gpu_memory_grow(
        how, code, env, found, monkeypatch):
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):  # this process's import has set the first
        monkeypatch.delenv(name, raising=False)
    done = run_script("-c", GROUP, how, env=env)
    assert (done.returncode, done.stdout) == (code, f"left {found}\n"), done.stderr


def test_a_group_that_was_there_before_a_script_stays(one_process):
    with pytest.raises(SystemExit):
        crash.entry(lambda: sys.exit(1))
    crash.entry(lambda: None)
    assert distributed.dist.is_initialized()


def test_an_engine_and_a_kernel_that_are_older_lack_nothing_that_is_called(monkeypatch):
    class LLM:
        pass

    class CompletionOutput:
        token_ids, logprobs, finish_reason = [5, 1], types.SimpleNamespace(logprobs=[-0.5, -0.25]), "stop"

    monkeypatch.setitem(sys.modules, "vllm.outputs", types.SimpleNamespace(CompletionOutput=CompletionOutput))
    older.complete(LLM)
    LLM().update_weight_version("3")
    found = rollout.to_rollout(0, 0, [4], CompletionOutput(), 3)
    assert found.response_ids.tolist() == [5, 1] and found.finish_reason == "stop"

    def of_torch_2_11(query, *, scale):
        return query, scale

    def of_torch_2_12(query, *, scale, enable_gqa=False):
        return query, scale, enable_gqa

    assert older.with_gqa(of_torch_2_11)(1, scale=2, enable_gqa=True) == (1, 2)
    assert older.with_gqa(of_torch_2_12) is of_torch_2_12
    newer = type("LLM", (), {"update_weight_version": len})
    older.complete(newer)
    assert newer.update_weight_version is len  # what is there stays


def test_the_log_says_in_what_dtype_the_engine_computes_logits():
    assert "in fp32, as the trainer's" in describe_head(torch.float32)
    assert "rounded to bfloat16" in describe_head(torch.bfloat16) and "rounded to" in describe_head(None)


def test_a_size_that_older_code_left_is_read(tmp_path):
    (tmp_path / "out_of_memory.json").write_text('{"asked": 400, "max_tokens_per_gpu": 200, "cache_asked": 0, '
                                                 '"kv_cache_gb": 1.5}')
    say = [].append
    assert crash.size_left(str(tmp_path), "max_tokens_per_gpu", 400, say) == 200
    assert crash.size_left(str(tmp_path), "max_tokens_per_gpu", 300, say) == 300  # another setting: as asked
    assert crash.size_left(str(tmp_path), "kv_cache_gb", 0, say) == 1.5
