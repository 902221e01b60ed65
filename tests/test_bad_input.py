"""python -m pytest tests/test_bad_input.py: what is wrong is said in one line, within seconds, before weights load."""

import json
import os
import re
import time

import pytest
from conftest import save_tiny_model
from test_end_to_end import train


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
]


@pytest.mark.parametrize("args, message", BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_stops_within_seconds_with_one_line(tied_model, tmp_path, args, message):
    start = time.monotonic()
    done = train(tmp_path, tied_model, *args, nproc=2 if "divisible" in message else None)
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
    assert len(re.findall(r"^error: .*", done.stderr, re.M)) >= 1
    if "divisible" not in message:  # torchrun adds its own report
        assert "Traceback" not in done.stderr and time.monotonic() - start < 120  # seconds; a busy machine may take more
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
