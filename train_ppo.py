"""
PPO, from prompts to new weights: prompt -> rollout -> reward -> value -> advantage -> loss -> weight sync, top to bottom.

    torchrun --standalone --nproc-per-node=8 train_ppo.py recipes/tinyzero_ppo.py [--setting value ...]
    python train_ppo.py recipes/tinyzero_ppo.py --check        # settings, data, prompt and reward, no weights

`diff train_grpo.py train_ppo.py` is the difference between the two: what the group's mean is to GRPO, a critic is here,
token by token. REINFORCE++ is the case of a critic that always says 0, RLOO the same with a group's mean in the reward
and no whitening.
Start reading at main(). Shape comments: P prompts of a step, G samples a prompt, R = P * G responses, T response
tokens of a packed micro-batch. Every rank sees all rollouts of the step: the batch is global, only compute is shared.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from onebox import distributed  # first: it looks for its launcher and sets what libraries read when they are imported

import numpy as np
import torch

from onebox import checkpoint
import data
import policy as model
import rewards
import rollout as sampler
from onebox import rundir
from onebox import samples
from onebox import flops
from tools.check import check_recipe, self_test
from onebox.config import ConfigError, load_config
from eval import check_rewards, evaluate, resolve_model
from onebox.metrics import StepStats, console_line, hacked, last_evaluation, more_seconds, no_signal, seconds, summarise
from rewards import dense_repetition
from tasks.templates import check_chat, is_chat


@dataclass(frozen=True)
class Config:
    # run
    name: str = "run"                    # the run lies in out/<name>/
    seed: int = 0                        # decides data order and every sampled token
    num_steps: int = 100                 # steps of rollout + update
    eval_every: int = 10                 # held-out evaluation every so many steps, 0 = only before and after
    save_every: int = 50                 # checkpoint every so many steps, 0 = only the last
    keep_rollouts: int = 16              # responses of each step kept token by token in samples/, 0 = none
    report_every: int = 20               # renew report.html every so many steps and at the end, 0 = never
    keep_checkpoints: int = 2            # the newest so many stay, and the best of those saved at an evaluation
    max_hours: float = 0.0               # stop with a checkpoint after the step in which they are over, 0 = no limit
    allow_data_change: bool = False      # continue a run although its rows changed
    wandb: Literal["off", "offline", "online"] = "off"  # metrics.jsonl is always written
    check: bool = False                  # validate settings, data, prompt and reward on real rows, then stop

    # model
    model: str = "Qwen/Qwen2.5-3B"       # Hugging Face directory or hub id
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of compute and engine; auto: bfloat16 on GPU, float32 on CPU
    checkpointing: Literal[True, False, "selective"] = True  # recompute in backward: all, nothing, or what is cheap
    compile: bool = False                # torch.compile each block: a slower start, less memory for activations
    max_tokens_per_gpu: int = 16384      # tokens of one micro-batch; halve it when out of memory, results stay the same
    shard_size: int = 0                  # ranks that share one copy of the weights; 0 = all, 8 = inside each node
    dry_step: Literal["auto", "on", "off"] = "auto"  # a micro-batch of full length before the run; auto: on GPUs
    critic_model: str = ""               # where the critic starts, with a value head of zeros; empty = model

    # data
    data: str | dict = "countdown"       # source name, or {name: weight}
    data_path: str | dict = ""           # local JSONL, parquet or directory instead of the hub, or {source: path}
    data_limit: int = 0                  # use only so many rows, 0 = all
    template: str | dict = "tinyzero_base"  # prompt template, or {source: template}
    chat_template_kwargs: dict | None = None  # arguments of the model's chat template, e.g. {"enable_thinking": False}
    chat_date: str = "2024-07-26"        # the date that a chat template is told; prompts must not depend on the day
    reward: str | dict = "tinyzero_countdown"  # reward name, or {source: reward}
    reward_parts: dict | None = None     # {part: weight} on top of the reward, e.g. {"soft_overlong": 1.0}; see rewards.PARTS
    max_prompt_len: int = 256            # tokens; longer prompts are refused and counted

    # rollout
    prompts_per_step: int = 128          # over all GPUs
    group_size: int = 1                  # samples of each prompt; only rloo needs more than one
    max_response_len: int = 1024         # tokens
    temperature: float = 1.0             # the loss uses log-probs at this temperature too
    top_p: float = 1.0                   # must stay 1: anything less biases every ratio
    stop: tuple = ()                     # strings that end a response, e.g. ("</answer>",); EOS always does
    max_num_seqs: int = 256              # sequences decoded together in one engine
    kv_cache_gb: float = 0.0             # per engine; 0 = room for max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: int = 1             # GPUs per engine
    rollout_deadline_s: float = 3600.0   # after it, unfinished responses are cut off and count as truncated
    repetition_stop: int = 0             # a pattern so many times in a row ends a response, as truncated; 0 = off

    # algorithm
    updates_per_step: int = 1            # optimizer steps on one batch of rollouts, disjoint parts of it
    epochs_per_step: int = 1             # so many times over the same rollouts; old log-probs and values stay fixed
    estimator: Literal["gae", "reinforce_pp", "rloo"] = "gae"  # gae: with a critic; the others: return-to-go without one
    gamma: float = 1.0                   # discount a token
    gammas: dict | None = None           # {"task": 1.0, "repetition": 0.99}: one discount per reward type instead
    lam: float = 1.0                     # GAE's lambda; at 0.95 a reward 100 tokens away counts 0.6 %
    critic_lam: float = 1.0              # lambda of the returns that the critic learns
    length_adaptive_lam: float = 0.0     # alpha of VAPO: lam = 1 - 1 / (alpha * length) for the policy; 0 = off
    whiten: bool | None = None           # advantages of all tokens of the step to mean 0, std 1; None: all but rloo do
    truncation_bootstrap: Literal["zero", "value"] = "zero"  # what follows a truncated response: nothing, or its last value
    repetition_coef: float = 0.0         # subtracted at each token of a repeated n-gram
    repetition_ngram: int = 40           # its n
    value_clip: float = 0.5              # how far a value may move from the old one and still get gradient; 0 = off
    dual_clip: float = 0.0               # ratio above which a bad token gets no gradient either, e.g. 3; 0 = off
    loss_agg: Literal["seq_mean", "token_mean", "constant"] = "token_mean"  # GRPO, DAPO, Dr. GRPO
    clip_low: float = 0.2                # ratio below 1 - clip_low ...
    clip_high: float = 0.2               # ... or above 1 + clip_high gets no gradient (DAPO 0.28)
    kl_in: Literal["none", "reward_k1", "loss_k2", "loss_k3"] = "none"  # where the penalty to the start model stands
    kl_coef: float = 0.001               # its weight
    kl_target: float = 0.0               # nats a token that an adaptive kl_coef aims at; 0 = kl_coef is fixed
    kl_horizon: int = 10000              # responses in which it may change by a fifth at most, over and over
    entropy_coef: float = 0.0            # entropy bonus
    on_truncated: Literal["keep", "mask"] = "keep"  # keep: trained on, with the reward's failure value; mask: no gradient
    mismatch_cap: float = 2.0            # truncated importance weight of engine against trainer, 0 = off
    mismatch_bound: float = 0.0          # stop above this mean |rollout - trainer| log-prob; 0 = 0.001 fp32, 0.05 bf16

    # optimizer
    lr: float = 1e-6                     # peak
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    lr_min_ratio: float = 0.0            # where linear and cosine end, as a share of lr
    warmup_steps: int = 0                # linear, from lr / (warmup_steps + 1)
    critic_lr: float = 1e-5
    critic_lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    critic_warmup_steps: int = 0         # steps in which only the critic learns; lr_schedule begins after them
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0               # 0 = off

    # held-out evaluation
    eval_data: str | dict = ""           # source name; empty = data, split "test"
    eval_path: str | dict = ""           # the same for held-out rows
    eval_prompts: int = 128
    eval_samples: int = 4                # sampled at `temperature`; one greedy response beside them


def leave_one_out(rewards):
    """
    rewards (P, G) -> (P, G): each minus the mean of the others in its group. RLOO, arXiv 2402.14740.
    Every row sums to 0. A group that agrees is exactly 0.
    """
    rewards = rewards.double()
    group_size = rewards.shape[1]
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) * (group_size / (group_size - 1))
    agrees = rewards.amax(dim=1) == rewards.amin(dim=1)
    return advantages.masked_fill(agrees[:, None], 0.0)


def token_rewards(reward, num_tokens, kl, repetition, gammas):
    """
    {type: rewards (T,)} of one response: the task's reward stands on its last token, stop token or not, the others on
    each. kl (T,) is the penalty kl_coef * (old_logprobs - ref_logprobs), repetition (T,) already negative. Without
    discounts per type all is "task"; with them the penalty is split evenly over the types, as demystify-long-cot does.
    """
    task = np.zeros(num_tokens)
    task[-1] = reward
    if "repetition" not in gammas:
        return {"task": task + repetition - kl}
    return {"task": task - kl / 2, "repetition": repetition - kl / 2}


def gae(rewards, values, gamma, lam, last_value=0.0):
    """
    rewards (T,), values (T,) of one response -> advantages (T,). arXiv 1506.02438, eq. 16, with V_T = last_value:

        delta_t = r_t + gamma * V_{t+1} - V_t        A_t = delta_t + gamma * lam * A_{t+1}

    values[t] is V of the state before token t. gamma = lam = 1: A_t = rewards from t on + last_value - V_t;
    lam = 0: A_t = delta_t. values all 0: the discounted return-to-go.
    """
    deltas = rewards + gamma * np.append(values[1:], last_value) - values
    backwards = accumulate(deltas[::-1].tolist(), lambda later, delta: delta + gamma * lam * later)
    return np.array(list(backwards))[::-1]


def gae_of_types(rewards, values, gammas, lam, last_value):
    """
    The sum of one GAE per reward type, each with its discount; V belongs to "task". GAE is linear in rewards and values,
    so that equal discounts give the GAE of the summed rewards; at lam = 1 it is (sum of discounted returns) - V.
    """
    advantages = gae(rewards["task"], values, gammas["task"], lam, last_value)
    for name in rewards.keys() - {"task"}:
        advantages = advantages + gae(rewards[name], np.zeros_like(values), gammas[name], lam)
    return advantages


def advantages_and_returns(rollouts, scores, values, penalties, gammas, cfg):
    """
    Token rewards and GAE of each response i in values -> advantages, returns: {i: (T,)}, nothing whitened yet.

    scores (R,); values and penalties {i: (T,)}. The critic's target, returns = its own GAE + values, takes critic_lam and
    the values from before the step. Length-adaptive lambda: VAPO, arXiv 2504.05118.
    """
    advantages, returns = {}, {}
    for i in sorted(values):
        ids, repetition, lam, last_value = rollouts[i].response_ids, 0.0, cfg.lam, 0.0
        if cfg.repetition_coef:
            repetition = np.array(dense_repetition(ids, cfg.repetition_ngram, -cfg.repetition_coef))
        if cfg.length_adaptive_lam:
            lam = max(0.0, 1 - 1 / (cfg.length_adaptive_lam * len(ids)))
        if rollouts[i].truncated and cfg.truncation_bootstrap == "value":
            last_value = values[i][-1]  # of one token before: no log-prob needs the state after the last token
        per_type = token_rewards(scores[i], len(ids), penalties[i], repetition, gammas)
        advantages[i] = gae_of_types(per_type, values[i], gammas, lam, last_value)
        returns[i] = gae_of_types(per_type, values[i], gammas, cfg.critic_lam, last_value) + values[i]
    return advantages, returns


def whitens(cfg):
    """
    Whether the advantages are whitened: what the setting says, or as the estimator was published. RLOO was without.
    Where lengths differ, the mean over tokens is not 0: subtracting it would give groups that agree an advantage.
    """
    return cfg.estimator != "rloo" if cfg.whiten is None else cfg.whiten


def whiten(advantages):
    """{response: (T,)} -> the same with mean 0 and std 1 over all tokens; exactly 0 where all agree."""
    tokens = np.concatenate(list(advantages.values()) or [np.zeros(1)])
    if tokens.min() == tokens.max():
        return {i: np.zeros_like(a) for i, a in advantages.items()}
    return {i: (a - tokens.mean()) / (tokens.std() + 1e-8) for i, a in advantages.items()}


def token_weights(response_lens, num_responses, num_tokens, loss_agg, max_response_len):
    """
    The weight of each token of each response, so that the loss of one update is sum_t weight_t * loss_t however the
    tokens are cut into micro-batches and dealt to GPUs.

        seq_mean    1 / (num_responses * len)        GRPO, arXiv 2402.03300, eq. 3
        token_mean  1 / num_tokens                   DAPO, arXiv 2503.14476, eq. 8
        constant    1 / (num_responses * max_len)    Dr. GRPO, arXiv 2503.20783: no reward for being short or long

    response_lens (R,); num_responses and num_tokens are counts of the whole update on all GPUs -> (R,)
    """
    lens = response_lens.double().clamp(min=1)
    if loss_agg == "seq_mean":
        return (1 / (num_responses * lens)).float()
    if loss_agg == "token_mean":
        return torch.full_like(lens, 1 / num_tokens).float()
    if loss_agg == "constant":
        return torch.full_like(lens, 1 / (num_responses * max_response_len)).float()
    raise ValueError(f"loss_agg {loss_agg!r}")


def trained_responses(rollouts, on_truncated):
    """
    Which responses the loss sees, -> bool (R,). "keep" trains on truncated ones with the reward's failure value; "mask"
    (DAPO, arXiv 2503.14476, section 3.4) leaves them out of the loss and of its denominators. Empty ones have no token.
    """
    return torch.tensor([len(r.response_ids) > 0 and not (on_truncated == "mask" and r.truncated) for r in rollouts])


def policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high):
    """Clipped surrogate of each token, arXiv 1707.06347, eq. 7; all (T,). No gradient once the ratio has gained enough."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def dual_clip(loss, advantages, bound):
    """A bad token (advantage < 0) never costs more than bound * |advantage|, arXiv 1912.09729; bound 0: as it is."""
    if bound == 0:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -bound * advantages), loss)


