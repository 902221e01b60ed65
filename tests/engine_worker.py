"""
One rank of the engine tests: real vLLM beside a real FSDP2 policy. Prints one line of JSON on rank 0.

    torchrun --nproc-per-node=2 tests/engine_worker.py MODEL TENSOR_PARALLEL [unpacked]

unpacked: matrices as they are on a GPU, where vLLM's kernels read the weights in their own layout; a CPU packs them.
"""

import json
import os
import random
import sys
from collections import Counter

import numpy as np
import torch
from transformers import AutoConfig

import rollout
from conftest import full, laid_out_as
from onebox import engine_weights
from onebox.distributed import gather, init_distributed
from policy import load_policy, optimizer_step, pack, token_logprobs
from rollout import generate, hf_stream, make_engine, sync_weights, wake_and_sync

path, tensor_parallel = sys.argv[1], int(sys.argv[2])
if sys.argv[3:] == ["unpacked"]:
    from vllm.model_executor.layers import utils

    def unpacked(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = unpacked
    engine_weights.load.__defaults__ = (("cpu",),)  # kinds of devices that take the straight way
rank, world, device = init_distributed()
config = AutoConfig.from_pretrained(path)
policy = load_policy(path, device, "float32")
optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-2)
random.seed(7)
np.random.seed(7)
torch.manual_seed(7)
before = random.random(), np.random.rand(), torch.rand(1).item()
random.seed(7)
np.random.seed(7)
torch.manual_seed(7)
local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
left_behind = "/dev/shm/-tp:0-[0-1]-cpushm_0"  # as a run that was killed leaves it
made = rank == 0 and tensor_parallel > 1 and not os.path.exists(left_behind)
if made:
    open(left_behind, "wb").close()
engine = make_engine(path, config=config, dtype="float32", prompt_len=200, response_len=40, max_num_seqs=32,
                     kv_cache_gb=0, tensor_parallel=tensor_parallel, seed=0, rank=rank, device=device)
report = {"rng_untouched": before == (random.random(), np.random.rand(), torch.rand(1).item()),
          "local_world_size_untouched": local_world_size == os.environ.get("LOCAL_WORLD_SIZE")}

TEMPERATURE = 0.7
prefix = [5 + i % 90 for i in range(160)]  # longer than a cache block: a stale prefix cache would show
prompts = [(i, prefix + [10 + i]) for i in range(4)]
group = rank // tensor_parallel


OPTIONS = dict(temperature=TEMPERATURE, max_tokens=24, stop_ids=[1], deadline_s=600, vocab_size=config.vocab_size)


def requests_of(prompts, seeds):
    return [(i, k, ids, seed) for (i, ids), own in zip(prompts, seeds, strict=True) for k, seed in enumerate(own)]


def sample(version, seeds=None, prompts=prompts, **kw):
    seeds = seeds or [[1000 * group + 10 * i + k for k in range(3)] for i in range(len(prompts))]
    found = list(generate(engine, requests_of(prompts, seeds), version=version, **(OPTIONS | kw)))
    return sorted(found, key=lambda r: (r.prompt, r.sample))


def ids_of(rollouts):
    assert all(r.response_ids.dtype == r.prompt_ids.dtype == np.int32 for r in rollouts)
    return [r.response_ids.tolist() for r in rollouts]


def gap(rollouts, temperature=TEMPERATURE):
    """|engine - trainer| log-prob over all ranks -> largest, mean."""
    worst, total, count = 0.0, 0.0, 0
    for batch in pack(rollouts, range(len(rollouts)), 4096, 0, 1, device):
        with torch.no_grad():
            logprobs, _ = token_logprobs(policy, batch, temperature)
        difference = (logprobs - batch.rollout_logprobs).abs()
        worst = max(worst, difference.max().item())
        total, count = total + difference.sum().item(), count + len(difference)
    ranks = gather([(worst, total, count)])
    return max(w for w, _, _ in ranks), sum(t for _, t, _ in ranks) / sum(c for _, _, c in ranks)


def update():
    """Move every tensor, embeddings and head included."""
    generator = torch.Generator().manual_seed(random.Random(len(report)).randint(0, 9999))
    for p in policy.parameters():
        p.grad = laid_out_as(p, torch.randn(p.shape, generator=generator))
    optimizer_step(policy, optimizer, 3e-2, grad_clip=0)


gaps, rollouts = [], None
for step in range(4):
    wake_and_sync(policy.hf, engine, torch.float32, step, device)
    rollouts = sample(step)
    gaps.append(gap(rollouts))
    update()
report["gaps"] = gaps


