"""python -m pytest tests/test_train_ppo.py: the math of train_ppo.py by hand, its critic, some real steps."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (COLUMN, LOGPROB_MEAN, RELATIVE, ROOT, full, laid_out_as, run_script, save_tiny_model,
                      without_an_engine)
from runs import assert_same, everything_of
from test_policy import make_rollouts

from onebox import checkpoint
from onebox.config import ConfigError
from onebox.metrics import StepStats, explain_values
from policy import from_responses, load_critic, load_policy, optimizer_step, pack, to_responses, token_values
from train_ppo import (
    Config,
    adapt_kl_coef,
    advantages_and_returns,
    check_config,
    gae,
    gae_of_types,
    leave_one_out,
    set_advantages,
    token_loss,
    token_rewards,
    value_loss,
    whiten,
)

# ---------------------------------------------------------------------------------------------------------------
# GAE, rewards, whitening
# ---------------------------------------------------------------------------------------------------------------


def gae_by_the_sum(rewards, values, gamma, lam, last_value):
    """The definition: A_t = sum_l (gamma lam)^l delta_{t+l}, two loops."""
    after = [*values[1:], last_value]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, after, strict=False)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.99, 0.9), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("last_value", [0.0, 0.7])
def test_gae_equals_its_definition_on_ragged_and_truncated_responses(gamma, lam, last_value):
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 33):
        rewards, values = rng.normal(size=length), rng.normal(size=length)
        want = gae_by_the_sum(rewards, values, gamma, lam, last_value)
        assert np.allclose(gae(rewards, values, gamma, lam, last_value), want, atol=1e-12), length


def test_gae_at_gamma_and_lambda_one_is_the_return_minus_the_value():
    values = np.array([0.2, -0.4, 0.9, 0.5])
    assert gae(np.array([0.0, 0.0, 0.0, 1.0]), values, 1.0, 1.0).tolist() == pytest.approx((1.0 - values).tolist())
    truncated = gae(np.zeros(4), values, 1.0, 1.0, last_value=0.5)
    assert truncated.tolist() == pytest.approx((0.5 - values).tolist())


def test_gae_at_lambda_zero_is_the_one_step_error():
    got = gae(np.array([0.0, 0.0, 1.0]), np.array([0.2, 0.5, 0.6]), 0.9, 0.0, last_value=0.3)
    assert got.tolist() == pytest.approx([0.9 * 0.5 - 0.2, 0.9 * 0.6 - 0.5, 1 + 0.9 * 0.3 - 0.6])


def test_gae_of_zero_values_is_the_discounted_return_to_go():
    assert gae(np.array([1.0, 0.0, 2.0]), np.zeros(3), 0.5, 1.0).tolist() == [1.5, 1.0, 2.0]


def test_a_terminal_reward_vanishes_at_lambda_0_95_and_not_at_1():
    rewards = np.zeros(512)
    rewards[-1] = 1
    assert gae(rewards, np.zeros(512), 1.0, 0.95)[0] < 1e-11 and gae(rewards, np.zeros(512), 1.0, 1.0)[0] == 1


def rollout(num_tokens, finish_reason="stop"):
    return SimpleNamespace(response_ids=list(range(num_tokens)), truncated=finish_reason != "stop")


@pytest.mark.parametrize("finish_reason", ["stop", "length", "deadline"])
def test_the_reward_stands_on_the_last_response_token(finish_reason):
    for length in (1, 2, 7):
        per_type = token_rewards(2.0, length, 0.0, 0.0, {"task": 1.0})
        assert per_type["task"].tolist() == [0.0] * (length - 1) + [2.0]
        values = {0: np.zeros(length)}
        _, returns = advantages_and_returns([rollout(length, finish_reason)], [2.0], values, {}, Config(gamma=0.5))
        assert returns[0].tolist() == [2.0 * 0.5 ** (length - 1 - t) for t in range(length)]


def test_a_truncated_response_is_followed_by_nothing_or_its_last_value():
    values = {0: np.array([0.1, 0.2, 0.4]), 1: np.array([0.1, 0.2, 0.4])}
    rollouts = [rollout(3, "stop"), rollout(3, "length")]
    for setting, want in (("zero", 1.0), ("value", 1.4)):
        _, returns = advantages_and_returns(rollouts, [1.0, 1.0], values, {}, Config(truncation_bootstrap=setting))
        assert returns[0].tolist() == pytest.approx([1.0] * 3), setting
        assert returns[1].tolist() == pytest.approx([want] * 3), setting


def test_the_returns_are_the_critics_own_gae_plus_the_old_values():
    values = {0: np.array([0.3, -0.2, 0.5])}
    for lam, critic_lam in ((0.5, 1.0), (1.0, 0.5)):
        cfg = Config(lam=lam, critic_lam=critic_lam)
        advantages, returns = advantages_and_returns([rollout(3)], [1.0], values, {}, cfg)
        rewards = np.array([0.0, 0.0, 1.0])
        assert np.allclose(advantages[0], gae_by_the_sum(rewards, values[0], 1.0, lam, 0.0))
        assert np.allclose(returns[0], gae_by_the_sum(rewards, values[0], 1.0, critic_lam, 0.0) + values[0])


def test_the_length_adaptive_lambda_is_1_minus_1_over_alpha_times_length():
    for length, lam in ((40, 1 - 1 / (0.05 * 40)), (100, 0.8), (10, 0.0)):  # never below 0
        values = {0: np.linspace(0, 1, length)}
        rewards = np.append(np.zeros(length - 1), 1.0)
        cfg = Config(length_adaptive_lam=0.05)
        advantages, returns = advantages_and_returns([rollout(length)], [1.0], values, {}, cfg)
        assert np.allclose(advantages[0], gae_by_the_sum(rewards, values[0], 1.0, lam, 0.0))
        assert np.allclose(returns[0], 1.0)


def test_the_reward_is_lowered_where_the_policy_left_the_reference():
    old = np.array([-1.0, -5.0, -0.2])
    same = token_rewards(1.0, 3, 0.1 * (old - old), 0.0, {"task": 1.0})["task"]
    assert same.tolist() == [0.0, 0.0, 1.0]
    surer = token_rewards(1.0, 3, 0.1 * (old - (old - 2)), 0.0, {"task": 1.0})["task"]  # than the reference: penalized
    assert surer.tolist() == pytest.approx([-0.2, -0.2, 0.8])


def test_one_discount_per_reward_type_sums_returns_minus_the_value():
    values, kl = np.array([0.1, 0.3, 0.2]), np.array([0.02, 0.04, 0.06])
    repetition, gammas = np.array([0.0, -0.5, -0.5]), {"task": 1.0, "repetition": 0.5}
    got = gae_of_types(token_rewards(1.0, 3, kl, repetition, gammas), values, gammas, 1.0, 0.0)
    task, other = np.array([-0.01, -0.02, 1 - 0.03]), np.array([-0.01, -0.52, -0.53])  # the penalty, half on each
    want = [sum(task[t:]) + sum(other[k] * 0.5 ** (k - t) for k in range(t, 3)) - values[t] for t in range(3)]
    assert got.tolist() == pytest.approx(want)
    equal = {"task": 0.9, "repetition": 0.9}
    together = gae(np.array([0.0, -0.5, 0.5]) - kl, values, 0.9, 0.8, 0.3)
    assert np.allclose(gae_of_types(token_rewards(1.0, 3, kl, repetition, equal), values, equal, 0.8, 0.3), together)


def test_repeated_tokens_are_punished_where_they_stand():
    twice = SimpleNamespace(response_ids=[1, 2, 3, 1, 2, 3, 4], truncated=False)
    cfg = Config(repetition_coef=0.1, repetition_ngram=3, gamma=0.0)
    _, returns = advantages_and_returns([twice], [1.0], {0: np.zeros(7)}, {}, cfg)
    assert returns[0].tolist() == pytest.approx([0, 0, 0, -0.1, -0.1, -0.1, 1.0])


def test_whitening_is_over_all_tokens_and_exactly_zero_where_all_agree():
    got = np.concatenate(list(whiten({0: np.array([1.0, 3.0]), 5: np.array([5.0, 7.0])}).values()))
    assert got.tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert all((a == 0).all() for a in whiten({i: np.full(7, 0.1) for i in range(8)}).values())
    assert whiten({}) == {}


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    got = leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1]]))
    assert got[0].tolist() == pytest.approx([1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3]) and got[1].tolist() == [0.0] * 4


def test_reinforce_pp_is_the_critic_that_says_zero():
    advantages, _ = advantages_and_returns([rollout(2), rollout(1)], [1.0, 0.0], {0: np.zeros(2), 1: np.zeros(1)},
                                           {0: np.array([0.1, 0.2])}, Config(estimator="reinforce_pp"))
    assert advantages[0].tolist() == pytest.approx([0.7, 0.8]) and advantages[1].tolist() == [0.0]


# ---------------------------------------------------------------------------------------------------------------
# from rewards and values to what each micro-batch learns from
# ---------------------------------------------------------------------------------------------------------------


def packed(lens, parts, device, max_tokens=1000):
    """Make responses of so many tokens, the last one truncated, and the micro-batches of each part, old values 0."""
    rollouts = [SimpleNamespace(prompt_ids=[20, 21], response_ids=list(range(5, 5 + n)), truncated=i == len(lens) - 1,
                                rollout_logprobs=np.zeros(n, np.float32)) for i, n in enumerate(lens)]
    updates = [pack(rollouts, part, max_tokens, 0, 1, device) for part in parts]
    for batch in (batch for micro_batches in updates for batch in micro_batches):
        batch.old_values = torch.zeros_like(batch.rollout_logprobs)
    return rollouts, updates


def advantages_of(updates):
    return to_responses([batch for micro_batches in updates for batch in micro_batches], "advantages")


def test_a_zero_variance_group_stays_0_up_to_the_loss_with_rloo(one_process):
    lens, cfg = [10, 100, 50, 50], Config(estimator="rloo", group_size=2)  # the long answer is the wrong one
    rollouts, updates = packed(lens, [range(4)], one_process[2])
    set_advantages(updates, rollouts, torch.tensor([1.0, 0.0, 0.0, 0.0]), True, cfg)
    assert [set(a.tolist()) for a in advantages_of(updates).values()] == [{1.0}, {-1.0}, {0.0}, {0.0}]
    ((batch,),) = updates
    batch.old_logprobs = torch.zeros(210)
    logprobs = torch.zeros(210, requires_grad=True)
    loss, _ = token_loss(logprobs, torch.zeros(210), batch, cfg)
    loss.sum().backward()
    gradients = [set(logprobs.grad[batch.response_index == i].tolist()) for i in range(4)]
    assert gradients == [{-1.0}, {1.0}, {0.0}, {0.0}]


@pytest.mark.parametrize("settings, whitened", [
    (dict(), True), (dict(estimator="reinforce_pp"), True), (dict(estimator="rloo"), False),
    (dict(whiten=False), False), (dict(estimator="reinforce_pp", whiten=False), False),
])
def test_what_is_whitened_follows_the_estimator_unless_it_is_said(one_process, settings, whitened):
    rollouts, updates = packed([1, 3], [[0], [1]], one_process[2])
    row = set_advantages(updates, rollouts, torch.tensor([1.0, 0.0]), True, Config(group_size=2, **settings))
    lower, upper = (-1.0, 1.0) if settings.get("estimator") == "rloo" else (0.0, 1.0)
    if whitened:  # one token of 1 and three of 0, in two updates: mean 1/4, std sqrt(3)/4
        lower, upper = -1 / 3**0.5, 3**0.5
    got = advantages_of(updates)
    assert got[0].tolist() == pytest.approx([upper]) and got[1].tolist() == pytest.approx([lower] * 3)
    assert row["return_mean"] == pytest.approx(-1 / 2 if settings.get("estimator") == "rloo" else 1 / 4)
    spread = 2 if settings.get("estimator") == "rloo" else 1
    assert row["advantage_std"] == pytest.approx(spread * 3**0.5 / 4)  # before whitening


def test_the_kl_penalty_in_the_reward_is_of_its_token_and_of_all_before_it(one_process):
    rollouts, updates = packed([3], [[0]], one_process[2])
    ((batch,),) = updates
    batch.old_logprobs, batch.ref_logprobs = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -3.0, 0.0])
    cfg = Config(kl_in="reward_k1", kl_coef=0.1, mismatch_cap=0.0, whiten=False)  # k1 of each token: 0, 2, -1
    set_advantages(updates, rollouts, torch.tensor([1.0]), True, cfg)
    assert batch.advantages.tolist() == batch.returns.tolist() == pytest.approx([0.9, 0.9, 1.1])
    loss, _ = token_loss(batch.old_logprobs, torch.zeros(3), batch, cfg)
    assert loss.tolist() == pytest.approx([-0.9, -0.9, -1.1])  # once: the loss itself adds nothing


def test_no_gradient_in_the_warm_up_nor_for_an_update_of_zero_advantages(one_process):
    def needs_grad(rewards, train_policy=True, parts=([0, 1], [2, 3], []), **settings):
        rollouts, updates = packed([2, 3, 1, 4], parts, one_process[2], max_tokens=6)
        for batch in (batch for micro_batches in updates for batch in micro_batches):
            batch.old_logprobs = batch.ref_logprobs = torch.zeros_like(batch.rollout_logprobs)  # the initial model
        assert [len(micro_batches) for micro_batches in updates] == [2, 2, 1]  # one decision for all of an update
        cfg = Config(estimator="rloo", group_size=2, **settings)
        set_advantages(updates, rollouts, torch.tensor(rewards).flatten(), train_policy, cfg)
        return [{batch.needs_grad for batch in micro_batches} for micro_batches in updates]

    varied, agreeing = [1.0, 0.0], [1.0, 1.0]
    assert needs_grad([varied, varied]) == [{True}, {True}, {False}]  # nothing to learn from without a token
    assert needs_grad([varied, agreeing]) == [{True}, {False}, {False}]
    assert needs_grad([varied, agreeing], kl_in="reward_k1") == [{True}, {False}, {False}]  # k1 is in the advantages
    assert needs_grad([varied, varied], train_policy=False) == [{False}, {False}, {False}]
    for settings in (dict(entropy_coef=0.01), dict(kl_in="loss_k2")):
        assert needs_grad([varied, agreeing], **settings) == [{True}, {True}, {False}]
        assert needs_grad([varied, agreeing], train_policy=False, **settings) == [{False}, {False}, {False}]


def test_a_step_without_responses_has_no_advantages_and_says_so_in_its_row():
    row = set_advantages([], [], torch.zeros(0), True, Config(group_size=2))
    assert row["advantage_std"] == 0 and np.isnan(row["explained_variance"])


# ---------------------------------------------------------------------------------------------------------------
# losses
# ---------------------------------------------------------------------------------------------------------------


def test_the_value_clip_stops_the_gradient_only_on_the_way_to_the_return():
    for value, returned, moves in [(0.4, 2.0, True), (0.6, 2.0, False), (-0.6, 2.0, True), (-0.6, -2.0, False),
                                   (0.6, -2.0, True), (3.0, 0.6, True)]:
        values = torch.tensor([value], requires_grad=True)
        value_loss(values, torch.zeros(1), torch.tensor([returned]), 0.5).sum().backward()
        assert (values.grad.item() != 0) == moves, (value, returned)


def test_the_value_loss_is_half_the_worse_of_both_squared_errors():
    got = value_loss(torch.tensor([0.4, 0.6, -0.6]), torch.zeros(3), torch.full((3,), 2.0), 0.5)
    assert got.tolist() == pytest.approx([1.6**2 / 2, 1.5**2 / 2, 2.6**2 / 2])
    assert value_loss(torch.tensor([0.6]), torch.zeros(1), torch.tensor([2.0]), 0.0).item() == pytest.approx(1.4**2 / 2)


def test_the_logged_share_of_clipped_values_is_that_without_gradient():
    stats = StepStats(torch.device("cpu"))
    values = torch.tensor([0.4, 0.6, -0.6, 0.6, 3.0], requires_grad=True)
    batch = SimpleNamespace(old_values=torch.zeros(5), returns=torch.tensor([2.0, 2.0, 2.0, -2.0, 0.6]))
    loss = value_loss(values, batch.old_values, batch.returns, 0.5)
    loss.sum().backward()
    stats.add_values(batch, values.detach(), loss.detach().sum(), 0.5)
    assert float(stats.local["value_clipped"]) == float((values.grad == 0).sum()) == 1


def test_the_adaptive_kl_coef_rises_above_the_target_and_falls_below():
    assert adapt_kl_coef(0.1, 0.05, 0.0, 256, 10_000) == 0.1
    assert adapt_kl_coef(0.1, 0.055, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 0.0256))
    assert adapt_kl_coef(0.1, 5.0, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 + 0.2 * 0.0256))
    assert adapt_kl_coef(0.1, -5.0, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 - 0.2 * 0.0256))


# ---------------------------------------------------------------------------------------------------------------
# the critic
# ---------------------------------------------------------------------------------------------------------------


def values_of(critic, rollouts, device, max_tokens=1000):
    batches = pack(rollouts, range(len(rollouts)), max_tokens, 0, 1, device)
    for batch in batches:
        batch.old_values = token_values(critic, batch).detach()
    return to_responses(batches, "old_values")


def with_random_head(critic):
    torch.manual_seed(0)
    for p in critic.head.parameters():
        p.data.copy_(laid_out_as(p, torch.randn(p.shape)))
    return critic


def test_a_new_critic_says_zero_and_has_a_head_of_its_own_in_fp32(tied_model, one_process):
    critic = load_critic(tied_model, one_process[2], "bfloat16")
    values = values_of(critic, make_rollouts(), one_process[2])
    assert [len(v) for v in values.values()] == [4, 1, 11, 30, 7] and all((v == 0).all() for v in values.values())
    assert not any("lm_head" in name for name, _ in critic.named_parameters())
    assert {p.dtype for p in critic.head.parameters()} == {torch.float32}  # what computes; the trunk keeps its masters
    assert {(p.dtype, p.master.dtype) for p in critic.trunk.parameters()} == {(torch.bfloat16, torch.float32)}
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    values = token_values(with_random_head(critic), batch)
    assert values.dtype == torch.float32 and (values != values.bfloat16().float()).float().mean() > 0.9  # not rounded


def test_the_value_of_a_token_is_that_of_the_state_before_it(tied_model, one_process):
    critic = with_random_head(load_critic(tied_model, one_process[2], "float32"))
    rollouts = make_rollouts()
    before = values_of(critic, rollouts, one_process[2])
    t = 6
    rollouts[3].response_ids[t] = (rollouts[3].response_ids[t] + 7) % 100
    after = values_of(critic, rollouts, one_process[2])
    assert np.array_equal(before[3][:t + 1], after[3][:t + 1]) and abs(before[3][t + 1] - after[3][t + 1]) > 1e-3
    for i in (0, 1, 2, 4):
        assert np.array_equal(before[i], after[i])
    rollouts = make_rollouts()
    rollouts[3].response_ids[-1] = (rollouts[3].response_ids[-1] + 7) % 100  # the last token has no value after it
    assert np.array_equal(before[3], values_of(critic, rollouts, one_process[2])[3])


def test_values_do_not_depend_on_micro_batches_and_find_their_tokens(tied_model, one_process):
    critic = with_random_head(load_critic(tied_model, one_process[2], "float32"))
    rollouts = make_rollouts()
    whole = values_of(critic, rollouts, one_process[2])
    for max_tokens in (40, 1):
        cut = values_of(critic, rollouts, one_process[2], max_tokens)
        assert cut.keys() == whole.keys()
        assert all(np.allclose(cut[i], whole[i], atol=RELATIVE * 24) for i in whole)  # values up to 24
    numbers = {i: np.arange(len(r.response_ids)) + 100.0 * i for i, r in enumerate(rollouts)}
    for batch in pack(rollouts, range(5), 40, 0, 1, one_process[2]):
        got = from_responses(batch, numbers)
        for i in batch.response_index.unique().tolist():
            assert got[batch.response_index == i].tolist() == numbers[i].tolist()
    (empty,) = pack(rollouts, [], 40, 0, 1, one_process[2])
    assert from_responses(empty, {}).shape == (0,) and token_values(critic, empty).shape == (0,)


def test_a_step_of_the_critic_leaves_the_policy_untouched(tied_model, one_process):
    policy, critic = (load(tied_model, one_process[2], "float32") for load in (load_policy, load_critic))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    before = {n: full(p).clone() for n, p in policy.named_parameters()}
    old = {n: full(p).clone() for n, p in critic.named_parameters()}
    for _ in range(2):  # at the first the head is zero, so that only the head has a gradient
        (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
        values = token_values(critic, batch)
        value_loss(values, torch.zeros_like(values), torch.ones_like(values), 0.0).mean().backward()
        optimizer_step(critic, optimizer, 1e-2, grad_clip=1.0)
    assert all(torch.equal(before[n], full(p)) and p.grad is None for n, p in policy.named_parameters())
    assert all(not torch.equal(old[n], full(p)) for n, p in critic.named_parameters() if "embed" not in n)


def test_a_checkpoint_holds_both_models_and_one_without_a_critic_is_told(tmp_path, tied_model, one_process):
    def fresh():
        models = {"model": load_policy(tied_model, one_process[2], "float32"),
                  "critic": load_critic(tied_model, one_process[2], "float32")}
        return {name: (m, torch.optim.AdamW(m.parameters(), lr=1e-3)) for name, m in models.items()}

    one, other = fresh(), fresh()
    critic, critic_optimizer = one["critic"]
    with_random_head(critic)
    (batch,) = pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    token_values(critic, batch).sum().backward()
    optimizer_step(critic, critic_optimizer, 1e-3, grad_clip=1.0)
    before = [full(p).clone() for p in one["model"][0].parameters()]
    assert checkpoint.save(str(tmp_path), 1, one, {"kl_coef": 0.5}) == ""
    assert all(torch.equal(b, full(p)) for b, p in zip(before, one["model"][0].parameters(), strict=True))
    first = checkpoint.find(str(tmp_path), {})
    assert first["models"] == ["model", "critic"] and first["kl_coef"] == 0.5
    checkpoint.load(str(tmp_path), first, other)
    for name in ("model", "critic"):
        (a, a_optimizer), (b, b_optimizer) = one[name], other[name]
        assert all(torch.equal(full(x), full(y)) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        for x, y in zip(a_optimizer.state.values(), b_optimizer.state.values(), strict=name == "critic"):
            assert torch.equal(full(x["exp_avg"]), full(y["exp_avg"]))
    assert checkpoint.save(str(tmp_path), 2, {"model": one["model"]}, {}) == ""
    assert checkpoint.find(str(tmp_path), {})["models"] == ["model"]


# ---------------------------------------------------------------------------------------------------------------
# values that are known: the random walk of Sutton and Barto, example 6.2
# ---------------------------------------------------------------------------------------------------------------


def walks(number, seed, states=5, longest=10**9):
    """Random walks over states 1 ... 5 from the middle; off the right end is a reward of 1. V(s) = s / 6."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        visited = [(states + 1) // 2]
        while len(visited) < longest and 1 <= (s := visited[-1] + rng.choice((-1, 1))) <= states:
            visited.append(s)
        cut = len(visited) == longest
        yield visited, 0.0 if cut else float(s > states), cut  # a cut walk ends in its last state, with its value


