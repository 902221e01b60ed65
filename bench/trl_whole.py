"""
A whole GRPO step, colocated vLLM included, against TRL's GRPOTrainer: seconds by phase, peak memory.

    python bench/trl_step.py --setup                # once: TRL into out/bench/trl-venv
    python bench/trl_whole.py [--model out/smollm2] [--sizes 4 8] [--threads 1] [--out results/X]

Step: weights into the engine, generate, score, loss, gradient, clip, AdamW, log. Ours is the loop of train_grpo.main
itself, started with command-line settings; TRL's is GRPOTrainer with `use_vllm`, colocated, **patched**, since as
published it does not run on a CPU: weights enter its engine by reload_weights; dtype and eager mode are as in ours.

The same on both: model, prompt ids, prompts x group, one update a step, temperature 1, DAPO's token mean, clip 0.2, no
KL, lr, gradient clip 1, fused AdamW, fp32 master weights, compute and engine in the dtype of the row, no recomputation,
prefix cache on, 1 GiB of KV cache, one request a sample; a reward that is a checksum of the text. Response i has
exactly lens[i] tokens on both: no token ends it. Token counts are compared in every step. Engine against trainer
log-probs of the sampled tokens, "sync gap", must be below a bound in every step timed, each after an update.

What differs is how each works: ours packs and pads nothing, weighs each token by min(trainer / engine, 2) at no cost,
seeds every sample, writes metrics.jsonl and samples/. TRL pads; its default corrects the same mismatch (mask above 3,
by sequence) with one more forward; "uncorrected" is TRL without both. One process of each is alive and they step in
turn; the first step warms up; medians. other: reward, advantages, packing or padding, logging. tok/s: prompt and
response tokens over the whole step. Peak memory: VmHWM of the process, engine included; all sides stay alive, so the
machine needs the sum (--kinds ours trl, if that is too much).
"""

import json
import os
import shutil
import statistics
import sys

from common import ROOT, alternate
from trl_step import commands_of, parser_against_trl, response_lens, save_with_doc
from trl_whole_worker import Steps, reward

PROMPT = "A baker sells {} loaves on Monday and {} on Tuesday. Each loaf costs 3 dollars. Let us think step by step: "
BOUND = {"float32": 1e-3, "bfloat16": 0.05}  # mean |engine - trainer| log-prob; what train_grpo.py stops above
NAMES = {"ours": "ours", "trl": "TRL patched", "trl_uncorrected": "TRL patched, uncorrected"}
RUN = "bench-trl-whole"  # our run's folder in out/


