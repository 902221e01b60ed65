"""
What a model directory must hold to be sampled and trained here. Each error is one line, before any weight is loaded.
"""

import functools
import importlib.util
import json
import os
import sys

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from onebox.config import ConfigError, refuse
from onebox.distributed import print0
from onebox.hub import hub_reachable

SUPPORTED = ("gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")  # tests: each packed, alone
PLAIN = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")  # what is read of every config
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


class NoModel(ConfigError):
    """There is no such model, or none can be fetched."""


def resolve_dtype(dtype, device):
    """Return the dtype of compute and engine: "auto" is bfloat16 on a GPU and float32 on a CPU."""
    return dtype if dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"


def resolve_model(name, need_len, weights=True, trained=True, tensor_parallel=1):
    """
    Find a directory or fetch a hub id and check it; return (local path, HF config, tokenizer, stop ids).

    need_len: the longest sequence, 0 if not known yet. weights=False: of a hub model fetch the small files only.
    trained=False: only vLLM computes it, so that it may have layers that policy.py does not train. Raises ConfigError:
    not there (NoModel), no tokenizer, no EOS, a tokenizer larger than the vocabulary, an architecture that is not
    computed here, too few positions, or weights that are not whole or not those of the config.
    """
    path, local = locate(name, weights)
    holds_weights = any(file.endswith((".safetensors", ".bin")) for file in os.listdir(path))
    refuse(weights and not holds_weights, f"model {name!r} has no weights: no .safetensors file in {path}")
    what = "config.json"
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # None would ask on the terminal
        if trained:
            check_architecture(config, need_len, name)
        lacks = [key for key in PLAIN if not isinstance(getattr(config, key, None), int)]
        refuse(lacks, f"model {name!r}: the config of {config.model_type} says no {' or '.join(lacks)} of its own, so "
               "it is no plain language model with attention (or one inside a larger model): choose another")
        what = "tokenizer"
        refuse(not any(file in TOKENIZERS or file.endswith((".model", ".tiktoken")) for file in os.listdir(path)),
               f"model {name!r} has no tokenizer: there is none of {', '.join(TOKENIZERS)} in {path}; copy the "
               "tokenizer files of the model it was made from")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a config or tokenizer can be wrong in many ways, each with a type of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"model {name!r}: its {what} does not load: {reason}") from error
    refuse(tokenizer.eos_token_id is None,
           f"the tokenizer of {name!r} has no EOS token: set eos_token in its tokenizer_config.json")
    refuse(token_bound(tokenizer) > config.vocab_size, f"the tokenizer of {name!r} has ids up to "
           f"{token_bound(tokenizer) - 1}, its model only {config.vocab_size} tokens")
    stop_ids = {tokenizer.eos_token_id, *eos_ids(path, name, config.vocab_size)}
    check_positions(config, need_len, name)
    check_tensor_parallel(config, tensor_parallel, name)
    if trained and (weights or local) and holds_weights:
        check_weights(path, config, name)
    return path, config, tokenizer, sorted(stop_ids)


def check_critic(name, need_len, hf_config, tokenizer, weights=True):
    """Check that a critic reads the policy's token ids, up to need_len of them, and return its local path."""
    path, critic_config, critic_tokenizer, _ = resolve_model(name, need_len, weights)
    refuse(critic_tokenizer.get_vocab() != tokenizer.get_vocab() or critic_config.vocab_size < hf_config.vocab_size,
           f"critic_model {name!r} has another vocabulary ({len(critic_tokenizer)} tokens, {critic_config.vocab_size} "
           f"rows) than model ({len(tokenizer)} tokens, {hf_config.vocab_size} rows): token ids would mean other words "
           "to it; choose one of the same family and size of vocabulary")
    return path


