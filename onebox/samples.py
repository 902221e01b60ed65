"""
What is kept of the rollouts: one JSON object a response in samples/step_000010.jsonl.gz, token by token, for tools/report.
"""

import numpy as np
from tokenizers.decoders import DecodeStream

from policy import to_responses

TOKEN_VALUES = ("logprobs", "old_logprobs", "entropy", "ratio", "clipped", "old_values")


def trained_rows(step, rollouts, keep, group_size, prompts, batches, advantages, tokenizer):
    """
    The last `keep` responses of a step, in whole groups, with what the trainer computed for each token; every rank
    together. The last, because with several updates a step only later ones have ratios other than 1.

    prompts {uid: data.Prompt}       batches: this rank's micro-batches of the step, after the last update
    advantages {response: number or (len,)}: of the responses that were trained on
    """
    if not keep:
        return []
    keep = -(-keep // group_size) * group_size
    watched = range(max(0, len(rollouts) - keep), len(rollouts))
    values = {name: to_responses(batches, name, set(watched)) for name in TOKEN_VALUES}
    rows = []
    for i in watched:
        of_tokens = {name: of_response[i] for name, of_response in values.items() if i in of_response}
        advantage = np.atleast_1d(advantages.get(i, 0.0))
        if len(advantage) > 1:
            of_tokens["advantages"] = advantage
        rows.append({**row(rollouts[i], prompts[rollouts[i].uid], step, "train", tokenizer, of_tokens),
                     "advantage": round(float(advantage.mean()), 4)})
    return rows


def row(r, prompt, step, split, tokenizer, token_values=None):
    """
    A scored Rollout -> one JSON object. split "train" or "held-out"; ends[t] is where token t ends in `response`, in code
    points; token_values {name: (len,)} and rollout_logprobs have one number a token too.
    """
    lists = {"rollout_logprobs": r.rollout_logprobs, **(token_values or {})}
    return {**scored(r, prompt, step), "split": split, "source": r.source, "gold": prompt.answer,
            "flags": sorted(r.score.flags), "truncated": r.truncated, "ends": token_ends(r, tokenizer),
            **{name: [round(float(x), 4) for x in numbers] for name, numbers in lists.items()}}


def scored(r, prompt, step):
    """What samples/ and an evaluation's journal both say of a scored Rollout."""
    return {"step": step, "uid": prompt.uid, "sample": r.sample, "prompt": prompt.text, "response": r.text,
            "reward": r.score.total, "correct": r.score.correct, "format_ok": r.score.format_ok, "parts": r.score.parts,
            "tokens": len(r.response_ids), "finish_reason": r.finish_reason}


def token_ends(r, tokenizer):
    """
    Where each token of a response ends in its text; a character of several tokens ends with the last of them. A slow
    tokenizer has no stream to ask: no list then, and no colours in the report.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    stream, ends, length = DecodeStream(skip_special_tokens=False), [], 0
    for token in r.response_ids:
        try:
            length += len(stream.step(backend, token) or "")
        except Exception:  # tokenizers raises nothing narrower: bytes that became no character spoil it, begin a new one
            stream = DecodeStream(skip_special_tokens=False)
        ends.append(min(length, len(r.text)))  # the text is without the stop token
    return ends
