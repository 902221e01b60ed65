"""python -m pytest tests/test_speed.py: FLOPs, bytes, peaks and the columns made of them, by hand and against torch."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import full, run_script

from onebox import flops as speed
from onebox.metrics import console_line, seconds
from onebox.flops import Peaks, Shape, decode_work, efficiency, forward_flops, known_gpu, shape_of

TINY = Shape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=32, tied=True, vectors=16)
BLOCK = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, MLP: 576


def rollout(prompt, prompt_len, response_len):
    return SimpleNamespace(prompt=prompt, prompt_ids=[1] * prompt_len, response_ids=[1] * response_len)


def test_forward_flops_by_hand():
    assert TINY.block_weights == BLOCK == 576
    # 5 tokens through 2 blocks, (3 + 1) and (2): pairs 6 + 3; the head on 2 tokens only
    linear, attention, head = 2 * 2 * 576 * 5, 4 * 2 * 2 * 4 * (6 + 3), 2 * 32 * 8 * 2
    assert forward_flops(TINY, [3, 2], 2) == linear + attention + head
    assert forward_flops(TINY, [3, 2], 0) == linear + attention  # a critic has no head of this size


@pytest.mark.parametrize("tied", [True, False])
def test_the_formula_is_what_torch_counts_for_a_training_step(one_process, tied):
    """torch counts recomputed logits and the whole square of attention: those are what is needed less."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import policy as model

    config = Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attn_implementation="packed",
    )
    policy, shape = model.Policy(Qwen2ForCausalLM(config)), shape_of(config)
    fake = [SimpleNamespace(prompt_ids=[1] * 5, response_ids=[2] * 8, rollout_logprobs=[0.0] * 8)] * 2
    batch = model.to_micro_batch(fake, range(2), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with counter:
        logprobs, entropy = model.token_logprobs(policy, batch, 1.0)
        (logprobs - entropy).sum().backward()
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matrices = sum(n for op, n in counted.items() if "attention" not in op)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * speed.attention_pairs(batch.lens)
    again = 2 * shape.vocab * shape.hidden * 16  # the logits a second time
    assert matrices == 3 * (forward_flops(shape, batch.lens, 16) - attention) + again


KNOWN = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_numbers_of_parameters(name):
    from tools.plan import architecture

    assert architecture(name).params == KNOWN[name]


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Phi3", "SmolLM3", "Olmo2"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_module(family, tied):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        sliding_window=None,
        pad_token_id=0,
    )
    with torch.device("meta"):
        hf = getattr(transformers, f"{family}ForCausalLM")(config)
    assert shape_of(config).params == sum(p.numel() for p in hf.parameters())
    assert shape_of(config).trunk_params == sum(p.numel() for p in hf.get_decoder().parameters())


