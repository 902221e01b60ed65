"""
Rows -> prompts: what to ask, its token ids, and the answer that the reward compares with; and in which order.

    python data.py countdown --count 5 --seed 1                     print rows
    python data.py gsm8k --split test --template unsloth_gsm8k      print rendered prompts
    python data.py --leak math_12k math500 aime24 [--path NAME=PATH ...]    train set, then test sets

    name                    a source of tasks/sources.py; "math@3-5" keeps levels 3 to 5, "math@Algebra" a subject
    countdown, countdown:N  N generated rows (20,480), TinyZero's task; with a path, rows of the published set
    tiny_countdown          the demo's task, three numbers with + and -
    kk:3, kk:3-7            Knights and Knaves of 3 (3 to 7) people; splits train, test, official_test
    custom, custom:NAME     a file of your own (--data_path) with `question`, `problem` or `prompt`, and `answer`,
                            `ground_truth`, verl's `reward_model` or a \\boxed{} in `solution`; or --columns
    ORGANIZATION/NAME       any set of the hub, with :CONFIG and :SPLIT where it needs them

tasks/ knows what the rows of each task hold; it reads JSON Lines, JSON, Parquet, Arrow, CSV and TSV. Bad rows are
counted, shown and left out; more than 1 % of them is an error. No torch here.
"""

import functools
import hashlib
import json
import math
import sys
from dataclasses import dataclass

import numpy as np

import rewards
from onebox.config import ConfigError
from tasks import math_problems, own, task_of
from tasks.countdown import countdown, solvable, tiny_countdown
from tasks.knights_and_knaves import knights_and_knaves
from tasks.order import prompt_order
from tasks.own import fingerprint as reward_fingerprint
from tasks.own_check import check_all
from tasks.rows import BadRow, DataError, print0, report_bad
from tasks.scoring import check_golds, score_gold
from tasks.sources import (GENERATED, check_names, columns_of, load_rows, of_source, parse_name, per_source, read_rows,
                           source_of)
from tasks.templates import (TEMPLATES, build_prompt, check_chat, encode_prompt, is_chat, is_entry, refuse_gold, render,
                             shown, special_tokens, warn_of_plain_markers)

__all__ = ["Prompt", "Part", "load_train_and_eval", "load_prompts", "fingerprint", "reward_fingerprint", "draw",
           "prompt_order", "load_rows", "build_prompt", "encode_prompt", "countdown", "solvable", "tiny_countdown",
           "knights_and_knaves", "score_gold"]


@dataclass(frozen=True)
class Prompt:
    """One thing to ask. `answer` is what rewards.score wants for `reward`; uid stays the same from run to run."""

    uid: str  # "gsm8k/1234", "gsm8k/test/7"
    source: str  # the name in the recipe: "math@3-5"
    text: str
    ids: tuple
    reward: str
    answer: object
    row: dict


@dataclass(frozen=True)
class Part:
    """One source of a mixture: prompts[start : start + size], and its share of the draws."""

    name: str
    weight: float
    start: int
    size: int


# ---------------------------------------------------------------- what a run asks


def load_train_and_eval(cfg, tokenizer, vocab_size):
    """
    Load and check the prompts of a run -> (prompts, mixture, held-out prompts). tokenizer None: only to look at them.

    ConfigError for rewards that fail their own golds, for bad data, and where held-out prompts are training prompts.
    """
    held_out_data = cfg.eval_data or cfg.data
    check_names(cfg.data, held_out_data, data_path=cfg.data_path, eval_path=cfg.eval_path, columns=cfg.columns,
                template=cfg.template, reward=cfg.reward)
    chat = check_chat(cfg, tokenizer, is_chat(cfg.template))
    load = functools.partial(load_prompts, template=cfg.template, reward=cfg.reward, tokenizer=tokenizer, chat=chat,
                             max_prompt_len=cfg.max_prompt_len, vocab_size=vocab_size, seed=cfg.seed,
                             check_answer=rewards.check_answer, columns=cfg.columns)
    prompts, mixture = load(cfg.data, split="train", paths=cfg.data_path or None, limit=cfg.data_limit or None)
    check_golds(prompts)
    held_out = []
    if cfg.eval_prompts:
        held_out, _ = load(held_out_data, split="test", paths=cfg.eval_path or cfg.data_path or None,
                           limit=cfg.eval_prompts)
    check_all([*prompts, *held_out], cfg.max_response_len)
    if both := {p.text for p in prompts} & {p.text for p in held_out}:
        raise ConfigError(f"{len(both)} of the {len(held_out)} held-out prompts are training prompts: give --eval_path "
                          "with other rows, or --eval_prompts 0")
    return prompts, mixture, held_out