def dual_clip_loss(logprobs, entropy, old_logprobs, advantages, batch, kl_coef, cfg):
    """The loss of each token: surrogate, twice clipped, x mismatch weight + KL penalty - entropy bonus; all (T,)."""
    loss = policy_loss(logprobs, old_logprobs, advantages, cfg.clip_low, cfg.clip_high)
    loss = dual_clip(loss, advantages, cfg.dual_clip)
    loss = loss * mismatch_weights(old_logprobs, batch.rollout_logprobs, cfg.mismatch_cap)
    if cfg.kl_in != "none":
        loss = loss + kl_coef * kl_penalty(logprobs, batch.ref_logprobs, cfg.kl_in)
    return loss - cfg.entropy_coef * entropy


def value_loss(values, old_values, returns, value_clip):
    """
    Half the squared error of each token, of the value or of the value kept within value_clip of the old one, whichever
    is worse; all (T,). No gradient once the value has moved so far towards the return. value_clip 0: not clipped.
    """
    error = (values - returns).square()
    if value_clip > 0:
        clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (clipped - returns).square())
    return error / 2


def kl_penalty(logprobs, ref_logprobs, kl_in):
    """
    Penalty of each token, always added to the loss; all (T,). joschu.net/blog/kl-approx.html, x = log ref - log policy.

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
    Truncated importance weight of each token, min(trainer / engine, cap), for samples that the engine drew with
    slightly other probabilities than the trainer computes; (T,), no gradient; cap 0: all 1. Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training" (fengyao.notion.site/off-policy-rl).
    """
    if cap == 0:
        return torch.ones_like(old_logprobs)
    return (old_logprobs - rollout_logprobs).detach().exp().clamp(max=cap)