def test_keys_and_values_are_as_large_as_the_cache_of_transformers():
    from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    cache = DynamicCache(config=config)
    Qwen2ForCausalLM(config)(input_ids=torch.ones(1, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 7 * speed.kv_bytes_per_token(shape_of(config), 4)


def test_decoding_reads_the_weights_once_a_step_and_each_sequence_its_own_past():
    weights = 2 * 576 + 32 * 8
    assert TINY.decode_weights == weights
    # two sequences at a time: prompts 3 and 5, responses 2 and 4: 4 steps; pasts (4 + 5) + (6 + 7 + 8 + 9)
    read, flops = decode_work(TINY, [3, 5], [2, 4], num_seqs=2)
    assert read == 4 * weights * 2 + 39 * (2 * 2 * 1 * 4 * 2)
    assert flops == 6 * 2 * weights + 4 * 2 * 2 * 4 * 39
    assert decode_work(TINY, [3, 5], [2, 4], num_seqs=1)[0] - read == 2 * weights * 2  # one at a time: 6 steps
    assert decode_work(TINY, [], [], num_seqs=2) == decode_work(TINY, [3], [0], num_seqs=2) == (0.0, 0.0)


def row_of(**spent):
    return seconds(spent)


def test_other_is_what_no_phase_explains():
    row = row_of(step=10.0, rollout=4.0, train=3.0, values=1.0, eval=1.5)
    assert row["seconds_other"] == pytest.approx(0.5) and row["seconds_values"] == 1.0 and row["seconds_save"] == 0.0
    assert "seconds_values" not in row_of(step=1.0)
    full = {
        "step": 1,
        "reward": 0,
        "correct": 0,
        "format_error": 0,
        "response_len": 0,
        "truncated": 0,
        "zero_variance_groups": 0,
        "grad_norm": 0,
        "entropy": 0,
        "clip_frac": 0,
        "kl": None,
        "mismatch_mean": 0,
        "skipped_updates": 0,
        "mfu": 0.5,
        "mbu": None,
    }
    line = console_line({**full, **row}, 2)
    assert "rollout 4.0 + reward 0.00" in line and "values 1.0 + train 3.0" in line
    assert "eval 1.5 + other 0.50 = 10.0 s" in line and "mfu 50%" in line and "mbu" not in line


def test_a_machine_that_works_at_its_peaks_is_at_all_limits():
    rollouts = [rollout(0, 3, 2), rollout(1, 5, 4)]
    read, ops = decode_work(TINY, [3, 5], [2, 4], num_seqs=8)
    trained = 3 * forward_flops(TINY, [4, 8], 6)
    peaks = Peaks(flops=100.0, bandwidth=10.0, source="")
    row = row_of(step=read / 10 + trained / 100, rollout=read / 10, train=trained / 100)
    found = efficiency(row, TINY, peaks, rollouts, rollouts, policy_passes=3, loads=[(12, 12)], max_num_seqs=8)
    assert ops / 100 < read / 10 and (found["mfu"], found["mbu"], found["roofline"]) == pytest.approx((1, 1, 1))
    assert found["tail"] == pytest.approx(4 / 3) and found["packing"] == 1
    slower = row_of(
        step=2 * row["seconds_step"] + 7,
        rollout=2 * row["seconds_rollout"],
        train=row["seconds_train"],
        logprobs=row["seconds_train"],
        eval=5.0,
        save=2.0,
    )
    found = efficiency(slower, TINY, peaks, rollouts, rollouts, policy_passes=3, max_num_seqs=8)
    assert (found["mfu"], found["mbu"], found["roofline"]) == pytest.approx((0.5, 0.5, 0.5)) and found[
        "packing"
    ] is None


def test_two_engines_halve_the_work_of_each_and_rounds_follow_one_another():
    rollouts = [rollout(0, 3, 4), rollout(1, 3, 4)]
    one, two = (
        efficiency(row_of(step=1.0, rollout=1.0), TINY, Peaks(1e9, 1e4, ""), rollouts, [], policy_passes=0, world=world)
        for world in (1, 2)
    )
    cache = 2 * (4 + 5 + 6 + 7) * 32  # what both sequences read
    assert one["mbu"] == pytest.approx((4 * TINY.decode_weights * 2 + cache) / 1e4)
    assert two["mbu"] == pytest.approx((8 * TINY.decode_weights * 2 + cache) / 2e4)  # each engine reads its own weights
    rounds = efficiency(
        row_of(step=1.0, rollout=1.0), TINY, Peaks(1e9, 1e4, ""), rollouts, [], policy_passes=0, round_size=1
    )
    assert rounds["mbu"] == pytest.approx((8 * TINY.decode_weights * 2 + cache) / 1e4)


def test_packing_is_how_evenly_the_ranks_are_filled():
    row = row_of(step=1.0, train=1.0)
    found = efficiency(
        row, TINY, Peaks(1, 1, ""), [rollout(0, 1, 1)], [], policy_passes=0, world=2, loads=[(30, 20), (10, 5)]
    )
    assert found["packing"] == pytest.approx(40 / (2 * 25))


def test_a_critic_has_no_head_and_another_shape_counts():
    rollouts, peaks = [rollout(0, 3, 2)], Peaks(1.0, 1.0, "")
    row = row_of(step=1.0, train=1.0)
    without = efficiency(row, TINY, peaks, rollouts, rollouts, policy_passes=3)["mfu"]
    with_one = efficiency(row, TINY, peaks, rollouts, rollouts, policy_passes=3, critic_passes=4)["mfu"]
    assert with_one - without == pytest.approx(4 * forward_flops(TINY, [4], 0))


def test_a_thousand_rollouts_cost_milliseconds():
    import time

    rollouts = [rollout(i % 125, 200, 100 + i) for i in range(1000)]
    row, peaks = row_of(step=1.0, train=1.0, rollout=1.0), Peaks(1e12, 1e9, "")
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        efficiency(row, TINY, peaks, rollouts, rollouts, policy_passes=3, world=1)
        best = min(best, time.process_time() - start)
    assert best < 0.1  # of CPU; 2 ms, and a loop over their 300,000 tokens would be most of a second


@pytest.mark.parametrize(
    "name, bf16, bandwidth",
    [
        ("NVIDIA H100 80GB HBM3", 989, 3.35),
        ("NVIDIA H100 PCIe", 756, 2.0),
        ("NVIDIA H100 NVL", 835, 3.9),
        ("NVIDIA H200", 989, 4.8),
        ("NVIDIA A100-SXM4-80GB", 312, 2.039),
        ("NVIDIA A100-SXM4-40GB", 312, 1.555),
        ("NVIDIA A100 80GB PCIe", 312, 1.935),
        ("NVIDIA A10", 125, 0.6),
        ("NVIDIA L4", 121, 0.3),
        ("NVIDIA L40S", 362, 0.864),
        ("NVIDIA B200", 2250, 8.0),
        ("NVIDIA GeForce RTX 4090", 165, 1.008),
    ],
)
def test_devices_are_found_by_the_name_that_they_report(name, bf16, bandwidth):
    found = known_gpu(name, "bfloat16")
    assert (found.flops, found.bandwidth) == pytest.approx((bf16 * 1e12, bandwidth * 1e12))


@pytest.mark.parametrize(
    "name",
    [
        "Tesla T4",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA RTX 6000 Ada Generation",
    ],
)
def test_devices_with_other_numbers_are_not_taken_for_known_ones(name):
    assert known_gpu(name, "bfloat16") is None


def test_the_fastest_probe_is_kept_and_none_draws_a_random_number(one_process, tmp_path, monkeypatch):
    seen = iter([(2e11, 3e10), (1e11, 4e10), (5e11, 1e10)])
    monkeypatch.setattr(speed, "probe", lambda device, dtype, budget_s: next(seen))
    cache, device, before = str(tmp_path / "a" / "peaks.json"), torch.device("cpu"), torch.get_rng_state()
    for expected in ((2e11, 3e10), (2e11, 4e10)):
        found = speed.machine_peaks(device, "float32", cache)
        assert (found.flops, found.bandwidth) == expected
    assert speed.machine_peaks(device, "bfloat16", cache).flops == 5e11  # another dtype has its own
    assert list(json.loads(open(cache).read()).values()) == [[2e11, 4e10], [5e11, 1e10]]
    with open(cache, "w") as f:
        f.write("{half")
    monkeypatch.setattr(speed, "probe", lambda device, dtype, budget_s: (7e10, 7e9))
    assert speed.machine_peaks(device, "float32", cache).flops == 7e10
    monkeypatch.undo()
    flops, bandwidth = speed.probe(device, "float32", budget_s=0.05)
    assert 1e9 < flops < 1e14 and 1e8 < bandwidth < 1e13 and torch.equal(before, torch.get_rng_state())


def test_a_dry_step_changes_nothing_and_out_of_memory_says_what_to_halve(
    one_process, tied_model, monkeypatch, tmp_path
):
    import policy as model
    from onebox.config import ConfigError
    from train_ppo import Config

    device = torch.device("cpu")
    cfg = Config(max_prompt_len=6, max_response_len=10, max_tokens_per_gpu=40, prompts_per_step=4, group_size=4)
    policy, critic = model.load_policy(tied_model, device, "float32"), model.load_critic(tied_model, device, "float32")
    models = {
        "policy": (policy, model.make_adam(policy, 1e-3, 0.9, 0.999, 0.0)),
        "critic": (critic, model.make_adam(critic, 1e-3, 0.9, 0.999, 0.0)),
    }
    before = [full(p).clone() for m in (policy, critic) for p in m.parameters()]
    rng, said, seen = torch.get_rng_state(), [], []
    plain = model.token_logprobs
    monkeypatch.setattr(model, "token_logprobs", lambda p, batch, t: seen.append(batch.lens) or plain(p, batch, t))
    speed.dry_step(models, policy, cfg, 40, 128, 1, device, said.append)
    assert seen == [[15, 15, 10]] * 2  # filled to the last of 40 tokens, through reference and policy
    assert "dry step: 40 tokens fit" in said[0] and torch.equal(rng, torch.get_rng_state())
    assert all(
        torch.equal(a, full(p)) and p.grad is None
        for a, p in zip(before, [p for m in (policy, critic) for p in m.parameters()], strict=True)
    )
    assert not any(x.any() for _, optimizer in models.values() for state in optimizer.state.values() for x in state.values())

    def out_of_memory(*_):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(model, "token_values", out_of_memory)
    with pytest.raises(ConfigError, match="halve max_tokens_per_gpu .now 40") as error:
        speed.dry_step(models, None, cfg, 40, 128, 1, device, said.append)
    assert error.value.exit_code == 4 and all(p.grad is None for p in critic.parameters())
    with pytest.raises(ConfigError, match="that is one sequence"):
        speed.dry_step(models, None, cfg, 16, 128, 1, device, said.append)
    monkeypatch.setattr(speed.rundir, "LAST", {"folder": str(tmp_path), "max_tokens": (40, 40)})
    with pytest.raises(ConfigError, match="the same command goes on with max_tokens_per_gpu = 20 instead of 40"):
        speed.dry_step(models, None, cfg, 40, 128, 1, device, said.append)
    monkeypatch.setattr(model, "token_values", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        speed.dry_step(models, None, cfg, 40, 128, 1, device, said.append)


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_a_dry_step(tied_model, tmp_path):
    from conftest import ROOT
    from test_end_to_end import TINY as SETTINGS
    from test_end_to_end import load_weights, rows_of

    rows, weights = {}, {}
    for how in ("on", "off"):
        done = run_script(
            os.path.join(ROOT, "train_grpo.py"),
            *SETTINGS,
            "--model",
            tied_model,
            "--name",
            how,
            "--dry_step",
            how,
            "--num_steps",
            "2",
            "--kl_in",
            "loss_k3",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("dry step: " in done.stdout) == (how == "on")
        rows[how], weights[how] = rows_of(tmp_path, how), load_weights(tmp_path / "out" / how / "model")
    clock = {"tokens_per_second", "mfu", "mbu", "roofline"}
    for a, b in zip(rows["on"], rows["off"], strict=True):
        same = [name for name in a if not name.startswith("seconds_") and name not in clock]
        assert len(same) > 30 and all(a[name] == b[name] for name in same)
        assert a["step"] == 0 or 0 < a["roofline"] < 1
    assert all(np.array_equal(weights["on"][name], weights["off"][name]) for name in weights["on"])
    samples = [open(tmp_path / "out" / how / "samples" / "step_000002.jsonl").read() for how in rows]
    assert samples[0] == samples[1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_with_a_tiny_model(tmp_path):
    from conftest import ROOT

    done = run_script(os.path.join(ROOT, "bench", "gpu.py"), "--smoke", "--out", tmp_path / "gpu", "--minutes", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    with open(tmp_path / "gpu" / "gpu.jsonl") as f:
        rows = [json.loads(line) for line in f]
    assert {row["part"] for row in rows} == {"trainer tiny", "engine tiny"}
    assert all(row["tokens_per_second"] > 0 for row in rows if "mfu" in row)
    whole = [row["what"] for row in rows if row["part"] == "engine tiny"]
    assert {"weight sync with wake-up", "rollout, 8 x 16", "whole GRPO step"} <= set(whole), rows
    assert all("cut off" not in row.get("note", "") and "ended with" not in row.get("note", "") for row in rows), rows
    assert "| whole GRPO step |" in (tmp_path / "gpu" / "gpu.md").read_text()
