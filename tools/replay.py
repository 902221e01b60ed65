"""
--replay FILE: compute one saved step again, response by response, without an engine and without a run.

    python train_grpo.py recipes/demo.py --replay out/demo/samples/step_000010.jsonl.gz
    python train_grpo.py recipes/demo.py --replay out/demo/crash/20261128-101500_rank0/batch.jsonl.gz

Pack the rollouts, run forward and loss with the script's own functions, and print what each response adds to loss and
gradient; all of it goes to step_000010.replay.json. No optimizer steps: all updates of a step are seen from the same
weights, so with several only the first is the one that was made. docs/replay.md explains both files.
"""

import json
import math
import os
import re
import sys
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from onebox.config import ConfigError, own_and_inherited, refuse, script_of
from onebox.crash import memory_of
from onebox.distributed import Broken, init_distributed, print0, progress_bar, seed_generators, whole
from onebox.files import read_json, read_rows, write_atomic
from onebox.masters import on_device
from onebox.metrics import StepStats
from onebox.models import check_critic, resolve_dtype, resolve_model
from onebox.rundir import plain_settings
from onebox.text import excerpt
from policy import from_responses, pack, to_responses, token_logprobs, token_values
from tasks.rows import DataError
from tools.results import to_text
from tools.saved_step import load_models, other_settings, place_of, read_step, weights_of

OF_TOKENS = ("loss_weights", "advantages", "old_logprobs", "ref_logprobs", "old_values", "returns")
SHOWN = ("loss", "entropy", "clip_frac", "approx_kl", "kl", "mismatch_mean", "mismatch_max", "grad_norm", "value_loss",
         "critic_grad_norm")


def replay(cfg):
    """Replay cfg.replay with the Config of either script. ConfigError in one line for what cannot be replayed."""
    refuse(cfg.check, "--check and --replay are two things: give one of them")
    refuse(int(os.environ.get("WORLD_SIZE", 1)) > 1, "--replay is one process: start it with plain `python`")
    script = sys.modules[type(cfg).__module__]  # train_grpo or train_ppo, as it is now: an edited loss is what counts
    file, cfg = os.path.expanduser(cfg.replay), replace(cfg, tensor_parallel=1, shard_size=0)
    script.check_config(cfg, 1)
    rollouts, columns, row = read_step(file, cfg)
    in_loss = script.in_loss_mask(rollouts, cfg.on_truncated).tolist()
    saved = {name: column for name, column in columns.items()
             if not any(wanted and one is None for wanted, one in zip(in_loss, column, strict=True))}
    longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    path, hf_config, tokenizer, _ = resolve_model(cfg.model, longest)
    highest = max(ids.max(initial=0) for r in rollouts for ids in (r.prompt_ids, r.response_ids))
    if highest >= hf_config.vocab_size:
        raise DataError(f"{file}: token {highest} is outside the vocabulary of {hf_config.vocab_size} of model "
                        f"{cfg.model!r}: give the --model that sampled this file")
    critic_path = ""
    if getattr(cfg, "estimator", "") == "gae":
        critic_path = check_critic(cfg.critic_model or cfg.model, longest, hf_config, tokenizer)
    run, step = place_of(file, row)
    saved_step, weights = weights_of(run, step, cfg.model, path)

    device = init_distributed()[2]
    record = read_json(os.path.join(run, "config.json")) if run else {}
    cfg = replace(cfg, **plain_settings(cfg, device, record)[0])
    models = load_models(cfg, path, critic_path, run, saved_step, device)
    own = [row for _, row in read_rows(os.path.join(run, "metrics.jsonl")) if row.get("step") == step] if run else []
    own = own[-1] if own and step else {}
    others = other_settings(run, cfg)
    state = read_json(os.path.join(run, f"step_{saved_step:06d}", "state.json")) if run else {}
    cfg = replace(cfg, **((own if own else state).get("changed") or {}))  # by controllers or the guard
    if run and getattr(cfg, "kl_target", 0):  # PPO's controller had moved it
        cfg = replace(cfg, kl_coef=own.get("kl_coef") or state.get("kl_coef") or cfg.kl_coef)
    whole_step, count = cfg.prompts_per_step * cfg.group_size, len(rollouts)
    print0(f"replay        {file}: {count} responses in {count // cfg.group_size} groups, updates_per_step "
           f"{cfg.updates_per_step}\nweights       {weights}\nold_logprobs  of "
           f"{'the file' if 'old_logprobs' in saved else 'these weights, now'}")
    if count != whole_step:
        print0(f"note          a step has {whole_step} responses (prompts_per_step x group_size): loss and shares are "
               f"of the {count} in the file"
               + ", and PPO's advantages are whitened over them" * hasattr(script, "set_advantages")
               + f". A run keeps all with --keep_rollouts {whole_step}")
    if cfg.updates_per_step * cfg.epochs_per_step > 1:
        print0("note          the run's own columns are of weights that moved from update to update; these do not")
    if others:
        print0(f"settings      other than the run's: {', '.join(others)}")
    seed_generators(cfg.seed, step or 0, 0)  # as a step does: for a changed script with dropout
    with memory_of("the replay", "take a smaller --max_tokens_per_gpu, or --checkpointing True"):
        totals, responses = compute(script, cfg, models, rollouts, saved, step, device)
    settings = {f.name: getattr(cfg, f.name) for f in own_and_inherited(type(cfg))[0]}
    target = re.sub(r"(\.jsonl)?(\.gz)?$", "", file) + ".replay.json"
    before, name = read_json(target), script_of(type(cfg))
    head = json.dumps(rounded({"script": name, "settings": settings, "weights": weights, "step": step, "totals": totals,
                               "responses": []}))
    text = head[:-2] + "\n" + ",\n".join(json.dumps(rounded(one)) for one in responses) + "\n]}\n"  # a line for each
    try:
        write_atomic(target, text)
    except OSError:  # somebody else's run
        target = os.path.basename(target)
        try:
            write_atomic(target, text)
        except OSError as error:
            raise ConfigError(f"neither there nor here {target} can be written: {error}") from error
    show(totals, responses, before.get("totals", {}) if before.get("script") == name else {}, own)
    print0(f"\nwritten to {target}")