def learning_rate(step, lr, schedule, warmup_steps, num_steps, min_ratio):
    """The lr of step 1, 2, ...: linear warm-up that never wastes a step on 0, then constant, linear or cosine."""
    if step <= warmup_steps:
        return lr * step / (warmup_steps + 1)
    done = (step - warmup_steps - 1) / max(1, num_steps - warmup_steps)
    if schedule == "constant":
        return lr
    shape = 1 - done if schedule == "linear" else (1 + torch.cos(torch.tensor(torch.pi * done)).item()) / 2
    return lr * (min_ratio + (1 - min_ratio) * shape)


def adapt_kl_coef(kl_coef, kl, target, num_responses, horizon):
    """
    The coefficient after a step that measured kl (nats a token): up where it was above target, down where below, by a
    fifth per horizon at most. arXiv 1909.08593 (there per sequence, here per token). target 0: unchanged.
    """
    if target == 0:
        return kl_coef
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)


def explain_values(values, returns, advantages):
    """
    {response: (T,)} each -> columns: means of values and returns, spread of the advantages before whitening, and
    explained variance 1 - var(return - value) / var(return): 1 knows the future, 0 is no better than a constant.
    """
    v, r, a = (np.concatenate([x[i] for i in values] or [np.zeros(1)]) for x in (values, returns, advantages))
    explained = 1 - (r - v).var() / r.var() if r.var() > 0 else math.nan
    return {"explained_variance": float(explained), "value_mean": float(v.mean()), "return_mean": float(r.mean()),
            "advantage_std": float(a.std())}


