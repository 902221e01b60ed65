"""python -m pytest tests/test_recipes.py: every recipe's settings, its --check, and one real step of it on the CPU."""

import dataclasses
import json
import os
import re
import sys

import pytest
from conftest import LOGPROB_MEAN, ROOT, run_script
from recipe_worker import recipes_of, save_byte_model, save_rows, where_rows_are

from tools import check
from tools.memory import longest
import data
import rewards
import train_grpo
import train_ppo
from onebox.config import ConfigError, load_config, read_recipe
from tasks import countdown

SCRIPTS = {"train_grpo.py": train_grpo, "train_ppo.py": train_ppo}
RECIPES = {path.stem: (path, script) for script in SCRIPTS for path in recipes_of(script)}

# Some published numbers a second time, where settings hang together; the comment behind a value names its origin.
PUBLISHED = {
    "tinyzero_ppo": {"prompts_per_step": 256, "group_size": 1, "updates_per_step": 4, "lam": 1.0, "kl_in": "reward_k1",
                     "kl_coef": 0.001, "lr": 1e-6, "critic_lr": 1e-5, "value_clip": 0.5, "whiten": True},
    "tinyzero_grpo": {"prompts_per_step": 8, "group_size": 24, "adv_std": True, "kl_in": "loss_k3", "kl_coef": 0.001},
    "simplerl_ppo": {"prompts_per_step": 1024, "group_size": 8, "updates_per_step": 64, "lam": 0.95, "temperature": 0.6,
                     "kl_coef": 0.01, "lr": 5e-7, "critic_lr": 9e-6, "loss_agg": "seq_mean", "lr_min_ratio": 0.1},
    "open_r1_math7b": {"temperature": 0.9, "kl_in": "loss_k3", "kl_coef": 0.04, "adv_eps": 1e-4, "group_size": 7},
    "logic_rl_stage3": {"data": "kk:5", "group_size": 16, "lr": 4e-7, "lr_min_ratio": 0.5, "temperature": 0.9},
    "oat_zero_countdown": {"prompts_per_step": 128, "group_size": 8, "updates_per_step": 8, "loss_agg": "seq_mean"},
    "dr_grpo_r1": {"adv_std": False, "loss_agg": "constant", "max_response_len": 3000, "stop": ("</answer>",)},
    "demystify_ppo": {"epochs_per_step": 2, "gammas": {"task": 1.0, "repetition": 0.99}, "repetition_ngram": 40},
    "unsloth_gsm8k": {"num_steps": 250, "lr": 5e-6, "adam_beta2": 0.99, "grad_clip": 0.1, "warmup_steps": 25},
    "deepscaler_24k": {"group_size": 16, "max_response_len": 24576, "model": "out/deepscaler_16k/model"},
}


def load(name):
    path, script = RECIPES[name]
    return load_config(SCRIPTS[script].Config, [str(path)])[0], SCRIPTS[script]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with model/ (byte-level tokenizer) and rows/ (ten problems of every source)."""
    folder = tmp_path_factory.mktemp("recipes")
    save_byte_model(folder / "model")
    save_rows(folder / "rows")
    return folder


def run_check(name, world, monkeypatch, *flags):
    cfg, script = load(name)
    monkeypatch.chdir(world)
    rows = [] if "--data_path" in flags else where_rows_are(cfg, str(world / "rows"))
    monkeypatch.setattr(sys, "argv", [script.__file__, str(RECIPES[name][0]), "--check", "--max_prompt_len", "4000",
                                      "--model", str(world / "model"), *rows, *flags])
    script.main()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_numbers(name):
    cfg, _ = load(name)
    assert {setting: getattr(cfg, setting) for setting in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_origin_and_fits_the_gpus_of_its_launch(name):
    cfg, script = load(name)  # names and types of all its values are checked on the way
    path, script_name = RECIPES[name]
    assert cfg.name == name
    doc = path.read_text().split('"""')[1]
    for word in ("Source ", "Launch ", "torchrun ", f"recipes/{name}.py", script_name):
        assert word in doc, word
    assert name == "mixture_example" or ("Published" in doc and "Changed " in doc)
    gpus = int(re.search(r"nproc-per-node=(\d+)", doc)[1]) * int((re.search(r"nnodes=(\d+)", doc) or [0, 1])[1])
    script.check_config(cfg, gpus)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "mixture_example"])
