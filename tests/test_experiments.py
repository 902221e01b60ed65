"""
python -m pytest tests/test_experiments.py: the embedded world, the queue of runs, the verdicts, and the survey's page
from two steps of every arm.
"""

import csv
import dataclasses
import importlib
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import types

import pytest
from conftest import ROOT
from runs import Server

import rewards
import sft
import train_grpo
import train_ppo
from experiments import arithmetic, countdown, harness, knights, survey, systems, world
from experiments.harness import Claim, arm
from onebox.config import load_config

SCRIPTS = {"train_grpo.py": train_grpo, "train_ppo.py": train_ppo, "sft.py": sft}
EXPERIMENTS = {name[:2]: module for name, module in survey.load([])}
SUITE = {**EXPERIMENTS, "systems": systems}


def all_arms():
    """Every arm of the survey, with those that others start from: {its name: the arm}."""
    def add(one):
        found[one.name] = one
        if one.after:
            add(one.after)

    found = {}
    for experiment in SUITE.values():
        for one in experiment.ARMS.values():
            add(one)
    return found


ARMS = all_arms()
USED = {harness.start_of(one) for one in ARMS.values()}  # starts; there is one more, for experiments on size


def test_every_start_but_the_largest_is_used():
    assert set(world.STARTS) - USED == {"countdown_large"}


def script_at(command):
    """Where in a command its script stands, behind python or torchrun."""
    return next(i for i, word in enumerate(command) if word in [os.path.join(ROOT, name) for name in SCRIPTS])


def config_of(one):
    """The settings with which the command of an arm runs, as its script reads them."""
    command = harness.command_of(one, 0)
    at = script_at(command)
    return load_config(SCRIPTS[os.path.basename(command[at])].Config, command[at + 1:])[0]


# ---------------------------------------------------------------- generators

LEVELS = [(task, level) for task, levels in (("countdown", countdown.LEVELS), ("knights", "234"),
                                             ("arithmetic", "23456789")) for level in levels]


def calculate(a, sign, b):
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else math.nan}[sign]


def solvable(nums, target, ops):
    """Try every order of the numbers with all operators, from left to right; values are whole and 0 or more."""
    for first, *rest in itertools.permutations(nums):
        for signs in itertools.product(ops.split(), repeat=len(rest)):
            value = first
            for sign, b in zip(signs, rest, strict=True):
                value = calculate(value, sign, b)
                if value != value or value < 0 or value != int(value):
                    break
            else:
                if value == target:
                    return True
    return False


@pytest.mark.parametrize("task, level", LEVELS)
def test_the_same_arguments_give_the_same_rows_and_another_split_other_ones(task, level):
    rows = world.rows_of(task, level, 60, "train")
    assert rows == world.rows_of(task, level, 60, "train") and len(rows) == 60
    assert world.rows_of(task, level, 20, "train") == rows[:20]
    assert len({json.dumps(row) for row in rows}) == 60
    assert not {json.dumps(row) for row in rows} & {json.dumps(row) for row in world.rows_of(task, level, 60, "test")}


def test_rows_and_traces_do_not_depend_on_the_order_of_pythons_sets():
    """A process whose hashes differ makes the same traces: sets are sorted before anything is drawn from them."""
    code = ("import hashlib; from experiments import world\n"
            "for task in world.MIXES:\n"
            "    kind = '' if task == 'arithmetic' else 'search'\n"
            "    print(hashlib.sha256(repr(list(world.traces(task, kind, 50, 0))).encode()).hexdigest())")
    code = f"from experiments import world\nworld.TRAIN = 50\n{code}"
    said = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ROOT},
                           cwd=ROOT, text=True, capture_output=True, check=True).stdout for seed in ("1", "2")}
    assert len(said) == 1 and len(set(said.pop().split())) == 3


def problem_of(task, row):
    """What makes two rows the same problem, whatever the order of the numbers and the names of the people."""
    if task == "countdown":
        return tuple(sorted(row["nums"])), row["target"]
    if task == "arithmetic":
        return row["question"]
    number = {name: str(i) for i, name in enumerate(row["names"])}
    anonymous = " ".join(number.get(word, word) for word in row["quiz"].split())
    return anonymous if len(row["names"]) > 2 else row["quiz"]  # of two people there are too few without names


@pytest.mark.parametrize("task, level", LEVELS)
def test_training_and_held_out_rows_never_share_a_problem_whatever_the_seeds(task, level):
    def made(seed, split):
        if task == "countdown":
            return countdown.problems(level, 500, seed, split)
        return (knights.puzzles(int(level), 500, seed, split) if task == "knights"
                else arithmetic.problems(level, 500, seed, split))

    train, test = ({problem_of(task, row) for seed in (0, 1) for row in made(seed, split)}
                   for split in ("train", "test"))
    assert train and test and not train & test


@pytest.mark.parametrize("level", countdown.LEVELS)
def test_every_countdown_row_has_the_numbers_of_its_level_and_a_solution(level):
    for row in countdown.problems(level, 40, 0) + countdown.problems(level, 40, 0, "test"):
        assert len(row["nums"]) == int(level[0]) and len(row["ops"].split()) == int(level[1]), row
        assert all(1 <= number <= 9 for number in row["nums"]) and 0 <= row["target"] <= 99, row
        assert solvable(row["nums"], row["target"], row["ops"]), row


TRY = re.compile(r" try (\d+)((?: [-+*/] \d+ = \d+)+)(?: (right|too high|too low))?")


def check_try(row, first, steps):
    """Compute a try step by step and return its value; it must use each number of the row once."""
    value, used = int(first), [int(first)]
    for sign, b, said in re.findall(r" ([-+*/]) (\d+) = (\d+)", steps):
        value = calculate(value, sign, int(b))
        used.append(int(b))
        assert value == int(said) and 0 <= value <= 99 and sign in row["ops"], steps
    assert sorted(used) == sorted(row["nums"]), steps
    return value


def score_countdown(row, response):
    return rewards.score("tinyzero_countdown", response, {"target": row["target"], "numbers": row["nums"]})


