"""
PPO, from prompts to new weights: prompt -> rollout -> reward -> values -> advantage -> loss -> weight sync.

    torchrun --standalone --nproc-per-node=8 train_ppo.py recipes/tinyzero_ppo.py [--check] [--setting value ...]

`diff train_grpo.py train_ppo.py` is the lesson: what the group's mean is to GRPO, a critic is here, token by token.
REINFORCE++ has a critic that always says 0. RLOO has none either: it subtracts the mean of the group's other samples.
Start reading at main(). Shape comments: P prompts of a step, G samples a prompt, R = P * G responses, T response
tokens of a packed micro-batch. Every rank sees all rollouts of the step: the batch is global, only compute is shared.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Literal

from onebox.distributed import init_distributed, stable_seed  # first: sets what libraries read when imported

import torch

from data import check_rewards, draw, fingerprint, load_train_and_eval, reward_fingerprint
from eval import evaluate_and_log
from onebox.checkpoint import fingerprint_of_model
from onebox.config import BelowOne, NonNegative, OrFunction, Positive, Share, check_ranges, load_config, refuse
from onebox.flops import machine_of
from onebox.masters import on_device
from onebox.metrics import StepStats, empty_row, speed, summarize, trained_rows
from onebox.models import resolve_dtype, resolve_model
from onebox.rundir import RunSettings, entry, open_run
from onebox.steering import next_settings
from policy import check_compile, learning_rate, load_options, load_policy, make_adam, optimizer_step, pack
from policy import token_logprobs, trained_logprobs
from rewards import Scorer
from rollout import Engine, check_sampling

from dataclasses import replace  # this and what follows: what PPO needs in addition
from itertools import accumulate
import numpy as np
from onebox.distributed import max_over_ranks
from onebox.metrics import VALUE_COLUMNS, explain_values
from onebox.models import check_critic
from policy import from_responses, load_critic, of_all_ranks, of_responses, token_values
from rewards import dense_repetition


@dataclass(frozen=True)
class Config(RunSettings):  # in onebox/rundir.py: what does not change what is learned, but for finish_share
    # run
    seed: NonNegative[int] = 0           # decides data order and every sampled token
    num_steps: Positive[int] = 100       # steps of rollout + update

    # model
    model: str = "Qwen/Qwen2.5-3B"       # Hugging Face directory or hub id
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU
    critic_model: str = ""               # where the critic starts, with a value head of zeros; empty = model

    # data
    data: str | dict = "countdown"       # source name, or {name: weight}
    data_path: str | dict = ""           # file (JSONL, CSV, Parquet, ...), part of one or directory; {source: such}
    template: OrFunction[str | dict] = "tinyzero_base"  # name, text with {slots} or function; or {source: such}
    system_prompt: str | None = None     # instead of the template's own, in chats
    few_shot: tuple = ()                 # worked examples before the question: (("2 + 2?", "4"), ...)
    chat_template_kwargs: dict | None = None  # arguments of the model's chat template, e.g. {"enable_thinking": False}
    reward: OrFunction[str | dict | tuple] = "tinyzero_countdown"  # name, function, [(such, weight)]; {source: such}
    reward_parts: dict | None = None     # {part: weight} on top, e.g. {"soft_overlong": 1.0}; see rewards.PARTS
    max_prompt_len: Positive[int] = 256  # tokens; longer prompts are refused and counted

    # rollout
    prompts_per_step: Positive[int] = 128  # over all GPUs
    group_size: Positive[int] = 1        # samples of each prompt; only rloo needs more than one
    max_response_len: Positive[int] = 1024  # tokens
    temperature: float = 1.0             # the loss uses log-probs at this temperature too
    top_p: float = 1.0                   # must stay 1: anything less biases every ratio
    stop: tuple = ()                     # strings that end a response, e.g. ("</answer>",); EOS always does
    repetition_stop: NonNegative[int] = 0  # a pattern so many times in a row ends a response; 0 = off
    dynamic_sampling: NonNegative[int] = 0  # extra rollout rounds to replace groups whose rewards all agree (DAPO)

    # algorithm
    updates_per_step: Positive[int] = 1  # optimizer steps on one batch of rollouts, disjoint parts of it
    epochs_per_step: Positive[int] = 1   # passes over the same rollouts; old log-probs stay fixed
    estimator: Literal["gae", "reinforce_pp", "rloo"] = "gae"  # gae: with a critic; others: return-to-go
    gamma: Share[float] = 1.0            # discount a token
    gammas: dict | None = None           # {"task": 1.0, "repetition": 0.99}: one discount per reward type instead
    lam: Share[float] = 1.0              # GAE's lambda; at 0.95 a reward 100 tokens away counts 0.6 %
    critic_lam: Share[float] = 1.0       # lambda of the returns that the critic learns
    length_adaptive_lam: NonNegative[float] = 0.0  # alpha of VAPO: lam = 1 - 1 / (alpha * length); 0 = off
    whiten: bool | None = None           # advantages of the step to mean 0, std 1; None: on, but for rloo
    truncation_bootstrap: Literal["zero", "value"] = "zero"  # after a truncated response: 0, or its last value
    repetition_coef: NonNegative[float] = 0.0  # subtracted at each token of a repeated n-gram
    repetition_ngram: Positive[int] = 40  # its n
    value_clip: NonNegative[float] = 0.5  # how far a value may move from the old one and still get gradient; 0 = off
    loss_agg: Literal["seq_mean", "token_mean", "constant"] = "token_mean"  # GRPO, DAPO, Dr. GRPO
    clip_low: NonNegative[float] = 0.2   # ratio below 1 - clip_low, if the advantage is < 0, ...
    clip_high: NonNegative[float] = 0.2  # ... or above 1 + clip_high, if > 0: no gradient (DAPO 0.28)
    dual_clip: NonNegative[float] = 0.0  # ratio above which a bad token gets no gradient either, e.g. 3; 0 = off
    kl_in: Literal["none", "reward_k1", "loss_k2", "loss_k3"] = "none"  # KL to the initial model: in reward or loss
    kl_coef: NonNegative[float] = 0.001  # its weight
    kl_target: NonNegative[float] = 0.0  # KL per token that kl_coef is adapted to reach; 0 = fixed
    kl_horizon: Positive[int] = 10000    # kl_coef changes by at most 20 % per so many responses
    entropy_coef: NonNegative[float] = 0.0  # entropy bonus
    entropy_target: NonNegative[float] = 0.0  # nats a token, held by entropy_coef or temperature; 0 = off
    entropy_control: Literal["coef", "temperature"] = "coef"  # which of the two; rules: onebox/steering.py
    on_truncated: Literal["keep", "mask"] = "keep"  # both score them as wrong; mask: not in the loss
    mismatch_cap: NonNegative[float] = 2.0  # truncated importance weight of trainer over engine, 0 = off

    # optimizer
    lr: NonNegative[float] = 1e-6        # peak
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    lr_min_ratio: Share[float] = 0.0     # where linear and cosine end, as a share of lr
    warmup_steps: NonNegative[int] = 0   # linear, from lr / (warmup_steps + 1)
    critic_lr: Positive[float] = 1e-5
    critic_lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    critic_warmup_steps: NonNegative[int] = 0  # steps in which only the critic learns; lr_schedule begins after them
    adam_beta1: BelowOne[float] = 0.9
    adam_beta2: BelowOne[float] = 0.999
    weight_decay: NonNegative[float] = 0.01
    grad_clip: NonNegative[float] = 1.0  # 0 = off

    # held-out evaluation
    eval_data: str | dict = ""           # source name; empty = data, split "test"
    eval_path: str | dict = ""           # the same for held-out rows
    eval_prompts: NonNegative[int] = 128
    eval_samples: NonNegative[int] = 4   # sampled at `temperature`; one greedy response beside them


def group_advantages(rewards, divide_by_std, eps=1e-6):
    """
    Subtract the group's mean from rewards (P, G), and divide by its std if asked for: advantages (P, G).

    GRPO, arXiv 2402.03300, section 4.1.2 (with std, unbiased); Dr. GRPO, arXiv 2503.20783, section 3.2 (without).
    Every row sums to 0. If all rewards of a group are equal, its advantages are exactly 0, in spite of rounding.
    """
    rewards = rewards.double()
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if divide_by_std and rewards.numel() > len(rewards):  # a step may have no group
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + eps)
    agrees = rewards.amax(dim=1) == rewards.amin(dim=1)
    return advantages.masked_fill(agrees[:, None], 0.0).float()


def leave_one_out(rewards):
    """Subtract from rewards (P, G) the mean of the others in the group. RLOO, arXiv 2402.14740, section 3.2."""
    return group_advantages(rewards, divide_by_std=False) * (rewards.shape[1] / (rewards.shape[1] - 1))


def token_rewards(reward, num_tokens, kl, repetition, gammas):
    """Place rewards on tokens, {type: (T,)}: the task's on the last; types share kl (T,) evenly, as demystify does."""
    task = np.zeros(num_tokens)
    task[-1] = reward
    if "repetition" not in gammas:
        return {"task": task + repetition - kl}
    return {"task": task - kl / 2, "repetition": repetition - kl / 2}


