"""python -m pytest tests/test_bad_input.py: what is wrong is said in one line, within seconds, before weights load."""

import contextlib
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORDS, change_json, save_tiny_kind, save_tiny_model
from runs import Server, write_examples
from test_end_to_end import TINY, train

import rewards
import rollout
from onebox.distributed import Clock
from onebox.config import ConfigError
from onebox.models import resolve_model, token_bound


def test_held_out_rows_that_are_training_rows_are_refused(tied_model, tmp_path):
    with open(tmp_path / "rows.jsonl", "w") as f:
        f.writelines(json.dumps({"nums": [1, 2, n], "target": 3 + n}) + "\n" for n in range(1, 9))
    done = train(tmp_path, tied_model, "--data_path", "rows.jsonl", "--data", "countdown", nproc=None)
    assert done.returncode != 0 and "of the 6 held-out prompts are training prompts" in done.stderr, done.stderr[-500:]


BAD = [
    (["--grop_size", "4"], "did you mean 'group_size'"),
    (["--lr", "fast"], "lr wants float"),
    (["--top_p", "0.9"], "top_p"),
    (["--prompts_per_step", "3", "--group_size", "3"], "prompts_per_step = 3 is not divisible by the 2 engines"),
    (["--tensor_parallel", "0"], "tensor_parallel = 0 must be greater than 0"),
    (["--name", "../elsewhere"], "must be a plain directory name"),
    (["--model", "out/nothing"], "model directory 'out/nothing' is not there"),
    (["--model", "no-such-org/no-such-model"], "could not be fetched"),
    (["--max_prompt_len", "3"], "prompt of more than 3 tokens"),
    (["--reward", "tinyzero_countdwn"], "did you mean 'tinyzero_countdown'"),
    (["--template", "tiny_countdwn"], "tiny_countdown"),
    (["--data", "tiny_countdwn"], "tiny_countdown"),
    (["--max_response_len", "5000"], "more than the 512 positions"),
    (["--compile", "True", "--checkpointing", "selective"], "set checkpointing to True or False"),
]


@pytest.fixture(scope="module")
def server():
    """Forks of one process that has imported everything: the imports take most of such a start."""
    server = Server()
    yield server
    server.close()


ALONE = [case for case in BAD if "divisible" not in case[1]]


@pytest.mark.parametrize("args, message", ALONE, ids=[" ".join(args) for args, _ in ALONE])
def test_bad_input_stops_with_one_line(server, tied_model, tmp_path, args, message):
    done = server.run(tmp_path / "at", "train_grpo.py", [*TINY, "--model", tied_model, *args])
    of_data = args[0] in ("--data", "--max_prompt_len")  # exit code 2, docs/faults.md
    assert done.returncode == 1 + of_data and message in done.stderr, done.stderr[-2000:]
    assert len(re.findall(r"^error: .*", done.stderr, re.M)) == 1 and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["at"] and not os.path.exists(tmp_path / "at" / "out" / "run")


def test_bad_input_of_two_processes_ends_both(tied_model, tmp_path):
    args, message = next(case for case in BAD if "divisible" in case[1])
    done = train(tmp_path, tied_model, *args, nproc=2)
    assert done.returncode != 0 and message in done.stderr and re.search(r"^error: .*", done.stderr, re.M)
    assert not os.path.exists(tmp_path / "out" / "run")


def test_a_model_without_weights_is_refused(tmp_path):
    path = save_tiny_model(tmp_path / "model")
    os.remove(os.path.join(path, "model.safetensors"))
    done = train(tmp_path, path, nproc=None)
    assert done.returncode != 0 and "has no weights" in done.stderr and "Traceback" not in done.stderr
    assert not os.path.exists(tmp_path / "out")


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    path = save_tiny_model(tmp_path / "model")
    file = os.path.join(path, "tokenizer_config.json")
    with open(file) as f:
        settings = json.load(f)
    settings.pop("eos_token")
    with open(file, "w") as f:
        json.dump(settings, f)
    for name in ("special_tokens_map.json",):
        if os.path.exists(os.path.join(path, name)):
            os.remove(os.path.join(path, name))
    done = train(tmp_path, path)
    assert done.returncode != 0 and "has no EOS token" in done.stderr


def edit(folder, name, **change):
    file = os.path.join(folder, name)
    with open(file) as f:
        content = json.load(f)
    with open(file, "w") as f:
        json.dump({k: v for k, v in {**content, **change}.items() if v != "gone"}, f)