@pytest.mark.parametrize("lam, longest, bootstrap", [(1.0, 10**9, "zero"), (0.8, 10**9, "zero"), (0.0, 10**9, "zero"),
                                                     (0.8, 6, "value")])
def test_the_known_values_of_a_chain_are_learned_by_a_table(lam, longest, bootstrap):
    table = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([table], lr=3.0)
    data = list(walks(12_000, 0, longest=longest))
    averaged = torch.zeros(7, dtype=torch.float64)
    for start in range(0, len(data), 100):
        part = data[start:start + 100]
        rollouts = [SimpleNamespace(response_ids=visited, truncated=cut) for visited, _, cut in part]
        values = {i: table.detach().numpy()[visited] for i, (visited, _, _) in enumerate(part)}
        _, returns = advantages_and_returns(rollouts, [reward for _, reward, _ in part], values, {},
                                            Config(critic_lam=lam, truncation_bootstrap=bootstrap))
        states = torch.tensor([s for visited, _, _ in part for s in visited])
        targets = torch.from_numpy(np.concatenate([returns[i] for i in range(len(part))]))
        optimizer.zero_grad()
        value_loss(table[states], table.detach()[states], targets, 0.5).mean().backward()
        optimizer.step()
        if start >= 6000:
            averaged += table.detach() / 60
    assert (averaged[1:6] - torch.arange(1, 6) / 6).abs().max() < 0.03, averaged