def write_case(path, model, shape, size, dtype, args):
    from transformers import AutoTokenizer

    if size % args.prompts:
        raise SystemExit(f"{size} responses are not {args.prompts} equal groups")
    texts = [PROMPT.format(10 + i, 50 + i) for i in range(args.prompts)]
    lens = response_lens(shape, size)
    if args.longest:
        lens = [max(1, n * args.longest // max(lens)) for n in lens]
    case = {"model": model, "dtype": dtype, "threads": args.threads, "lr": 1e-5, "group_size": size // args.prompts,
            "max_prompt_len": 64, "lens": lens, "texts": texts,
            "prompt_ids": AutoTokenizer.from_pretrained(model)(texts)["input_ids"]}
    with open(path, "w") as f:
        json.dump(case, f)
    with open(path + "l", "w") as f:  # the same prompts as a data set for train_grpo.py
        f.writelines(json.dumps({"question": text, "answer": "1"}) + "\n" for text in texts)
    return case


def worker(case_path):
    """Run train_grpo.main, watched where a step begins and where its row of metrics is logged."""
    steps = Steps(case_path, "ours")
    case = steps.case
    os.chdir(ROOT)
    shutil.rmtree(f"out/{RUN}", ignore_errors=True)  # no run to continue
    import rewards
    import train_grpo
    from onebox.rundir import Run
    from vllm import LLM

    begin_step, log = Run.begin_step, Run.log

    def begin(run, step):  # the first thing of a step
        steps.between()
        begin_step(run, step)

    def end(run, row):
        steps.seen.update(generate=row["seconds_rollout"], train=row["seconds_train"] + row["seconds_logprobs"],
                          sync=row["seconds_sync"], response_tokens=row["trained_tokens"], gap=row["mismatch_mean"],
                          grad_norm=row["grad_norm"])
        log(run, row)

    Run.begin_step, Run.log = begin, end
    LLM.enqueue = steps.force_lengths(LLM.enqueue)
    rewards.REWARDS["bench"] = lambda completion, equal: completion.finish({"checksum": reward(completion.text)})
    settings = {
        "name": RUN, "model": case["model"], "dtype": case["dtype"], "num_steps": 10**6, "eval_prompts": 0,
        "data": "custom", "data_path": case_path + "l", "template": "no_template", "reward": "bench", "save_every": 0,
        "prompts_per_step": len(case["texts"]), "group_size": case["group_size"], "max_num_seqs": len(case["lens"]),
        "max_prompt_len": case["max_prompt_len"], "max_response_len": max(case["lens"]), "report_every": 0,
        "lr": case["lr"], "adv_eps": 1e-4, "checkpointing": False}
    sys.argv = ["train_grpo.py", *(f"--{name}={value}" for name, value in settings.items())]
    train_grpo.main()


def check(case, steps):
    """Exit unless each side did the work asked for with the weights it trains; return the tokens of a step."""
    want = {"prompt_tokens": sum(map(len, case["prompt_ids"])) * case["group_size"],
            "response_tokens": sum(case["lens"])}
    for kind, answers in steps.items():
        for answer in answers:
            if any(answer[name] != n for name, n in want.items()) or not answer["grad_norm"] > 0:
                raise SystemExit(f"{kind}: not the same work: {answer}, wanted {want}")
            if not answer["gap"] <= BOUND[case["dtype"]]:
                raise SystemExit(f"{kind}: the engine does not hold the trainer's weights: {answer}")
    return sum(want.values())


COLUMNS = ("dtype | lengths | prompts x group | tokens | side | s a step | over ours | generate | train | sync | "
           "other | tok/s | peak GB | over ours | sync gap")
HEADER = [f"| {COLUMNS} |", "|" + "---|" * 15]


def lines(row):
    """Write the rows of the table, one a side; seconds are medians, the gap is the largest of the steps timed."""
    total = {kind: statistics.median(s["seconds"] for s in steps) for kind, steps in row["steps"].items()}
    gb = {kind: report["peak_gb"] for kind, report in row["reports"].items()}
    for kind, steps in row["steps"].items():
        phases = [statistics.median(s[p] for s in steps) for p in ("generate", "train", "sync")]
        phases.append(statistics.median(s["seconds"] - s["generate"] - s["train"] - s["sync"] for s in steps))
        slower, larger = (f"**{x[kind] / x['ours']:.2f} x**" if "ours" in x else "" for x in (total, gb))
        yield (f"| {row['dtype']} | {row['shape']} | {row['prompts']} x {row['group_size']} | {row['tokens']} | "
               f"{NAMES[kind]} | {total[kind]:.2f} | {slower} | "
               f"{' | '.join(f'{s:.2f}' for s in phases)} | {row['tokens'] / total[kind]:.0f} | {gb[kind]:.2f} | "
               f"{larger} | {max(s['gap'] for s in steps):.0e} |")


def main():
    parser = parser_against_trl(__doc__, [4, 8], ["float32"], 5)
    parser.add_argument("--prompts", type=int, default=2, help="groups of a step")
    parser.add_argument("--longest", type=int, default=0, help="scale the response lengths to this longest one")
    parser.add_argument("--kinds", nargs="+", default=list(NAMES), choices=list(NAMES))
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    path = os.path.join(ROOT, "out/bench/whole.json")
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    both = commands_of(__file__, "trl_whole_worker.py", path)
    commands = {kind: both["ours"] if kind == "ours" else [*both["trl"], kind] for kind in args.kinds}
    rows = []
    print("\n".join(HEADER), flush=True)
    for dtype in args.dtypes:
        for shape in args.shapes:
            for size in args.sizes:
                case = write_case(path, os.path.abspath(args.model), shape, size, dtype, args)
                try:
                    steps, reports = alternate(commands, args.repeats, env)
                except (OSError, ValueError) as error:  # no answer
                    raise SystemExit(f"a process died, see {path}.*.log for which and why") from error
                rows.append({"dtype": dtype, "shape": shape, "prompts": args.prompts, "group_size": case["group_size"],
                             "lens": case["lens"], "tokens": check(case, steps), "steps": steps, "reports": reports})
                print("\n".join(lines(rows[-1])), flush=True)
                save_with_doc(args, __doc__, [*HEADER, *(line for row in rows for line in lines(row))], "", rows)
    shutil.rmtree(os.path.join(ROOT, "out", RUN), ignore_errors=True)


if __name__ == "__main__":
    main()
