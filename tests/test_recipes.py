"""python -m pytest tests/test_recipes.py: every recipe's settings, its --check, and one real step of it on the CPU."""

import json
import os
import re
import sys

import pytest
from conftest import LOGPROB_MEAN, ROOT, run_script
from recipe_worker import recipes_of, save_byte_model, save_rows, where_rows_are

from tools import check
import data
import rewards
import train_grpo
import train_ppo
from onebox.config import ConfigError, load_config, read_recipe

SCRIPTS = {"train_grpo.py": train_grpo, "train_ppo.py": train_ppo}
RECIPES = {path.stem: (path, script) for script in SCRIPTS for path in recipes_of(script)}

# The published numbers, typed in a second time: recipe -> {setting: value}.
TINYZERO = {"max_prompt_len": 256, "max_response_len": 1024, "temperature": 1.0, "lr": 1e-6, "kl_coef": 0.001,
            "entropy_coef": 0.001, "clip_low": 0.2, "clip_high": 0.2, "grad_clip": 1.0, "template": "tinyzero_base",
            "reward": "tinyzero_countdown", "loss_agg": "token_mean"}
OPEN_R1 = {"temperature": 0.9, "kl_in": "loss_k3", "kl_coef": 0.04, "adv_eps": 1e-4, "loss_agg": "seq_mean",
           "group_size": 7,
           "updates_per_step": 1, "max_prompt_len": 1024, "max_response_len": 1024, "lr_schedule": "cosine",
           "template": "open_r1_think_answer", "reward": "open_r1_math"}
LOGIC_RL = {"kl_in": "loss_k3", "kl_coef": 0.001, "entropy_coef": 0.001, "loss_agg": "token_mean", "adv_std": True,
            "adv_eps": 1e-6, "reward": "logic_rl_kk", "grad_clip": 1.0}
DR_GRPO = {"prompts_per_step": 128, "group_size": 8, "updates_per_step": 8, "adv_std": False, "loss_agg": "constant",
           "max_prompt_len": 1024, "max_response_len": 3000, "kl_in": "none", "lr": 1e-6, "adam_beta2": 0.95,
           "temperature": 1.0, "eval_samples": 0}
DEMYSTIFY = {"prompts_per_step": 512, "group_size": 16, "updates_per_step": 16, "epochs_per_step": 2, "lam": 1.0,
             "kl_in": "reward_k1", "kl_coef": 0.01, "lr": 5e-7, "critic_lr": 9e-6, "max_prompt_len": 2048,
             "max_response_len": 14336, "clip_low": 0.2, "value_clip": 0.2, "reward": "demystify_cosine",
             "lr_schedule": "cosine", "lr_min_ratio": 0.1, "data": "math"}
DEEPSCALER = {"prompts_per_step": 128, "updates_per_step": 2, "temperature": 0.6, "lr": 1e-6, "kl_in": "loss_k3",
              "kl_coef": 0.001, "entropy_coef": 0.001, "reward": "deepscaler_math", "template": "deepscaler",
              "max_prompt_len": 1024, "data": "deepscaler"}
