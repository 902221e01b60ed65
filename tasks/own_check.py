"""
The check of own rewards at the start of a run, and with --check: made-up responses to real rows and hostile texts, in a
process that can be killed.
"""

import dataclasses
import json
import statistics
import time

from onebox.config import ConfigError
from onebox.text import excerpt
from tasks import own
from tasks.judged import Completion
from tasks.rows import print0
from tasks.workers import Workers

HOSTILE = {  # a response that a model may write one day
    "nothing": "", "blanks": " \n\t ", "no tags": "yes", "only tags": "<think></think><answer></answer>",
    "never ends": "<think>" + "so " * 200, "tags the wrong way round": "</answer>5<answer></think>",
    "a thousand tags": "<answer>" * 1000 + "5" + "</answer>" * 1000, "open brackets": "[" * 50_000,
    "open boxes": "\\boxed{" * 20_000, "a long number": "9" * 100_000,
    "not a number": "<answer>nan 1e999 -inf</answer>", "broken JSON": '<answer>{"a": [1, {"b": </answer>',
    "other scripts": "<answer>\u0663 \u4e94 \ufffd \x00</answer>", "one long word": "a" * 200_000,
    "blanks and words": "a " * 100_000,
}
CHARS_A_TOKEN = 32  # at most, but for oddities: how long a hostile text of max_response_len tokens may be


