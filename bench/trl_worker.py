"""
TRL's GRPOTrainer on fixed rollouts, for bench/trl_step.py; run by the Python of TRL's own environment, imports
nothing of ours.

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


def peak_gb():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1e6


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

    size = len(case["response_ids"])
    args = GRPOConfig(
        output_dir="out/bench/trl", use_cpu=True, bf16=case["dtype"] == "bfloat16", per_device_train_batch_size=size,
        gradient_accumulation_steps=1, num_generations=case["group_size"],
        max_completion_length=max(map(len, case["response_ids"])), temperature=1.0, loss_type="dapo", beta=0.0,
        epsilon=0.2, scale_rewards="group", max_grad_norm=1.0, learning_rate=1e-6, lr_scheduler_type="constant",
        weight_decay=0.01, gradient_checkpointing=case["checkpointing"], logging_steps=1, save_strategy="no",
        report_to="none", max_steps=10**6, shuffle_dataset=False, disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"})
    trainer = GRPOTrainer(
        model=case["model"], args=args, callbacks=[Answer()],
        reward_funcs=lambda completions, **kwargs: case["rewards"],
        train_dataset=Dataset.from_dict({"prompt": ["x"] * (64 * size)}),
        processing_class=AutoTokenizer.from_pretrained(case["model"]), rollout_func=rollout_func)
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
