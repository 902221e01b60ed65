"""python -m pytest tests/test_policy.py: packing, attention, log-probabilities, gradients; models that are refused."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (LOGPROB, RELATIVE, change_json, full, master, run_script, save_tiny_kind, save_tiny_model,
                      tiny_config)
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from onebox import checkpoint, fused_logprobs, models
from onebox.config import ConfigError
from onebox.masters import on_device
from onebox.models import resolve_model
from policy import (check_compile, load_critic, load_policy, make_adam, optimizer_step, pack, token_logprobs,
                    token_values, trained_logprobs)
import train_grpo
import train_ppo
from onebox.metrics import StepStats
from train_grpo import policy_loss, token_weights


def make_rollouts(seed=0, prompt_lens=(3, 9, 5, 5, 2), response_lens=(4, 1, 11, 30, 7)):
    rng = np.random.default_rng(seed)
    return [SimpleNamespace(prompt_ids=rng.integers(2, 100, p).tolist(), response_ids=rng.integers(2, 100, r).tolist(),
                            rollout_logprobs=np.zeros(r, np.float32))
            for p, r in zip(prompt_lens, response_lens, strict=True)]


def need_compiler(needed=True):
    if needed and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile needs g++")


def plain_logprobs(path, rollout, temperature):
    """The plain twin: one sequence, the whole logits, log_softmax. -> logprobs, entropy of the response tokens."""
    hf = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([list(rollout.prompt_ids) + list(rollout.response_ids)])
    logp = (hf(ids).logits[0, :-1].float() / temperature).log_softmax(-1)[len(rollout.prompt_ids) - 1:]  # (r, V)
    targets = torch.tensor(rollout.response_ids)
    return logp.gather(-1, targets[:, None])[:, 0].detach(), -(logp.exp() * logp).sum(-1).detach()


def logprobs_of(policy, rollouts, device, temperature=1.0, max_tokens=1000):
    """{rollout index: (logprobs, entropy)} through packing."""
    found = {}
    for batch in pack(rollouts, range(len(rollouts)), max_tokens, 0, 1, device):
        logprobs, entropy = token_logprobs(policy, batch, temperature)
        for i in batch.response_index.unique().tolist():
            mask = batch.response_index == i
            found[i] = logprobs[mask].detach(), entropy[mask].detach()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_tokens", [1000, 40, 1])
def test_packed_logprobs_and_entropy_equal_those_of_single_sequences(tied_model, one_process, temperature, max_tokens):
    policy = load_policy(tied_model, one_process[2], "float32")
    rollouts = make_rollouts()
    got = logprobs_of(policy, rollouts, one_process[2], temperature, max_tokens)
    for i, rollout in enumerate(rollouts):
        want = plain_logprobs(tied_model, rollout, temperature)
        assert torch.allclose(got[i][0], want[0], atol=LOGPROB), (i, (got[i][0] - want[0]).abs().max())
        assert torch.allclose(got[i][1], want[1], atol=LOGPROB)
    without = plain_logprobs(tied_model, rollouts[3], 1.0)[0]
    if temperature != 1.0:  # the trap: log-probs without the division by the temperature are far off
        assert (got[3][0] - without).abs().max() > 500 * LOGPROB  # 4.5


def test_a_packed_sequence_does_not_see_its_neighbours(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    rollouts = make_rollouts()
    before = logprobs_of(policy, rollouts, one_process[2])
    rollouts[3].response_ids = [(t + 7) % 100 for t in rollouts[3].response_ids]
    rollouts[3].prompt_ids = [(t + 7) % 100 for t in rollouts[3].prompt_ids]
    after = logprobs_of(policy, rollouts, one_process[2])
    for i in (0, 1, 2, 4):
        assert torch.equal(before[i][0], after[i][0])
    assert (before[3][0] - after[3][0]).abs().max() > 500 * LOGPROB


def test_packing_keeps_every_response_token_once_and_balances_micro_batches():
    rollouts = make_rollouts(prompt_lens=[5] * 40, response_lens=list(range(1, 41)))
    batches = [pack(rollouts, range(40), 120, rank, 2, "cpu") for rank in range(2)]
    assert len(batches[0]) == len(batches[1])
    seen, sizes = {}, []
    for batch in (b for part in batches for b in part):
        sizes.append(len(batch.ids))
        assert len(batch.ids) <= 120 and batch.cu_lens.tolist() == np.cumsum([0] + batch.lens).tolist()
        for i in batch.response_index.unique().tolist():
            seen[i] = batch.targets[batch.response_index == i].tolist()
    assert seen == {i: r.response_ids for i, r in enumerate(rollouts)}
    assert max(sizes) - min(sizes) <= 20


def test_a_rank_without_work_gets_one_token_that_weighs_nothing():
    parts = [pack(make_rollouts()[:1], [0], 100, rank, 2, "cpu") for rank in range(2)]
    assert [len(p) for p in parts] == [1, 1]
    empty = parts[1][0] if len(parts[0][0].targets) else parts[0][0]
    assert len(empty.ids) == 1 and len(empty.targets) == 0


@pytest.mark.parametrize("needs_grad", [None, [True] * 40, [False] * 40, [i % 3 == 0 for i in range(40)]])
def test_the_mask_decides_which_responses_need_a_backward(needs_grad):
    """Micro-batches with a gradient come first, none mixes the two; kinds and loads agree on all ranks."""
    rollouts = make_rollouts(prompt_lens=[5] * 40, response_lens=list(range(1, 41)))
    mask = None if needs_grad is None else torch.tensor(needs_grad)
    ranks = [pack(rollouts, torch.arange(40), 120, rank, 2, "cpu", mask) for rank in range(2)]
    seen = {}
    for pair in zip(*ranks, strict=True):
        loads = [sum(b.lens) for b in pair]
        for batch in pair:
            assert batch.needs_grad == pair[0].needs_grad
            assert (batch.tokens_of_all, batch.tokens_of_fullest) == (sum(loads), max(loads))
            seen |= dict.fromkeys(batch.response_index.unique().tolist(), batch.needs_grad)
    assert seen == dict(enumerate(needs_grad or [True] * 40))
    kinds = [batch.needs_grad for batch in ranks[0]]
    assert kinds == sorted(kinds, reverse=True)


def test_a_long_response_without_gradient_lifts_no_limit_of_those_with_one():
    rollouts = make_rollouts(prompt_lens=[1] * 5, response_lens=[400, 50, 50, 50, 50])
    batches = pack(rollouts, range(5), 100, 0, 1, "cpu", torch.tensor([False, True, True, True, True]))
    assert [(batch.needs_grad, sum(batch.lens)) for batch in batches] == [(True, 100), (True, 100), (False, 400)]


def test_a_one_token_prompt_has_its_first_response_token_scored():
    rollout = SimpleNamespace(prompt_ids=[5], response_ids=[6, 7], rollout_logprobs=[0, 0])
    (batch,) = pack([rollout], [0], 10, 0, 1, "cpu")
    assert batch.logit_index.tolist() == [0, 1] and batch.targets.tolist() == [6, 7]


def test_a_share_of_the_responses_without_gradient_gets_a_pass_and_stands_for_all_of_them():
    """
    40 responses of 1 ... 40 tokens, every fourth learns. Of the 30 others, longest first, the 6th, 16th and 26th get a
    pass at a share of a tenth, and the last two, which samples/ shows.
    """
    rollouts = make_rollouts(prompt_lens=[5] * 40, response_lens=list(range(1, 41)))
    needs = torch.arange(40) % 4 == 0
    silent = [i for i in range(39, -1, -1) if i % 4]

    def passes(share, always=(), needs=needs):
        batches = pack(rollouts, torch.arange(40), 120, 0, 1, "cpu", needs, share, always)
        return batches, {i for batch in batches if not batch.needs_grad for i in batch.response_index.tolist()}

    batches, found = passes(0.1, range(38, 40))
    assert found == {silent[5], silent[15], silent[25], 38, 39}
    stood = sum(len(batch.targets) * batch.stands_for for batch in batches if not batch.needs_grad)
    assert stood == pytest.approx(sum(i + 1 for i in range(40) if i % 4))  # all their tokens
    assert {batch.stands_for for batch in batches if batch.needs_grad} == {1.0}
    assert {i for b in batches if b.needs_grad for i in b.response_index.tolist()} == set(range(0, 40, 4))
    last = [batch.ends_update for batch in batches if batch.needs_grad]
    assert last == [False] * (len(last) - 1) + [True] and not any(b.ends_update for b in batches if not b.needs_grad)
    assert passes(1.0)[1] == set(silent) and passes(0.0)[1] == set()
    nothing = torch.zeros(40, dtype=torch.bool)
    assert len(passes(0.001, needs=nothing)[1]) == 1  # a canary needs something to see
    (batch,), found = passes(0.0, needs=nothing)
    assert found == set() and len(batch.ids) == 1 and batch.stands_for == 1.0  # a dummy token


def test_ids_may_be_lists_or_arrays_and_no_token_is_lost_or_moved():
    """By hand: 3 + 4 and 2 + 1 tokens, longest first, each without its last token."""
    rollouts = [SimpleNamespace(prompt_ids=[7, 8], response_ids=[9], rollout_logprobs=[-0.5]),
                SimpleNamespace(prompt_ids=np.array([1, 2, 3], np.int32), response_ids=np.array([4, 5, 6, 1], np.int32),
                                rollout_logprobs=np.array([-1, -2, -3, -4], np.float32))]
    (batch,) = pack(rollouts, range(2), 100, 0, 1, "cpu")
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.lens == [6, 2] and batch.cu_lens.tolist() == [0, 6, 8] and batch.cu_lens.dtype == torch.int32
    assert batch.logit_index.tolist() == [2, 3, 4, 5, 7] and batch.targets.tolist() == [4, 5, 6, 1, 9]
    assert batch.response_index.tolist() == [1, 1, 1, 1, 0]
    assert batch.rollout_logprobs.tolist() == [-1, -2, -3, -4, -0.5]
    assert {x.dtype for x in (batch.ids, batch.positions, batch.logit_index, batch.targets)} == {torch.int64}


def test_an_update_without_a_response_is_one_empty_micro_batch_on_every_rank():
    for rank in range(2):
        (batch,) = pack(make_rollouts(), [], 100, rank, 2, "cpu", torch.ones(5, dtype=torch.bool))
        assert len(batch.targets) == batch.tokens_of_all == 0 and len(batch.ids) == 1 and not batch.needs_grad


def test_a_micro_batch_counts_its_passes(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    with torch.no_grad():
        token_logprobs(policy, batch, 1.0)
    token_logprobs(policy, batch, 1.0)
    assert (batch.policy_forwards, batch.critic_forwards) == (1 + 3, 0)


def test_a_skipped_step_drops_the_gradient_and_moves_nothing(tied_model, one_process):
    """Also not by the momentum of the step before, or by weight decay."""
    policy = load_policy(tied_model, one_process[2], "float32")
    optimizer = make_adam(policy, 1e-2, 0.9, 0.99, 0.1)
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    for skip in (False, True):
        before = [p.detach().clone() for p in policy.parameters()]
        token_logprobs(policy, batch, 1.0)[0].sum().backward()
        norm = optimizer_step(policy, optimizer, 1e-2, 1.0, skip=skip)
        assert (norm == 0) == skip and all(p.grad is None for p in policy.parameters())
        assert all(torch.equal(b, p) for b, p in zip(before, policy.parameters(), strict=True)) == skip


def test_empty_responses_are_left_out():
    rollouts = make_rollouts(response_lens=(4, 0, 11, 0, 7))
    (batch,) = pack(rollouts, range(5), 1000, 0, 1, "cpu")
    assert set(batch.response_index.tolist()) == {0, 2, 4}


@pytest.mark.parametrize("chunk", [2**24, 300])
@pytest.mark.parametrize("bias, compile, entropy_counts", [
    (True, False, True), (False, False, True), (False, False, False), (True, True, True), (False, True, False)])
def test_fused_logprobs_equal_the_plain_ones_in_values_and_gradients(monkeypatch, chunk, bias, compile, entropy_counts):
    need_compiler(compile)
    monkeypatch.setattr(fused_logprobs, "CHUNK_LOGITS", chunk)  # 300: three tokens a chunk
    torch.manual_seed(0)
    hidden = torch.randn(17, 8, requires_grad=True)
    weight, b = torch.randn(100, 8, requires_grad=True), torch.randn(100, requires_grad=True) if bias else None
    targets, go, ge = torch.randint(0, 100, (17,)), torch.randn(17), torch.randn(17) * entropy_counts
    logp = torch.nn.functional.linear(hidden, weight, b).div(0.7).log_softmax(-1)
    plain = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    fused = fused_logprobs.TokenLogprobs.apply(hidden, weight, b, targets, 0.7, compile)
    inputs = [hidden, weight] + ([b] if bias else [])
    # 100 words, 8 features, logits up to 17: off by 108 * 2^-24 * 17 = 1.1e-4 if every rounding points one way
    for p, f in zip(plain, fused, strict=True):
        assert torch.allclose(p, f, atol=1e-4)
    want = torch.autograd.grad((plain[0] * go + plain[1] * ge).sum(), inputs)
    got = torch.autograd.grad((fused[0] * go + fused[1] * ge).sum(), inputs)
    for w, g in zip(want, got, strict=True):
        assert torch.allclose(w, g, atol=5e-4)  # sums of 17 such tokens


def test_fused_logprobs_of_bf16_are_summed_in_fp32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(50_000, 32).bfloat16()
    targets = torch.randint(0, 50_000, (64,))
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)
    got, entropy = fused_logprobs.TokenLogprobs.apply(hidden, weight, None, targets, 1.0)
    assert got.dtype == torch.float32
    # 3e-4: 50,000 summands, logits up to 25; one that is rounded to bf16 is off by 2^-9 * 25 = 0.05
    rounding = 50_000**0.5 * 2.0**-24 * 25
    assert (got - exact.gather(-1, targets[:, None])[:, 0]).abs().max() < rounding
    assert (entropy + (exact.exp() * exact).sum(-1)).abs().max() < rounding


def test_gradients_of_a_bf16_head_are_those_of_fp32_products_of_its_values():
    """Exact reference in float64 on the same bf16 values; a product rounded to bf16 would be off by 2^-9 = 2e-3."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(48, 64).bfloat16(), (torch.randn(5_000, 64) / 8).bfloat16()
    targets, go = torch.randint(0, 5_000, (48,)), torch.randn(48)
    before = torch.backends.mkldnn.matmul.fp32_precision
    h = hidden.clone().requires_grad_()
    logprobs, _ = fused_logprobs.TokenLogprobs.apply(h, weight, None, targets, 1.0)
    (got_h,) = torch.autograd.grad((logprobs * go).sum(), [h])
    hd, wd = hidden.double().requires_grad_(), weight.double()
    exact = (hd @ wd.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (want_h,) = torch.autograd.grad((exact * go).sum(), [hd])
    assert (logprobs.double() - exact).abs().max() < 1e-4
    assert (got_h.double() - want_h).norm() < 4e-3 * want_h.norm()  # the result itself is rounded to bf16
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # other fp32 products of the process stay as they were


def test_fused_logprobs_never_hold_the_logits_of_all_tokens(monkeypatch):
    """2,048 tokens x 32,000 words are 262 MB in fp32; no logits are larger than a chunk, none is kept for backward."""
    largest = 0
    real = fused_logprobs.scaled_logits

    def watch(hidden, weight, bias, temperature):
        nonlocal largest
        logits = real(hidden, weight, bias, temperature)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(fused_logprobs, "scaled_logits", watch)
    hidden = torch.randn(2048, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        targets = torch.zeros(2048, dtype=torch.long)
        logprobs, _ = fused_logprobs.TokenLogprobs.apply(hidden, torch.randn(32_000, 4), None, targets, 1.0)
    assert sum(kept) < 150_000  # hidden, head and four vectors; the logits would be 65 million
    logprobs.sum().backward()
    assert largest <= fused_logprobs.CHUNK_LOGITS


def gradients(policy, rollouts, device, max_tokens=1000, rank=0, world=1, prompt_weight=None):
    """The gradient of one update of train_grpo.main, as {name: full tensor}."""
    advantages_R = torch.linspace(-1, 1, len(rollouts))
    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    weights_R = token_weights(lens, len(rollouts), int(lens.sum()), "seq_mean", 64)
    for batch in pack(rollouts, range(len(rollouts)), max_tokens, rank, world, device):
        logprobs, entropy = token_logprobs(policy, batch, 0.7)
        loss = policy_loss(logprobs, logprobs.detach() + 0.1, advantages_R[batch.response_index], 0.2, 0.2)
        loss = loss - 0.01 * entropy
        ((weights_R[batch.response_index] * loss).sum() * world).backward()
    found = {n: full(p.grad).clone() for n, p in policy.named_parameters()}
    policy.zero_grad()
    return found


def assert_same_gradients(a, b, tolerance=RELATIVE):
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * (a[name].norm() + 1e-8), name


def test_one_forgotten_token_of_53_would_be_seen_in_the_gradient_of_every_weight(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    rollouts = make_rollouts()
    whole = gradients(policy, rollouts, one_process[2])
    rollouts[3].response_ids.pop()
    rollouts[3].rollout_logprobs = rollouts[3].rollout_logprobs[:-1]
    missed = gradients(policy, rollouts, one_process[2])
    assert min((missed[n] - g).norm() / g.norm() for n, g in whole.items()) > 20 * RELATIVE  # 0.008


def test_the_gradient_does_not_depend_on_micro_batches(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    whole = gradients(policy, make_rollouts(), one_process[2])
    assert sum(g.abs().sum() for g in whole.values()) > 0
    for max_tokens in (50, 20, 1):
        assert_same_gradients(whole, gradients(policy, make_rollouts(), one_process[2], max_tokens))


@pytest.fixture(scope="module")
def two_ranks(tied_model, tmp_path_factory):
    """What two ranks compute, see the end of this file."""
    path = tmp_path_factory.mktemp("ranks") / "two"
    done = run_script(__file__, tied_model, path, nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(path, weights_only=True)


def test_the_gradient_does_not_depend_on_ranks_also_when_one_has_nothing(two_ranks, tied_model, one_process):
    """The same five ragged responses on 1 and 2 ranks; and one response on 2 ranks, of which one stays empty."""
    policy = load_policy(tied_model, one_process[2], "float32")
    for case, count in (("ragged", 5), ("single", 1)):
        one = gradients(policy, make_rollouts()[:count], one_process[2], 40)
        assert_same_gradients(one, two_ranks[case])


def test_copies_of_the_weights_add_up_their_gradients_once_an_update(two_ranks, tied_model, one_process):
    """
    Two ranks with a copy each, 3 micro-batches: the gradient is that of one process, and each of the 3 groups of
    parameters (two blocks; embeddings, norm and head) is all-reduced between the copies once, instead of three times.
    """
    copies, rollouts = two_ranks["copies"], make_rollouts(prompt_lens=[5] * 12, response_lens=[20] * 12)
    one = gradients(load_policy(tied_model, one_process[2], "float32"), rollouts, one_process[2], 96)
    assert_same_gradients(one, copies["gradients"])
    assert (copies["all_reduces"], copies["micro_batches"]) == (3, 3)


def test_what_was_computed_before_the_updates_is_not_computed_again_without_a_gradient(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    learning, silent = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2],
                            torch.tensor([True, True, False, False, True]))
    first = trained_logprobs(policy, silent, 1.0)
    assert silent.policy_forwards == 1 and not first[0].requires_grad  # one update: nothing is known before
    silent.old_logprobs, silent.entropy = first
    learning.old_logprobs, learning.entropy = trained_logprobs(policy, learning, 1.0)
    again = [trained_logprobs(policy, batch, 1.0) for batch in (learning, silent)]
    assert again[0][0].requires_grad and torch.equal(again[1][0], first[0]) and torch.equal(again[1][1], first[1])
    assert (learning.policy_forwards, silent.policy_forwards) == (6, 1)


def test_weights_of_two_ranks_on_the_host_are_those_on_the_device(two_ranks):
    """FSDP2's own policy; where device and host are one, everything is equal to the bit."""
    here, away = two_ranks["offload"]
    assert all(torch.equal(here[name], away[name]) for name in here) and len(here) > 20


@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_gradient_checkpointing_changes_memory_not_gradients(tied_model, one_process, checkpointing):
    plain = gradients(load_policy(tied_model, one_process[2], "float32"), make_rollouts(), one_process[2])
    policy = load_policy(tied_model, one_process[2], "float32", checkpointing=checkpointing)
    saving = gradients(policy, make_rollouts(), one_process[2])
    assert_same_gradients(plain, saving)


def test_compiled_blocks_give_the_same_gradients(tied_model, one_process):
    """Two packings of other lengths: what was compiled for the first must be right for the second."""
    need_compiler()
    plain, fast = (load_policy(tied_model, one_process[2], "float32", compile=c) for c in (False, True))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    graphs = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else it would go on without compiling
        for chosen in (range(5), range(1, 4), [2], [0, 3]):
            rollouts = [make_rollouts()[i] for i in chosen]
            assert_same_gradients(*(gradients(policy, rollouts, one_process[2]) for policy in (plain, fast)))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[3] == graphs[2]  # compiled, and for no length of its own


def test_compiled_blocks_in_bf16_under_fsdp_are_as_near_to_fp32_as_others(tmp_path, one_process):
    """Both round, in other places: relative errors of the whole gradient are about 0.008, of either."""
    need_compiler()
    path = save_tiny_model(tmp_path / "model", scale=0.05)
    exact = gradients(load_policy(path, one_process[2], "float32"), make_rollouts(), one_process[2])
    error = {}
    for c in (False, True):
        policy = load_policy(path, one_process[2], "bfloat16", compile=c, checkpointing=True, always_fsdp=True)
        found = gradients(policy, make_rollouts(), one_process[2])
        whole = sum(g.square().sum() for g in exact.values())
        error[c] = float(sum((found[n] - g).square().sum() for n, g in exact.items()) / whole) ** 0.5
    # each of the few dozen roundings on the way is of 2^-9 = 0.002; a block that is wrong is off by 1
    assert isinstance(policy, FSDPModule) and error[True] < 2 * error[False] < 0.06, error


def test_compile_is_refused_where_it_could_not_work(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    check_compile(True, True)
    with pytest.raises(ConfigError, match="checkpointing to True or False"):
        check_compile(True, "selective")
    monkeypatch.setenv("CXX", "/opt/none/c++")
    with pytest.raises(ConfigError, match="/opt/none/c\\+\\+ is not there"):
        check_compile(True, False)
    check_compile(False, "selective")


def test_selective_recomputation_repeats_no_matrix_product(tied_model, one_process):
    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return func(*args, **(kwargs or {}))

    counted = {}
    for checkpointing in (False, "selective", True):
        policy = load_policy(tied_model, one_process[2], "float32", checkpointing=checkpointing)
        with Count() as count:
            gradients(policy, make_rollouts(), one_process[2])
        counted[checkpointing] = count.products
    # two blocks of seven products: recomputing all repeats 14, or 12 where a block's last result is not needed
    assert counted["selective"] == counted[False] and counted[True] - counted[False] in (12, 14)


def test_prompt_tokens_have_no_loss(tied_model, one_process):
    """Only response tokens are scored: as many log-probs as response tokens, each at the position before its token."""
    rollouts = make_rollouts()
    for batch in pack(rollouts, range(5), 1000, 0, 1, one_process[2]):
        assert len(batch.targets) == sum(len(r.response_ids) for r in rollouts)
        starts = batch.cu_lens[:-1].tolist()
        for start, i in zip(starts, dict.fromkeys(batch.response_index.tolist()), strict=True):
            rows = batch.logit_index[batch.response_index == i]
            assert rows[0] == start + len(rollouts[i].prompt_ids) - 1
            assert batch.ids[rows[1:]].tolist() == rollouts[i].response_ids[:-1]  # the state before the next token


def test_eos_is_trained_when_pad_is_eos(tmp_path, one_process):
    path = save_tiny_model(tmp_path, pad_is_eos=True)
    policy = load_policy(path, one_process[2], "float32")
    rollouts = [SimpleNamespace(prompt_ids=[5, 6], response_ids=[1], rollout_logprobs=np.zeros(1, np.float32))]
    (batch,) = pack(rollouts, [0], 100, 0, 1, one_process[2])
    assert batch.targets.tolist() == [1]  # EOS = pad = 1 is the only response token
    token_logprobs(policy, batch, 1.0)[0].sum().backward()
    assert full(policy.hf.model.norm.weight.grad).abs().sum() > 0


def test_optimizer_state_is_fp32_and_a_small_lr_still_moves_the_weights_of_a_bf16_run(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "bfloat16")
    assert {(p.dtype, p.master.dtype, p.grad_dtype) for p in policy.parameters()} == {
        (torch.bfloat16, torch.float32, torch.float32)}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    before = {n: p.master.clone() for n, p in policy.named_parameters()}
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    token_logprobs(policy, batch, 1.0)[0].sum().backward()
    assert np.isfinite(optimizer_step(policy, optimizer, 1e-6, 1.0))
    assert {x.dtype for state in optimizer.state.values() for x in state.values()} == {torch.float32}
    for name, p in policy.named_parameters():
        if "layers" in name and "weight" in name:
            assert (p.master != before[name]).float().mean() > 0.5, name


def updates_of(policy, device, steps=2):
    """The gradients of each step, summed over three micro-batches, and the fp32 weights after it."""
    optimizer, found = make_adam(policy, 1e-3, 0.9, 0.99, 0.01), []
    for step in range(steps):
        for batch in pack(make_rollouts(step), range(5), 30, 0, 1, device):
            logprobs, entropy = token_logprobs(policy, batch, 0.7)
            (logprobs * torch.linspace(-1, 1, len(logprobs)) + 0.1 * entropy).sum().backward()
        gradients = {n: full(p.grad).clone() for n, p in policy.named_parameters()}
        optimizer_step(policy, optimizer, 1e-3, 1.0)
        found.append((gradients, {n: master(p).clone() for n, p in policy.named_parameters()}))
    return found


def test_one_process_in_bf16_computes_what_fsdp_computes(tmp_path, one_process):
    """
    The same bf16 forward and backward, fp32 sums and fp32 Adam: gradients are equal to the bit. But for the head's:
    FSDP rounds that of each micro-batch to bf16 once, by 2^-9 of it at most; masters add it up in fp32.
    """
    path = save_tiny_model(tmp_path / "model", tied=False)
    policies = [load_policy(path, one_process[2], "bfloat16", always_fsdp=always) for always in (False, True)]
    (plain, _), (fsdp, _) = (updates_of(policy, one_process[2], steps=1)[0] for policy in policies)
    assert {g.dtype for g in plain.values()} == {g.dtype for g in fsdp.values()} == {torch.float32}
    for name in plain:
        if "lm_head" in name:
            assert 0 < (plain[name] - fsdp[name]).norm() < 2**-8 * fsdp[name].norm()
        else:
            assert torch.equal(plain[name], fsdp[name]), name


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_offload_is_the_same_arithmetic_to_the_bit(tied_model, one_process, load):
    """Masters and Adam's state on the host, one parameter after the other: what they are in place, in bf16 and fp32."""
    device, batches = one_process[2], pack(make_rollouts(), range(5), 30, 0, 1, one_process[2])
    for dtype in ("bfloat16", "float32"):
        ends = []
        for offload in (False, True):
            module = load(tied_model, device, dtype, offload=offload)
            optimizer = make_adam(module, 1e-3, 0.9, 0.99, 0.01)
            for _ in range(3):
                for batch in batches:
                    out = token_values(module, batch) if load is load_critic else token_logprobs(module, batch, 1.0)[0]
                    (out * torch.linspace(-1, 1, len(out))).sum().backward()
                norm = optimizer_step(module, optimizer, 1e-3, 1.0)
            assert all(p.grad is None for p in module.parameters()) and norm > 0
            assert offload == any(getattr(p, "on_host", False) for p in module.parameters())
            ends.append([master(p) for p in module.parameters()] + list(module.parameters()) + [
                x for p in module.parameters() for x in optimizer.state[p].values()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
        start = load(tied_model, device, dtype)
        assert not any(torch.equal(a, master(b)) for a, b in zip(ends[0], start.parameters(), strict=False))


def test_a_reference_waits_on_the_host_and_says_the_same_on_the_device(tied_model, one_process):
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    here, away = (load_policy(tied_model, one_process[2], "bfloat16", trainable=False, offload=offload)
                  for offload in (False, True))
    waiting = [p.data for p in away.parameters()]
    with torch.no_grad(), on_device(away, torch.device("cpu", 0)), on_device(None, one_process[2]):  # another name
        assert torch.equal(token_logprobs(away, batch, 1.0)[0], token_logprobs(here, batch, 1.0)[0])
        for p in away.parameters():
            p.data = torch.zeros_like(p)  # what lies on the device is dropped
    assert all(torch.equal(p, data) for p, data in zip(away.parameters(), waiting, strict=True))


def test_what_fsdp_keeps_on_the_host_is_brought_to_the_device_by_fsdp_alone(tied_model, one_process):
    """Its parameters say that they lie on the host, and must go on to."""
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    policy = load_policy(tied_model, one_process[2], "bfloat16", trainable=False, offload=True, always_fsdp=True)
    before = [p.to_local().data_ptr() for p in policy.parameters()]
    with torch.no_grad(), on_device(policy, torch.device("cpu", 0)):
        assert [p.to_local().data_ptr() for p in policy.parameters()] == before
        assert torch.isfinite(token_logprobs(policy, batch, 1.0)[0]).all()


class Operators(TorchDispatchMode):
    """The names of all operators that run inside."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


WAITS = {f"aten::{name}" for name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2",
                                      "equal", "unique_consecutive", "lift_fresh")}  # the last: of a Python number


def test_no_micro_batch_waits_for_the_device(tied_model, one_process, monkeypatch):
    """From forward to statistics nothing asks a GPU for a number or sends it one: its queue never runs empty."""
    monkeypatch.setattr("onebox.packed_attention.length_buckets", lambda lens, device: [
        (sum(lens[:i]), sum(lens[:i + 1]), 1, n, range(n)) for i, n in enumerate(lens)])  # a CPU's, sent in each
    for dtype, script in (("bfloat16", train_grpo), ("float32", train_ppo)):
        policy, critic = (load(tied_model, one_process[2], dtype, checkpointing=True) for load in (
            load_policy, load_critic))
        batches, stats = pack(make_rollouts(), range(5), 30, 0, 1, one_process[2]), StepStats()
        cfg = script.Config(entropy_coef=0.01, dual_clip=3.0)
        for batch in batches:
            ones = torch.ones(len(batch.targets))
            batch.advantages = batch.loss_weights = batch.old_values = batch.returns = ones
        with Operators() as seen:
            for batch in batches:
                logprobs, entropy = trained_logprobs(policy, batch, 0.7)
                batch.old_logprobs = logprobs.detach()
                losses, clipped = script.token_loss(logprobs, entropy, batch, cfg)
                loss = (batch.loss_weights * losses).sum()
                loss.backward()
                stats.add(batch, logprobs, entropy, loss, clipped)
                values = token_values(critic, batch)
                errors = train_ppo.value_loss(values, batch.old_values, batch.returns, 0.5)
                errors.sum().backward()
                stats.add_values(batch, values, errors.sum(), 0.5)
        assert len(seen.names) > 50 and not seen.names & WAITS, seen.names & WAITS
    with Operators() as seen:
        float(loss.detach())
    assert seen.names & WAITS == {"aten::_local_scalar_dense"}  # as it would be seen


def test_a_bf16_reference_keeps_its_rotary_frequencies_in_fp32(tied_model, one_process):
    reference = load_policy(tied_model, one_process[2], "bfloat16", trainable=False)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in reference.parameters())
    assert all(b.dtype == torch.float32 for b in reference.buffers()) and list(reference.buffers())


def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_adam(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, fused=True)
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    for factor in (1.0, float("nan")):
        before = {n: full(p).clone() for n, p in policy.named_parameters()}
        (token_logprobs(policy, batch, 1.0)[0].sum() * factor).backward()
        norm = optimizer_step(policy, optimizer, 1e-2, 1.0)
        same = all(torch.equal(before[n], full(p)) for n, p in policy.named_parameters())
        assert same == (factor != factor) and np.isfinite(norm) == (factor == factor)
    assert next(iter(optimizer.state.values()))["step"] == 1


def test_grad_norm_is_the_norm_before_clipping(tied_model, one_process):
    policy = load_policy(tied_model, one_process[2], "float32")
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    want = gradients(policy, make_rollouts(), one_process[2])
    norm = sum(float(g.double().square().sum()) for g in want.values()) ** 0.5
    rollouts = make_rollouts()
    advantages = torch.linspace(-1, 1, 5)
    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    weights = token_weights(lens, 5, int(lens.sum()), "seq_mean", 64)
    (batch,) = pack(rollouts, range(5), 1000, 0, 1, one_process[2])
    logprobs, entropy = token_logprobs(policy, batch, 0.7)
    loss = policy_loss(logprobs, logprobs.detach() + 0.1, advantages[batch.response_index], 0.2, 0.2) - 0.01 * entropy
    (weights[batch.response_index] * loss).sum().backward()
    assert optimizer_step(policy, optimizer, 0.0, 1e-3) == pytest.approx(norm, rel=RELATIVE)


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_is_a_plain_directory_with_the_same_logprobs(tmp_path, one_process, tied):
    from transformers import AutoTokenizer

    path = save_tiny_model(tmp_path / "model", tied=tied)
    policy = load_policy(path, one_process[2], "float32")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, fused=True)
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    token_logprobs(policy, batch, 1.0)[0].sum().backward()
    optimizer_step(policy, optimizer, 1e-2, 1.0)
    checkpoint.export_hf(policy, AutoTokenizer.from_pretrained(path), str(tmp_path / "out"), torch.float32, 1)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(AutoTokenizer.from_pretrained(path))
    got = logprobs_of(policy, make_rollouts(), one_process[2])
    for i, rollout in enumerate(make_rollouts()):
        assert torch.allclose(got[i][0], plain_logprobs(tmp_path / "out", rollout, 1.0)[0], atol=LOGPROB)
    assert not torch.allclose(got[0][0], plain_logprobs(path, make_rollouts()[0], 1.0)[0], atol=20 * LOGPROB)


# Packed and alone differ by rounding only: about 20 sums of at most 96 products on the way to a logit, each off by at
# most 96 x 2^-24 = 6e-6 of its terms, and two logits of up to 20 in a log-prob: 20 x 6e-6 x 20 x 2 = 5e-3. A leak is
# 0.1 and more.
ROUNDING = 5e-3


@pytest.mark.parametrize("kind", models.SUPPORTED)
def test_sequences_of_every_supported_class_are_the_same_packed_and_alone(kind, tmp_path, one_process):
    path = save_tiny_kind(tmp_path, kind)
    policy, rollouts = load_policy(path, one_process[2], "float32"), make_rollouts()
    packed = logprobs_of(policy, rollouts, one_process[2])
    alone = logprobs_of(policy, rollouts, one_process[2], max_tokens=1)
    for i, rollout in enumerate(rollouts):
        assert (packed[i][0] - alone[i][0]).abs().max() < ROUNDING
        assert (packed[i][0] - plain_logprobs(path, rollout, 1.0)[0]).abs().max() < ROUNDING


HYBRIDS = {"lfm2": dict(layer_types=["conv", "full_attention"]),
           "qwen3_next": dict(layer_types=["linear_attention", "full_attention"], num_experts=0,
                              mlp_only_layers=[0, 1])}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_hybrid_is_refused_because_packed_sequences_would_leak(kind, tmp_path, one_process, monkeypatch):
    path, rollouts = save_tiny_kind(tmp_path, kind, **HYBRIDS[kind]), make_rollouts()
    with pytest.raises(ConfigError, match="has layers of type"):
        load_policy(path, one_process[2], "float32")
    monkeypatch.setattr(models, "check_architecture", lambda *_, **__: None)  # what it would compute
    policy = load_policy(path, one_process[2], "float32")
    packed = logprobs_of(policy, rollouts, one_process[2])
    alone = logprobs_of(policy, rollouts, one_process[2], max_tokens=1)
    assert max(float((packed[i][0] - alone[i][0]).abs().max()) for i in packed) > 10 * ROUNDING


REFUSED = [
    ("qwen3_moe", {}, "mixture of experts"),
    ("mixtral", {}, "mixture of experts"),
    ("deepseek_v3", {}, "mixture of experts"),
    ("gpt_oss", {}, "mixture of experts"),
    ("granitemoe", {}, "mixture of experts"),
    ("phimoe", {}, "mixture of experts"),
    ("jamba", {}, "jamba"),
    ("mamba", {}, "mamba"),
    ("mamba2", {}, "mamba2"),
    ("falcon_h1", {}, "falcon_h1"),
    ("recurrent_gemma", {}, "recurrent_gemma"),
    ("gemma2", {}, "final_logit_softcapping = 30"),
    ("gemma3_text", {}, "not among the architectures"),
    ("gemma3", {}, "several parts"),
    ("qwen2_5_vl", {}, "several parts"),
    ("qwen3_5", {}, "several parts"),
    ("llama4", {}, "several parts"),
    ("llama4_text", {}, "mixture of experts"),
    ("granite", dict(logits_scaling=8.0), "logits_scaling = 8"),
    ("cohere", {}, "logit_scale = 0.0625"),
    ("t5", {}, "not a causal language model"),
    ("bert", {}, "not among the architectures"),
    ("gpt2", {}, "not among the architectures"),
    ("llama", dict(num_local_experts=8), "mixture of experts"),
    ("llama", dict(final_logit_softcapping=30.0), "final_logit_softcapping"),
    ("llama", dict(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    ("llama", dict(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
    ("llama", dict(layer_types=["chunked_attention", "full_attention"]), "chunked_attention"),
    ("llama", dict(rope_scaling={"rope_type": "dynamic", "factor": 4.0}), "rope_type dynamic"),
    ("llama", dict(rope_scaling={"rope_type": "foo", "factor": 4.0}), "rope_type foo"),
    ("llama", dict(architectures=["MyLlamaForCausalLM"]), "MyLlamaForCausalLM, which is not the LlamaForCausalLM"),
    ("qwen2", dict(auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}), "OwnForCausalLM"),
    ("llama", dict(hidden_act="relu"), "activation relu"),  # vLLM: ValueError, once the engine starts
    ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),  # engine and trainer: 4 nats apart
    ("qwen3", dict(attention_bias=True), "sets attention_bias"),  # engine and trainer: 0.12 nats apart
    ("llama", dict(rope_scaling={"rope_type": "linear", "factor": "4"}), "factor '4'"),
    ("mistral", dict(sliding_window=499), "sliding window of 499 tokens"),
    ("phi3", dict(sliding_window=499), "sliding window of 499 tokens"),
    ("qwen2", dict(use_sliding_window=True, sliding_window=499, max_window_layers=1), "sliding window of 499 tokens"),
    ("phi3", dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16},
                  original_max_position_embeddings=256), "keep them to 256"),
]


@pytest.mark.parametrize("kind, settings, said", REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_policy_does_not_compute_is_refused_by_its_config_alone(kind, settings, said):
    sizes = {} if kind in ("gemma3", "qwen2_5_vl", "qwen3_5", "llama4", "falcon_h1", "mamba2") else dict(hidden_size=64)
    config = (tiny_config(kind, **settings) if kind in models.SUPPORTED else
              AutoConfig.for_model(kind, **sizes, **settings))
    with pytest.raises(ConfigError) as error:
        models.check_architecture(config, need_len=500, name="some/model")
    assert said in str(error.value) and "some/model" in str(error.value) and "\n" not in str(error.value)


ACCEPTED = [
    ("qwen2", dict(use_sliding_window=False, sliding_window=16)),
    ("qwen2", dict(use_sliding_window=True, sliding_window=16, max_window_layers=2)),  # no layer has it
    ("llama", dict(architectures=["LLaMAForCausalLM"])),  # as files of 2023 spell it
    ("phi3", dict(partial_rotary_factor=0.75,  # Phi-4-mini
                  auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})),
    ("mistral", dict(sliding_window=500)),
    ("phi3", dict(sliding_window=500)),
    ("qwen3", dict(use_sliding_window=True, sliding_window=500, max_window_layers=1)),
    ("llama", dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256})),
    ("llama", dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})),
    ("llama", dict(architectures=["LlamaForCausalLM"], num_local_experts=0)),
    ("phi3", dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16},
                  original_max_position_embeddings=500, max_position_embeddings=2048)),
]


@pytest.mark.parametrize("kind, settings", ACCEPTED)
def test_a_window_that_no_sequence_reaches_is_full_attention(kind, settings):
    models.check_architecture(tiny_config(kind, **settings), need_len=500)


@pytest.mark.parametrize("kind", ["mistral", "phi3", "qwen2"])
def test_attention_with_a_window_is_right_up_to_its_length_and_refused_beyond(kind, tmp_path, one_process):
    """The longest of make_rollouts() has 34 tokens in the model: its last is not fed."""
    more = dict(use_sliding_window=True, max_window_layers=0) if kind == "qwen2" else {}
    for window in (34, 33):
        path = save_tiny_kind(tmp_path / str(window), kind, sliding_window=window, **more)
        policy, rollouts = load_policy(path, one_process[2], "float32"), make_rollouts()
        if window == 33:
            with pytest.raises(ConfigError, match="sliding_window=33"):
                logprobs_of(policy, rollouts, one_process[2])
            continue
        packed = logprobs_of(policy, rollouts, one_process[2])
        for i, rollout in enumerate(rollouts):
            assert (packed[i][0] - plain_logprobs(path, rollout, 1.0)[0]).abs().max() < ROUNDING


def test_a_class_that_the_engine_rewrites_in_place_is_not_the_trainers(tmp_path, one_process, monkeypatch):
    """vLLM's Transformers backend decorates SmolLM3Model of transformers itself, before or after the policy is made."""
    from transformers.models.smollm3 import modeling_smollm3 as shared

    path = save_tiny_kind(tmp_path, "smollm3")
    want = plain_logprobs(path, make_rollouts()[3], 1.0)[0]
    before = load_policy(path, one_process[2], "float32")

    def of_vllm(self, *args, **kwargs):
        raise AttributeError("'SmolLM3Model' object has no attribute 'do_not_compile'")

    monkeypatch.setattr(shared.SmolLM3Model, "__init__", of_vllm)
    monkeypatch.setattr(shared.SmolLM3Model, "__call__", of_vllm)
    for policy in (before, load_policy(path, one_process[2], "float32")):
        got = logprobs_of(policy, make_rollouts(), one_process[2])
        assert (got[3][0] - want).abs().max() < ROUNDING
    assert type(before.hf).__name__ == "SmolLM3ForCausalLM"  # the name that an export writes


def test_a_directory_that_lacks_a_tensor_of_its_model_is_refused(tmp_path):
    """transformers would start it at random with no more than a table on the console."""
    path = save_tiny_model(tmp_path, tied=False)
    file = os.path.join(path, "model.safetensors")
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="lm_head.weight"):
        models.load_hf(path)


@pytest.mark.parametrize("settings, longest", [
    ({}, 512),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}), 2048),
    (dict(rope_scaling={"type": "yarn", "factor": 4.0}), 2048),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}), 512),
    (dict(rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512,
                           "rope_theta": 10000.0}), 1024),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), 1024),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64}), 512),  # Llama 3.1's names the stretched ones already
])
def test_positions_that_rope_scaling_stretches_by_hand(settings, longest):
    assert models.positions_of(tiny_config("llama", **settings)) == longest


