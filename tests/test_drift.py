"""
python -m pytest tests/test_drift.py: what has one name in train_grpo.py and train_ppo.py is one thing.

Whoever lets one of them differ on purpose gives it another name, or an entry here with the reason.
"""

import dataclasses
import inspect
import pathlib
import warnings

import train_grpo
import train_ppo
from onebox.config import comments

DIFFERENT_SETTINGS = {"group_size"}  # GRPO needs a group, PPO does not
DIFFERENT_FUNCTIONS = {"main", "check_config"}  # each checks its own settings; the common lines are compared below


def own_functions(module):
    return {name: f for name, f in inspect.getmembers(module, inspect.isfunction)
            if f.__module__ == module.__name__ and name not in DIFFERENT_FUNCTIONS}


def test_functions_with_the_same_name_are_the_same():
    grpo, ppo = own_functions(train_grpo), own_functions(train_ppo)
    same = grpo.keys() & ppo.keys()
    assert same >= {"token_weights", "policy_loss", "kl_penalty", "mismatch_weights", "learning_rate"}
    for name in same:
        assert inspect.getsource(grpo[name]) == inspect.getsource(ppo[name]), name


def test_settings_with_the_same_name_have_the_same_type_default_and_meaning():
    grpo, ppo = ({f.name: (f.type, f.default) for f in dataclasses.fields(m.Config)} for m in (train_grpo, train_ppo))
    notes = comments(train_grpo.Config), comments(train_ppo.Config)
    for name in (grpo.keys() & ppo.keys()) - DIFFERENT_SETTINGS:
        assert grpo[name] == ppo[name] and notes[0].get(name) == notes[1].get(name), name


def test_ppo_lacks_only_the_settings_that_make_sense_in_groups():
    grpo, ppo = ({f.name for f in dataclasses.fields(m.Config)} for m in (train_grpo, train_ppo))
    assert grpo - ppo == {"adv_std", "adv_eps", "dynamic_sampling"}


def test_the_settings_come_in_the_same_order():
    grpo, ppo = ([f.name for f in dataclasses.fields(m.Config)] for m in (train_grpo, train_ppo))
    assert [n for n in grpo if n in ppo] == [n for n in ppo if n in grpo]


def test_ppo_refuses_every_setting_that_grpo_refuses():
    grpo, ppo = ([line.strip() for line in inspect.getsource(m.check_config).splitlines()] for m in (train_grpo, train_ppo))
    refusals = [line for line in grpo if line.startswith(("if ", "raise ConfigError", "f\""))]
    assert len(refusals) >= 14 and all(line in ppo for line in refusals)
    both = {f.name for f in dataclasses.fields(train_grpo.Config)} & {f.name for f in dataclasses.fields(train_ppo.Config)}
    named = {name for name in both if f'"{name}"' in inspect.getsource(train_grpo.check_config)}
    assert named == {name for name in both if f'"{name}"' in inspect.getsource(train_ppo.check_config)}


def test_both_loops_have_the_same_five_stages():
    for module in (train_grpo, train_ppo):
        lines = inspect.getsource(module.main).splitlines()
        assert [line.strip()[2:4] for line in lines if line.strip().startswith("# ") and line.strip()[3:4] == ")"] == \
            ["1)", "2)", "3)", "4)", "5)"], module.__name__


def test_no_file_has_an_invalid_escape():
    """From Python 3.12 on, each is a SyntaxWarning on the user's console; up to 3.11 a hidden DeprecationWarning."""
    root = pathlib.Path(train_grpo.__file__).parent
    files = [file for folder in (".", "recipes", "tests", "bench") for file in (root / folder).glob("*.py")]
    assert len(files) > 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files:
            compile(file.read_text(), file, "exec", dont_inherit=True)
