"""
python -m pytest tests/test_rollout.py: what Engine asks of vLLM, of a stand-in that keeps a record; then real vLLM
beside a real FSDP2 policy (tests/engine_worker.py).
"""

import heapq
import json
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LOGPROB, LOGPROB_MEAN, ROOT, run_script

import rollout
from onebox import engine_weights
from onebox.distributed import Broken, Clock
from onebox.metrics import summarize
from rewards import Score
from rollout import Engine, Rollout
from tools.efficiency import tail_seconds

# ---------------------------------------------------------------------------------------------------------------
# Engine
# ---------------------------------------------------------------------------------------------------------------


class RecordingLLM:
    """Notes what is asked of vLLM, in order; holds the weights of no model."""

    def __init__(self):
        self.calls = []

    def collective_rpc(self, method, kwargs):
        self.calls.append("weights")

    def reset_prefix_cache(self):
        self.calls.append("no prefix cache")
        return True

    def update_weight_version(self, version):
        self.calls.append(f"version {version}")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"memory of {tags[0]}")


class Tokens:
    """A tokenizer of numbers, up to 9."""

    def get_vocab(self):
        return {str(i): i for i in range(10)}

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [text.split() for text in texts]}

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


class NoGpuClock(Clock):
    def now(self):
        return 0.0


POLICY = SimpleNamespace(hf=torch.nn.Linear(1, 1))


def make_engine(monkeypatch, device="cpu"):
    monkeypatch.setattr(rollout, "make_engine", lambda path, **_: RecordingLLM())
    device = torch.device(device)
    return Engine("", Tokens(), [1], config=SimpleNamespace(vocab_size=12), dtype="float32", device=device,
                  clock=NoGpuClock(device), prompt_len=4, response_len=8, max_num_seqs=2, kv_cache_gb=0,
                  tensor_parallel=1, seed=0, deadline_s=60)


SYNC = ["weights", "no prefix cache"]


def test_weights_that_the_engine_has_are_not_loaded_again(one_process, monkeypatch):
    engine = make_engine(monkeypatch)
    for version in (0, 0, 1, 1, 2):  # evaluation before step 1, its samples; evaluation after it, samples of step 2 ...
        engine.wake(POLICY, version)
        engine.sleep()
    again = "no prefix cache"  # also then: a run that resumes here starts without one, and must sample the same
    assert engine.llm.calls == [*SYNC, "version 0", again, *SYNC, "version 1", again, *SYNC, "version 2"]
    assert engine.version == 2


def test_a_gpu_that_slept_gets_weights_before_memory_for_the_cache(one_process, monkeypatch):
    engine = make_engine(monkeypatch, "cuda")
    engine.sleep()
    assert engine.version is None
    for _ in range(2):
        engine.llm.calls.clear()
        engine.wake(POLICY, 3)
        assert engine.llm.calls == ["memory of weights", *SYNC, "version 3", "memory of kv_cache", "no prefix cache"]
        engine.wake(POLICY, 3)  # awake with these weights: nothing to load
        for _ in range(2):  # the second time it is asleep already
            engine.sleep()
        assert engine.llm.calls[6:] == ["no prefix cache", "sleep 2"] and engine.version is None


