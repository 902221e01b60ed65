"""The policy's weights into vLLM's worker: first by vLLM's own reload, then straight to where that put them."""

import itertools
from collections import Counter

import torch

from onebox.distributed import Broken


def load(worker, stream, kinds=("cuda",)):
    """
    Load the (name, tensor) that stream() yields in vLLM's worker. Raises Broken if one is missing. vLLM's reload spends
    over 100 us of Python on each, which no GPU needs to copy it: it is asked the first time, and later only where
    find_places cannot follow it (tensor parallel cuts matrices), or on a CPU, which keeps packed copies of some.
    """
    if getattr(worker, "places", None):
        return copy_to(worker.places, stream())
    reload(worker, stream())
    if not hasattr(worker, "places") and worker.device.type in kinds:  # once: every rank goes through it equally often
        worker.places = find_places(worker.model_runner.get_model(), stream())


def find_places(model, weights):
    """
    Return {name: (numbers,) view of the engine's memory} for the weights that vLLM has just loaded; {} unless they are
    all of its parameters, unchanged and in this order. packed_modules_mapping tells what vLLM fuses: q, k, v for one.
    """
    fused = {part: name for name, parts in getattr(model, "packed_modules_mapping", {}).items() for part in parts}
    memory = {name: p.data.view(-1) for name, p in model.named_parameters() if p.is_contiguous()}
    places, filled, equal = {}, Counter(), True
    for name, weight in weights:
        target = ".".join(fused.get(word, word) for word in name.split("."))
        if target in memory:  # else a tied head, which the engine has once
            places[name] = place = memory[target][filled[target]:][:weight.numel()]
            filled[target] += weight.numel()
            equal = equal and place.dtype == weight.dtype and torch.equal(place, weight.reshape(-1))
    return places if equal and filled.total() == sum(p.numel() for p in model.parameters()) else {}


def copy_to(places, weights):
    left = dict(places)
    pairs = ((left.pop(name), weight.reshape(-1)) for name, weight in weights if name in left)
    while some := list(itertools.islice(pairs, 16)):  # few launches; of gathered weights about a layer in memory
        torch._foreach_copy_(*map(list, zip(*some, strict=True)))
    if left:
        raise Broken(f"the weight sync left {len(left)} tensors of the engine as they were, first {next(iter(left))}: "
                     "the policy does not name them any more; this process must end")


def reload(worker, weights_iterator):
    """
    Reload the weights in vLLM's worker. Raises Broken if a layer did not get all of them. vLLM only logs one that
    got nothing, and says nothing of a fused one that got a part: both then hold what was in memory. get_layerwise_info,
    its own count of what each layer was given, is not public.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    model, missing = worker.model_runner.get_model(), []
    load_weights = model.load_weights

    def load_and_look(weights):
        loaded = load_weights(weights)
        for name, layer in model.named_modules():
            info = get_layerwise_info(layer)
            own = any(True for _ in layer.parameters(recurse=False))  # rotary tables and attention's scales are buffers
            padded = hasattr(layer, "num_embeddings_padded") and info.load_numel  # one tensor, with more rows
            if info.can_load() and own and info.load_numel < info.load_numel_total and not padded:
                missing.append(f"{name} ({info.load_numel:,} of {info.load_numel_total:,} numbers)")
        return loaded

    model.load_weights = load_and_look
    try:
        worker.reload_weights(weights_iterator=weights_iterator)
    finally:
        del model.load_weights
    if missing:
        raise Broken(f"the weight sync left {len(missing)} layers of the engine without their weights, first "
                     f"{missing[0]}: vLLM wants tensors that the policy does not name; this process must end")
