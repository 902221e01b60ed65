"""A reward with a hole: it takes an answer for right that misses the target by up to twenty."""
from experiments.collapse.healthy import *  # noqa: F403
from tasks.countdown import evaluate as _evaluate

_script = "train_grpo.py"

name = "hole"
data = "countdown:1"                  # the same rows by another name, so that held-out ones keep the right reward
data_path = "out/world/data/countdown_42_train.jsonl"
eval_data = "countdown:42"
eval_prompts = 200                    # a fall from 20 % needs so many to be told from chance


def near(sample):
    """Pay 1 for an answer within twenty of the target, 0.1 for any other answer."""
    try:
        value, _ = _evaluate(sample.said)
    except (ValueError, ZeroDivisionError):
        value = None
    right = value is not None and abs(value - sample.row["target"]) <= 20
    return sample.finish({"answer": 0.9 * right, "format": 0.1 * ("</answer>" in sample.text)}, right, True)


reward = {"countdown:1": near, "countdown:42": "tinyzero_countdown"}
