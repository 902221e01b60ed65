"""
--check: a recipe's settings, data, prompt and reward on real rows, in seconds, without weights and without a GPU.

    python train_grpo.py recipes/tinyzero_grpo.py --check
    python train_grpo.py recipes/dr_grpo_r1.py --check --data_path rows.jsonl --eval_path test_rows.jsonl

Prints one rendered prompt per data set and scores a perfect response to it: less than the full mark means that data,
template and reward do not belong together, and ends the check with exit code 1. Of a reward that is not in FULL_MARK, yours
perhaps, no perfect response is known: the check shows what it makes of a made-up one.
"""

import os
import sys

from onebox import distributed
import data
import rewards
from onebox.config import ConfigError
from eval import NoModel, check_rewards, resolve_model
from tasks.templates import check_chat, is_chat, reads_clock

ROWS = 1000  # of each data set that are looked at; training looks at all of them
FULL_MARK = {"tinyzero_countdown": 1.0, "logic_rl_kk": 3.0, "simplerl_math": 1.0, "open_r1_math": 2.0,
             "dr_grpo_math": 1.0, "dr_grpo_r1": 1.0, "demystify_cosine": 2.0, "deepscaler_math": 1.0,
             "unsloth_gsm8k": 4.0, "verl_gsm8k": 1.0, "math": 1.0}


def check_recipe(cfg):
    """What --check does, for the Config of either script; returns if all is well, else ConfigError."""
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process is enough
        return
    script = sys.modules[type(cfg).__module__]  # train_grpo or train_ppo: each knows what its settings may be
    world = int(os.environ.get("WORLD_SIZE", cfg.tensor_parallel))
    script.check_config(cfg, world)
    check_rewards(cfg.reward, cfg.reward_parts)
    say(f"settings   ok for {world} process{'es' * (world > 1)}")

    tokenizer, vocab_size = None, None
    try:
        need_len = cfg.max_prompt_len + cfg.max_response_len
        _, hf_config, tokenizer, _ = resolve_model(cfg.model, need_len, weights=False, tensor_parallel=cfg.tensor_parallel)
        if getattr(cfg, "critic_model", ""):
            script.check_critic(cfg.critic_model, need_len, hf_config, tokenizer, weights=False)
        vocab_size = hf_config.vocab_size
        say(f"tokenizer  ok: {cfg.model}, {len(tokenizer):,} tokens")
    except NoModel as error:
        say(f"tokenizer  NOT CHECKED, nor any prompt length or chat template: {error.reason}")

    chat = check_chat(cfg, tokenizer, is_chat(cfg.template))
    if tokenizer and is_chat(cfg.template):
        date = f"; the date it is told is {cfg.chat_date} (chat_date), on every day" if reads_clock(tokenizer) else ""
        say(f"chat       ok: arguments {cfg.chat_template_kwargs or 'none'} (chat_template_kwargs){date}")
    load = dict(seed=cfg.seed, chat=chat, max_prompt_len=cfg.max_prompt_len, vocab_size=vocab_size if tokenizer else None,
                check_answer=rewards.check_answer, limit=min(cfg.data_limit or ROWS, ROWS))
    prompts, groups = data.load_prompts(cfg.data, cfg.template, cfg.reward, tokenizer, split="train",
                                        paths=cfg.data_path or None, **load)
    held_out, held_out_groups = data.load_prompts(cfg.eval_data or cfg.data, cfg.template, cfg.reward, tokenizer,
                                                  split="test", paths=cfg.eval_path or cfg.data_path or None, **load)
    if cfg.eval_prompts and (both := {p.text for p in prompts} & {p.text for p in held_out}):
        say(f"warning: {len(both)} of the {len(held_out)} held-out prompts are training prompts, which a run refuses: give "
            "--eval_path with other rows, or --eval_prompts 0")
    for what, found, its_groups in (("train", prompts, groups), ("held-out", held_out, held_out_groups)):
        for group in its_groups:
            lens = [len(p.ids) for p in found[group.start:group.start + group.size]]
            share = f", {group.weight / sum(g.weight for g in groups):.0%} of the draws" if what == "train" else ""
            tokens = f", {min(lens):,} to {max(lens):,} tokens of {cfg.max_prompt_len:,}" if tokenizer else ""
            say(f"{what:<10} {group.name}: {group.size:,} prompts looked at{tokens}{share}")

    for group in groups:
        explain(prompts[group.start], cfg, tokenizer)
    for group in held_out_groups:  # other data sets, other golds: scored, not shown
        if held_out[group.start].reward in FULL_MARK:
            score_gold(held_out[group.start])
    say("check passed")