@pytest.mark.parametrize("level", countdown.LEVELS)
@pytest.mark.parametrize("kind", countdown.KINDS)
def test_a_countdown_trace_computes_right_says_what_is_so_and_answers_with_its_last_try(kind, level):
    rng = random.Random(0)
    for row in countdown.problems(level, 80, 0):
        text = countdown.trace(row, rng, kind)
        end = re.search(r" </think>| <answer>| so the answer is", text).start()
        tries = list(TRY.finditer(text[:end]))
        assert tries and "".join(found[0] for found in tries) == text[:end], text
        values = [check_try(row, found[1], found[2]) for found in tries]
        verdicts = [found[3] for found in tries]
        assert verdicts == ["right" if v == row["target"] else "too high" if v > row["target"] else "too low"
                            for v in values], text
        assert len(set(values)) == len(values) <= 10 and "right" not in verdicts[:-1], text
        answer = re.search(r"(?:<answer>|the answer is) ([\d ()+*/-]+?)(?: </answer>|$)", text[end:])[1]
        assert eval(answer) == values[-1], text  # an expression of digits, signs and parentheses
        assert sorted(map(int, re.findall(r"\d+", answer))) == sorted(row["nums"]), text
        for found in TRY.finditer(text[end:]):  # rambling on, without verdicts
            check_try(row, found[1], found[2])
            assert found[3] is None, text


@pytest.mark.parametrize("level", world.MIXES["countdown"])
def test_the_teacher_gets_full_marks_exactly_where_its_last_try_is_right_which_is_nearly_always(level):
    rng, right = random.Random(0), 0
    rows = countdown.problems(level, 200, 0)
    for row in rows:
        text = countdown.trace(row, rng, "teacher")
        last = text.partition(" </think>")[0].endswith(" right")
        assert score_countdown(row, text).total == (1.0 if last else 0.1), text
        right += last
    assert right >= 0.9 * len(rows)  # ten tries find all but some of the problems with five numbers


def test_a_start_breaks_the_format_as_often_as_it_says(monkeypatch):
    """With each chance made 1 and the others 0: tags out of order, text after the answer, or neither."""
    rows, kinds = countdown.problems("42", 60, 0), countdown.KINDS["search"]
    for malformed, rambling, good in ((1, 0, 0), (0, 1, 0), (0, 0, 60)):
        monkeypatch.setitem(countdown.KINDS, "search", kinds | {"malformed": malformed, "rambling": rambling})
        rng = random.Random(0)
        assert sum(score_countdown(row, countdown.trace(row, rng)).format_ok for row in rows) == good
    kinds, puzzles = knights.KINDS["search"], world.rows_of("knights", "3", 60, "train")
    for malformed, good in ((1, 0), (0, 60)):
        monkeypatch.setitem(knights.KINDS, "search", kinds | {"malformed": malformed})
        rng = random.Random(0)
        assert sum(rewards.score("logic_rl_kk", knights.trace(row, rng), row).format_ok for row in puzzles) == good


SAYS = re.compile(r"(\w+) says (.+?) \.")
LEAF = re.compile(r"(\w+) (knight|knave)")
CASE = re.compile(r" suppose((?: \w+ (?:knight|knave))+) :((?: \w+ says .+? (?:ok|contradiction))+)")
SPOKEN = re.compile(r" (\w+) says ([^:]+) :([^=:]+) = (true|false) (\w+) (knight|knave) (ok|contradiction)")


def statements_of(quiz):
    """Read a puzzle from its text: {who: ("and", "or" or "", [(about whom, role)])}."""
    return {who: ((re.findall(r" (and|or) ", said) or [""])[0], LEAF.findall(said)) for who, said in SAYS.findall(quiz)}


def holds(statement, roles):
    joined, leaves = statement
    return (any if joined == "or" else all)([roles[name] == role for name, role in leaves])


@pytest.mark.parametrize("people", (2, 3, 4))
def test_every_puzzle_has_exactly_one_solution_and_names_it(people):
    for row in knights.puzzles(people, 60, 0) + knights.puzzles(people, 20, 0, "test"):
        said = statements_of(row["quiz"])
        assert list(said) == row["names"] and len(said) == people, row
        assert all(1 <= len(leaves) <= 2 for _, leaves in said.values()), row
        found = [roles for choice in itertools.product(("knight", "knave"), repeat=people)
                 if (roles := dict(zip(row["names"], choice, strict=True)))
                 and all(holds(said[name], roles) == (role == "knight") for name, role in roles.items())]
        assert len(found) == 1, row
        assert list(found[0].values()) == ["knight" if knight else "knave" for knight in row["solution"]], row
        assert row["solution_text_format"] == "\n".join(
            f"({i}) {name} is a {role}" for i, (name, role) in enumerate(found[0].items(), 1)), row


def check_case(row, supposed, body):
    """Go through a case of a trace as it was written; return ({name: role}, whether it is free of contradictions)."""
    said, roles = statements_of(row["quiz"]), dict(re.findall(r"(\w+) (knight|knave)", supposed))
    assert list(roles) == row["names"], supposed
    spoken = list(SPOKEN.finditer(body))
    assert "".join(found[0] for found in spoken) == body
    assert [found[1] for found in spoken] == row["names"][:len(spoken)], body
    for found in spoken:
        who, repeated, judged, truth, again, role, ends = found.groups()
        joined, leaves = said[who]
        assert repeated == f" {joined} ".join(map(" ".join, leaves)), found[0]
        assert judged == "".join(f" {name} {roles[name]} {str(roles[name] == claimed).lower()}"
                                 for name, claimed in leaves), found[0]
        assert truth == str(holds(said[who], roles)).lower() and (again, role) == (who, roles[who]), found[0]
        assert ends == ("ok" if (truth == "true") == (role == "knight") else "contradiction"), found[0]
    assert [found[7] for found in spoken[:-1]] == ["ok"] * (len(spoken) - 1), body  # the first contradiction ends it
    fits = spoken[-1][7] == "ok"
    assert len(spoken) == len(roles) or not fits, body
    return roles, fits