def gae(rewards, values, gamma, lam, last_value=0.0):
    """
    Estimate advantages (T,) of one response from rewards, values (T,), arXiv 1506.02438, eq. 16, with V_T = last_value:

        delta_t = r_t + gamma * V_{t+1} - V_t        A_t = delta_t + gamma * lam * A_{t+1}
    """
    deltas = (rewards + gamma * np.append(values[1:], last_value) - values)[::-1]
    if gamma * lam == 1:  # a sum, without Python at each token
        return deltas.cumsum()[::-1]
    return np.array(list(accumulate(deltas.tolist(), lambda later, delta: delta + gamma * lam * later)))[::-1]


def gae_of_types(rewards, values, gammas, lam, last_value):
    """Sum one GAE per reward type, each with its discount; V belongs to "task" (GAE is linear in rewards, values)."""
    advantages = gae(rewards["task"], values, gammas["task"], lam, last_value)
    for name in rewards.keys() - {"task"}:
        advantages = advantages + gae(rewards[name], np.zeros_like(values), gammas[name], lam)
    return advantages


def advantages_and_returns(rollouts, rewards, values, penalties, cfg):
    """
    Estimate {i: advantages (T,)}, not yet whitened, and {i: returns (T,)}, the critic's targets, of each response i
    from rewards (R,), {i: (T,)} values and penalties. Length-adaptive lambda: VAPO, arXiv 2504.05118.
    """
    advantages, returns, gammas = {}, {}, cfg.gammas or {"task": cfg.gamma}
    for i in sorted(values):
        ids, alpha, coef = rollouts[i].response_ids, cfg.length_adaptive_lam, cfg.repetition_coef
        lam = max(0.0, 1 - 1 / (alpha * len(ids))) if alpha else cfg.lam
        repetition = np.array(dense_repetition(ids, cfg.repetition_ngram, -coef)) if coef else 0.0
        bootstrap = rollouts[i].truncated and cfg.truncation_bootstrap == "value"
        last_value = values[i][-1] if bootstrap else 0.0  # that of the state before the last token
        per_type = token_rewards(rewards[i], len(ids), penalties.get(i, 0.0), repetition, gammas)
        advantages[i] = gae_of_types(per_type, values[i], gammas, lam, last_value)
        returns[i] = gae_of_types(per_type, values[i], gammas, cfg.critic_lam, last_value) + values[i]
    return advantages, returns


