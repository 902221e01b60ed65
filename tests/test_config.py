"""python -m pytest tests/test_config.py"""

import contextlib
import dataclasses
from typing import Literal

import pytest

from onebox import config
from onebox.config import (ConfigError, NonNegative, OrFunction, Positive, Share, SizeOrAuto, check_ranges, literal,
                           load_config, table)
from tools.help import comments, describe


@dataclasses.dataclass(frozen=True)
class Config:
    group_size: int = 8                  # samples of each prompt
    lr: float = 1e-6                     # peak
    adv_std: bool = True                 # divide by the std
    kl_in: Literal["none", "loss_k3"] = "none"
    data: str | dict = "countdown"
    name: str = "run"
    reward: OrFunction[str | dict | tuple] = "math"
    parts: dict | None = None
    remat: Literal[True, False, "selective"] = True
    stop: tuple = ()


def load(*argv):
    return load_config(Config, list(argv))


def recipe(tmp_path, text):
    file = tmp_path / "r.py"
    file.write_text(text)
    return str(file)


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    cfg, origin = load(recipe(tmp_path, "lr = 3e-6\ngroup_size = 4\n"), "--lr", "5e-6")
    assert (cfg.lr, cfg.group_size, cfg.adv_std) == (5e-6, 4, True)
    assert origin["lr"] == "command line" and origin["group_size"].endswith("r.py") and "adv_std" not in origin
    assert "# command line; default 1e-06" in table(cfg, origin)


@pytest.mark.parametrize("argv, value", [
    (["--lr", "1"], {"lr": 1.0}),
    (["--group_size", "1e1"], {"group_size": 10}),
    (["--adv-std=False"], {"adv_std": False}),
    (["--adv_std"], {"adv_std": True}),
    (["--name", "7"], {"name": "7"}),
    (["--stop", "['</answer>']"], {"stop": ("</answer>",)}),
    (["--stop", r"\n\n"], {"stop": ("\n\n",)}),
    (["--stop", r"\nabla"], {"stop": (r"\nabla",)}),
    (["--adv_std", "false"], {"adv_std": False}),
    (["--stop", "</answer>"], {"stop": ("</answer>",)}),
    (["--stop", "42"], {"stop": ("42",)}),
    (["--stop="], {"stop": ()}),
    (["--data", "{'a': 0.5, 'b': 0.5}"], {"data": {"a": 0.5, "b": 0.5}}),
    (["--lr=-1e-3"], {"lr": -1e-3}),
])
def test_values_are_cast_where_nothing_is_lost(argv, value):
    cfg, _ = load(*argv)
    for name, want in value.items():
        assert getattr(cfg, name) == want and type(getattr(cfg, name)) is type(want)


@pytest.mark.parametrize("argv, message", [
    (["--grop_size", "4"], "did you mean 'group_size'"),
    (["--group_size", "4.5"], "group_size wants int, got 4.5"),
    (["--group_size", "True"], "group_size wants int, got True"),
    (["--lr", "fast"], "lr wants float, got 'fast'"),
    (["--lr", "1e999"], "finite"),
    (["--kl_in", "k3"], "must be one of 'none', 'loss_k3'"),
    (["recipes/none.py"], "is not there"),
    (["--lr", "1e-6", "recipe.py"], "expected --name value"),
    (["--name", "--lr", "1e-6"], "--name wants a value"),
    (["--remat", "1"], "must be one of True, False, 'selective'; got 1"),
])
def test_a_bad_flag_is_one_line_that_names_it(argv, message):
    with pytest.raises(ConfigError) as error:
        load(*argv)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, near", [
    ("dmeo.py", "demo.py"), ("demo", "demo.py"), ("tinyzero.py", "tinyzero_grpo.py"), ("xyz.py", None),
    ("ab.py", None)])
def test_a_misspelled_recipe_names_the_one_with_a_near_name_and_no_other(name, near, tmp_path):
    for file in ("demo.py", "tinyzero_grpo.py", "cd.py"):
        (tmp_path / file).write_text("lr = 1e-6\n")
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / name))
    hint = f"; did you mean {str(tmp_path / near)!r}?" if near else ""
    assert str(error.value) == f"error: recipe {str(tmp_path / name)!r} is not there{hint}"