def test_rollouts_are_scored_while_sampling_goes_on_and_come_in_order(one_process, monkeypatch):
    engine, asked, submitted, recorded, grouped = make_engine(monkeypatch), {}, [], [], []
    finished = [(1, 1, [5, 6]), (0, 0, [4, 1]), (1, 0, [11]), (0, 1, [7] * 8)]  # 1 is EOS; there is no text for 11

    def generate(llm, requests, **options):
        asked.update(options, requests=requests)
        for index, sample, ids in finished:
            reason = "stop" if ids[-1] == 1 or len(ids) < 3 else "length"
            yield Rollout(index, sample, np.array([2]), np.array(ids), np.zeros(len(ids), np.float32), reason)

    class Scores:
        def submit(self, key, reward, text, answer, *, truncated, num_tokens, max_tokens, row, prompt, token_ids):
            assert row == {"question": prompt} and len(token_ids) == num_tokens
            submitted.append((key, reward, text, answer, truncated, num_tokens, max_tokens))

        def settled(self):  # one score is ready as soon as it was asked for, the others at the end
            return {(1, 1): Score(1.0, True, True, {})} if len(submitted) == 1 else {}

        def collect(self):
            return {(0, 0): Score(0.0, False, True, {}), (0, 1): Score(0.0, False, False, {}, frozenset({"truncated"})),
                    (1, 0): Score(0.0, False, False, {}, frozenset({"truncated"}))}

        def add_group_parts(self, rollouts):
            grouped.append([(r.prompt, r.sample, len(recorded)) for r in rollouts])
            return rollouts

    monkeypatch.setattr(rollout, "generate", generate)
    prompts = [SimpleNamespace(ids=ids, uid=uid, source="s", reward="r", answer=uid.upper(), text=uid,
                               row={"question": uid})
               for ids, uid in (([2], "a"), ([2, 3], "b"))]
    engine.wake(POLICY, 5)
    rollouts = engine.sample(prompts, [[10, 11], [20, 21]], Scores(), 0.7,
                             record=lambda r: recorded.append((r.prompt, r.sample)))
    assert [asked[name] for name in ("version", "temperature", "max_tokens", "stop_ids")] == [5, 0.7, 8, [1]]
    assert asked["requests"] == [(1, 0, [2, 3], 20), (1, 1, [2, 3], 21),
                                 (0, 0, [2], 10), (0, 1, [2], 11)]  # longest 1st
    assert submitted[:2] == [((1, 1), "r", "5 6", "B", False, 2, 8), ((0, 0), "r", "4", "A", False, 2, 8)]
    assert [truncated for *_, truncated, _, _ in submitted] == [False, False, True, True]  # as ids without a text are
    assert recorded[0] == (1, 1) and sorted(recorded) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert grouped == [[(0, 0, 4), (0, 1, 4), (1, 0, 4), (1, 1, 4)]]  # whole groups, when all scores are recorded
    assert [(r.uid, r.sample) for r in rollouts] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert all(r.asked is prompts[r.prompt] and r.source == "s" for r in rollouts)
    assert [r.phantom for r in rollouts] == [False, False, True, False]
    assert [r.counts["answer_len"] for r in rollouts] == [0] * 4 and "reflection_words" in rollouts[0].counts
    assert [sorted(r.score.flags) for r in rollouts] == [[], ["truncated"], ["phantom_ids"], []]


def test_samples_are_dealt_one_by_one_and_no_engine_waits_long_for_another():
    """
    Responses to one prompt have similar lengths (here exp(0.6 x of the prompt + 0.4 x of the sample), both normal): the
    fullest of 8 engines has 26 % more tokens than the mean with whole groups, 6 % with single samples. Of 200 steps.
    """
    rng, loads = np.random.default_rng(0), {"groups": [], "samples": []}
    assert rollout.deal([2, 3], 1, 2) == [(0, 1), (1, 0), (1, 2)]  # of two engines the second
    dealt = [rollout.deal([8] * 128, engine, 8) for engine in range(8)]
    assert [len(pairs) for pairs in dealt] == [128] * 8 and len(set().union(*map(set, dealt))) == 1024
    for _ in range(200):
        lengths = np.exp(0.6 * rng.standard_normal((128, 1)) + 0.4 * rng.standard_normal((128, 8)))  # (P, G)
        for kind, tokens in (("groups", [lengths[engine::8].sum() for engine in range(8)]),
                             ("samples", [sum(lengths[pair] for pair in pairs) for pairs in dealt])):
            loads[kind].append(max(tokens) / np.mean(tokens))
    assert np.mean(loads["groups"]) == pytest.approx(1.26, abs=0.02)
    assert np.mean(loads["samples"]) == pytest.approx(1.064, abs=0.005)