def whiten(advantages):
    """Shift and scale {response: (T,)} to mean 0 and std 1 over all tokens; exactly 0 where all are equal."""
    tokens = np.concatenate(list(advantages.values()) or [np.zeros(1)])
    if tokens.min() == tokens.max():
        return {i: np.zeros_like(a) for i, a in advantages.items()}
    return {i: (a - tokens.mean()) / (tokens.std() + 1e-8) for i, a in advantages.items()}


def token_weights(response_lens, num_responses, num_tokens, loss_agg, max_response_len):
    """
    Compute the weight of each token of each response, so that the loss of one update is sum_t weight_t * loss_t however
    the tokens are cut into micro-batches and dealt to GPUs.

        seq_mean    1 / (num_responses * len)        GRPO, arXiv 2402.03300, eq. 3
        token_mean  1 / num_tokens                   DAPO, arXiv 2503.14476, eq. 8
        constant    1 / (num_responses * max_len)    Dr. GRPO, arXiv 2503.20783: no reward for being short or long

    response_lens (R,); num_responses and num_tokens are counts of the whole update on all GPUs -> (R,)
    """
    lens, num_responses, num_tokens = response_lens.double().clamp(min=1), max(1, num_responses), max(1, num_tokens)
    if loss_agg == "seq_mean":
        return (1 / (num_responses * lens)).float()
    if loss_agg == "token_mean":
        return torch.full_like(lens, 1 / num_tokens).float()
    if loss_agg == "constant":
        return torch.full_like(lens, 1 / (num_responses * max_response_len)).float()
    raise ValueError(f"loss_agg {loss_agg!r}")


