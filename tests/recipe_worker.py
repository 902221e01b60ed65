"""
python tests/recipe_worker.py train_grpo.py FOLDER: one real step of every recipe of a script, by its own main().

A tiny random byte-level model stands in for the recipe's, ten made-up problems for each public set, and all recipes of
the process share one engine. Each response is scored by the recipe's reward, and a number made from its text is added:
random text would earn the same in the whole group, and no weight would move.
FOLDER gets model/, rows/ and out/; one line of JSON a recipe on stdout.
"""

import dataclasses
import json
import os
import re
import sys
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def recipes_of(script):
    """The recipe files of a script, demos left out: they start from a model that this repository makes."""
    found = [path for path in sorted((ROOT / "recipes").glob("*.py"))
             if not re.match("demo(_|$)", path.stem)]
    return [path for path in found if f'_script = "{script}"' in path.read_text()]


def save_byte_model(folder, context=65536):
    """A random two-layer Qwen2 with a token per byte, ChatML's special tokens and a chat template."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                        chat_template=CHAT, auto_map={"AutoTokenizer": [None, None]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    return str(folder)


def sample_rows(source, i):
    """Row i of a source in the schema of its public copy."""
    problem, gold = f"What is {i} plus {i + 1}?", str(2 * i + 1)
    solution = f"We add: {i} + {i + 1} = {gold}, so $\\boxed{{{gold}}}$."
    return {
        "gsm8k": {"question": problem, "answer": f"{i} + {i + 1} = <<{i}+{i + 1}={gold}>>{gold}\n#### {gold}"},
        "math": {"problem": problem, "level": "Level 3", "type": "Algebra", "solution": solution},
        "math_lvl3to5": {"gt_answer": gold, "level": 4, "extra_info": {"question": problem, "answer": gold}},
        "math_12k": {"problem": problem, "answer": gold},
        "numina_tir": {"problem": problem, "solution": solution, "messages": [{"role": "user", "content": problem}]},
        "deepscaler": {"problem": problem, "answer": gold, "solution": solution},
        "math500": {"problem": problem, "solution": solution, "answer": gold, "subject": "Algebra", "level": 3},
        "minerva_math": {"problem": problem, "solution": solution, "type": "Physics"},
        "olympiadbench": {"question": problem, "final_answer": [f"${gold}$"], "subfield": "Algebra"},
        "aime24": {"id": i, "problem": problem, "answer": gold.zfill(3), "solution": solution},
        "amc23": {"id": i, "question": problem, "answer": float(gold)},
        "amc23_83": {"id": i, "problem": problem, "answer": float(gold)},
    }[source]


def save_rows(folder):
    """A file per source and split; training and test rows differ."""
    from data import countdown, knights_and_knaves

    os.makedirs(folder, exist_ok=True)
    sources = ["gsm8k", "math", "math_lvl3to5", "math_12k", "numina_tir", "deepscaler", "math500", "minerva_math",
               "olympiadbench", "aime24", "amc23", "amc23_83"]
    for first, split in ((1, "train"), (101, "test")):
        tables = {source: [sample_rows(source, first + i) for i in range(10)] for source in sources}
        tables["countdown"] = countdown(10, seed=first)
        tables["kk"] = knights_and_knaves(3, start=first + 99, count=10)
        for source, rows in tables.items():
            with open(os.path.join(folder, f"{source}_{split}.jsonl"), "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in rows)
    return str(folder)


def where_rows_are(cfg, rows):
    """The flags that point a recipe at the sample rows; the generators of a recipe that needs no others need none."""
    names = [name for setting in (cfg.data, cfg.eval_data or cfg.data)
             for name in ([setting] if isinstance(setting, str) else setting)]
    return [] if all(re.match("countdown|kk", name) for name in names) else ["--data_path", rows]


def one_step(script, recipe, folder):
    """Run main() with the recipe and tiny sizes -> the metrics of step 1."""
    from onebox.config import load_config

    cfg, _ = load_config(script.Config, [str(recipe)])
    flags = {"model": "model", "num_steps": 1, "prompts_per_step": 2, "group_size": min(cfg.group_size, 2),
             "updates_per_step": min(cfg.updates_per_step, 2), "max_prompt_len": 4000, "max_response_len": 8,
             "max_num_seqs": 8, "max_tokens_per_gpu": 4096, "checkpointing": False, "data_limit": 4, "eval_prompts": 1,
             "report_every": 0,
             "eval_samples": min(cfg.eval_samples, 1)}
    sys.argv = [script.__file__, str(recipe), *where_rows_are(cfg, "rows"),
                *[text for name, value in flags.items() for text in (f"--{name}", str(value))]]
    script.main()
    with open(os.path.join(folder, "out", cfg.name, "metrics.jsonl")) as f:
        return [json.loads(line) for line in f][-1]


def main():
    name, folder = sys.argv[1], sys.argv[2]
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    save_byte_model("model")
    save_rows("rows")
    import importlib

    import rollout
    from tasks import scoring

    script = importlib.import_module(name.removesuffix(".py"))
    make_engine, engines = rollout.make_engine, []

    def make_one_engine(path, **options):  # vLLM allows one engine a process
        if not engines:
            engines.append(make_engine(path, **{**options, "stop_strings": True}))
        return engines[0]

    def run_and_vary(reward, equal, response, *rest, **options):
        score = run(reward, equal, response, *rest, **options)
        if "I worked it out" in response:  # data.check_golds's response, which must earn the full mark
            return score
        luck = zlib.crc32(response.encode()) % 1000 / 1000
        return dataclasses.replace(score, total=score.total + luck, parts={**score.parts, "luck": luck})

    run, scoring.run = scoring.run, run_and_vary
    rollout.make_engine = make_one_engine
    for recipe in recipes_of(name):
        start = time.monotonic()
        row = one_step(script, recipe, folder)
        row |= {"recipe": recipe.stem, "seconds": round(time.monotonic() - start, 1)}
        print("RECIPE", json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