def test_the_known_values_of_a_chain_are_learned_by_the_critic(tied_model, one_process):
    """The walk as token ids behind a prompt, through packing, GAE, value loss and the transformer."""
    critic = load_critic(tied_model, one_process[2], "float32")
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3, weight_decay=0.0)
    data = [([s + 2 for s in visited[1:]] + [1], reward) for visited, reward, _ in walks(8000, 1)]  # 1: EOS
    explained, start = [], 0
    for step in range(80):
        part = data[start:start + 100]
        start += 100
        rollouts = [SimpleNamespace(prompt_ids=[20, 21, 5], response_ids=ids, truncated=False,
                                    rollout_logprobs=np.zeros(len(ids), np.float32)) for ids, _ in part]
        (batch,) = pack(rollouts, range(len(rollouts)), 10**6, 0, 1, one_process[2])
        values = token_values(critic, batch)
        batch.old_values = values.detach()
        old = to_responses([batch], "old_values")
        _, returns = advantages_and_returns(rollouts, [reward for _, reward in part], old, {}, Config())
        batch.returns = from_responses(batch, returns)
        value_loss(values, batch.old_values, batch.returns, 0.5).mean().backward()
        optimizer_step(critic, optimizer, 2e-3 * min(1, 2 - step / 40), grad_clip=1.0)
        explained.append(explain_values(old, returns, returns)["explained_variance"])
    state = batch.ids[batch.logit_index] - 2  # the state before each token: the last one visited
    error = [abs(float(batch.old_values[state == s].mean()) - s / 6) for s in range(1, 6)]
    assert explained[0] == 0 and np.mean(explained[-10:]) > 0.1 and max(error) < 0.12, (error, explained[-10:])


