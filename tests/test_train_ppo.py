"""python -m pytest tests/test_train_ppo.py: the math of train_ppo.py by hand, its critic, and two real steps of the script."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import COLUMN, LOGPROB_MEAN, RELATIVE, ROOT, full, laid_out_as, run_script, save_tiny_model, without_an_engine
from runs import assert_same, everything_of
from test_policy import make_rollouts

from onebox import checkpoint
import policy as model
from onebox.config import ConfigError
from onebox.metrics import StepStats
from train_ppo import (
    Config,
    adapt_kl_coef,
    advantages_and_returns,
    check_config,
    dual_clip,
    dual_clip_loss,
    explain_values,
    gae,
    gae_of_types,
    leave_one_out,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
    whitens,
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
        _, returns = advantages_and_returns([rollout(length, finish_reason)], [2.0], {0: np.zeros(length)}, {0: 0.0},
                                            {"task": 0.5}, Config(gamma=0.5))
        assert returns[0].tolist() == [2.0 * 0.5 ** (length - 1 - t) for t in range(length)]


def test_what_follows_a_truncated_response_is_nothing_or_its_last_value_by_setting():
    values = {0: np.array([0.1, 0.2, 0.4]), 1: np.array([0.1, 0.2, 0.4])}
    rollouts, no_kl = [rollout(3, "stop"), rollout(3, "length")], {0: 0.0, 1: 0.0}
    for setting, want in (("zero", 1.0), ("value", 1.4)):
        _, returns = advantages_and_returns(rollouts, [1.0, 1.0], values, no_kl, {"task": 1.0}, Config(truncation_bootstrap=setting))
        assert returns[0].tolist() == pytest.approx([1.0] * 3) and returns[1].tolist() == pytest.approx([want] * 3), setting


def test_the_returns_are_the_critics_own_gae_plus_the_old_values():
    values = {0: np.array([0.3, -0.2, 0.5])}
    for lam, critic_lam in ((0.5, 1.0), (1.0, 0.5)):
        advantages, returns = advantages_and_returns([rollout(3)], [1.0], values, {0: 0.0}, {"task": 1.0},
                                                     Config(lam=lam, critic_lam=critic_lam))
        rewards = np.array([0.0, 0.0, 1.0])
        assert np.allclose(advantages[0], gae_by_the_sum(rewards, values[0], 1.0, lam, 0.0))
        assert np.allclose(returns[0], gae_by_the_sum(rewards, values[0], 1.0, critic_lam, 0.0) + values[0])


def test_the_length_adaptive_lambda_is_1_minus_1_over_alpha_times_length():
    for length, lam in ((40, 1 - 1 / (0.05 * 40)), (100, 0.8), (10, 0.0)):  # never below 0
        values = {0: np.linspace(0, 1, length)}
        rewards = np.append(np.zeros(length - 1), 1.0)
        advantages, returns = advantages_and_returns([rollout(length)], [1.0], values, {0: 0.0}, {"task": 1.0},
                                                     Config(length_adaptive_lam=0.05))
        assert np.allclose(advantages[0], gae_by_the_sum(rewards, values[0], 1.0, lam, 0.0)) and np.allclose(returns[0], 1.0)


def test_policy_equal_to_reference_leaves_the_reward_as_it_is_and_a_gap_lowers_it():
    old = np.array([-1.0, -5.0, -0.2])
    same = token_rewards(1.0, 3, 0.1 * (old - old), 0.0, {"task": 1.0})["task"]
    assert same.tolist() == [0.0, 0.0, 1.0]
    surer = token_rewards(1.0, 3, 0.1 * (old - (old - 2)), 0.0, {"task": 1.0})["task"]  # surer than the reference: penalised
    assert surer.tolist() == pytest.approx([-0.2, -0.2, 0.8])


def test_one_discount_per_reward_type_is_the_sum_of_the_returns_minus_the_value():
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
    _, returns = advantages_and_returns([twice], [1.0], {0: np.zeros(7)}, {0: 0.0}, {"task": 0.0}, cfg)
    assert returns[0].tolist() == pytest.approx([0, 0, 0, -0.1, -0.1, -0.1, 1.0])


def test_a_group_that_agrees_stays_exactly_0_up_to_the_loss_with_rloo_as_it_comes():
    scores, lens = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), [10, 100, 50, 50]  # the long answer is the wrong one
    cfg = Config(estimator="rloo", group_size=2)
    values = {i: np.zeros(n) for i, n in enumerate(lens)}
    advantages, _ = advantages_and_returns([rollout(n) for n in lens], leave_one_out(scores).flatten().tolist(), values,
                                           dict.fromkeys(values, 0.0), {"task": 1.0}, cfg)
    advantages = whiten(advantages) if whitens(cfg) else advantages  # as main() does
    assert [set(a.tolist()) for a in advantages.values()] == [{1.0}, {-1.0}, {0.0}, {0.0}]
    logprobs = torch.zeros(210, requires_grad=True)
    batch = SimpleNamespace(rollout_logprobs=torch.zeros(210), ref_logprobs=None)
    tokens = torch.from_numpy(np.concatenate(list(advantages.values()))).float()
    dual_clip_loss(logprobs, torch.zeros(210), torch.zeros(210), tokens, batch, 0.0, cfg).sum().backward()
    assert [set(g.tolist()) for g in logprobs.grad.split(lens)] == [{-1.0}, {1.0}, {0.0}, {0.0}]


def test_what_is_whitened_follows_the_estimator_unless_it_is_said():
    chosen = {name: whitens(Config(estimator=name, group_size=2)) for name in ("gae", "reinforce_pp", "rloo")}
    assert chosen == {"gae": True, "reinforce_pp": True, "rloo": False}
    assert not whitens(Config(whiten=False)) and not whitens(Config(estimator="reinforce_pp", whiten=False))


def test_whitening_is_over_all_tokens_and_exactly_zero_where_all_agree():
    got = whiten({0: np.array([1.0, 3.0]), 5: np.array([5.0, 7.0])})
    assert np.concatenate(list(got.values())).tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert all((a == 0).all() for a in whiten({i: np.full(7, 0.1) for i in range(8)}).values())
    assert whiten({}) == {}


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    got = leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1]]))
    assert got[0].tolist() == pytest.approx([1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3]) and got[1].tolist() == [0.0] * 4


def test_reinforce_pp_is_the_critic_that_says_zero():
    advantages, _ = advantages_and_returns([rollout(2), rollout(1)], [1.0, 0.0], {0: np.zeros(2), 1: np.zeros(1)},
                                           {0: np.array([0.1, 0.2]), 1: np.zeros(1)}, {"task": 1.0}, Config(estimator="reinforce_pp"))
    assert advantages[0].tolist() == pytest.approx([0.7, 0.8]) and advantages[1].tolist() == [0.0]


# ---------------------------------------------------------------------------------------------------------------
# losses
# ---------------------------------------------------------------------------------------------------------------


def test_the_value_clip_stops_the_gradient_only_on_the_way_to_the_return():
    for value, returned, moves in [(0.4, 2.0, True), (0.6, 2.0, False), (-0.6, 2.0, True), (-0.6, -2.0, False), (0.6, -2.0, True),
                                   (3.0, 0.6, True)]:
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


def test_the_policy_clip_has_four_quadrants_and_the_dual_clip_a_fifth():
    for advantage, ratio, plain, dual in [(1, 1.5, False, False), (1, 0.5, True, True), (-1, 0.5, False, False),
                                          (-1, 1.5, True, True), (-1, 3.5, True, False), (1, 3.5, False, False)]:
        for bound, moves in ((0.0, plain), (3.0, dual)):
            logprobs, advantages = torch.tensor([ratio]).log().requires_grad_(), torch.tensor([float(advantage)])
            loss = dual_clip(policy_loss(logprobs, torch.zeros(1), advantages, 0.2, 0.2), advantages, bound)
            loss.sum().backward()
            assert (logprobs.grad.item() != 0) == moves, (advantage, ratio, bound)
    big = dual_clip(torch.tensor([7.0]), torch.tensor([-2.0]), 3.0)
    assert big.item() == 6.0


def test_the_adaptive_kl_coefficient_rises_above_the_target_and_falls_below():
    assert adapt_kl_coef(0.1, 0.05, 0.0, 256, 10_000) == 0.1
    assert adapt_kl_coef(0.1, 0.055, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 0.0256))
    assert adapt_kl_coef(0.1, 5.0, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 + 0.2 * 0.0256))
    assert adapt_kl_coef(0.1, -5.0, 0.05, 256, 10_000) == pytest.approx(0.1 * (1 - 0.2 * 0.0256))


def test_explained_variance_is_1_for_a_critic_that_knows_and_0_for_a_constant():
    returns = {0: np.array([0.0, 1.0]), 1: np.array([2.0])}
    assert explain_values(returns, returns, returns)["explained_variance"] == 1
    assert explain_values({0: np.full(2, 5.0), 1: np.full(1, 5.0)}, returns, returns)["explained_variance"] == 0
    row = explain_values({1: np.array([1.0]), 0: np.array([0.0, 0.5])}, returns, returns)  # in whatever order
    assert row["explained_variance"] == pytest.approx(0.75) and row["value_mean"] == 0.5 and row["return_mean"] == 1


# ---------------------------------------------------------------------------------------------------------------
# the critic
# ---------------------------------------------------------------------------------------------------------------


def values_of(critic, rollouts, device, max_tokens=1000):
    batches = model.pack(rollouts, range(len(rollouts)), max_tokens, 0, 1, device)
    for batch in batches:
        batch.old_values = model.token_values(critic, batch).detach()
    return model.to_responses(batches, "old_values")


def with_random_head(critic):
    torch.manual_seed(0)
    for p in critic.head.parameters():
        p.data.copy_(laid_out_as(p, torch.randn(p.shape)))
    return critic


def test_a_new_critic_says_zero_and_has_a_head_of_its_own_in_fp32(tied_model, one_process):
    critic = model.load_critic(tied_model, one_process[2], "bfloat16")
    values = values_of(critic, make_rollouts(), one_process[2])
    assert [len(v) for v in values.values()] == [4, 1, 11, 30, 7] and all((v == 0).all() for v in values.values())
    assert not any("lm_head" in name for name, _ in critic.named_parameters())
    assert all(p.dtype == torch.float32 for p in critic.parameters())
    (batch,) = model.pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    values = model.token_values(with_random_head(critic), batch)
    assert values.dtype == torch.float32 and (values != values.bfloat16().float()).float().mean() > 0.9  # not rounded


def test_the_value_of_a_token_is_that_of_the_state_before_it(tied_model, one_process):
    critic = with_random_head(model.load_critic(tied_model, one_process[2], "float32"))
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


def test_values_and_advantages_do_not_depend_on_micro_batches_and_find_their_tokens_again(tied_model, one_process):
    critic = with_random_head(model.load_critic(tied_model, one_process[2], "float32"))
    rollouts = make_rollouts()
    whole = values_of(critic, rollouts, one_process[2])
    for max_tokens in (40, 1):
        cut = values_of(critic, rollouts, one_process[2], max_tokens)
        assert cut.keys() == whole.keys() and all(np.allclose(cut[i], whole[i], atol=RELATIVE * 24) for i in whole)  # values up to 24
    numbers = {i: np.arange(len(r.response_ids)) + 100.0 * i for i, r in enumerate(rollouts)}
    for batch in model.pack(rollouts, range(5), 40, 0, 1, one_process[2]):
        got = model.from_responses(batch, numbers)
        for i in batch.response_index.unique().tolist():
            assert got[batch.response_index == i].tolist() == numbers[i].tolist()
    (empty,) = model.pack(rollouts, [], 40, 0, 1, one_process[2])
    assert model.from_responses(empty, {}).shape == (0,) and model.token_values(critic, empty).shape == (0,)


def test_a_step_of_the_critic_leaves_the_policy_untouched(tied_model, one_process):
    policy, critic = (load(tied_model, one_process[2], "float32") for load in (model.load_policy, model.load_critic))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    before = {n: full(p).clone() for n, p in policy.named_parameters()}
    old = {n: full(p).clone() for n, p in critic.named_parameters()}
    for _ in range(2):  # at the first the head is zero, so that only the head has a gradient
        (batch,) = model.pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
        values = model.token_values(critic, batch)
        value_loss(values, torch.zeros_like(values), torch.ones_like(values), 0.0).mean().backward()
        model.clip_and_step(critic, optimizer, 1.0, 1e-2)
    assert all(torch.equal(before[n], full(p)) and p.grad is None for n, p in policy.named_parameters())
    assert all(not torch.equal(old[n], full(p)) for n, p in critic.named_parameters() if "embed" not in n)


def test_a_checkpoint_holds_both_models_and_one_without_a_critic_is_told(tmp_path, tied_model, one_process):
    def fresh():
        models = [load(tied_model, one_process[2], "float32") for load in (model.load_policy, model.load_critic)]
        return [(m, torch.optim.AdamW(m.parameters(), lr=1e-3)) for m in models]

    (policy, optimizer), (critic, critic_optimizer) = fresh()
    with_random_head(critic)
    (batch,) = model.pack(make_rollouts(), range(5), 1000, 0, 1, one_process[2])
    model.token_values(critic, batch).sum().backward()
    model.clip_and_step(critic, critic_optimizer, 1.0, 1e-3)
    before = [full(p).clone() for p in policy.parameters()]
    checkpoint.save_state(str(tmp_path), 1, policy, optimizer, {"kl_coef": 0.5}, critic=(critic, critic_optimizer))
    assert all(torch.equal(b, full(p)) for b, p in zip(before, policy.parameters(), strict=False))
    (again, again_optimizer), pair = fresh()
    checkpoint.load_state(str(tmp_path), 1, again, again_optimizer, critic=pair)
    for a, b in zip([*policy.parameters(), *critic.parameters()], [*again.parameters(), *pair[0].parameters()], strict=False):
        assert torch.equal(full(a), full(b))
    assert all(torch.equal(full(a["exp_avg"]), full(b["exp_avg"]))
               for a, b in zip(critic_optimizer.state.values(), pair[1].state.values(), strict=False))
    first = checkpoint.find(str(tmp_path), {})
    assert first["models"] == ["model", "critic"] and first["kl_coef"] == 0.5
    checkpoint.save_state(str(tmp_path), 2, policy, optimizer, {})
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
        yield visited, 0.0 if cut else float(s > states), cut  # a cut walk ends in its last state, with that one's value


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
        _, returns = advantages_and_returns(rollouts, [reward for _, reward, _ in part], values, dict.fromkeys(values, 0.0),
                                            {"task": 1.0}, Config(critic_lam=lam, truncation_bootstrap=bootstrap))
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
    critic = model.load_critic(tied_model, one_process[2], "float32")
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3, weight_decay=0.0)
    data = [([s + 2 for s in visited[1:]] + [1], reward) for visited, reward, _ in walks(8000, 1)]  # 1 is EOS: off the end
    explained, start = [], 0
    for step in range(80):
        part = data[start:start + 100]
        start += 100
        rollouts = [SimpleNamespace(prompt_ids=[20, 21, 5], response_ids=ids, truncated=False,
                                    rollout_logprobs=np.zeros(len(ids), np.float32)) for ids, _ in part]
        (batch,) = model.pack(rollouts, range(len(rollouts)), 10**6, 0, 1, one_process[2])
        values = model.token_values(critic, batch)
        batch.old_values = values.detach()
        old = model.to_responses([batch], "old_values")
        _, returns = advantages_and_returns(rollouts, [reward for _, reward in part], old, dict.fromkeys(old, 0.0),
                                            {"task": 1.0}, Config())
        batch.returns = model.from_responses(batch, returns)
        value_loss(values, batch.old_values, batch.returns, 0.5).mean().backward()
        model.clip_and_step(critic, optimizer, 1.0, 2e-3 * min(1, 2 - step / 40))
        explained.append(explain_values(old, returns, returns)["explained_variance"])
    state = batch.ids[batch.logit_index] - 2  # the state before each token: the last one visited
    error = [abs(float(batch.old_values[state == s].mean()) - s / 6) for s in range(1, 6)]
    assert explained[0] == 0 and np.mean(explained[-10:]) > 0.1 and max(error) < 0.12, (error, explained[-10:])


# ---------------------------------------------------------------------------------------------------------------
# settings
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting, message", [
    (dict(updates_per_step=7), "updates_per_step"), (dict(epochs_per_step=0), "epochs_per_step"), (dict(lam=1.1), "lam"),
    (dict(critic_lr=0.0), "critic_lr"), (dict(gammas={"task": 1.0}), "gammas"), (dict(estimator="rloo"), "group_size"),
    (dict(gammas={"task": 1.0, "repetition": 0.99}, repetition_coef=0.05, lam=0.95), "gammas"), (dict(kl_target=0.1), "kl_in"),
    (dict(estimator="reinforce_pp", lam=0.9), "no critic"), (dict(dual_clip=0.5), "dual_clip"),
    (dict(estimator="rloo", group_size=2, whiten=True), "whiten"),
    (dict(estimator="reinforce_pp", prompts_per_step=1), "prompts_per_step"),
    (dict(critic_warmup_steps=100), "critic_warmup_steps"), (dict(top_p=0.9), "top_p"), (dict(value_clip=-1.0), "value_clip"),
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

TINY = ["--data", "tiny_countdown", "--template", "tiny_countdown", "--reward", "tinyzero_countdown", "--max_prompt_len", "16",
        "--max_response_len", "24", "--prompts_per_step", "8", "--num_steps", "3", "--eval_prompts", "0", "--save_every", "2",
        "--checkpointing", "False", "--max_num_seqs", "16", "--lr", "3e-3", "--critic_lr", "1e-2", "--max_tokens_per_gpu", "200", "--report_every", "0"]
FULL = ["--updates_per_step", "2", "--epochs_per_step", "2", "--critic_warmup_steps", "1", "--kl_in", "reward_k1", "--kl_coef", "0.1",
        "--kl_target", "0.05", "--entropy_coef", "0.01", "--lam", "0.9", "--dual_clip", "3", "--truncation_bootstrap", "value",
        "--repetition_coef", "0.05", "--repetition_ngram", "1", "--reward_parts", "{'soft_overlong': 1.0}"]

# The script with a record of what it must not change: weights around every step, old log-probs and values in every epoch.
DRIVER = """
import sys
import torch
import policy, train_ppo