def test_every_setting_of_a_published_recipe_names_its_origin(name):
    for line in RECIPES[name][0].read_text().split('"""')[2].splitlines():
        if re.match(r"[a-z]\w* = .*[^,]$", line) and not line.startswith(("name = ", "clip_high = ")):
            assert "  # " in line, line


def test_a_stage_inherits_the_one_before():
    for later, earlier, differs in (
            ("logic_rl_stage2", "logic_rl_stage1", {"name", "model", "data", "eval_data", "num_steps", "group_size",
                                                    "temperature", "lr"}),
            ("logic_rl_stage3", "logic_rl_stage2", {"name", "model", "num_steps", "group_size", "temperature",
                                                    "lr_schedule",
                                                    "lr_min_ratio"}),
            ("deepscaler_16k", "deepscaler_8k", {"name", "model", "num_steps", "group_size", "max_response_len"}),
            ("deepscaler_24k", "deepscaler_16k", {"name", "model", "num_steps", "max_response_len"}),
            ("simplerl_ppo_32gpu", "simplerl_ppo", {"name"})):
        new, old = (read_recipe(str(RECIPES[name][0]), RECIPES[name][1]) for name in (later, earlier))
        assert set(new) >= set(old) and {k for k in new if new[k] != old.get(k)} == differs, later
    assert load("logic_rl_stage2")[0].model == f"out/{load('logic_rl_stage1')[0].name}/model"


def test_the_longest_sequence_of_a_recipe_fits_one_micro_batch():
    for name in RECIPES:
        cfg, _ = load(name)  # "auto" is no less than the longest sequence
        assert cfg.max_tokens_per_gpu == "auto" or longest(cfg) < cfg.max_tokens_per_gpu, name


def test_the_table_of_systems_lists_every_recipe():
    with open(os.path.join(ROOT, "docs/systems.md")) as f:
        text = f.read()
    for name in RECIPES:
        assert f"`{name}`" in text, name


# ---------------------------------------------------------------- --check


@pytest.mark.parametrize("name", RECIPES)
def test_check_passes_on_sample_rows_and_golds_score_the_full_mark(name, world, monkeypatch, capsys):
    run_check(name, world, monkeypatch)
    out = capsys.readouterr().out
    cfg, _ = load(name)
    assert "settings   ok" in out and "tokenizer  ok" in out and out.rstrip().endswith("check passed")
    assert out.count(": the full mark") == (len(cfg.data) if isinstance(cfg.data, dict) else 1)
    assert not re.search(r"\{(nums|numbers|target|quiz|problem|question)\}", out)
    for mark in re.findall(r"^reward +(\w+) ([\d.]+) = ", out, flags=re.MULTILINE):
        assert float(mark[1]) == full_mark(mark[0])


def test_check_without_a_tokenizer_says_so_and_goes_on(world, monkeypatch, capsys):
    run_check("logic_rl_stage2", world, monkeypatch, "--model", "out/logic_rl_stage1/model")
    out = capsys.readouterr().out
    assert "NOT CHECKED, nor any prompt length" in out and "is not there" in out and "check passed" in out


@pytest.mark.parametrize("name, flags, message", [
    # open-r1's reward wants <think> in the response, this template prefills it: the format part is out of reach
    ("open_r1_math7b", ["--template", "dr_grpo_r1"], "a perfect response scores 1 with reward 'open_r1_math', not 2"),
    # and the other way round: TinyZero's reward takes a second <think> for a format error
    ("tinyzero_grpo", ["--template", "chat"], "scores 0 with reward 'tinyzero_countdown', not 1"),
    ("unsloth_gsm8k", ["--reward", "logic_rl_kk"], "reward 'logic_rl_kk' does not fit"),
    ("unsloth_gsm8k", ["--template", "unsloth_gsm8"], "did you mean 'unsloth_gsm8k'"),
    ("unsloth_gsm8k", ["--group_size", "0"], "group_size"),
])
def test_what_does_not_belong_together_fails_the_check_in_one_line(name, flags, message, world, monkeypatch):
    with pytest.raises(ConfigError) as error:
        run_check(name, world, monkeypatch, *flags)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_over_the_limit_fails_the_check(world, monkeypatch):
    with pytest.raises(ConfigError, match="prompt of more than 100 tokens"):
        run_check("unsloth_gsm8k", world, monkeypatch, "--max_prompt_len", "100")


