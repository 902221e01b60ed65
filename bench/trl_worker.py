"""
TRL's GRPOTrainer on fixed rollouts, for bench/trl_step.py; run by the Python of TRL's own environment, imports
nothing of ours but trl_whole_worker.

    out/bench/trl-venv/bin/python bench/trl_worker.py CASE.json [GRADIENTS.pt]

Public hooks only: `rollout_func` feeds the token ids and waits for `step` on stdin, `on_step_end` answers with the
seconds between (collation, reward call, forward, loss, backward, clipping, fused AdamW, TRL's metrics). GRADIENTS.pt:
the clipped gradients of the first step are written there.
"""

import json
import os
import sys
import time

os.environ.update(TRANSFORMERS_VERBOSITY="error", TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1",
                  CUDA_VISIBLE_DEVICES="")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl_whole_worker import peak_gb, shared_settings  # noqa: E402


def main(case_path, gradients_path=""):
    with open(case_path) as f:
        case = json.load(f)
    torch.set_num_threads(case["threads"])
    answers, sys.stdout = sys.stdout, sys.stderr  # TRL prints; the answers go out on a line of their own
    started, seen = [0.0], {}

    def ask():
        for line in sys.stdin:
            if line.strip() == "step":
                return
            print(json.dumps({**seen, "peak_gb": peak_gb()}), file=answers, flush=True)
        os._exit(0)

    def rollout_func(prompts, trainer):
        ask()
        started[0] = time.perf_counter()
        return {"prompt_ids": case["prompt_ids"], "completion_ids": case["response_ids"],
                "logprobs": [[0.0] * len(r) for r in case["response_ids"]]}

    class Answer(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if gradients_path and state.global_step == 0:
                torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, gradients_path)

        def on_step_end(self, args, state, control, **kwargs):
            print(json.dumps(time.perf_counter() - started[0]), file=answers, flush=True)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "grad_norm" in (logs or {}) and not seen:
                seen.update(loss=float(logs["loss"]), grad_norm=float(logs["grad_norm"]))

    lens = [len(ids) for ids in case["response_ids"]]
    args = GRPOConfig(**shared_settings(case, lens), gradient_checkpointing=case["checkpointing"])
    trainer = GRPOTrainer(
        model=case["model"], args=args, callbacks=[Answer()],
        reward_funcs=lambda completions, **kwargs: case["rewards"],
        train_dataset=Dataset.from_dict({"prompt": ["x"] * (64 * len(lens))}),
        processing_class=AutoTokenizer.from_pretrained(case["model"]), rollout_func=rollout_func)
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