PUBLISHED = {
    "tinyzero_ppo": {**TINYZERO, "model": "Qwen/Qwen2.5-3B", "prompts_per_step": 256, "group_size": 1,
                     "updates_per_step": 4,
                     "gamma": 1.0, "lam": 1.0, "critic_lr": 1e-5, "value_clip": 0.5, "kl_in": "reward_k1",
                     "whiten": True,
                     "estimator": "gae", "eval_prompts": 1024, "eval_every": 100},
    "tinyzero_ppo_7b": {**TINYZERO, "model": "Qwen/Qwen2.5-7B", "prompts_per_step": 256, "critic_lr": 1e-5},
    "tinyzero_grpo": {**TINYZERO, "model": "Qwen/Qwen2.5-3B", "prompts_per_step": 8, "group_size": 24, "adv_std": True,
                      "kl_in": "loss_k3"},
    "tinyzero_grpo_7b": {**TINYZERO, "model": "Qwen/Qwen2.5-7B", "prompts_per_step": 8, "group_size": 24},
    "tinyzero_grpo_instruct": {**TINYZERO, "model": "Qwen/Qwen2.5-3B-Instruct", "template": "tinyzero_instruct"},
    "simplerl_ppo": {"model": "Qwen/Qwen2.5-Math-7B", "data": "math_lvl3to5", "reward": "simplerl_math",
                     "num_steps": 160,
                     "prompts_per_step": 1024, "group_size": 8, "updates_per_step": 64, "gamma": 1.0, "lam": 0.95,
                     "temperature": 0.6, "max_prompt_len": 1024, "max_response_len": 3000, "kl_in": "reward_k1",
                     "kl_coef": 0.01, "lr": 5e-7, "critic_lr": 9e-6, "value_clip": 0.2, "lr_schedule": "cosine",
                     "lr_min_ratio": 0.1, "adam_beta2": 0.95, "weight_decay": 0.0, "whiten": True,
                     "loss_agg": "seq_mean",
                     "epochs_per_step": 1},
    "simplerl_ppo_32gpu": {"prompts_per_step": 1024, "updates_per_step": 64, "lam": 0.95},
    "open_r1_math7b": {**OPEN_R1, "model": "Qwen/Qwen2.5-Math-7B", "data": "math", "lr": 3e-6, "prompts_per_step": 128},
    "open_r1_numina_1p5b": {**OPEN_R1, "model": "Qwen/Qwen2.5-1.5B-Instruct", "data": "numina_tir", "lr": 2e-5},
    "open_r1_numina_distill7b": {**OPEN_R1, "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "data": "numina_tir",
                                 "lr": 2e-5},
    "logic_rl_stage1": {**LOGIC_RL, "data": "kk:3", "group_size": 32, "prompts_per_step": 8, "lr": 3e-7,
                        "temperature": 1.0,
                        "max_prompt_len": 400, "max_response_len": 2048, "template": "logic_rl_instruct"},
    "logic_rl_stage2": {**LOGIC_RL, "data": "kk:5", "group_size": 64, "lr": 4e-7, "temperature": 1.2,
                        "model": "out/logic_rl_stage1/model"},
    "logic_rl_stage3": {**LOGIC_RL, "data": "kk:5", "group_size": 16, "lr": 4e-7, "lr_min_ratio": 0.5,
                        "temperature": 0.9,
                        "lr_schedule": "cosine", "model": "out/logic_rl_stage2/model"},
    "logic_rl_base": {**LOGIC_RL, "model": "Qwen/Qwen2.5-7B", "template": "logic_rl_base", "prompts_per_step": 64,
                      "group_size": 16, "lr": 3e-7},
    "logic_rl_one_stage": {**LOGIC_RL, "lr": 4e-7, "temperature": 0.7, "num_steps": 3600, "prompts_per_step": 8,
                           "group_size": 8, "max_response_len": 4096, "data": "kk:3-7"},
    "logic_rl_reinforce_pp": {"estimator": "reinforce_pp", "prompts_per_step": 16, "group_size": 8, "lr": 1e-6,
                              "kl_in": "reward_k1", "kl_coef": 0.001, "max_prompt_len": 512, "max_response_len": 2048,
                              "gamma": 1.0, "whiten": True, "reward": "logic_rl_kk"},
    "oat_zero_countdown": {"model": "Qwen/Qwen2.5-3B", "prompts_per_step": 128, "group_size": 8, "updates_per_step": 8,
                           "lr": 1e-6, "kl_in": "loss_k3", "kl_coef": 0.001, "adv_eps": 1e-4, "loss_agg": "seq_mean",
                           "eval_every": 8, "temperature": 1.0, "max_prompt_len": 256, "max_response_len": 1024},
    "dr_grpo_qwen_math": {**DR_GRPO, "model": "Qwen/Qwen2.5-Math-7B", "data": "math_lvl3to5",
                          "template": "dr_grpo_qwen_math",
                          "reward": "dr_grpo_math", "stop": (), "num_steps": 1331},
    "dr_grpo_r1": {**DR_GRPO, "template": "dr_grpo_r1", "reward": "dr_grpo_r1", "stop": ("</answer>",)},
    "dr_grpo_no_template": {**DR_GRPO, "template": "no_template", "reward": "dr_grpo_math", "data": "math_12k"},
    "demystify_ppo": {**DEMYSTIFY, "gammas": {"task": 1.0, "repetition": 0.99}, "repetition_ngram": 40,
                      "repetition_coef": 0.05},
    "demystify_ppo_sparse": {**DEMYSTIFY, "gammas": None, "repetition_coef": 0.0,
                             "reward_parts": {"sparse_repetition": 1.0}},
    "unsloth_gsm8k": {"data": "gsm8k", "reward": "unsloth_gsm8k", "num_steps": 250, "prompts_per_step": 1,
                      "group_size": 8,
                      "max_prompt_len": 256, "max_response_len": 200, "temperature": 0.9, "kl_in": "loss_k3",
                      "kl_coef": 0.04, "lr": 5e-6, "lr_schedule": "cosine", "adam_beta1": 0.9, "adam_beta2": 0.99,
                      "weight_decay": 0.1, "grad_clip": 0.1, "adv_eps": 1e-4, "warmup_steps": 25},
    "deepscaler_8k": {**DEEPSCALER, "group_size": 8, "max_response_len": 8192, "num_steps": 1040},
    "deepscaler_16k": {**DEEPSCALER, "group_size": 16, "max_response_len": 16384, "num_steps": 480,
                       "model": "out/deepscaler_8k/model"},
    "deepscaler_24k": {**DEEPSCALER, "group_size": 16, "max_response_len": 24576, "model": "out/deepscaler_16k/model"},
    "mixture_example": {"data": {"countdown": 0.5, "kk:3": 0.3, "gsm8k": 0.2}},
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


def test_every_recipe_has_its_published_numbers_pinned_here():
    assert set(PUBLISHED) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_the_published_numbers(name):
    cfg, _ = load(name)  # names and types of all its values are checked on the way
    assert {setting: getattr(cfg, setting) for setting in PUBLISHED[name]} == PUBLISHED[name]
    assert cfg.name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from_and_fits_the_gpus_of_its_launch_line(name):
    cfg, script = load(name)
    path, script_name = RECIPES[name]
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
        cfg, _ = load(name)
        assert cfg.max_prompt_len + cfg.max_response_len <= cfg.max_tokens_per_gpu, name


def test_the_table_of_systems_lists_every_recipe():
    with open(os.path.join(ROOT, "docs/systems.md")) as f:
        text = f.read()
    for name, (_, script) in RECIPES.items():
        assert f"python {script} recipes/{name}.py --check" in text, name


# ---------------------------------------------------------------- --check


@pytest.mark.parametrize("name", RECIPES)
def test_check_passes_on_sample_rows_and_the_gold_answer_scores_the_full_mark(name, world, monkeypatch, capsys):
    run_check(name, world, monkeypatch)
    out = capsys.readouterr().out
    cfg, _ = load(name)
    assert "settings   ok" in out and "tokenizer  ok" in out and out.rstrip().endswith("check passed")
    assert out.count(": the full mark") == (len(cfg.data) if isinstance(cfg.data, dict) else 1)
    assert not re.search(r"\{(nums|numbers|target|quiz|problem|question)\}", out)
    for mark in re.findall(r"^reward +(\w+) ([\d.]+) = ", out, flags=re.MULTILINE):
        assert float(mark[1]) == check.FULL_MARK[mark[0]]


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
    (lambda sample, equal: sample.finish({"short": 1.0}, True, True), "own 1 = short 1; NOT TESTED"),
    (lambda sample, equal: 1.0, "own fails: TypeError: it returned float, not a Score"),
])
def test_check_shows_what_an_own_reward_makes_of_a_response_and_that_it_is_not_tested(function, found, monkeypatch, capsys):
    monkeypatch.setitem(rewards.REWARDS, "own", function)
    cfg = train_grpo.Config(data="countdown:4", template="tinyzero_base", reward="own", reward_parts={"tag_count": 1.0},
                            model="no/such-model")
    check.check_recipe(cfg)
    out = capsys.readouterr().out
    assert found in out and out.rstrip().endswith("check passed")
    prompts, _ = data.load_prompts("countdown:4", "tinyzero_base", "own", None, check_answer=rewards.check_answer)
    check.self_test(prompts)  # says nothing, and ends nothing


def test_every_reward_has_a_full_mark():
    assert set(check.FULL_MARK) == set(rewards.REWARDS)


def test_the_countdown_solver_finds_what_is_solvable():
    for row in data.countdown(200, seed=3):
        value, numbers = rewards.evaluate(check.solve_countdown(row["nums"], row["target"]))
        assert value == row["target"] and sorted(numbers) == sorted(row["nums"])
    with pytest.raises(ConfigError, match="no expression"):
        check.solve_countdown([1, 1], 100)


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
