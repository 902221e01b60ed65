"""
What a reward function judges, a Completion, what several of them ask of it, and what they say, a Score. rewards.py has
the published ones; tasks/own.py finds your own.
"""

from dataclasses import dataclass, field

from onebox.text import excerpt
from tasks import TASKS
from tasks.formats import between, boxes, filled_boxes, outside_thinking
from tasks.math_problems import gold_answers
from tasks.parts import finite


@dataclass(frozen=True)
class Score:
    total: float  # the sum of parts
    correct: bool
    format_ok: bool  # the published format condition held
    parts: dict  # name -> what it added
    flags: frozenset = frozenset()  # monitors: tag_monitors, several_boxes, truncated, timeout, error, no_length


@dataclass
class Completion:
    """What a reward function judges: a response, and what it was asked."""

    text: str  # one trailing end-of-text stripped
    answer: object  # the row's gold; None where it has none
    truncated: bool = False
    num_tokens: int | None = None  # of the response
    max_tokens: int | None = None  # it was allowed
    row: dict = field(default_factory=dict)  # of the data set
    prompt: str = ""  # as the model read it
    token_ids: list = ()  # of the response
    flags: set = field(default_factory=set)
    notes: list = field(default_factory=list)  # (rule, finding) pairs for --why
    equal: object = None  # (golds, prediction, rules) -> "right", "wrong", "timeout" or "error"

    @property
    def thinking(self):
        """Return the text up to the last </think>: all of it where the thinking never ends, "" without a thinking."""
        before, closed, _ = self.text.rpartition("</think>")
        opened = self.text.lstrip().startswith("<think>") or self.prompt.rstrip().endswith("<think>")
        return (before if closed else self.text if opened else "").strip().removeprefix("<think>").strip()

    @property
    def answer_part(self):
        """Return the text after the thinking: "" where the thinking never ends, all of it without a thinking."""
        never_ends = self.prompt.rstrip().endswith("<think>") and "</think>" not in self.text
        return "" if never_ends else outside_thinking(self.text).strip()

    @property
    def said(self):
        """Return the answer: the last <answer>...</answer> of answer_part, else its last filled box, else all of it."""
        opened, closed, _ = self.answer_part.rpartition("</answer>")
        if closed and "<answer>" in opened:
            return opened.rpartition("<answer>")[2].strip()
        boxes = filled_boxes(self.answer_part)
        return (boxes[-1] if boxes else self.answer_part).strip()

    def is_right(self, said=None, answer=None):
        """
        Tell whether two mathematical answers are equal, by default `said` and the row's: 1/2, 0.5 and \\frac12 are.
        TypeError where there is no answer.

        Sympy decides in grader processes what strings cannot: until its verdict is in, the answer is False and the
        score not final; then the reward is called again. Flags: timeout, error.
        """
        return equals_gold(self, self.equal, self.said if said is None else str(said), answer=answer)

    def note(self, rule, finding):
        self.notes.append((rule, finding))

    def finish(self, parts, correct=False, format_ok=False):
        return Score(float(sum(parts.values())), correct, format_ok, parts, frozenset(self.flags))


# ---------------------------------------------------------------- what several rewards ask of a Completion


def is_right(completion, task):
    """Judge the text between the answer tags by the task's own rules: True, False, or None if it cannot be read."""
    text = between(completion.text, "<answer>", "</answer>")
    right, notes = TASKS[task].is_right(text, completion.answer)
    completion.notes += [("answer", text), *notes]
    return right


def equals_gold(completion, equal, prediction, rules="strict", answer=None):
    """Ask whether the prediction equals a gold, of the row or of `answer`; flag a grader that gave no verdict."""
    golds = gold_answers(completion.answer if answer is None else answer)
    verdict = equal(golds, prediction, rules)
    said, wanted = excerpt(prediction, 1000), excerpt(" or ".join(golds), 1000)
    completion.note(f"equal to the gold ({rules} rules)", f"{verdict}: {said} for {wanted}")
    if verdict in ("timeout", "error"):
        completion.flags.add(verdict)
    return verdict == "right"


def last_box(completion, text):
    """
    Return the answer of a math reward: the last closed \\boxed{} with content of this text (what is outside the
    thinking), "" where all are empty, or None without one.
    """
    found = filled_boxes(text) or boxes(text)[-1:]
    if len(found) > 1:
        completion.flags.add("several_boxes")
    if not found and "</think>" in completion.text and boxes(completion.text):
        completion.flags.add("answer_in_thinking")
    box = found[-1] if found else None
    completion.note("last closed \\boxed{} outside the thinking", "none" if box is None else box)
    if box is not None and not box.isascii():
        completion.flags.add("non_ascii_answer")
    return box


# ---------------------------------------------------------------- what a reward may return


def checked(score):
    """Return a Score in plain finite numbers; TypeError or ValueError for what a reward may not return."""
    if not isinstance(score, Score):
        raise TypeError(f"it returned {type(score).__name__}, not a Score: end it with return completion.finish("
                        "{'name': value}, correct)")
    parts = {str(name): finite(value, name) for name, value in score.parts.items()}
    total = finite(score.total, "total")
    parts = parts or {"reward": total}
    if abs(total - sum(parts.values())) > 1e-6 * max(1.0, abs(total)):
        raise ValueError(f"total {total:g} is not the sum of its parts, {sum(parts.values()):g}")
    return Score(total, bool(score.correct), bool(score.format_ok), parts, frozenset(map(str, score.flags)))
