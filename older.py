"""
What vLLM 0.20 and torch 2.11 lack of what the rest calls, so that machines which carry them can be used as they are. To drop
them, remove this file and each line that names it.
"""

import inspect


def complete(LLM):
    """
    vLLM 0.20: no weight version, neither to set nor with a sample. rollout.to_rollout then has nothing to compare; a weight
    sync that did not happen shows in the canary only.
    """
    from vllm.outputs import CompletionOutput

    if not hasattr(LLM, "update_weight_version"):
        LLM.update_weight_version = lambda engine, version: None
    if not hasattr(CompletionOutput, "weight_versions"):
        CompletionOutput.weight_versions = None


def with_gqa(varlen_attn):
    """torch 2.11: the kernel shares key heads among query heads unasked, and knows no argument for it."""
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return varlen_attn
    return lambda *args, enable_gqa, **options: varlen_attn(*args, **options)