@pytest.mark.parametrize("people", (2, 3, 4))
def test_a_knights_trace_judges_every_case_right_and_its_answer_earns_what_the_last_one_deserves(people, monkeypatch):
    monkeypatch.setitem(knights.KINDS, "search", knights.KINDS["search"] | {"malformed": 0.0})
    rng, seen = random.Random(0), set()
    for row in world.rows_of("knights", str(people), 60, "train"):
        text = knights.trace(row, rng)
        thinking, _, rest = text.partition(" </think>")
        cases = [check_case(row, found[1], found[2]) for found in CASE.finditer(thinking)]
        assert thinking.count("suppose") == len(cases) == thinking.count("try again suppose") + 1, text
        assert not any(fits for _, fits in cases[:-1]) and len({str(roles) for roles, _ in cases}) == len(cases), text
        roles, fits = cases[-1]
        answer = rest.partition("<answer>\n")[2].partition("\n</answer>")[0]
        assert answer == "\n".join(f"({i}) {name} is a {role}" for i, (name, role) in enumerate(roles.items(), 1)), text
        assert rewards.score("logic_rl_kk", text, row).total == (3.0 if fits else -0.5), text
        for found in CASE.finditer(rest):
            check_case(row, found[1], found[2])
        seen.add(fits)
    assert seen == {True, False}


@pytest.mark.parametrize("level", world.MIXES["arithmetic"])
def test_every_sum_has_the_operations_of_its_level_and_stays_between_0_and_99(level):
    for row in arithmetic.problems(level, 60, 0) + arithmetic.problems(level, 60, 0, "test"):
        first, *rest = row["question"].split()
        value = int(first)
        for sign, b in zip(rest[::2], rest[1::2], strict=True):
            value = calculate(value, sign, int(b))
            assert 0 <= value <= 99 and 1 <= int(b) <= 9 and sign in "+-", row
        assert len(rest) == 2 * int(level) and row["answer"] == str(value), row


SYSTEM_FORMS = {  # reward: the form of the system that has it, the marks of a right answer
    "math": ("boxed", 1.0), "simplerl_math": ("boxed", 1.0), "demystify_cosine": ("boxed", 2.0),
    "open_r1_math": ("think_answer", 2.0), "unsloth_gsm8k": ("reasoning", 4.0), "dr_grpo_r1": ("r1", 1.0),
    "deepscaler_math": ("think_boxed", 1.0),
}


def set_chances(monkeypatch, **chances):
    for name in ("GUESS", "SLIP", "NOTICED", "MALFORMED"):
        monkeypatch.setattr(arithmetic, name, chances.get(name, 0.0))


@pytest.mark.parametrize("slip, notices", ((0, 0), (1, 1)))
@pytest.mark.parametrize("reward", SYSTEM_FORMS)
def test_step_by_step_without_a_slip_or_with_every_slip_mended_earns_full_marks(reward, slip, notices, monkeypatch):
    set_chances(monkeypatch, SLIP=slip, NOTICED=notices)
    (form, mark), rng, slips = SYSTEM_FORMS[reward], random.Random(0), 0
    for level in ("2", "9"):
        for row in arithmetic.problems(level, 20, 0):
            text, value, slipped = arithmetic.trace(row, rng, form), int(row["question"].split()[0]), False
            for wait, a, sign, b, said in re.findall(r"(wait )?(\d+) ([-+]) (\d+) = (\d+)", text):
                assert int(a) == value and bool(wait) == slipped, text
                slipped = int(said) != calculate(value, sign, int(b))
                assert slipped <= slip, text
                value = value if slipped else int(said)
                slips += slipped
            assert value == int(row["answer"]) and not slipped, text
            score = rewards.score(reward, text, row["answer"])
            assert (score.total, score.correct, score.format_ok) == (mark, True, True), text
    assert bool(slips) == bool(slip)


def test_the_recipe_of_a_system_asks_in_the_form_that_its_reward_reads():
    found = {settings["reward"]: settings["template"] for settings in map(harness.settings_of, ARMS.values())
             if settings.get("reward") in SYSTEM_FORMS}
    assert found == {reward: f"{{prompt_{form}}}" for reward, (form, _) in SYSTEM_FORMS.items() if reward != "math"}


@pytest.mark.parametrize("reward", SYSTEM_FORMS)
def test_a_wrong_guess_earns_less_and_so_does_a_broken_form(reward, monkeypatch):
    form, mark = SYSTEM_FORMS[reward]
    rows, rng = arithmetic.problems("6", 100, 0), random.Random(0)
    set_chances(monkeypatch, GUESS=1)
    guesses = [rewards.score(reward, arithmetic.trace(row, rng, form), row["answer"]) for row in rows]
    assert 5 <= sum(score.correct for score in guesses) <= 25  # one in seven
    assert all((score.total == mark) == score.correct for score in guesses)
    set_chances(monkeypatch, MALFORMED=1)
    if form != "reasoning":  # whose <answer> stands on a line of its own: its end stays as it is
        assert not any(rewards.score(reward, arithmetic.trace(row, rng, form), row["answer"]).total == mark
                       for row in rows)