def test_one_two_and_three_engines_draw_the_same_responses(one_process, monkeypatch):
    """The tokens follow from the seed alone; prompt 2 of the evaluation has one sample, the others three."""
    engine, scores = make_engine(monkeypatch), SimpleNamespace(
        submit=lambda *_, **__: None, collect=dict, add_group_parts=lambda rollouts: rollouts)

    def generate(llm, requests, **_):
        for prompt, sample, ids, seed in requests:
            tokens = np.random.default_rng(seed).integers(2, 9, 1 + seed % 5)
            yield Rollout(prompt, sample, np.array(ids), tokens, np.zeros(len(tokens), np.float32), "length")

    monkeypatch.setattr(rollout, "generate", generate)
    prompts = [SimpleNamespace(ids=[2] * n, uid=str(n), source="", reward="r", answer="", text="", row={})
               for n in (1, 3, 2, 1)]
    seeds = [[10, 11, 12], [20, 21, 22], [30], [40, 41, 42]]
    found = {}
    for count in (1, 2, 3):
        found[count], engine.num_engines = {}, count
        for index in range(count):
            engine.index = index
            mine = engine.sample(prompts, seeds, scores, 1.0)
            assert {(r.prompt + r.sample) % count for r in mine} == {r.engine for r in mine} == {index}
            found[count] |= {(r.prompt, r.sample): r.response_ids.tolist() for r in mine}
    assert found[1] == found[2] == found[3] and len(found[1]) == 10


def test_with_a_finish_share_each_engine_keeps_the_groups_that_it_completes_first(one_process, monkeypatch):
    """
    Two engines, four groups of two each, kept are two each. A response takes as many steps as its seed says: engine 1
    has the groups 1, 3, 5, 7, of 9, 2, 4 and 4 steps. In step 4 it completes 5, the second one, and then 7, one too
    many; group 1 has 4 tokens and a response of one.
    """
    engine, submitted, forgotten = make_engine(monkeypatch), [], []
    scores = SimpleNamespace(submit=lambda key, *_, **__: submitted.append(key), add_group_parts=list,
                             collect=lambda: {k: Score(1.0, True, True, {}) for k in submitted if k not in forgotten},
                             forget=forgotten.append)

    def generate(llm, requests, *, enough, **_):
        assert [r[:2] for r in requests] == [(i, k) for i in range(engine.index, 8, 2) for k in (0, 1)]  # whole groups
        for step in range(1, 10):
            for prompt, sample, ids, seed in (r for r in requests if r[3] >= step):
                if seed == step:
                    yield Rollout(prompt, sample, np.array(ids), np.full(step, 5), np.zeros(step, np.float32), "length")
            if enough():
                requests = [r for r in requests if r[3] > step]
                for prompt, sample, ids, _ in requests:
                    yield Rollout(prompt, sample, np.array(ids), np.full(step, 5), np.zeros(step, np.float32),
                                  "dropped")
                return

    monkeypatch.setattr(rollout, "generate", generate)
    engine.num_engines, engine.index = 2, 1
    prompts = [SimpleNamespace(ids=[2], uid=f"p{i}", source="", reward="r", answer="", text="", row={})
               for i in range(8)]
    steps = {1: (9, 1), 3: (2, 1), 5: (3, 4), 7: (4, 4)}  # of the two samples of a group
    seeds = [steps.get(i, (1, 1)) for i in range(8)]
    kept = engine.sample(prompts, seeds, scores, 1.0, keep=4)
    assert [(r.prompt, r.sample, len(r.response_ids)) for r in kept] == [(3, 0, 2), (3, 1, 1), (5, 0, 3), (5, 1, 4)]
    assert all(r.score and r.counts and not r.dropped for r in kept)
    left_out = {(r.prompt, r.sample): len(r.response_ids) for r in engine.dropped}
    assert left_out == {(1, 0): 4, (1, 1): 1, (7, 0): 4, (7, 1): 4}  # with what was finished of an unfinished group
    assert {r.uid for r in engine.dropped} == {"p1", "p7"} and (1, 0) not in submitted
    assert sorted(forgotten) == sorted(left_out)  # no grader is waited for
    row = summarize(kept + engine.dropped, 2)
    assert (row["num_rollouts"], row["dropped_groups"], row["dropped_tokens"]) == (4, 2, 13)
    assert row["response_len"] == 2.5 and summarize(kept)["dropped_tokens"] is summarize(kept)["dropped_groups"] is None


