"""
Prompt -> Rollout, with one vLLM engine inside every torchrun process; and the policy's weights into that engine.

Token ids go in and token ids come out, with the log-probability of every sampled token at the sampling temperature.
Nothing here knows rewards or losses. Written against vLLM 0.32, public calls only except where a comment says so.
"""

import dataclasses
import math
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from onebox.config import refuse
from onebox.distributed import Broken, gather, print0, progress_bar, visible, whole
from onebox.crash import SIDE_BY_SIDE, NoMemory, halve_cache, memory_of, out_of_memory
from onebox.engine_weights import load
from onebox.models import token_bound
from onebox.vllm_start import make_engine
from tasks.words import counts_of


@dataclass
class Rollout:
    """One sampled completion. `prompt` is the index in the step's list of prompts, `sample` that in its group."""

    prompt: int
    sample: int
    prompt_ids: np.ndarray  # int32
    response_ids: np.ndarray  # int32, with the stop token, if it was sampled; nothing is ever appended
    rollout_logprobs: np.ndarray  # (len(response_ids),) float32, of the sampled tokens at the sampling temperature
    finish_reason: str  # "stop", "length", "repetition", "deadline" (cut off by the clock), "dropped" (finish_share)
    text: str = ""  # the response decoded, without the stop token
    score: object = None  # rewards.Score
    source: str = ""  # the data set of its prompt
    uid: str = ""  # data.Prompt.uid of its prompt
    asked: object = None  # data.Prompt: the prompt itself, set once all ranks have exchanged their rollouts
    phantom: bool = False  # holds ids with logits in the model but no text in the tokenizer: scored as truncated
    counts: dict = None  # of words and tokens, by words.counts_of: what metrics.summarize adds up
    engine: int = 0  # which of the engines sampled it
    seconds: float = 0.0  # when it was finished, since that engine began, without the time that scoring took

    @property
    def truncated(self):
        return self.finish_reason != "stop"

    @property
    def dropped(self):
        return self.finish_reason == "dropped"


