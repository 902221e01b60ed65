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

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.trainer import alternate, make_rollouts  # noqa: E402

TRL = "trl==1.16.0"
VENV = os.path.join(ROOT, "out/bench/trl-venv")
PROMPT_LEN = 64
RAGGED = [448, 256, 192, 128, 96, 64, 32, 16]  # response tokens: with the prompt the mean is 218, 43 % of the longest
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # a gradient of advantages that cancel: both round in other places


def response_lens(shape, size):
    return [192] * size if shape == "uniform" else (RAGGED * size)[:: max(1, 8 // size)][:size]


def setup():
    """A venv with TRL alone; a .pth file lends it torch, transformers and vLLM of this environment: the same builds for both."""
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    python = os.path.join(VENV, "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", TRL], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout.strip()
    with open(os.path.join(site, "onebox.pth"), "w") as f:
        f.write(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [
            python,
            "-W",
            "ignore",
            "-c",
            "import trl, torch, transformers; print('trl', trl.__version__, 'torch', "
            "torch.__version__, 'transformers', transformers.__version__)",
        ],
        check=True,
    )


def write_case(path, model, shape, size, dtype, threads, checkpointing):
    from transformers import AutoConfig

    rollouts = make_rollouts(response_lens(shape, size), AutoConfig.from_pretrained(model).vocab_size)
    case = {
        "model": model,
        "dtype": dtype,
        "threads": threads,
        "checkpointing": checkpointing,
        "group_size": size,
        "prompt_ids": [r.prompt_ids for r in rollouts],
        "response_ids": [r.response_ids for r in rollouts],
        "rewards": [i * i / size for i in range(size)],
    }
    with open(path, "w") as f:
        json.dump(case, f)
    return case


def worker(case_path, gradients_path):
    """Ours. Answers `step` on stdin with the seconds of one step, `report` with loss, gradient norm and peak memory."""
    import resource
    from types import SimpleNamespace

    import numpy as np
    import torch

    import policy as model
    from onebox.distributed import init_distributed, whole
    from train_grpo import group_advantages, policy_loss, token_weights

    with open(case_path) as f:
        case = json.load(f)
    torch.set_num_threads(case["threads"])
    device = init_distributed()[2]
    rollouts = [
        SimpleNamespace(prompt_ids=p, response_ids=r, rollout_logprobs=np.zeros(len(r), np.float32))
        for p, r in zip(case["prompt_ids"], case["response_ids"], strict=True)
    ]
    policy = model.load_policy(case["model"], device, case["dtype"], checkpointing=case["checkpointing"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.01, fused=True)  # as TRL's default
    first = {}

    def step():
        advantages_R = group_advantages(torch.tensor([case["rewards"]]), True, 1e-4)[0]
        lens = torch.tensor([len(r.response_ids) for r in rollouts])
        weights_R = token_weights(lens, len(lens), int(lens.sum()), "token_mean", 0)
        (batch,) = model.pack(rollouts, range(len(rollouts)), 10**9, 0, 1, device)
        logprobs, _ = model.token_logprobs(policy, batch, 1.0)
        loss = policy_loss(logprobs, logprobs.detach(), advantages_R[batch.response_index], 0.2, 0.2)
        loss = (weights_R[batch.response_index] * loss).sum()
        loss.backward()
        if gradients_path and not first:
            grads = {n.removeprefix("hf."): whole(p.grad).clone() for n, p in policy.named_parameters()}
        norm = model.clip_and_step(policy, optimizer, 1.0, 1e-6)
        if gradients_path and not first:  # TRL's are looked at after clipping
            torch.save({n: g * min(1.0, 1.0 / (norm + 1e-6)) for n, g in grads.items()}, gradients_path)
        return {"loss": float(loss.detach()), "grad_norm": norm}

    for line in sys.stdin:
        if line.strip() == "report":
            print(
                json.dumps({**first, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}), flush=True
            )
            continue
        start = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - start
        first = first or result
        print(json.dumps(seconds), flush=True)


def compare(commands, env, case, folder):
    """Raise SystemExit unless loss, gradient norm and gradient of the first step agree (fp32: each tensor) -> the errors."""
    import torch

    paths = {kind: os.path.join(folder, f"gradients-{kind}.pt") for kind in commands}
    _, reports = alternate({kind: [*command, paths[kind]] for kind, command in commands.items()}, 0, env)
    grads = {kind: torch.load(path, weights_only=True) for kind, path in paths.items()}
    for path in paths.values():
        os.remove(path)
    tolerance = TOLERANCE[case["dtype"]]
    if grads["ours"].keys() != grads["trl"].keys():
        raise SystemExit(f"not the same parameters: {grads['ours'].keys() ^ grads['trl'].keys()}")
    diffs = {n: (float((grads["ours"][n] - g).norm()), float(g.norm())) for n, g in grads["trl"].items()}
    whole = sum(d * d for d, _ in diffs.values()) ** 0.5 / sum(g * g for _, g in diffs.values()) ** 0.5
    worst, name = max((d / g, n) for n, (d, g) in diffs.items())
    errors = {
        "whole": whole,
        "worst": worst,
        "worst_name": name,
        "grad_norm": abs(reports["ours"]["grad_norm"] / reports["trl"]["grad_norm"] - 1),
        "loss": abs(reports["ours"]["loss"] - reports["trl"]["loss"]),
    }
    checked = (
        "whole",
        "grad_norm",
        "loss",
        *(["worst"] if case["dtype"] == "float32" else []),
    )  # bf16: norms' gains round
    if not all(errors[n] <= tolerance for n in checked):
        raise SystemExit(f"not the same work (allowed {tolerance}): {errors} {reports}")
    return errors


def matrix_peak(dtype, threads, seconds=1.0):
    """FLOP/s of the fastest of three large square matrix products, each repeated for `seconds`."""
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
    """Matrix FLOP of forward and backward that the update needs."""
    from transformers import AutoConfig

    c = AutoConfig.from_pretrained(model)
    kv = c.num_key_value_heads / c.num_attention_heads
    block = c.hidden_size**2 * (2 + 2 * kv) + 3 * c.hidden_size * c.intermediate_size  # multiply-adds a token
    flop = 0
    for p, r in zip(case["prompt_ids"], case["response_ids"], strict=True):
        n = len(p) + len(r) - 1
        flop += (
            6 * n * c.num_hidden_layers * (block + c.hidden_size * n)
        )  # causal: half of the 2 n H of scores and sums
        flop += 6 * len(r) * c.hidden_size * c.vocab_size
    return flop


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true")
    parser.add_argument("--model", default="out/smollm2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="responses of a step")
    parser.add_argument("--shapes", nargs="+", default=["uniform", "ragged"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in backward, on both sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--out", default="", help="X: X.md gets the table, X.json every number; an existing X.json is added to"
    )
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker[0], args.worker[1] if len(args.worker) > 1 else "")
    if args.setup:
        return setup()
    python = os.path.join(VENV, "bin/python")
    if not os.path.exists(python):
        raise SystemExit("TRL is not installed: python bench/trl_step.py --setup")
    import torch
    import transformers

    folder = os.path.join(ROOT, "out/bench")
    path = os.path.join(folder, "trl_case.json")
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": ""}
    commands = {
        "ours": [sys.executable, __file__, "--worker", path],
        "trl": [python, "-W", "ignore", os.path.join(ROOT, "bench/trl_worker.py"), path],
    }
    about = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "threads": args.threads,
        "model": os.path.basename(args.model.rstrip("/")),
        "trl": TRL,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "rows": [],
    }
    runs = [about]
    if args.out and os.path.exists(args.out + ".json"):
        with open(args.out + ".json") as f:
            runs = [*json.load(f), about]
    rows = about["rows"]
    for dtype in args.dtypes:
        peak = 0.0
        for shape in args.shapes:
            for size in args.sizes:
                peak = max(peak, matrix_peak(dtype, args.threads))  # a busy moment must not become the limit
                case = write_case(path, args.model, shape, size, dtype, args.threads, args.checkpointing)
                parity = compare(commands, env, case, folder)
                seconds, reports = alternate(commands, args.repeats, env)
                rows.append(
                    {
                        "dtype": dtype,
                        "shape": shape,
                        "responses": size,
                        "checkpointing": args.checkpointing,
                        "tokens": sum(map(len, case["prompt_ids"] + case["response_ids"])),
                        "peak_flops": peak,
                        "flop": needed_flop(args.model, case),
                        "parity": parity,
                        "seconds": seconds,
                        "reports": reports,
                    }
                )
                print(line(rows[-1]), flush=True)
                if args.out:
                    save(args.out, runs)


HEADER = [
    "| dtype | lengths | responses | tokens | recompute | ours tok/s | TRL tok/s | ratio | ours GB | TRL GB | ratio | ours % of "
    "peak | TRL % of peak | gradient error |",
    "|" + "---|" * 14,
]


def line(r, peak=None):
    """A row of the table; peak: the highest matrix rate that the run saw in this dtype."""
    ours, trl = (statistics.median(r["seconds"][kind]) for kind in ("ours", "trl"))
    gb = [r["reports"][kind]["peak_gb"] for kind in ("ours", "trl")]
    share = [r["flop"] / s / (peak or r["peak_flops"]) for s in (ours, trl)]
    return (
        f"| {r['dtype']} | {r['shape']} | {r['responses']} | {r['tokens']} | {'yes' if r['checkpointing'] else 'no'} | "
        f"{r['tokens'] / ours:.0f} | {r['tokens'] / trl:.0f} | **{trl / ours:.2f} x** | {gb[0]:.2f} | {gb[1]:.2f} | "
        f"**{gb[0] / gb[1]:.2f} x** | {share[0]:.0%} | {share[1]:.0%} | {r['parity']['whole']:.1e} |"
    )


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), platform.machine())


def save(out, runs):
    with open(out + ".json", "w") as f:
        json.dump(runs, f)
    text = ["# Trainer step against TRL", "", *(x for x in __doc__.strip().split("\n\n")[2:]), ""]
    for run in runs:
        of = {d: max(r["peak_flops"] for r in run["rows"] if r["dtype"] == d) for d in {r["dtype"]: 0 for r in run["rows"]}}
        peaks = ", ".join(f"{d} {p / 1e9:.0f}" for d, p in of.items())
        text += [
            f"`{run['command']}`, {run['date']}. {run['cpu']}, {run['threads']} thread(s), {run['model']}, {run['trl']}, torch "
            f"{run['torch']}, transformers {run['transformers']}, Python {run['python']}. Matrix peak, GFLOP/s: {peaks}.",
            "",
            *HEADER,
            *(line(r, of[r["dtype"]]) for r in run["rows"]),
            "",
        ]
    with open(out + ".md", "w") as f:
        f.write("\n".join(text) + "\nRaw seconds, peaks and parity of every row: the JSON file beside this one.\n")


if __name__ == "__main__":
    main()