def test_with_a_finish_share_no_kind_of_prompt_starts_late(one_process, monkeypatch):
    """
    143 groups of 8, kept are 128; 256 responses are decoded together, of log-normal lengths that do not depend on the
    prompt. Half of the prompts are short, and so are half of those left out; 95 % with the longest prompts first.
    """
    engine, started, rng = make_engine(monkeypatch), [], np.random.default_rng(0)
    scores = SimpleNamespace(submit=lambda *_, **__: None, add_group_parts=list, collect=dict, forget=lambda key: None)

    def generate(llm, requests, *, enough, **_):  # a seed is the number of steps that its response takes
        started.append([prompt for prompt, sample, _, _ in requests if not sample])
        waiting, running, step = list(reversed(requests)), [], 0
        while waiting or running:
            while waiting and len(running) < 256:
                request = waiting.pop()
                heapq.heappush(running, (step + request[3], request))
            step, (prompt, sample, ids, _) = heapq.heappop(running)
            yield Rollout(prompt, sample, np.array(ids), np.array([5]), np.zeros(1, np.float32), "length")
            if enough():
                for prompt, sample, ids, _ in [*waiting, *(request for _, request in running)]:
                    yield Rollout(prompt, sample, np.array(ids), np.array([5]), np.zeros(1, np.float32), "dropped")
                return

    monkeypatch.setattr(rollout, "generate", generate)
    short, prompts = [], [SimpleNamespace(ids=(2,) * (2 + i % 2), uid=str(i), source="", reward="r", answer="", text="",
                                          row={}) for i in range(143)]
    for _ in range(10):
        steps = 400 * np.exp(0.4 * rng.standard_normal((143, 1)) + 0.4 * rng.standard_normal((143, 8)))  # (P, G)
        assert len(engine.sample(prompts, steps.astype(int).tolist(), scores, 1.0, keep=128)) == 8 * 128
        short += [len(r.prompt_ids) == 2 for r in engine.dropped]
    assert np.mean(short) == pytest.approx(0.5, abs=0.06) and started[0] == list(range(143))
    engine.sample(prompts, [[1]] * 143, scores, 1.0)  # without one the longest do start first
    assert started[-1] == [*range(1, 143, 2), *range(0, 143, 2)]