def check_config(cfg, world):
    """What can be known to be wrong before any file is opened; each line says what, where and the fix."""
    for name in ("prompts_per_step", "group_size", "updates_per_step", "max_response_len", "max_prompt_len",
                 "num_steps", "max_tokens_per_gpu", "max_num_seqs", "tensor_parallel", "rollout_deadline_s",
                 "keep_checkpoints", "epochs_per_step", "critic_lr", "repetition_ngram", "kl_horizon"):
        if getattr(cfg, name) <= 0:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must be greater than 0")
    for name in ("lr", "entropy_coef", "mismatch_bound", "shard_size", "max_hours", "eval_every", "save_every", "keep_rollouts",
                 "report_every", "repetition_stop", "eval_prompts", "eval_samples", "warmup_steps", "grad_clip",
                 "kv_cache_gb", "clip_low", "clip_high", "kl_coef", "mismatch_cap", "data_limit", "weight_decay", "seed",
                 "critic_warmup_steps",
                 "length_adaptive_lam", "repetition_coef", "value_clip", "dual_clip", "kl_target"):
        if getattr(cfg, name) < 0:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must not be negative")
    for name in ("adam_beta1", "adam_beta2", "lr_min_ratio"):
        if not 0 <= getattr(cfg, name) < 1 + (name == "lr_min_ratio"):
            raise ConfigError(f"{name} = {getattr(cfg, name)} must lie in 0 ... 1")
    engines = world // cfg.tensor_parallel
    if cfg.top_p != 1.0:
        raise ConfigError(f"top_p = {cfg.top_p} biases every log-prob by up to {-torch.tensor(cfg.top_p).log():.2f}: leave it 1")
    if cfg.repetition_stop == 1:
        raise ConfigError("repetition_stop = 1 must be 0 (never) or at least 2: no text repeats anything once")
    if not all(isinstance(text, str) and text for text in cfg.stop):
        raise ConfigError(f"stop = {cfg.stop!r} must hold strings that are not empty, as in ('</answer>',)")
    if not 0.01 <= cfg.temperature <= 2:
        raise ConfigError(f"temperature = {cfg.temperature} must lie in 0.01 ... 2")
    if world % cfg.tensor_parallel:
        raise ConfigError(f"tensor_parallel = {cfg.tensor_parallel} does not divide the {world} processes")
    if cfg.prompts_per_step % engines:
        raise ConfigError(f"prompts_per_step = {cfg.prompts_per_step} is not divisible by the {engines} engines "
                          f"({world} processes / tensor_parallel {cfg.tensor_parallel}): make it a multiple of {engines}")
    if cfg.prompts_per_step % cfg.updates_per_step:
        raise ConfigError(f"updates_per_step = {cfg.updates_per_step} does not divide prompts_per_step = {cfg.prompts_per_step}")
    if cfg.shard_size and world % cfg.shard_size:
        raise ConfigError(f"shard_size = {cfg.shard_size} does not divide the {world} processes")
    model.check_compile(cfg.compile, cfg.checkpointing)
    for name in ("gamma", "lam", "critic_lam"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must lie in 0 ... 1")
    if cfg.estimator == "rloo" and cfg.group_size == 1:
        raise ConfigError("estimator = 'rloo' compares the samples of a prompt: group_size must be 2 or more")
    if cfg.estimator == "rloo" and whitens(cfg):
        raise ConfigError("whiten = True moves groups that agree, which estimator = 'rloo' leaves at 0: leave whiten out, or "
                          "choose estimator = 'reinforce_pp'")
    one_number = cfg.gamma == 1 and not (cfg.repetition_coef or cfg.entropy_coef or (cfg.kl_in != "none" and cfg.kl_coef))
    if cfg.estimator == "reinforce_pp" and whitens(cfg) and cfg.prompts_per_step * cfg.group_size == 1 and one_number:
        raise ConfigError("estimator = 'reinforce_pp' whitens over the responses of a step, and one alone becomes 0: make "
                          "prompts_per_step or group_size 2 or more")
    if cfg.estimator != "gae" and (cfg.critic_warmup_steps or cfg.critic_model or cfg.lam < 1 or cfg.length_adaptive_lam):
        raise ConfigError(f"estimator = {cfg.estimator!r} has no critic: leave critic_model and critic_warmup_steps empty, "
                          "lam 1 and length_adaptive_lam 0")
    if cfg.gammas is not None and (set(cfg.gammas) != {"task", "repetition"} or not cfg.repetition_coef
                                   or min(cfg.lam, cfg.critic_lam) < 1 or cfg.length_adaptive_lam):
        raise ConfigError(f'gammas = {cfg.gammas} wants {{"task": ..., "repetition": ...}}, repetition_coef > 0, lam and '
                          "critic_lam 1: one value function knows one discount only")
    if cfg.kl_target and cfg.kl_in == "none":
        raise ConfigError(f"kl_target = {cfg.kl_target} without a penalty to adapt: set kl_in")
    if 0 < cfg.dual_clip <= 1:
        raise ConfigError(f"dual_clip = {cfg.dual_clip} must be above 1 (3 is usual), or 0 for off")
    if cfg.critic_warmup_steps >= cfg.num_steps:
        raise ConfigError(f"critic_warmup_steps = {cfg.critic_warmup_steps} leaves no step of {cfg.num_steps} for the policy")


def check_critic(name, need_len, hf_config, tokenizer, weights=True):
    """The critic reads the policy's token ids, up to need_len of them -> its local path."""
    path, critic_config, critic_tokenizer, _ = resolve_model(name, need_len, weights)
    if critic_tokenizer.get_vocab() != tokenizer.get_vocab() or critic_config.vocab_size < hf_config.vocab_size:
        raise ConfigError(f"critic_model {name!r} has another vocabulary ({len(critic_tokenizer)} tokens, {critic_config.vocab_size} "
                          f"rows) than model ({len(tokenizer)} tokens, {hf_config.vocab_size} rows): token ids would mean "
                          "other words to it; choose one of the same family and size of vocabulary")
    return path


def main():
    # ------------------------------------------------------------------------------------------------------------
    # setup: everything that can be wrong is found here, before weights are loaded
    # ------------------------------------------------------------------------------------------------------------
    cfg, origin = load_config(Config)
    if cfg.check:
        return check_recipe(cfg)
    rank, world, device = distributed.init_distributed(cfg.rollout_deadline_s + 3600)
    check_config(cfg, world)
    dtype = cfg.dtype if cfg.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    engines, engine_rank = world // cfg.tensor_parallel, rank // cfg.tensor_parallel

    check_rewards(cfg.reward, cfg.reward_parts)
    path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, cfg.max_prompt_len + cfg.max_response_len,
                                                         tensor_parallel=cfg.tensor_parallel)
    load = dict(max_prompt_len=cfg.max_prompt_len, vocab_size=hf_config.vocab_size, seed=cfg.seed,
                check_answer=rewards.check_answer, chat=check_chat(cfg, tokenizer, is_chat(cfg.template)))
    prompts, mixture = data.load_prompts(cfg.data, cfg.template, cfg.reward, tokenizer, split="train",
                                         paths=cfg.data_path or None, limit=cfg.data_limit or None, **load)
    eval_set = []
    if cfg.eval_prompts:
        eval_set, _ = data.load_prompts(cfg.eval_data or cfg.data, cfg.template, cfg.reward, tokenizer, split="test",
                                        paths=cfg.eval_path or cfg.data_path or None, limit=cfg.eval_prompts, **load)
    self_test(prompts)
    if both := {p.text for p in prompts} & {p.text for p in eval_set}:
        raise ConfigError(f"{len(both)} of the {len(eval_set)} held-out prompts are training prompts: give --eval_path with "
                          "other rows, or --eval_prompts 0")
    critic_path = check_critic(cfg.critic_model or cfg.model, cfg.max_prompt_len + cfg.max_response_len, hf_config, tokenizer)
    fingerprints = {"model": checkpoint.fingerprint_of_model(path), "training": data.fingerprint(prompts),
                    "held-out": data.fingerprint(eval_set)}
    if cfg.estimator == "gae":
        fingerprints["critic"] = checkpoint.fingerprint_of_model(critic_path)
    folder = rundir.run_folder(cfg, fingerprints)
    if (done := checkpoint.exported_step(f"{folder}/model")) >= cfg.num_steps:
        return distributed.print0(f"{folder} is complete: step {done} of {cfg.num_steps}. Its model is {folder}/model")
    run = rundir.Run(cfg, origin, script="train_ppo.py", fingerprints=fingerprints)
    saved = checkpoint.find(run.path, fingerprints, cfg.allow_data_change, run.say)  # {"step": 0}: there is none yet
    micro_batch_tokens = rundir.token_budget(run.path, cfg.max_tokens_per_gpu, run.say)
    kv_cache_gb = rundir.cache_budget(run.path, cfg.kv_cache_gb, run.say)
    if saved["step"] and cfg.estimator == "gae" and "critic" not in saved["models"]:
        raise ConfigError(f"{run.path}/step_{saved['step']:06d} holds no critic, so the run cannot go on from it: remove "
                          f"{run.path}, or give this run another --name")

    # ------------------------------------------------------------------------------------------------------------
    # objects: policy, critic, an optimizer each, perhaps a reference, the engine, the scorer
    # ------------------------------------------------------------------------------------------------------------
    policy = model.load_policy(path, device, dtype, checkpointing=cfg.checkpointing, compile=cfg.compile,
                               shard_size=cfg.shard_size)
    optimizer = model.make_adam(policy, cfg.lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
    critic, pairs = None, {}
    if cfg.estimator == "gae":
        critic = model.load_critic(critic_path, device, dtype, checkpointing=cfg.checkpointing, compile=cfg.compile,
                                   shard_size=cfg.shard_size)
        critic_optimizer = model.make_adam(critic, cfg.critic_lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
        pairs = {"critic": (critic, critic_optimizer)}
    saved = checkpoint.load(run.path, saved, policy, optimizer, run.say, **pairs)
    run.forget_after(saved["step"] or -1)  # without a checkpoint the run starts anew
    reference = None
    if cfg.kl_in != "none":
        reference = model.load_policy(path, device, dtype, compile=cfg.compile, trainable=False,
                                      shard_size=cfg.shard_size)
    engine = sampler.make_engine(
        path, config=hf_config, dtype=dtype, prompt_len=cfg.max_prompt_len, response_len=cfg.max_response_len,
        max_num_seqs=cfg.max_num_seqs, kv_cache_gb=kv_cache_gb, tensor_parallel=cfg.tensor_parallel, seed=cfg.seed,
        rank=rank, device=device, stop_strings=bool(cfg.stop), say=run.say)
    sampler.sleep(engine, device)
    if cfg.dry_step == "on" or (cfg.dry_step == "auto" and device.type == "cuda"):
        models = {"policy": (policy, optimizer), **pairs}
        flops.dry_step(models, reference, cfg, micro_batch_tokens, hf_config.vocab_size, world, device, run.say)
    peaks, shape = flops.machine_peaks(device, dtype), flops.shape_of(hf_config)
    run.say(f"peak of a process: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bandwidth / 1e9:.3g} GB/s ({peaks.source})")
    scorer = rewards.Scorer(part_weights=cfg.reward_parts)
    timer = distributed.Timer(device)
    bound = cfg.mismatch_bound or (1e-3 if dtype == "float32" else 0.05)
    sample = dict(engine=engine, tokenizer=tokenizer, scorer=scorer, timer=timer, max_tokens=cfg.max_response_len,
                  stop_ids=stop_ids, stop_strings=cfg.stop, repetition_stop=cfg.repetition_stop,
                  deadline_s=cfg.rollout_deadline_s, engines=engines, engine_rank=engine_rank,
                  leader=rank % cfg.tensor_parallel == 0, vocab_size=hf_config.vocab_size)
    limits = dict(shape=shape, peaks=peaks, world=world, tensor_parallel=cfg.tensor_parallel, dtype=dtype,
                  max_num_seqs=cfg.max_num_seqs, round_size=cfg.prompts_per_step * cfg.group_size,
                  critic_shape=None if critic is None else flops.shape_of(critic.trunk.config))

    def held_out(step):
        row, kept, per_problem = evaluate(eval_set, cfg.seed, cfg.eval_samples, cfg.temperature, version=step, **sample)
        run.held_out(step, per_problem)
        return row, kept

    def save(step, must, **more):
        with timer("save"):
            state = {"prompts_seen": prompts_seen, "bad_steps": bad_steps, "silent_steps": silent_steps, "evaluated": evaluated,
                     "fingerprints": fingerprints, "kl_coef": kl_coef}
            saver.save(step, policy, optimizer, state | more, must=must, **pairs)

    def log(step, row, kept):
        run.samples(step, kept)
        run.metrics(row)  # after all else that a step writes: it says that the step is finished
        run.say(console_line(row, cfg.num_steps))

    def evaluate_and_log(step, row, kept):
        """The held-out evaluation of a step, then its row; a kill before the end leads to both being made again."""
        with timer("sync"):
            sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), step, device)
        found, found_kept = held_out(step)
        with timer("sync"):
            sampler.sleep(engine, device)
        distributed.fault("evaluate", step)
        row = row | {k: v for k, v in found.items() if k.startswith("eval")} | more_seconds(row, timer.take())
        if warning := hacked(evaluated, row):
            run.say(warning)
        log(step, row, kept + found_kept)
        checkpoint.prune_or_say(run.path, cfg.keep_checkpoints)  # only now it is known which one is the best
        return row

    prompts_seen, bad_steps, evaluated = saved.get("prompts_seen", 0), saved.get("bad_steps", 0), saved.get("evaluated")
    silent_steps = saved.get("silent_steps", 0)
    kl_coef, gammas = saved.get("kl_coef", cfg.kl_coef), cfg.gammas or {"task": cfg.gamma}
    if saved["step"] == 0 and cfg.eval_prompts:
        with timer("sync"):
            sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), 0, device)
        row, kept = held_out(0)
        run.samples(0, kept)
        nothing_yet = dict.fromkeys([*StepStats(device).row(), *StepStats(device).value_row(), *explain_values({}, {}, {}),
                                     *flops.COLUMNS, "zero_variance_groups", "critic_lr", "kl_coef"])  # null
        run.metrics({"step": 0, **nothing_yet, **row, "lr": 0.0, "prompts_seen": 0, **seconds(timer.take())})
        run.say(f"step {0:4d}/{cfg.num_steps} | held-out {row['eval_correct']:.1%} sampled, "
                f"{row['eval_correct_greedy']:.1%} greedy | before any update")
        sampler.sleep(engine, device)
    saver = checkpoint.Saver(run.path, cfg.save_every, cfg.keep_checkpoints, run.say)
    stop = checkpoint.Stop(device, cfg.max_hours)
    if "row" in saved:  # that checkpoint was written before the evaluation of its step
        rundir.LAST.update(step=saved["step"])
        row, kept = run.unfinished(saved["step"])
        evaluated = last_evaluation(row or evaluate_and_log(saved["step"], saved["row"], kept))
        checkpoint.prune_or_say(run.path, cfg.keep_checkpoints)

    # ------------------------------------------------------------------------------------------------------------
    # training loop
    # ------------------------------------------------------------------------------------------------------------
    for step in range(saved["step"] + 1, cfg.num_steps + 1):
        rundir.LAST.update(step=step, rollouts=())  # for a crash report
        distributed.seed_generators(cfg.seed, step, rank)
        # 1) sample and score: this rank's share of the prompts, scored as they finish, then shared with all ranks
        with timer("sync"):
            sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), step, device)
        distributed.fault("sync", step)
        asked = data.draw(prompts, mixture, cfg.seed, prompts_seen, cfg.prompts_per_step)
        seeds = [[distributed.stable_seed(cfg.seed, p.uid, prompts_seen + i, k) for k in range(cfg.group_size)]
                 for i, p in enumerate(asked)]  # by the number of the draw: no two groups of a run share one
        prompts_seen += cfg.prompts_per_step
        by_uid = {p.uid: p for p in asked}
        rollouts = sampler.sample_and_score(asked, seeds, temperature=cfg.temperature, version=step, **sample)
        distributed.fault("rollout", step)
        with timer("sync"):
            sampler.sleep(engine, device)
        rundir.LAST.update(rollouts=rollouts, longest=max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))

        # 2) pack: updates_per_step parts of whole groups, each balanced over ranks; values, old and reference log-probs
        #    are computed before any weight changes; old log-probs only where the training forward itself is not the old one
        trained = trained_responses(rollouts, cfg.on_truncated)  # (R,)
        response_lens = torch.tensor([len(r.response_ids) for r in rollouts])  # (R,)
        updates = []
        members = torch.arange(len(rollouts)).reshape(-1, cfg.group_size)  # (P, G) indices of responses
        for part in (groups.flatten() for groups in members.chunk(cfg.updates_per_step)):
            chosen = part[trained[part]]
            num_tokens = int(response_lens[chosen].sum())
            weights_R = torch.zeros(len(rollouts))
            if len(chosen):
                weights_R[chosen] = token_weights(response_lens[chosen], len(chosen), num_tokens, cfg.loss_agg, cfg.max_response_len)
            micro_batches = model.pack(rollouts, chosen.tolist(), micro_batch_tokens, rank, world, device)
            updates.append((micro_batches, weights_R.to(device), chosen))
        batches = [batch for micro_batches, _, _ in updates for batch in micro_batches]
        off_policy = len(updates) * cfg.epochs_per_step > 1
        loads = flops.micro_batch_loads(batches, device)
        stats = StepStats(device)
        with timer("logprobs"), torch.no_grad():
            for batch in batches:
                if reference is not None:
                    batch.ref_logprobs = model.token_logprobs(reference, batch, cfg.temperature)[0]
                if off_policy or cfg.kl_in == "reward_k1":
                    batch.old_logprobs = model.token_logprobs(policy, batch, cfg.temperature)[0]
                    stats.compare(batch, batch.old_logprobs)

        if off_policy or cfg.kl_in == "reward_k1":
            stats.compared = True
            stats.reduce()
            stats.check_mismatch(bound)

        # 3) values and advantages: every rank gathers the numbers of all responses, so that token rewards, GAE and
        #    whitening are those of the whole step, on the host in float64, whatever the ranks and micro-batches
        with timer("values"), torch.no_grad():
            for batch in batches:
                no_values = torch.zeros_like(batch.rollout_logprobs)
                batch.old_values = no_values if critic is None else model.token_values(critic, batch)  # (T,)
            values = model.to_responses(batches, "old_values")  # {response: (len,)}, as all that follows
            penalties = dict.fromkeys(values, 0.0)
            if cfg.kl_in == "reward_k1":
                old, ref = model.to_responses(batches, "old_logprobs"), model.to_responses(batches, "ref_logprobs")
                penalties = {i: kl_coef * (old[i] - ref[i]) for i in values}
            scores = torch.tensor([r.score.total for r in rollouts], dtype=torch.float64)
            scores = scores.reshape(-1, cfg.group_size)  # (P, G)
            agreeing = int((scores == scores[:, :1]).all(dim=1).sum()) if cfg.group_size > 1 else 0
            scores_R = (leave_one_out(scores) if cfg.estimator == "rloo" else scores).flatten().tolist()
            advantages, returns = advantages_and_returns(rollouts, scores_R, values, penalties, gammas, cfg)
            told = explain_values(values, returns, advantages)
            advantages_R = whiten(advantages) if whitens(cfg) else advantages
            for batch in batches:
                batch.advantages, batch.returns = (model.from_responses(batch, x) for x in (advantages_R, returns))

        # 4) update; in the first critic_warmup_steps of the run the policy is only measured
        late = cfg.critic_warmup_steps
        train_policy = step > late
        lr = learning_rate(step - late, cfg.lr, cfg.lr_schedule, cfg.warmup_steps, cfg.num_steps - late, cfg.lr_min_ratio)
        critic_lr = learning_rate(step, cfg.critic_lr, cfg.critic_lr_schedule, cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
        distributed.fault("logprobs", step)
        with timer("train"):
            for micro_batches, weights_R, chosen in updates * cfg.epochs_per_step:
                for batch in micro_batches:
                    advantages = batch.advantages  # (T,)
                    weights = weights_R[batch.response_index]  # (T,)
                    with torch.set_grad_enabled(train_policy):
                        logprobs, entropy = model.token_logprobs(policy, batch, cfg.temperature)  # (T,), (T,)
                    old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
                    loss = dual_clip_loss(logprobs, entropy, old_logprobs, advantages, batch, kl_coef, cfg)  # (T,)
                    loss = (weights * loss).sum()  # this micro-batch's share of the update's loss
                    if train_policy:
                        (loss * world).backward()  # undo FSDP's mean over ranks: the weights already count all of them
                    stats.add(batch, logprobs.detach(), entropy.detach(), old_logprobs, advantages, loss.detach(), cfg)
                    if critic is not None:
                        values = model.token_values(critic, batch)  # (T,)
                        loss = (weights * value_loss(values, batch.old_values, batch.returns, cfg.value_clip)).sum()
                        (loss * world).backward()
                        stats.add_values(batch, values.detach(), loss.detach(), cfg.value_clip)
                    distributed.fault("backward", step)
                stats.reduce()
                stats.check_mismatch(bound)  # before the step: a broken engine must not touch the weights
                penalised = cfg.entropy_coef != 0 or (cfg.kl_in in ("loss_k2", "loss_k3") and kl_coef != 0)
                if train_policy and len(chosen) and (penalised or any(advantages_R[i].any() for i in chosen.tolist())):
                    stats.grad_norm = model.clip_and_step(policy, optimizer, cfg.grad_clip, lr)
                else:  # momentum and weight decay would still move the weights
                    optimizer.zero_grad(set_to_none=True)
                    stats.grad_norm = 0.0
                    stats.skipped_updates += int(train_policy)
                if critic is not None and len(chosen):
                    stats.critic_norms.append(model.clip_and_step(critic, critic_optimizer, cfg.grad_clip, critic_lr))
                distributed.fault("optimizer", step)
                bad_steps = 0 if stats.finite() else bad_steps + 1
                if bad_steps == 3:
                    raise distributed.Broken(f"step {step}: three updates in a row had a gradient that is not finite; "
                                        "none was applied. Lower lr, or look at the last metrics")

        # 5) save, evaluate, log; in this order, so that a kill in the evaluation costs nothing but its time
        row = {"step": step, **summarise(rollouts, tokenizer), **stats.row(), "lr": lr if train_policy else 0.0,
               **told, **stats.value_row(), "critic_lr": critic_lr if critic is not None else 0.0, "kl_coef": kl_coef,
               "zero_variance_groups": agreeing / len(scores), "prompts_seen": prompts_seen}
        silent_steps = silent_steps + 1 if len({r.score.total for r in rollouts}) == 1 else 0
        if train_policy and row["kl_k1"] is not None:
            kl_coef = adapt_kl_coef(kl_coef, row["kl_k1"], cfg.kl_target, len(rollouts), cfg.kl_horizon)
        last = step == cfg.num_steps
        kept = samples.trained_rows(step, rollouts, cfg.keep_rollouts, cfg.group_size, by_uid, batches,
                                    advantages_R, tokenizer)
        row |= seconds(timer.take(), tokens=sum(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))
        in_loss = [rollouts[i] for *_, chosen in updates for i in chosen.tolist()]
        passes = (3 if train_policy else 1) * cfg.epochs_per_step  # in forwards: a backward is two
        passes += (reference is not None) + (off_policy or cfg.kl_in == "reward_k1")
        row |= flops.efficiency(row, rollouts=rollouts, trained=in_loss, policy_passes=passes, loads=loads,
                                critic_passes=0 if critic is None else 3 * cfg.epochs_per_step + 1, **limits)
        evaluates = cfg.eval_prompts and (last or (cfg.eval_every and step % cfg.eval_every == 0))
        saved_first = evaluates and (last or saver.due(step))
        if saved_first:
            run.samples(step, kept)
            save(step, must=last, row=row)
        if evaluates:
            evaluated = last_evaluation(evaluate_and_log(step, row, kept))
        else:
            log(step, row, kept)
        if warning := no_signal(silent_steps, row):
            run.say(warning)
        if not last and cfg.report_every and step % cfg.report_every == 0:
            run.report()
        distributed.fault("metrics", step)
        stopped = stop.reason()  # "", a signal or max_hours; the same on all ranks
        if (not saved_first and (last or stopped or saver.due(step))) or (stopped and saver.failures):
            save(step, must=last or stopped)
        if stopped and not last:
            scorer.close()
            run.close()
            return run.say(f"stopped by {stopped} after step {step}; the same command continues")
    export = torch.float32 if device.type == "cpu" else torch.bfloat16
    checkpoint.export_hf(policy, tokenizer, f"{run.path}/model", export, max(saved["step"], cfg.num_steps),
                         stop_ids, run.say)
    scorer.close()
    if cfg.report_every:
        run.report(wait=True)
    run.close()
    run.say(f"done: {run.path}  (metrics.jsonl, log.txt, report.html, samples/, code/, and the model as a Hugging Face directory: "
            f"{run.path}/model)")


if __name__ == "__main__":
    rundir.entry(main)