def digest(module):
    local = lambda tensor: getattr(tensor, "to_local", lambda: tensor)().detach()
    return [float(local(p).double().abs().sum()) if local(p).numel() else 0.0 for p in module.parameters()]

real_pack, real_step, real_sync, batches = policy.pack, policy.clip_and_step, train_ppo.sampler.sync_weights, []
events = []
state = {}

def pack(*args):
    found = real_pack(*args)
    batches.extend(found)
    return found

def step(module, *args):
    name = type(module).__name__.replace("FSDP", "")
    fixed = [tuple(float(x.double().sum()) for x in (b.old_logprobs, b.old_values, b.returns, b.advantages)) for b in batches]
    events.append({"step": name, "fixed": fixed})
    other = state["Policy"] if name == "Critic" else None
    before = digest(other) if other is not None else None
    norm = real_step(module, *args)
    assert other is None or digest(other) == before, "the critic's step moved the policy"
    return norm

def sync(hf, engine, dtype, version):
    events.append({"sync": version, "weights": digest(hf)})
    batches.clear()
    return real_sync(hf, engine, dtype, version)

real_load = policy.load_policy
def load(*args, **kwargs):
    state.setdefault("Policy", real_load(*args, **kwargs))
    return state["Policy"] if kwargs.get("trainable", True) else real_load(*args, **kwargs)

