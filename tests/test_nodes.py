"""
python -m pytest tests/test_nodes.py: several nodes, as two torchrun agents that meet over TCP on this machine.

Each agent is a node with one process: `--nnodes=2 --nproc-per-node=1`, weights sharded inside a node and replicated
across (`--shard_size 1`), one run directory on a file system that both see. Where the machine allows it, each agent
lives in a network namespace of its own, so that nothing passes but what passes over the network.
"""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import COLUMN, ROOT, run_script, share_of_the_way

TINY = [
    "--data", "tiny_countdown", "--template", "tiny_countdown", "--reward", "tinyzero_countdown", "--max_prompt_len",
    "16", "--max_response_len", "24", "--prompts_per_step", "4", "--group_size", "4", "--num_steps", "2",
    "--eval_prompts", "4", "--eval_samples", "1", "--checkpointing", "False", "--entropy_coef", "0.01",
    "--max_num_seqs", "16", "--lr", "3e-3", "--max_tokens_per_gpu", "200", "--report_every", "0"
]
NETS = ("onebox0", "onebox1")  # a pair of virtual interfaces, 10.77.0.1 and 10.77.0.2


@pytest.fixture
def namespaces():
    """Two network namespaces joined by a virtual cable -> their names, or () where that is not allowed here."""
    steps = [["ip", "netns", "add", NETS[0]], ["ip", "netns", "add", NETS[1]],
             [
                 "ip", "link", "add", "oneboxv0", "netns", NETS[0], "type", "veth", "peer", "name", "oneboxv1", "netns",
                 NETS[1]
    ]]
    for i, name in enumerate(NETS):
        inside = ["ip", "netns", "exec", name, "ip"]
        steps += [[*inside, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"oneboxv{i}"],
                  [*inside, "link", "set", f"oneboxv{i}", "up"], [*inside, "link", "set", "lo", "up"]]
    usable = shutil.which("ip") and all(subprocess.run(step, capture_output=True).returncode == 0 for step in steps)
    yield NETS if usable else ()
    if shutil.which("ip"):
        for name in NETS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_node(rank, folder, args, nets, port):
    """One torchrun agent; with namespaces it also gets the interface that gloo and the rendezvous must use."""
    head = "10.77.0.1" if nets else "127.0.0.1"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}",
               f"--master-addr={head}", f"--master-port={port}", os.path.join(ROOT, "train_grpo.py"), *args]
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1"}
    if nets:
        command = ["ip", "netns", "exec", nets[rank], *command]
        env |= {"GLOO_SOCKET_IFNAME": f"oneboxv{rank}", "VLLM_HOST_IP": f"10.77.0.{rank + 1}"}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_nodes_that_replicate_the_weights_train_as_one_process_does(tied_model, tmp_path, namespaces):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    args = [*TINY, "--model", tied_model]
    done = run_script(os.path.join(ROOT, "train_grpo.py"), *args, cwd=one)
    assert done.returncode == 0, done.stderr[-3000:]
    port = free_port()
    nodes = [start_node(rank, two, [*args, "--shard_size", "1"], namespaces, port) for rank in range(2)]
    for node in nodes:
        try:
            out, err = node.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            for other in nodes:
                other.kill()
            raise
        assert node.returncode == 0, err[-3000:]
    rows = []
    for folder in (one, two):
        with open(folder / "out/run/metrics.jsonl") as f:
            rows.append([json.loads(line) for line in f])
    assert [row["step"] for row in rows[1]] == [0, 1, 2]
    for a, b in zip(*rows, strict=True):
        for name in ("reward", "response_len", "entropy", "grad_norm", "loss", "eval_correct"):
            if a.get(name) is not None:
                assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)
    from safetensors.numpy import load_file

    start, a, b = (load_file(os.path.join(folder, "model.safetensors"))
                   for folder in (tied_model, one / "out/run/model", two / "out/run/model"))
    assert share_of_the_way(start, a, b) < 0.125  # as in test_end_to_end.py
