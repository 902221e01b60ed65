"""python -m pytest tests/test_rollout.py: real vLLM beside a real FSDP2 policy (tests/engine_worker.py)."""

import json
import os

import pytest
from conftest import LOGPROB, LOGPROB_MEAN, ROOT, run_script

REPORTS = {}


@pytest.fixture(params=["tied model, 1 rank", "untied model, 2 ranks", "tied model, 2 ranks, tensor parallel"])
def report(request, tied_model, untied_model):
    """What engine_worker.py found, once per kind of engine."""
    if request.param not in REPORTS:
        path = untied_model if "untied" in request.param else tied_model
        nproc, tp = (2, 2) if "parallel" in request.param else (2, 1) if "2 ranks" in request.param else (1, 1)
        done = run_script(os.path.join(ROOT, "tests", "engine_worker.py"), path, tp, nproc=nproc)
        lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
        REPORTS[request.param] = json.loads(lines[0][7:]) | {"kind": request.param} if lines else done
    if not isinstance(REPORTS[request.param], dict):
        pytest.fail(f"{request.param}: exit {REPORTS[request.param].returncode}\n{REPORTS[request.param].stderr[-3000:]}")
    return REPORTS[request.param]


def test_engine_and_trainer_agree_after_every_update_of_every_tensor(report):
    assert len(report["gaps"]) == 4
    for largest, mean in report["gaps"]:
        assert largest < LOGPROB and mean < LOGPROB_MEAN


def test_every_way_to_get_it_wrong_would_be_seen(report):
    """The canary looks at the mean: its bound of 0.001 in fp32 lies above rounding (5e-4) and far below each of these."""
    traps = ["gap_without_temperature", "gap_without_sync", "gap_without_cache_reset"]
    if "untied" not in report["kind"]:
        traps.append("gap_with_named_parameters")  # the tied head stays stale
    for trap in traps:
        largest, mean = report[trap]
        assert largest > 100 * LOGPROB and mean > 50 * 0.001 > 50 * LOGPROB_MEAN, trap  # found: 0.9 to 16 and 0.1 to 2.5
    assert report["gap_after_recovery"][0] < LOGPROB


def test_a_tensor_that_does_not_reach_the_engine_ends_the_run_and_is_named(report):
    """vLLM only logs the first, and says nothing of the second: q and v filled two thirds of the fused matrix."""
    for name, said in report["left_out"].items():
        layer = name.removesuffix(".weight").replace("k_proj", "qkv_proj")
        assert said and f"1 layers of the engine without their weights, first {layer} (" in said, (name, said)
    assert report["gap_after_left_out"][0] < LOGPROB


def test_the_seed_alone_decides_a_sample(report):
    assert report["alone_as_in_a_batch"] and report["distinct_samples"] > 0.9


def test_ranks_draw_different_samples_and_a_tensor_parallel_group_the_same(report):
    assert report["ranks_differ"] == ("untied model, 2 ranks" == report["kind"])


def test_building_the_engine_leaves_the_trainers_random_state_and_environment_alone(report):
    assert report["rng_untouched"] and report["local_world_size_untouched"]


def test_eos_is_in_the_response_when_it_was_sampled_and_never_added(report):
    assert report["eos_only_at_the_end"] and "length" in report["finish_reasons"]


def test_the_deadline_returns_everything_and_the_engine_goes_on(report):
    count, reasons, lengths_match = report["deadline"]
    assert count == 12 and "deadline" in reasons and lengths_match
    assert report["gap_after_deadline"][0] < LOGPROB


def test_broken_input_and_broken_weights_are_refused_and_nothing_hangs(report):
    assert "token ids must be in" in report["bad_id"]
    assert "the weight sync did not happen" in report["bad_version"]
    assert report["gap_after_refusals"][0] < LOGPROB
    assert "not finite" in report["nan"]


def test_a_failed_step_of_the_engine_is_asked_again_and_gives_the_same_tokens(report):
    assert report.get("after_a_failed_step", True)  # not retried under tensor parallel: the ranks could not agree


def test_a_response_that_runs_in_circles_ends_and_counts_as_truncated(report):
    ended, circled, truncated = report["repetition"]
    assert ended == circled and truncated  # those, and no others, whose greedy text holds a pattern twice in a row
