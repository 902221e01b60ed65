"""
Call a reward, whatever it does: (its name, a response, an answer) -> a Score, for one response or a batch. rewards.py
has the published ones and puts them into the tables here; tasks/own.py finds yours; tasks/judged.py has what they get
and return.
"""

import copy
import os
import sys
import time
from dataclasses import replace

from onebox.config import ConfigError
from onebox.text import excerpt, suggest
from tasks import TASKS, own
from tasks.formats import strip_eos, tag_monitors
from tasks.judged import Completion, Score, checked
from tasks.own import named, terms
from tasks.parts import GROUP_PARTS, PARTS, add_parts_of_groups, add_parts_of_one, check_weights
from tasks.workers import Verdicts, ask_now

REWARDS = {}  # name -> function
READS = {}  # name -> what the rows must hold (tasks.TASKS); a reward of your own that is not here gets what they hold
PERFECT = {}  # name -> (full mark, how a perfect response is written): --check and each start of a run test them


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


# ---------------------------------------------------------------- what a reward can be given


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
                    raise ValueError(error.reason) from error
            elif not isinstance(name, str) or name not in known:
                hint = f"{suggest(name, known)} known: {', '.join(known)}"
                hint = hint if REWARDS else "import rewards first, which defines them"
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


# ---------------------------------------------------------------- one response


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
        ids = asked.get("token_ids")  # perhaps an array
        asked["token_ids"] = () if ids is None else tuple(map(int, ids))
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


def score(reward, response, answer, *, truncated=False, num_tokens=None, max_tokens=None) -> Score:
    """
    Score one completion. Never raises for a response, finite, deterministic; ValueError for an unknown reward.

    answer: Countdown {"target", "numbers"}; Knights & Knaves {"solution_text_format", "names", "solution"}; math a gold
    string or a list of acceptable ones. Waits for a grader process where only sympy can tell (3 s at most).
    """
    check(reward)
    return run(reward, ask_now, response, answer, truncated=truncated, num_tokens=num_tokens, max_tokens=max_tokens)


def predicted(reward, response, answer, truncated=False):
    """Return the answer that this reward compares with the gold; None where it compares none."""
    asked = []

    def equal(golds, prediction, rules):
        asked.append("" if rules == "own" else prediction)
        return "error" if rules == "own" else "wrong"

    run(reward, equal, response, answer, truncated=truncated, num_tokens=0, max_tokens=1 << 30)
    return asked[0] if asked and asked[0].strip() else None


def add_parts(score, weights, response, num_tokens=None, max_tokens=None, notes=None, answer=None, **asked):
    """Return the score plus weight x part for each of {"reasoning_steps": 0.5, ...}; GROUP_PARTS come later."""
    asked["truncated"] = asked.get("truncated") or "truncated" in score.flags
    sample = Completion(strip_eos(response), answer, num_tokens=num_tokens, max_tokens=max_tokens,
                        **{**asked, "row": asked.get("row") or {}})
    return add_parts_of_one(score, weights, sample, notes)


# ---------------------------------------------------------------- many responses, while the engine generates


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
        self.failures = Failures()

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
        problem = next((finding for rule, finding in notes if rule == "error"), None)
        self.failures.note(key, reward, problem, response, score)

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

    def forget(self, key):
        """Let graders not decide a response that is left out; collect() will not return it."""
        self.verdicts.forget(key)
        for known in (self.submitted, self.answered, self.scores):
            known.pop(key, None)

    def note_timeouts(self, scores):
        """Count final scores of own rewards that took too long among the failures."""
        for key, score in scores.items():
            reward, response, _, _ = self.submitted[key]
            if "timeout" in score.flags and own.own_names(reward):
                self.failures.note(key, reward, "it took longer than its seconds", response, score)

    def collect(self, budget_s=60.0):
        """Return all scores since the last collect, as {key: Score}. Killable rewards get their own seconds besides."""
        deadline = time.monotonic() + budget_s + self.verdicts.own_seconds()
        while self.verdicts.undecided() and time.monotonic() < deadline:
            self.poll(min(1.0, max(0.0, deadline - time.monotonic())))
        self.verdicts.drop()
        self.note_timeouts(self.scores)
        scores, self.scores, self.submitted, self.answered = self.scores, {}, {}, {}
        self.failures.print_new()
        return scores

    def add_group_parts(self, rollouts):
        """Add to r.score, in place, the parts that compare the responses to one prompt; each rank has all rollouts."""
        for r, problem in add_parts_of_groups(rollouts, self.part_weights):
            self.failures.note((r.prompt, r.sample), "of the group", problem, r.text, r.score)
        self.failures.print_new()
        return rollouts

    def close(self):
        self.verdicts.close()


class Failures:
    """Count the responses on which a reward failed or took too long, and print them."""

    def __init__(self):
        self.new = {}  # {key of a response: (reward, what went wrong, response, total)}, not printed yet
        self.counts = {}  # {reward: how many responses}

    def note(self, key, reward, problem, response, score):
        """Remember what went wrong with a response, None if nothing, in place of what was known of it so far."""
        self.new.pop(key, None)
        if problem:
            self.new[key] = reward, problem, response, score.total

    def print_new(self):
        """Print the first three failures of a reward, on every rank, then their number at each power of two."""
        who = f"warning: rank {os.environ.get('RANK', '0')}: reward"
        for name, problem, response, total in self.new.values():
            self.counts[name] = count = self.counts.get(name, 0) + 1
            if count <= 3:
                print(f"{who} {name!r} failed on a response, which scores {total:g} (column flag/error): "
                      f"{excerpt(problem, 200)}; response: {excerpt(response)}", file=sys.stderr, flush=True)
            elif count & (count - 1) == 0:
                print(f"{who} {name!r} has failed on {count:,} responses so far", file=sys.stderr, flush=True)
        self.new = {}


# ---------------------------------------------------------------- does a reward pass its own golds


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


def check_golds(prompts, count=32):
    """
    Score a perfect response to `count` of the prompts, spread over all. ConfigError with exit code 5 if more than a
    tenth miss the full mark: a verifier that fails its own golds teaches nothing, or worse.
    """
    known = [(p, name) for p in prompts for _, name in terms(p.reward) if name in PERFECT]
    chosen, failures = known[::max(1, len(known) // count)][:count], []
    for prompt, name in chosen:
        try:
            score_gold(prompt, name)
        except ConfigError as error:
            failures.append(error.reason)
    if len(failures) > 0.1 * len(chosen):
        raise ConfigError(f"the rewards fail {len(failures)} of {len(chosen)} of their own gold answers; first: "
                          + failures[0], exit_code=5)


def score_gold(prompt, name=None):
    """Return (perfect response, its score); ConfigError unless that is the full mark of its reward (or of `name`)."""
    name = name or prompt.reward
    prefilled = prompt.text.rstrip().endswith("<think>")
    response, full = perfect_response(name, prompt.answer, prefilled)
    found = score(name, response, prompt.answer)
    if abs(found.total - full) > 1e-9 or not found.correct or not found.format_ok:
        parts = " + ".join(f"{part} {value:g}" for part, value in found.parts.items())
        raise ConfigError(f"{prompt.uid}: a perfect response scores {found.total:g} with reward {name!r}, not "
                          f"{full:g} ({parts}): the reward does not fit the template or the data; the response "
                          f"was {excerpt(response, 200)}, the prompt ends in {excerpt(prompt.text[-40:])}")
    return response, found
