"""
GRPO, from prompts to new weights: prompt -> rollout -> reward -> advantage -> loss -> weight sync, top to bottom.

    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo.py [--setting value ...]
    python train_grpo.py recipes/tinyzero_grpo.py --check      # settings, data, prompt and reward, no weights

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
from onebox.metrics import StepStats, advantage_columns, empty_row, kept_in_samples, speed, summarize, trained_rows
from onebox.models import resolve_dtype, resolve_model
from onebox.rundir import RunSettings, entry, open_run
from onebox.steering import next_settings
from policy import check_compile, learning_rate, load_options, load_policy, make_adam, optimizer_step, pack
from policy import token_logprobs, trained_logprobs
from rewards import Scorer
from rollout import Engine, check_sampling


@dataclass(frozen=True)
class Config(RunSettings):  # in onebox/rundir.py: what does not change what is learned, but for finish_share
    # run
    seed: NonNegative[int] = 0           # decides data order and every sampled token
    num_steps: Positive[int] = 100       # steps of rollout + update

    # model
    model: str = "Qwen/Qwen2.5-3B"       # Hugging Face directory or hub id
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU

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
    group_size: Positive[int] = 8        # samples of each prompt
    max_response_len: Positive[int] = 1024  # tokens
    temperature: float = 1.0             # the loss uses log-probs at this temperature too
    top_p: float = 1.0                   # must stay 1: anything less biases every ratio
    stop: tuple = ()                     # strings that end a response, e.g. ("</answer>",); EOS always does
    repetition_stop: NonNegative[int] = 0  # a pattern so many times in a row ends a response; 0 = off
    dynamic_sampling: NonNegative[int] = 0  # extra rollout rounds to replace groups whose rewards all agree (DAPO)

    # algorithm
    updates_per_step: Positive[int] = 1  # optimizer steps on one batch of rollouts, disjoint parts of it
    epochs_per_step: Positive[int] = 1   # passes over the same rollouts; old log-probs stay fixed
    adv_std: bool = True                 # divide by the group's std (GRPO); False: Dr. GRPO
    adv_eps: Positive[float] = 1e-6      # added to that std
    loss_agg: Literal["seq_mean", "token_mean", "constant"] = "token_mean"  # GRPO, DAPO, Dr. GRPO
    clip_low: NonNegative[float] = 0.2   # ratio below 1 - clip_low, if the advantage is < 0, ...
    clip_high: NonNegative[float] = 0.2  # ... or above 1 + clip_high, if > 0: no gradient (DAPO 0.28)
    dual_clip: NonNegative[float] = 0.0  # ratio above which a bad token gets no gradient either, e.g. 3; 0 = off
    kl_in: Literal["none", "reward_k1", "loss_k2", "loss_k3"] = "none"  # KL to the initial model: in reward or loss
    kl_coef: NonNegative[float] = 0.001  # its weight
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
    if cfg.kl_in == "reward_k1":
        advantages = advantages - cfg.kl_coef * (batch.old_logprobs - batch.ref_logprobs)
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
    refuse(cfg.group_size == 1 and not needs_grad_mask(torch.zeros(1), cfg), "group_size = 1 teaches nothing: the "
           "advantage of a group of one is 0; make it 2 or more (or set kl_in or entropy_coef, which need no group)")


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
    run = open_run(cfg, origin, device, fingerprints)
    if run is None:  # it is complete
        return
    cfg = run.cfg                                    # "auto" has become plain values
    policy = load_policy(path, device, dtype, **load_options(cfg))
    optimizer = make_adam(policy, cfg.lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
    models = {"policy": (policy, optimizer)}
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
    machine = machine_of(cfg, hf_config, dtype, world, device)
    max_mismatch = cfg.mismatch_bound or (1e-3 if dtype == "float32" else 0.05)
    if progress.step == 0 and eval_prompts:
        progress.row = empty_row("advantage_std", "corr_length_advantage")
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
        advantages = group_advantages(rewards.reshape(-1, cfg.group_size), cfg.adv_std, cfg.adv_eps).flatten()  # (R,)

        # 3) pack: one list of micro-batches per update; loss weights count the responses of all ranks
        in_loss = in_loss_mask(rollouts, cfg.on_truncated)                                        # (R,)
        needs_grad = needs_grad_mask(advantages, cfg)                                             # (R,)
        shown = kept_in_samples(rollouts, cfg)       # response indices
        response_lens = torch.tensor([len(r.response_ids) for r in rollouts])                     # (R,)
        updates = []
        for indices in split_into_updates(len(rollouts), cfg.group_size, cfg.updates_per_step):   # of responses
            chosen = indices[in_loss[indices]]
            loss_weights = token_weights(response_lens, len(chosen), int(response_lens[chosen].sum()), cfg.loss_agg,
                                         cfg.max_response_len)                                    # (R,)
            updates.append(pack(rollouts, chosen, run.max_tokens, rank, world, device, needs_grad, cfg.silent_share,
                                shown))
            for batch in updates[-1]:
                batch.loss_weights = loss_weights.to(device)[batch.response_index]                # (T,)
                batch.advantages = advantages.to(device)[batch.response_index]                    # (T,)

        # 4) before any weight changes: old log-probs, unless the training pass yields them; in PPO values, advantages
        run.clock.phase("logprobs")
        stats = StepStats(device, max_mismatch)
        with torch.no_grad(), on_device(reference, device):
            for batch in chain(*updates):
                if reference is not None:
                    batch.ref_logprobs, _ = token_logprobs(reference, batch, cfg.temperature)     # (T,)
                if len(updates) * cfg.epochs_per_step > 1:
                    batch.old_logprobs, batch.entropy = token_logprobs(policy, batch, cfg.temperature)  # (T,), (T,)
                    stats.add_mismatch(batch)
        stats.check_mismatch()                       # the canary, if there are several updates; else see below

        # 5) update the weights
        run.clock.phase("train")
        lr = learning_rate(step, cfg.lr, cfg.lr_schedule, cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
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
            stats.check_mismatch()                   # sums over ranks; a broken engine must not touch the weights
            skip = not any(batch.needs_grad for batch in micro_batches)
            grad_norm = optimizer_step(policy, optimizer, lr, cfg.grad_clip, skip)
            progress.count_update(stats.end_update(grad_norm, skip))  # three in a row that are not finite end the run

        # 6) save, evaluate, log; in this order, so that a kill in the evaluation costs nothing but its time
        run.clock.phase("other")
        row = {"step": step, "lr": lr, "prompts_seen": progress.prompts_seen,
               **advantage_columns(advantages, response_lens, in_loss),
               **summarize(sampled, cfg.group_size), **stats.row(),
               **speed(run.clock, machine, sampled, updates)}
        run.write_samples(step, trained_rows(step, rollouts or sampled, updates, cfg, tokenizer))
        progress.end_step(row, has_signal=bool(advantages.any()))
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
