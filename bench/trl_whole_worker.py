"""
TRL's GRPOTrainer with its colocated vLLM, for bench/trl_whole.py; run by the Python of TRL's own environment, imports
nothing of ours. The first part, reward and Steps, serves both sides: they are measured by the same lines.

    out/bench/trl-venv/bin/python bench/trl_whole_worker.py CASE.json trl|trl_uncorrected

Patched, since TRL's colocated vLLM does not run on a CPU:
    sync_weights   one reload_weights call fed from state_dict(), in place of load_weights tensor by tensor, which a CPU
                   engine cannot do (vLLM packs its linear layers)
    LLM(...)       dtype, which TRL leaves to the checkpoint; enforce_eager, as ours on a CPU, where vLLM would compile
Changed for the comparison, as on our side: the length of every response. Everything else only watches.
"""

import functools
import json
import os
import socket
import sys
import time
import zlib
from contextlib import contextmanager


def reward(text):
    """Of a response; hardly any two agree, so that no group is without a gradient."""
    return zlib.crc32(text.encode()) % 1009 / 1009


def shared_settings(case, lens):
    """Return the settings of TRL that both comparisons have; lens: of the responses."""
    return dict(
        output_dir="out/bench/trl", use_cpu=True, bf16=case["dtype"] == "bfloat16", gradient_accumulation_steps=1,
        per_device_train_batch_size=len(lens), num_generations=case["group_size"], max_completion_length=max(lens),
        temperature=1.0, loss_type="dapo", beta=0.0, epsilon=0.2, scale_rewards="group", max_grad_norm=1.0,
        learning_rate=case["lr"], lr_scheduler_type="constant", weight_decay=0.01, logging_steps=1, save_strategy="no",
        report_to="none", max_steps=10**6, shuffle_dataset=False, disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"})


def peak_gb():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1e6


class Steps:
    """
    A training loop told when to go. `between` stands where a step begins: it answers for the step before, seconds and
    all that was put into `seen`, then waits for `step` on stdin; `report` is answered with the peak memory.
    """

    def __init__(self, case_path, side):
        with open(case_path) as f:
            self.case = json.load(f)
        self.seen, self.begun = None, 0.0
        self.answers = os.fdopen(os.dup(1), "w")
        log = os.open(f"{case_path}.{side}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)  # what the libraries print, and why the process died if it did

    def between(self):
        if self.seen is not None:
            self.answer({"seconds": time.perf_counter() - self.begun, **self.seen})
        for line in sys.stdin:
            if line.strip() == "step":
                self.seen = dict.fromkeys(("generate", "train", "sync"), 0.0)
                self.begun = time.perf_counter()
                return
            self.answer({"peak_gb": peak_gb()})
        sys.exit()

    def answer(self, what):
        print(json.dumps(what), file=self.answers, flush=True)

    @contextmanager
    def timed(self, phase):
        start = time.perf_counter()
        yield
        self.seen[phase] += time.perf_counter() - start

    def force_lengths(self, method):
        """
        LLM.generate or LLM.enqueue, request i with exactly lens[i] tokens: no token ends it before. (min_tokens would
        mask the end tokens, hence change the log-probs.)
        """
        import msgspec

        @functools.wraps(method)
        def forced(llm, prompts, sampling_params, **kwargs):
            ids = [list(p["prompt_token_ids"]) for p in prompts]
            if sorted(ids) != sorted(self.case["prompt_ids"] * self.case["group_size"]):
                raise SystemExit("not the prompts of this case")
            self.seen["prompt_tokens"] = sum(map(len, ids))
            params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(ids)
            params = [msgspec.structs.replace(p, max_tokens=n, ignore_eos=True, stop_token_ids=[])
                      for p, n in zip(params, self.case["lens"], strict=True)]
            return method(llm, prompts, params, **kwargs)

        return forced


def main(case_path, side):
    steps = Steps(case_path, side)
    case = steps.case
    with socket.socket() as s:  # a free port: two of these live at a time, and accelerate would give both 29500
        s.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), TRL_EXPERIMENTAL_SILENCE="1",
                          TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation import vllm_generation
    from vllm import LLM

    torch.set_num_threads(case["threads"])
    dtype = getattr(torch, case["dtype"])
    LLM.generate = steps.force_lengths(LLM.generate)
    vllm_generation.LLM = functools.partial(LLM, dtype=case["dtype"], enforce_eager=True)
    engine = vllm_generation.VLLMGeneration
    unwatched = engine.generate

    def sync_weights(self):
        with steps.timed("sync"):
            stream = ((name, weight.to(dtype)) for name, weight in self.model.state_dict().items())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
            self.llm.reset_prefix_cache()

    def generate(self, *args, **kwargs):
        with steps.timed("generate"):
            return unwatched(self, *args, **kwargs)

    engine.sync_weights, engine.generate = sync_weights, generate

    class Trainer(GRPOTrainer):
        def _prepare_inputs(self, batch):  # all that comes before forward and backward
            inputs = super()._prepare_inputs(batch)
            self.prepared = time.perf_counter()
            return inputs

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            start = time.perf_counter()
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if torch.is_grad_enabled():
                self.logprobs = found[0].detach()
            else:  # the forward that the correction costs
                steps.seen["train"] += time.perf_counter() - start
            return found

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            mask = inputs["completion_mask"].bool()
            gap = (self.logprobs - inputs["sampling_per_token_logps"])[mask].abs()
            steps.seen.update(response_tokens=int(mask.sum()), gap=float(gap.mean()))
            return loss

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            steps.between()

        def on_step_end(self, *args, **kwargs):
            steps.seen["train"] += time.perf_counter() - trainer.prepared

        def on_log(self, *args, logs, **kwargs):
            steps.seen["grad_norm"] = float(logs["grad_norm"])

    config = GRPOConfig(
        **shared_settings(case, case["lens"]), use_vllm=True, vllm_mode="colocate",
        vllm_max_model_length=case["max_prompt_len"] + max(case["lens"]),
        vllm_importance_sampling_correction=side == "trl", gradient_checkpointing=False)
    trainer = Trainer(
        model=case["model"], args=config, callbacks=[Watch()],
        reward_funcs=lambda completions, **kwargs: [reward(text) for text in completions],
        train_dataset=Dataset.from_dict({"prompt": case["texts"] * 64}),
        processing_class=AutoTokenizer.from_pretrained(case["model"]))
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
