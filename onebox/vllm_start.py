"""
Start vLLM inside a torchrun process. Written against vLLM 0.32, public calls only except where a comment says so.
"""

import logging
import math
import os
import random

import numpy as np
import torch

from onebox import older
from onebox.distributed import gather, print0
from onebox.crash import CONTEXT, halve_cache, memory_of

# Before vllm is imported: the engine core in this process, and no pinning of the trainer's threads on CPU.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())  # it logs before it looks at its variable


@memory_of("the start of the engine", halve_cache)
def make_engine(path, *, config, dtype, prompt_len, response_len, max_num_seqs, kv_cache_gb, tensor_parallel, seed,
                rank, device, stop_strings=False, say=print0):
    """
    Start the one engine of the process, which training and evaluation use. Every rank must call this together (vLLM's
    start-up is a collective). kv_cache_gb 0: what max_num_seqs sequences of full length need. Logits are in fp32 as the
    trainer's are, where vLLM can; say() tells.
    """
    from vllm import LLM

    logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)  # after an error, all ids of a batch
    older.complete(LLM)
    on_cpu = device.type == "cpu"
    if on_cpu and tensor_parallel > 1:
        name_shared_memory(gather([os.urandom(8).hex()])[0])
    max_len = prompt_len + response_len
    need = kv_cache_bytes(config, max_num_seqs, max_len, dtype, tensor_parallel)
    limit = 4e9 if on_cpu else 0.35 * torch.cuda.get_device_properties(device).total_memory  # of each GPU
    kv_bytes = int(kv_cache_gb * 1e9 if kv_cache_gb else min(need, limit * tensor_parallel))
    CONTEXT["cache"] = kv_bytes / 1e9, kv_cache_bytes(config, 0, max_len, dtype, tensor_parallel) / 1e9  # of one

    # vLLM takes max_position_embeddings for what YaRN has stretched already; Qwen2.5's configs name what it was before
    stretched = max_len > (getattr(config, "max_position_embeddings", None) or max_len)
    overrides = {"max_position_embeddings": max_len} if stretched else {}
    more = {}
    if on_cpu:  # a prompt in several pieces needs a generator with an offset, which a CPU has not: never split one
        more = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, max_len)}
    if dtype != "float32":
        overrides["head_dtype"] = "float32"  # logits rounded to bf16 add to the mismatch with the trainer
    # LLM() reseeds every global generator, and overwrites variables of the environment: undo both
    rng = random.getstate(), np.random.get_state(), torch.get_rng_state()
    names = ("LOCAL_WORLD_SIZE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ[name] for name in names if name in os.environ}
    engine = LLM(
        model=path,
        tokenizer=path,
        skip_tokenizer_init=not stop_strings,  # ids in, ids out; only stop strings need text inside the engine
        dtype=dtype,
        distributed_executor_backend="external_launcher",
        tensor_parallel_size=tensor_parallel,
        seed=(seed * 1000003 + rank // tensor_parallel) % 2**31,  # equal inside a tensor-parallel group
        max_model_len=max_len,
        hf_overrides=overrides,
        max_num_seqs=max_num_seqs,
        kv_cache_memory_bytes=kv_bytes // tensor_parallel,  # vLLM counts it per GPU
        gpu_memory_utilization=0.92 if on_cpu else 0.01,  # else vLLM wants 92 % of the GPU free
        enforce_eager=on_cpu,  # CUDA graphs survive weight syncs: the weights are copied into the same storage
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",  # at the sampling temperature; the default would be at T = 1
        generation_config="vllm",  # do not take top_p and the like from the model's generation_config.json
        enable_sleep_mode=not on_cpu,  # raises on CPU
        disable_custom_all_reduce=True,  # its CUDA graphs cannot share expandable segments (distributed.py)
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **more,
    )
    random.setstate(rng[0])
    np.random.set_state(rng[1])
    torch.set_rng_state(rng[2])
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)
    if dtype != "float32":
        say(describe_head(getattr(engine.llm_engine.model_config, "head_dtype", None)))
    return engine


def name_shared_memory(start):
    """
    Add `start` to the name of the memory through which vLLM's CPU ranks meet. vLLM's own name is the same for every run
    of a machine: two runs would meet in it, and what a killed one left in /dev/shm would refuse the next. (not public)
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    name = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"{name(communicator)}-{start}")


def describe_head(head_dtype):
    if head_dtype == torch.float32:
        return "engine: logits in fp32, as the trainer's"
    rounded_to = str(head_dtype or "the dtype of the weights").removeprefix("torch.")
    return (f"engine: logits rounded to {rounded_to}, the trainer's are fp32: this vLLM cannot compute them so; "
            "mismatch_mean is the larger for it")


def kv_cache_bytes(config, num_seqs, max_len, dtype, tensor_parallel=1):
    """Count the KV cache's bytes for num_seqs sequences of max_len tokens, in blocks of 128, on an engine's GPUs."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    kv_heads = max(kv_heads, tensor_parallel)  # each GPU holds at least one
    per_token = 2 * config.num_hidden_layers * kv_heads * head_dim * (4 if dtype == "float32" else 2)
    return (num_seqs + 1) * (math.ceil(max_len / 128) + 1) * 128 * per_token