# ---------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return world.build_tokenizer()


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def examples():
    """Prompts and traces of each kind of start, {task and kind: 400 of them}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "TRAIN", 400)
        kinds = {(task, kind) for task, kind, *_ in world.STARTS.values()} | {("countdown", "teacher")}
        return {f"{task} {kind}": list(world.traces(task, kind, 400, 0)) for task, kind in sorted(kinds)}


def test_every_prompt_and_trace_is_its_own_text_again_and_no_word_is_unknown(tokenizer, examples):
    for one in itertools.chain(*examples.values()):
        prompt, response = ids_of(tokenizer, one["prompt"]), ids_of(tokenizer, one["response"])
        assert tokenizer.decode(prompt) == one["prompt"] and tokenizer.decode(response) == one["response"]
        assert prompt + response == ids_of(tokenizer, one["prompt"] + one["response"])  # nothing joins at the seam
        assert tokenizer.unk_token_id not in prompt + response, one


def test_of_2560_ids_more_than_2000_occur_in_no_trace(tokenizer, examples):
    assert sorted(tokenizer.get_vocab().values()) == list(range(2560)) and len(world.WORDS) == len(set(world.WORDS))
    used = {token for one in itertools.chain(*examples.values()) for token in ids_of(tokenizer, one["response"])}
    fillers = [token for word, token in tokenizer.get_vocab().items() if re.fullmatch(r" word\d+", word)]
    assert len(fillers) == 2560 - 4 - 2 * len(world.WORDS) > 2000  # 4: pad, EOS, unknown, line break
    assert not used & set(fillers) and len(used) < 2560 - len(fillers)


def test_nearly_all_traces_fit_the_cold_starts_limit(tokenizer, examples):
    """sft.py refuses data of which more than 1 % is longer than max_len; of 400 traces the share varies by 0.5 %."""
    cfg, _ = load_config(sft.Config, [os.path.join(ROOT, "experiments/recipes/start.py")])
    for kind, some in examples.items():
        lengths = [len(ids_of(tokenizer, one["prompt"] + one["response"])) + 1 for one in some]  # and EOS
        assert sum(length > cfg.max_len for length in lengths) <= 0.02 * len(lengths), kind


def test_a_model_has_the_size_that_it_is_listed_with():
    sizes = {size: round(world.build_model(size, 0).num_parameters() / 1e6, 1) for size in ("tiny", "small", "normal")}
    assert sizes == {"tiny": 0.1, "small": 0.3, "normal": 0.9}  # million, as comments, page and arms say


# ---------------------------------------------------------------- numbers and verdicts


def test_the_interval_is_students():
    assert harness.interval([1, 2, 3]) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))  # 2 +- 2.484
    assert harness.interval([1, 2, 3])[2] == pytest.approx(4.484, abs=1e-3)
    assert harness.interval([1, 3]) == pytest.approx((2, 2 - 12.706, 2 + 12.706))  # std sqrt(2), over sqrt(2)
    assert harness.interval([5]) == (5, -math.inf, math.inf)


@pytest.mark.parametrize("values, bound, found", [
    ((1, 2, 3), {"above": 0}, "not seen"), ((10, 11, 12), {"above": 0}, "seen"), ((10, 11, 12), {"above": 8.5}, "seen"),
    ((10, 11, 12), {"above": 8.6}, "not seen"), ((-10, -11, -12), {"above": 0}, "opposite"),
    ((10, 11, 12), {"below": 13.5}, "seen"), ((10, 11, 12), {"below": 13.4}, "not seen"),
    ((10, 11, 12), {"below": 0}, "opposite"), ((0, 0, 0), {"above": 0}, "not seen"),
    ((0, 0, 0), {"below": 0}, "not seen"), ((0, 0, 0), {"within": 1}, "seen"),
    ((10, 11, 12), {"within": 14}, "seen"), ((10, 11, 12), {"within": 13}, "not seen"),
    ((10, 11, 12), {"within": 8}, "opposite"), ((-10, -11, -12), {"within": 8}, "opposite"),
    ((-1, 0, 1), {"within": 2.5}, "seen"), ((-1, 0, 1), {"within": 2.4}, "not seen"),
    ((5,), {"above": 0}, "one seed"), ((math.nan,), {"above": 0}, "one seed"),
    ((1.0, math.nan, 2.0), {"above": 0}, "not seen"), ((math.nan,) * 3, {"within": 1}, "not seen"),
    ((1, math.nan), {"below": 9}, "not seen"),
])
def test_a_verdict_follows_from_interval_and_bound(values, bound, found):
    claim = Claim("a claim", None, **bound)
    assert harness.verdict(claim, values) == found
    assert harness.Judged(claim, list(values), found).line().endswith(f": {found}")


def test_a_line_says_mean_interval_and_bound():
    judged = [harness.Judged(Claim("rise", None, **bound), [1, 2, 3], "not seen")
              for bound in ({"above": 0.0}, {"within": 1.0}, {"below": 0.25, "form": "{:.2f}"})]
    assert [one.line() for one in judged] == [
        "rise: 2.0, 95 % [-0.5, 4.5] (above 0.0): not seen", "rise: 2.0, 95 % [-0.5, 4.5] (within ±1.0): not seen",
        "rise: 2.00, 95 % [-0.48, 4.48] (below 0.25): not seen"]
    assert harness.Judged(judged[0].claim, [2], "one seed").line() == "rise: 2.0 (above 0.0): one seed"


@pytest.mark.parametrize("verdicts, word", [
    ("seen", "seen"), ("seen, seen", "seen"), ("seen, not seen", "partly seen"), ("not seen, not seen", "not seen"),
    ("seen, not seen, opposite", "mixed"), ("seen, opposite", "mixed"), ("not seen, opposite", "opposite"),
    ("opposite", "opposite"), ("one seed, one seed", "one seed"),
])
def test_an_experiment_is_seen_if_all_its_claims_are_and_mixed_if_they_contradict_each_other(verdicts, word):
    assert harness.overall([harness.Judged(None, [], verdict) for verdict in verdicts.split(", ")]) == word


def test_curves_are_measured_as_by_hand():
    assert harness.smooth([0, 0, 3, 3, 3], 3) == [0, 1, 2, 3, 3]  # at the ends of two values
    assert harness.smooth([1, 2, 3, 4, 5]) == [2, 2.5, 3, 3.5, 4]
    assert harness.steps_until([0, 0, 3, 3, 3], lambda value: value >= 2) == 3
    assert harness.steps_until([0, 0, 3, 3, 3], lambda value: value >= 4) == 6  # never: one more than there are
    assert harness.unrest([9, 0, 1, 3, 2]) == pytest.approx(4 / 3)  # without the first fifth: 1, 2, 1
    assert harness.unrest([0, 1]) == 1 and harness.unrest([2, 2, 2]) == 0
    assert harness.early([1, 2, 3, 4]) == 2 and harness.early([1, 2, 3, 4], 1) == 1
    assert harness.late(list(range(1, 13))) == 7.5 and harness.late([1, 2]) == 1.5 and harness.late([1, 2, 3], 2) == 2.5
    assert all(map(math.isnan, (harness.mean([]), harness.early([]), harness.late([]), harness.unrest([1]))))


class FlatRun:
    """A run of a model that learns nothing: every curve is flat, no response is right, nobody reflects."""

    def __init__(self, steps):
        self.count = steps

    def value(self, column):
        known = {"seconds_step": 3.0, "format_error": 1.0, "truncated": 1.0}
        return known.get(column, 1.0 if column.startswith("seconds") or column.endswith("response_len") else 0.0)

    def __getitem__(self, column):
        return [self.value(column)] * self.count

    def eval(self, column="eval_correct"):
        return [self.value(column)] * 3


@pytest.mark.parametrize("steps", (2, 32))
@pytest.mark.parametrize("number", SUITE)
def test_a_measure_of_runs_that_learn_nothing_is_a_number_or_nan_which_nobody_takes_for_seen(number, steps):
    runs = {name: FlatRun(steps) for name in SUITE[number].ARMS}
    for claim in SUITE[number].CLAIMS:
        value = claim.measure(runs)
        assert isinstance(value, (int, float)), claim.text
        found = harness.verdict(claim, [value] * 3)
        assert found == "not seen" if math.isnan(value) else found in ("seen", "not seen", "opposite"), claim.text


# ---------------------------------------------------------------- names and commands


def test_equal_settings_have_one_name_and_other_settings_another():
    assert arm("a", x=1, y="b").name == arm("a", y="b", x=1).name == "a-x=1-y=b"
    first = arm("a")
    different = [first, arm("b"), arm("a", x=1), arm("a", x=2), arm("a", x=1.5), arm("a", y=1), arm("a", processes=2),
                 arm("a", after=first), arm("a", after=arm("a", x=1)), arm("a", after=first, x=1),
                 arm("a", after=arm("a", after=first)), arm("a", after=arm("a", processes=2)),
                 arm("a", after=first, processes=2), arm("a", parts={"one": 0.1}), arm("a", parts={"one": 1.0}),
                 arm("a", parts={"two": 1.0}), arm("a", lr=1e-5), arm("a", lr=1e-4), arm("a", x=-1),
                 *(arm("a", text="t" * 200 + end) for end in "12"), arm("a", text="t" * 300), arm("a", text="t" * 301),
                 *(arm("a", after=arm("a", text="t" * 200 + end)) for end in "12")]
    names = [one.name for one in different]
    assert len(set(names)) == len(different)
    for one in [*different, *ARMS.values()]:
        name = harness.run_name(one, 100)
        assert re.fullmatch(r"[\w.+-]+", name) and len(name) <= 140, name  # what a run accepts, and a file system


def test_an_arm_that_experiments_share_is_one_run_and_every_run_comes_after_what_it_needs():
    arms = [one for experiment in SUITE.values() for one in experiment.ARMS.values()]
    jobs = harness.jobs_of(arms, (0, 1), None)
    runs = [name for name in jobs if name.startswith("survey-")]
    assert len(runs) == 2 * len(ARMS) < 2 * len(arms)
    assert {harness.run_name(one, seed) for one in ARMS.values() for seed in (0, 1)} == set(runs)
    assert {name for name in jobs if name not in runs} == {f"world-{start}" for start in USED}
    done = set()
    for name, job in jobs.items():
        assert set(job.needs) <= done and job.processes in (1, 2), name
        done.add(name)


def test_a_digest_changes_with_settings_start_and_number_of_steps(monkeypatch):
    baseline, other = arm("countdown"), arm("countdown", lr=1e-3)
    digests = [harness.digest_of(baseline), harness.digest_of(other), harness.digest_of(baseline, 2),
               harness.digest_of(arm("countdown", after=baseline)), harness.digest_of(arm("countdown", after=other)),
               harness.digest_of(arm("countdown", model="out/world-countdown_small/model"))]
    assert len(set(digests)) == len(digests) and digests[0] == harness.digest_of(arm("countdown"))
    monkeypatch.setitem(world.STARTS, "countdown", ("countdown", "search", "normal", 1401))
    assert harness.digest_of(baseline) != digests[0]


@pytest.mark.parametrize("name", ARMS)
def test_a_shown_command_is_what_runs_once_a_shell_has_read_it(name):
    one = ARMS[name]
    words = shlex.split(harness.shown_command(one, 0))
    command = harness.command_of(one, 0)
    script = script_at(command)
    shown = words[next(i for i, word in enumerate(words) if word.endswith(".py")):]
    assert words[0] == ("torchrun" if one.processes > 1 else "python")
    assert [word.removeprefix(ROOT + os.sep) for word in command[script:]][:2] == shown[:2]
    assert config_of(one) == load_config(SCRIPTS[shown[0]].Config, [os.path.join(ROOT, shown[1]), *shown[2:]])[0]


# ---------------------------------------------------------------- the queue

BODY = """
import os, signal, sys, time
name, processes, code, needs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
def note(sign):
    with open("events", "a") as f:
        f.write(f"{sign} {name} {processes}\\n")
