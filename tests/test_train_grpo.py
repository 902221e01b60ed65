"""python -m pytest tests/test_train_grpo.py: the math of train_grpo.py, in numbers one can check by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

import train_grpo
from onebox.config import ConfigError
from onebox.rundir import Progress
from policy import learning_rate
from train_grpo import (
    Config,
    check_config,
    clipped_tokens,
    group_advantages,
    in_loss_mask,
    kl_penalty,
    mismatch_weights,
    needs_grad_mask,
    split_into_updates,
    policy_loss,
    sample_groups,
    token_loss,
    token_weights,
)

# ---------------------------------------------------------------------------------------------------------------
# sampling: rounds, groups, parts
# ---------------------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """Answers each round of prompts with rewards that were written down before: rounds[round][prompt][sample]."""

    def __init__(self, *rounds):
        self.rounds, self.uids, self.seeds, self.dropped = list(rounds), [], [], []

    def prompts_to_draw(self, cfg):
        return cfg.prompts_per_step

    def sample(self, prompts, seeds, scorer, temperature, keep):
        assert keep == len(prompts)
        self.uids += [p.uid for p in prompts]
        self.seeds += seeds
        return [SimpleNamespace(uid=p.uid, sample=k, score=SimpleNamespace(total=reward))
                for p, rewards in zip(prompts, self.rounds.pop(0), strict=True) for k, reward in enumerate(rewards)]


def sample_step(engine, prompts_seen=0, **settings):
    """Sample one step of three prompts, of ten there are, with two samples each."""
    prompts = [SimpleNamespace(uid=f"p{i}") for i in range(10)]
    mixture = [SimpleNamespace(start=0, size=10, weight=1.0)]
    cfg = Config(**{"prompts_per_step": 3, "group_size": 2, **settings})
    progress = Progress(prompts_seen=prompts_seen)
    groups, sampled = sample_groups(engine, None, prompts, mixture, progress, cfg)
    return groups, sampled, progress.prompts_seen


def totals(groups):
    return [[r.score.total for r in group] for group in groups]


def test_without_dynamic_sampling_one_round_is_the_step_whatever_it_earned():
    engine = ScriptedEngine([[1, 1], [1, 0], [0, 0]])
    groups, sampled, seen = sample_step(engine, prompts_seen=30)
    assert totals(groups) == [[1, 1], [1, 0], [0, 0]] and len(sampled) == 6 and seen == 33


def test_dynamic_sampling_asks_until_enough_groups_vary_and_stops_there():
    engine = ScriptedEngine([[1, 1], [1, 0], [0, 0]], [[0, 1], [1, 1], [2, 0]], [[0, 1], [0, 1], [0, 1]])
    groups, sampled, seen = sample_step(engine, prompts_seen=30, dynamic_sampling=5)
    assert totals(groups) == [[1, 0], [0, 1], [2, 0]] and len(sampled) == 12 and seen == 36
    assert len(engine.rounds) == 1  # was not asked for


def test_dynamic_sampling_keeps_whole_groups_and_no_more_than_a_step_has():
    engine = ScriptedEngine([[1, 1], [1, 0], [2, 0]], [[3, 0], [4, 0], [5, 0]])
    groups, sampled, seen = sample_step(engine, dynamic_sampling=5)
    assert totals(groups) == [[1, 0], [2, 0], [3, 0]]
    assert all([r.sample for r in group] == [0, 1] and len({r.uid for r in group}) == 1 for group in groups)
    assert len(sampled) == 12 and seen == 6  # also what was dropped is told, and its draws are used up


def test_a_step_without_a_group_that_varies_is_empty_and_uses_its_draws():
    engine = ScriptedEngine([[1, 1], [1, 1], [0, 0]], [[0, 0], [0, 0], [1, 1]])
    groups, sampled, seen = sample_step(engine, prompts_seen=30, dynamic_sampling=1)
    assert groups == [] and len(sampled) == 12 and seen == 36
    assert split_into_updates(0, 2, 4) == []
    rewards = torch.tensor([], dtype=torch.float64).reshape(-1, 2)  # as main() does it
    assert group_advantages(rewards, True).flatten().tolist() == []


def test_prompts_and_seeds_follow_from_the_number_of_the_draw():
    ones, once = [[[1, 0]] for _ in range(12)], [[[1, 0]] * 12]
    step_by_step, at_once = ScriptedEngine(*ones), ScriptedEngine(*once)
    for seen in range(12):  # two more than there are prompts: two are drawn again
        sample_step(step_by_step, seen, prompts_per_step=1)
    sample_step(at_once, prompts_per_step=12)
    assert step_by_step.uids == at_once.uids and step_by_step.seeds == at_once.seeds
    assert len(set(at_once.uids)) == 10 and len({seed for seeds in at_once.seeds for seed in seeds}) == 24


def test_the_parts_of_a_step_hold_whole_groups_and_every_response_once():
    def parts(*args):
        return [part.tolist() for part in split_into_updates(*args)]

    assert parts(6, 2, 3) == [[0, 1], [2, 3], [4, 5]] and parts(6, 3, 1) == [[0, 1, 2, 3, 4, 5]]
    assert parts(10, 2, 2) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]  # five groups
    assert parts(4, 2, 3) == [[0, 1], [2, 3]]  # fewer groups than updates: fewer updates


# ---------------------------------------------------------------------------------------------------------------
# advantages and weights
# ---------------------------------------------------------------------------------------------------------------


def test_advantages_are_reward_minus_mean_over_the_unbiased_std():
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), divide_by_std=True, eps=0.0)
    assert torch.allclose(got, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))  # mean 1/4, std sqrt((9 + 3) / 16 / 3) = 1/2
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), divide_by_std=False)
    assert torch.allclose(got, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.1, 2.3])
@pytest.mark.parametrize("group", [2, 8, 24, 32])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_variance_group_has_exactly_zero_advantage(value, group, divide, dtype):
    rewards = torch.tensor([[value] * group], dtype=dtype)
    assert (group_advantages(rewards, divide, eps=1e-8) == 0).all()


def test_a_group_of_one_has_advantage_zero_and_not_nan():
    assert group_advantages(torch.tensor([[0.7], [0.2]]), divide_by_std=True).tolist() == [[0.0], [0.0]]


def test_advantages_follow_the_row_and_do_not_depend_on_other_groups():
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    whole = group_advantages(rewards, True)
    assert torch.equal(whole[3:4], group_advantages(rewards[3:4], True))
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(group_advantages(rewards[:, shuffled], True), whole[:, shuffled])
    assert whole.sum(dim=1).abs().max() < 1e-5


def test_one_winner_of_32_has_advantage_5_48():
    rewards = torch.zeros(1, 32)
    rewards[0, 3] = 1
    assert group_advantages(rewards, True, eps=0.0)[0, 3].item() == pytest.approx(math.sqrt(30.03125), abs=1e-3)  # 5.48


def test_the_three_aggregations_by_hand():
    lens = torch.tensor([2, 6])  # two responses, eight tokens
    assert token_weights(lens, 2, 8, "seq_mean", 10).tolist() == pytest.approx([1 / 4, 1 / 12])
    assert token_weights(lens, 2, 8, "token_mean", 10).tolist() == pytest.approx([1 / 8, 1 / 8])
    assert token_weights(lens, 2, 8, "constant", 10).tolist() == pytest.approx([1 / 20, 1 / 20])
    # loss 1 on the first response's tokens, 3 on the second's
    for agg, want in (("seq_mean", 2.0), ("token_mean", (2 * 1 + 6 * 3) / 8), ("constant", (2 * 1 + 6 * 3) / 20)):
        weights = token_weights(lens, 2, 8, agg, 10)
        assert float(weights[0] * 2 * 1 + weights[1] * 6 * 3) == pytest.approx(want)


def test_an_update_without_responses_has_weights_and_no_division_by_zero():
    for agg in ("seq_mean", "token_mean", "constant"):
        assert token_weights(torch.tensor([3, 0]), 0, 0, agg, 10).isfinite().all()
        assert token_weights(torch.zeros(0, dtype=torch.long), 0, 0, agg, 10).tolist() == []


def test_truncated_responses_are_kept_or_masked_as_the_setting_says():
    responses = [SimpleNamespace(response_ids=[5, 1], truncated=False),
                 SimpleNamespace(response_ids=[5, 6], truncated=True), SimpleNamespace(response_ids=[], truncated=True)]
    assert in_loss_mask(responses, "keep").tolist() == [True, True, False]
    assert in_loss_mask(responses, "mask").tolist() == [True, False, False]


def test_only_a_nonzero_advantage_or_a_term_of_all_needs_a_backward_pass():
    advantages = torch.tensor([0.5, 0.0, -0.5])
    for settings in ({}, dict(kl_in="loss_k2", kl_coef=0.0), dict(kl_coef=0.1)):  # a coefficient without a penalty
        assert needs_grad_mask(advantages, Config(**settings)).tolist() == [True, False, True], settings
    for settings in (dict(entropy_coef=0.01), dict(kl_in="loss_k2"), dict(kl_in="loss_k3"), dict(kl_in="reward_k1")):
        assert needs_grad_mask(advantages, Config(**settings)).all(), settings


# ---------------------------------------------------------------------------------------------------------------
# loss
# ---------------------------------------------------------------------------------------------------------------


def test_clip_stops_the_gradient_only_on_the_side_that_gains():
    for advantage, log_ratio, moves in [(1, 0.5, False), (1, -0.5, True), (-1, 0.5, True), (-1, -0.5, False),
                                        (1, 0.1, True), (-1, -0.1, True)]:
        logprobs = torch.tensor([log_ratio], requires_grad=True)
        policy_loss(logprobs, torch.zeros(1), torch.tensor([float(advantage)]), 0.2, 0.28).sum().backward()
        assert (logprobs.grad.item() != 0) == moves, (advantage, log_ratio)


def test_clip_bounds_are_one_minus_low_and_one_plus_high():
    log = torch.tensor([1.27, 1.29, 0.81, 0.79]).log()
    loss = policy_loss(log, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2, 0.28)
    assert loss.tolist() == pytest.approx([-1.27, -1.28, 0.81, 0.8])


def test_the_first_update_is_the_plain_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -3.0]), 0.2, 0.2).sum().backward()
    assert logprobs.grad.tolist() == [-2.0, 3.0]


def test_the_policy_clip_has_four_quadrants_and_the_dual_clip_a_fifth():
    for advantage, ratio, plain, dual in [(1, 1.5, False, False), (1, 0.5, True, True), (-1, 0.5, False, False),
                                          (-1, 1.5, True, True), (-1, 3.5, True, False), (1, 3.5, False, False)]:
        for bound, moves in ((0.0, plain), (3.0, dual)):
            logprobs, clip = torch.tensor([ratio]).log().requires_grad_(), (0.2, 0.2, bound)
            advantages = torch.tensor([float(advantage)])
            policy_loss(logprobs, torch.zeros(1), advantages, *clip).sum().backward()
            assert (logprobs.grad.item() != 0) == moves, (advantage, ratio, bound)
            assert clipped_tokens(logprobs.detach(), torch.zeros(1), advantages, *clip).item() == (not moves)
    bad = torch.tensor([3.5]).log(), torch.zeros(1), torch.tensor([-2.0]), 0.2, 0.2
    assert policy_loss(*bad).item() == pytest.approx(7.0) and policy_loss(*bad, 3.0).item() == 6.0


def exact_kl_gradients(kl_in):
    """The expected gradient of the KL term over a categorical of six, by enumeration, and those of both exact KLs."""
    torch.manual_seed(0)
    theta = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(6, dtype=torch.float64).log_softmax(0)
    logp = theta.log_softmax(0)
    p = logp.detach().exp()
    cfg = Config(kl_in=kl_in, kl_coef=1.0, entropy_coef=0.0, mismatch_cap=2.0)
    batch = SimpleNamespace(rollout_logprobs=logp.detach(), old_logprobs=logp.detach(), ref_logprobs=ref,
                            advantages=torch.zeros(6, dtype=torch.float64))
    term, _ = token_loss(logp, torch.zeros(6), batch, cfg)
    (got,) = torch.autograd.grad((p * term).sum(), theta, retain_graph=True)
    (reverse,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), theta, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), theta)
    return got, reverse, forward


def test_k1_in_the_reward_and_k2_in_the_loss_descend_the_reverse_kl():
    for kl_in in ("reward_k1", "loss_k2"):
        got, reverse, forward = exact_kl_gradients(kl_in)
        assert torch.allclose(got, reverse, atol=1e-12) and not torch.allclose(got, forward, atol=1e-2), kl_in


def test_k3_in_the_loss_descends_the_forward_kl():
    got, reverse, forward = exact_kl_gradients("loss_k3")
    assert torch.allclose(got, forward, atol=1e-12) and not torch.allclose(got, reverse, atol=1e-2)


def test_without_a_kl_in_the_loss_there_is_no_gradient():
    logprobs = torch.tensor([-1.0, -5.0], requires_grad=True)
    for kl_in in ("none", "reward_k1"):
        penalty = kl_penalty(logprobs, torch.zeros(2), kl_in)
        assert (penalty == 0).all() and not penalty.requires_grad


def test_a_step_on_the_kl_term_alone_brings_the_policy_closer():
    """The sign: two published trainers maximize it."""
    for kl_in in ("reward_k1", "loss_k2", "loss_k3"):
        torch.manual_seed(0)
        theta = torch.randn(6, dtype=torch.float64)
        ref = torch.randn(6, dtype=torch.float64).log_softmax(0)
        got, _, _ = exact_kl_gradients(kl_in)

        def kl(t, ref=ref):
            return float((t.softmax(0) * (t.log_softmax(0) - ref)).sum())

        assert kl(theta - 0.1 * got) < kl(theta), kl_in


def test_policy_equal_to_reference_has_no_penalty():
    logprobs = torch.tensor([-1.0, -5.0])
    for kl_in in ("none", "loss_k2", "loss_k3"):
        assert (kl_penalty(logprobs, logprobs.clone(), kl_in) == 0).all()


def test_mismatch_weights_are_cut_above_the_cap_and_carry_no_gradient():
    old = torch.tensor([0.1, 1.0, 10.0]).log().requires_grad_()
    weights = mismatch_weights(old, torch.zeros(3), cap=2.0)
    assert weights.tolist() == pytest.approx([0.1, 1.0, 2.0]) and not weights.requires_grad
    assert mismatch_weights(old, torch.zeros(3), cap=0.0).tolist() == [1.0, 1.0, 1.0]


def test_token_loss_is_surrogate_times_mismatch_plus_kl_minus_entropy():
    cfg = Config(kl_in="loss_k2", kl_coef=0.1, entropy_coef=0.01, mismatch_cap=2.0)
    batch = SimpleNamespace(rollout_logprobs=torch.tensor([-0.5]), old_logprobs=torch.zeros(1),
                            ref_logprobs=torch.tensor([0.2]), advantages=torch.tensor([2.0]))
    loss, clipped = token_loss(torch.log(torch.tensor([1.1])), torch.tensor([3.0]), batch, cfg)
    x = 0.2 - math.log(1.1)
    assert loss.item() == pytest.approx(-1.1 * 2.0 * math.exp(0.5) + 0.1 * x * x / 2 - 0.01 * 3.0)
    assert not clipped.item()


def test_a_token_that_the_penalty_turns_around_is_clipped_on_its_new_side():
    """GRPO's penalty is part of the advantage of the token; PPO has it in the reward (test_train_ppo.py)."""
    cfg, zero = Config(kl_in="reward_k1", kl_coef=0.5), torch.zeros(2)
    batch = SimpleNamespace(rollout_logprobs=zero, old_logprobs=zero, ref_logprobs=torch.tensor([-4.0, 4.0]),
                            advantages=torch.tensor([1.0, -1.0]))  # the penalty is 2 and -2: what counts is -1 and 1
    logprobs = torch.tensor([0.5, 0.5], requires_grad=True)
    loss, clipped = token_loss(logprobs, zero, batch, cfg)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert loss.tolist() == pytest.approx([math.exp(0.5), -1.2])
    assert (gradient == 0).tolist() == clipped.tolist() == [False, True]


