"""python -m pytest tests/test_plan.py: memory against real tensors, and what is said when it does not fit."""

import argparse
import contextlib
import dataclasses
import glob
import json
import os
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
from tools import plan

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
    model = plan.Model(shape_of(config), 0, 0, family == "Qwen3")
    expected = dtype.itemsize * 64 if checkpointing else plan.activation_bytes(model, dtype.itemsize)
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
        cfg = recipe("demo", "--model", path, "--max_num_seqs", "4")
        used = plan.memory(cfg, plan.architecture(path), None, options("--gpus", "1"))
        assert used["training"]["policy, fp32"] == weights
        assert used["training"]["policy: gradient, Adam"] == states + weights
        assert used["sampling"]["policy: Adam"] == states


def test_the_sizes_of_a_7b_policy_by_hand():
    """7.6156 G parameters over 8 GPUs: 4, 12 and 2 bytes each; README's table."""
    cfg = recipe("tinyzero_grpo_7b")
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
    model = plan.architecture("Qwen2.5-7B")
    assert kv_bytes_per_token(model.shape) == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    cfg = recipe("tinyzero_grpo_7b", "--kv_cache_gb", "1.5", "--max_num_seqs", "16")
    size, room, together = plan.kv_cache(model, cfg, options("--gpus", "8"))
    assert (size, room, together) == (1.5e9, int(1.5e9 / (1280 * 57_344)), 16)


@pytest.mark.parametrize("tensor_parallel, gb, room", [(1, 28.0, 6), (4, 112.0, 26), (16, 448.0, 52)])
def test_the_cache_may_take_35_percent_of_each_gpu_of_an_engine(tensor_parallel, gb, room, tmp_path):
    """Qwen2.5-32B's 8 key heads take 262,144 bytes a token; of 16 GPUs each holds a head: half of them are copies."""
    sizes = dict(hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
                 num_key_value_heads=8, vocab_size=152064)
    if tensor_parallel == 16:  # 40 heads are not divided by 16
        sizes |= dict(num_attention_heads=80, head_dim=128)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes}))
    model = plan.architecture(str(tmp_path))
    assert kv_bytes_per_token(model.shape) == 2 * 64 * 8 * 128 * 2 == 262_144
    cfg = recipe("tinyzero_grpo_7b", "--model", str(tmp_path), "--tensor_parallel", str(tensor_parallel),
                 "--max_num_seqs", "256", "--max_prompt_len", "1024", "--max_response_len", "15360")
    chosen = options("--gpus", "16", "--gpu_memory_gb", "80")
    size, found, _ = plan.kv_cache(model, cfg, chosen)
    assert size == pytest.approx(gb * 1e9) and found == room
    parts = plan.memory(cfg, model, None, chosen)["sampling"]
    assert parts["engine: KV cache"] == pytest.approx(28e9)
    assert parts["engine: weights"] == 2 * model.params / tensor_parallel