def generate(engine, requests, *, temperature, max_tokens, stop_ids, deadline_s, version, vocab_size,
             stop_strings=(), repetition_stop=0, enough=lambda: False, desc="rollout"):
    """
    Sample a response to each request; yields each Rollout as it finishes, so that scoring overlaps.

    requests: list of (prompt, sample, token ids of the prompt, 63-bit seed), in the order in which they are to start.
    The seed alone decides a sample: it is the same alone and in any batch (exactly so on CPU in fp32). After deadline_s
    what is not done is returned as it is, with finish_reason "deadline". A pattern of up to 64 tokens that comes
    repetition_stop times in a row ends a response, with finish_reason "repetition" (0: never). Once enough() is true,
    after a step of the engine, what is not done is returned as it is, with finish_reason "dropped". When a step of the
    engine fails, but not for want of memory, what is missing is asked for once more, in two halves and with the same
    seeds. Raises Broken where the engine is: log-probabilities that are not finite, or weights of another version than
    `version`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    options = dict(temperature=temperature, max_tokens=max_tokens, logprobs=0, flat_logprobs=True,
                   stop_token_ids=list(stop_ids), stop=list(stop_strings) or None, include_stop_str_in_output=True,
                   detokenize=bool(stop_strings), skip_special_tokens=not stop_strings,
                   output_kind=RequestOutputKind.FINAL_ONLY)
    if repetition_stop:
        from vllm.sampling_params import RepetitionDetectionParams

        options["repetition_detection"] = RepetitionDetectionParams(max_pattern_size=64, min_count=repetition_stop)
    wanted = {}
    for prompt, sample, ids, seed in requests:
        # an id outside the vocabulary would not only raise: the call after it would never return
        if not len(ids) or min(ids) < 0 or max(ids) >= vocab_size:
            raise ValueError(f"prompt {prompt}: token ids must be in 0..{vocab_size - 1}, and at least one")
        wanted[prompt, sample] = (np.asarray(ids, dtype=np.int32), SamplingParams(seed=seed, **options))

    deadline = time.monotonic() + deadline_s
    try:
        for rollout in run_requests(engine, dict(wanted), deadline, version, enough, desc):
            del wanted[rollout.prompt, rollout.sample]
            yield rollout
    except Broken:
        raise
    except Exception as error:  # whatever the engine raises; under tensor parallel the ranks could not agree to retry
        if out_of_memory(error) or shares_engine() or not wanted:
            raise
        print(visible(f"warning: rank {os.environ.get('RANK', 0)}: the engine failed ({type(error).__name__}: {error}) "
                      f"with {len(wanted)} responses to go: asking again"), file=sys.stderr, flush=True)
        items = list(wanted.items())
        for half in (items[:len(items) // 2], items[len(items) // 2:]):
            yield from run_requests(engine, dict(half), deadline, version, enough, desc)


def run_requests(engine, requests, deadline, version, enough, desc):
    """Run {(prompt, sample): (token ids, SamplingParams)}, yield Rollouts as they finish, leave no request behind."""
    names = engine.enqueue([{"prompt_token_ids": ids.tolist()} for ids, _ in requests.values()],
                           [params for _, params in requests.values()], use_tqdm=False) if requests else []
    running = {request_number(name): (*key, ids) for name, (key, (ids, _)) in zip(names, requests.items(), strict=True)}
    steps = 0
    try:
        with memory_of("sampling", halve_cache), progress_bar(total=len(running), desc=desc, unit="seq") as bar:
            while running:
                for output in engine.llm_engine.step():
                    bar.update()
                    index, sample, ids = running.pop(request_number(output.request_id))
                    yield to_rollout(index, sample, ids, output.outputs[0], version)
                steps += 1
                if running and too_late(deadline, steps):
                    yield from cut_off(engine, running, "deadline")
                elif running and enough():
                    yield from cut_off(engine, running, "dropped")
    except NoMemory:
        running.clear()  # the process will end: no further step of an engine without memory
        raise
    finally:
        if running:  # an error on the way: leave no request behind, the next call would meet it
            cut_off(engine, running, "dropped")


def check_sampling(cfg, world):
    """Refuse settings of the rollout that no engine can follow, or that would bias every log-prob."""
    engines, at_worst = max(1, world // cfg.tensor_parallel), -math.log(max(cfg.top_p, 1e-9))
    refuse(cfg.top_p != 1, f"top_p = {cfg.top_p} biases every log-prob by up to {at_worst:.2f}: leave it 1")
    refuse(cfg.repetition_stop == 1, "repetition_stop = 1 must be 0 (never) or at least 2: once is no repetition")
    refuse(not all(isinstance(text, str) and text for text in cfg.stop),
           f"stop = {cfg.stop!r} must hold strings that are not empty, as in ('</answer>',)")
    refuse(not 0.01 <= cfg.temperature <= 2, f"temperature = {cfg.temperature} must lie in 0.01 ... 2")
    for name in ("tensor_parallel", "shard_size"):  # shard_size 0: all
        size = getattr(cfg, name) or world
        refuse(world % size, f"{name} = {size} does not divide the {world} processes")
    refuse(cfg.prompts_per_step % engines and (cfg.group_size % engines or cfg.finish_share < 1),
           f"prompts_per_step = {cfg.prompts_per_step} is not divisible by the {engines} engines ({world} processes / "
           f"tensor_parallel {cfg.tensor_parallel}), so some would wait for others: make it a multiple of {engines} "
           "(or group_size, if finish_share is 1)")
    refuse(cfg.finish_share == 0, "finish_share = 0 would leave out every group: make it 1 (none), or 0.9 or so")
    refuse(cfg.finish_share < 1 and cfg.dynamic_sampling, f"finish_share = {cfg.finish_share:g} and dynamic_sampling "
           "both leave groups out: one of them must keep its default")


def deal(num_samples, engine, num_engines, whole_groups=False):
    """
    List the (prompt, sample) that an engine draws, where prompt i has num_samples[i] of them. One by one, as responses
    to one prompt have similar lengths: whole groups load the engines less evenly.
    """
    return [(i, k) for i, n in enumerate(num_samples) for k in range(n)
            if (i if whole_groups else i + k) % num_engines == engine]


class Engine:
    """
    Hold the vLLM engine of this process and what its samples need. Each step: wake(policy, version), sample(...),
    sleep(). Between an evaluation and the next step it may stay awake: nothing else needs the memory there.

    version: the number of training steps in its weights, so that weights before and after an update never share a
    label; None where it holds no weights of a policy. A tensor-parallel group of processes shares one engine.
    """

    def __init__(self, path, tokenizer, stop_ids, *, config, dtype, device, clock, prompt_len, response_len,
                 max_num_seqs, kv_cache_gb, tensor_parallel, seed, deadline_s, stop_strings=(), repetition_stop=0,
                 say=print0):
        rank, world = dist.get_rank(), dist.get_world_size()
        self.llm = make_engine(path, config=config, dtype=dtype, prompt_len=prompt_len, response_len=response_len,
                               max_num_seqs=max_num_seqs, kv_cache_gb=kv_cache_gb, tensor_parallel=tensor_parallel,
                               seed=seed, rank=rank, device=device, stop_strings=bool(stop_strings), say=say)
        self.tokenizer, self.stop_ids, self.token_bound = tokenizer, stop_ids, token_bound(tokenizer)
        self.dtype, self.device, self.clock, self.version = getattr(torch, dtype), device, clock, None
        self.response_len = response_len
        self.options = dict(max_tokens=response_len, stop_ids=stop_ids, stop_strings=stop_strings,
                            deadline_s=deadline_s, repetition_stop=repetition_stop, vocab_size=config.vocab_size)
        self.num_engines, self.index = world // tensor_parallel, rank // tensor_parallel
        self.is_leader = rank % tensor_parallel == 0  # speaks for its tensor-parallel group
        self.asleep, self.dropped = False, []  # dropped: Rollouts that the last sample() left out

    def wake(self, policy, version):
        """Load the policy's weights, unless they are there already; every rank together."""
        self.clock.phase("sync")
        if self.version != version:
            wake_and_sync(policy.hf, self.llm, self.dtype, version, self.device)
        else:
            self.llm.reset_prefix_cache()  # a resumed run starts without one, and must sample the same
        self.version, self.asleep = version, False

    def sleep(self):
        """Give the memory to the trainer, unless it has it. On a GPU that drops the weights."""
        self.clock.phase("sync")
        if not self.asleep:
            sleep(self.llm, self.device)
            self.asleep = True
        if self.device.type == "cuda":
            self.version = None
        self.clock.phase("other")

    def prompts_to_draw(self, cfg):
        """Return how many prompts a step draws; with finish_share < 1 more than it keeps, as many of each engine."""
        if cfg.finish_share == 1:
            return cfg.prompts_per_step
        return math.ceil(round(cfg.prompts_per_step / cfg.finish_share / self.num_engines, 9)) * self.num_engines

    def sample(self, prompts, seeds, scorer, temperature, record=None, keep=math.inf):
        """
        Sample len(seeds[i]) responses to prompt i, score each as it finishes and count its words (the leader of a
        tensor-parallel group does so for all of it), then exchange: every rank gets all Rollouts.

        They come ordered by prompt, then by index in the group. scorer: rewards.Scorer. record(rollout): called for
        each of this rank's own as soon as it is scored, without group parts: a killed evaluation has kept them.
        keep: if there are more prompts (finish_share), each engine draws whole groups, stops once keep / num_engines
        are complete and leaves the others out. Which ones follows from the order of its steps, not from a clock.
        """
        leave_out = keep < len(prompts)
        quota = keep // self.num_engines if leave_out else len(prompts)
        # Longest prompt first: they tend to have the longest responses, which should not be the last to start. In the
        # order of the draws where groups are left out, as the last to start are: short prompts should not be those
        mine = sorted(deal(map(len, seeds), self.index, self.num_engines, whole_groups=leave_out),
                      key=lambda pair: 0 if leave_out else -len(prompts[pair[0]].ids))
        missing, complete = Counter(i for i, _ in mine), []  # complete: prompts, in the order in which they became so
        requests = [(i, k, prompts[i].ids, seeds[i][k]) for i, k in mine]
        rollouts, scoring_s, began = {}, 0.0, time.monotonic()
        self.clock.phase("rollout")
        for r in generate(self.llm, requests, temperature=temperature, version=self.version,
                          enough=lambda: len(complete) >= quota, **self.options) if mine else ():
            start, prompt, ids = time.monotonic(), prompts[r.prompt], np.asarray(r.response_ids).tolist()
            r.source, r.uid, r.engine, r.seconds = prompt.source, prompt.uid, self.index, start - began - scoring_s
            rollouts[r.prompt, r.sample] = r
            missing[r.prompt] -= not r.dropped
            if not missing[r.prompt]:
                complete.append(r.prompt)
            if r.dropped or not self.is_leader:
                continue
            stopped = r.finish_reason == "stop" and ids[-1] in self.stop_ids
            r.text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
            r.phantom = max(ids, default=0) >= self.token_bound
            r.counts = counts_of(r.text, len(ids), self.tokenizer)
            scorer.submit((r.prompt, r.sample), prompt.reward, r.text, prompt.answer,
                          truncated=r.truncated or r.phantom, num_tokens=len(ids), max_tokens=self.response_len,
                          row=prompt.row, prompt=prompt.text, token_ids=ids)
            if record is not None:
                deliver_scores(scorer.settled(), rollouts, record)
            scoring_s += time.monotonic() - start
        self.clock.move("rollout", "reward", scoring_s)
        self.clock.phase("reward")
        for key in [key for key in rollouts if key[0] not in complete[:quota]]:
            rollouts[key].finish_reason = "dropped"
            scorer.forget(key)  # nobody is to wait for graders of it
        deliver_scores(scorer.collect(), rollouts, record)
        self.clock.phase("rollout")  # waits for the slowest engine
        with memory_of("sampling", halve_cache):
            everyone = gather(rollouts.values() if self.is_leader else ())
        self.clock.phase("other")
        for r in everyone:
            r.asked = prompts[r.prompt]
        everyone.sort(key=lambda r: (r.prompt, r.sample))
        self.dropped = [r for r in everyone if r.dropped]
        return scorer.add_group_parts([r for r in everyone if not r.dropped])


