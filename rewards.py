"""
A completion and its reference answer -> a score. Every reward of the published R1 reproductions, in one place.

    score("logic_rl_kk", response, answer)          -> Score(total, correct, format_ok, parts, flags); never raises
    Scorer(num_workers).submit(key, ...), .collect() -> the same for a batch, while the engine still generates
    python rewards.py --why RESPONSE.txt --reward logic_rl_kk --answer '{"names": ...}'     explains a score

`response` is the completion alone (a prefilled <think> belongs to the prompt), decoded with its special tokens. The
texts are hostile: no eval, no regex that can backtrack, time linear in the length, sympy only in processes that can be
killed (tasks/workers.py). A truncated completion is never correct and gets the failing value of its format.

A reward of your own is a function in your recipe: docs/your_own.md. To add one here, write a function of (completion,
equal) with @reward() above it; recipes then name it. To add a part that recipes weigh beside a reward, put a function
into PARTS (tasks/parts.py). Several: [("math", 1.0), (my_reward, 0.5)], or "math + 0.5 * recipes/mine.py:my_reward".
"""

import copy
import os
import re
import sys
import time
from dataclasses import replace

from onebox.config import ConfigError
from onebox.text import excerpt, suggest
from tasks import TASKS, own
from tasks.formats import (BLANKS, EOS_TEXTS, formula_after_answer, outside_thinking, strip_eos, tag_error,
                           tag_monitors, think_answer_format, two_blocks, xml_count)
from tasks.judged import Completion, Score, checked, equals_gold, is_right, last_box
from tasks.math_problems import gold_answers
from tasks.own import named, own_reward, terms  # noqa: F401  recipes take own_reward from here
from tasks.parts import (GROUP_PARTS, PARTS, add_parts_of_groups, add_parts_of_one, check_weights, cosine,  # noqa: F401
                         dense_repetition)
from tasks.workers import Verdicts, ask_now


# ---------------------------------------------------------------- rewards
# `equal(golds, prediction, rules)` is "right", "wrong", "timeout" or "error".

REWARDS = {}  # name -> function
READS = {}  # name -> what the rows must hold (tasks.TASKS); a reward of your own that is not here gets what they hold
PERFECT = {}  # name -> (full mark, how a perfect response is written): --check and each start of a run test them
WANTS_SOLUTION = {"open_r1_math"}  # its gold is the worked solution, as published


def reward(reads=None, full_mark=None, perfect=None, names=()):
    """
    Name a function as a reward: its own name, or `names`.

    reads      a name of tasks.TASKS; None: any rows
    full_mark  the total of a perfect response, or a function of the answer's text
    perfect    how one is written, with {think} and {answer}; None: this reward is not tested
    """
    def add(function):
        for name in names or [function.__name__]:
            REWARDS[name] = function
            if reads:
                READS[name] = reads
            if reads and perfect:
                PERFECT[name] = full_mark, perfect
        return function

    return add


BOXED = "{think}\nThe answer is \\boxed{{answer}}."


@reward("countdown", 1.0, "{think}\n<answer> {answer} </answer>")
def tinyzero_countdown(completion, equal):
    """
    Give 1 for the right answer, 0.1 for the right format, else 0. TinyZero @95df88f reward_score/countdown.py, except:
    blanks may follow and surround the answer, exact arithmetic instead of eval, each tag exactly once, no other text
    after </answer>, and no answer before </think>.
    """
    text = completion.text
    error = "truncated" if completion.truncated else tag_error(text)
    if not error and text.rpartition("</answer>")[2].strip(BLANKS):
        error = "text after </answer>"
    completion.note("format: one </think> <answer> </answer>, nothing after", error or "yes")
    if error:
        return completion.finish({"format": 0.0, "answer": 0.0})
    right = is_right(completion, "countdown")
    return completion.finish({"format": 0.1, "answer": 0.9 if right else 0.0}, bool(right), True)


