"""python -m pytest tests/test_flops.py: FLOPs, bytes, peaks and the columns made of them, by hand and against torch."""

import gzip
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import full, run_script

from onebox import metrics
from onebox.config import ConfigError
from onebox.distributed import Clock
from onebox.flops import (COLUMNS, Machine, Peaks, Shape, forward_flops, known_gpu, kv_bytes_per_token, machine_of,
                          shape_of)
from onebox.metrics import seconds, speed
from policy import Policy, load_critic, load_policy, make_adam, to_micro_batch, token_logprobs
from tools import dry_step
from tools.efficiency import decode_work, efficiency, tail_seconds

TINY = Shape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=32)
BLOCK = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, MLP: 576


def rollout(engine, prompt_len, response_len, seconds=0.0, dropped=False):
    return SimpleNamespace(engine=engine, prompt_ids=[1] * prompt_len, response_ids=[1] * response_len,
                           seconds=seconds, dropped=dropped)


def batch_of(rollouts, policy=3, critic=0, loads=None):
    """As much of a MicroBatch as efficiency() looks at: these rollouts after some passes, in forwards."""
    lens = [len(r.prompt_ids) + len(r.response_ids) - 1 for r in rollouts]
    of_all, of_fullest = loads or (sum(lens), sum(lens))
    return SimpleNamespace(lens=lens or [1], targets=[1] * sum(len(r.response_ids) for r in rollouts),
                           policy_forwards=policy, critic_forwards=critic, tokens_of_all=of_all,
                           tokens_of_fullest=of_fullest)


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

    config = Qwen2Config(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
                         attn_implementation="packed")
    policy, shape = Policy(Qwen2ForCausalLM(config)), shape_of(config)
    fake = [SimpleNamespace(prompt_ids=[1] * 5, response_ids=[2] * 8, rollout_logprobs=[0.0] * 8)] * 2
    batch = to_micro_batch(fake, range(2), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with counter:
        logprobs, entropy = token_logprobs(policy, batch, 1.0)
        (logprobs - entropy).sum().backward()
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matrices = sum(n for op, n in counted.items() if "attention" not in op)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * sum(n * (n + 1) / 2 for n in batch.lens)
    again = 2 * shape.vocab * shape.hidden * 16  # the logits a second time
    assert matrices == 3 * (forward_flops(shape, batch.lens, 16) - attention) + again


def test_keys_and_values_are_as_large_as_the_cache_of_transformers():
    from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)
    cache = DynamicCache(config=config)
    Qwen2ForCausalLM(config)(input_ids=torch.ones(1, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 7 * kv_bytes_per_token(shape_of(config), 4)


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


CPU = torch.device("cpu")


def test_a_machine_that_works_at_its_peaks_is_at_all_limits(one_process):
    rollouts = [rollout(0, 3, 2), rollout(0, 5, 4)]
    read, ops = decode_work(TINY, [3, 5], [2, 4], num_seqs=8)
    trained = 3 * forward_flops(TINY, [4, 8], 6)
    machine = Machine(TINY, Peaks(flops=100.0, bandwidth=10.0), max_num_seqs=8)
    row = row_of(step=read / 10 + trained / 100, rollout=read / 10, train=trained / 100)
    found = efficiency(row, machine, rollouts, [batch_of(rollouts)], CPU)
    assert ops / 100 < read / 10 and (found["mfu"], found["mbu"], found["roofline"]) == pytest.approx((1, 1, 1))
    assert found["tail"] == pytest.approx(4 / 3) and found["packing"] == 1
    slower = row_of(step=2 * row["seconds_step"] + 7, rollout=2 * row["seconds_rollout"], train=row["seconds_train"],
                    logprobs=row["seconds_train"], eval=5.0, save=2.0)
    found = efficiency(slower, machine, rollouts, [batch_of(rollouts)], CPU)
    assert (found["mfu"], found["mbu"], found["roofline"]) == pytest.approx((0.5, 0.5, 0.5))


def test_work_is_counted_pass_by_pass(one_process):
    """A forward counts once, one with a backward three times; a critic has no head; a rank's dummy token is no work."""
    rollouts = [rollout(0, 3, 2)]
    machine = Machine(TINY, Peaks(1.0, 1.0), critic_shape=TINY)

    def mfu(*batches):
        return efficiency(row_of(step=1.0, train=1.0), machine, rollouts, batches, CPU)["mfu"]

    forward = forward_flops(TINY, [4], 2)
    assert mfu(batch_of(rollouts, 3)) == pytest.approx(3 * forward)
    assert mfu(batch_of(rollouts, 1), batch_of(rollouts, 4)) == pytest.approx(5 * forward)
    assert mfu(batch_of(rollouts, 3, critic=4)) == pytest.approx(3 * forward + 4 * forward_flops(TINY, [4], 0))
    assert mfu(batch_of([], 3)) == 0


def test_two_engines_halve_the_work_of_each_and_rounds_follow_one_another(one_process):
    peaks = Peaks(1e9, 1e4)

    def mbu(**layout):
        rollouts = [rollout(i % layout.get("engines", 1), 3, 4) for i in range(2)]
        return efficiency(row_of(step=1.0, rollout=1.0), Machine(TINY, peaks, **layout), rollouts, [], CPU)["mbu"]

    cache = 2 * (4 + 5 + 6 + 7) * 32  # what both sequences read
    assert mbu() == pytest.approx((4 * TINY.decode_weights * 2 + cache) / 1e4)
    # each of two engines reads its own weights
    assert mbu(world=2, engines=2) == pytest.approx((8 * TINY.decode_weights * 2 + cache) / 2e4)
    assert mbu(round_size=1) == pytest.approx((8 * TINY.decode_weights * 2 + cache) / 1e4)


def test_the_tail_is_that_of_the_slowest_engine():
    """
    Engine 1 is done with 19 of its 20 responses, 95 %, after 19 s and with the last after 40: 21 s. Engine 0 is
    quicker. In a second round of 60 s nothing is late.
    """
    first = [rollout(1, 1, 1, seconds=s) for s in (*range(1, 20), 40.0)]
    first += [rollout(0, 1, 1, seconds=s) for s in (*range(1, 20), 39.0)]
    second = [rollout(0, 1, 1, seconds=60.0) for _ in range(40)]
    assert tail_seconds([first]) == pytest.approx(21)
    assert tail_seconds([first, second]) == pytest.approx(21)
    assert tail_seconds([first[1:20]]) == tail_seconds([[rollout(0, 1, 1)]]) == 0 and tail_seconds([]) is None
    cut = [rollout(1, 1, 1, seconds=99.0, dropped=True)]  # what finish_share leaves out is not waited for
    assert tail_seconds([first + cut]) == pytest.approx(21)


def test_what_finish_share_leaves_out_was_decoded_and_is_no_part_of_the_tail(one_process):
    machine = Machine(TINY, Peaks(1e9, 1e4))
    kept, cut = [rollout(0, 3, 4), rollout(0, 3, 2)], [rollout(0, 3, 9, dropped=True)]
    found = efficiency(row_of(step=1.0, rollout=1.0), machine, kept + cut, [], CPU)
    assert found["tail"] == pytest.approx(4 / 3)
    assert found["mbu"] == pytest.approx(decode_work(TINY, [3] * 3, [4, 2, 9], num_seqs=256)[0] / 1e4)


def test_packing_is_how_evenly_the_ranks_are_filled(one_process):
    batches = [batch_of([], loads=(30, 20)), batch_of([], loads=(10, 5))]
    found = efficiency(row_of(step=1.0, train=1.0), Machine(TINY, None, world=2), [rollout(0, 1, 1)], batches, CPU)
    assert found["packing"] == pytest.approx(40 / (2 * 25))


def test_on_a_device_without_known_peaks_its_shares_are_null(one_process):
    cfg = SimpleNamespace(tensor_parallel=1, max_num_seqs=8, prompts_per_step=2, group_size=2, finish_share=1.0)
    config = SimpleNamespace(model_type="llama", num_hidden_layers=2, hidden_size=8, num_attention_heads=2,
                             intermediate_size=16, num_key_value_heads=1, vocab_size=32, tie_word_embeddings=True)
    machine = machine_of(cfg, config, "float32", 1, CPU)
    assert machine == Machine(TINY, None, max_num_seqs=8, round_size=4, bytes_each=4)
    found = efficiency(row_of(step=1.0), machine, [rollout(0, 3, 2)], [batch_of([rollout(0, 3, 2)])], CPU)
    assert found == dict(zip(COLUMNS, (None, None, None, 1.0, 1.0, 0.0), strict=True))
    nothing = efficiency(row_of(step=1.0), machine, [], [], CPU)
    assert nothing == dict.fromkeys(COLUMNS)


def test_without_tools_a_step_has_its_seconds_but_not_how_near_it_came(one_process, monkeypatch):
    whole = speed(Clock(CPU), Machine(TINY, None), [rollout(0, 3, 2)], [[batch_of([rollout(0, 3, 2)])]])
    assert (whole["packing"], whole["tail"], whole["seconds_tail"]) == (1.0, 1.0, 0.0)
    monkeypatch.setattr(metrics, "has_tools", lambda: False)
    lean = speed(Clock(CPU), Machine(TINY, None), [rollout(0, 3, 2)], [[batch_of([rollout(0, 3, 2)])]])
    assert list(lean) == list(whole) and [lean[name] for name in COLUMNS] == [None] * 6
    assert lean["seconds_step"] >= 0 and lean["tokens_per_second"] > 0


def test_a_thousand_rollouts_cost_milliseconds(one_process):
    import time

    rollouts = [rollout(0, 200, 100 + i) for i in range(1000)]
    row, machine, best = row_of(step=1.0, train=1.0, rollout=1.0), Machine(TINY, Peaks(1e12, 1e9)), 1.0
    for _ in range(5):
        start = time.process_time()
        efficiency(row, machine, rollouts, [batch_of(rollouts)], CPU)
        best = min(best, time.process_time() - start)
    assert best < 0.1  # of CPU; 2 ms, and a loop over their 300,000 tokens would be most of a second


@pytest.mark.parametrize("name, bf16, bandwidth", [
    ("NVIDIA H100 80GB HBM3", 989, 3.35), ("NVIDIA H100 PCIe", 756, 2.0), ("NVIDIA H100 NVL", 835, 3.9),
    ("NVIDIA H200", 989, 4.8), ("NVIDIA A100-SXM4-80GB", 312, 2.039), ("NVIDIA A100-SXM4-40GB", 312, 1.555),
    ("NVIDIA A100 80GB PCIe", 312, 1.935), ("NVIDIA A10", 125, 0.6), ("NVIDIA L4", 121, 0.3),
    ("NVIDIA L40S", 362, 0.864), ("NVIDIA B200", 2250, 8.0), ("NVIDIA GeForce RTX 4090", 165, 1.008),
])
def test_devices_are_found_by_the_name_that_they_report(name, bf16, bandwidth):
    assert known_gpu(name, "bfloat16") == pytest.approx((bf16 * 1e12, bandwidth * 1e12))


@pytest.mark.parametrize("name", [
    "Tesla T4", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A10G",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA RTX 6000 Ada Generation"])
def test_devices_with_other_numbers_are_not_taken_for_known_ones(name):
    assert known_gpu(name, "bfloat16") is None


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


def test_a_dry_step_changes_nothing(one_process, tied_model, monkeypatch):
    models, reference, cfg = dry_models(tied_model)
    modules = [module for module, _ in models.values()]
    before = [full(p).clone() for module in modules for p in module.parameters()]
    rng, said, seen = torch.get_rng_state(), [], []
    monkeypatch.setattr(dry_step, "token_logprobs",
                        lambda policy, batch, t: seen.append(batch.lens) or token_logprobs(policy, batch, t))
    dry_step.dry_step(models, reference, cfg, 40, 128, 1, CPU, said.append)
    assert seen == [[15, 15, 10]] * 2  # filled to the last of 40 tokens, through reference and policy
    assert "dry step: 40 tokens fit" in said[0] and torch.equal(rng, torch.get_rng_state())
    parameters = [p for module in modules for p in module.parameters()]
    assert all(torch.equal(a, full(p)) and p.grad is None for a, p in zip(before, parameters, strict=True))
    states = [state for _, optimizer in models.values() for state in optimizer.state.values()]
    assert not any(x.any() for state in states for x in state.values())


@pytest.mark.parametrize("where, max_tokens, context, advice", [
    ("token_values", 40, {}, "a micro-batch of 40 tokens did not fit .*; halve max_tokens_per_gpu .now 40"),
    ("token_values", 16, {}, "a micro-batch of 15 tokens did not fit .*; that is one sequence"),
    ("token_values", 40, {"max_tokens": (40, 40)}, "the same command goes on with max_tokens_per_gpu = 20 .* 40"),
    ("torch.zeros_like", 40, {"max_tokens": (40, 40)}, "gradients of the models .* smaller micro-batches do not help"),
])
def test_a_dry_step_without_memory_says_what_helps(where, max_tokens, context, advice, one_process, tied_model,
                                                   monkeypatch, tmp_path):
    models, _, cfg = dry_models(tied_model)

    def out_of_memory(*_):
        raise RuntimeError(CUBLAS)

    monkeypatch.setitem(dry_step.CONTEXT, "folder", str(tmp_path))
    for name, value in context.items():
        monkeypatch.setitem(dry_step.CONTEXT, name, value)
    monkeypatch.setattr(where if "." in where else f"tools.dry_step.{where}", out_of_memory)
    with pytest.raises(ConfigError, match=advice) as error:
        dry_step.dry_step(models, None, cfg, max_tokens, 128, 1, CPU, print)
    assert error.value.exit_code == 4 and all(p.grad is None for m, _ in models.values() for p in m.parameters())


def test_a_dry_step_lets_other_errors_pass(one_process, tied_model, monkeypatch):
    models, _, cfg = dry_models(tied_model)
    monkeypatch.setattr(dry_step, "token_values", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        dry_step.dry_step(models, None, cfg, 40, 128, 1, CPU, print)


def dry_models(path):
    cfg = SimpleNamespace(max_prompt_len=6, max_response_len=10, prompts_per_step=4, group_size=4, temperature=1.0)
    policy, critic = load_policy(path, CPU, "float32"), load_critic(path, CPU, "float32")
    models = {name: (module, make_adam(module, 1e-3, 0.9, 0.999, 0.0))
              for name, module in (("policy", policy), ("critic", critic))}
    return models, policy, cfg


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_a_dry_step(tied_model, tmp_path):
    from conftest import ROOT
    from test_end_to_end import TINY as SETTINGS
    from test_end_to_end import load_weights, rows_of

    rows, weights = {}, {}
    for how in ("on", "off"):
        done = run_script(os.path.join(ROOT, "train_grpo.py"), *SETTINGS, "--model", tied_model, "--name", how,
                          "--dry_step", how, "--num_steps", "2", "--kl_in", "loss_k3", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("dry step: " in done.stdout) == (how == "on")
        rows[how], weights[how] = rows_of(tmp_path, how), load_weights(tmp_path / "out" / how / "model")
    for a, b in zip(rows["on"], rows["off"], strict=True):
        same = [name for name in a if not name.startswith("seconds_") and name != "tokens_per_second"]
        assert len(same) > 30 and all(a[name] == b[name] for name in same)
    assert all(np.array_equal(weights["on"][name], weights["off"][name]) for name in weights["on"])
    samples = [gzip.open(tmp_path / "out" / how / "samples" / "step_000002.jsonl.gz").read() for how in rows]
    assert samples[0] == samples[1]
