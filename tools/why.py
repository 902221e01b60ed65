"""
Explain the score of a completion, rule by rule.

    python rewards.py --why RESPONSE.txt --reward logic_rl_kk --answer '{"names": ...}'     - reads standard input
    python rewards.py --why RESPONSE.txt --reward mine.py:my_reward --answer good --row '{"text": ...}'
    python rewards.py --why out/demo/samples/step_000010.jsonl.gz --sample 3    a response that a run has kept
"""

import argparse
import gzip
import json
import os
import sys

import rewards
from onebox.files import read_json
from onebox.text import excerpt, visible
from tasks import own
from tasks.workers import ask_now


def shown(value, most=400):
    """Shorten a text or row to one line, readable in any script."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = visible(text).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[:most // 2]} ... {text[5 + most // 2 - most:]}"


def explain(reward, response, answer, **kwargs):
    """Return the score of a completion as readable lines: each rule, what it found, the parts, the total."""
    rewards.check(reward)
    notes = []
    result = rewards.run(reward, ask_now, response, answer, notes=notes, **kwargs)
    docs = [rewards.REWARDS[name].__doc__ if name in rewards.REWARDS else own.load(name).__doc__
            for _, name in rewards.terms(reward)]
    lines = [f"{reward}: {' + '.join(' '.join((doc or 'no docstring').split()).partition('. ')[0] for doc in docs)}",
             f"response {len(response):,} characters: {shown(response, 100)}",
             f"answer   {shown(str(answer), 100)}", ""]
    width = max([len(rule) for rule, _ in notes], default=0)
    lines += [f"  {rule:<{width}}  {shown(str(finding), 100)}" for rule, finding in notes] + [""]
    lines += [f"  {name:<{width}}  {value:+g}" for name, value in result.parts.items()]
    lines += [f"  {'total':<{width}}  {result.total:+g}", "",
              f"correct {'yes' if result.correct else 'no'}, format {'ok' if result.format_ok else 'wrong'}, "
              f"flags: {', '.join(sorted(result.flags)) or 'none'}"]
    return "\n".join(lines)


def parse_answer(reward, text):
    """Read --answer as JSON where the reward wants a dict or got a list of strings; else it is the string itself."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    if isinstance(answer, dict) and rewards.reads(reward) != "math":
        return answer
    return answer if isinstance(answer, list) and answer and all(isinstance(a, str) for a in answer) else text


def explain_kept(path, number, max_tokens=None):
    """
    Explain response `number`, from 0, of a file in samples/: training responses, or held-out ones where there is none.
    ValueError, in one line, if there is no such response.
    """
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as f:
        rows = [json.loads(line) for line in f]
    if not rows or not all(isinstance(row, dict) and "response" in row for row in rows):
        raise ValueError(f"{path} does not hold the responses of a run: take a file out/NAME/samples/step_*.jsonl.gz, "
                         "or say --reward and --answer for the text of one response")
    rows = [row for row in rows if row.get("split") == "train"] or rows
    if not 0 <= number < len(rows):
        raise ValueError(f"{path} has {len(rows)} responses: --sample 0 to {len(rows) - 1}, not {number}")
    row = rows[number]
    settings = read_json(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(path))), "config.json"))
    max_tokens = max_tokens or settings.get("settings", {}).get("max_response_len")
    parts = " + ".join(f"{name} {value:g}" for name, value in row["parts"].items())
    return "\n".join([
        f"step {row['step']}, {row.get('split')}, {row['uid']}: --sample {number} of 0 to {len(rows) - 1}; "
        f"{kinds(rows)}", "",
        f"prompt   {shown(row['prompt'])}", *([f"row      {shown(row['row'])}"] if "row" in row else []),
        "", visible(row["response"]), "",
        f"ended by {row.get('finish_reason')} after {row.get('tokens')} tokens; reward {row['reward']:g} = {parts}; "
        f"correct {'yes' if row['correct'] else 'no'}, format {'ok' if row['format_ok'] else 'wrong'}, "
        f"flags: {', '.join(row.get('flags', ())) or 'none'}", "", score_again(row, max_tokens)])