def test_what_does_not_fit_is_told_what_to_change_and_then_fits():
    for name, script, args in [
        ("tinyzero_grpo_7b", train_grpo, ["--gpus", "8", "--gpu_memory_gb", "40"]),
        ("deepscaler_24k", train_grpo, ["--gpus", "8", "--gpu_memory_gb", "12"]),
        ("simplerl_ppo", train_ppo, ["--gpus", "8", "--gpu_memory_gb", "48"]),
        ("open_r1_math7b", train_grpo, ["--gpus", "2", "--gpu_memory_gb", "80"]),
    ]:
        cfg, chosen = recipe(name, script=script), options(*args)
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
    small = [path, "--gpus", "8", "--gpu_memory_gb", "40"]
    bad = run_script("-m", "tools.plan", *small, cwd=tmp_path)
    assert bad.returncode == 1 and "DOES NOT FIT" in bad.stdout and "Traceback" not in bad.stderr
    changes = bad.stderr.strip().splitlines()[-1].partition("it does with ")[2].split()
    for argv in ([path, "--gpus", "8", "--gpu_memory_gb", "80"], [*small, *changes]):
        monkeypatch.setattr(sys, "argv", ["plan.py", *argv])
        assert changes and plan.main() is None  # returns: exit code 0
        said = capsys.readouterr().out
        assert "seconds a step" in said and "assumed, not measured: MFU 0.4" in said and "DOES NOT FIT" not in said


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_planned_without_a_network_or_says_why_not(name, monkeypatch):
    monkeypatch.setattr(plan, "hub_reachable", lambda: False)
    path = os.path.join(ROOT, "recipes", f"{name}.py")
    reasons = {"demo_sft": "neither for train_grpo.py nor for train_ppo.py", "demystify_ppo": "give --model",
               "demystify_ppo_sparse": "give --model"}
    if not os.path.exists(os.path.join(ROOT, "out/smollm2")):
        reasons["demo_smollm"] = "give --model"
    gpus = {"unsloth_gsm8k": "1", "demo_smollm": "2", "simplerl_ppo_32gpu": "32"}.get(name, "8")
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
    """One update, no reference: training alone; MFU 0.5 of 989 TFLOP/s."""
    cfg = recipe("tinyzero_grpo", "--kl_in", "none", "--checkpointing", "False", "--model", "Qwen/Qwen2.5-0.5B")
    chosen = options("--gpus", "8", "--mfu", "0.5", "--mean_response_len", "512", "--mean_prompt_len", "128")
    model = plan.architecture(cfg.model)
    found = plan.seconds(cfg, "train_grpo.py", model, None, chosen)
    spread = plan.response_lens(512, 1024, 24)
    flops = 3 * forward_flops(model.shape, [127 + n for n in spread], sum(spread))
    adam = 28 * model.params / 8 / (3.35e12 * 0.6)
    assert found["train"] == pytest.approx(flops / (989e12 * 0.5) + adam) and found["logprobs"] == 0
    chosen.agreeing = 0.75  # of four groups three go forward only: 0.25 + 0.75 / 3 = half of the work
    half = plan.seconds(dataclasses.replace(cfg, entropy_coef=0.0), "train_grpo.py", model, None, chosen)["train"]
    assert half == pytest.approx(flops / 2 / (989e12 * 0.5) + adam)
    all_learn = plan.seconds(dataclasses.replace(cfg, entropy_coef=0.01), "train_grpo.py", model, None, chosen)["train"]
    assert all_learn == pytest.approx(found["train"])
    with_ref = plan.seconds(dataclasses.replace(cfg, kl_in="loss_k3"), "train_grpo.py", model, None, chosen)
    assert with_ref["logprobs"] == pytest.approx(flops / 3 / (989e12 * 0.5))


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
    (["recipes/tinyzero_grpo.py", "--gpus", "3"], "divisible"),
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
    monkeypatch.setattr(plan, "hub_reachable", lambda: False)
    monkeypatch.setattr(sys, "argv", ["plan.py", *argv])
    with pytest.raises(ConfigError) as error:
        plan.main()
    assert message in str(error.value) and "\n" not in str(error.value)


KNOWN = {"Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
         "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-Math-7B": 7_615_616_512, "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
         "Llama-3.1-8B": 8_030_261_248}


@pytest.mark.parametrize("name", KNOWN)
def test_published_numbers_of_parameters(name):
    assert plan.architecture(name).params == KNOWN[name]


def test_a_config_that_is_none_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the config of a Llama-like model"):
        plan.architecture(str(tmp_path))


def test_what_a_config_leaves_out_has_the_default_of_its_class(tmp_path):
    """Gemma 2B: 2,506,172,416 parameters, its embeddings are its head; its config.json does not say so."""
    sizes = dict(vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
                 num_attention_heads=8, num_key_value_heads=1, head_dim=256)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma", **sizes}))
    assert plan.architecture(str(tmp_path)).params == 2_506_172_416


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
    monkeypatch.setattr(plan, "hub_reachable", lambda: False)
    with pytest.raises(ConfigError, match="could not be fetched"):
        plan.architecture(f"org/{name}")
    assert plan.architecture("meta-llama/Meta-Llama-3.1-8B-Instruct") == plan.architecture("Llama-3.1-8B")


def test_a_tensor_parallel_that_does_not_divide_the_heads_is_never_suggested():
    """28 heads: of 2, 4 and 8 parts the last is passed over. Its refusal would leave nothing to suggest."""
    tight = options("--gpus", "8", "--gpu_memory_gb", "20")
    changes = plan.suggest(recipe("tinyzero_grpo", "--model", "Qwen/Qwen2.5-7B"), "train_grpo.py", tight)
    assert changes["tensor_parallel"] == 4


def test_selective_recomputation_lies_between_all_and_nothing():
    """Qwen2.5-3B, 1,000 tokens in bf16, by hand: its products are 2 * 2048 + 2 * 256 + 2 * 2048 + 2 * 11008 wide."""
    model = plan.architecture("Qwen/Qwen2.5-3B")
    kept = {how: plan.micro_batch_memory(model, 1000, 2, how)["activations"] for how in (True, "selective", False)}
    assert kept[True] < kept["selective"] < kept[False]
    products = 2 * (2 * 2048 + 2 * 256 + 2 * 2048 + 2 * 11008) + 4 * 16
    assert kept["selective"] - kept[True] == 1000 * 36 * products


def test_a_recipe_that_needs_more_positions_than_the_model_has_is_refused(tmp_path):
    path = save_tiny_model(tmp_path / "model")  # 512 positions
    assert plan.architecture(path, 512).shape.layers == 2
    with pytest.raises(ConfigError, match="513 is more than the 512 positions"):
        plan.architecture(path, 513)
