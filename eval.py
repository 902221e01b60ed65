"""
Success on held-out problems: during training, and of a model or every checkpoint of a run on benchmarks.

    python eval.py --model out/demo/model --suite gsm8k,math500,minerva,olympiadbench,aime24,amc23,countdown,kk
    torchrun --standalone --nproc-per-node=8 eval.py --model Qwen/Qwen2.5-3B --suite gsm8k --data_path DIR --limit 200
    python eval.py --sweep out/demo       # every checkpoint; without --suite on the run's own held-out data
    python eval.py --model M --data tiny_countdown --template tiny_countdown --reward tinyzero_countdown

Engine, prompts and rewards are those of training. tasks/sources.py lists the benchmarks; tools/suite.py runs them, and
continues where it was killed when the same command is started again.
"""

from dataclasses import dataclass
from typing import Literal

from onebox import distributed  # first: it looks for its launcher and sets what libraries read when they are imported

from onebox.crash import entry
from onebox.config import NonNegative, OrFunction, Positive, load_config
from onebox.metrics import rollout_row, summarize
from onebox.models import resolve_model  # noqa: F401  others import it from here

KEPT_PROMPTS = 8  # held-out prompts whose responses are kept token by token in samples/


@dataclass(frozen=True)
class Config:
    model: str = "out/demo/model"        # Hugging Face directory or hub id
    sweep: str = ""                      # a run's directory, out/demo: every checkpoint instead of `model`
    suite: str = ""                      # benchmarks with commas, gsm8k,math500,...: tasks/sources.py has the names
    data: str | dict = ""                # instead of suite: source name, or {name: weight}; both empty: tiny_countdown
    data_path: str | dict = ""           # directory with gsm8k_test.jsonl etc., a file, {name: path}; else the hub
    split: str = ""                      # of the data; empty = the benchmark's, mostly test
    limit: int | dict = 0                # problems of each benchmark, chosen by seed; 0 = the benchmark's default
    columns: dict | None = None          # {"question": "their name of it", "answer": ...} of your own rows
    template: OrFunction[str | dict] = ""  # prompt template, or {name: template}; empty = the benchmark's default
    system_prompt: str | None = None     # instead of the template's own, in chats
    few_shot: tuple = ()                 # worked examples before the question: (("2 + 2?", "4"), ...)
    chat_template_kwargs: dict | None = None  # arguments of the model's chat template, e.g. {"enable_thinking": False}
    chat_date: str = "2024-07-26"        # the date that a chat template is told; prompts must not depend on the day
    reward: OrFunction[str | dict | tuple] = ""  # reward that says what is correct; empty = the benchmark's default
    samples: int | dict | None = None    # per problem at `temperature`, or {name: samples}; 0 = greedy only
    greedy: bool = True                  # one greedy response beside the samples
    temperature: float = 1.0             # of the samples; 0 = greedy only
    seed: NonNegative[int] = 0           # decides subset and every sampled token
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU
    max_prompt_len: NonNegative[int] = 0  # tokens; longer prompts are refused and counted; 0 = whatever the longest has
    max_response_len: Positive[int] = 1024  # tokens
    stop: tuple = ()                     # strings that end a response; EOS always does
    stop_ids: int | tuple = ()           # token ids that end a response, beside the model's EOS
    max_num_seqs: Positive[int] = 256    # sequences decoded together in one engine
    kv_cache_gb: NonNegative[float] = 0.0  # per engine; 0 = max_num_seqs full sequences, at most 35 % of its GPUs
    tensor_parallel: Positive[int] = 1   # GPUs per engine
    deadline_s: Positive[float] = 7200.0  # of one benchmark; after it, responses are cut off and count as truncated
    output: str = ""                     # directory of the results, or a .jsonl file; empty: out/eval/MODEL-HASH


def evaluate_and_log(progress, run, engine, policy, scorer, prompts, cfg):
    """Finish a step: evaluate on the held-out prompts if that is due, then log progress.row with it. Collective."""
    step, row = progress.step, progress.row
    if prompts and (step in (0, cfg.num_steps) or (cfg.eval_every and step % cfg.eval_every == 0)):
        if not step:  # the first one may take long, and nothing else is to be seen yet
            run.say(f"evaluating the start: {len(prompts)} held-out prompts, {cfg.eval_samples} samples and a greedy "
                    "response each")
        engine.wake(policy, version=step)  # and stays awake: the next rollout is sampled from the same weights
        row = row | evaluate(engine, scorer, prompts, run.cfg, run, step)  # a new row: the old one is saved without it
    run.log(row)
    return row


def evaluate(engine, scorer, prompts, cfg, run, step):
    """
    Measure held-out success of the weights in the engine and return its columns, eval*; at step 0 also the columns of a
    training step's rollouts, which there describe the held-out samples. Collective.

    Each prompt gets cfg.eval_samples responses at cfg.temperature and a greedy one. Their seeds depend on cfg.seed, the
    prompt and the index alone: the same weights give the same result, and training is not touched. run.held_out records
    every problem; run.write_samples keeps the responses to the first few. All of it counts as phase "eval".
    """
    with engine.clock.all_as("eval"):
        sampled = []
        if cfg.eval_samples:
            seeds = [sample_seeds(cfg.seed, prompt.uid, range(cfg.eval_samples)) for prompt in prompts]
            sampled = engine.sample(prompts, seeds, scorer, cfg.temperature)
        greedy = engine.sample(prompts, [[0]] * len(prompts), scorer, temperature=0.0)

        summary = summarize(sampled or greedy)
        names = ("correct", "reward", "response_len", "truncated", "format_error", "reflection_words")
        columns = {f"eval_{name}": summary[name] for name in names}
        columns |= {"eval_correct_greedy": share_correct(greedy), "eval_rollouts": len(sampled)}
        sources = sorted({prompt.source for prompt in prompts})
        for source in sources if len(sources) > 1 else ():  # of a mixture: each data set by itself
            columns[f"eval/{source}/correct"] = share_correct([r for r in sampled or greedy if r.source == source])
            columns[f"eval/{source}/correct_greedy"] = share_correct([r for r in greedy if r.source == source])

        shares = {r.prompt: [] for r in sampled}
        for r in sampled:
            shares[r.prompt].append(r.score.correct)
        run.held_out(step, {prompts[r.prompt].uid: [
            sum(shares[r.prompt]) / len(shares[r.prompt]) if sampled else None, int(r.score.correct)] for r in greedy})
        kept = [(r, {}) for r in sampled] + [(r, {"sample": "greedy"}) for r in greedy]
        run.write_samples(step, [rollout_row(r, step, "held-out", engine.tokenizer) | more for r, more in kept
                                 if r.prompt < KEPT_PROMPTS and run.main])
    return columns if step else summary | columns


def sample_seeds(seed, uid, indices):
    """Seed the samples with these indices of one held-out prompt."""
    return [distributed.stable_seed(seed, "eval", uid, k) for k in indices]


def share_correct(rollouts):
    return sum(r.score.correct for r in rollouts) / max(1, len(rollouts))


def main():
    cfg, origin = load_config(Config)
    from tools.suite import run_suite  # not needed in training

    run_suite(cfg, origin)


if __name__ == "__main__":
    entry(main)