@pytest.mark.parametrize("text, message", [
    ("grop_size = 4\n", "did you mean 'group_size'"),
    ("lr = 'fast'\n", "lr wants float"),
    ("_script = 'train_ppo.py'\n", "is a recipe for train_ppo.py, not test_config.py"),
    ("lr = = 3\n", "line 1: not Python"),
    ("lr = undefined_name\n", "undefined_name"),
    ("def mine(sample): pass\nlr = mine\n", "lr is set to the function mine"),
    ("reward = {'math': lambda sample: 1}\n", "a function inside a setting needs a name: def my_reward(sample)"),
    ("LR = 3e-6\n", "did you mean 'lr'"),
    ("GRUP_SIZE = 4\n", "did you mean 'group_size'"),
    ("class reward: pass\n", "reward is set to the class reward"),
    ("parts = {'own': len}\n", "parts is set to the function len"),
    ("name = str\n", "name is set to the class str"),
    ("import json as reward\n", "reward is set to the module json"),
    ("half = 0.5\n",
     "no setting 'half' (--help lists them); a name of the recipe's own begins with an underscore: _half"),
    ("lr: 3e-6\n", "line 1: `lr: 3e-06` sets nothing: write `name = value`"),
    ("lr = 1e-6\nlr == 3e-6\n", "line 2: `lr == 3e-06`"),
    ('{"lr": 3e-6,\n "group_size": 4}\n', "line 1: `{'lr': 3e-06, 'group_size': 4}` sets nothing"),
    ("3e-6\n", "sets nothing"),
    ("", "sets nothing"),
    ("# lr = 3e-6\n", "sets nothing"),
    ("if __name__ == '__main__':\n    lr = 3e-6\n", "sets nothing"),
    ("lr = 3e-6\nimport sys\nsys.exit()\n", "ends the process itself"),
    ("raise ValueError('a\\nb')\n", "ValueError: a b"),
    ("lr = 10**400\n", "finite"),
    ("import numpy as _np\nlr = _np.array([1e-6])\n", "lr wants float, got array([1.e-06])"),
    ("import numpy as _np\nlr = _np.eye(2)\n", "lr wants float, got array([[1., 0.], [0., 1.]])"),
    ("stop = {'</answer>'}\n", "stop wants tuple"),
    ("import numpy as _np\nlr = _np.float64('nan')\n", "finite"),
])
def test_a_bad_recipe_is_one_line_that_names_the_file(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(recipe(tmp_path, text))
    assert message in str(error.value) and "r.py" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text, value", [
    ("def mine(sample): return 1\nreward = mine\n", "r.py:mine"),
    ("def _mine(sample, equal): return 1\nreward = _mine\n", "r.py:_mine"),
    ("def reward(sample): return 1\n", "r.py:reward"),
    ("reward = lambda sample: 1\n", "r.py:reward"),
    ("import functools\ndef mine(sample, n): return n\nreward = functools.partial(mine, n=1)\n", "r.py:reward"),
    ("def mine(sample): return 1\nreward = {'math': mine, 'kk': 'logic_rl_kk'}\n",
     {"math": "r.py:mine", "kk": "logic_rl_kk"}),
    ("def mine(sample): return 1\nreward = [('math', 1.0), (mine, 0.5)]\n", (("math", 1.0), ("r.py:mine", 0.5))),
])
def test_a_function_of_a_recipe_becomes_the_name_by_which_any_process_finds_it(tmp_path, text, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(recipe(tmp_path, text))[0].reward == value
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(tmp_path / "r.py") in str(load(recipe(tmp_path, text))[0].reward)


def test_functions_classes_modules_and_names_in_capitals_are_the_recipes_own(tmp_path):
    cfg, origin = load(recipe(tmp_path, "import re\nfrom math import sqrt\nWORDS = {'a'}\nclass Helper: pass\n"
                              "def helper(x): return x\nlr = sqrt(4)\n"))
    assert cfg.lr == 2 and list(origin) == ["lr"]


def test_a_recipe_may_compute_and_inherit_and_hide_names(tmp_path, monkeypatch):
    (tmp_path / "stage_one.py").write_text("lr = 1e-6\ngroup_size = 16\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg, _ = load(recipe(tmp_path, "from stage_one import *\nimport math\n_half = 0.5\nlr = lr * _half\n"
                         "def _f(): pass\nadv_std: bool = False\n"))
    assert (cfg.lr, cfg.group_size, cfg.adv_std) == (5e-7, 16, False)


@pytest.mark.parametrize("line, value", [
    ("lr = np.float64(2e-6)", 2e-6),
    ("lr = np.logspace(-6, -5, 3)[0]", 1e-6),
    ("lr = np.array(0.25)", 0.25),
    ("lr = np.int64(1)", 1.0),
    ("group_size = np.int32(4)", 4),
    ("group_size = np.float32(4)", 4),
    ("adv_std = np.bool_(False)", False),
    ("name = np.str_('a')", "a"),
    ("name = pathlib.Path('a') / 'b'", "a/b"),
    ("data = {'x': np.float32(0.5)}", {"x": 0.5}),
    ("data = {'x': pathlib.Path('y')}", {"x": "y"}),
    ("data = collections.OrderedDict(x=1)", {"x": 1}),
    ("stop = [np.str_('a')]", ("a",)),
    ("kl_in = enum.Enum('E', {'A': 'loss_k3'}).A", "loss_k3"),
])
def test_a_plain_value_in_another_dress_is_that_value(line, value, tmp_path):
    cfg, _ = load(recipe(tmp_path, f"import numpy as np, pathlib, collections, enum\n{line}\n"))
    found = getattr(cfg, line.split()[0])
    assert found == value and type(found) is type(value)
    assert not isinstance(value, dict) or [type(one) for one in found.values()] == [type(one) for one in value.values()]


