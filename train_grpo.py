"""
GRPO, from prompts to new weights: prompt -> rollout -> reward -> advantage -> loss -> weight sync, top to bottom.

    torchrun --standalone --nproc-per-node=8 train_grpo.py recipes/tinyzero_grpo.py [--setting value ...]
    python train_grpo.py recipes/tinyzero_grpo.py --check      # settings, data, prompt and reward, no weights

Start reading at main(). Shape comments: P prompts of a step, G samples a prompt, R = P * G responses, T response
tokens of a packed micro-batch. Every rank sees all rollouts of the step: the batch is global, only compute is shared.
"""

from dataclasses import dataclass
from typing import Literal

from onebox import distributed  # first: it looks for its launcher and sets what libraries read when they are imported

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
    group_size: int = 8                  # samples of each prompt
    max_response_len: int = 1024         # tokens
    temperature: float = 1.0             # the loss uses log-probs at this temperature too
    top_p: float = 1.0                   # must stay 1: anything less biases every ratio
    stop: tuple = ()                     # strings that end a response, e.g. ("</answer>",); EOS always does
    max_num_seqs: int = 256              # sequences decoded together in one engine
    kv_cache_gb: float = 0.0             # per engine; 0 = room for max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: int = 1             # GPUs per engine
    rollout_deadline_s: float = 3600.0   # after it, unfinished responses are cut off and count as truncated
    repetition_stop: int = 0             # a pattern so many times in a row ends a response, as truncated; 0 = off
    dynamic_sampling: int = 0            # extra rollout rounds to replace groups whose rewards all agree (DAPO)

    # algorithm
    updates_per_step: int = 1            # optimizer steps on one batch of rollouts, disjoint parts of it
    adv_std: bool = True                 # divide by the group's std (GRPO); False: Dr. GRPO
    adv_eps: float = 1e-6                # added to that std
    loss_agg: Literal["seq_mean", "token_mean", "constant"] = "token_mean"  # GRPO, DAPO, Dr. GRPO
    clip_low: float = 0.2                # ratio below 1 - clip_low ...
    clip_high: float = 0.2               # ... or above 1 + clip_high gets no gradient (DAPO 0.28)
    kl_in: Literal["none", "reward_k1", "loss_k2", "loss_k3"] = "none"  # where the penalty to the start model stands
    kl_coef: float = 0.001               # its weight
    entropy_coef: float = 0.0            # entropy bonus
    on_truncated: Literal["keep", "mask"] = "keep"  # keep: trained on, with the reward's failure value; mask: no gradient
    mismatch_cap: float = 2.0            # truncated importance weight of engine against trainer, 0 = off
    mismatch_bound: float = 0.0          # stop above this mean |rollout - trainer| log-prob; 0 = 0.001 fp32, 0.05 bf16

    # optimizer
    lr: float = 1e-6                     # peak
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    lr_min_ratio: float = 0.0            # where linear and cosine end, as a share of lr
    warmup_steps: int = 0                # linear, from lr / (warmup_steps + 1)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.01
    grad_clip: float = 1.0               # 0 = off

    # held-out evaluation
    eval_data: str | dict = ""           # source name; empty = data, split "test"
    eval_path: str | dict = ""           # the same for held-out rows
    eval_prompts: int = 128
    eval_samples: int = 4                # sampled at `temperature`; one greedy response beside them


def group_advantages(rewards, divide_by_std, eps=1e-6):
    """
    rewards (P, G) -> advantages (P, G): the reward minus the group's mean, over the group's std if asked for.

    GRPO, arXiv 2402.03300, section 4.1.2 (with std, unbiased); Dr. GRPO, arXiv 2503.20783, section 3.2 (without).
    Every row sums to 0. A group that agrees, or of one, is exactly 0: in float32 eight times 0.1 is not.
    """
    rewards = rewards.double()
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if divide_by_std and rewards.shape[1] > 1:
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + eps)
    agrees = rewards.amax(dim=1) == rewards.amin(dim=1)
    return advantages.masked_fill(agrees[:, None], 0.0).float()


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


def learned_from(advantages, penalised):
    """
    Which responses move a weight, -> bool (R,): all of them under a KL or entropy term, else those with an advantage. The
    rest, groups that agree, only go forward, for the canary and the statistics: the same gradient for a third of the work.
    """
    return torch.ones_like(advantages, dtype=torch.bool) if penalised else advantages != 0


def policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high):
    """Clipped surrogate of each token, arXiv 1707.06347, eq. 7; all (T,). No gradient once the ratio has gained enough."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


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


def with_penalty(advantages, old_logprobs, batch, cfg):
    """The advantage of each token less the penalty that reward_k1 puts there; all (T,)."""
    if cfg.kl_in == "reward_k1":
        advantages = advantages - cfg.kl_coef * (old_logprobs - batch.ref_logprobs)
    return advantages


def token_loss(logprobs, entropy, old_logprobs, advantages, batch, cfg):
    """The loss of each token: surrogate x mismatch weight + KL penalty - entropy bonus; all (T,)."""
    advantages = with_penalty(advantages, old_logprobs, batch, cfg)
    loss = policy_loss(logprobs, old_logprobs, advantages, cfg.clip_low, cfg.clip_high)
    loss = loss * mismatch_weights(old_logprobs, batch.rollout_logprobs, cfg.mismatch_cap)
    if cfg.kl_in != "none":
        loss = loss + cfg.kl_coef * kl_penalty(logprobs, batch.ref_logprobs, cfg.kl_in)
    return loss - cfg.entropy_coef * entropy


def learning_rate(step, lr, schedule, warmup_steps, num_steps, min_ratio):
    """The lr of step 1, 2, ...: linear warm-up that never wastes a step on 0, then constant, linear or cosine."""
    if step <= warmup_steps:
        return lr * step / (warmup_steps + 1)
    done = (step - warmup_steps - 1) / max(1, num_steps - warmup_steps)
    if schedule == "constant":
        return lr
    shape = 1 - done if schedule == "linear" else (1 + torch.cos(torch.tensor(torch.pi * done)).item()) / 2
    return lr * (min_ratio + (1 - min_ratio) * shape)


def check_config(cfg, world):
    """What can be known to be wrong before any file is opened; each line says what, where and the fix."""
    for name in ("prompts_per_step", "group_size", "updates_per_step", "max_response_len", "max_prompt_len",
                 "num_steps", "max_tokens_per_gpu", "max_num_seqs", "tensor_parallel", "rollout_deadline_s",
                 "keep_checkpoints", "adv_eps"):
        if getattr(cfg, name) <= 0:
            raise ConfigError(f"{name} = {getattr(cfg, name)} must be greater than 0")
    for name in ("lr", "entropy_coef", "mismatch_bound", "shard_size", "max_hours", "eval_every", "save_every", "keep_rollouts",
                 "report_every", "repetition_stop", "eval_prompts", "eval_samples", "warmup_steps", "grad_clip",
                 "kv_cache_gb", "clip_low", "clip_high", "kl_coef", "mismatch_cap", "dynamic_sampling", "data_limit",
                 "weight_decay", "seed"):
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
    check_group(cfg)


def check_group(cfg):
    """ConfigError where every advantage would be 0: a group of one agrees with itself."""
    if cfg.group_size > 1:
        return
    if cfg.entropy_coef == 0 and (cfg.kl_in == "none" or cfg.kl_coef == 0):
        raise ConfigError("group_size = 1 teaches nothing: the advantage of a group of one is 0; make it 2 or more (or set "
                          "kl_in or entropy_coef, which need no group)")
    if cfg.dynamic_sampling:
        raise ConfigError(f"dynamic_sampling = {cfg.dynamic_sampling} waits for groups that vary, and a group of one never "
                          "does: make group_size 2 or more, or leave dynamic_sampling 0")


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
    fingerprints = {"model": checkpoint.fingerprint_of_model(path), "training": data.fingerprint(prompts),
                    "held-out": data.fingerprint(eval_set)}
    folder = rundir.run_folder(cfg, fingerprints)
    if (done := checkpoint.exported_step(f"{folder}/model")) >= cfg.num_steps:
        return distributed.print0(f"{folder} is complete: step {done} of {cfg.num_steps}. Its model is {folder}/model")
    run = rundir.Run(cfg, origin, script="train_grpo.py", fingerprints=fingerprints)
    saved = checkpoint.find(run.path, fingerprints, cfg.allow_data_change, run.say)  # {"step": 0}: there is none yet
    micro_batch_tokens = rundir.token_budget(run.path, cfg.max_tokens_per_gpu, run.say)
    kv_cache_gb = rundir.cache_budget(run.path, cfg.kv_cache_gb, run.say)

    # ------------------------------------------------------------------------------------------------------------
    # objects: policy, optimizer, perhaps a reference, the engine, the scorer
    # ------------------------------------------------------------------------------------------------------------
    policy = model.load_policy(path, device, dtype, checkpointing=cfg.checkpointing, compile=cfg.compile,
                               shard_size=cfg.shard_size)
    optimizer = model.make_adam(policy, cfg.lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
    saved = checkpoint.load(run.path, saved, policy, optimizer, run.say)
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
        models = {"policy": (policy, optimizer)}
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
                  max_num_seqs=cfg.max_num_seqs, round_size=cfg.prompts_per_step * cfg.group_size)

    def held_out(step):
        row, kept, per_problem = evaluate(eval_set, cfg.seed, cfg.eval_samples, cfg.temperature, version=step, **sample)
        run.held_out(step, per_problem)
        return row, kept

    def save(step, must, **more):
        with timer("save"):
            state = {"prompts_seen": prompts_seen, "bad_steps": bad_steps, "silent_steps": silent_steps, "evaluated": evaluated,
                     "fingerprints": fingerprints}
            saver.save(step, policy, optimizer, state | more, must=must)

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
    if saved["step"] == 0 and cfg.eval_prompts:
        with timer("sync"):
            sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), 0, device)
        row, kept = held_out(0)
        run.samples(0, kept)
        nothing_yet = dict.fromkeys([*StepStats(device).row(), *flops.COLUMNS, "zero_variance_groups",
                                     "advantage_std"])  # null
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
        groups, rollouts, agreeing, by_uid = [], [], 0, {}
        for _ in range(1 + cfg.dynamic_sampling):
            asked = data.draw(prompts, mixture, cfg.seed, prompts_seen, cfg.prompts_per_step)
            seeds = [[distributed.stable_seed(cfg.seed, p.uid, prompts_seen + i, k) for k in range(cfg.group_size)]
                     for i, p in enumerate(asked)]  # by the number of the draw: no two groups of a run share one
            prompts_seen += cfg.prompts_per_step
            by_uid |= {p.uid: p for p in asked}
            fresh = sampler.sample_and_score(asked, seeds, temperature=cfg.temperature, version=step, **sample)
            rollouts += fresh
            fresh = [fresh[i:i + cfg.group_size] for i in range(0, len(fresh), cfg.group_size)]
            varied = [g for g in fresh if len({r.score.total for r in g}) > 1]
            agreeing += len(fresh) - len(varied)
            groups += varied if cfg.dynamic_sampling else fresh
            if len(groups) >= cfg.prompts_per_step:
                break
        distributed.fault("rollout", step)
        groups = groups[:cfg.prompts_per_step]
        with timer("sync"):
            sampler.sleep(engine, device)
        rundir.LAST.update(rollouts=rollouts, longest=max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))

        # 2) advantages: (P, G), then onto the rollouts, which carry them through packing
        scores = torch.tensor([[r.score.total for r in group] for group in groups], dtype=torch.float64)  # (P, G)
        scores = scores.reshape(-1, cfg.group_size)
        advantages_PG = group_advantages(scores, cfg.adv_std, cfg.adv_eps)
        flat = [r for group in groups for r in group]
        advantages_R = advantages_PG.flatten().to(device)  # (R,)

        # 3) pack: updates_per_step parts of whole groups, each balanced over ranks; old and reference log-probs are
        #    computed before any weight changes, and only where the training forward itself is not the old one
        trained = trained_responses(flat, cfg.on_truncated)  # (R,)
        response_lens = torch.tensor([len(r.response_ids) for r in flat])  # (R,)
        penalised = cfg.entropy_coef != 0 or (reference is not None and cfg.kl_coef != 0)
        learning = learned_from(advantages_R.cpu(), penalised)  # (R,)
        updates = []
        members = torch.arange(len(flat)).reshape(-1, cfg.group_size)  # (P, G) indices of responses
        for part in (groups.flatten() for groups in members.chunk(cfg.updates_per_step) if len(groups)):
            chosen = part[trained[part]]
            num_tokens = int(response_lens[chosen].sum())
            weights_R = torch.zeros(len(flat))
            if len(chosen):
                weights_R[chosen] = token_weights(response_lens[chosen], len(chosen), num_tokens, cfg.loss_agg, cfg.max_response_len)
            learnt, silent = chosen[learning[chosen]].tolist(), chosen[~learning[chosen]].tolist()
            micro_batches = model.pack(flat, learnt, micro_batch_tokens, rank, world, device) if learnt or not silent else []
            if silent:
                micro_batches += model.pack(flat, silent, micro_batch_tokens, rank, world, device, learns=False)
            updates.append((micro_batches, weights_R.to(device), learnt))
        batches = [batch for micro_batches, _, _ in updates for batch in micro_batches]
        loads = flops.micro_batch_loads(batches, device)
        stats = StepStats(device)
        with timer("logprobs"), torch.no_grad():
            for batch in batches:
                if reference is not None:
                    batch.ref_logprobs = model.token_logprobs(reference, batch, cfg.temperature)[0]
                if len(updates) > 1:
                    batch.old_logprobs = model.token_logprobs(policy, batch, cfg.temperature)[0]
                    stats.compare(batch, batch.old_logprobs)

        if len(updates) > 1:
            stats.compared = True
            stats.reduce()
            stats.check_mismatch(bound)

        # 4) update
        distributed.fault("logprobs", step)
        lr = learning_rate(step, cfg.lr, cfg.lr_schedule, cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
        with timer("train"):
            for micro_batches, weights_R, learnt in updates:
                for batch in micro_batches:
                    advantages = advantages_R[batch.response_index]  # (T,)
                    weights = weights_R[batch.response_index]  # (T,)
                    with torch.set_grad_enabled(batch.learns):
                        logprobs, entropy = model.token_logprobs(policy, batch, cfg.temperature)  # (T,), (T,)
                    old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
                    loss = token_loss(logprobs, entropy, old_logprobs, advantages, batch, cfg)  # (T,)
                    loss = (weights * loss).sum()  # this micro-batch's share of the update's loss
                    if batch.learns:
                        (loss * world).backward()  # undo FSDP's mean over ranks: the weights already count all of them
                    advantages = with_penalty(advantages, old_logprobs, batch, cfg)
                    stats.add(batch, logprobs.detach(), entropy.detach(), old_logprobs, advantages, loss.detach(), cfg)
                    distributed.fault("backward", step)
                stats.reduce()
                stats.check_mismatch(bound)  # before the step: a broken engine must not touch the weights
                if learnt:
                    stats.grad_norm = model.clip_and_step(policy, optimizer, cfg.grad_clip, lr)
                else:  # momentum and weight decay would still move the weights
                    optimizer.zero_grad(set_to_none=True)
                    stats.grad_norm = 0.0
                    stats.skipped_updates += 1
                distributed.fault("optimizer", step)
                bad_steps = 0 if stats.finite() else bad_steps + 1
                if bad_steps == 3:
                    raise distributed.Broken(f"step {step}: three updates in a row had a gradient that is not finite; "
                                        "none was applied. Lower lr, or look at the last metrics")

        # 5) save, evaluate, log; in this order, so that a kill in the evaluation costs nothing but its time
        row = {"step": step, **summarise(rollouts, tokenizer), **stats.row(), "lr": lr,
               "zero_variance_groups": agreeing * cfg.group_size / len(rollouts),
               "advantage_std": float(advantages_R.std()) if len(flat) > 1 else 0.0, "prompts_seen": prompts_seen}
        silent_steps = silent_steps + 1 if row["zero_variance_groups"] == 1 else 0
        last = step == cfg.num_steps
        kept = samples.trained_rows(step, flat, cfg.keep_rollouts, cfg.group_size, by_uid, batches,
                                    dict(enumerate(advantages_R.tolist())), tokenizer)
        row |= seconds(timer.take(), tokens=sum(len(r.prompt_ids) + len(r.response_ids) for r in rollouts))
        in_loss = [flat[i] for *_, learnt in updates for i in learnt]
        measured = [r for i, r in enumerate(flat) if trained[i] and not learning[i]]
        passes = 3 + (len(updates) > 1) + (reference is not None)  # in forwards: a backward is two
        row |= flops.efficiency(row, rollouts=rollouts, trained=in_loss, measured=measured, policy_passes=passes,
                                loads=loads, **limits)
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