def deliver_scores(scores, rollouts, record):
    for key, score in scores.items():
        if rollouts[key].phantom and not rollouts[key].truncated:  # scored like one, but not cut off: say what it is
            score = dataclasses.replace(score, flags=frozenset(score.flags) - {"truncated"} | {"phantom_ids"})
        rollouts[key].score = score
        if record is not None:
            record(rollouts[key])


def shares_engine():
    """Tell whether other ranks take part in this engine (tensor parallel)."""
    from vllm.distributed.parallel_state import get_tp_group

    return get_tp_group().world_size > 1


def too_late(deadline, steps):
    """Tell whether the deadline is over. Ranks that share an engine stop together: the first one's clock decides."""
    from vllm.distributed.parallel_state import get_tp_group

    group, late = get_tp_group(), time.monotonic() > deadline
    if group.world_size == 1:
        return late
    if steps % 16:
        return False
    flag = torch.tensor([late])
    dist.broadcast(flag, src=group.first_rank, group=group.cpu_group)
    return bool(flag)


def request_number(name):
    """Return "18" of "18-9f3c2a10": enqueue returns the long name of a request, its outputs have the short one."""
    return name.split("-")[0]


def to_rollout(index, sample, prompt_ids, completion, version):
    """Turn vLLM's CompletionOutput into a Rollout, with the checks that tell a broken engine from a bad policy."""
    ids, logprobs = np.asarray(completion.token_ids, dtype=np.int32), finite(completion.logprobs.logprobs)
    if len(logprobs) != len(ids):
        raise Broken(f"the engine returned {len(logprobs)} log-probabilities for {len(ids)} tokens")
    versions = {span.version for span in (completion.weight_versions or [])}
    if versions and versions != {str(version)}:
        raise Broken(f"sampled with weights {versions}, wanted {version}: the weight sync did not happen")
    return Rollout(index, sample, prompt_ids, ids, logprobs, completion.finish_reason)