def locate(name, weights):
    """Return (path of the files, whether it is a directory given by the user); fetch what is not here from the hub."""
    path = os.path.expanduser(name)
    if name.startswith((".", "/", "~", "out/")) or name.count("/") != 1 or os.path.exists(name):
        if not os.path.isfile(os.path.join(path, "config.json")):
            what = "has no config.json" if os.path.isdir(path) else "is not there"
            raise NoModel(f"model directory {name!r} {what}: give a Hugging Face directory or a hub id like "
                          "Qwen/Qwen2.5-3B")
        return path, True
    from huggingface_hub import snapshot_download

    reachable = hub_reachable()
    try:  # every rank asks; all but the first find it in the cache, which has its own lock
        patterns = ["*.json", "*.model", "*.txt", "*.jinja"] + ["*.safetensors"] * weights
        return snapshot_download(name, allow_patterns=patterns, local_files_only=not reachable), False
    except Exception as error:  # hub errors have many types; each means the same to the user
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        reason = reason if reachable else "no connection, and it is not in the cache"
        raise NoModel(f"model {name!r} is not a directory here and could not be fetched from the hub "
                      f"({reason})") from error


def eos_ids(path, name, vocab_size):
    """
    Return the EOS ids of generation_config.json, or else those of config.json, as transformers and vLLM do.

    Print and leave out what is no id of the model's tokens. Raises ConfigError for a file that does not load.
    """
    for file in ("generation_config.json", "config.json"):
        if not os.path.exists(os.path.join(path, file)):
            continue
        try:
            eos = GenerationConfig.from_pretrained(path, config_file_name=file).eos_token_id
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            empty = "is empty" if not os.path.getsize(os.path.join(path, file)) else f"cannot be used ({reason})"
            raise ConfigError(f"model {name!r}: its {file} {empty}: fetch it again, or repair it") from error
        eos = eos if isinstance(eos, list) else [eos]
        good = [i for i in eos if type(i) is int and 0 <= i < vocab_size]
        if wrong := [i for i in eos if i is not None and i not in good]:
            print0(f"model {name!r}: eos_token_id of its {file} holds {str(wrong)[1:-1]}, which is no id of its "
                   f"{vocab_size} tokens: left out")
        if good:
            return good
    return []


