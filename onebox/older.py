"""What vLLM 0.20 and torch 2.11 lack of the calls made here. To drop them, remove this file and what names it."""

import inspect


def complete(LLM):
    """
    Add to vLLM 0.20 the weight version that it can neither set nor report with a sample. rollout.to_rollout then has
    nothing to compare, and a weight sync that did not happen shows in the canary only.
    """
    from vllm.outputs import CompletionOutput

    if not hasattr(LLM, "update_weight_version"):
        LLM.update_weight_version = lambda engine, version: None
    if not hasattr(CompletionOutput, "weight_versions"):
        CompletionOutput.weight_versions = None


def with_gqa(varlen_attn):
    """Give torch 2.11's kernel the argument enable_gqa, which it lacks: it shares key heads in any case."""
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return varlen_attn
    return lambda *args, enable_gqa, **options: varlen_attn(*args, **options)
