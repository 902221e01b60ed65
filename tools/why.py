"""
Explain the score of a completion, rule by rule.

    python rewards.py --why RESPONSE.txt --reward logic_rl_kk --answer '{"names": ...}'     - reads standard input
"""

import argparse
import json
import sys

import rewards
from onebox.text import excerpt
from tasks.workers import ask_now


def explain(reward, response, answer, **kwargs):
    """Return the score of a completion as readable lines: each rule, what it found, the parts, the total."""
    rewards.check(reward)
    notes = []
    result = rewards.run(reward, ask_now, response, answer, notes=notes, **kwargs)
    lines = [f"{reward}: {' '.join((rewards.REWARDS[reward].__doc__ or 'no docstring').split()).partition('. ')[0]}",
             f"response {len(response):,} characters: {excerpt(response)}", f"answer   {excerpt(str(answer))}", ""]
    width = max([len(rule) for rule, _ in notes], default=0)
    lines += [f"  {rule:<{width}}  {excerpt(str(finding))}" for rule, finding in notes] + [""]
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
    if isinstance(answer, dict) and rewards.READS.get(reward) != "math":
        return answer
    return answer if isinstance(answer, list) and answer and all(isinstance(a, str) for a in answer) else text


def main():
    parser = argparse.ArgumentParser(description="Explain the score of a completion.")
    parser.add_argument("--why", metavar="FILE", required=True, help="the completion; - reads standard input")
    parser.add_argument("--reward", required=True, help=", ".join(rewards.REWARDS))
    parser.add_argument("--answer", required=True, help="JSON or the gold string")
    parser.add_argument("--truncated", action="store_true", help="it hit the length limit")
    parser.add_argument("--num_tokens", type=int)
    parser.add_argument("--max_tokens", type=int)
    args = parser.parse_args()
    try:
        rewards.check(args.reward)
        answer = parse_answer(args.reward, args.answer)
        rewards.check_answer(args.reward, answer)
        raw = sys.stdin.buffer.read() if args.why == "-" else open(args.why, "rb").read()
    except (ValueError, OSError) as error:
        sys.exit(f"rewards.py: {error}")
    print(explain(args.reward, raw.decode(errors="replace"), answer, truncated=args.truncated,
                  num_tokens=args.num_tokens, max_tokens=args.max_tokens))