def finite(logprobs):
    logprobs = np.asarray(logprobs, dtype=np.float32)
    if not np.isfinite(logprobs).all():
        raise Broken("the engine returned a log-probability that is not finite: its weights hold NaN or inf. "
                     "Restart from the last checkpoint with a smaller lr; the cache of this process is spoilt")
    return logprobs


def cut_off(engine, running, finish_reason):
    """Abort what is running; hand back the tokens each has so far. (request_states is not public)"""
    found = []
    states = dict(engine.llm_engine.output_processor.request_states)
    for name, state in states.items():
        index, sample, ids = running.pop(request_number(name))
        tokens, logprobs = state.detokenizer.output_token_ids, state.logprobs_processor.logprobs.logprobs
        n = min(len(tokens), len(logprobs))
        found.append(Rollout(index, sample, ids, np.asarray(tokens[:n], dtype=np.int32), logprobs[:n], finish_reason))
    engine.llm_engine.abort_request(list(states), internal=True)
    for _ in range(100):  # a broken engine may never get rid of them
        if not engine.llm_engine.has_unfinished_requests():
            break
        engine.llm_engine.step()
    else:
        raise Broken("the engine does not let go of aborted requests; this process must end")
    for rollout in found:
        rollout.rollout_logprobs = finite(rollout.rollout_logprobs)
    return found