def check_rewards(reward, parts=None, max_tokens=None, group_size=None):
    """Raise ConfigError for an unknown reward or part: at start-up, never inside a run."""
    try:
        for name in reward.values() if isinstance(reward, dict) else [reward]:
            rewards.check(name, parts or (), max_tokens, group_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_prompts(data, template, reward, tokenizer, *, split="train", limit=None, seed=0, max_prompt_len=None,
                 paths=None, vocab_size=None, check_answer=None, chat=None, columns=None):
    """
    Load prompts -> ([Prompt], mixture: [Part]), source after source in the order of `data`.

    data      a source name, or {name: weight}     template, reward, columns   one for all sources, or {source: such}
    limit     how many prompts of each source at most: a subset chosen by `seed` (a generator's first ones)
    paths     a local path for all sources, or {source name: path}; the name without its "@3-5" will do
    check_answer   (reward, answer): raises ValueError where the reward cannot read this answer
    chat      arguments and date for the model's chat template, as templates.check_chat returns them
    Rows that are bad, duplicate, unanswerable or longer than max_prompt_len tokens are left out, see report_bad.
    """
    data = {data: 1.0} if isinstance(data, str) else dict(data)
    if not data:
        raise DataError("no data set is named")
    for setting in (template, reward, paths):
        for name in setting if isinstance(setting, dict) and not is_entry(setting) else ():
            parse_name(name)  # a misspelled one would be passed over, and the hub asked instead of the path
    prompts, mixture = [], []
    for name, weight in data.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise DataError(f"data {name!r}: the weight must be a positive number, got {weight!r}")
        base = parse_name(name)[0]
        kind = base.partition(":")[0]
        its_template = per_source(template, name, "template")
        its_reward = rewards.named(per_source(reward, name, "reward"))
        warn_of_plain_markers(its_template, tokenizer)
        refuse_gold(its_template, columns_of(columns, name))
        path = of_source(paths, name) if isinstance(paths, dict) else paths
        generated = path is None and kind in GENERATED
        needs = {"answer"} if rewards.reads(its_reward) else set()
        needs |= {"question"} if its_template in list(TEMPLATES) else set()  # a template may be a dict
        rows = read_rows(name, split, path, limit if generated else None, columns_of(columns, name), needs)
        spare = 0
        if limit is not None and limit < len(rows):
            spare = 2  # a few rows are a poor measure of 1 %
            rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        found, bad, seen = [], [], set()
        for index, row in rows:
            if limit is not None and len(found) >= limit:
                break
            uid = (source_of(base).uid or base).format_map(row) + f"/{split}" * (split != "train") + f"/{index}"
            try:
                prompt = make_prompt(uid, name, its_template, its_reward, row, tokenizer, max_prompt_len, check_answer,
                                     chat)
                if prompt.text in seen:
                    raise BadRow("duplicate")
            except BadRow as reason:
                bad.append((index, str(reason), row))
                continue
            seen.add(prompt.text)
            if vocab_size is not None and max(prompt.ids, default=0) >= vocab_size:
                raise DataError(f"data {name!r}: token {max(prompt.ids)} in {uid} is outside the model's vocabulary of "
                                f"{vocab_size}: tokenizer and model do not belong together")
            found.append((index, prompt))
        report_bad(name, split, len(found) + len(bad), bad, spare)
        if not found:
            raise DataError(f"data {name!r}, split {split!r}: no usable row")
        if lacking := sum(prompt.answer is None for _, prompt in found):
            print0(f"data {name!r}, split {split!r}: {lacking:,} of {len(found):,} rows have no answer: sample.answer "
                   "is None there")
        mixture.append(Part(name, float(weight), len(prompts), len(found)))
        prompts += [prompt for _, prompt in sorted(found, key=lambda item: item[0])]
    return prompts, mixture


def make_prompt(uid, name, template, reward, row, tokenizer, max_prompt_len, check_answer, chat=None):
    """Make a Prompt of a row; BadRow with the reason where that cannot be."""
    answer = answer_for(reward, row, name)
    if check_answer is not None:
        try:
            check_answer(reward, answer)
        except ValueError as error:
            raise BadRow("answer that the reward cannot read") from error
    if row.get("conversation") and template != "conversation" and not own.is_own(template):
        raise BadRow('prompt of several messages; template = "conversation" asks them as they are')
    text, is_chat_text = render(template, row, tokenizer, chat)
    if tokenizer is None:  # to look at prompts only
        return Prompt(uid, name, text, (), reward, answer, row)
    if any(token in part for token in special_tokens(tokenizer) for part in shown(template, row)):
        raise BadRow("special token in the question")  # it would end the user's turn, or the prompt
    ids = tuple(encode_prompt(tokenizer, text, chat=is_chat_text))
    if not ids:
        raise BadRow("empty prompt")
    if max_prompt_len is not None and len(ids) > max_prompt_len:
        raise BadRow(f"prompt of more than {max_prompt_len} tokens")
    return Prompt(uid, name, text, ids, reward, answer, row)


def answer_for(reward, row, name="row"):
    """
    Return what this reward compares with, as the row's task has it (answer_of). open-r1 takes the worked solution where
    it holds an answer; a reward of your own (not in rewards.READS) gets what the row holds. DataError for a misfit.
    """
    holds, task = task_of(row)
    if (rewards.reads(reward) or holds) != holds:
        fitting = ", ".join(name for name, reads in rewards.READS.items() if reads == holds)
        raise DataError(f"reward {reward!r} does not fit data {name!r}, whose rows have {', '.join(row)}: give one "
                        f"that reads {holds} ({fitting}), or your own")
    wants_solution = any(term in rewards.WANTS_SOLUTION for _, term in rewards.terms(reward))
    return math_problems.solution_of(row) if wants_solution else task.answer_of(row)


def fingerprint(prompts):
    """Return sha256 over all prompts in order: equal only if a resumed run would ask and grade the same."""
    digest, own_sources = hashlib.sha256(), own.sources({p.reward for p in prompts})
    for p in prompts:
        reward = own_sources.get(p.reward, p.reward)
        asked = [p.uid, p.source, p.text, p.ids, reward, p.answer]
        asked += [p.row] * (p.reward in own_sources)  # your own reward may read all of it
        digest.update(json.dumps(asked, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def draw(prompts, mixture, seed, start, count):
    """Return the prompts of draws start .. start+count-1 (see prompt_order) of what load_prompts returned."""
    order = prompt_order([part.size for part in mixture], [part.weight for part in mixture], seed, start, count)
    return [prompts[mixture[source].start + row] for source, row in order]


if __name__ == "__main__":
    from tools.rows import main

    sys.exit(main())