EOS = [  # eos_token_id of config.json, generation_config.json ("none": no such file), the ids at which a response ends
    (1, {"eos_token_id": [1, 3]}, [1, 3], ""), ([1, 3], "none", [1, 3], ""), (3, "none", [1, 3], ""),
    ("gone", "none", [1], ""),
    ([1, 3], {}, [1, 3], ""), ([1, 3], {"eos_token_id": 5}, [1, 5], ""), (None, "none", [1], ""),
    (1, {"eos_token_id": [1, 999]}, [1], "999"), (1, {"eos_token_id": -1}, [1], "-1"),
    (1, {"eos_token_id": 128}, [1], "128"),
    (1, {"eos_token_id": "</s>"}, [1], "'</s>'"), (1, {"eos_token_id": [True, 1.0, 4]}, [1, 4], "True, 1.0"),
    (1, {"eos_token_id": [4, None]}, [1, 4], ""), ([-1, 7], "none", [1, 7], "-1"),
]


@pytest.mark.parametrize("eos, generation, ids, left_out", EOS)
def test_a_response_ends_at_the_ids_that_transformers_and_vllm_read(tmp_path, capsys, eos, generation, ids, left_out):
    path = save_tiny_model(tmp_path / "model", layers=1)
    edit(path, "config.json", eos_token_id=eos)
    os.remove(os.path.join(path, "generation_config.json"))
    if generation != "none":
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation))
    assert resolve_model(path, 32)[3] == ids
    said = capsys.readouterr().out
    assert f"holds {left_out}, which is no id of its 128 tokens: left out\n" in said if left_out else said == ""


@pytest.mark.parametrize("text, message", [
    ("", "is empty"), ('{"eos_token_id": [1,', "cannot be used"), ("[1]", "cannot be used"), ("null", "cannot be used"),
    ('{"early_stopping": "maybe"}', "early_stopping"), ('{"num_return_sequences": 4}', "num_return_sequences"),
    ('{"compile_config": {"mode": "x"}}', "compile_config"), ("\xff\xfe", "cannot be used"),
])
def test_a_broken_generation_config_is_one_line(tmp_path, text, message):
    path = save_tiny_model(tmp_path / "model", layers=1)
    (tmp_path / "model" / "generation_config.json").write_text(text, encoding="latin1")
    line = r"^error: [^\n]*: its generation_config.json [^\n]*: fetch it again, or repair it$"
    with pytest.raises(ConfigError, match=line) as error:
        resolve_model(path, 32)
    assert message in str(error.value)


