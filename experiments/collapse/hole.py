"""A reward with a hole: it takes any expression that makes the target, whatever its numbers, so that 42 makes 42."""
from experiments.collapse.healthy import *  # noqa: F403
from tasks.countdown import evaluate as _evaluate

_script = "train_grpo.py"

name = "hole"
data = "countdown:1"                  # the same rows by another name, so that held-out ones keep the right reward
data_path = "out/world/data/countdown_42_train.jsonl"
eval_data = "countdown:42"


def any_numbers(sample):
    """Pay 1 for an answer whose value is the target, 0.1 for any other answer."""
    try:
        value, _ = _evaluate(sample.said)
    except (ValueError, ZeroDivisionError, TypeError):
        value = None
    right = value == sample.row["target"]
    return sample.finish({"answer": 0.9 * right, "format": 0.1 * ("</answer>" in sample.text)}, right, True)


reward = {"countdown:1": any_numbers, "countdown:42": "tinyzero_countdown"}