@reward("kk", 3.0, "{think}\n<answer>\n{answer}\n</answer>")
def logic_rl_kk(completion, equal):
    """
    Give 3 if right, -0.5 if wrong, -1 if unreadable, -3 for a wrong format. Logic-RL @9d2c457 (since e3e47ae)
    reward_score/kk.py: format +1 / -1; answer +2 / -1.5 / -2. Text between the tags and after </answer> is allowed, as
    published.
    """
    error = "truncated" if completion.truncated else tag_error(completion.text)
    completion.note("format: one </think> <answer> </answer>", error or "yes")
    if error:
        return completion.finish({"format": -1.0, "answer": -2.0})
    right = is_right(completion, "kk")
    return completion.finish({"format": 1.0, "answer": {True: 2.0, False: -1.5, None: -2.0}[right]}, bool(right), True)


@reward("math", 1.0, BOXED, names=("math", "dr_grpo_math"))
def boxed(completion, equal):
    """
    Give 1 if the last closed \\boxed{} equals the gold, else 0; format: there is such a box. The strict grader of
    evaluation; also understand-r1-zero @dfca49d boxed_reward_fn ("full"), where text after a stop word is still read.
    """
    box = last_box(completion, outside_thinking(completion.text))
    if completion.truncated or box is None:
        return completion.finish({"answer": 0.0})
    correct = equals_gold(completion, equal, box)
    return completion.finish({"answer": float(correct)}, correct, True)


@reward("math", 1.0, "{think} <answer>\\boxed{{answer}}</answer>")
def dr_grpo_r1(completion, equal):
    """
    Give 1 or 0. understand-r1-zero @dfca49d answer_tag_reward_fn: '</think> <answer>' with exactly one space, and
    '</answer>'; the last answer block counts, or the last box in it. There is no format bonus.
    """
    text = completion.text
    format_ok = not completion.truncated and "</think> <answer>" in text and "</answer>" in text
    completion.note("format: '</think> <answer>' and '</answer>'", "yes" if format_ok else "no")
    if not format_ok:
        return completion.finish({"answer": 0.0})
    prediction = text.rpartition("<answer>")[2].replace("</answer>", "").strip()
    if "\\boxed" in prediction:
        prediction = last_box(completion, prediction) or ""
    correct = equals_gold(completion, equal, prediction)
    return completion.finish({"answer": float(correct)}, correct, True)


@reward("math", 1.0, BOXED)
def deepscaler_math(completion, equal):
    """
    Give 1 or 0. DeepScaleR @95ef74f deepscaler/rewards/math_reward.py: the last box after the first </think>; without
    </think> nothing counts (the opening tag may be prefilled); any of a list of golds.
    """
    _, closed, solution = completion.text.partition("</think>")
    box = last_box(completion, solution)
    format_ok = bool(closed) and box is not None and not completion.truncated
    completion.note("format: </think>, then a box", "yes" if format_ok else "no")
    correct = format_ok and equals_gold(completion, equal, box)
    return completion.finish({"answer": float(correct)}, correct, format_ok)


@reward("math", 1.0, BOXED)
def simplerl_math(completion, equal):
    """
    Give 1 if equal, -0.5 if not, -1 without a closed box. simpleRL-reason @2702a87 (v0) with Qwen2.5-Math's math_equal:
    relative tolerance 1e-4, bracket types ignored, lists in order; but 500 and 0.05 are not 5, and a box must close.
    """
    text = completion.text
    cut = min((i for i in map(text.find, EOS_TEXTS[:3]) if i >= 0), default=len(text))
    box = last_box(completion, outside_thinking(text[:cut]))
    if completion.truncated or box is None:
        return completion.finish({"answer": -1.0})
    correct = equals_gold(completion, equal, box, "simplerl")
    return completion.finish({"answer": 1.0 if correct else -0.5}, correct, True)