@pytest.mark.parametrize(
    "raw", [b"\xef\xbb\xbflr = 3e-6\r\n", "# coding: latin-1\n# gr\xf6\xdfe\nlr = 3e-6\n".encode("latin-1")])
def test_a_recipe_is_read_in_the_encoding_that_python_reads_it_in(raw, tmp_path):
    (tmp_path / "r.py").write_bytes(raw)
    assert load(str(tmp_path / "r.py"))[0].lr == 3e-6


def test_a_dict_may_be_written_as_python_or_as_json():
    assert literal("{'enable_thinking': False}") == literal('{"enable_thinking": false}') == {"enable_thinking": False}
    assert literal("{broken") == "{broken"


def test_help_lists_every_setting_with_its_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        load("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text == describe(Config, "test_config.py") + "\n"
    assert all(f"--{f.name}" in text for f in dataclasses.fields(Config))
    assert comments(Config)["group_size"] == "samples of each prompt" and "samples of each prompt" in text


def test_help_without_tools_still_lists_every_setting(capsys, monkeypatch):
    monkeypatch.setattr(config, "has_tools", lambda: False)
    with pytest.raises(SystemExit) as stop:
        load("--help")
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and [line.split()[0] for line in lines] == [f.name for f in dataclasses.fields(Config)]


@dataclasses.dataclass(frozen=True)
class Ranged(Config):
    save_every: NonNegative[int] = 0     # 0 = never
    decay: Share[float] = 0.5
    num_steps: Positive[int] = 1


@pytest.mark.parametrize("values, message", [
    ({"save_every": -1}, "save_every = -1 must not be negative"),
    ({"num_steps": 0}, "num_steps = 0 must be greater than 0"),
    ({"decay": 1.5}, "decay = 1.5 must lie in 0 ... 1"), ({"decay": 1.0, "save_every": 0, "num_steps": 9}, "")])
def test_a_value_outside_the_range_of_its_type_is_refused(values, message):
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        check_ranges(Ranged(**values))


def test_inherited_settings_come_after_the_scripts_own_with_comments(tmp_path):
    text = describe(Ranged, "test_config.py")
    assert text.index("--save_every") < text.index("of every run:") < text.index("--group_size")
    assert "0 = never" in text and "samples of each prompt" in text
    cfg, origin = load_config(Ranged, ["--save_every", "1e1"])
    assert cfg.save_every == 10 and table(cfg, origin, only=origin).splitlines() == [
        f"{'save_every':>22} = {10:<28}  # command line; default 0"]


def test_every_setting_of_every_script_has_a_comment_or_says_it_by_its_name():
    import eval as evaluation
    import sft
    import train_grpo

    for script in (train_grpo, sft, evaluation):
        silent = {f.name for f in dataclasses.fields(script.Config)} - set(comments(script.Config))
        assert len(silent) <= 12, silent


@dataclasses.dataclass(frozen=True)
class Auto:
    compile: Literal["auto", True, False] = "auto"
    max_tokens_per_gpu: SizeOrAuto = "auto"


@pytest.mark.parametrize("argv, values", [
    ([], ("auto", "auto")), (["--max_tokens_per_gpu", "1e4"], ("auto", 10000)), (["--compile"], (True, "auto")),
    (["--compile", "false", "--max_tokens_per_gpu", "7"], (False, 7)),
    (["--compile", "auto", "--max_tokens_per_gpu=auto"], ("auto", "auto"))])
def test_a_setting_may_be_auto_or_a_plain_value(argv, values):
    cfg, _ = load_config(Auto, argv)
    check_ranges(cfg)
    assert (cfg.compile, cfg.max_tokens_per_gpu) == values
    assert [type(one) for one in (cfg.compile, cfg.max_tokens_per_gpu)] == [type(one) for one in values]


@pytest.mark.parametrize("argv, message", [
    (["--max_tokens_per_gpu", "0"], 'max_tokens_per_gpu = 0 must be "auto" or above 0'),
    (["--max_tokens_per_gpu", "-1"], 'max_tokens_per_gpu = -1 must be "auto" or above 0'),
    (["--max_tokens_per_gpu", "foo"], 'max_tokens_per_gpu = foo must be "auto" or above 0'),
    (["--max_tokens_per_gpu", "4.5"], 'max_tokens_per_gpu = 4.5 must be "auto" or above 0'),
    (["--max_tokens_per_gpu", "True"], "max_tokens_per_gpu wants int or str, got True"),
    (["--compile", "yes"], "compile must be one of 'auto', True, False; got 'yes'")])
def test_what_is_neither_auto_nor_a_plain_value_is_refused(argv, message):
    with pytest.raises(ConfigError) as error:
        check_ranges(load_config(Auto, argv)[0])
    assert message in str(error.value) and "\n" not in str(error.value)