def compute(script, cfg, models, rollouts, saved, step, device):
    """Return ({total: value}, [one dict a response]) of a step that starts from these rollouts."""
    rewards = torch.tensor([r.score.total for r in rollouts], dtype=torch.float64)
    in_loss = script.in_loss_mask(rollouts, cfg.on_truncated)
    lens = torch.tensor([len(r.response_ids) for r in rollouts])
    advantages = needs_grad = None  # those of PPO need the values
    if not hasattr(script, "set_advantages"):
        advantages = script.group_advantages(rewards.reshape(-1, cfg.group_size), cfg.adv_std, cfg.adv_eps).flatten()
        needs_grad = script.needs_grad_mask(advantages, cfg)
    coarse = resolve_dtype(cfg.dtype, device) != "float32"
    updates, stats, columns = [], StepStats(device, cfg.mismatch_bound or (0.05 if coarse else 1e-3)), {}
    for indices in script.split_into_updates(len(rollouts), cfg.group_size, cfg.updates_per_step):
        chosen = indices[in_loss[indices]]
        weights = script.token_weights(lens, len(chosen), int(lens[chosen].sum()), cfg.loss_agg, cfg.max_response_len)
        updates.append(pack(rollouts, chosen, cfg.max_tokens_per_gpu, 0, 1, device, needs_grad))
        for batch in updates[-1]:
            batch.loss_weights = weights.to(device)[batch.response_index]
            if advantages is not None:
                batch.advantages = advantages.to(device)[batch.response_index]
    batches, critic = list(chain(*updates)), models["critic"]
    with torch.no_grad(), on_device(models["reference"], device):
        for batch in batches:
            if models["reference"] is not None:
                batch.ref_logprobs, _ = token_logprobs(models["reference"], batch, cfg.temperature)
            if "old_logprobs" in saved:
                batch.old_logprobs = from_responses(batch, saved["old_logprobs"])
            else:
                batch.old_logprobs, _ = token_logprobs(models["policy"], batch, cfg.temperature)
            stats.add_mismatch(batch)
            if critic is not None and "old_values" in saved:
                batch.old_values = from_responses(batch, saved["old_values"])
            elif advantages is None:
                batch.old_values = token_values(critic, batch) if critic else torch.zeros_like(batch.rollout_logprobs)
    add_up(stats)
    train_policy = step is None or step > getattr(cfg, "critic_warmup_steps", 0)
    if not train_policy:
        print0(f"note          step {step} is one of critic_warmup_steps: the policy has no gradient")
    if advantages is None:
        columns = script.set_advantages(updates, rollouts, rewards, train_policy, cfg)
    for micro_batches in updates:
        for batch in micro_batches:
            forward_backward(script, cfg, models, batch, stats)
        add_up(stats)
        norm, skip = take_norm(models["policy"]), not any(batch.needs_grad for batch in micro_batches)
        stats.end_update(norm, skip and train_policy, critic and take_norm(critic))
    totals = {"reward": rewards.mean().item(), **stats.row(), **columns, "grad_norms": stats.grad_norms}
    return totals, [*of_responses(script, cfg, models, rollouts, batches, device)]