def in_loss_mask(rollouts, on_truncated):
    """
    Tell which responses the loss sees, bool (R,): truncated ones under "keep", with the reward's failure value; not
    under "mask", nor do they count in its denominators (DAPO, arXiv 2503.14476, section 3.4). Empty ones have no token.
    """
    return torch.tensor([len(r.response_ids) > 0 and not (on_truncated == "mask" and r.truncated) for r in rollouts])


def needs_grad_mask(advantages, cfg):
    """
    Tell which responses need a backward pass, bool (R,). With a KL or entropy term: all. Otherwise only those with a
    nonzero advantage; the rest get a forward pass for the metrics. Same gradient, a third of the FLOPs.
    """
    penalized = cfg.entropy_coef != 0 or (cfg.kl_in != "none" and cfg.kl_coef != 0)
    return torch.full(advantages.shape, penalized) | (advantages != 0)


def policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high, dual_clip=0.0):
    """
    Compute the clipped surrogate of each token, arXiv 1707.06347, eq. 7; all (T,).

    The gradient is zero once the ratio leaves the clip range in the direction the advantage favors. With dual_clip a
    bad token (advantage < 0) never costs more than dual_clip * |advantage|, arXiv 1912.09729, eq. 5.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped_tokens(logprobs, old_logprobs, advantages, clip_low, clip_high, dual_clip=0.0):
    """Tell where policy_loss has no gradient, bool (T,)."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = (ratio > 1 + clip_high) & (advantages > 0) | (ratio < 1 - clip_low) & (advantages < 0)
    return clipped | (ratio > dual_clip) & (advantages < 0) if dual_clip else clipped


def value_loss(values, old_values, returns, value_clip):
    """Compute half the squared error (T,) of the value, or of it clipped to value_clip around the old: the larger."""
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip) if value_clip else values
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def kl_penalty(logprobs, ref_logprobs, kl_in):
    """
    Compute the penalty of each token, added to the loss; (T,). joschu.net/blog/kl-approx.html, x = log ref - log
    policy.

        loss_k2     x^2 / 2        gradient of KL(policy || ref) on-policy
        loss_k3     e^x - 1 - x    the GRPO paper's; gradient of KL(ref || policy), explodes where policy << ref
        reward_k1   0 here: -kl_coef * (old_logprobs - ref_logprobs) is each token's reward (PPO) or advantage (GRPO)
    """
    x = ref_logprobs - logprobs
    if kl_in == "loss_k2":
        return x.square() / 2
    if kl_in == "loss_k3":
        return x.exp() - 1 - x
    return torch.zeros_like(x)


def mismatch_weights(old_logprobs, rollout_logprobs, cap):
    """
    Compute truncated importance weights min(trainer / engine, cap) (T,), without gradient, for tokens that the engine
    drew with slightly other probabilities than the trainer's; cap 0: all 1. Yao et al. 2025,
    fengyao.notion.site/off-policy-rl.
    """
    if cap == 0:
        return torch.ones_like(old_logprobs)
    return (old_logprobs - rollout_logprobs).detach().exp().clamp(max=cap)


def token_loss(logprobs, entropy, batch, cfg):
    """
    Compute the loss of each token: surrogate x mismatch weight + KL penalty - entropy bonus.

    Returns (loss (T,), bool (T,): where the clip stopped the gradient).
    """
    advantages = batch.advantages
    clip = (cfg.clip_low, cfg.clip_high, cfg.dual_clip)
    loss = policy_loss(logprobs, batch.old_logprobs, advantages, *clip)
    loss = loss * mismatch_weights(batch.old_logprobs, batch.rollout_logprobs, cfg.mismatch_cap)
    if cfg.kl_in != "none":
        loss = loss + cfg.kl_coef * kl_penalty(logprobs, batch.ref_logprobs, cfg.kl_in)
    clipped = clipped_tokens(logprobs.detach(), batch.old_logprobs, advantages, *clip)
    return (loss - cfg.entropy_coef * entropy if cfg.entropy_coef else loss), clipped  # 0: no gradient to compute


