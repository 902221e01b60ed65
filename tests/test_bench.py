"""python -m pytest tests/test_bench.py: what bench/gpu.py counts, compares and says; nothing here depends on speed."""

import argparse
import functools
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script
from torch._dynamo.utils import counters

sys.path.insert(0, os.path.join(ROOT, "bench"))

import gpu_common  # noqa: E402
import gpu_engine  # noqa: E402
import gpu_head  # noqa: E402
import gpu_host  # noqa: E402
import gpu_trainer  # noqa: E402
import pack as pack_bench  # noqa: E402

import sft  # noqa: E402
from onebox import fused_logprobs, packed_attention  # noqa: E402
from policy import pack, token_logprobs  # noqa: E402


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(part="trainer 1.5B", out=str(tmp_path), smoke=False, deadline=float("inf"))


@pytest.fixture
def traced_only(monkeypatch):
    """torch.compile that compiles no C++; what it leaves behind goes when the test ends."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    fused_logprobs.compiled.cache_clear()
    torch._dynamo.reset()


def rows_in(folder):
    with open(os.path.join(folder, "gpu.jsonl")) as f:
        return [json.loads(line) for line in f]


def test_a_goal_is_reached_missed_or_not_measured(args, capsys):
    for mfu, peak in ((0.5, 80.0), (0.4999, 50.0), (None, None), (0.9, 80.1)):
        gpu_common.write(args, "best", mfu=mfu, peak_gb=peak)
    gpu_common.write(args, "another cell", mfu=0.9)
    assert [row.get("reached") for row in rows_in(args.out)] == ["yes", "no", "not measured",
                                                                 "no: peak above 80 GB", None]
    assert rows_in(args.out)[0]["goal"] == "mfu >= 50.0%" and "50.0% mfu" in capsys.readouterr().out


def test_every_goal_belongs_to_a_part_that_is_run():
    import gpu

    assert {part for part, _ in gpu_common.GOALS} <= set(gpu.PARTS)
    names = list(gpu.PARTS)
    assert sum(seconds for *_, seconds in gpu.PARTS.values()) <= 7.8 * 60
    assert all(gpu.PARTS[name][2][:1] in (("table",), ("probe",)) for name in names[:4])
    assert gpu.PARTS["offload 1.5B"][3] >= 40 and names.index("more 1.5B") > names.index("offload 1.5B")


def test_a_part_gets_its_seconds_and_what_was_left_over_and_none_takes_those_of_the_next():
    """Planned 60, 30, 10 of 100 s. The first used 40: the second has 50. What it overruns, the last one lacks."""
    import gpu

    planned = [60, 30, 10]
    assert [gpu.budget_of(planned, *when, 100) for when in ((0, 100), (1, 60), (2, 5))] == [60, 50, 5]
    assert gpu.budget_of(planned, 0, 50, 50) == 30 and gpu.budget_of([0], 0, 100, 100) == 100


def test_nothing_is_begun_that_the_time_does_not_allow(args, one_process):
    bench, called = gpu_common.Bench(args, "tiny"), []
    variants = {name: (lambda: None, lambda name=name: called.append(name) or 1.0) for name in "ab"}
    for left, wanted in ((19, "bbb"), (4, ""), (20, "ababab")):
        called.clear()
        bench.left = lambda left=left: left
        found = gpu_common.take_turns(variants, 2, bench, first_call_s=20)
        assert "".join(called) == wanted
    assert "note" not in found["a"]


def test_more_layers_and_recomputation_compile_nothing_new(args, one_process, traced_only):
    """So fewer layers would not shorten a first call, and recomputation has none."""
    torch._dynamo.reset()
    counters.clear()
    for layers in (2, 6):
        bench = gpu_common.Bench(args, "tiny", layers)
        switches, batch = gpu_common.Switches(bench.policy()), gpu_common.micro_batch(bench, 90)
        for settings in ({}, dict(checkpointing=True)):
            switches.set(**settings)
            gpu_common.train_once(bench, switches.policy, batch)
            if (layers, settings) == (2, {}):
                first = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == first > 0


class FakeEngine:
    def __init__(self):
        self.calls = []

    def wake_up(self, tags):
        self.calls.append("+".join(tags))

    def sleep(self, level):
        self.calls.append("sleep")


def test_a_cell_finds_the_engine_awake_whatever_the_one_before_left(args, one_process, monkeypatch):
    """After a failure between the two wake-ups: the cache is woken too, all sleeps, then a whole sync."""
    def sync(model, llm, dtype, version, device):
        llm.wake_up(tags=["weights"])
        if version == 1:
            raise RuntimeError("the reload failed")
        llm.wake_up(tags=["kv_cache"])

    monkeypatch.setattr(gpu_engine, "wake_and_sync", sync)
    monkeypatch.setattr(gpu_engine, "sleep", lambda llm, device: llm.sleep(level=2))
    bench = gpu_common.Bench(args, "tiny")
    bench.policy()
    sampler = gpu_engine.Sampler(bench, FakeEngine(), SimpleNamespace(hf=None), 2, 2, 4, 4)
    sampler.make_ready()
    sampler.make_ready()
    sampler.sleep()
    with pytest.raises(RuntimeError):
        sampler.sync()
    sampler.make_ready()
    assert sampler.llm.calls == ["sleep", "weights", "kv_cache"] * 3


def test_the_sft_cell_packs_the_next_step_before_adam_and_trains_every_example_once(args, one_process, monkeypatch):
    bench, order = gpu_common.Bench(args, "tiny"), []
    monkeypatch.setattr(gpu_host, "prepare", lambda *given: order.append("pack") or sft.prepare(*given))
    monkeypatch.setattr(gpu_host, "optimizer_step", lambda *given: order.append("adam"))
    examples = [(np.arange(3, 6, dtype=np.int32), np.arange(3, 7, dtype=np.int32)) for _ in range(8)]
    cfg = SimpleNamespace(seed=0, tokens_per_step=30)
    spent = gpu_host.sft_steps(bench, bench.policy(), None, examples, cfg, 2)
    assert order == ["pack", "pack", "adam", "pack", "adam"] and [taken for _, taken in spent] == [28, 28]


def test_variants_take_turns_and_one_that_fails_is_left_out(args, one_process):
    bench, order, spent = gpu_common.Bench(args, "tiny"), [], {"a": iter((9.0, 3.0, 1.0, 2.0)), "c": iter((5.0,) * 4)}

    def step(name):
        order.append(name)
        if name == "b" and order.count("b") == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return next(spent[name]) if name in spent else 7.0

    variants = {name: (lambda: None, functools.partial(step, name)) for name in "abc"}
    found = gpu_common.take_turns(variants, 3, bench)
    assert "".join(order) == "abc" + "abc" + "ac" + "ac"
    assert found["a"]["seconds"] == 2.0 and found["a"]["warm_up"] == 9.0 and found["a"]["raw"] == [3.0, 1.0, 2.0]
    assert found["b"]["note"] == "out of memory: CUDA out of memory. Tried to allocate 1 GiB"
    batch = argparse.Namespace(lens=[6, 4], targets=[0] * 5)
    gpu_trainer.write_turns(bench, args, batch, found, "c")
    a, b, c = rows_in(args.out)
    assert (a["ratio"], a["tokens_per_second"], c["ratio"]) == (0.4, 5.0, 1.0) and "seconds" not in b


@pytest.mark.parametrize("kernel, name", [
    ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "matrix"), ("aten::mm", "matrix"), ("aten::addmm", "matrix"),
    ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "matrix"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16>", "matrix"),
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Fl...", "attention"),
    ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90>>", "attention"),
    ("triton_poi_fused__unsafe_view_mul_silu_1", "rest"), ("Memcpy DtoD (Device -> Device)", "rest"),
    ("triton_red_fused_add_amax_div_exp_gather_log_mul_select_sub_sum", "rest"), ("aten::mul", "rest"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "rest")])
def test_kernels_of_the_measured_profiles_fall_into_their_class(kernel, name):
    assert gpu_trainer.class_of(kernel) == name


@pytest.mark.parametrize("tokens, longest", [(16384, 4096), (90, 22), (700, 33)])
def test_made_up_rollouts_pack_to_as_many_tokens_as_asked(tokens, longest):
    lens = [len(r.prompt_ids) + len(r.response_ids) - 1 for r in gpu_common.responses(tokens, longest, 2, 100)]
    assert tokens - 3 <= sum(lens) <= tokens and max(lens) <= longest and len(set(lens)) > 2


@pytest.mark.parametrize("as_arrays", [False, True])
def test_the_host_benchmark_packs_every_token_once(as_arrays):
    rollouts = pack_bench.make(1000, 20, 40, as_arrays)
    spent = pack_bench.time_pack(pack, rollouts, 1000, torch.device("cpu"), 2)
    assert len(spent) == 2 and 1000 <= sum(len(r.prompt_ids) + len(r.response_ids) - 1 for r in rollouts) < 1080
    assert 13 <= len(rollouts) <= 21


def test_the_reference_of_the_head_is_what_autograd_finds_and_ours_agrees():
    torch.manual_seed(0)
    hidden, weight = torch.randn(700, 8), torch.nn.Parameter(torch.randn(50, 8))
    targets, grads = torch.randint(50, (700,)), torch.randn(2, 700)
    logprobs, entropy, without, with_entropy = gpu_head.reference(hidden, weight, targets, grads)
    for wanted, entropy_grad in ((without, 0.0), (with_entropy, 1.0)):
        h, w = hidden.double().requires_grad_(), weight.detach().double().requires_grad_()
        logp = (h @ w.T).log_softmax(-1)
        ours = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(ours[0], logprobs)
        torch.testing.assert_close(ours[1], entropy)
        (ours[0] * grads[0] + entropy_grad * ours[1] * grads[1]).sum().backward()
        torch.testing.assert_close((h.grad, w.grad), wanted)
    h = hidden.requires_grad_()
    ours = gpu_head.ours(False)(h, weight, targets)
    (ours[0] * grads[0]).sum().backward()
    assert all(float(error) < 1e-5 for error in gpu_head.gradient_errors(h, weight, without).values())
    assert all(float(error) > 1e-2 for error in gpu_head.gradient_errors(h, weight, with_entropy).values())


def test_every_variant_of_the_trainer_computes_the_same(args, one_process, traced_only):
    """Else a ratio would compare two different things. FSDP's twin too, which draws the same weights."""
    plain, policies = gpu_common.Bench(args, "tiny"), []
    for fsdp in (False, True):
        torch.manual_seed(0)
        policies.append(plain.policy(always_fsdp=fsdp))
    batch, found = gpu_common.micro_batch(plain, 90), []
    for policy in policies:
        switches = gpu_common.Switches(policy)
        for settings in ({}, *gpu_trainer.ABLATIONS.values(), dict(checkpointing=True)):
            switches.set(**settings)
            logprobs, _ = token_logprobs(policy, batch, 1.0)
            logprobs.sum().backward()
            grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in policy.parameters()]
            found.append([logprobs.detach(), *(grad.clone() for grad in grads)])
            policy.zero_grad(set_to_none=True)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_a_kernel_that_was_chosen_is_put_back(args, one_process, traced_only, monkeypatch):
    policy = gpu_common.Bench(args, "tiny").policy()
    switches, before = gpu_common.Switches(policy), packed_attention.varlen_attn
    kernels = {"other": lambda: gpu_common.use(varlen="another kernel")}
    monkeypatch.setattr(gpu_common, "attention_kernels", lambda: (kernels, {}))
    switches.set(attention="other")
    assert packed_attention.varlen_attn == "another kernel"
    switches.set()
    assert packed_attention.varlen_attn is before