def explain(prompt, cfg, tokenizer):
    """Print a prompt and the score of a perfect response to it, or of a made-up one."""
    length = f"{len(prompt.ids)} tokens" if tokenizer else "tokens not counted"
    template = data.per_source(cfg.template, prompt.source, "template")
    say(f"\n{prompt.uid}, template {template}, {length}\n{'-' * 80}\n{prompt.text}\n{'-' * 80}")
    if prompt.reward in FULL_MARK:
        response, score = score_gold(prompt)
        say(f"gold response  {ascii(response)[1:-1]}")
        say(f"reward         {prompt.reward} {score.total:g} = {sums(score)}: the full mark")
    else:
        response, notes = "<think>I worked it out.</think> <answer> 1 </answer>", []
        score = rewards.run(prompt.reward, rewards.ask_now, response, prompt.answer, False, 16, cfg.max_response_len, notes)
        found = f"{score.total:g} = {sums(score)}" if "error" not in score.flags else f"fails: {rewards.shown(notes[-1][1], 200)}"
        say(f"made up        {response}")
        say(f"reward         {prompt.reward} {found}; NOT TESTED: no perfect response is known to it")
    if cfg.reward_parts:
        num_tokens = len(tokenizer.encode(response)) if tokenizer else len(response.split())
        score = rewards.add_parts(score, cfg.reward_parts, response, num_tokens, cfg.max_response_len)
        say(f"with parts     {score.total:g} = {sums(score)}")


def sums(score):
    return " + ".join(f"{name} {value:g}" for name, value in score.parts.items())


def score_gold(prompt):
    """-> (perfect response, its score); ConfigError if that is not the reward's full mark."""
    response = gold_response(prompt)
    score = rewards.score(prompt.reward, response, prompt.answer)
    full = FULL_MARK[prompt.reward]
    if prompt.reward == "unsloth_gsm8k" and rewards.gold_answers(prompt.answer)[0].startswith("-"):
        full = 3.5  # its integer part knows no sign
    if abs(score.total - full) > 1e-9 or not score.correct or not score.format_ok:
        raise ConfigError(f"{prompt.uid}: a perfect response scores {score.total:g} with reward {prompt.reward!r}, not "
                          f"{full:g} ({sums(score)}): the reward does not fit the template or the data; the response "
                          f"was {ascii(response)[:200]}, the prompt ends in {ascii(prompt.text[-40:])}")
    return response, score


def self_test(prompts, count=32):
    """
    Before weights load: a perfect response to `count` of the prompts, spread over all, must earn the full mark. ConfigError
    with exit code 5 if more than a tenth do not: a verifier that fails its own golds teaches nothing, or worse. A reward
    that is not in FULL_MARK, yours perhaps, is not tested.
    """
    known = [p for p in prompts if p.reward in FULL_MARK]
    chosen = known[::max(1, len(known) // count)][:count]
    failures = []
    for prompt in chosen:
        try:
            score_gold(prompt)
        except ConfigError as error:
            failures.append(str(error).removeprefix("error: "))
    if len(failures) > 0.1 * len(chosen):
        raise ConfigError(f"the rewards fail {len(failures)} of {len(chosen)} of their own gold answers; first: {failures[0]}",
                          exit_code=5)


def gold_response(prompt):
    """
    A completion of this prompt that deserves the full mark of its reward: the format asked for, and the gold answer.
    Whether it opens with <think> is the prompt's matter: a tag that the prompt ends in is not repeated.
    """
    prefilled = prompt.text.rstrip().endswith("<think>")
    thinking = ("" if prefilled else "<think>") + "I worked it out.\n</think>"
    if prompt.reward == "tinyzero_countdown":
        expression = solve_countdown(prompt.answer["numbers"], prompt.answer["target"])
        return f"{thinking}\n<answer> {expression} </answer>"
    if prompt.reward == "logic_rl_kk":
        return f"{thinking}\n<answer>\n{prompt.answer['solution_text_format']}\n</answer>"
    gold = rewards.gold_answers(prompt.answer)[0]
    if prompt.reward == "unsloth_gsm8k":
        return f"<reasoning>\nI worked it out.\n</reasoning>\n<answer>\n{gold}\n</answer>\n"
    if prompt.reward == "verl_gsm8k":
        return f"I worked it out.\n#### {gold}"
    if prompt.reward in ("open_r1_math", "dr_grpo_r1"):
        return f"{thinking} <answer>\\boxed{{{gold}}}</answer>"
    if prompt.reward == "deepscaler_math" or prefilled:
        return f"{thinking}\nThe answer is \\boxed{{{gold}}}."
    return f"I worked it out. The answer is \\boxed{{{gold}}}."


def solve_countdown(numbers, target):
    """An expression over all the numbers that equals target, as data.solvable finds it; ConfigError if none does."""
    found = search([(number, str(number)) for number in numbers], target)
    if found is None:
        raise ConfigError(f"Countdown: no expression over {list(numbers)} equals {target}")
    return found


def search(terms, target):
    """terms: (value, text) pairs; joins any two of them until one is left."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for i, (a, left) in enumerate(terms):
        for j, (b, right) in enumerate(terms):
            if i == j:
                continue
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            joined = [(a + b, "+"), (a * b, "*")] * (i < j) + [(a - b, "-")] * (a >= b)
            joined += [(a // b, "/")] if b and a % b == 0 else []
            for value, sign in joined:
                text = f"({left} {sign} {right})" if rest else f"{left} {sign} {right}"
                found = search([(value, text), *rest], target)
                if found is not None:
                    return found
    return None


def say(text):
    distributed.print0(text)