def check_all(prompts, max_response_len, count=8):
    """Try each own reward on `count` of its rows and on hostile texts: see check."""
    its_rows = {}
    for prompt in prompts:
        for name in (name for _, name in own.terms(prompt.reward) if own.is_own(name)):
            its_rows.setdefault(name, []).append(prompt)
    for name, rows in its_rows.items():
        workers = Workers(num_workers=1)
        try:
            check(name, rows[::max(1, len(rows) // count)][:count], workers, max_response_len=max_response_len)
        finally:
            workers.close()


def check(name, prompts, workers, say=print0, max_response_len=1 << 30):
    """
    Score made-up responses to real rows, and hostile texts no longer than a response can be.

    prompts: some that have this reward. Raises ConfigError with exit code 5 if the reward fails on every response to
    real rows, misses its own perfect ones, or (unless it is killable) needs too long for one text. Says in one line how
    it went, and warns of one that fails on hostile texts, gives one value to all, or two values to one response.
    """
    options, jobs, where = own.options_of(name), [], f"reward {name}"
    for prompt in prompts:
        texts = made_up(prompt, prompts)
        jobs += [("a real row", prompt, text) for text in [*texts, texts[-1]]]  # the last one twice
        if options.perfect is not None:
            jobs.append(("a perfect response", prompt, perfect(name, prompt)))
    jobs += [(what, prompts[0], text[:CHARS_A_TOKEN * max_response_len]) for what, text in HOSTILE.items()]
    tried = []
    for what, prompt, text in jobs:
        tried.append(Tried(what, prompt, text, *score_in_process(name, prompt, text, workers)))
        if tried[-1].said == "timeout" and not options.killable:
            raise ConfigError(f"{where} needs more than {options.seconds:g} s for one text ({what}: {excerpt(text)}): "
                              "a response can be such a text, so make it end sooner, allow more time, "
                              "@own_reward(seconds=30), or run it where it can be stopped, killable=True", exit_code=5)
    real = [one for one in tried if one.what in ("a real row", "a perfect response")]
    errors = [one for one in real if one.failed]
    if len(errors) == len(real):
        known = "" if options.perfect else "; if none of them can be right, own_reward(perfect=...) names one that is"
        raise ConfigError(f"{where} fails on all {len(real)} responses tried on {len(prompts)} rows: "
                          f"{excerpt(errors[0].said, 300)}; the response was {excerpt(errors[0].text, 100)}, the row "
                          f"{excerpt(errors[0].prompt.row, 200)}{known}", exit_code=5)
    real = [one for one in real if one.what == "a real row"]
    for one in tried:
        if one.what == "a perfect response" and (one.failed or not one.said.correct):
            got = one.said if one.failed else f"{one.said.total:g}"
            raise ConfigError(f"{where}: the response that own_reward(perfect=...) calls perfect gets "
                              f"{excerpt(got, 200)} for {one.prompt.uid}, full_mark is {options.full_mark:g}: "
                              f"{excerpt(one.text, 200)}", exit_code=5)
    seconds = sorted(one.seconds for one in tried if not one.failed)
    say(f"{where}: checked on {len(prompts)} rows and {len(HOSTILE)} hostile texts, "
        f"{statistics.median(seconds) * 1000:,.1f} ms for one, {seconds[-1] * 1000:,.1f} ms at most"
        + (", in a process of its own" if options.killable else ""))
    if odd := [one for one in tried if one.failed]:
        say(f"warning: {where} fails on {len(odd)} of {len(jobs)} texts; such a response scores {options.on_error:g} "
            f"(own_reward(on_error=...)) and counts in column flag/error; first on {odd[0].what}: "
            f"{excerpt(odd[0].said, 200)}")
    totals = {options.on_error if one.failed else one.said.total for one in tried}
    if len(totals) == 1:
        say(f"warning: {where} gave {totals.pop():g} to all {len(jobs)} texts tried: "
            + ("nothing can be learned from a constant" if options.perfect else "is none of them right? "
               "own_reward(perfect=...) names a response that is; nothing can be learned from a constant"))
    each = len(real) // len(prompts)
    for first, again in zip(real[each - 2::each], real[each - 1::each], strict=True):
        if not first.failed and not again.failed and first.said.total != again.said.total:
            say(f"warning: {where} gave {first.said.total:g} and {again.said.total:g} to one and the same response: it "
                "must depend on the sample alone, else a resumed run is another run")
            break


@dataclasses.dataclass
class Tried:
    """How a reward took one text: its Score, or what went wrong ("timeout", "ZeroDivisionError: ..."); the seconds."""

    what: str
    prompt: object
    text: str
    said: object
    seconds: float

    @property
    def failed(self):
        return isinstance(self.said, str)


def made_up(prompt, others=()):
    """Return responses to a prompt: right ones in three forms, another row's answer, and one that is no answer."""
    gold, others = written(prompt.answer), [written(other.answer) for other in others]
    opening = "" if prompt.text.rstrip().endswith("<think>") else "<think>"
    return [f"{opening}I worked it out.</think>\n<answer>{gold}</answer>",
            f"{opening}I worked it out.</think>\n\\boxed{{{gold}}}", gold,
            next((other for other in others if other != gold), "something else"),
            f"{opening}I worked it out.</think>\n<answer>no idea</answer>"]


def written(answer):
    """Return an answer as a response would write it: the first of several, an object as JSON."""
    answer = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
    return json.dumps(answer, default=str) if isinstance(answer, (dict, bool)) else str(answer)


def tested(reward):
    """Tell whether the check knows a perfect response to each reward in this one, and all of them are own."""
    return all(own.is_own(name) and own.options_of(name).perfect is not None for _, name in own.terms(reward))


def perfect(name, prompt):
    """Return the response that own_reward(perfect=...) calls perfect: a text, or what its function makes of the row."""
    text = own.options_of(name).perfect
    if callable(text):
        try:
            text = text(dict(prompt.row))
        except Exception as error:  # the user's Python
            raise ConfigError(f"reward {name}: the function own_reward(perfect=...) fails on the row "
                              f"{excerpt(prompt.row, 200)}: {type(error).__name__}: {error}", exit_code=5) from error
    think = ("" if prompt.text.rstrip().endswith("<think>") else "<think>") + "I worked it out.\n</think>"
    return str(text).replace("{think}", think).replace("{answer}", written(prompt.answer))


def score_in_process(name, prompt, text, workers):
    """Return (Score or what went wrong, seconds) of one text. Only a killable reward has a limit of memory."""
    length = max(1, len(text) // 4)
    completion = Completion(text, prompt.answer, False, length, length + 1, prompt.row, prompt.text,
                            equal=lambda *question: verdict(question, workers))
    start, options = time.perf_counter(), own.options_of(name)
    try:
        said = own.score_elsewhere(name, completion, None if options.killable else "inf") or "timeout"
    except RuntimeError as error:
        said = str(error)
    return said, time.perf_counter() - start


def verdict(question, workers):
    """Ask a grader process and wait."""
    workers.submit(0, *question)
    while not (found := workers.poll(wait_s=1.0)):
        pass
    return found[0][1]