def wait_for(test):
    end = time.monotonic() + 60
    while not test():
        if time.monotonic() > end:
            sys.exit("waited in vain")
        time.sleep(0.01)
os.makedirs(f"out/{name}/step_000001", exist_ok=True)
note("+")
if not all(os.path.exists(f"out/{need}/complete.json") for need in needs):
    sys.exit("too early")
REST
if not code:
    os.makedirs(f"out/{name}/model", exist_ok=True)
    open(f"out/{name}/model/config.json", "w").close()
note("-")
sys.exit(code)
"""


def stand_in(name, needs=(), processes=1, code=0, rest="", digest="d"):
    """A job that notes its begin and end in the file `events`, and leaves what a run leaves."""
    command = [sys.executable, "-c", BODY.replace("REST", rest), name, str(processes), str(code), *needs]
    return harness.Job(name, command, digest, needs, processes)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A function that runs stand-ins in a folder of its own: it returns (failed, the events so far)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world, "write_data", lambda: None)

    def run(*jobs, slots=2):
        monkeypatch.setattr(harness, "jobs_of", lambda *_: {job.name: job for job in jobs})
        return harness.run_all([], (0,), slots=slots), events()

    return run


def events():
    if not os.path.exists("events"):
        return []
    with open("events") as f:
        return [line.split() for line in f]


def ran(found):
    return [name for sign, name, _ in found if sign == "+"]


def widest(found):
    """The most processes that ran at one time."""
    running = itertools.accumulate(int(count) if sign == "+" else -int(count) for sign, _, count in found)
    return max(running)


def test_a_job_starts_after_what_it_needs_has_ended(queue):
    failed, found = queue(stand_in("start"), stand_in("one", ["start"]), stand_in("two", ["one"]),
                          stand_in("other", ["start"]))
    assert not failed and sorted(ran(found)) == ["one", "other", "start", "two"]
    for before, after in (("start", "one"), ("start", "other"), ("one", "two")):
        assert found.index(["-", before, "1"]) < found.index(["+", after, "1"])
    assert all(not os.path.exists(f"out/{name}/step_000001") and os.path.exists(f"out/{name}/complete.json")
               for name in ran(found))  # checkpoints are removed, the record is there


def test_as_many_processes_run_as_there_are_slots_and_never_more(queue):
    both = "wait_for(lambda: {name for _, name, _ in map(str.split, open('events'))} >= {'a', 'b'})"
    failed, found = queue(stand_in("a", rest=both), stand_in("b", rest=both), stand_in("c"),
                          stand_in("wide", processes=2, rest="time.sleep(0.5)"), stand_in("d"), stand_in("e"))
    assert not failed and len(ran(found)) == 6 and widest(found) == 2  # a and b waited for each other
    assert found[found.index(["+", "wide", "2"]) + 1] == ["-", "wide", "2"]


def test_a_job_wider_than_the_slots_runs_alone(queue):
    failed, found = queue(stand_in("a"), stand_in("wide", processes=2), stand_in("b"), slots=1)
    assert not failed and [name for _, name, _ in found] == ["a", "a", "wide", "wide", "b", "b"]


def test_a_failed_job_fails_all_that_begins_with_it_and_nothing_else(queue, capsys):
    failed, found = queue(stand_in("bad", code=3), stand_in("good"), stand_in("one", ["bad"]), stand_in("two", ["one"]),
                          stand_in("three", ["two"]), stand_in("fine", ["good"]))
    assert sorted(failed) == ["bad", "one", "three", "two"] and sorted(ran(found)) == ["bad", "fine", "good"]
    assert [name for name in ("bad", "good", "fine") if os.path.exists(f"out/{name}/complete.json")] == ["good", "fine"]
    assert "bad  FAILED, see out/survey-logs/bad.txt" in capsys.readouterr().out
    assert os.path.exists("out/survey-logs/bad.txt") and os.path.exists("out/bad/step_000001")


def test_a_complete_job_is_not_run_again_and_a_failed_one_is(queue):
    queue(stand_in("a"), stand_in("b", ["a"], code=1))
    assert ran(events()) == ["a", "b"]
    failed, found = queue(stand_in("a"), stand_in("b", ["a"]))
    assert not failed and ran(found) == ["a", "b", "b"]
    assert queue(stand_in("a"), stand_in("b", ["a"]))[1] == found


def test_a_complete_run_of_another_digest_is_refused_by_name_before_anything_runs(queue):
    queue(stand_in("a"))
    before = events()
    with pytest.raises(SystemExit, match="out/a.*rm -r out/a"):
        queue(stand_in("new"), stand_in("a", digest="other"))
    assert events() == before


def test_a_run_that_a_signal_stopped_is_not_taken_for_complete(queue):
    """Such a run ends with exit code 0 after a checkpoint; only a complete one leaves a model."""
    failed, _ = queue(stand_in("a", rest="sys.exit(0)"), stand_in("b", ["a"]))
    assert failed == ["a", "b"] and not os.path.exists("out/a/complete.json") and os.path.exists("out/a/step_000001")


UNTIL_STOPPED = """
if not os.path.exists("again"):
    signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), sys.exit(0)))
    note("waits")
    wait_for(lambda: False)
