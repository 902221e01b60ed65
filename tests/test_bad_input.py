"""python -m pytest tests/test_bad_input.py: what is wrong is said in one line, within seconds, before weights load."""

import json
import os
import re

import pytest
from conftest import save_tiny_model
from runs import Server
from test_end_to_end import TINY, train


def test_held_out_rows_that_are_training_rows_are_refused(tied_model, tmp_path):
    with open(tmp_path / "rows.jsonl", "w") as f:
        f.writelines(json.dumps({"nums": [1, 2, n], "target": 3 + n}) + "\n" for n in range(1, 9))
    done = train(tmp_path, tied_model, "--data_path", "rows.jsonl", "--data", "countdown", nproc=None)
    assert done.returncode != 0 and "of the 6 held-out prompts are training prompts" in done.stderr, done.stderr[-500:]


BAD = [
    (["--grop_size", "4"], "did you mean 'group_size'"),
    (["--lr", "fast"], "lr wants float"),
    (["--top_p", "0.9"], "top_p"),
    (["--prompts_per_step", "3"], "prompts_per_step = 3 is not divisible by the 2 engines"),
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
    done = server.run(tmp_path / "at", "train_grpo.py", [*TINY, "--model", tied_model, *args], timeout=60)
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
