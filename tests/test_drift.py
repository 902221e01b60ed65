"""
python -m pytest tests/test_drift.py: what has one name in train_grpo.py and train_ppo.py is one thing.

Whoever lets one of them differ on purpose gives it another name, or an entry here with the reason. A setting of one
script alone needs no entry, but what GRPO has PPO has too, unless it is about groups.
"""

import dataclasses
import inspect
import pathlib
import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import sft
import train_grpo
import train_ppo
from onebox.config import ConfigError
from tools.help import comments

DIFFERENT_SETTINGS = {"group_size"}  # GRPO needs a group, PPO does not
DIFFERENT_FUNCTIONS = {
    "main",
    "check_config",  # each checks its own settings
    "token_loss",    # GRPO has a penalty of the reward in the token's advantage, PPO in the token's reward
}
ONLY_IN_GROUPS = {"adv_std", "adv_eps"}


def own_functions(module):
    return {name: f for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__}


def settings_of(module):
    """{name: (type, default, comment)} in the order of the file."""
    notes = comments(module.Config)
    return {f.name: (f.type, f.default, notes.get(f.name)) for f in dataclasses.fields(module.Config)}


def stages(module):
    """The comments `# 1) ...` of the loop."""
    return re.findall(r"^ +# (\d\) .*)$", inspect.getsource(module.main), re.M)


def test_functions_with_the_same_name_are_the_same():
    grpo, ppo = own_functions(train_grpo), own_functions(train_ppo)
    same = (grpo.keys() & ppo.keys()) - DIFFERENT_FUNCTIONS
    assert same >= {"token_weights", "policy_loss", "kl_penalty", "mismatch_weights", "sample_groups", "in_loss_mask"}
    for name in same:
        assert inspect.getsource(grpo[name]) == inspect.getsource(ppo[name]), name
    assert grpo.keys() <= ppo.keys()


def test_token_loss_differs_only_in_where_the_reward_penalty_stands():
    generator = torch.Generator().manual_seed(0)
    old, ref, rollout, advantages, moves, entropy = torch.randn(6, 1000, generator=generator)
    for kl_in in ("none", "reward_k1", "loss_k2", "loss_k3"):
        settings = dict(kl_in=kl_in, kl_coef=0.5, entropy_coef=0.1, dual_clip=3.0)
        batch = SimpleNamespace(old_logprobs=old, ref_logprobs=ref, rollout_logprobs=rollout, advantages=advantages)
        grpo = train_grpo.token_loss(old + moves, entropy, batch, train_grpo.Config(**settings))
        if kl_in == "reward_k1":  # which PPO has in the advantages before they come here
            batch.advantages = advantages - 0.5 * (old - ref)
        ppo = train_ppo.token_loss(old + moves, entropy, batch, train_ppo.Config(**settings))
        assert torch.equal(grpo[0], ppo[0]) and torch.equal(grpo[1], ppo[1]) and grpo[1].any(), kl_in


def test_what_both_scripts_import_is_one_thing():
    for name in vars(train_grpo).keys() & vars(train_ppo).keys():
        thing = getattr(train_grpo, name)
        if not name.startswith("__") and getattr(thing, "__module__", "") != train_grpo.__name__:
            assert getattr(train_ppo, name) is thing, name
    assert sft.learning_rate is train_grpo.learning_rate  # a schedule of its own has drifted once


def test_settings_of_one_name_have_one_type_default_and_comment():
    grpo, ppo = settings_of(train_grpo), settings_of(train_ppo)
    for name in (grpo.keys() & ppo.keys()) - DIFFERENT_SETTINGS:
        assert grpo[name] == ppo[name], name


def test_ppo_lacks_only_the_settings_that_make_sense_in_groups():
    assert settings_of(train_grpo).keys() - settings_of(train_ppo).keys() == ONLY_IN_GROUPS


def test_the_settings_come_in_the_same_order():
    grpo, ppo = list(settings_of(train_grpo)), list(settings_of(train_ppo))
    assert [n for n in grpo if n in ppo] == [n for n in ppo if n in grpo]


@pytest.mark.parametrize("setting", [
    dict(top_p=0.9), dict(temperature=0.0), dict(prompts_per_step=9, group_size=3), dict(tensor_parallel=3),
    dict(shard_size=3),
    dict(updates_per_step=7), dict(epochs_per_step=0), dict(repetition_stop=1), dict(stop=("",)), dict(lr=-1.0),
    dict(dual_clip=0.5), dict(dynamic_sampling=2, group_size=1), dict(compile=True, checkpointing="selective"),
    dict(finish_share=0.0), dict(finish_share=0.5, dynamic_sampling=1),
], ids=lambda setting: "-".join(setting))
def test_both_scripts_refuse_the_same_in_the_same_words(setting):
    said = []
    for module in (train_grpo, train_ppo):
        with pytest.raises(ConfigError) as error:
            module.check_config(module.Config(**setting), world=2)
        said.append(str(error.value))
    assert said[0] == said[1] and list(setting)[0] in said[0] and "\n" not in said[0]


def test_both_loops_have_the_same_six_stages():
    grpo, ppo = stages(train_grpo), stages(train_ppo)
    assert [stage[:2] for stage in grpo] == ["1)", "2)", "3)", "4)", "5)", "6)"]
    assert grpo == ppo


def test_no_file_has_an_invalid_escape():
    """From Python 3.12 on, each is a SyntaxWarning on the user's console; up to 3.11 a hidden DeprecationWarning."""
    root = pathlib.Path(train_grpo.__file__).parent
    folders = (".", "onebox", "tasks", "tools", "tools/report", "recipes", "experiments", "tests", "bench")
    files = [file for folder in folders for file in (root / folder).glob("*.py")]
    assert len(files) > 80
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files:
            compile(file.read_text(), file, "exec", dont_inherit=True)