"""


def test_an_interrupt_stops_what_runs_and_the_next_call_goes_on_there(queue, monkeypatch):
    jobs = [("a", (), ""), ("b", ("a",), UNTIL_STOPPED), ("c", ("b",), "")]

    def interrupt(seconds):
        if ["waits", "b", "1"] in events():
            raise KeyboardInterrupt
        time.sleep(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
        with pytest.raises(KeyboardInterrupt):
            queue(*(stand_in(name, needs, rest=rest) for name, needs, rest in jobs))
    assert events()[-1] == ["stopped", "b", "1"] and ["-", "b", "1"] not in events()
    assert os.path.exists("out/a/complete.json") and not os.path.exists("out/b/complete.json")
    open("again", "w").close()
    failed, found = queue(*(stand_in(name, needs, rest=rest) for name, needs, rest in jobs))
    assert not failed and ran(found) == ["a", "b", "b", "c"]


def test_ctrl_c_reaches_the_queue_alone(queue):
    """A terminal sends it to the whole foreground group; a run that gets it ends at once, without a checkpoint."""
    failed, _ = queue(stand_in("a", rest="open('group', 'w').write(str(os.getpgid(0)))"))
    with open("group") as f:
        assert not failed and int(f.read()) != os.getpgid(0)


# ---------------------------------------------------------------- experiments and recipes


@pytest.mark.parametrize("number", EXPERIMENTS)
def test_an_experiment_asks_a_question_and_each_claim_has_one_bound(number):
    experiment = EXPERIMENTS[number]
    asked, _ = harness.question(experiment)
    assert asked.endswith("?") and all(getattr(experiment, name) for name in ("SECTION", "SURVEY", "FIGURE", "SHOWN"))
    assert experiment.ARMS and experiment.CLAIMS and re.match(r"\d(\.\d)*", experiment.SECTION)
    for claim in experiment.CLAIMS:
        assert sum(bound is not None for bound in (claim.above, claim.below, claim.within)) == 1, claim.text
        assert claim.within is None or claim.within > 0
    texts = [claim.text for claim in experiment.CLAIMS]
    assert len(set(texts)) == len(texts)
    assert experiment.__name__.startswith(f"experiments.{number}_")


def test_the_survey_has_15_experiments_and_8_systems():
    assert list(EXPERIMENTS) == [f"{number:02}" for number in range(1, 16)]
    assert len(systems.CLAIMS) == len(systems.SYSTEMS) == 9  # TinyZero twice
    assert {name for name, *_ in systems.SYSTEMS.values()} <= set(systems.ARMS)
    with pytest.raises(SystemExit, match="no experiment '16'; known: 01_"):
        survey.load(["16"])


def differing(arms):
    """The settings in which arms differ. Where rows lie belongs to the rows, and what `after` leaves is the model."""
    found = []
    for one in arms:
        cfg = config_of(one)
        found.append(dataclasses.asdict(cfg) | {"script": type(cfg).__module__, "processes": one.processes})
    shared = set.intersection(*map(set, found)) - {"name", "data_path", "eval_path"}
    return {name for name in shared if len({repr(values[name]) for values in found}) > 1}


ONE_THING = {"02": "model", "03": "model", "04": "data", "05": "model", "07": "group_size", "09": "model",
             "10": "model", "11": "reward_parts", "12": "processes", "14": "data", "15": "model"}
SEVERAL = {  # what more than one of their arms' settings may differ in; 01 has one arm, 13 one for each of two tasks
    "06": {"script", "group_size", "prompts_per_step", "updates_per_step", "lr"},
    "08": {"data", "eval_data", "temperature", "num_steps", "lr_schedule", "model"},
}


@pytest.mark.parametrize("number", sorted(EXPERIMENTS.keys() - {"01", "13"}))
def test_the_arms_of_an_experiment_differ_in_one_thing_or_in_what_the_table_says(number):
    found = differing(EXPERIMENTS[number].ARMS.values())
    assert found == {ONE_THING[number]} if number in ONE_THING else found <= SEVERAL[number]


def test_two_arms_of_the_same_steps_see_the_same_number_of_responses():
    """6: 64 responses a step with and without groups; 8: 45 steps against three times 15."""
    sizes = [(cfg.prompts_per_step * cfg.group_size, cfg.num_steps, cfg.eval_every)
             for cfg in map(config_of, EXPERIMENTS["06"].ARMS.values())]
    assert sizes == [(64, 32, 4)] * 2
    steps = [config_of(one).num_steps for one in EXPERIMENTS["08"].ARMS.values()]
    assert steps == [45, 15, 15, 15]
    limits = [config_of(systems.ARMS["deepscaler"]), config_of(systems.stage2), config_of(systems.stage1)]
    assert [cfg.max_response_len for cfg in limits] == [80, 56, 36]


RECIPES = sorted(name[:-3] for name in os.listdir(os.path.join(ROOT, "experiments", "recipes")) if name.endswith(".py"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_experiments_loads_with_its_script_and_says_what_it_is(name):
    path = os.path.join(ROOT, "experiments", "recipes", f"{name}.py")
    script = SCRIPTS[harness.settings_of(arm(name))["_script"]]
    cfg, _ = load_config(script.Config, [path])
    assert cfg.name == (name if name != "start" else "sft")  # whose name is the start's
    if script is not sft:
        script.check_config(cfg, 1)
    with open(path) as f:
        assert re.match(r'"""\n?\w', f.read())
    used = {one.recipe for one in ARMS.values()} | {"arithmetic", "start"}  # what others inherit, what world.py calls
    assert name in used


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_trains_and_is_measured_on_rows_that_the_world_writes(name):
    cfg, script = config_of(ARMS[name]), SCRIPTS[harness.settings_of(ARMS[name])["_script"]]
    if script is not sft:
        script.check_config(cfg, ARMS[name].processes)
    for split in ("train", "test") if hasattr(cfg, "eval_path") else ():
        paths = cfg.data_path if split == "train" else cfg.eval_path
        for path in paths.values() if isinstance(paths, dict) else [paths]:
            task, level = re.fullmatch(rf"out/world/data/(\w+?)_(\w+)_{split}\.jsonl", path).groups()
            assert level in world.MIXES[task], path
    start = harness.start_of(ARMS[name])
    assert start in world.STARTS and world.STARTS[start][0] == re.match("[a-z]+", start)[0]


