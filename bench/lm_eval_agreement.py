"""
Compare eval.py with lm-evaluation-harness, problem by problem: the same model, prompts and GSM8K problems.

    VENV/bin/python bench/lm_eval_agreement.py harness MODEL gsm8k_train.jsonl gsm8k_test.jsonl OUT --task chat
    .venv/bin/python bench/lm_eval_agreement.py ours MODEL gsm8k_test.jsonl OUT

The first part runs in an environment of its own (pip install torch lm-eval transformers accelerate) and lets the
harness generate (Hugging Face, greedy, fp32) and judge two tasks: `fewshot`, its gsm8k with five worked examples, and
`chat`, the prompt that eval.py gives a chat model. A third, `replay`, has no model: the data set's own worked
solutions, every other one of the next problem, so that the graders meet many right answers. The second part feeds the
very same prompts to our engine (vLLM, greedy, fp32), judges both sets of completions with our rewards, and writes
OUT/agreement.md and OUT/verdicts.jsonl (no problem's text). With --completions gsm8k.jsonl of an evaluation the harness
judges those instead of generating: Hugging Face's generation is slow on a CPU.
"""

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."  # of templates.py, "deepscaler"
MAX_TOKENS = {"fewshot": 256, "chat": 320, "replay": 0}
STOP = {"fewshot": ["Question:", "</s>", "<|im_end|>"], "chat": ["<|im_end|>"], "replay": ["Question:"]}
REWARD = {"fewshot": "verl_gsm8k", "chat": "math", "replay": "verl_gsm8k"}
VERDICT = {"fewshot": "strict-match", "chat": "flexible-extract", "replay": "strict-match"}  # nearest to our reward


def harness(args):
    """Run the harness and write prompt, completion and verdicts of every problem to OUT/harness_TASK.jsonl."""
    import lm_eval
    import yaml
    from lm_eval.api.task import ConfigurableTask

    with open(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "gsm8k", "gsm8k.yaml")) as f:
        config = yaml.safe_load(f)
    config |= {"dataset_path": "json", "dataset_name": None,
               "dataset_kwargs": {"data_files": {"train": args.train, "test": args.test}}}
    if args.task == "chat":
        config |= {"doc_to_text": "{{question}}" + SUFFIX, "num_fewshot": 0, "task": "gsm8k_chat"}
    config["generation_kwargs"] = {"until": STOP[args.task], "do_sample": False,
                                   "max_gen_toks": args.max_tokens or MAX_TOKENS[args.task]}
    if args.task == "replay":
        config |= {"num_fewshot": 0}
    ours = {}
    if args.completions:
        with open(args.completions) as f:
            ours = {int(row["uid"].split("/")[-1]): row for row in map(json.loads, f)}
    replay = args.task == "replay" or bool(ours)
    start = time.monotonic()
    found = lm_eval.simple_evaluate(
        model=replayed(args.test, args.model, ours) if replay else "hf", tasks=[ConfigurableTask(config=config)],
        model_args=None if replay else f"pretrained={args.model},dtype=float32", limit=None if replay else args.limit,
        batch_size=args.batch, device="cpu", log_samples=True, bootstrap_iters=0,
        apply_chat_template=args.task == "chat")
    by_problem = {}
    for sample in next(iter(found["samples"].values())):
        if ours and sample["doc_id"] not in ours:
            continue
        row = by_problem.setdefault(sample["doc_id"], {
            "index": sample["doc_id"], "prompt": sample["arguments"][0][0], "response": sample["resps"][0][0],
            "verdicts": {}, "read": {}, "ours": ours[sample["doc_id"]]["correct"] if ours else None})
        row["verdicts"][sample["filter"]] = bool(sample["exact_match"])
        row["read"][sample["filter"]] = sample["filtered_resps"][0]
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, f"harness_{args.task}.jsonl"), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in by_problem.values())
    import transformers

    about = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__,
             "seconds": time.monotonic() - start, "max_tokens": args.max_tokens or MAX_TOKENS[args.task]}
    with open(os.path.join(args.out, f"about_{args.task}.json"), "w") as f:
        json.dump(about, f)
    print({k: v for k, v in next(iter(found["results"].values())).items() if "match" in k}, about)