@functools.lru_cache(maxsize=8)  # get_vocab() makes a dict of all tokens; every evaluation asks
def token_bound(tokenizer):
    """Return one more than the highest id of this tokenizer: ids may have gaps, so that len() is too low."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


# ---- what its config.json says ---------------------------------------------------------------------------------------


def check_architecture(config, need_len=0, name=""):
    """
    Raise ConfigError unless policy.py computes this Hugging Face config right, whatever is packed beside a sequence:
    full causal attention in every layer, dense blocks, plain logits. need_len: the longest sequence, 0 if not known; a
    sliding window that is no shorter is full attention.

    SUPPORTED lists what is known to be right, not what is known to be wrong: a layer that mixes tokens in another way
    (linear attention, convolution, state space) would read packed sequences as one, and nothing would say so.
    """
    def get(key, default=None):
        return getattr(config, key, default)

    def first(keys, harmless):
        return next((f"{key} = {get(key)}" for key in keys if get(key) not in harmless), "")

    kind, rope = config.model_type, rope_of(config)
    classes, layers = get("architectures") or (), get("layer_types") or ()
    known = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__ if kind in SUPPORTED else ""
    experts = first(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), (None, 0))
    scale = first(("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale"), (None, 1))
    # the engine goes by these names, the trainer by the model_type (LLaMAForCausalLM is how old Llama files spell it)
    own_code = (get("auto_map") or {}).get("AutoModelForCausalLM", "").rpartition(".")[2]
    other = next((c for c in (*classes[:1], own_code) if c and known and c.lower() != known.lower()), "")
    other_layer = next((layer for layer in sorted(layers) if layer not in ("full_attention", "sliding_attention")), "")
    partial = rope.get("partial_rotary_factor") or get("partial_rotary_factor")
    problems = [  # (whether it is so, what is wrong); the first one is told
        (hasattr(config, "text_config") or hasattr(config, "llm_config"),
         "is a model of several parts, its text model in a config inside the config"),
        (get("is_encoder_decoder") or get("is_causal", True) is False, "is not a causal language model"),
        (classes and not any(c.endswith("ForCausalLM") for c in classes),
         f"has the architecture {next(iter(classes), '')}, which is not a causal language model"),
        (experts or "moe" in kind, "is a mixture of experts" + (f" ({experts})" if experts else "")),
        (get("quantization_config"), "has quantized weights"),
        (other_layer, f"has layers of type {other_layer}"),
        (scale, f"sets {scale}"),
        (kind not in SUPPORTED, "is not among the architectures that were tested"),
        (other, f"has the architecture {other}, which is not the {known} of its model_type"),
        (kind != "gemma" and get("hidden_act", "silu") != "silu",
         f"has the activation {get('hidden_act')}, for which the engine has silu only"),
        # transformers does not read the factor, vLLM does; transformers has a bias on Qwen3's o_proj, vLLM none
        (kind != "phi3" and partial not in (None, 1), f"sets partial_rotary_factor = {partial}"),
        (kind == "qwen3" and get("attention_bias"), "sets attention_bias"),
        (type(rope.get("factor", 1.0)) not in (int, float),
         f"has rotary positions of factor {rope.get('factor')!r}, instead of a number"),
        (get("dual_chunk_attention_config"), "uses dual chunk attention"),
        # dynamic depends on the whole batch
        (rope["rope_type"] not in ("default", "linear", "yarn", "llama3", "longrope"),
         f"has rotary positions of rope_type {rope['rope_type']}")]
    model, reason = f"model {name!r}" if name else "model", next((text for wrong, text in problems if wrong), "")
    refuse(reason, f"{model}: {kind} {reason}, which policy.py does not train: choose a dense model with full "
           f"attention in every layer ({', '.join(SUPPORTED)})")
    window, short = get("sliding_window"), rope.get("original_max_position_embeddings")
    if layers and "sliding_attention" not in layers and hasattr(config, "use_sliding_window"):
        window = None  # Qwen's configs name a window that none of their layers uses
    refuse(window is not None and window < need_len, f"{model}: {kind} attends to a sliding window of {window} tokens, "
           f"which policy.py computes only where no sequence is longer, and here they have up to {need_len}: shorten "
           "them, or choose another model")
    refuse(rope["rope_type"] == "longrope" and short and short < need_len, f"{model}: {kind} has other rotary "
           f"frequencies for a batch with more than {short} positions (rope_type longrope), and sequences here have up "
           f"to {need_len}: keep them to {short}")


def rope_of(config):
    """Return the rotary settings, rope_parameters of transformers 5 or rope_scaling before it, with a rope_type."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope | {"rope_type": rope.get("rope_type", rope.get("type", "default"))}


def positions_of(config):
    """Return the longest sequence as vLLM counts it: yarn, linear and dynamic stretch the positions by their factor."""
    rope, longest = rope_of(config), getattr(config, "max_position_embeddings", None)
    if longest and rope["rope_type"] in ("yarn", "linear", "dynamic"):
        original = rope.get("original_max_position_embeddings") if rope["rope_type"] == "yarn" else None
        longest = max(longest, int((original or longest) * rope.get("factor", 1)))
    return longest


def check_positions(config, need_len, name=""):
    """Raise ConfigError if sequences of need_len tokens have more positions than the model."""
    longest = positions_of(config) or need_len
    refuse(need_len > longest, f"max_prompt_len + max_response_len = {need_len} is more than the {longest} positions "
           f"of {name!r}: shorten them, or stretch its positions with rope_scaling (yarn) in its config.json")