def test_check_as_a_command_ends_with_0_or_with_1_and_one_line(world, tmp_path):
    done = run_script(os.path.join(ROOT, "train_grpo.py"), os.path.join(ROOT, "recipes/tinyzero_grpo.py"), "--check",
                      "--model", "no/such-model", cwd=tmp_path)
    assert done.returncode == 0 and "Using the numbers [" in done.stdout and "NOT CHECKED" in done.stdout, done.stderr
    done = run_script(os.path.join(ROOT, "train_grpo.py"), os.path.join(ROOT, "recipes/unsloth_gsm8k.py"), "--check",
                      cwd=tmp_path, env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == 2 and "--data_path" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / "out")


@pytest.mark.parametrize("function, found", [
    (lambda sample, equal: sample.finish({"short": 1.0}, True, True), "1 = short 1, correct"),
    (lambda sample, equal: 1.0, "fails: TypeError: it returned float, not a Score"),
])
def test_check_shows_how_an_own_reward_scores_and_that_it_is_not_tested(function, found, monkeypatch, capsys):
    monkeypatch.setitem(rewards.REWARDS, "own", function)
    cfg = train_grpo.Config(data="countdown:4", template="tinyzero_base", reward="own", reward_parts={"tag_count": 1.0},
                            model="no/such-model")
    check.check_recipe(cfg)
    out = capsys.readouterr().out
    assert found in out and "own; NOT TESTED: no perfect response is known" in out
    assert out.rstrip().endswith("check passed")
    prompts, _ = data.load_prompts("countdown:4", "tinyzero_base", "own", None, check_answer=rewards.check_answer)
    data.check_golds(prompts)  # says nothing, and ends nothing


def test_check_says_that_a_group_part_is_no_part_of_what_it_shows(capsys):
    cfg = train_grpo.Config(data="countdown:4", template="tinyzero_base", reward="tinyzero_countdown", model="no/such",
                            reward_parts={"kimi_length": 1.0, "tag_count": 1.0, "language": 0.5})
    check.check_recipe(cfg)
    out = capsys.readouterr().out
    assert re.search(r"with parts +[0-9.]+ = format 0.1 \+ answer 0.9 \+ tag_count [0-9.]+ \+ language 0.5\n", out), out
    assert "of the group   kimi_length: compare the responses to one prompt, so not shown here\n" in out
    with pytest.raises(ConfigError, match="group_size = 1 leaves nothing to compare"):
        check.check_recipe(dataclasses.replace(cfg, group_size=1, kl_in="loss_k3"))
    with pytest.raises(ConfigError, match="4,096 tokens of a response that has 1,024 at most"):
        check.check_recipe(dataclasses.replace(cfg, max_response_len=1024, reward_parts={
            "soft_overlong": {"weight": 1.0, "cache": 4096}}))


def full_mark(reward, gold="5"):
    mark = rewards.PERFECT[reward][0]
    return mark(gold) if callable(mark) else mark


def test_every_reward_has_a_full_mark():
    assert set(rewards.PERFECT) == set(rewards.REWARDS)
    assert (full_mark("unsloth_gsm8k"), full_mark("unsloth_gsm8k", "-5")) == (4.0, 3.5)


def test_the_countdown_solver_finds_what_is_solvable():
    for row in data.countdown(200, seed=3):
        value, numbers = countdown.evaluate(countdown.solve(row["nums"], row["target"]))
        assert value == row["target"] and sorted(numbers) == sorted(row["nums"])
    with pytest.raises(ConfigError, match="no expression"):
        countdown.solve([1, 1], 100)


# ---------------------------------------------------------------- one real step


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_recipe_runs_one_real_step(script, tmp_path):
    """The script's own main(), a tiny random model, real vLLM; all recipes of a script in one process."""
    done = run_script(os.path.join(ROOT, "tests/recipe_worker.py"), script, tmp_path / "work",
                      env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = [json.loads(line.removeprefix("RECIPE ")) for line in done.stdout.splitlines() if line.startswith("RECIPE ")]
    assert {row["recipe"] for row in rows} == {path.stem for path in recipes_of(script)}
    for row in rows:
        cfg, _ = load(row["recipe"])
        assert row["step"] == 1 and row["num_rollouts"] == 2 * min(cfg.group_size, 2), row
        assert row["grad_norm"] > 0 and row["mismatch_mean"] < LOGPROB_MEAN, row
        assert row["lr"] > 0 and "eval_correct" in row, row
