"""
Held-out success of a checkpoint, with the same engine, prompts and rewards as training.

    python eval.py --model out/demo/model --data tiny_countdown --template tiny_countdown --reward tinyzero_countdown
"""

import os
from dataclasses import dataclass
from typing import Literal

import common
import data
import rewards
import rollout as sampler
import samples as samples_file
from config import ConfigError, load_config
from metrics import summarise


@dataclass(frozen=True)
class Config:
    model: str = "out/demo/model"        # Hugging Face directory or hub id
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU
    seed: int = 0                        # decides every sampled token
    data: str | dict = "tiny_countdown"  # source name, or {name: weight}
    data_path: str | dict = ""           # local JSONL, parquet or directory instead of the hub, or {source: path}
    split: str = "test"
    limit: int = 0                       # use only so many rows, 0 = all
    template: str | dict = "tiny_countdown"
    reward: str | dict = "tinyzero_countdown"
    samples: int = 4                     # per prompt, at `temperature`; one greedy response beside them
    temperature: float = 1.0
    max_prompt_len: int = 256            # tokens
    max_response_len: int = 1024         # tokens
    stop: tuple = ()                     # strings that end a response; EOS always does
    max_num_seqs: int = 256
    kv_cache_gb: float = 0.0
    tensor_parallel: int = 1
    deadline_s: float = 7200.0           # after it, unfinished responses are cut off and count as truncated
    output: str = ""                     # write every completion and its score to this JSONL file


class NoModel(ConfigError):
    """There is no such model, or none can be fetched; `reason` is the message without "error: "."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


def resolve_model(name, need_len, weights=True):
    """
    Directory or hub id -> (local path, HF config, tokenizer, stop ids), before any weights are loaded.

    weights False: of a hub model fetch the small files only. Raises ConfigError: not there (NoModel), no tokenizer, no
    EOS, a tokenizer larger than the vocabulary, or too short a context.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    looks_local = name.startswith((".", "/", "~", "out/")) or name.count("/") != 1 or os.path.exists(name)
    path = os.path.expanduser(name)
    if looks_local and not os.path.isfile(os.path.join(path, "config.json")):
        what = "has no config.json" if os.path.isdir(path) else "is not there"
        raise NoModel(f"model directory {name!r} {what}: give a Hugging Face directory or a hub id like Qwen/Qwen2.5-3B")
    if not looks_local:
        from huggingface_hub import snapshot_download

        try:  # every rank asks; all but the first find it in the cache, which has its own lock
            patterns = ["*.json", "*.model", "*.txt", "*.jinja"] + ["*.safetensors"] * weights
            reachable = data.hub_reachable()
            path = snapshot_download(name, allow_patterns=patterns, local_files_only=not reachable)
        except Exception as error:  # hub errors have many types; each means the same to the user
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            reason = reason if reachable else "no connection, and it is not in the cache"
            raise NoModel(f"model {name!r} is not a directory here and could not be fetched from the hub ({reason})") from error
    if weights and not any(file.endswith((".safetensors", ".bin")) for file in os.listdir(path)):
        raise ConfigError(f"model {name!r} has no weights: no .safetensors file in {path}")
    what = "config.json"
    try:
        config = AutoConfig.from_pretrained(path)
        what = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {name!r}: its {what} does not load: {str(error).splitlines()[0][:120]}") from error
    stop_ids = {tokenizer.eos_token_id}
    if os.path.exists(os.path.join(path, "generation_config.json")):
        eos = GenerationConfig.from_pretrained(path).eos_token_id
        stop_ids |= set(eos if isinstance(eos, list) else [eos])
    stop_ids -= {None}
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {name!r} has no EOS token: set eos_token in its tokenizer_config.json")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its model only {config.vocab_size}")
    longest = getattr(config, "max_position_embeddings", None) or need_len
    if need_len > longest:
        raise ConfigError(f"max_prompt_len + max_response_len = {need_len} is more than the {longest} positions of {name!r}")
    return path, config, tokenizer, sorted(stop_ids)