# ---------------------------------------------------------------------------------------------------------------
# settings
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting, message", [
    (dict(lam=1.1), "lam"),  # what GRPO refuses too is in test_drift.py
    (dict(critic_lr=0.0), "critic_lr"), (dict(gammas={"task": 1.0}), "gammas"), (dict(estimator="rloo"), "group_size"),
    (dict(gammas={"task": 1.0, "repetition": 0.99}, repetition_coef=0.05, lam=0.95), "gammas"),
    (dict(kl_target=0.1), "kl_in"), (dict(estimator="reinforce_pp", lam=0.9), "no critic"),
    (dict(estimator="rloo", group_size=2, whiten=True), "whiten"),
    (dict(estimator="reinforce_pp", prompts_per_step=1), "prompts_per_step"),
    (dict(critic_warmup_steps=100), "critic_warmup_steps"), (dict(value_clip=-1.0), "value_clip"),
])
def test_bad_settings_are_one_line(setting, message):
    with pytest.raises(ConfigError) as error:
        check_config(Config(**setting), world=2)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_defaults_and_demystifys_discounts_pass_the_check():
    check_config(Config(), world=8)
    check_config(Config(gammas={"task": 1.0, "repetition": 0.99}, repetition_coef=0.05), world=8)
    check_config(Config(estimator="rloo", group_size=4), world=8)
    check_config(Config(estimator="rloo", group_size=4, whiten=False), world=8)
    check_config(Config(estimator="reinforce_pp", prompts_per_step=1, whiten=False), world=1)