def test_no_prompt_is_longer_than_its_recipe_allows(tokenizer):
    longest = {(task, level): max(
        len(ids_of(tokenizer, text)) for row in world.rows_of(task, level, 200, "train") for name, text in row.items()
        if name.startswith("prompt_")) for task, mix in world.MIXES.items() for level in mix}
    for one in ARMS.values():
        cfg = config_of(one)
        if hasattr(cfg, "max_prompt_len"):
            paths = json.dumps([cfg.data_path, cfg.eval_path])
            for task, level in re.findall(r"data/([a-z]+)_(\d+)_", paths):
                assert longest[task, level] <= cfg.max_prompt_len, one.name
            assert cfg.max_prompt_len + cfg.max_response_len <= 512, one.name


# ---------------------------------------------------------------- the page

SMALL = {  # over the recipe's: what makes a step of a model of one layer take no time
    "prompts_per_step": 4, "group_size": 2, "max_response_len": 8, "eval_prompts": 2, "eval_samples": 1}


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory):
    """
    A folder with two steps of every arm, from starts of two steps: all that the survey's queue does, with real data,
    scripts and commands. Stand-ins are the models (one layer of width 16), a few rows a level, the engine (that of
    fake_engine.py), and one process instead of torchrun's two.
    """
    folder, server, commands = tmp_path_factory.mktemp("surveyed"), Server(), []

    def run(command, log=None):
        command = [word for word in command if not word.startswith("--nproc")]
        at = script_at(command)
        script, flags = os.path.basename(command[at]), command[at + 1:]
        small = {"sft.py": {}, "train_grpo.py": SMALL, "train_ppo.py": SMALL | {"critic_warmup_steps": 1}}[script]
        done = server.run(folder, script, [*flags, *(f"--{name}={value}" for name, value in small.items())])
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        commands.append(command)
        return done

    class Process:
        """What Popen returns, of a command that has already run."""

        def __init__(self, command, **_):
            self.returncode = 0
            if command[1:3] == ["-m", "experiments.world"]:
                with pytest.MonkeyPatch.context() as argv:
                    argv.setattr(sys, "argv", command[2:])
                    world.main()
            else:
                run(command)

        def poll(self):
            return self.returncode

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(harness, "subprocess", types.SimpleNamespace(Popen=Process, STDOUT=subprocess.STDOUT))
        patch.setattr(world, "subprocess", types.SimpleNamespace(run=lambda command, **_: run(command)))
        patch.setattr(world, "STARTS", {name: (task, kind, "tiny", 2)
                                        for name, (task, kind, *_) in world.STARTS.items()})
        patch.setattr(world, "TRACES", dict.fromkeys(world.TRACES, 60))
        for name, value in (("TRAIN", 40), ("TEST", 16), ("TAUGHT", 60)):
            patch.setattr(world, name, value)
        try:
            failed = harness.run_all(ARMS.values(), (0,), num_steps=2)
        finally:
            server.close()
        assert not failed
        for one in ARMS.values():  # a second seed, as good as another: it gives intervals
            shutil.copytree(harness.folder_of(one, 0), harness.folder_of(one, 1))
        yield folder, commands  # the sizes stay as they are: digests hold them