def check_rewards(reward, parts=None):
    """An unknown reward or part is an error at start-up, never inside a run."""
    try:
        for name in [reward] if isinstance(reward, str) else reward.values():
            rewards.check(name, parts or ())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def evaluate(prompts, seed, samples, temperature, *, version, keep=8, **sample):
    """
    Held-out success -> (row, kept rollouts of the first prompts). The seed of a sample depends on the run's seed,
    the prompt and the sample alone: two evaluations of the same weights are the same, and training is not touched.
    """
    timer = sample["timer"]
    inner = common.Timer(timer.device)  # generating for an evaluation is not the step's rollout time
    start = timer.now()
    sampled = []
    if samples:
        seeds = [[common.stable_seed(seed, "eval", p.uid, k) for k in range(samples)] for p in prompts]
        sampled = sampler.sample_and_score(prompts, seeds, temperature=temperature, version=version,
                                           **{**sample, "timer": inner})
    greedy = sampler.sample_and_score(prompts, [[0]] * len(prompts), temperature=0.0, version=version,
                                      **{**sample, "timer": inner})
    row = summarise(sampled or greedy, sample["tokenizer"])
    row |= {"eval_correct": row["correct"], "eval_correct_greedy": sum(r.score.correct for r in greedy) / max(1, len(greedy)),
            "eval_reward": row["reward"], "eval_response_len": row["response_len"], "eval_truncated": row["truncated"],
            "eval_format_error": row["format_error"], "eval_reflection_words": row["reflection_words"],
            "eval_rollouts": len(sampled)}
    timer.seconds["eval"] += timer.now() - start
    kept = [samples_file.row(r, prompts[r.prompt], version, "held-out", sample["tokenizer"]) for r in sampled if r.prompt < keep]
    kept += [{**samples_file.row(r, prompts[r.prompt], version, "held-out", sample["tokenizer"]), "sample": "greedy"}
             for r in greedy if r.prompt < keep]
    return row, kept


def main():
    cfg, _ = load_config(Config)
    rank, world, device = common.init_distributed(cfg.deadline_s + 3600)
    if cfg.tensor_parallel < 1 or world % cfg.tensor_parallel:
        raise ConfigError(f"tensor_parallel = {cfg.tensor_parallel} does not divide the {world} processes")
    dtype = cfg.dtype if cfg.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    check_rewards(cfg.reward)
    path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, cfg.max_prompt_len + cfg.max_response_len)
    prompts, _ = data.load_prompts(cfg.data, cfg.template, cfg.reward, tokenizer, split=cfg.split, limit=cfg.limit or None,
                                   seed=cfg.seed, max_prompt_len=cfg.max_prompt_len, paths=cfg.data_path or None,
                                   vocab_size=hf_config.vocab_size, check_answer=rewards.check_answer)
    engine = sampler.make_engine(
        path, config=hf_config, dtype=dtype, prompt_len=cfg.max_prompt_len, response_len=cfg.max_response_len,
        max_num_seqs=cfg.max_num_seqs, kv_cache_gb=cfg.kv_cache_gb, tensor_parallel=cfg.tensor_parallel, seed=cfg.seed,
        rank=rank, device=device, stop_strings=bool(cfg.stop))
    engine.update_weight_version("0")
    scorer, timer = rewards.Scorer(), common.Timer(device)
    row, kept = evaluate(
        prompts, cfg.seed, cfg.samples, cfg.temperature, version=0, keep=len(prompts), engine=engine, tokenizer=tokenizer,
        scorer=scorer, timer=timer, max_tokens=cfg.max_response_len, stop_ids=stop_ids, stop_strings=cfg.stop, repetition_stop=0,
        deadline_s=cfg.deadline_s, engines=world // cfg.tensor_parallel, engine_rank=rank // cfg.tensor_parallel,
        leader=rank % cfg.tensor_parallel == 0, vocab_size=hf_config.vocab_size)
    scorer.close()
    if rank == 0:
        if cfg.output:
            import json

            with open(cfg.output, "w") as f:
                f.writelines(json.dumps(r) + "\n" for r in kept)
        print(f"{cfg.model}: {len(prompts)} held-out problems, {cfg.samples} samples each at temperature {cfg.temperature}: "
              f"right {row['eval_correct']:.1%}, greedy {row['eval_correct_greedy']:.1%}, format errors "
              f"{row['format_error']:.1%}, truncated {row['truncated']:.1%}, mean length {row['response_len']:.0f} tokens, "
              f"{timer.take()['step']:.0f} s")


if __name__ == "__main__":
    common.entry(main)