def test_as_many_layers_of_a_model_as_fit_are_measured(args, one_process):
    """
    7B, a block: 10 bytes of each of 233 M parameters = 2.33 GB and 2.46 GB of activations; both ends 10.9 GB.
    80 GB: (72 - 10.9 - 4) / 4.79 = 11.9. With 6 bytes: (72 - 6.5 - 4) / 3.86 = 15.9.
    """
    bench = gpu_common.Bench(args, "Qwen2.5-7B")
    assert bench.room_gb() == 80
    for room, param_bytes, layers in ((80, 10, 11), (80, 6, 15), (141, 10, 23), (400, 10, 28), (10, 10, 1)):
        bench.room_gb = lambda room=room: room
        assert gpu_trainer.layers_that_fit(bench, 16384, param_bytes) == layers


def test_the_list_of_parts_names_cells_and_goals():
    done = run_script(os.path.join(ROOT, "bench", "gpu.py"), "--list", "--only", "1.5B,host")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["trainer 1.5B", "host", "engine 1.5B", "offload 1.5B",
                                                       "more 1.5B"]
    assert "best: mfu >= 50.0%" in lines[0] and "ablations" in lines[4]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_with_a_tiny_model(tmp_path):
    done = run_script(os.path.join(ROOT, "bench", "gpu.py"), "--smoke", "--out", tmp_path / "gpu", "--minutes", "6")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_in(tmp_path / "gpu")
    cells = {}
    for row in rows:
        cells.setdefault(row["part"], {})[row["cell"]] = row
    assert set(cells) == {"trainer tiny", "head", "engine tiny", "host", "offload tiny"}
    trainer = cells["trainer tiny"]
    for cell in ("best", "full recomputation", "profile, eager", "four other shapes", "clip and Adam", "one process",
                 "one process in FSDP2", *gpu_trainer.ABLATIONS):
        assert trainer[cell]["seconds" if "shapes" not in cell else "graphs"] > 0, trainer[cell]
    assert trainer["four other shapes"]["recompiled"][1:] == [0, 0, 0], trainer["four other shapes"]
    assert {"ours, compiled", "ours, eager"} <= {cell.partition(": ")[2] for cell, row in cells["head"].items()
                                                 if row.get("seconds")}
    assert {"offload: first step", "optimizer step, offloaded",
            "offload: parts of the step"} < set(cells["offload tiny"])
    assert {"sync: stream and reload", "rollout, 8 x 8, no seeds", "rollout, 8 x 8, a seed each",
            "whole GRPO step, checkpointing False"} <= set(cells["engine tiny"]), rows
    assert cells["host"]["SFT, 60 tokens a sequence"]["tokens_per_second"] > 0, rows
    assert not any(row["cell"] == "rest" for row in rows), rows
    assert "| sync: stream and reload |" in (tmp_path / "gpu" / "gpu.md").read_text()