def gradients_of_copies(path, device, rank, world):
    """The gradient of three micro-batches a rank, and how often ranks with the same shard added theirs up."""
    policy = load_policy(path, device, "float32", shard_size=1)
    all_reduce, calls = torch.distributed.all_reduce, []
    torch.distributed.all_reduce = lambda *args, **kwargs: calls.append(1) or all_reduce(*args, **kwargs)
    rollouts = make_rollouts(prompt_lens=[5] * 12, response_lens=[20] * 12)
    found = gradients(policy, rollouts, device, 96 // world, rank, world)
    torch.distributed.all_reduce = all_reduce
    return {"gradients": found, "all_reduces": len(calls),
            "micro_batches": len(pack(rollouts, range(12), 96 // world, rank, world, device))}


def weights_after_updates(path, device, rank, world, offload):
    policy = load_policy(path, device, "bfloat16", offload=offload, checkpointing=True)
    optimizer = make_adam(policy, 1e-3, 0.9, 0.99, 0.01)
    for step in range(2):
        for batch in pack(make_rollouts(step), range(5), 30, rank, world, device):
            token_logprobs(policy, batch, 0.7)[0].sum().backward()
        optimizer_step(policy, optimizer, 1e-3, 1.0)
    return {name: full(p) for name, p in policy.named_parameters()}


if __name__ == "__main__":  # a rank of two_ranks
    from onebox.distributed import init_distributed

    rank, world, device = init_distributed()
    policy = load_policy(sys.argv[1], device, "float32")
    result = {"ragged": gradients(policy, make_rollouts(), device, 40, rank, world),
              "single": gradients(policy, make_rollouts()[:1], device, 40, rank, world),
              "copies": gradients_of_copies(sys.argv[1], device, rank, world),
              "offload": [weights_after_updates(sys.argv[1], device, rank, world, offload)
                          for offload in (False, True)]}
    if rank == 0:
        torch.save(result, sys.argv[2])
    print(json.dumps({"rank": rank}))


def change_weights(change):
    def damage(path):
        file = os.path.join(path, "model.safetensors")
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return damage


def cut(path, name="model.safetensors", size=2000):
    with open(os.path.join(path, name), "r+b") as f:
        f.truncate(size)


def lose_a_shard(path):
    hf = AutoModelForCausalLM.from_pretrained(path)
    os.remove(os.path.join(path, "model.safetensors"))
    hf.save_pretrained(path, max_shard_size="40KB")
    os.remove(os.path.join(path, "model-00002-of-00010.safetensors"))


def only_an_adapter(path):
    os.rename(os.path.join(path, "model.safetensors"), os.path.join(path, "adapter_model.safetensors"))


def change_config(path, **values):
    change_json(os.path.join(path, "config.json"), **values)


NOT_WHOLE = {
    "a tensor is missing": (change_weights(lambda w: {k: v for k, v in w.items() if "1.mlp.up_proj" not in k}),
                            "model.layers.1.mlp.up_proj.weight of shape [96, 64] is not in its files"),
    "a tensor has another shape": (change_weights(lambda w: w | {"model.norm.weight": torch.ones(60)}),
                                   "has the shape [60]"),
    "a bias that the class does not have": (
        change_weights(lambda w: w | {"model.layers.0.self_attn.o_proj.bias": torch.ones(64)}),
        "o_proj.bias (1 such), which"),
    "more layers than the config says": (
        lambda path: change_config(path, num_hidden_layers=1, layer_types=None, max_window_layers=1),
        "model.layers.1.input_layernorm.weight (12 such)"),
    "no head, and none tied": (
        lambda path: change_config(path, tie_word_embeddings=False), "lm_head.weight of shape"),
    "a torn file": (cut, "model.safetensors cannot be read"),
    "an empty file": (lambda path: cut(path, size=0), "model.safetensors cannot be read"),
    "a lost shard": (lose_a_shard, "model-00002-of-00010.safetensors is not there"),
    "an adapter": (only_an_adapter, "no weights that transformers would load"),
}


@pytest.mark.parametrize("damage, said", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_weights_that_are_not_those_of_the_config_are_refused_by_their_names_alone(damage, said, tmp_path, monkeypatch):
    """Loading would start a missing tensor at random, and drop one too many without a word."""
    path = save_tiny_model(tmp_path / "model")
    damage(path)
    monkeypatch.setattr(models, "load_hf", None)  # nothing is loaded
    with pytest.raises(ConfigError) as error:
        resolve_model(path, 20)
    assert said in str(error.value) and path in str(error.value) and "\n" not in str(error.value)


def test_weights_in_each_form_that_transformers_writes_are_taken(tmp_path):
    plain, sharded, old = (save_tiny_model(tmp_path / name) for name in ("plain", "sharded", "old"))
    hf = AutoModelForCausalLM.from_pretrained(sharded)
    for path in (sharded, old):
        os.remove(os.path.join(path, "model.safetensors"))
    hf.save_pretrained(sharded, max_shard_size="40KB")
    torch.save(hf.state_dict(), os.path.join(old, "pytorch_model.bin"))  # lm_head.weight: the embeddings once more
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}  # as in old Llama files
    change_weights(lambda w: w | rotary)(plain)
    for path in (plain, sharded, old):
        resolve_model(path, 20)
        for name, weight in models.load_hf(path).state_dict().items():
            assert torch.equal(weight, hf.state_dict()[name])


def test_a_tied_model_whose_files_hold_another_head_is_refused(tmp_path):
    """transformers would not tie it, and the export, which leaves a tied head out, would lose it."""
    path = save_tiny_model(tmp_path / "model")
    change_weights(lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] + 1})(path)
    with pytest.raises(ConfigError, match="set tie_word_embeddings to false there"):
        models.load_hf(path)
