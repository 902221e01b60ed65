"""
How many operators torch dispatches in forward and backward of one micro-batch of SFT, not compiled: what the host does
before a GPU can begin. A Llama of SmolLM2-135M's 30 layers, narrow, in bf16, 16 sequences; no time is measured.

    python bench/operators.py [--repo FOLDER] [--layers 30] [--out FILE]     # --repo: another commit of this repository
"""

import argparse
import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", default=HERE)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--out", default="", help="a file to which the lines are added")
    args = parser.parse_args()
    sys.path.insert(0, os.path.abspath(args.repo))
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from onebox.distributed import init_distributed
    from policy import Policy, pack, shard, token_logprobs

    class Count(TorchDispatchMode):
        all = no_views = 0

        def __torch_dispatch__(self, operator, types, given=(), named=None):
            self.all += 1
            self.no_views += not operator.is_view
            return operator(*given, **(named or {}))

    _, _, device = init_distributed()
    config = AutoConfig.for_model("llama", vocab_size=512, hidden_size=72, intermediate_size=96,
                                  num_hidden_layers=args.layers, num_attention_heads=9, num_key_value_heads=3,
                                  tie_word_embeddings=True)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="packed")
    options = {"checkpointing": False} if "checkpointing" in inspect.signature(shard).parameters else {}
    policy = shard(Policy(hf), hf.get_decoder(), device, "bfloat16", **options)
    rollouts = [SimpleNamespace(prompt_ids=list(range(20)), response_ids=list(range(40)),
                                rollout_logprobs=np.zeros(40, np.float32)) for _ in range(16)]
    (batch,) = pack(rollouts, range(16), 2000, 0, 1, device)
    for _ in range(2):  # the second time gradients are there, as in all but the first micro-batch of an update
        with Count() as count:
            logprobs, _ = token_logprobs(policy, batch, 1.0)
            (-logprobs.sum() / len(logprobs)).backward()
    commit = subprocess.run(["git", "-C", args.repo, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    line = (f"commit {commit.stdout.strip() or '?'}: {args.layers} layers, {device}: "
            f"{count.all:,} operators, of them {count.no_views:,} that are no views")
    print(line)
    if args.out:
        with open(args.out, "a") as f:
            f.write(line + "\n")


if __name__ == "__main__":
    main()