def add_up(stats):
    """Add up, and say where a run would stop: a replay goes on, as its weights may be others on purpose."""
    try:
        stats.check_mismatch()
    except Broken as error:
        print0(f"note          a run would stop here: {str(error).split('. ')[0]}")


def forward_backward(script, cfg, models, batch, stats=None):
    """Send one micro-batch through the script's loss, as stage 5 does, and keep what each token adds to it."""
    with torch.set_grad_enabled(batch.needs_grad):
        logprobs, entropy = token_logprobs(models["policy"], batch, cfg.temperature)
    losses, clipped = script.token_loss(logprobs, entropy, batch, cfg)
    loss = (batch.loss_weights * losses).sum()
    if batch.needs_grad:
        loss.backward()
    batch.losses = (batch.loss_weights * losses).detach()
    if stats is not None:
        stats.add(batch, logprobs, entropy, loss, clipped)
    if models["critic"] is not None:
        values = token_values(models["critic"], batch)
        errors = batch.loss_weights * script.value_loss(values, batch.old_values, batch.returns, cfg.value_clip)
        errors.sum().backward()
        batch.value_losses = errors.detach()
        if stats is not None:
            stats.add_values(batch, values, errors.sum(), cfg.value_clip)


def take_norm(module):
    """Return the norm of the gradient that has gathered, and drop it."""
    norm = whole(torch.nn.utils.clip_grad_norm_(module.parameters(), math.inf)).item()
    module.zero_grad(set_to_none=True)
    return norm


def of_responses(script, cfg, models, rollouts, batches, device):
    """Yield a dict a response: what the step computed for its tokens, and the norm of the gradient of it alone."""
    found = {name: to_responses([batch for batch in batches if hasattr(batch, name)], name)
             for name in ("logprobs", "entropy", "losses", "value_losses", *OF_TOKENS)}
    needs = {i: batch.needs_grad for batch in batches for i in batch.response_index.tolist()}
    for i, r in enumerate(progress_bar(rollouts, "gradients")):
        about = {"uid": r.uid, "sample": r.sample, "tokens": len(r.response_ids), "truncated": r.truncated,
                 "reward": r.score.total, "in_loss": i in needs, "advantage": None, "logprob_mean": None,
                 "ratio_mean": None, "mismatch_mean": None, "loss_share": 0.0, "grad_norm": 0.0}
        if i in needs:
            of = {name: arrays[i] for name, arrays in found.items() if i in arrays}
            batch, = pack(rollouts, [i], 1, 0, 1, device)
            for name in of.keys() & set(OF_TOKENS):
                setattr(batch, name, from_responses(batch, found[name]))
            batch.needs_grad = needs[i]
            forward_backward(script, cfg, models, batch)
            about |= {"advantage": of["advantages"].mean(), "logprob_mean": of["logprobs"].mean(),
                      "ratio_mean": np.exp(of["logprobs"] - of["old_logprobs"]).mean(),
                      "mismatch_mean": np.abs(r.rollout_logprobs - of["old_logprobs"]).mean(),
                      "loss_share": of["losses"].sum(), "grad_norm": take_norm(models["policy"])}
            if models["critic"] is not None:
                about |= {"value_loss_share": of["value_losses"].sum(), "critic_grad_norm": take_norm(models["critic"])}
            about["loss_weight"] = of.pop("loss_weights")[0]  # the same for all tokens, as `advantage` is in GRPO
            about |= {name: array for name, array in of.items() if name != "advantages" or array.min() < array.max()}
        yield about


def rounded(value):
    """Make JSON of it: nine digits, which hold all of fp32; null for what is not finite."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def show(totals, responses, before, own):
    """Print a line for each response, or for the 20 that matter most, and the totals beside those of earlier."""
    chosen, columns = range(len(responses)), ("sample", "tokens", "reward", "advantage", "logprob_mean", "ratio_mean",
                                              "mismatch_mean", "loss_share", "grad_norm")
    if len(responses) > 40:  # NaN first
        chosen = {i for name in ("grad_norm", "loss_share") for i in sorted(chosen, key=lambda i: (
            -math.inf if math.isnan(responses[i][name]) else -abs(responses[i][name])))[:10]}
        print0(f"the 10 largest gradients and the 10 largest shares of {len(responses)} responses:")
    shown = [responses[i] for i in sorted(chosen)]
    lines = [[excerpt(one["uid"], 40), *(cell(one[name]) for name in columns)] for one in shown]
    print0("\n" + to_text(["uid", *columns], lines))
    lines = [[name, *(cell(of.get(name)) for of in (totals, before, own))] for name in SHOWN if name in totals]
    print0("\n" + to_text(["of the step", "replay", "replay before", "the run"], lines))


def cell(value):
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