def sample_groups(engine, scorer, prompts, mixture, progress, cfg):
    """
    Sample group_size responses to each prompt of a step. Dynamic sampling replaces zero-variance groups, in at most
    dynamic_sampling further rounds (DAPO, arXiv 2503.14476, section 3.2).

    Returns (groups: at most prompts_per_step lists of Rollouts, all that was sampled). Adds to progress.prompts_seen.
    """
    groups, sampled, num_prompts = [], [], engine.prompts_to_draw(cfg)
    for _ in range(1 + cfg.dynamic_sampling):
        seen = progress.prompts_seen
        batch_prompts = draw(prompts, mixture, cfg.seed, seen, num_prompts)
        seeds = [[stable_seed(cfg.seed, p.uid, seen + i, k) for k in range(cfg.group_size)]
                 for i, p in enumerate(batch_prompts)]  # by the number of the draw: no two groups of a run share one
        progress.prompts_seen += num_prompts
        rollouts = engine.sample(batch_prompts, seeds, scorer, cfg.temperature, keep=cfg.prompts_per_step)
        sampled += rollouts + engine.dropped
        new_groups = [rollouts[i:i + cfg.group_size] for i in range(0, len(rollouts), cfg.group_size)]
        groups += [g for g in new_groups if not cfg.dynamic_sampling or len({r.score.total for r in g}) > 1]
        if len(groups) >= cfg.prompts_per_step:
            break
    return groups[:cfg.prompts_per_step], sampled


def split_into_updates(num_responses, group_size, num_updates):
    """Split the indices of a step's responses into one tensor per update, of whole groups; none without groups."""
    indices = torch.arange(num_responses).reshape(-1, group_size)
    return [part.flatten() for part in indices.chunk(num_updates) if len(part)]


def set_advantages(updates, rollouts, rewards, train_policy, cfg):
    """
    Set advantages and returns (T,) and needs_grad of each micro-batch, from rewards (R,) and old_values. Each rank has
    its own responses, then all: whitening is over the whole step, in float64. Returns the columns of explain_values.
    """
    batches, penalties = list(chain(*updates)), {}
    values = of_responses(batches, "old_values")  # {response: (T,)}, as all that follows
    if cfg.kl_in == "reward_k1":
        old, ref = (of_responses(batches, name) for name in ("old_logprobs", "ref_logprobs"))
        penalties = {i: cfg.kl_coef * (old[i] - ref[i]) for i in values}
    if cfg.estimator == "rloo":
        rewards = leave_one_out(rewards.reshape(-1, cfg.group_size)).flatten()
    own = advantages_and_returns(rollouts, rewards.tolist(), values, penalties, cfg)
    values, advantages, returns = of_all_ranks(values, *own)
    whitened = whiten(advantages) if cfg.whiten or (cfg.whiten is None and cfg.estimator != "rloo") else advantages
    loss_cfg = replace(cfg, kl_in="none") if cfg.kl_in == "reward_k1" else cfg  # that penalty is in the advantages
    for micro_batches in updates:
        for batch in micro_batches:
            batch.advantages, batch.returns = from_responses(batch, whitened), from_responses(batch, returns)
        largest = max_over_ranks(sum(batch.advantages.abs().sum() for batch in micro_batches), batch.ids.device)
        for batch in micro_batches:  # the same on all ranks, as backward passes are collectives
            batch.needs_grad &= train_policy and bool(needs_grad_mask(torch.tensor(largest), loss_cfg))
    return explain_values(values, returns, advantages)


def adapt_kl_coef(kl_coef, kl, target, num_responses, horizon):
    """Raise kl_coef where kl (nats a token) was above target, lower it where below. arXiv 1909.08593, section 2.2."""
    error = min(max(kl / target - 1, -0.2), 0.2) if target and kl is not None else 0.0
    return kl_coef * (1 + error * num_responses / horizon)


