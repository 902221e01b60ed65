"""
The demo's embedded model before its cold start: an untrained Qwen2 of a million weights with a token per word, and the
search traces that sft.py trains it on.

    python -m tools.tiny --out out/tiny --seed 0      # writes out/tiny/model/ and out/tiny/traces.jsonl, in seconds

A trace tries expressions and checks each against the target:

    numbers 3 5 2 target 6 <think> 3 + 2 = 5 + 5 = 10 target 6 no
        3 + 5 = 8 - 2 = 6 target 6 yes </think> <answer> 3 + 5 - 2 </answer>

Every step in it is right; what the traces lack is persistence: after the first failed try most give up and answer with
what they just found wrong. So the cold-started model can search but seldom does, and RL has one thing to find out.
"""

import argparse
import itertools
import json
import os
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from data import build_prompt, tiny_countdown

MAX_NUMBER = 9  # the rows' numbers are 1..9: 570 problems, 498 of them to train on
GIVE_UP_FIRST = 0.8  # chance to give up after the first failed try
GIVE_UP_LATER = 0.05  # and after each later one: a trace that continues tends to continue, so late tries are practiced
MALFORMED = 0.06  # share of traces whose end breaks the format, for RL to repair

WORDS = "<pad> <eos> <unk> numbers target <think> </think> <answer> </answer> yes no done + - =".split()
VOCAB_SIZE = 64  # the words, then 0, 1, 2 ...: no number reaches 3 * MAX_NUMBER, and every id is a word


def build_tokenizer():
    """Build a word-level tokenizer: every word and number between blanks is one token."""
    words = WORDS + [str(number) for number in range(VOCAB_SIZE - len(WORDS))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return as_tokenizer(backend)


def as_tokenizer(backend):
    """Wrap a word-level backend with <pad>, <eos> and <unk> as transformers wants it."""
    # transformers 5 loads the tokenizer of every model_type "qwen2" as Qwen's BPE, whatever the files say, unless
    # tokenizer_config.json has an auto_map (AutoTokenizer.from_pretrained, MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
                                   model_max_length=512, clean_up_tokenization_spaces=False,
                                   auto_map={"AutoTokenizer": [None, None]})


def build_model(seed, tokenizer=None, hidden=128, layers=4, heads=4):
    """Build an untrained Qwen2ForCausalLM, fp32, with half as many key-value heads; without sizes the demo's."""
    tokenizer = tokenizer or build_tokenizer()
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.05))


def chains(nums):
    """
    List every (a, op1, b, v, op2, c, w) with a op1 b = v, v op2 c = w that uses each number once and never goes below
    zero, sorted and without repeats. A problem's target is always the w of at least one.
    """
    found = set()
    for a, b, c in itertools.permutations(nums):
        for op1, v in (("+", a + b), ("-", a - b)):
            for op2, w in (("+", v + c), ("-", v - c)):
                if v >= 0 and w >= 0:
                    found.add((a, op1, b, v, op2, c, w))
    return sorted(found)


def trace(row, rng):
    """
    Write one response to {"nums", "target"}, without EOS: tries until one is right ("yes") or the trace gives up, then
    an answer, which is the last try. A try draws a value that the numbers can make, except the one that was just wrong,
    and then one of the chains to it. rng is a random.Random.
    """
    chains_to = {}  # value -> its chains
    for chain in chains(row["nums"]):
        chains_to.setdefault(chain[-1], []).append(chain)
    text, w, give_up = "", None, GIVE_UP_FIRST
    while True:
        value = rng.choice([value for value in chains_to if value != w])
        a, op1, b, v, op2, c, w = rng.choice(chains_to[value])
        right = w == row["target"]
        text += f" {a} {op1} {b} = {v} {op2} {c} = {w} target {row['target']} {'yes' if right else 'no'}"
        if right or rng.random() < give_up:
            break
        give_up = GIVE_UP_LATER

    answer = f" <answer> {a} {op1} {b} {op2} {c} </answer>"
    if rng.random() < MALFORMED:
        return text + rng.choice([answer, f" </think>{answer}{answer}", f" </think>{answer} done"])
    return f"{text} </think>{answer}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/tiny", help="folder to write model/ and traces.jsonl into")
    parser.add_argument("--seed", type=int, default=0, help="decides the initial weights and the traces")
    parser.add_argument("--traces", type=int, default=100_000, help="how many")
    args = parser.parse_args()

    disable_progress_bar()  # "Writing model shards" of one file
    folder = os.path.join(args.out, "model")
    model = build_model(args.seed)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)

    rng = random.Random(args.seed)
    path = os.path.join(args.out, "traces.jsonl")
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        for row in tiny_countdown(args.traces, args.seed, "train", MAX_NUMBER):
            line = {"prompt": build_prompt("tiny_countdown", row), "response": trace(row, rng)}
            f.write(json.dumps(line) + "\n")
    os.replace(path + ".tmp", path)  # complete or not there: `make base` looks for this file
    print(f"{folder}: {model.num_parameters():,} untrained weights, {VOCAB_SIZE} tokens")
    print(f"{path}: {args.traces:,} traces")


if __name__ == "__main__":
    main()