EXCEED_MARGIN = 16  # tokens


@reward("math", 2.0, BOXED)
def demystify_cosine(completion, equal):
    """
    Give 2 -> 1 if right, -10 -> 0 if wrong, along half a cosine as the length goes 0 -> max_tokens; -10 and never
    correct where num_tokens + 16 >= max_tokens or truncated. demystify-long-cot @e90cf9b, the default of its scripts.
    Its repetition penalty is per token (dense_repetition). Without lengths: the values at length 0, flag no_length.
    """
    box = last_box(completion, outside_thinking(completion.text))
    length, longest = completion.num_tokens, completion.max_tokens
    if length is None or longest is None or longest <= 0:
        completion.flags.add("no_length")
        length, longest = 0, 1 << 30
    exceeds = completion.truncated or length + EXCEED_MARGIN >= longest
    completion.note(f"tokens + {EXCEED_MARGIN} < max_tokens", f"{not exceeds}: {length:,} of {longest:,}")
    if exceeds:
        return completion.finish({"cosine": -10.0})
    correct = box is not None and equals_gold(completion, equal, box)
    at_zero, at_max = (2.0, 1.0) if correct else (-10.0, 0.0)
    return completion.finish({"cosine": cosine(length, longest, at_zero, at_max)}, correct, box is not None)


@reward("math", 2.0, "{think} <answer>\\boxed{{answer}}</answer>")
def open_r1_math(completion, equal):
    """
    Give answer 1 or 0 plus format 1 or 0. open-r1 @571661a accuracy_reward and format_reward with the regex of
    d12886d. LaTeX answers only: the last box, else a formula; a bare number earns nothing. Unlike it: \\frac12 is
    accepted, trailing white space is not text, nothing else may follow </answer>.
    """
    text = completion.text
    format_ok = not completion.truncated and think_answer_format(text) == 1.0
    completion.note("format: <think>...</think> <answer>...</answer>", "yes" if format_ok else "no")
    prediction = last_box(completion, outside_thinking(text))
    if prediction is None:
        prediction = formula_after_answer(outside_thinking(text))
        completion.note("else a formula after the word 'answer'", "none" if prediction is None else prediction)
    readable = not completion.truncated and prediction is not None
    correct = readable and equals_gold(completion, equal, prediction, "open_r1")
    return completion.finish({"answer": float(correct), "format": float(format_ok)}, correct, format_ok)


HASHES = re.compile(r"#### (-?[0-9.,]{1,200})")


@reward("math", 1.0, "I worked it out.\n#### {answer}")
def verl_gsm8k(completion, equal):
    """
    Give 1 or 0. verl @945104d verl/utils/reward_score/gsm8k.py ("strict"), the prompt of base models with worked
    examples: the first '#### N' of the completion; format: there is one. Unlike it: 18.00 and '18.' are 18, truncated
    is 0.
    """
    found = HASHES.search(completion.text)
    completion.note("the first '#### N'", found[1] if found else "none")
    if completion.truncated or not found:
        return completion.finish({"answer": 0.0})
    correct = equals_gold(completion, equal, found[1].rstrip(".,"))
    return completion.finish({"answer": float(correct)}, correct, True)


