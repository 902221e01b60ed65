"""
What may be wrong with a run, from its numbers.
"""

import math
import sys


def no_signal(silent_steps, row, example=""):
    """
    Warn in one line, or return "": after 5 steps in a row without anything to learn from, then every 10, and where no
    held-out response is right before the first step. With the cause and a fix. example: a file of samples/ with
    responses to read.
    """
    at_start = row.get("step") == 0 and row.get("correct") == 0
    if not at_start and silent_steps != 5 and (not silent_steps or silent_steps % 10):
        return ""
    fact = "no held-out response is right yet" if at_start else f"nothing to learn from for {silent_steps} steps"
    return f"warning: {fact}: {why_no_signal(row, example)}"


def why_no_signal(row, example=""):
    """
    Name the cause that most responses of a step have why there is nothing to learn from them, with counts, and a fix.
    example: a file of samples/ with responses to read.
    """
    total, names = row.get("num_rollouts", 0), ("flag/error", "truncated", "correct", "format_error")
    raised, cut, right, unformed = counts = [round(row.get(name, 0.0) * total) for name in names]
    raised += round(row.get("flag/timeout", 0.0) * total)
    same = row.get("reward_std") == 0 < row["reward"] and not (right or unformed) and cut < total
    causes = [(raised, "made the reward or a part of it raise an error, or take too long", "correct its code, see "
               "flag/error and flag/timeout"),
              (total * same, f"get one reward, {row['reward']:g}, and none counts as right", "take easier "
               "problems, or look at what your own reward tells apart, and from which full_mark on"),
              (cut, "do not end", "raise max_response_len, or say what ends a response (stop)"),
              (right, "are right already", "take harder problems"),
              (min(unformed, total - right) - cut, "end without the format", "ask for it in the template, learn it "
               "with sft.py first, or let your own reward say format_ok where it holds"),
              (total - right - max(unformed, cut), "have the format and a wrong answer", "take easier problems, more "
               "samples (group_size) or a stronger model")]
    number, what, fix = causes[0] if raised > total / 2 else max(causes, key=lambda cause: cause[0])  # of equals, first
    if right > total / 10 and number <= total * 2 / 3 and raised <= total / 2:
        number, what, fix = right, "are right, but the rewards of every group agree", (
            "take problems of middling difficulty, more samples (group_size), or a reward that tells responses apart")
    counted = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    look = f"python rewards.py --why {example}" if example else "none is kept to read: --keep_rollouts 16"
    return (f"{number} of {total} responses {what} (mean reward {row['reward']:.3f}; {counted}): {fix}. An example: "
            f"{look}")


def long_tail(row):
    """Say in one line, or "", that the slowest 5 % of the responses took more than a third of the rollout, and why."""
    tail, whole = row.get("seconds_tail") or 0.0, row.get("seconds_rollout", 0.0)
    return "" if tail <= max(1.0, whole / 3) else (
        f"note: the last 5 % of the responses took {tail:.0f} of the {whole:.0f} s of this rollout. A larger "
        "max_num_seqs starts them earlier (if the cache holds more); a smaller max_response_len or repetition_stop = 8 "
        "ends them earlier; finish_share = 0.9 does not wait for them, but favors prompts with short responses")


def count_graphs(run, step):
    """Log which steps but the first ones compiled graphs, and warn once if that does not come to an end."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # not imported where nothing is compiled
    before, run.graphs = run.graphs, dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
    run.steps_logged += 1
    if run.graphs > before and run.steps_logged > 3:
        run.late_graphs += run.graphs - before
        run.append("log.txt", f"step {step}: torch.compile made {run.graphs - before} graphs\n")
    if run.late_graphs > 8:
        run.say(f"WARNING: {run.late_graphs} graphs were compiled after the first steps, and each costs seconds: "
                "something changes again and again; TORCH_LOGS=recompiles says what, --compile False ends it")
        run.late_graphs = -math.inf