@pytest.fixture
def in_the_folder(surveyed, monkeypatch):
    monkeypatch.chdir(surveyed[0])
    return surveyed


def test_every_arm_runs_two_steps_from_the_model_that_it_is_to_start_from(in_the_folder):
    assert len(in_the_folder[1]) == len(ARMS) + len(USED)
    for one in ARMS.values():
        run = harness.Run(one, 0)
        settings = run.record["config"]["settings"]
        assert run.seconds >= 0 and os.path.exists(os.path.join(run.folder, "model", "config.json"))
        assert not [name for name in os.listdir(run.folder) if name.startswith("step_")]
        assert settings["model"] == (os.path.join(harness.folder_of(one.after, 0), "model") if one.after
                                     else f"out/world-{harness.start_of(one)}/model")
        if one.recipe == "sft_teacher":
            assert [row["step"] for row in run.rows] == [1, 2] and not run["response_len"]
            continue
        assert [row["step"] for row in run.rows] == [0, 1, 2] and run.steps("reward") == [1, 2]
        assert len(run["reward"]) == 2 and len(run.eval()) == 2 and run.eval("nothing") == run["nothing"] == []
        for experiment in SUITE.values():  # what a picture shows is there
            if one in experiment.ARMS.values():
                for column in getattr(experiment, "SHOWN", ()):
                    assert run[column] or run.eval(column) or column.startswith("source/"), (one.name, column)


@pytest.fixture(scope="module")
def page(surveyed):
    """The page of two seeds, as (text, folder)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(surveyed[0])
        return survey.write_page(survey.load([]), (0, 1), "survey.md"), surveyed[0]


def test_the_page_has_a_row_a_section_and_a_picture_of_every_experiment(page):
    text, folder = page
    assert text == (folder / "survey.md").read_text() and "{" not in text.partition("## 01.")[0]
    rows = dict(re.findall(r"^\| \[(\d\d)\]\((#[\w-]+)\) \| .+\? \| .+ \| \*\*.+\*\* .+ \| .+ \| \d+ \|$", text,
                           re.MULTILINE))
    assert list(rows) == list(EXPERIMENTS)
    headings = re.findall(r"^## (\d\d\. .+)$", text, re.MULTILINE)
    anchors = ["#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert anchors == list(rows.values())  # as GitHub makes them
    for number, (name, experiment) in zip(EXPERIMENTS, survey.load([]), strict=True):
        part = text.partition(f"## {number}. ")[2].partition("\n## ")[0]
        shown = len(experiment.CLAIMS) + len(getattr(experiment, "ADDED", ()))
        assert part.count("\n- ") == shown and f"](survey/{name}.png)" in part, name
        assert (folder / "survey" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert all(f"\n{arm_name[:16]:16}" in part for arm_name in experiment.ARMS), name
    assert len(list((folder / "survey").iterdir())) == 15
    claims = sum(len(experiment.CLAIMS) for experiment in EXPERIMENTS.values())
    assert f"The {claims} claims share runs" in " ".join(text.split()) and "**one seed**" not in text


def test_the_page_has_a_table_of_the_systems_with_what_each_gained(page):
    text, _ = page
    table = text.partition("## The eight systems in miniature")[2].partition("\n## 01.")[0]
    rows = re.findall(r"^\| (.+?) \| .+ \| .+ \| ([\d, ]+) → ([\d, ]+) \| (\S+) \[.+\] \| (.+) \|$", table,
                      re.MULTILINE)
    assert [name for name, *_ in rows] == list(systems.SYSTEMS)
    for name, before, after, gain, learns in rows:
        assert len(before.split(", ")) == len(after.split(", ")) == 2, name
        assert float(gain) == float(after.split(", ")[0]) - float(before.split(", ")[0]), name
        assert learns.startswith("no") == (float(gain) < 5), name  # of two equal seeds the interval is the gain itself


def test_a_table_has_a_line_for_each_arm_with_what_its_runs_measured(in_the_folder):
    lines = harness.table(EXPERIMENTS["11"], (0, 1)).splitlines()
    assert [line[:16].strip() for line in lines[1:]] == list(EXPERIMENTS["11"].ARMS)
    assert all(re.search(r"\d+ -> \d+, \d+ +\d+ -> \d+ +100\.0 +\d+\.\d +\d+$", line) for line in lines[1:]), lines


def test_every_run_with_responses_leaves_its_columns_as_a_csv(in_the_folder):
    survey.write_logs(ARMS.values(), (0, 1), "logs")
    wanted = {one.name: one for one in ARMS.values() if one.recipe != "sft_teacher"}
    assert sorted(os.listdir("logs")) == sorted(f"{harness.run_name(one, seed).removeprefix('survey-')}.csv"
                                                for one in wanted.values() for seed in (0, 1))
    for one in wanted.values():
        with open(f"logs/{harness.run_name(one, 0).removeprefix('survey-')}.csv") as f:
            head, *rows = csv.reader(f)
        assert tuple(head[:len(survey.COLUMNS)]) == survey.COLUMNS and [row[0] for row in rows] == ["0", "1", "2"]
        assert all(len(row) == len(head) for row in rows)
        run, length = harness.Run(one, 0), head.index("response_len")
        assert [float(row[length]) for row in rows[1:]] == pytest.approx(run["response_len"], rel=1e-3)
        assert rows[1][head.index("eval_correct")] == "" != rows[2][head.index("eval_correct")]


def test_a_run_of_two_steps_is_not_taken_for_a_whole_one(in_the_folder, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    with pytest.raises(SystemExit, match="made with another recipe.*: out/survey-knights-s0"):
        harness.main("experiments.01_format_errors")


def test_an_experiment_whose_runs_are_there_prints_question_table_and_verdicts(in_the_folder, monkeypatch, capsys):
    monkeypatch.setattr(harness, "run_all", lambda arms, seeds: [])
    monkeypatch.setattr(harness, "seeds_wanted", lambda: (0, 1))
    experiment = importlib.import_module("experiments.04_reflection")
    harness.main("experiments.04_reflection")
    said = capsys.readouterr().out
    assert said.startswith(harness.question(experiment)[0])
    assert all(f"\n{claim.text}: " in said for claim in experiment.CLAIMS) and said.count("held-out %") == 1
