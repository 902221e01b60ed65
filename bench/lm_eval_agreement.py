"""
Compare the verdicts of eval.py with those of lm-evaluation-harness on GSM8K, problem by problem.

    VENV/bin/python bench/lm_eval_agreement.py harness TRAIN.jsonl TEST.jsonl OUT --model MODEL --completions ROWS.jsonl
    VENV/bin/python bench/lm_eval_agreement.py harness TRAIN.jsonl TEST.jsonl OUT
    .venv/bin/python bench/lm_eval_agreement.py ours TEST.jsonl OUT --model MODEL

The first two lines run in an environment of their own (pip install torch lm-eval transformers accelerate). The harness
judges the completions that an evaluation of MODEL left in gsm8k.jsonl ("chat"); without any, the data set's own worked
solutions, every other one of the next problem ("replay"), so that the graders meet many right answers. The third judges
the same texts with our rewards and writes OUT/agreement.md and OUT/verdicts.jsonl (no problem's text).
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."  # template "deepscaler"
TASKS = {"chat": ("math", "flexible-extract"), "replay": ("verl_gsm8k", "strict-match")}  # our reward, their nearest


def read(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def write(path, rows):
    with open(path, "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def harness(args):
    """Let the harness judge; write prompt, completion and verdicts of every problem to OUT/harness_TASK.jsonl."""
    import lm_eval
    import yaml
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from transformers import AutoTokenizer

    problems = read(args.test)
    if args.completions:
        task, tokenizer = "chat", AutoTokenizer.from_pretrained(args.model)
        evaluated = {int(row["uid"].split("/")[-1]): row for row in read(args.completions)}
        texts = {index: row["response"] for index, row in evaluated.items()}
    else:
        task, evaluated = "replay", {}
        texts = {i: " " + problems[(i + i % 2) % len(problems)]["answer"] for i in range(len(problems))}

    class Replay(LM):
        """A "model" that says what is in `texts`."""

        tokenizer_name = args.model

        def apply_chat_template(self, history, add_generation_prompt=True):
            return tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=add_generation_prompt)

        def generate_until(self, requests):
            return [texts.get(request.doc_id, "") for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    with open(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "gsm8k", "gsm8k.yaml")) as f:
        config = yaml.safe_load(f)
    config |= {"dataset_path": "json", "dataset_name": None, "num_fewshot": 0,
               "dataset_kwargs": {"data_files": {"train": args.train, "test": args.test}}}
    if task == "chat":
        config |= {"doc_to_text": "{{question}}" + SUFFIX, "task": "gsm8k_chat"}
    found = lm_eval.simple_evaluate(model=Replay(), tasks=[ConfigurableTask(config=config)], log_samples=True,
                                    bootstrap_iters=0, apply_chat_template=task == "chat")
    rows = {}
    for sample in next(iter(found["samples"].values())):
        index = sample["doc_id"]
        if index in texts:
            row = rows.setdefault(index, {
                "index": index, "prompt": sample["arguments"][0][0], "response": texts[index], "verdicts": {},
                "read": {}, "evaluation": evaluated[index]["correct"] if evaluated else None})
            row["verdicts"][sample["filter"]] = bool(sample["exact_match"])
            row["read"][sample["filter"]] = sample["filtered_resps"][0]
    os.makedirs(args.out, exist_ok=True)
    write(os.path.join(args.out, f"harness_{task}.jsonl"), rows.values())
    print(f"lm-eval {lm_eval.__version__}, {task}: {len(rows)} problems")


def ours(args):
    """Judge the same completions with our rewards, and write the report."""
    import data
    import rewards
    from onebox.models import resolve_model
    from onebox.text import excerpt

    problems = data.load_rows("gsm8k", "test", args.test)
    lines, verdicts = [], []
    for task, (reward, nearest) in TASKS.items():
        path = os.path.join(args.out, f"harness_{task}.jsonl")
        rows = read(path) if os.path.exists(path) else []
        if not rows:
            continue
        right, disagreements = 0, []
        for row in rows:
            gold = problems[row["index"]]["answer"]
            verdict = rewards.score(reward, row["response"], gold).correct
            right += verdict
            verdicts.append({"task": task, "uid": f"gsm8k/test/{row['index']}", **row["verdicts"], "ours": verdict,
                             "ours_in_the_evaluation": row["evaluation"]})
            theirs = row["verdicts"][nearest]
            if verdict != theirs:
                said = rewards.predicted(reward, row["response"], gold)
                disagreements.append((row["index"], theirs, row["read"][nearest], verdict, said, gold))
        counts = {f"harness, {name}": sum(row["verdicts"][name] for row in rows) for name in rows[0]["verdicts"]}
        lines += [f"## {task}: {len(rows)} problems", "", "| right | |", "|---|---|"]
        lines += [f"| {who} | {count} |" for who, count in [*counts.items(), (f"ours, {reward}", right)]]
        if task == "chat":
            _, _, tokenizer, _ = resolve_model(args.model, 2048)
            equal = sum(row["prompt"] == data.build_prompt("deepscaler", problems[row["index"]], tokenizer)
                        for row in rows)
            lines += ["", f"The prompt is that of eval.py, to the byte, for {equal} of {len(rows)}."]
        lines += ["", f"Verdicts agree with {nearest} on {len(rows) - len(disagreements)} of {len(rows)}; the others:",
                  "", "| problem | harness | it read | ours | it read | gold |", "|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(excerpt(str(cell), 60).replace("|", "\\|") for cell in cells) + " |"
                  for cells in disagreements] + [""]
    with open(os.path.join(args.out, "agreement.md"), "w") as f:
        f.write("\n".join(lines))
    write(os.path.join(args.out, "verdicts.jsonl"), verdicts)
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for part, function, names in (("harness", harness, ("train", "test", "out")), ("ours", ours, ("test", "out"))):
        sub = parts.add_parser(part)
        sub.set_defaults(run=function)
        sub.add_argument("--model", default="", help="a directory or name: its tokenizer writes the prompts")
        for name in names:
            sub.add_argument(name)
        if part == "harness":
            sub.add_argument("--completions", default="", help="gsm8k.jsonl of an evaluation")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