def check_config(cfg, world):
    """Refuse what can be known to be wrong before any file is opened; each line says what, where and the fix."""
    check_ranges(cfg)
    check_sampling(cfg, world)
    check_compile(cfg.compile, cfg.checkpointing)
    check_rewards(cfg.reward, cfg.reward_parts, cfg.max_response_len, cfg.group_size)
    refuse(cfg.prompts_per_step % cfg.updates_per_step, f"updates_per_step = {cfg.updates_per_step} does not divide "
           f"prompts_per_step = {cfg.prompts_per_step}")
    refuse(0 < cfg.dual_clip <= 1, f"dual_clip = {cfg.dual_clip} must be above 1 (3 is usual), or 0 for off")
    refuse(cfg.dynamic_sampling and cfg.group_size == 1, f"dynamic_sampling = {cfg.dynamic_sampling} waits for groups "
           "that vary, and a group of one never does: make group_size 2 or more, or leave dynamic_sampling 0")
    one_response = cfg.prompts_per_step * cfg.group_size == 1 and cfg.gamma == 1 and not cfg.repetition_coef
    refuse(cfg.estimator == "rloo" and (cfg.group_size == 1 or cfg.whiten), "estimator = 'rloo' compares the samples "
           "of a prompt: group_size must be 2 or more; and whiten = True would move groups that agree: leave it out")
    refuse(cfg.estimator == "reinforce_pp" and cfg.whiten is not False and one_response
           and not needs_grad_mask(torch.zeros(1), cfg), "estimator = 'reinforce_pp' whitens over the responses of a "
           "step, and one alone becomes 0: make prompts_per_step or group_size 2 or more")
    refuse(cfg.estimator != "gae" and (cfg.critic_warmup_steps or cfg.critic_model or cfg.lam < 1
           or cfg.length_adaptive_lam), f"estimator = {cfg.estimator!r} has no critic: leave critic_model and "
           "critic_warmup_steps empty, lam 1 and length_adaptive_lam 0")
    refuse(cfg.gammas is not None and (set(cfg.gammas) != {"task", "repetition"} or not cfg.repetition_coef
           or min(cfg.lam, cfg.critic_lam) < 1 or cfg.length_adaptive_lam), f'gammas = {cfg.gammas} wants {{"task": '
           '..., "repetition": ...}, repetition_coef > 0, lam and critic_lam 1: one value function, one discount')
    refuse(cfg.kl_target and cfg.kl_in == "none", f"kl_target = {cfg.kl_target} without a penalty to adapt: set kl_in")
    refuse(cfg.critic_warmup_steps >= cfg.num_steps, f"critic_warmup_steps = {cfg.critic_warmup_steps} leaves no step "
           f"of {cfg.num_steps} for the policy")