def check_tensor_parallel(config, tensor_parallel, name=""):
    """Raise ConfigError unless the engine can cut heads and matrices into this many parts."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "intermediate_size", None) or 0
    parts = {f"the {heads} attention heads": heads, f"the {width} rows of the MLP": width}
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:  # fewer than parts: vLLM keeps copies
        parts[f"the {kv_heads} key-value heads"] = kv_heads
    for what, count in parts.items():
        refuse(count % tensor_parallel,
               f"tensor_parallel = {tensor_parallel} does not divide {what} of model {name!r}: choose a divisor")


# ---- what its files hold ---------------------------------------------------------------------------------------------


def check_weights(path, config, name):
    """
    Raise ConfigError unless the files hold every weight of the model in its shape, and none that the model would leave
    out (a bias, a layer). Only the headers are read.
    """
    with torch.device("meta"):
        hf = own_class(config)(config)
    wanted = {key: list(weight.shape) for key, weight in hf.state_dict().items()}
    held, trunk, tied = weights_in(path, name), hf.base_model_prefix + ".", hf.config.tie_word_embeddings
    if not any(key.startswith(trunk) for key in held):  # saved without its head: transformers adds the prefix
        held = {key if key in wanted else trunk + key: shape for key, shape in held.items()}
    for key, shape in wanted.items():
        found = held.get(key, shape if tied and key == "lm_head.weight" else None)
        refuse(found != shape, f"model {name!r}: {key} of shape {shape} "
               f"{f'has the shape {found}' if found else 'is not in its files'}: is the directory whole, and its "
               "config.json the one that belongs to these weights?")
    left_out = sorted(key for key in held if key not in wanted and key.startswith((trunk, "lm_head."))
                      and "rotary_emb." not in key)
    refuse(left_out, f"model {name!r}: its files hold {next(iter(left_out), '')} ({len(left_out)} such), which a "
           f"{config.model_type} of this config.json leaves out: is it the one that belongs to these weights?")


def weights_in(path, name):
    """Return {weight: shape} of the files that transformers would load; raise ConfigError if one is not whole."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        held, file = {}, single
        try:
            files = [single]
            if not os.path.exists(os.path.join(path, single)):
                file = single + ".index.json"
                if not os.path.exists(os.path.join(path, file)):
                    continue
                with open(os.path.join(path, file), encoding="utf-8") as f:
                    files = sorted(set(json.load(f)["weight_map"].values()))
            for file in files:
                if file.endswith(".bin"):  # "meta": reads no weight
                    loaded = torch.load(os.path.join(path, file), map_location="meta", weights_only=True)
                    held |= {key: list(weight.shape) for key, weight in loaded.items()}
                else:
                    with safe_open(os.path.join(path, file), "pt") as f:
                        held |= {key: f.get_slice(key).get_shape() for key in f.keys()}
        except Exception as error:  # a torn or missing file, a pointer of git-lfs: each kind of file has its own errors
            reason = f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:100]})"
            reason = "is not there" if isinstance(error, FileNotFoundError) else reason
            raise ConfigError(f"model {name!r}: its {file} {reason}: fetch it again, whole (git lfs pull, where it "
                              "came with git)") from error
        return held
    raise ConfigError(f"model {name!r} has no weights that transformers would load: neither model.safetensors nor "
                      f"pytorch_model.bin, whole or with an index, in {path}")


disable_progress_bar()  # "Loading weights" of one second


def load_hf(path):
    """Load a Hugging Face causal LM with packed attention, in the dtype of its files and without dropout."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    check_architecture(config, name=path)
    hf, info = own_class(config).from_pretrained(path, dtype="auto", attn_implementation="packed",
                                                 output_loading_info=True)
    left_out = sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"]))
    refuse(left_out, f"model {path!r}: its files hold no {next(iter(left_out), '')} that fits its config ("
           f"{len(left_out)} in all), which would start at random: is the directory whole?")
    refuse(hf.config.tie_word_embeddings and hf.get_output_embeddings().weight is not hf.get_input_embeddings().weight,
           f"model {path!r}: its config.json says tie_word_embeddings, but its files hold another lm_head.weight than "
           "the embeddings: set tie_word_embeddings to false there")
    hf.config.attention_dropout = 0.0  # RL compares log-probs of two passes: dropout would make them differ
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return hf


def own_class(config):
    """
    Return transformers' class for this config, as a copy. vLLM's Transformers backend (SmolLM3, OLMo 2) rewrites the
    class of the decoder in place, in this same process, and then no model of that class runs outside of vLLM.
    """
    shared = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return getattr(own_module(shared.__module__), shared.__name__)


@functools.cache
def own_module(name):
    """Import a module of transformers once more, under another name, so that its classes are the trainer's alone."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_trainer", sys.modules[name].__file__)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