# ---------------------------------------------------------------------------------------------------------------
# settings
# ---------------------------------------------------------------------------------------------------------------


def test_learning_rate_of_every_step_by_hand():
    def lrs(schedule, **kw):
        return [learning_rate(s, 1.0, schedule, kw.get("warmup", 0), 4, kw.get("low", 0.0)) for s in (1, 2, 3, 4)]

    assert lrs("constant") == [1, 1, 1, 1]
    assert lrs("linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert lrs("cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert lrs("constant", warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert lrs("linear", low=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    before = [learning_rate(step, 1.0, "cosine", 1, 4, 0.0) for step in (-1, 0, 1)]  # PPO while only its critic learns
    assert before == [0, 0, 0.5]


@pytest.mark.parametrize("setting, message", [
    (dict(top_p=0.9), "top_p"), (dict(temperature=0.0), "temperature"),
    (dict(prompts_per_step=9, group_size=3), "2 engines"),
    (dict(tensor_parallel=3), "tensor_parallel"), (dict(updates_per_step=7), "updates_per_step"), (dict(lr=-1.0), "lr"),
    (dict(group_size=0), "group_size"), (dict(shard_size=3), "shard_size"), (dict(eval_every=-1), "eval_every"),
    (dict(seed=-1), "seed"), (dict(repetition_stop=1), "repetition_stop = 1"), (dict(stop=("</answer>", "")), "stop"),
    (dict(stop=(5,)), "as in ('</answer>',)"), (dict(dual_clip=0.5), "dual_clip"),
    (dict(epochs_per_step=0), "epochs_per_step"), (dict(adam_beta2=1.0), "adam_beta2"),
    (dict(reward="tinyzero_countdwn"), "did you mean"),
    (dict(group_size=1), "group_size"), (dict(group_size=1, kl_in="loss_k2", kl_coef=0.0), "group_size"),
    (dict(group_size=1, kl_in="loss_k3", dynamic_sampling=2), "dynamic_sampling"),
    (dict(finish_share=0.0), "leave out every group"), (dict(finish_share=1.5), "finish_share"),
    (dict(finish_share=0.5, dynamic_sampling=1), "finish_share = 0.5 and dynamic_sampling"),
    (dict(finish_share=0.5, prompts_per_step=9), "multiple of 2"),
])
def test_bad_settings_are_one_line(setting, message):
    with pytest.raises(ConfigError) as error:
        check_config(Config(**setting), world=2)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_defaults_and_a_group_of_one_with_another_term_pass_the_check():
    check_config(Config(), world=8)
    check_config(Config(group_size=1, entropy_coef=0.01), world=8)
    check_config(Config(group_size=1, kl_in="loss_k2"), world=8)
    check_config(Config(prompts_per_step=9, group_size=8), world=8)  # each engine draws one sample of each prompt
    assert train_grpo.Config().lr == 1e-6