def hf_stream(model, dtype):
    """
    Yield (name, full tensor) of every weight, one at a time; a collective, in the same order on every rank.

    state_dict and not named_parameters: it also lists lm_head.weight where that is tied to the embeddings, and
    without that entry the engine on CPU keeps its old head and samples from it without a word.
    """
    for name, weight in model.state_dict().items():
        mesh = getattr(weight, "device_mesh", None)  # shards on the host are gathered on the GPUs, rounded before it
        yield name, whole(weight.to(mesh.device_type if mesh else weight.device, dtype))


@memory_of("the weight sync", SIDE_BY_SIDE)
def sync_weights(model, engine, dtype, version):
    """Load the policy's weights into the engine, in place; every rank together."""
    try:
        engine.collective_rpc(load, kwargs={"stream": lambda: hf_stream(model, dtype)})
    except Broken:
        raise
    except Exception as error:
        # half of the weights are gone now, and the generate after the next would hang: end here, loudly
        raise Broken(f"weight sync failed half-way ({type(error).__name__}: {error}); this process must end") from error
    if not engine.reset_prefix_cache():  # cached keys and values belong to the old weights
        raise Broken("the prefix cache could not be reset: requests are still running")
    engine.update_weight_version(str(version))


def sleep(engine, device):
    """Give the engine's GPU memory to the trainer (weights and cache are dropped); nothing to do on CPU."""
    if device.type == "cuda":
        engine.sleep(level=2)


def wake_and_sync(model, engine, dtype, version, device):
    """
    Wake the engine and load the weights: first their memory, then they, then the cache's, which may not fit before.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        with memory_of("waking the engine's weights up", SIDE_BY_SIDE):
            engine.wake_up(tags=["weights"])
    sync_weights(model, engine, dtype, version)
    if device.type == "cuda":
        with memory_of("waking the engine's cache up", halve_cache):
            engine.wake_up(tags=["kv_cache"])
        engine.reset_prefix_cache()
