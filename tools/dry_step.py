"""
A step at full length before the first real one, so that memory runs out before the first rollout, not at step 120.
"""

import math
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from onebox.config import ConfigError
from onebox.crash import CONTEXT, MODELS, halve_tokens, out_of_memory
from onebox.distributed import max_over_ranks
from onebox.masters import on_device
from policy import to_micro_batch, token_logprobs, token_values


def dry_step(models, reference, cfg, max_tokens, vocab_size, world, device, say):
    """
    Send one micro-batch as large as any that the run can meet forward and backward, through the same functions.

    models: {"policy": (policy, optimizer)}, perhaps "critic" too, with Adam's moments already there (policy.make_adam).
    Gradients are zeros meanwhile, as large as they will be from the second micro-batch on, and are dropped afterwards:
    no weight, no optimizer state and no random generator changes. The engine must be asleep. Says the peak memory in
    one line. Raises ConfigError with exit code 4 if the memory does not suffice.
    """
    full = cfg.max_prompt_len + cfg.max_response_len - 1
    most = math.ceil(cfg.prompts_per_step * cfg.group_size / world)
    lens = [full] * min(max(1, max_tokens // full), most)
    rest = max_tokens - sum(lens)
    if len(lens) < most and rest > cfg.max_prompt_len:  # a shorter response fills a micro-batch to the last token
        lens.append(rest)
    ids = np.arange(full + 1) % vocab_size
    rollouts = [FakeRollout(ids[:cfg.max_prompt_len], ids[cfg.max_prompt_len:n + 1],
                            np.zeros(n + 1 - cfg.max_prompt_len)) for n in lens]
    start = time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        part, advice = f"a micro-batch of {sum(lens):,} tokens", ""
        batch = to_micro_batch(rollouts, range(len(rollouts)), device)
        if reference is not None:
            with torch.no_grad(), on_device(reference, device):  # while there are no gradients, as in a step
                token_logprobs(reference, batch, cfg.temperature)
        part, advice = "the gradients of the models", MODELS
        for module, _ in models.values():
            for p in module.parameters():
                p.grad = torch.zeros_like(p).float()  # whatever p is: see onebox/masters.py
        part, advice = f"a micro-batch of {sum(lens):,} tokens", ""
        for name, (module, _) in models.items():
            if name == "critic":
                token_values(module, batch).mean().backward()
            else:
                logprobs, entropy = token_logprobs(module, batch, cfg.temperature)
                (logprobs - entropy).mean().backward()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(f"out of memory in the dry step: {part} did not fit beside what is there already; "
                          f"{advice or advice_for(lens, max_tokens)}", exit_code=4) from error
    finally:
        for module, _ in models.values():
            module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        room = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f}"
        torch.cuda.empty_cache()
    else:
        peak, room = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, ""
    peak, seconds = max_over_ranks(peak, device), time.monotonic() - start
    say(f"dry step: {sum(lens):,} tokens fit: peak {peak:.1f}{room} GB a process, {seconds:.1f} s")


def advice_for(lens, max_tokens):
    """Return what to do when a micro-batch of these sequences did not fit."""
    if len(lens) == 1:
        return "that is one sequence: take more GPUs, checkpointing or a shorter max_response_len, or ask tools.plan"
    return halve_tokens() if "max_tokens" in CONTEXT else f"halve max_tokens_per_gpu (now {max_tokens})"


@dataclass
class FakeRollout:
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    rollout_logprobs: np.ndarray
