"""
--check: a recipe's settings, data, prompt and reward on real rows, in seconds, without weights and without a GPU.

    python train_grpo.py recipes/tinyzero_grpo.py --check
    python train_grpo.py recipes/dr_grpo_r1.py --check --data_path rows.jsonl --eval_path test_rows.jsonl

Print one prompt of each data set and score a perfect response to it (rewards.PERFECT): less than the full mark means
that data, template and reward do not belong together, and fails the check. No perfect response is known to a reward of
your own without `perfect`: the check shows how it scores made-up ones.
"""

import collections
import dataclasses
import os
import sys

import rewards
from data import load_train_and_eval, per_source
from onebox.distributed import print0
from onebox.models import NoModel, check_critic, resolve_model
from onebox.text import excerpt
from tasks import own
from tasks.own_check import made_up, perfect, tested
from tasks.scoring import score_gold
from tasks.templates import called, is_chat, reads_clock
from tasks.workers import ask_now
from tools.replay import replay

ROWS = 1000  # of each data set that are looked at; training looks at all of them


def check_recipe(cfg):
    """Check the Config of either script; return if all is well, else raise ConfigError."""
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process is enough
        return
    if cfg.replay:
        return replay(cfg)
    script = sys.modules[type(cfg).__module__]  # train_grpo or train_ppo: each knows what its settings may be
    world = int(os.environ.get("WORLD_SIZE", cfg.tensor_parallel))
    script.check_config(cfg, world)
    print0(f"settings   ok for {world} process{'es' * (world > 1)}")

    tokenizer, vocab_size = None, None
    try:
        need_len = cfg.max_prompt_len + cfg.max_response_len
        _, hf_config, tokenizer, _ = resolve_model(cfg.model, need_len, weights=False,
                                                   tensor_parallel=cfg.tensor_parallel)
        if getattr(cfg, "critic_model", ""):
            check_critic(cfg.critic_model, need_len, hf_config, tokenizer, weights=False)
        vocab_size = hf_config.vocab_size
        print0(f"tokenizer  ok: {cfg.model}, {len(tokenizer):,} tokens")
    except NoModel as error:
        print0(f"tokenizer  NOT CHECKED, nor any prompt length or chat template: {error.reason}")

    limits = {"data_limit": min(cfg.data_limit or ROWS, ROWS), "eval_prompts": min(cfg.eval_prompts, ROWS)}
    prompts, mixture, held_out = load_train_and_eval(dataclasses.replace(cfg, **limits), tokenizer, vocab_size)
    if tokenizer and is_chat(cfg.template):
        date = f"; it reads the date {cfg.chat_date} (chat_date), on every day" if reads_clock(tokenizer) else ""
        print0(f"chat       ok: arguments {cfg.chat_template_kwargs or 'none'} (chat_template_kwargs){date}")
    shares = {part.name: f", {part.weight / sum(p.weight for p in mixture):.0%} of the draws" for part in mixture}
    for what, found in (("train", prompts), ("held-out", held_out)):
        for name in dict.fromkeys(p.source for p in found):
            lens = [len(p.ids) for p in found if p.source == name]
            tokens = f", {min(lens):,} to {max(lens):,} tokens of {cfg.max_prompt_len:,}" if tokenizer else ""
            share = shares[name] if what == "train" else ""
            print0(f"{what:<10} {name}: {len(lens):,} prompts looked at{tokens}{share}{answers_of(found, name)}")
    for part in mixture:
        explain(prompts[part.start], prompts[part.start:part.start + part.size], cfg, tokenizer)
    for prompt in {p.source: p for p in held_out}.values():  # other data sets, other golds: scored, not shown
        if prompt.reward in rewards.PERFECT:
            score_gold(prompt)
    print0("check passed")


def answers_of(prompts, name, most=10):
    """List the answers of one source with their shares, if they are few: what a constant answer would get."""
    counts = collections.Counter(str(p.answer) for p in prompts if p.source == name)
    if not 1 <= len(counts) <= most or len(counts) == sum(counts.values()):
        return ""
    return "; answers: " + ", ".join(f"{excerpt(answer, 30)} {count / sum(counts.values()):.0%}"
                                     for answer, count in counts.most_common())


def explain(prompt, prompts, cfg, tokenizer):
    """Print a prompt and the score of a perfect response to it, or of a made-up one."""
    length = f"{len(prompt.ids)} tokens" if tokenizer else "tokens not counted"
    template = per_source(cfg.template, prompt.source, "template")
    print0(f"\n{prompt.uid}, template {called(template)}, {length}\n{'-' * 80}\n{prompt.text}\n{'-' * 80}")
    if prompt.reward in rewards.PERFECT:
        response, score = score_gold(prompt)
        print0(f"gold response  {ascii(response)[1:-1]}")
        print0(f"reward         {prompt.reward} {score.total:g} = {sums(score)}: the full mark")
    else:
        known = [perfect(name, prompt) for _, name in own.terms(prompt.reward)
                 if own.is_own(name) and own.options_of(name).perfect is not None]
        for response in [*known, *made_up(prompt, prompts)]:
            notes = []
            score = rewards.run(prompt.reward, ask_now, response, prompt.answer, notes, num_tokens=16,
                                max_tokens=cfg.max_response_len, row=prompt.row, prompt=prompt.text)
            failed = next((f"; fails: {excerpt(text, 200)}" for rule, text in notes if rule == "error"), "")
            print0(f"{'perfect' if response in known else 'made up':<15}{ascii(response)[1:-1]}\n"
                   f"{'':15}{score.total:g} = {sums(score)}"
                   f"{', correct' * score.correct}{failed}")
        untested = "; NOT TESTED: no perfect response is known to it, see own_reward(perfect=...)"
        print0(f"reward         {prompt.reward}{'' if tested(prompt.reward) else untested}")
    if cfg.reward_parts:
        token_ids = tokenizer.encode(response) if tokenizer else ()
        num_tokens = len(token_ids) if tokenizer else len(response.split())
        score = rewards.add_parts(score, cfg.reward_parts, response, num_tokens, cfg.max_response_len, row=prompt.row,
                                  prompt=prompt.text, token_ids=token_ids, answer=prompt.answer)
        print0(f"with parts     {score.total:g} = {sums(score)}")
        if of_group := [name for name in cfg.reward_parts if name in rewards.GROUP_PARTS]:
            print0(f"of the group   {', '.join(of_group)}: compare the responses to one prompt, so not shown here")


def sums(score):
    return " + ".join(f"{name} {value:g}" for name, value in score.parts.items())