def main():
    # ---- setup: everything that can be wrong is found before weights are loaded ------------------------------------
    cfg, origin = load_config(Config)
    if cfg.check or cfg.replay:
        from tools.check import check_recipe
        return check_recipe(cfg)
    rank, world, device = init_distributed(cfg.rollout_deadline_s + 3600)  # how long ranks may wait for the slowest
    check_config(cfg, world)
    dtype = resolve_dtype(cfg.dtype, device)
    path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, cfg.max_prompt_len + cfg.max_response_len,
                                                         tensor_parallel=cfg.tensor_parallel)
    prompts, mixture, eval_prompts = load_train_and_eval(cfg, tokenizer, hf_config.vocab_size)
    fingerprints = {"model": fingerprint_of_model(path), "training": fingerprint(prompts),
                    "held-out": fingerprint(eval_prompts), "reward": reward_fingerprint(prompts)}
    if cfg.estimator == "gae":
        critic_path = check_critic(cfg.critic_model or cfg.model, cfg.max_prompt_len + cfg.max_response_len, hf_config,
                                   tokenizer)
        fingerprints["critic"] = fingerprint_of_model(critic_path)
    run = open_run(cfg, origin, device, fingerprints)
    if run is None:  # it is complete
        return
    cfg = run.cfg                                    # "auto" has become plain values
    policy = load_policy(path, device, dtype, **load_options(cfg))
    optimizer = make_adam(policy, cfg.lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
    models = {"policy": (policy, optimizer)}
    critic = None
    if cfg.estimator == "gae":
        critic = load_critic(critic_path, device, dtype, **load_options(cfg))
        critic_optimizer = make_adam(critic, cfg.critic_lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
        models["critic"] = (critic, critic_optimizer)
    progress = run.resume(models)                    # run saves these from now on
    reference = None if cfg.kl_in == "none" else load_policy(path, device, dtype, **load_options(cfg), trainable=False)
    engine = Engine(path, tokenizer, stop_ids, config=hf_config, dtype=dtype, device=device, clock=run.clock,
                    seed=cfg.seed, prompt_len=cfg.max_prompt_len, response_len=cfg.max_response_len,
                    max_num_seqs=cfg.max_num_seqs, kv_cache_gb=run.kv_cache_gb, tensor_parallel=cfg.tensor_parallel,
                    deadline_s=cfg.rollout_deadline_s, stop_strings=cfg.stop, repetition_stop=cfg.repetition_stop,
                    say=run.say)
    engine.sleep()
    if cfg.dry_step == "on" or (cfg.dry_step == "auto" and device.type == "cuda"):
        from tools.dry_step import dry_step
        dry_step(models, reference, cfg, run.max_tokens, hf_config.vocab_size, world, device, run.say)
    scorer = Scorer(part_weights=cfg.reward_parts)   # each Prompt names its own reward
    machine = machine_of(cfg, hf_config, dtype, world, device, critic and critic.trunk.config)
    max_mismatch = cfg.mismatch_bound or (1e-3 if dtype == "float32" else 0.05)
    if progress.step == 0 and eval_prompts:
        progress.row = empty_row(*VALUE_COLUMNS, "critic_lr", "kl_coef")
    if progress.row:  # step 0 of a new run, or a step that a kill stopped between its save and its log
        run.begin_step(progress.step)
        evaluate_and_log(progress, run, engine, policy, scorer, eval_prompts, cfg)
    cfg = next_settings(run, progress, engine)       # of the next step: what controllers and the guard have changed

    # ---- training loop ---------------------------------------------------------------------------------------------
    stopped_by = ""
    for step in range(progress.step + 1, (0 if progress.verdict else cfg.num_steps) + 1):  # a verdict: only export
        run.begin_step(step)

        # 1) give the engine the new weights, sample group_size responses to each prompt, score each as it finishes
        engine.wake(policy, version=step - 1)        # the number of training steps in these weights
        groups, sampled = sample_groups(engine, scorer, prompts, mixture, progress, cfg)
        engine.sleep()
        run.keep_for_crash_report(sampled)           # all of them, also groups that dynamic sampling left out

        # 2) rewards, and the advantages of GRPO; those of PPO need the values of 4
        rollouts = list(chain(*groups))                                                           # R = P * G at most
        rewards = torch.tensor([r.score.total for r in rollouts], dtype=torch.float64)            # (R,)

        # 3) pack: one list of micro-batches per update; loss weights count the responses of all ranks
        in_loss = in_loss_mask(rollouts, cfg.on_truncated)                                        # (R,)
        response_lens = torch.tensor([len(r.response_ids) for r in rollouts])                     # (R,)
        updates = []
        for indices in split_into_updates(len(rollouts), cfg.group_size, cfg.updates_per_step):   # of responses
            chosen = indices[in_loss[indices]]
            loss_weights = token_weights(response_lens, len(chosen), int(response_lens[chosen].sum()), cfg.loss_agg,
                                         cfg.max_response_len)                                    # (R,)
            updates.append(pack(rollouts, chosen, run.max_tokens, rank, world, device))
            for batch in updates[-1]:
                batch.loss_weights = loss_weights.to(device)[batch.response_index]                # (T,)

        # 4) before any weight changes: old log-probs, unless the training pass yields them; in PPO values, advantages
        run.clock.phase("logprobs")
        stats = StepStats(device, max_mismatch)
        with torch.no_grad(), on_device(reference, device):
            for batch in chain(*updates):
                if reference is not None:
                    batch.ref_logprobs, _ = token_logprobs(reference, batch, cfg.temperature)     # (T,)
                if len(updates) * cfg.epochs_per_step > 1 or cfg.kl_in == "reward_k1":
                    batch.old_logprobs, batch.entropy = token_logprobs(policy, batch, cfg.temperature)  # (T,), (T,)
                    stats.add_mismatch(batch)
        stats.check_mismatch()                       # the canary, if there are several updates; else see below
        run.clock.phase("values")
        with torch.no_grad():
            for batch in chain(*updates):
                batch.old_values = token_values(critic, batch) if critic else torch.zeros_like(batch.rollout_logprobs)
        train_policy = step > cfg.critic_warmup_steps  # before, it is only measured, and no update counts as skipped
        value_columns = set_advantages(updates, rollouts, rewards, train_policy, cfg)

        # 5) update the weights
        run.clock.phase("train")
        lr = learning_rate(step - cfg.critic_warmup_steps, cfg.lr, cfg.lr_schedule, cfg.warmup_steps,
                           cfg.num_steps - cfg.critic_warmup_steps, cfg.lr_min_ratio)
        critic_lr = learning_rate(step, cfg.critic_lr, cfg.critic_lr_schedule, cfg.warmup_steps, cfg.num_steps,
                                  cfg.lr_min_ratio)
        for micro_batches in updates * cfg.epochs_per_step:  # the same micro-batches in every epoch
            for batch in micro_batches:
                logprobs, entropy = trained_logprobs(policy, batch, cfg.temperature)              # (T,), (T,)
                if batch.old_logprobs is None:       # one update: these are the old ones
                    batch.old_logprobs = logprobs.detach()
                losses, clipped = token_loss(logprobs, entropy, batch, cfg)                       # (T,), (T,)
                loss = (batch.loss_weights * losses).sum()
                if batch.needs_grad:
                    (loss * world).backward()        # undo FSDP's mean over ranks: loss_weights count all of them
                stats.add(batch, logprobs, entropy, loss, clipped)  # and keeps them in batch, for samples/
                if critic is not None:
                    values = token_values(critic, batch)                                          # (T,)
                    errors = value_loss(values, batch.old_values, batch.returns, cfg.value_clip)  # (T,)
                    loss = (batch.loss_weights * errors).sum()
                    (loss * world).backward()
                    stats.add_values(batch, values, loss, cfg.value_clip)
            stats.check_mismatch()                   # sums over ranks; a broken engine must not touch the weights
            skip = not any(batch.needs_grad for batch in micro_batches)
            grad_norm = optimizer_step(policy, optimizer, lr, cfg.grad_clip, skip)
            critic_norm = None
            if critic is not None:
                empty = not any(batch.tokens_of_all for batch in micro_batches)
                critic_norm = optimizer_step(critic, critic_optimizer, critic_lr, cfg.grad_clip, empty) or None
            progress.count_update(stats.end_update(grad_norm, skip and train_policy, critic_norm))

        # 6) save, evaluate, log; in this order, so that a kill in the evaluation costs nothing but its time
        run.clock.phase("other")
        row = {"step": step, "lr": lr, "prompts_seen": progress.prompts_seen, **dict.fromkeys(VALUE_COLUMNS),
               "critic_lr": critic_lr if critic is not None else 0.0, "kl_coef": cfg.kl_coef, **value_columns,
               **summarize(sampled, cfg.group_size), **stats.row(),
               **speed(run.clock, machine, sampled, updates)}
        run.write_samples(step, trained_rows(step, rollouts or sampled, updates, cfg, tokenizer))
        kl = row["kl_k1"] if train_policy else None
        progress.kl_coef = adapt_kl_coef(cfg.kl_coef, kl, cfg.kl_target, len(rollouts), cfg.kl_horizon)
        progress.end_step(row, has_signal=len(rewards.unique()) > 1)
        if run.save_is_due(step):
            run.save(progress)
        evaluate_and_log(progress, run, engine, policy, scorer, eval_prompts, cfg)  # evaluates only if it is due
        cfg = next_settings(run, progress, engine)
        if stopped_by := run.stop_reason():          # "", the guard, a signal or max_hours; the same on all ranks
            run.save(progress, stopping=True)
            break
    scorer.close()
    engine.sleep()                                   # after an evaluation it is awake; the export needs the memory
    run.finish(policy, tokenizer, stop_ids, stopped_by)


if __name__ == "__main__":
    entry(main)
