"""
Cold start: supervised fine-tuning on {"prompt": ..., "response": ...} lines, packed, through the same policy.py as RL.

    torchrun --standalone --nproc-per-node=8 sft.py --model Qwen/Qwen2.5-3B --data traces.jsonl --name cold-start

Only response tokens are trained, and EOS after each. A {"messages": [...]} line goes through the model's chat template:
the assistant's last message is trained, with its thinking. What a line holds and training would lose makes it a bad
line.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from onebox.distributed import Broken, init_distributed, print0, sum_over_ranks  # first: sets what libraries read
from onebox.distributed import progress_bar

import numpy as np
import torch

from data import encode_prompt, prompt_order
from onebox.checkpoint import fingerprint_of_model
from onebox.config import ConfigError, NonNegative, Positive, check_ranges, load_config, refuse
from onebox.models import check_architecture, resolve_dtype, resolve_model
from onebox.rundir import BasicSettings, entry, open_run
from onebox.text import excerpt
from policy import check_compile, learning_rate, load_options, load_policy, make_adam, optimizer_step, pack
from policy import token_logprobs
from tasks.rows import read_file
from tasks.templates import check_chat, not_written, render_chat


@dataclass(frozen=True)
class Config(BasicSettings):  # what does not change what is learned: checkpoints, memory, wandb
    name: str = "sft"                    # the run lies in out/<name>/
    save_every: NonNegative[int] = 0     # checkpoint every N steps; 0 = only the last

    seed: NonNegative[int] = 0           # decides the order of the examples
    num_steps: Positive[int] = 500
    model: str = "Qwen/Qwen2.5-3B"       # Hugging Face directory or hub id
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU

    data: str = "traces.jsonl"           # JSONL with prompt and response, or messages
    chat_template_kwargs: dict | None = None  # arguments of the model's chat template, e.g. {"enable_thinking": False}
    chat_date: str = "2024-07-26"        # the date that a chat template is told; prompts must not depend on the day
    max_len: Positive[int] = 4096        # tokens of prompt and response; longer examples are refused and counted
    tokens_per_step: Positive[int] = 65536  # over all GPUs: whole examples up to so many tokens

    lr: NonNegative[float] = 1e-5        # peak
    lr_min_ratio: float = 0.0            # cosine ends at this share of it
    warmup_steps: NonNegative[int] = 20
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: NonNegative[float] = 0.0
    grad_clip: NonNegative[float] = 1.0


def load_examples(path, tokenizer, max_len, chat=None):
    """
    Read a JSONL file into a list of (prompt_ids, response_ids with EOS). Bad lines are counted, the first three shown.

    Raises ConfigError if more than 1 % of them are bad, or all.
    """
    if not os.path.isfile(path):
        what = "a directory" if os.path.isdir(path) else "not there"
        raise ConfigError(f"data file {path!r} is {what}: give a JSONL file with one prompt and response a line")
    lines = read_file(Path(path))
    if not lines:
        raise ConfigError(f"data file {path!r} is empty: give a JSONL file with one prompt and response a line")
    examples, bad = [], []
    for number, row in lines:
        try:
            prompt_ids, response = to_prompt(row, tokenizer, chat)
            response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        except Exception as error:  # templates and tokenizers raise what they like: this line cannot be used
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            bad.append(f"line {number}: {kind}{excerpt(str(error), 150)}")
            continue
        if response_ids[-1:] != [tokenizer.eos_token_id]:
            response_ids = response_ids + [tokenizer.eos_token_id]
        if not prompt_ids:
            bad.append(f"line {number}: the prompt is empty")
        elif len(prompt_ids) + len(response_ids) > max_len:
            bad.append(f"line {number}: {len(prompt_ids) + len(response_ids)} tokens, max_len is {max_len}")
        else:
            examples.append((prompt_ids, response_ids))
    if bad:
        print0(f"{path}: {len(bad)} of {len(lines)} lines not used; first: " + "; ".join(bad[:3]))
    if len(bad) > 0.01 * len(lines) or not examples:
        raise ConfigError(f"{path}: {len(bad)} of {len(lines)} lines cannot be used (more than 1 %); first: "
                          f"{'; '.join(bad[:3])}")
    return examples


def has_messages(path):
    """Tell whether any line may go through the chat template."""
    if not os.path.isfile(path):
        return True  # load_examples says that
    return any(isinstance(row, dict) and "messages" in row for _, row in read_file(Path(path)))


REASONING = ("reasoning_content", "reasoning", "thinking")  # names under which chat templates look for it
NOT_TRAINED = ("system", "system_prompt", "instruction", "input", "history", "context", "tools", "functions", "images",
               "cot", "rationale", "thought", *REASONING)  # beside prompt and response
MARK = "[END-OF-CONTENT]"  # which no template writes by itself


def to_prompt(row, tokenizer, chat=None):
    """Turn {"prompt", "response"}, or {"messages"} that end with the assistant, into (prompt ids, response text)."""
    if isinstance(row, Exception):  # a line that data.py could not read
        raise ValueError(str(row))
    if not isinstance(row, dict):
        raise ValueError("not an object")
    pair = [row.get("prompt"), row.get("response")]
    if row.get("messages") is None and None in pair:
        raise ValueError(f"wanted are prompt and response, or messages; the line has {', '.join(row)}")
    turns = row["messages"] if isinstance(row.get("messages"), list) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    said = [*pair, *contents]
    said = [text for text in said if isinstance(text, str)]
    if lost := [key for key in NOT_TRAINED if (value := row.get(key))
                and not (isinstance(value, str) and any(value in text for text in said))]:
        raise ValueError(f"holds {', '.join(lost)}, which would be lost: put it into the prompt, the response or the "
                         "messages")
    if row.get("messages") is not None:
        if any(text is not None and text not in contents for text in pair):  # hub sets repeat a message as `prompt`
            raise ValueError("holds both messages and a prompt or response")
        prompt, response = from_messages(row["messages"], tokenizer, chat)
        return tokenizer(prompt, add_special_tokens=False)["input_ids"], response
    if not all(isinstance(text, str) for text in pair) or not row["response"].strip():
        raise ValueError("prompt and response must be text, and the response not empty")
    if (tag := opened_by(row["prompt"])) and row["response"].lstrip().startswith(tag):
        raise ValueError(f"{tag} stands at the end of the prompt and again at the start of the response")
    return encode_prompt(tokenizer, row["prompt"]), row["response"]


def from_messages(messages, tokenizer, chat=None):
    """
    Split a chat into (prompt, response): what the template writes up to the assistant's last message, and from there to
    the end of its content, which is where a template puts reasoning_content. If the template would leave thinking out
    of the content, as it does with turns before the last, the response is the content itself.

    Raises ValueError if anything would be lost.
    """
    if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(turn, dict) for turn in messages):
        raise ValueError("messages must be a list of at least two objects")
    for message in messages:
        if not isinstance(message.get("content"), str):
            raise ValueError(f"the content of a message must be text, not {type(message.get('content')).__name__}")
        known = ("role", "content", *REASONING, *["weight"] * (message is messages[-1]))
        if lost := [key for key in message if key not in known and message[key]]:
            raise ValueError(f"a message holds {', '.join(lost)}, which would be lost")
    if messages[-1].get("weight") not in (None, 1):
        raise ValueError(
            f"the last message has weight {messages[-1]['weight']}, and only that one is trained, as a whole")
    *before, last = messages
    content, reasoning = last["content"], [last[key] for key in REASONING if last.get(key)]
    if last.get("role") != "assistant" or not content.strip() or not all(isinstance(text, str) for text in reasoning):
        raise ValueError("the last message must be the assistant's, with a content that is not empty")
    prompt = render_chat(tokenizer, before, chat)
    if (left_out := not_written(tokenizer, before, prompt, chat)) is not None:
        raise ValueError(f"the chat template does not write the message of role {left_out.get('role')!r}")
    whole, marked = (render_chat(tokenizer, [*before, {**last, "content": text}], chat, add_generation_prompt=False)
                     for text in (content, content + MARK))
    head, _, tail = marked.rpartition(MARK)  # tail: how the template ends a turn
    written = next((text for text in (head, head.rstrip()) if text + tail == whole), "")
    tag, response = opened_by(prompt), written[len(prompt):] if written.startswith(prompt) else ""
    if not all("".join(text.split()) in "".join((tag + response).split()) for text in (content, *reasoning)):
        if reasoning:
            raise ValueError("the chat template does not write the reasoning of the last message: put it into its "
                             "content")
        response = content
    if tag and response.lstrip().startswith(tag):  # the prompt has it
        response = response.lstrip().removeprefix(tag).lstrip()
    if tag and f"{tag[0]}/{tag[1:]}" not in response:
        raise ValueError(f"the chat template opens {tag} for the assistant, and its message never closes it")
    return prompt, response


def opened_by(prompt):
    """Return the <think>, or tag like it, that a prompt ends in, or "". The response must close it, and not open it."""
    found = re.search(r"[<\[][\w:]*(?:think|thought|reason)\w*[>\]](?=\s*\Z)", prompt[-50:], flags=re.IGNORECASE)
    return found[0] if found else ""


def prepare(examples, seen, cfg, max_tokens, rank, world, device):
    """Return (whole examples up to tokens_per_step, how many were seen after them, their micro-batches)."""
    chosen, tokens = [], 0
    while True:
        [(_, i)] = prompt_order([len(examples)], None, cfg.seed, seen, 1)
        prompt_ids, response_ids = examples[i]
        tokens += len(prompt_ids) + len(response_ids)
        if tokens > cfg.tokens_per_step:
            return chosen, seen, pack(chosen, range(len(chosen)), max_tokens, rank, world, device)
        chosen.append(SimpleNamespace(prompt_ids=prompt_ids, response_ids=response_ids,
                                      rollout_logprobs=np.zeros(len(response_ids), np.float32)))
        seen += 1


def main():
    cfg, origin = load_config(Config)
    check_ranges(cfg)
    check_compile(cfg.compile, cfg.checkpointing)
    rank, world, device = init_distributed()
    refuse(world % (cfg.shard_size or world), f"shard_size = {cfg.shard_size} does not divide the {world} processes")
    dtype = resolve_dtype(cfg.dtype, device)
    path, hf_config, tokenizer, stop_ids = resolve_model(cfg.model, 0)
    chat = check_chat(cfg, tokenizer, not cfg.chat_template_kwargs or has_messages(cfg.data))
    examples = load_examples(cfg.data, tokenizer, min(cfg.max_len, cfg.tokens_per_step), chat)
    check_architecture(hf_config, max(len(p) + len(r) for p, r in examples), cfg.model)
    if cfg.check:
        return print0(f"{len(examples)} examples; first: {tokenizer.decode(examples[0][0] + examples[0][1])!r}")
    text = json.dumps(examples).encode()
    fingerprints = {"model": fingerprint_of_model(path), "training": hashlib.sha256(text).hexdigest()}
    run = open_run(cfg, origin, device, fingerprints)
    if run is None:  # it is complete
        return
    cfg = run.cfg                                    # "auto" has become plain values
    policy = load_policy(path, device, dtype, **load_options(cfg))
    optimizer = make_adam(policy, cfg.lr, cfg.adam_beta1, cfg.adam_beta2, cfg.weight_decay)
    progress = run.resume({"policy": (policy, optimizer)})
    examples = [tuple(np.asarray(ids, dtype=np.int32) for ids in example) for example in examples]
    window, stopped_by = [0.0, 0], ""  # seconds and tokens since the last line on the console
    following = prepare(examples, progress.prompts_seen, cfg, run.max_tokens, rank, world, device)

    for step in progress_bar(range(progress.step + 1, cfg.num_steps + 1), desc="sft", unit="step"):
        run.begin_step(step)

        # 1) whole examples in the order of this seed and epoch, until the step has its tokens
        chosen, progress.prompts_seen, batches = following
        run.keep_for_crash_report(chosen)

        # 2) mean negative log-likelihood over the response tokens of all ranks
        num_tokens = sum(len(example.response_ids) for example in chosen)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for batch in batches:
            logprobs, _ = token_logprobs(policy, batch, temperature=1.0)  # (T,)
            loss = -logprobs.sum() / num_tokens
            (loss * world).backward()  # undo FSDP's mean over ranks: num_tokens counts all of them
            loss_sum += loss.detach()
        if step < cfg.num_steps:  # the next step's, while a GPU still works on this one's
            following = prepare(examples, progress.prompts_seen, cfg, run.max_tokens, rank, world, device)
        lr = learning_rate(step, cfg.lr, "cosine", cfg.warmup_steps, cfg.num_steps, cfg.lr_min_ratio)
        grad_norm = optimizer_step(policy, optimizer, lr, cfg.grad_clip)  # waits for the GPU
        if not np.isfinite(grad_norm):
            raise Broken(f"step {step}: the gradient is not finite; lower lr or look at the examples of this step")

        # 3) log and save
        loss = sum_over_ranks({"loss": loss_sum}, device)["loss"]
        seconds, epoch = run.clock.take()["step"], progress.prompts_seen / len(examples)
        tokens = sum(len(example.prompt_ids) + len(example.response_ids) for example in chosen)
        run.write_row({"step": step, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens, "epoch": epoch,
                       "seconds_step": seconds, "tokens_per_second": tokens / seconds})
        window = [window[0] + seconds, window[1] + tokens]
        if step % 50 == 0 or step == cfg.num_steps:
            run.say(f"step {step:5d}/{cfg.num_steps}  loss {loss:.4f}  grad_norm {grad_norm:.2f}  lr {lr:.2e}  "
                    f"epoch {epoch:.2f}  tokens_per_second {window[1] / window[0]:.0f}")
            window = [0.0, 0]
        progress.step, stopped_by = step, run.stop_reason()
        if run.save_is_due(step) or stopped_by:
            run.save(progress, stopping=bool(stopped_by))
        if stopped_by:
            break
    run.finish(policy, tokenizer, stop_ids, stopped_by)


if __name__ == "__main__":
    entry(main)