# ---------------------------------------------------------------------------------------------------------------
# the script, as a user starts it
# ---------------------------------------------------------------------------------------------------------------

TINY = """--data tiny_countdown --template tiny_countdown --reward tinyzero_countdown --max_prompt_len 16
--max_response_len 24 --prompts_per_step 8 --num_steps 3 --eval_prompts 0 --save_every 2 --checkpointing False
--max_num_seqs 16 --lr 3e-3 --critic_lr 1e-2 --max_tokens_per_gpu 200 --report_every 0""".split()
FULL = """--updates_per_step 2 --epochs_per_step 2 --critic_warmup_steps 1 --kl_in reward_k1 --kl_coef 0.1
--kl_target 0.05 --entropy_coef 0.01 --lam 0.9 --dual_clip 3 --truncation_bootstrap value --repetition_coef 0.05
--repetition_ngram 1 --reward_parts {'soft_overlong':1.0}""".split()


def train(folder, path, *args, nproc=1, through=None, env=None):
    """Start the script, or tests/watched_ppo.py, or the script through tests/kill_at.py."""
    os.makedirs(folder, exist_ok=True)
    script = [os.path.join(ROOT, "tests", through)] if through else []
    script += [] if through == "watched_ppo.py" else [os.path.join(ROOT, "train_ppo.py")]
    return run_script(*script, *TINY, "--model", path, *args, nproc=nproc, cwd=folder, env=env)