def memory_of_engine(worker):
    """Its parameters and buffers, in copies."""
    model = worker.model_runner.get_model()
    return {name: t.clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


# negative twins: each trap must show, or the test above could not see it
wake_and_sync(policy.hf, engine, torch.float32, 4, device)
report["places"] = sorted(engine.collective_rpc(lambda worker: getattr(worker, "places", {}))[0])
straight = engine.collective_rpc(memory_of_engine)[0]
engine.collective_rpc(engine_weights.reload, args=(hf_stream(policy.hf, torch.float32),))
by_vllm = engine.collective_rpc(memory_of_engine)[0]
report["as_reloaded"] = straight.keys() == by_vllm.keys() and all(torch.equal(straight[k], by_vllm[k]) for k in by_vllm)
rollouts = sample(4)
report["gap_without_temperature"] = gap(rollouts, 1.0)
update()
report["gap_without_sync"] = gap(sample(4))
engine.collective_rpc("reload_weights", kwargs={"weights_iterator": hf_stream(policy.hf, torch.float32)})
report["gap_without_cache_reset"] = gap(sample(4))
wake_and_sync(policy.hf, engine, torch.float32, 5, device)
update()
named = ((n, full(p)) for n, p in policy.hf.named_parameters())
engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
engine.reset_prefix_cache()
report["gap_with_named_parameters"] = gap(sample(5))
wake_and_sync(policy.hf, engine, torch.float32, 6, device)
report["gap_after_recovery"] = gap(sample(6))

# the seed alone decides a sample
first = sample(6)
one = sample(6, prompts=prompts[2:3], seeds=[[1000 * group + 20 + 1]])
report["alone_as_in_a_batch"] = ids_of(one) == ids_of(first)[2 * 3 + 1:][:1]
report["distinct_samples"] = len(set(map(tuple, ids_of(first)))) / len(first)
everyone = gather([ids_of(first)])
report["ranks_differ"] = everyone[0] != everyone[-1]

# stop and length; the stop token is in the response exactly once, and never added
report["eos_only_at_the_end"] = all(
    (1 in r.response_ids[-1:]) == (r.finish_reason == "stop") and 1 not in r.response_ids[:-1] for r in first)
report["finish_reasons"] = sorted({r.finish_reason for r in first})

# a step of the engine that fails once: asked again with the same seeds, in two halves, the same tokens
core, calls = engine.llm_engine, []
real_step = core.step


def failing_step():
    calls.append(1)
    if len(calls) == 8:
        raise RuntimeError("planted")
    return real_step()


core.step = failing_step
if tensor_parallel == 1:
    again = sample(6)
    report["after_a_failed_step"] = ids_of(again) == ids_of(first)
core.step = real_step


def circles(ids):
    """Tell whether ids hold a pattern twice in a row, as greedy decoding of a random model does."""
    return any(ids[end - 2 * m:end - m] == ids[end - m:end]
               for end in range(2, len(ids) + 1) for m in range(1, end // 2 + 1))


free, loops = sample(6, temperature=0.0, max_tokens=40), sample(6, temperature=0.0, max_tokens=40, repetition_stop=2)
report["repetition"] = [[r.finish_reason == "repetition" for r in loops], [circles(ids) for ids in ids_of(free)],
                        all(r.truncated for r in loops if r.finish_reason == "repetition")]


def sample_until_a_group_is_complete():
    finished, found = Counter(), []
    for r in generate(engine, requests_of(prompts, [[1000 * group + 10 * i + k for k in range(3)] for i in range(4)]),
                      version=6, enough=lambda: 3 in finished.values(),
                      **(OPTIONS | {"stop_ids": list(range(1, 40))})):  # lengths vary
        finished[r.prompt] += not r.dropped
        found.append(r)
    return found


# enough: once a group of three is complete, the others are cut off; the engine goes on without them
cut, same = sample_until_a_group_is_complete(), sample_until_a_group_is_complete()
report["enough"] = [*([(r.prompt, r.sample, ids, r.dropped) for r, ids in zip(one, ids_of(one), strict=True)]
                      for one in (cut, same)), sorted({r.finish_reason for r in cut}),
                    engine.llm_engine.has_unfinished_requests(),
                    len(cut) == 12 and all(len(r.rollout_logprobs) == len(r.response_ids) for r in cut)]
report["after_enough"] = ids_of(sample(6)) == ids_of(first)

# the clock: everything comes back, cut off, with as many log-probs as tokens; the engine goes on
cut = sample(6, deadline_s=0.0)
report["deadline"] = [len(cut), sorted({r.finish_reason for r in cut}),
                      all(len(r.rollout_logprobs) == len(r.response_ids) for r in cut)]
# more tokens of new prompts than vLLM takes into one step: none of them may be split, as a CPU generator has no offset
many = [(i, [5 + (7 * i + j) % 90 for j in range(190)]) for i in range(32)]
asked_again, rollout.visible = [], lambda text: asked_again.append(text) or text  # what a retry prints
report["many_long_prompts"] = [len(sample(6, seeds=[[i] for i in range(32)], prompts=many)), len(asked_again)]
report["gap_after_deadline"] = gap(sample(6))


def refusal(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)


# a tensor that does not arrive: one by itself, a part of a fused one, the head
report["left_out"] = {}
for name in ("model.norm.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"):
    rollout.hf_stream = lambda *args, name=name: ((n, w) for n, w in hf_stream(*args) if n != name)
    report["left_out"][name] = refusal(lambda: sync_weights(policy.hf, engine, torch.float32, 6))
rollout.hf_stream = hf_stream
sync_weights(policy.hf, engine, torch.float32, 6)
report["gap_after_left_out"] = gap(sample(6))


report["bad_id"] = refusal(lambda: sample(6, prompts=[(0, [5, 5000])]))
report["bad_version"] = refusal(lambda: sample(99))
report["gap_after_refusals"] = gap(sample(6))
with torch.no_grad():
    policy.hf.model.norm.weight.fill_(float("nan"))
sync_weights(policy.hf, engine, torch.float32, 7)
report["nan"] = refusal(lambda: sample(7))
if made:
    os.remove(left_behind)
if rank == 0:
    print("REPORT " + json.dumps(report), flush=True)