policy.pack, policy.clip_and_step, train_ppo.sampler.sync_weights, policy.load_policy = pack, step, sync, load
train_ppo.main()
if policy.dist.get_rank() == 0:
    torch.save(events, "events.pt")
"""


def train(folder, path, *args, nproc=1, driver=False, env=None):
    os.makedirs(folder, exist_ok=True)
    script = os.path.join(ROOT, "train_ppo.py")
    if driver:
        script = os.path.join(folder, "train_ppo_watched.py")
        with open(script, "w") as f:
            f.write(DRIVER)
    return run_script(script, *TINY, "--model", path, *args, nproc=nproc, cwd=folder, env=env)


def rows_of(folder):
    with open(os.path.join(folder, "out", "run", "metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, tied_model):
    folder = tmp_path_factory.mktemp("one")
    done = train(folder, tied_model, *FULL, driver=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, torch.load(folder / "events.pt")


def test_a_run_logs_the_critic_beside_all_columns_of_grpo(one_rank):
    from test_end_to_end import COLUMNS

    rows = rows_of(one_rank[0])
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(COLUMNS) <= set(row), set(COLUMNS) - set(row)
        assert row["mismatch_mean"] < LOGPROB_MEAN and row["critic_grad_norm"] > 0 and row["value_loss"] > 0 and row["critic_lr"] == 1e-2
        assert row["seconds_values"] > 0 and row["kl_coef"] > 0
    assert [row["lr"] for row in rows] == [0, 3e-3, 3e-3] and [row["grad_norm"] > 0 for row in rows] == [False, True, True]
    assert rows[0]["value_mean"] == 0 and rows[1]["value_mean"] != 0 and rows[0]["explained_variance"] == pytest.approx(0)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[2]["kl"] > 0 and rows[0]["kl_coef"] == 0.1


def test_the_warm_up_leaves_the_policy_bitwise_unchanged_while_the_critic_steps(one_rank):
    weights = {e["sync"]: e["weights"] for e in one_rank[1] if "sync" in e}
    assert weights[1] == weights[2] and weights[2] != weights[3]  # digests before each step: warm-up is step 1 alone
    first = []
    for e in one_rank[1]:
        if e.get("sync") == 2:
            break
        first.append(e.get("step"))
    assert first == [None, "Critic", "Critic", "Critic", "Critic"]  # 2 epochs x 2 parts


def test_old_logprobs_values_and_advantages_are_constant_over_epochs_and_parts(one_rank):
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
        for name in ("reward", "response_len", "entropy", "loss", "grad_norm", "value_loss", "value_mean", "return_mean",
                     "advantage_std", "explained_variance", "critic_grad_norm", "kl_coef", "kl"):
            assert a[name] == pytest.approx(b[name], **COLUMN), (a["step"], name)


def test_a_run_killed_after_its_last_step_and_started_again_is_the_run_that_was_not_stopped(one_rank, tied_model, tmp_path):
    """kill -9 between the update of step 3 and its checkpoint, with the real engine; tests/test_faults.py has the rest."""
    first = train(tmp_path, tied_model, *FULL, "--save_every", "2", env={"FAULT_AT": "optimizer:3"})
    assert first.returncode != 0 and "step    2/3" in first.stdout, first.stderr[-3000:]
    second = train(tmp_path, tied_model, *FULL, "--save_every", "2")
    assert second.returncode == 0 and "resumed out/run at step 2" in second.stdout, second.stderr[-3000:]
    assert_same(everything_of(one_rank[0]), everything_of(tmp_path))


@pytest.mark.parametrize("args", [["--estimator", "reinforce_pp"], ["--estimator", "rloo", "--group_size", "4", "--prompts_per_step", "2"]],
                         ids=["reinforce_pp", "rloo"])
def test_the_estimators_without_a_critic_run_and_save_none(tied_model, tmp_path, args):
    done = train(tmp_path, tied_model, *args, "--num_steps", "1", "--max_response_len", "12")
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = rows_of(tmp_path)
    assert row["value_mean"] == 0 and row["critic_lr"] == 0
    with open(tmp_path / "out/run/step_000001/state.json") as f:
        assert json.load(f)["models"] == ["model"]


def test_a_critic_with_another_vocabulary_is_refused_before_an_engine_is_made(tied_model, tmp_path):
    from transformers import AutoTokenizer

    smaller = save_tiny_model(tmp_path / "smaller", vocab_size=120)
    other = save_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    for critic in (smaller, other):
        done = train(tmp_path, tied_model, "--critic_model", critic, nproc=None, env=without_an_engine(tmp_path))
        assert done.returncode != 0 and re.search(r"^error: critic_model .* has another vocabulary", done.stderr, re.M), done.stderr[-2000:]
        assert "Traceback" not in done.stderr


def test_a_checkpoint_without_a_value_head_is_refused_before_an_engine_is_made(tied_model, tmp_path, one_process):
    first = train(tmp_path, tied_model, "--num_steps", "1", "--max_response_len", "4")
    assert first.returncode == 0, first.stderr[-3000:]
    policy = model.load_policy(tied_model, one_process[2], "float32")
    run = str(tmp_path / "out/run")
    checkpoint.save_state(run, 1, policy, torch.optim.AdamW(policy.parameters()), {"prompts_seen": 8})
    done = train(tmp_path, tied_model, "--num_steps", "2", "--max_response_len", "4", nproc=None, env=without_an_engine(tmp_path))
    assert done.returncode != 0 and "error: out/run/step_000001 holds no critic" in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