def kinds(rows):
    """List which responses of a file are what: "truncated 0 2; format wrong 1 3", the first ten of each."""
    found = {}
    for number, row in enumerate(rows):
        kind = ("error" if "error" in row.get("flags", ()) else "truncated" if row.get("truncated") else
                "right" if row["correct"] else "wrong answer" if row["format_ok"] else "format wrong")
        found.setdefault(kind, []).append(str(number))
    return "; ".join(" ".join([kind, *numbers[:10], *["..."] * (len(numbers) > 10)]) for kind, numbers in found.items())


def score_again(row, max_tokens):
    """Explain the reward of a kept response without its parts; or say why this file is not enough for that."""
    name = row.get("reward_name")
    if not name:
        return "Not scored again: the file, of an older version, does not name the reward; see --reward, --answer."
    try:
        rewards.check(name)
    except ValueError as error:
        return f"Not scored again: {error}"
    asked = dict(truncated=bool(row.get("truncated")) or "phantom_ids" in row.get("flags", ()), prompt=row["prompt"],
                 num_tokens=row.get("tokens"), max_tokens=max_tokens, token_ids=row.get("response_ids") or (),
                 row=row.get("row"))
    notes = []
    result = rewards.run(name, ask_now, row["response"], row["gold"], notes=notes, **asked)
    if "error" in result.flags:
        return f"Not scored again: {name} fails on what the file holds ({excerpt(notes[-1][1], 200)})."
    differs = {part for part, value in result.parts.items() if abs(row["parts"].get(part, 0.0) - value) > 1e-6}
    return explain(name, row["response"], row["gold"], **asked) + (
        f"\nnot as kept: {', '.join(sorted(differs))}. The reward has changed, or one of reward_parts has that name"
        if differs else "")


def main():
    parser = argparse.ArgumentParser(description="Explain the score of a completion.")
    parser.add_argument("--why", metavar="FILE", required=True, help="the completion; - reads standard input; or, "
                        "without --reward and --answer, a file of a run's samples/, .jsonl.gz or .jsonl")
    parser.add_argument("--sample", type=int, default=0, help="which response of such a file, from 0")
    parser.add_argument("--reward", help="FILE.py:FUNCTION of your own, or " + ", ".join(rewards.REWARDS))
    parser.add_argument("--answer", help="JSON or the gold string")
    parser.add_argument("--row", help="JSON of the row of the data set, which a reward of your own may read")
    parser.add_argument("--prompt", default="", help="the prompt, which it may read too")
    parser.add_argument("--truncated", action="store_true", help="it hit the length limit")
    parser.add_argument("--num_tokens", type=int)
    parser.add_argument("--max_tokens", type=int)
    args = parser.parse_args()
    try:
        if args.reward is args.answer is None and args.why.endswith((".jsonl", ".jsonl.gz")):
            return print(explain_kept(args.why, args.sample, args.max_tokens))
        if args.reward is None or args.answer is None and not own.own_names(args.reward):
            parser.error("--reward and --answer are needed, except for a file of a run's samples/ (.jsonl.gz, .jsonl)")
        rewards.check(args.reward)
        answer = None if args.answer is None else parse_answer(args.reward, args.answer)
        rewards.check_answer(args.reward, answer)
        row = json.loads(args.row or "{}")
        if not isinstance(row, dict):
            raise ValueError(f"--row wants a JSON object, got {excerpt(args.row)}")
        row = {"answer": answer} | row
        raw = sys.stdin.buffer.read() if args.why == "-" else open(args.why, "rb").read()
    except (ValueError, OSError, EOFError) as error:
        sys.exit(f"rewards.py: {error}")
    print(explain(args.reward, raw.decode(errors="replace"), answer, truncated=args.truncated,
                  num_tokens=args.num_tokens, max_tokens=args.max_tokens, row=row, prompt=args.prompt))
