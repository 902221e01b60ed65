"""
Where problems come from: the public data sets, and the benchmarks made of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    source: str         # of data.py
    reward: str         # of rewards.py: `correct` is what counts
    chat: str           # template where the tokenizer has a chat template (in raw ones: and the token <|im_start|>)
    text: str           # template of a base model
    samples: int = 0    # a problem, at `temperature`; 0: one greedy response. Sets of 30 or 40 problems need many
    split: str = "test"
    limit: int = 0      # problems, 0 = all


def boxed(source, samples=0):
    return Benchmark(source, "math", "deepscaler", "boxed_text", samples)


BENCHMARKS = {  # in the order of the survey's tables                            problems
    "gsm8k": boxed("gsm8k"),                                                   # 1,319
    "math500": boxed("math500"),                                               # 500
    "minerva": boxed("minerva_math"),                                          # 272
    "olympiadbench": boxed("olympiadbench"),                                   # 674, of the Qwen2.5-Math copy 675
    "aime24": boxed("aime24", samples=32),                                     # 30
    "amc23": boxed("amc23", samples=32),                                       # 40, of 2023
    "amc23_83": boxed("amc23_83", samples=32),                                 # 83, of 2022 and 2023
    "countdown": Benchmark("countdown", "tinyzero_countdown", "tinyzero_instruct", "tinyzero_base", limit=1024),
    "kk": Benchmark("kk:2-8", "logic_rl_kk", "logic_rl_instruct", "logic_rl_base", split="official_test"),  # 700
    "tiny_countdown": Benchmark("tiny_countdown", "tinyzero_countdown", "tiny_countdown", "tiny_countdown", samples=4),
}