def replayed(test, model, ours):
    """
    Make a "model" that says what is in `ours`, {index: completion row}. Without any it answers every other problem with
    its own worked solution, and the rest with that of the next problem.
    """
    from lm_eval.api.model import LM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model) if ours else None

    with open(test) as f:
        rows = [json.loads(line) for line in f]

    class Replay(LM):
        tokenizer_name = model

        def apply_chat_template(self, history, add_generation_prompt=True):
            return tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=add_generation_prompt)

        def generate_until(self, requests):
            if ours:
                return [ours[r.doc_id]["response"] if r.doc_id in ours else "" for r in requests]
            return [" " + rows[(r.doc_id + r.doc_id % 2) % len(rows)]["answer"] for r in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return Replay()


def ours(args):
    """Generate with our engine on the harness's prompts, judge both sets of completions, and write the report."""
    import torch
    from transformers import AutoModelForCausalLM

    import data
    import rewards
    from onebox.distributed import init_distributed
    from onebox.models import resolve_model
    from onebox.text import excerpt
    from onebox.vllm_start import make_engine
    from rollout import generate

    rank, _, device = init_distributed()
    path, config, tokenizer, stop_ids = resolve_model(args.model, 2048)
    tasks = [task for task in MAX_TOKENS if os.path.exists(os.path.join(args.out, f"harness_{task}.jsonl"))]
    rows = {}
    for task in tasks:
        with open(os.path.join(args.out, f"harness_{task}.jsonl")) as f:
            rows[task] = [json.loads(line) for line in f]
    problems = data.load_rows("gsm8k", "test", args.test)
    golds = [row["answer"] for row in problems]
    engine = reference = None
    if any(row["ours"] is None for task in tasks if task != "replay" for row in rows[task]):
        engine = make_engine(
            path, config=config, dtype="float32", prompt_len=1600, response_len=320, max_num_seqs=64, kv_cache_gb=0,
            tensor_parallel=1, seed=0, rank=rank, device=device, stop_strings=True)
        engine.update_weight_version("0")
        reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    lines, verdicts = [], []
    for task in tasks:
        prompts = [tuple(tokenizer.encode(row["prompt"], add_special_tokens=False)) for row in rows[task]]
        made = {}
        theirs_made = task != "replay" and rows[task][0]["ours"] is None
        todo = list(enumerate(prompts)) if theirs_made else []
        with open(os.path.join(args.out, f"about_{task}.json")) as f:
            about = json.load(f)
        for r in [] if not todo else generate(
                engine, todo, [[0]] * len(todo), temperature=0.0, version=0, stop_ids=stop_ids, deadline_s=3600,
                max_tokens=about["max_tokens"], stop_strings=STOP[task], vocab_size=config.vocab_size):
            made[r.prompt] = r
        same, disagreements, differ, cut = 0, [], [], 0
        for i, row in enumerate(rows[task]):
            reward, theirs, gold = REWARD[task], row["response"], golds[row["index"]]
            verdict = rewards.score(reward, theirs, gold).correct  # on the harness's own completion
            right = row["verdicts"][VERDICT[task]]
            verdicts.append({"task": task, "uid": f"gsm8k/test/{row['index']}", **row["verdicts"],
                             "ours_same_completion": verdict})
            if verdict != right:
                read = rewards.predicted(reward, theirs, gold)
                disagreements.append((row["index"], right, row["read"][VERDICT[task]], verdict, read, gold,
                                      why(right, read, reward)))
            if row["ours"] is not None:
                verdicts[-1]["ours_in_the_evaluation"] = row["ours"]
            if i not in made:
                continue
            text = tokenizer.decode(made[i].response_ids, skip_special_tokens=False)
            for stop in STOP[task]:
                text = text.partition(stop)[0]
            equal = text.strip() == theirs.strip()
            same += equal
            cut += made[i].truncated
            if not equal:
                gap = margin(reference, tokenizer, prompts[i], made[i].response_ids, theirs)
                differ.append(f"{row['index']} ({gap})")
            mine = rewards.score(reward, text, gold, truncated=made[i].truncated).correct
            verdicts[-1] |= {"ours_own_completion": mine, "completion_equal": equal,
                             "ours_truncated": made[i].truncated}
        n = len(rows[task])
        shares = {name: sum(row["verdicts"][name] for row in rows[task]) for name in rows[task][0]["verdicts"]}
        of_task = [v for v in verdicts if v["task"] == task]
        asked = ""
        if task == "chat":
            equal = sum(row["prompt"] == data.build_prompt("deepscaler", problems[row["index"]], tokenizer)
                        for row in rows[task])
            asked = f" The prompt is that of eval.py, to the byte, for {equal} of {n}."
        how = f"greedy, at most {about['max_tokens']} tokens" + (", completions of eval.py" if not made else "")
        how = "no model: worked solutions" if task == "replay" else how
        lines += [f"## {task}: {n} problems, {how}", "",
                  f"lm-eval {about['lm_eval']}, transformers {about['transformers']}, {about['seconds']:.0f} s for the "
                  f"harness.{asked}", "", f"| right | of {n} |", "|---|---|",
                  *[f"| harness, {name} | {count} |" for name, count in shares.items()],
                  f"| ours ({REWARD[task]}), the same completions | "
                  f"{sum(v['ours_same_completion'] for v in of_task)} |",
                  *[f"| ours ({REWARD[task]}), our engine's completions, cut off = wrong ({cut} were) | "
                    f"{sum(v['ours_own_completion'] for v in of_task)} |" for _ in made and [1]], "",
                  f"Verdicts on the same completion agree with {VERDICT[task]} on {n - len(disagreements)} of {n}; the "
                  "others:", "",
                  "| problem | harness | it read | ours | it read | gold | why |", "|---|---|---|---|---|---|---|",
                  *["| " + " | ".join(excerpt(str(cell), 60).replace("|", "\\|") for cell in line) + " |"
                    for line in disagreements], ""]
        if made:
            lines += [f"The two engines wrote the same text on {same} of {n}. Where not (problem: token at which they "
                      "part, gap between the best two logits there by Hugging Face in fp32): "
                      + ("; ".join(differ) or "nowhere") + ".", ""]
    with open(os.path.join(args.out, "agreement.md"), "w") as f:
        f.write("\n".join(lines))
    with open(os.path.join(args.out, "verdicts.jsonl"), "w") as f:
        f.writelines(json.dumps(v) + "\n" for v in verdicts)
    print("\n".join(lines))


def why(harness_right, read, reward):
    if read is None:
        return "no closed box" if reward == "math" else "no '#### N'"
    if harness_right:
        return "the harness took another number than the marked answer"
    return "the marked answer is right; the harness read another number, or compares strings"


def margin(model, tokenizer, prompt, response_ids, other):
    """Measure the gap between the two best next-token logits where our completion leaves the harness's text."""
    import torch

    at = 0
    while at < len(response_ids) and other.startswith(tokenizer.decode(response_ids[:at + 1])):
        at += 1
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response_ids[:at]]])).logits[0, -1]
    best = logits.topk(2).values
    return f"token {at}, gap {float(best[0] - best[1]):.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("harness")
    for name in ("model", "train", "test", "out"):
        first.add_argument(name)
    first.add_argument("--task", choices=list(MAX_TOKENS), required=True)
    first.add_argument("--limit", type=int, default=100)
    first.add_argument("--batch", type=int, default=20)
    first.add_argument("--max_tokens", type=int, default=0, help="of a generated response; 0: the task's own")
    first.add_argument("--completions", help="judge these instead of generating: gsm8k.jsonl of an evaluation")
    second = parts.add_parser("ours")
    for name in ("model", "test", "out"):
        second.add_argument(name)
    args = parser.parse_args()
    {"harness": harness, "ours": ours}[args.part](args)


if __name__ == "__main__":
    main()