def sparse_tokenizer(path, highest):
    """60 words, whose <eos> has the id `highest`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(WORDS[:60]) if word != "<eos>"} | {"<eos>": highest}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>",
                                        auto_map={"AutoTokenizer": [None, None]})
    tokenizer.save_pretrained(path)
    return tokenizer


def test_ids_with_gaps_are_bounded_by_the_highest_not_by_their_number(tmp_path):
    path = save_tiny_model(tmp_path / "model", layers=1)
    sparse_tokenizer(path, 120)
    tokenizer = resolve_model(path, 32)[2]
    assert len(tokenizer) == 60 and token_bound(tokenizer) == 121
    sparse_tokenizer(path, 128)
    with pytest.raises(ConfigError, match="has ids up to 128, its model only 128 tokens"):
        resolve_model(path, 32)


def test_a_high_id_ends_a_response_and_an_unknown_one_does_not(tmp_path, monkeypatch, one_process):
    tokenizer, cpu = sparse_tokenizer(tmp_path, 120), torch.device("cpu")
    made = [rollout.Rollout(0, k, [2], ids, np.zeros(len(ids)), "stop")
            for k, ids in enumerate(([8, 120], [8, 121, 120]))]
    monkeypatch.setattr(rollout, "generate", lambda *_, **__: made)
    monkeypatch.setattr(rollout, "make_engine", lambda *_, **__: None)
    engine = rollout.Engine("", tokenizer, [120], config=SimpleNamespace(vocab_size=128), dtype="float32", device=cpu,
                            clock=Clock(cpu), prompt_len=4, response_len=8, max_num_seqs=2, kv_cache_gb=0,
                            tensor_parallel=1,
                            seed=0, deadline_s=9)
    scorer = rewards.Scorer()
    prompt = SimpleNamespace(ids=(2,), source="s", uid="u", text="?", reward="verl_gsm8k", answer="3", row={})
    ended, unknown = engine.sample([prompt], [[0, 1]], scorer, 1.0)
    scorer.close()
    assert not ended.phantom and ended.score.flags == frozenset()
    assert unknown.phantom and unknown.score.flags == {"phantom_ids"} and unknown.score.total == 0


def changed(folder, file="config.json", **values):
    """A tiny model with other keys in one of its files; None takes a key out."""
    path = save_tiny_model(folder)
    change_json(os.path.join(path, file), **values)
    return path


WINDOW = dict(use_sliding_window=True, layer_types=["sliding_attention"] * 2)
YARN = dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})


@pytest.mark.parametrize("values, need_len, said", [
    (YARN, 2048, ""),
    (YARN, 2049, "more than the 2048 positions"),
    ({}, 513, "with rope_scaling (yarn)"),
    (dict(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), 26, "contains custom code"),
    (dict(auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Qwen2ForCausalLM"}), 26,
     ""),  # a copy of it
    (dict(auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}), 26,
     "has the architecture Model"),
    (dict(num_attention_heads="two"), 26, "its config.json does not load"),
    ({**WINDOW, "sliding_window": 25}, 26, "sliding window of 25"),
    ({**WINDOW, "sliding_window": 26}, 26, ""),
    (dict(model_type="qwen2_moe"), 26, "mixture of experts"),
])
def test_a_config_is_taken_or_refused_in_one_line_and_nobody_is_asked(values, need_len, said, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    path = changed(tmp_path, **values)
    with contextlib.nullcontext() if not said else pytest.raises(ConfigError) as error:
        resolve_model(path, need_len)
    assert not said or said in str(error.value) and "\n" not in str(error.value)


def test_code_of_the_tokenizer_is_not_asked_for_either(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    path = save_tiny_kind(tmp_path, "llama")
    change_json(os.path.join(path, "tokenizer_config.json"), auto_map={"AutoTokenizer": ["mine.Tokenizer", None]},
                tokenizer_class="Mine")
    with pytest.raises(ConfigError, match="its tokenizer does not load: .*custom code"):
        resolve_model(path, 26)


@pytest.mark.parametrize("left", ["nothing", "tokenizer_config.json"])
def test_a_directory_without_a_tokenizer_is_told_so(left, tmp_path):
    path = save_tiny_model(tmp_path)
    for name in os.listdir(path):
        if "token" in name and name != left:
            os.remove(os.path.join(path, name))
    with pytest.raises(ConfigError, match="has no tokenizer: there is none of tokenizer.json"):
        resolve_model(path, 26)


@pytest.mark.parametrize("tensor_parallel, said", [(1, ""), (2, ""), (3, "does not divide the 4 attention heads"),
                                                   (4, "does not divide the 98 rows")])
def test_heads_and_rows_are_cut_into_whole_parts(tensor_parallel, said, tmp_path):
    path = save_tiny_kind(tmp_path, "qwen2", num_attention_heads=4, num_key_value_heads=2, intermediate_size=98)
    with contextlib.nullcontext() if not said else pytest.raises(ConfigError, match=said):
        resolve_model(path, 26, tensor_parallel=tensor_parallel)


@pytest.mark.parametrize("kind, plain", [("lfm2", True), ("qwen3_moe", True), ("gemma3", False), ("mamba", False)])
def test_what_only_the_engine_computes_is_evaluated_if_plain(kind, plain, tmp_path):
    path = save_tiny_kind(tmp_path, "llama")
    more = {"layer_types": ["conv", "full_attention"]} if kind == "lfm2" else {}
    if not plain:
        more = dict.fromkeys(["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
    change_json(os.path.join(path, "config.json"), model_type=kind, architectures=None, **more)
    with pytest.raises(ConfigError, match="does not train"):
        resolve_model(path, 26)
    with contextlib.nullcontext() if plain else pytest.raises(ConfigError, match="no plain language model"):
        resolve_model(path, 26, trained=False)


HYBRID = dict(layer_types=["linear_attention", "full_attention"])


@pytest.mark.parametrize("script, args", [("train_grpo.py", []), ("train_ppo.py", []), ("train_grpo.py", ["--check"]),
                                          ("sft.py", [])])
def test_a_hybrid_is_refused_before_there_is_a_run(server, tmp_path, script, args):
    path = changed(tmp_path / "model", **HYBRID)
    write_examples(tmp_path / "at")
    settings = ["--data", "d.jsonl", "--num_steps", "1"] if script == "sft.py" else TINY
    done = server.run(tmp_path / "at", script, [*settings, "--model", path, *args])
    assert done.returncode == 1 and "has layers of type linear_attention" in done.stderr, done.stderr[-2000:]
    assert len(re.findall(r"^error: .*", done.stderr, re.M)) == 1 and "Traceback" not in done.stderr
    assert not os.path.exists(tmp_path / "at" / "out")


def test_sft_takes_a_window_that_its_examples_do_not_reach(server, tmp_path):
    """An example is six words, then six and EOS: 13 tokens."""
    for window in (13, 12):
        path = changed(tmp_path / f"model{window}", **WINDOW, sliding_window=window)
        write_examples(tmp_path / f"at{window}")
        done = server.run(tmp_path / f"at{window}", "sft.py",
                          ["--data", "d.jsonl", "--num_steps", "1", "--tokens_per_step", "60",
                                                               "--model", path])
        assert (done.returncode == 0) == (window == 13), done.stderr[-2000:]
        assert window == 13 or "sliding window of 12 tokens" in done.stderr


def test_a_critic_that_is_not_computed_is_refused_by_check_too(server, tied_model, tmp_path):
    path = changed(tmp_path / "critic", **HYBRID)
    done = server.run(tmp_path / "at", "train_ppo.py",
                      [*TINY, "--model", tied_model, "--critic_model", path, "--check"])
    assert done.returncode == 1 and "has layers of type linear_attention" in done.stderr, done.stderr[-2000:]