INTEGER = re.compile(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+")


@reward("math", lambda gold: 3.5 if gold.startswith("-") else 4.0,  # its integer part knows no sign
        "<reasoning>\nI worked it out.\n</reasoning>\n<answer>\n{answer}\n</answer>\n")
def unsloth_gsm8k(completion, equal):
    """
    Give xmlcount 0.5 + soft_format 0.5 + strict_format 0.5 + integer 0.5 + answer 2 = 4; 0 if truncated.
    unslothai/notebooks @bdda2ef Llama3.1_(8B)-GRPO, except that in soft and strict '.' matches a newline (as published
    they exclude each other) and 1,000 is 1000. xmlcount falls without bound: see xml_count.
    """
    text, names = completion.text, ("xmlcount", "soft_format", "strict_format", "integer", "answer")
    if completion.truncated:
        return completion.finish(dict.fromkeys(names, 0.0))
    gold = gold_answers(completion.answer)[0]
    said = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    completion.note("answer: after the last <answer>, else all", said)
    soft = two_blocks(text, "<reasoning>", r"</reasoning>\s*<answer>", "</answer>", to_the_end=False)
    strict = two_blocks(text.removesuffix("\n") if text.endswith("\n\n") else text,
                        "<reasoning>\n", r"\n</reasoning>\n<answer>\n", "\n</answer>\n", to_the_end=True)
    integer = bool(INTEGER.fullmatch(said))
    correct = bool(said) and (said == gold or INTEGER.fullmatch(said.removeprefix("-")) is not None
                              and said.replace(",", "") == gold.replace(",", ""))
    values = (xml_count(text), 0.5 * soft, 0.5 * strict, 0.5 * integer, 2.0 * correct)
    return completion.finish(dict(zip(names, values, strict=True)), correct, soft)


# ---------------------------------------------------------------- scoring

def add_parts(score, weights, response, num_tokens=None, max_tokens=None, notes=None, answer=None, **asked):
    """Return the score plus weight x part for each of {"reasoning_steps": 0.5, ...}; GROUP_PARTS come later."""
    asked["truncated"] = asked.get("truncated") or "truncated" in score.flags
    sample = Completion(strip_eos(response), answer, num_tokens=num_tokens, max_tokens=max_tokens,
                        **{**asked, "row": asked.get("row") or {}})
    return add_parts_of_one(score, weights, sample, notes)


def reads(reward):
    """Return the name in tasks.TASKS of what rows must hold for this reward; None for any."""
    return next((READS[name] for _, name in terms(reward) if name in READS), None)


def check(reward, part_weights=(), max_tokens=None, group_size=None):
    """Raise ValueError unless there are such a reward and such parts, with fitting weights: for start-up."""
    names = [name for _, name in terms(named(reward))]
    for what, wanted, known in (("reward", names, REWARDS), ("reward part", part_weights, PARTS | GROUP_PARTS)):
        for name in wanted:
            if what == "reward" and own.is_own(name):
                try:
                    own.load(name)
                except ConfigError as error:
                    raise ValueError(str(error).removeprefix("error: ")) from error
            elif not isinstance(name, str) or name not in known:
                hint = f"{suggest(name, known)} known: {', '.join(known)}"
                raise ValueError(f"no {what} {name!r}; {hint.strip()}")
    if len({READS[name] for name in names if name in READS}) > 1:
        raise ValueError(f"reward {named(reward)!r} reads rows of two kinds: {', '.join(map(repr, names))}")
    check_weights(part_weights, max_tokens, group_size)


def check_answer(reward, answer):
    """Raise ValueError unless this reward can read `answer`: for loading data. A reward of your own may read any."""
    check(reward)
    if task := reads(reward):
        try:
            TASKS[task].check_answer(answer)
        except ValueError as error:
            raise ValueError(f"{reward}: {error}, not {answer!a:.200}") from error


def perfect_response(reward, answer, prefilled=False):
    """
    Return (response, full mark): a response that this reward must give its full mark, or (None, None) if none is known.
    prefilled: the prompt ends in <think>, so the response must not repeat the tag.
    """
    if reward not in PERFECT:
        return None, None
    full_mark, response = PERFECT[reward]
    text = TASKS[READS[reward]].perfect_answer(answer)
    think = ("" if prefilled else "<think>") + "I worked it out.\n</think>"
    full_mark = full_mark(text) if callable(full_mark) else full_mark
    return response.replace("{think}", think).replace("{answer}", text), full_mark


def run(reward, equal, response, answer, notes=None, **asked):
    """
    Call the reward function, whatever it does. Where it raises, or returns no Score of finite numbers, the score is 0
    (own_reward(on_error=...) sets another value), of a published reward its failing value, with the flag 'error' and a
    note that says what went wrong. Neither a bad row nor a bug may end a run of days; Scorer counts and prints such
    failures. Of several rewards, `correct` and `format_ok` are the first one's.

    asked: truncated, num_tokens, max_tokens, row, prompt, token_ids of Completion
    """
    notes = [] if notes is None else notes
    judged = [(weight, name, run_one(name, equal, response, answer, notes, **asked)) for weight, name in terms(reward)]
    if len(judged) == 1 and judged[0][0] == 1:
        return judged[0][2]
    parts = {}
    for number, (weight, name, score) in enumerate(judged, 1):
        for part, value in score.parts.items():
            part = own.short(name) if len(score.parts) == 1 else f"{own.short(name)}/{part}"
            parts[f"{part}#{number}" if part in parts else part] = weight * value
    first = judged[0][2]
    return Score(float(sum(parts.values())), first.correct, first.format_ok, parts,
                 frozenset().union(*(score.flags for _, _, score in judged)))


def run_one(name, equal, response, answer, notes, **asked):
    """Call one reward function, as run() describes."""
    failed = own.failing(name) if own.is_own(name) else Score(0.0, False, False, {})
    try:
        # copies: a reward that changes the answer must not change what the next response is graded against
        asked["row"] = copy.deepcopy(asked.get("row") or {}) if own.is_own(name) else asked.get("row") or {}
        asked["token_ids"] = tuple(asked.get("token_ids") or ())
        completion = Completion(strip_eos(response), copy.deepcopy(answer), equal=equal, **asked)
        completion.flags |= tag_monitors(completion.text) | ({"truncated"} if completion.truncated else set())
        completion.notes = notes
        score = own.score(name, completion) if own.is_own(name) else checked(REWARDS[name](completion, equal))
        return score or replace(failed, flags=frozenset(completion.flags | {"timeout"}))
    except own.Edited:
        raise
    except (Exception, SystemExit) as error:  # SystemExit: ConfigError and DataError are such
        notes.append(("error", f"{type(error).__name__}: {error}"))
    try:
        if name in READS:
            score = checked(REWARDS[name](Completion("", answer, truncated=True), equal))
            failed = score if score.total <= 0 else failed
    except (Exception, SystemExit):
        pass  # a published reward that a fork has replaced: noted above
    return replace(failed, flags=frozenset({"error"}))


def predicted(reward, response, answer, truncated=False):
    """Return the answer that this reward compares with the gold; None where it compares none."""
    asked = []

    def equal(golds, prediction, rules):
        asked.append("" if rules == "own" else prediction)
        return "error" if rules == "own" else "wrong"

    run(reward, equal, response, answer, truncated=truncated, num_tokens=0, max_tokens=1 << 30)
    return asked[0] if asked and asked[0].strip() else None


def score(reward, response, answer, *, truncated=False, num_tokens=None, max_tokens=None) -> Score:
    """
    Score one completion. Never raises for a response, finite, deterministic; ValueError for an unknown reward.

    answer: Countdown {"target", "numbers"}; Knights & Knaves {"solution_text_format", "names", "solution"}; math a gold
    string or a list of acceptable ones. Waits for a grader process where only sympy can tell (3 s at most).
    """
    check(reward)
    return run(reward, ask_now, response, answer, truncated=truncated, num_tokens=num_tokens, max_tokens=max_tokens)


class Scorer:
    """
    Score a batch while something else runs. submit() scores at once what needs no sympy and hands the rest to grader
    processes; collect() waits for them, budget_s at most. Until its verdict is in, a score is the failing one with the
    flag timeout. For one thread.
    """

    def __init__(self, num_workers=2, timeout_s=3.0, part_weights=None):
        self.verdicts, self.part_weights = Verdicts(num_workers, timeout_s), part_weights or {}
        self.submitted, self.scores = {}, {}  # {key: (reward, response, ...)}, {key: Score}
        self.answered = {}  # {key: {question of its reward: verdict}}
        self.failed = {}  # {key: (reward, what went wrong, response, total)}, not printed yet
        self.failures = {}  # {reward: how many responses}

    def submit(self, key, reward, response, answer, **asked):
        check(reward)
        self.submitted[key], self.answered[key] = (reward, response, answer, asked), {}
        self.keep(key)
        self.poll()

    def keep(self, key):
        """Score a response with what is known; a reward runs again when a verdict that it asked for is in."""
        def equal(golds, prediction, rules):
            question = (tuple(golds), prediction, rules)
            return self.answered[key].get(question) or self.verdicts.ask(key, *question)

        notes, (reward, response, answer, asked) = [], self.submitted[key]
        score = run(reward, equal, response, answer, notes, **asked)
        if self.part_weights:
            score = add_parts(score, self.part_weights, response, answer=answer, notes=notes, **asked)
        self.scores[key] = score
        self.failed.pop(key, None)
        if problem := next((finding for rule, finding in notes if rule == "error"), None):
            self.failed[key] = reward, problem, response, score.total

    def poll(self, wait_s=0.0):
        """Take the verdicts that are in and hand out the next questions; cheap, for loops that wait elsewhere."""
        for key, question, verdict in self.verdicts.poll(wait_s):
            self.answered[key][question] = verdict
            self.keep(key)

    def settled(self):
        """Return {key: Score} of what no grader process still decides; collect() will not return these again."""
        undecided = self.verdicts.undecided()
        self.note_timeouts({key: score for key, score in self.scores.items() if key not in undecided})
        return {key: self.scores.pop(key) for key in [key for key in self.scores if key not in undecided]}

    def note_timeouts(self, scores):
        """Count final scores of own rewards that took too long among the failures."""
        for key, score in scores.items():
            reward, response, _, _ = self.submitted[key]
            if "timeout" in score.flags and own.own_names(reward):
                self.failed[key] = reward, "it took longer than its seconds", response, score.total

    def collect(self, budget_s=60.0):
        """Return all scores since the last collect, as {key: Score}. Killable rewards get their own seconds besides."""
        deadline = time.monotonic() + budget_s + self.verdicts.own_seconds()
        while self.verdicts.undecided() and time.monotonic() < deadline:
            self.poll(min(1.0, max(0.0, deadline - time.monotonic())))
        self.verdicts.drop()
        self.note_timeouts(self.scores)
        scores, self.scores, self.submitted, self.answered = self.scores, {}, {}, {}
        self.print_failures()
        return scores

    def add_group_parts(self, rollouts):
        """Add to r.score, in place, the parts that compare the responses to one prompt; each rank has all rollouts."""
        for r, problem in add_parts_of_groups(rollouts, self.part_weights):
            self.failed[r.prompt, r.sample] = "of the group", problem, r.text, r.score.total
        self.print_failures()
        return rollouts

    def print_failures(self):
        """Print the first three failures of a reward, on every rank, then their number at each power of two."""
        who = f"warning: rank {os.environ.get('RANK', '0')}: reward"
        for reward, problem, response, total in self.failed.values():
            self.failures[reward] = count = self.failures.get(reward, 0) + 1
            if count <= 3:
                print(f"{who} {reward!r} failed on a response, which scores {total:g} (column flag/error): "
                      f"{excerpt(problem, 200)}; response: {excerpt(response)}", file=sys.stderr, flush=True)
            elif count & (count - 1) == 0:
                print(f"{who} {reward!r} has failed on {count:,} responses so far", file=sys.stderr, flush=True)
        self.failed = {}

    def close(self):
        self.verdicts.close()


if __name__ == "__main__":
    from tools.why import main

    main()