def test_a_response_is_finished_at_the_same_second_however_long_others_are_scored(one_process, monkeypatch):
    """
    40 responses are finished 10 s after the engine began, in one step; a reward takes 1 s for each. So the rollout took
    10 s, the rewards 40 s, and the last 5 % no second of the rollout.
    """
    engine, now = make_engine(monkeypatch), [0.0]
    engine.clock.now = lambda: now[0]
    monkeypatch.setattr(rollout, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def spend(seconds):
        now[0] += seconds

    def generate(llm, requests, **_):
        spend(10.0)
        for prompt, sample, ids, _ in requests:
            yield Rollout(prompt, sample, np.array(ids), np.full(3, 5), np.zeros(3, np.float32), "length")

    monkeypatch.setattr(rollout, "generate", generate)
    scores = SimpleNamespace(submit=lambda *_, **__: spend(1.0), add_group_parts=list, collect=dict)
    prompt = SimpleNamespace(ids=[2], uid="", source="", reward="r", answer="", text="", row={})
    rollouts = engine.sample([prompt], [range(40)], scores, 1.0)
    assert {r.seconds for r in rollouts} == {10.0} and tail_seconds([rollouts]) == 0
    seconds = engine.clock.take()
    assert (seconds["rollout"], seconds["reward"]) == (10, 40)


def test_the_leader_of_a_tensor_parallel_group_scores_for_all_of_it(one_process, monkeypatch):
    engine, submitted = make_engine(monkeypatch), []
    scores = SimpleNamespace(submit=lambda key, *_, **__: submitted.append(key), add_group_parts=list, collect=dict)
    drawn = [Rollout(0, k, np.array([2]), np.full(3, 5), np.zeros(3, np.float32), "length") for k in range(2)]
    monkeypatch.setattr(rollout, "generate", lambda *_, **__: iter(drawn))
    prompt = SimpleNamespace(ids=[2], uid="", source="", reward="r", answer="", text="", row={})
    for engine.is_leader, asked in ((False, 0), (True, 2)):
        engine.sample([prompt], [range(2)], scores, 1.0)
        assert len(submitted) == asked == sum(r.counts is not None for r in drawn)


def test_a_finish_share_draws_equally_many_whole_groups_for_each_engine(one_process, monkeypatch):
    engine = make_engine(monkeypatch)
    for prompts, share, engines, drawn in ((128, 1.0, 8, 128), (128, 0.8, 8, 160), (128, 0.9, 8, 144), (7, 0.7, 1, 10),
                                           (8, 0.999, 8, 16), (3, 0.3, 1, 10)):  # 128 / 0.9 = 142.2: 18 for each of 8
        engine.num_engines = engines
        assert engine.prompts_to_draw(SimpleNamespace(prompts_per_step=prompts, finish_share=share)) == drawn


def test_ids_travel_between_ranks_in_four_bytes_a_token():
    """As int32; a list of Python's numbers takes 3 bytes and an object for each, on every rank."""
    output = SimpleNamespace(token_ids=list(range(100_000, 100_000 + 5000)), finish_reason="length",
                             logprobs=SimpleNamespace(logprobs=[-1.0] * 5000), weight_versions=None)
    r = rollout.to_rollout(0, 0, np.array([1, 2], np.int32), output, 0)
    assert r.response_ids.dtype == np.int32 and r.rollout_logprobs.dtype == np.float32
    assert 8 * 5000 < len(pickle.dumps(r, protocol=5)) < 8 * 5000 + 1000


# ---------------------------------------------------------------------------------------------------------------
# weights
# ---------------------------------------------------------------------------------------------------------------


class FusedModel(torch.nn.Module):
    """As vLLM names and lays them out: q (4 rows), k, v (2 each) in one matrix; a head tied to the embeddings."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, rows=8):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(rows, 3), torch.nn.LayerNorm(3, bias=False)
        self.attn = torch.nn.Module()
        self.attn.qkv_proj = torch.nn.Linear(3, 8)
        self.head = torch.nn.Linear(3, rows, bias=False)
        self.head.weight = self.embed.weight


def weights_of(model):
    """As the policy names them, in its order."""
    named = {"embed.weight": model.embed.weight}
    for part, rows in {"q": slice(0, 4), "k": slice(4, 6), "v": slice(6, 8)}.items():
        named |= {f"attn.{part}_proj.weight": model.attn.qkv_proj.weight[rows],
                  f"attn.{part}_proj.bias": model.attn.qkv_proj.bias[rows]}
    named |= {"norm.weight": model.norm.weight, "head.weight": model.embed.weight}
    return {name: weight.detach().clone() for name, weight in named.items()}


def test_each_weight_goes_to_its_place_and_one_that_is_missing_ends_the_run():
    torch.manual_seed(0)
    engine, policy = FusedModel(), FusedModel()
    places = engine_weights.find_places(engine, weights_of(engine).items())
    assert len(places) == 8 and "head.weight" not in places  # the engine has it once
    assert not torch.equal(engine.attn.qkv_proj.weight, policy.attn.qkv_proj.weight)
    engine_weights.copy_to(places, weights_of(policy).items())
    for ours, theirs in zip(policy.parameters(), engine.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name in places:
        left = {n: w for n, w in weights_of(policy).items() if n != name}
        with pytest.raises(Broken, match=f"1 tensors of the engine as they were, first {name}:"):
            engine_weights.copy_to(places, left.items())


@pytest.mark.parametrize("fault", ["one number", "order", "padded", "dtype", "not named", "transposed"])
def test_no_place_is_taken_where_the_engine_holds_anything_else(fault):
    torch.manual_seed(0)
    engine = FusedModel(rows=10 if fault == "padded" else 8)
    weights = weights_of(engine)
    if fault == "one number":  # as where vLLM's reload changes a weight on the way
        weights["attn.v_proj.bias"][1] += 1
    elif fault == "order":
        weights = {name: weights[name] for name in sorted(weights)}  # k before q
    elif fault == "padded":
        weights["embed.weight"] = weights["embed.weight"][:8]
    elif fault == "dtype":
        weights["norm.weight"] = weights["norm.weight"].double()
    elif fault == "not named":
        del weights["norm.weight"]
    else:
        engine.embed.weight.data = engine.embed.weight.data.T.contiguous().T  # not in the order of its rows
    assert engine_weights.find_places(engine, weights.items()) == {}


@pytest.mark.parametrize("packed", [False, True])
def test_vllms_reload_is_asked_once_or_always(packed, monkeypatch):
    torch.manual_seed(0)
    engine, asked, streams = FusedModel(), [], []
    weights = weights_of(engine)
    weights["norm.weight"] = weights["norm.weight"] * (2 if packed else 1)

    def stream():
        streams.append(1)
        yield from weights.items()

    monkeypatch.setattr(engine_weights, "reload", lambda worker, weights: asked.append(len(list(weights))))
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: engine), device=torch.device("cuda"))
    for _ in range(3):
        engine_weights.load(worker, stream)
    assert len(asked) == (3 if packed else 1) and len(streams) == 4  # as often on each rank, whatever it finds
    on_cpu = SimpleNamespace(model_runner=worker.model_runner, device=torch.device("cpu"))
    for _ in range(2):  # which may hold packed copies beside the weights
        engine_weights.load(on_cpu, stream)
    assert len(asked) == (5 if packed else 3) and not hasattr(on_cpu, "places")


# ---------------------------------------------------------------------------------------------------------------
# real vLLM
# ---------------------------------------------------------------------------------------------------------------

REPORTS = {}


@pytest.fixture(params=["tied model, 1 rank", "untied model, 2 ranks", "tied model, 2 ranks, tensor parallel",
                        "untied model, 1 rank, matrices as on a GPU"])
def report(request, tied_model, untied_model):
    """What engine_worker.py found, once per kind of engine."""
    if request.param not in REPORTS:
        path = untied_model if "untied" in request.param else tied_model
        nproc, tp = (2, 2) if "parallel" in request.param else (2, 1) if "2 ranks" in request.param else (1, 1)
        more = ["unpacked"] if "GPU" in request.param else []
        done = run_script(os.path.join(ROOT, "tests", "engine_worker.py"), path, tp, *more, nproc=nproc)
        lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
        REPORTS[request.param] = json.loads(lines[0][7:]) | {"kind": request.param} if lines else done
    if not isinstance(REPORTS[request.param], dict):
        done = REPORTS[request.param]
        pytest.fail(f"{request.param}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return REPORTS[request.param]


def test_engine_and_trainer_agree_after_every_update_of_every_tensor(report):
    assert len(report["gaps"]) == 4
    for largest, mean in report["gaps"]:
        assert largest < LOGPROB and mean < LOGPROB_MEAN


def test_every_way_to_get_it_wrong_would_be_seen(report):
    """The canary looks at the mean: its bound of 0.001 in fp32 lies above rounding, 5e-4, and far below these."""
    traps = ["gap_without_temperature", "gap_without_sync", "gap_without_cache_reset"]
    if "untied" not in report["kind"]:
        traps.append("gap_with_named_parameters")  # the tied head stays stale
    for trap in traps:
        largest, mean = report[trap]
        assert largest > 100 * LOGPROB and mean > 50 * 0.001 > 50 * LOGPROB_MEAN, trap  # found: 0.9 to 16, 0.1 to 2.5
    assert report["gap_after_recovery"][0] < LOGPROB


def test_weights_go_straight_to_their_places_where_vllm_keeps_them_as_they_come(report):
    """
    Not where a CPU packs matrices or tensor parallel cuts them: there each sync is vLLM's reload. The memory of the
    engine after the fifth sync, parameters and buffers, is to the bit what a reload of the same weights leaves.
    """
    blocks = 2 * (3 * 2 + 4 + 2)  # q, k, v with biases; o, gate, up, down; two norms
    assert len(report["places"]) == (blocks + 3 if "GPU" in report["kind"] else 0)  # embeddings, last norm, head
    assert report["as_reloaded"]


def test_a_tensor_that_does_not_reach_the_engine_ends_the_run_and_is_named(report):
    """vLLM only logs the first, and says nothing of the second: q and v filled two thirds of the fused matrix."""
    for name, said in report["left_out"].items():
        layer = name.removesuffix(".weight").replace("k_proj", "qkv_proj")
        told = f"1 layers of the engine without their weights, first {layer} ("
        if "GPU" in report["kind"]:
            told = f"1 tensors of the engine as they were, first {name}:"
        assert said and told in said, (name, said)
    assert report["gap_after_left_out"][0] < LOGPROB


def test_the_seed_alone_decides_a_sample(report):
    assert report["alone_as_in_a_batch"] and report["distinct_samples"] > 0.9


def test_ranks_draw_different_samples_and_a_tensor_parallel_group_the_same(report):
    assert report["ranks_differ"] == ("untied model, 2 ranks" == report["kind"])


def test_building_the_engine_leaves_random_state_and_environment_alone(report):
    assert report["rng_untouched"] and report["local_world_size_untouched"]


def test_eos_is_in_the_response_when_it_was_sampled_and_never_added(report):
    assert report["eos_only_at_the_end"] and "length" in report["finish_reasons"]


def test_more_prompt_tokens_than_one_step_takes_are_sampled(report):
    assert report["many_long_prompts"] == [32, 0]  # at the first try


def test_when_enough_is_there_the_rest_is_cut_off_and_no_request_is_left_behind(report):
    """Twice the same, on all ranks of a tensor-parallel group too: only the order of the engine's steps decides."""
    first, again, reasons, left_behind, lengths_match = report["enough"]
    assert first == again and sum(not cut for _, _, _, cut in first) >= 3 and any(cut for _, _, _, cut in first)
    assert reasons == ["dropped", "stop"] and not left_behind and lengths_match
    assert report["after_enough"] and report["gap_after_deadline"][0] < LOGPROB


def test_the_deadline_returns_everything_and_the_engine_goes_on(report):
    count, reasons, lengths_match = report["deadline"]
    assert count == 12 and "deadline" in reasons and lengths_match
    assert report["gap_after_deadline"][0] < LOGPROB


def test_broken_input_and_broken_weights_are_refused_and_nothing_hangs(report):
    assert "token ids must be in" in report["bad_id"]
    assert "the weight sync did not happen" in report["bad_version"]
    assert report["gap_after_refusals"][0] < LOGPROB
    assert "not finite" in report["nan"]


def test_a_failed_engine_step_is_asked_again_and_gives_the_same_tokens(report):
    assert report.get("after_a_failed_step", True)  # not retried under tensor parallel: the ranks could not agree


def test_a_response_that_runs_in_circles_ends_and_counts_as_truncated(report):
    ended, circled, truncated = report["repetition"]
    assert ended == circled and truncated  # those, and no others, whose greedy text holds a pattern twice in a row