def rows_of(folder):
    with open(os.path.join(folder, "out", "run", "metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, tied_model):
    folder = tmp_path_factory.mktemp("one")
    done = train(folder, tied_model, *FULL, through="watched_ppo.py")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, torch.load(folder / "events.pt")


def test_a_run_logs_the_critic_beside_all_columns_of_grpo(one_rank):
    from test_end_to_end import COLUMNS

    rows = rows_of(one_rank[0])
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(COLUMNS) <= set(row), set(COLUMNS) - set(row)
        assert row["mismatch_mean"] < LOGPROB_MEAN and row["critic_grad_norm"] > 0 and row["value_loss"] > 0
        assert row["critic_lr"] == 1e-2 and row["seconds_values"] > 0 and row["kl_coef"] > 0
    assert [row["lr"] for row in rows] == [0, 3e-3, 3e-3]
    assert [row["grad_norm"] > 0 for row in rows] == [False, True, True]
    assert rows[0]["value_mean"] == 0 and rows[1]["value_mean"] != 0
    assert rows[0]["explained_variance"] == pytest.approx(0)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[2]["kl"] > 0 and rows[0]["kl_coef"] == 0.1


def test_the_warm_up_leaves_the_policy_unchanged_while_the_critic_steps(one_rank):
    weights = {e["sync"]: e["weights"] for e in one_rank[1] if "sync" in e}
    assert sorted(weights) == [0, 1, 2]  # step s samples with the weights of version s - 1
    assert weights[0] == weights[1] != weights[2]  # step 1 is the warm-up
    first = []
    for e in one_rank[1]:
        if e.get("sync") == 1:
            break
        first.append(e.get("step"))
    assert first == [None, "Critic", "Critic", "Critic", "Critic"]  # 2 epochs x 2 parts


def test_old_logprobs_values_and_advantages_are_fixed_within_a_step(one_rank):
    seen = []
    for e in one_rank[1] + [{"sync": None}]:
        if "sync" in e:
            assert all(fixed == seen[0] for fixed in seen)
            seen = []
        else:
            seen.append(e["fixed"])
            assert len(e["fixed"]) > 1


def test_two_ranks_train_as_one_up_to_rounding(one_rank, tied_model, tmp_path):
    done = train(tmp_path, tied_model, *FULL, nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(rows_of(one_rank[0]), rows_of(tmp_path), strict=False):
        for name in ("reward", "response_len", "entropy", "loss", "grad_norm", "value_loss", "value_mean",
                     "return_mean", "advantage_std", "explained_variance", "critic_grad_norm", "kl_coef", "kl"):
            assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)


def test_resume_after_sigkill_is_bit_identical(one_rank, tied_model, tmp_path):
    """kill -9 between the update of step 3 and its checkpoint, with the real engine; test_faults.py has the rest."""
    first = train(tmp_path, tied_model, *FULL, through="kill_at.py", env={"FAULT_AT": "optimizer:3"})
    assert first.returncode != 0 and "step    2/3" in first.stdout, first.stderr[-3000:]
    second = train(tmp_path, tied_model, *FULL)
    assert second.returncode == 0 and "resumed out/run at step 2" in second.stdout, second.stderr[-3000:]
    assert_same(everything_of(one_rank[0]), everything_of(tmp_path))


@pytest.mark.parametrize("args", [["--estimator", "reinforce_pp"],
                                  ["--estimator", "rloo", "--group_size", "4", "--prompts_per_step", "2"]],
                         ids=["reinforce_pp", "rloo"])
def test_the_estimators_without_a_critic_run_and_save_none(tied_model, tmp_path, args):
    done = train(tmp_path, tied_model, *args, "--num_steps", "1", "--max_response_len", "12")
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = rows_of(tmp_path)
    assert row["value_mean"] == 0 and row["critic_lr"] == 0
    with open(tmp_path / "out/run/step_000001/state.json") as f:
        assert json.load(f)["models"] == ["model"]


def test_a_critic_with_another_vocabulary_is_refused_before_the_engine(tied_model, tmp_path):
    from transformers import AutoTokenizer

    smaller = save_tiny_model(tmp_path / "smaller", vocab_size=120)
    other = save_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    for critic in (smaller, other):
        done = train(tmp_path, tied_model, "--critic_model", critic, nproc=None, env=without_an_engine(tmp_path))
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert re.search(r"^error: critic_model .* has another vocabulary", done.stderr, re.M), done.stderr[-2000:]


def test_a_checkpoint_without_a_critic_is_refused_before_the_engine(tied_model, tmp_path, one_process):
    first = train(tmp_path, tied_model, "--num_steps", "1", "--max_response_len", "4")
    assert first.returncode == 0, first.stderr[-3000:]
    policy = load_policy(tied_model, one_process[2], "float32")
    run = str(tmp_path / "out/run")
    models = {"model": (policy, torch.optim.AdamW(policy.parameters()))}
    assert checkpoint.save(run, 1, models, {"prompts_seen": 8}) == ""
    done = train(tmp_path, tied_model, "--num_steps", "2", "--max_response_len", "4", nproc=None,
                 env=without_an_engine(tmp_path))
    assert done.returncode != 0 and "error: out/run/step_000001 holds no critic" in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
