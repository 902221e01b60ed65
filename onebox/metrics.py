"""
From rollouts and micro-batches to one row of metrics.jsonl and one line on the console. README has the glossary.

Sums are taken over all ranks and divided once: no mean of means.
"""

import math

import torch

from onebox.analysis import split_thinking, word_columns
from onebox.distributed import Broken, max_over_ranks, sum_over_ranks

# Monitors that rewards.Score.flags may hold: each a way to look right, or a grader that gave up.
FLAGS = ("several_answers", "answer_in_thinking", "several_boxes", "empty_thinking", "non_ascii_answer", "timeout", "error")


def summarise(rollouts, tokenizer):
    """
    Means over the rollouts of a step: reward, shares of right, wrong and badly formatted ones, lengths in tokens,
    words of reasoning and of reflection (analysis.py). think_len and answer_len re-tokenise the two parts of the text,
    for this only.
    """
    n = max(1, len(rollouts))
    parts = [split_thinking(r.text) for r in rollouts]
    answer_lens = token_counts(tokenizer, [answer for _, answer in parts])
    lens = [len(r.response_ids) for r in rollouts]
    answer_lens = [min(a, total) for a, total in zip(answer_lens, lens, strict=True)]
    correct = sum(r.score.correct for r in rollouts)
    format_ok = sum(r.score.format_ok for r in rollouts)
    row = {
        "reward": sum(r.score.total for r in rollouts) / n,
        "correct": correct / n,
        "format_error": 1 - format_ok / n,
        "wrong_answer": sum(r.score.format_ok and not r.score.correct for r in rollouts) / n,
        "truncated": sum(r.truncated for r in rollouts) / n,
        "response_len": sum(lens) / n,
        "response_len_max": max(lens, default=0),
        "think_len": (sum(lens) - sum(answer_lens)) / n,
        "answer_len": sum(answer_lens) / n,
        **word_columns([thinking for thinking, _ in parts]),
        "num_rollouts": len(rollouts),
    }
    names = sorted({name for r in rollouts for name in r.score.parts})
    row |= {f"part/{name}": sum(r.score.parts.get(name, 0.0) for r in rollouts) / n for name in names}
    row |= {f"flag/{name}": sum(name in r.score.flags for r in rollouts) / n for name in FLAGS}
    row["flag/phantom_ids"] = sum(r.phantom for r in rollouts) / n
    sources = sorted({r.source for r in rollouts})
    for source in sources if len(sources) > 1 else ():  # of a mixture: each data set by itself
        of_source = [r for r in rollouts if r.source == source]
        row[f"source/{source}/share"] = len(of_source) / n
        row[f"source/{source}/reward"] = sum(r.score.total for r in of_source) / len(of_source)
        row[f"source/{source}/correct"] = sum(r.score.correct for r in of_source) / len(of_source)
        row[f"source/{source}/response_len"] = sum(len(r.response_ids) for r in of_source) / len(of_source)
    return row


def hacked(before, now):
    """
    One line, or "": the training reward rose since the evaluation before while held-out success fell, both by more than
    0.02. `before` and `now` are two rows with an evaluation; the reward's published leniency is then being exploited.
    """
    if before and now["reward"] > before["reward"] + 0.02 and now["eval_correct"] < before["eval_correct"] - 0.02:
        return (f"warning: since step {before['step']} the reward rose from {before['reward']:.3f} to {now['reward']:.3f} while "
                f"held-out success fell from {before['eval_correct']:.1%} to {now['eval_correct']:.1%}: read samples/, the "
                "policy may be exploiting the reward (columns flag/*)")
    return ""


def no_signal(silent_steps, row):
    """
    One line, or "": every 10 steps in a row without anything to learn from. A reward that never pays, a template that it
    cannot read, or a task too easy or too hard; tools/check.py's self-test of the golds at start-up rules out the grader.
    """
    if silent_steps and silent_steps % 10 == 0:
        return (f"warning: no learning signal for {silent_steps} steps: the rewards of every group agree (mean "
                f"{row['reward']:.3f}, format errors {row['format_error']:.0%}, truncated {row['truncated']:.0%}): read "
                "samples/, or try easier problems, more samples, a longer max_response_len")
    return ""


def token_counts(tokenizer, texts):
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [len(i) for i in ids]


class StepStats:
    """Sums over the response tokens of a step's updates; `reduce` adds up the ranks, once per update."""

    def __init__(self, device):
        self.device = device
        self.local, self.total = {}, {}
        self.max_local, self.mismatch_max = torch.zeros((), device=device), 0.0
        self.compared = False  # whether the engine was compared before the first update
        self.grad_norm, self.norms, self.skipped_updates = 0.0, [], 0
        self.critic_norms = []

    def count(self, **sums):
        for name, value in sums.items():  # stays on the device: no synchronisation per micro-batch
            value = torch.as_tensor(value, dtype=torch.float64, device=self.device)
            self.local[name] = self.local.get(name, 0.0) + value

    def compare(self, batch, old_logprobs):
        """
        The trainer's log-probs of a micro-batch against the engine's and the reference's, before the weights that drew
        it change: KL(policy || reference) is estimated from tokens that this policy drew, each counted once.
        """
        log_ratio = old_logprobs - batch.rollout_logprobs  # (T,)
        if log_ratio.numel():
            self.max_local = torch.maximum(self.max_local, log_ratio.abs().max())
        self.count(compared=log_ratio.numel(), mismatch=log_ratio.abs().sum(), mismatch_ratio=log_ratio.exp().sum())
        if batch.ref_logprobs is not None:
            x = batch.ref_logprobs - old_logprobs
            self.count(kl=(x.exp() - 1 - x).sum(), kl_k1=-x.sum())

    @torch.no_grad()
    def add(self, batch, logprobs, entropy, old_logprobs, advantages, loss, cfg):
        """
        One micro-batch, all (T,) tensors detached. advantages: as the loss has them, with the penalty of reward_k1.
        loss is already this micro-batch's share.
        """
        if not self.compared:
            self.compare(batch, old_logprobs)
        ratio = (logprobs - old_logprobs).exp()
        stopped = ((ratio > 1 + cfg.clip_high) & (advantages > 0)) | ((ratio < 1 - cfg.clip_low) & (advantages < 0))
        if getattr(cfg, "dual_clip", 0):  # PPO
            stopped |= (ratio > cfg.dual_clip) & (advantages < 0)
        batch.logprobs, batch.entropy, batch.ratio, batch.clipped = logprobs, entropy, ratio, stopped
        self.count(tokens=logprobs.numel(), loss=loss, entropy=entropy.sum(), clipped=stopped.sum(),
                   approx_kl=(ratio - 1 - ratio.log()).sum())

    @torch.no_grad()
    def add_values(self, batch, values, loss, value_clip):
        """The critic's part of one micro-batch (PPO); values (T,), loss is already this micro-batch's share."""
        clipped = batch.old_values + (values - batch.old_values).clamp(-value_clip, value_clip)
        stopped = (clipped - batch.returns).abs() > (values - batch.returns).abs() if value_clip else torch.zeros(0)
        self.count(value_loss=loss, value_clipped=stopped.sum())

    def reduce(self):
        for name, value in sum_over_ranks(self.local, self.device).items() if self.local else ():
            self.total[name] = self.total.get(name, 0.0) + value
        self.local = {}
        self.mismatch_max = max_over_ranks(self.max_local, self.device)

    def check_mismatch(self, bound):
        """The canary: the engine and the trainer must agree about tokens that were just sampled."""
        compared = self.total.get("compared", 0)
        mean = self.total["mismatch"] / compared if compared else 0.0
        if not mean <= bound:  # NaN too
            raise Broken(
                f"engine and trainer disagree: mean |rollout - trainer| log-prob {mean:.3g} (max {self.mismatch_max:.3g}) is "
                f"above mismatch_bound {bound:.3g}. No weight was changed. Likely causes: the weight sync misses a tensor "
                "(a tied lm_head), a stale prefix cache, another temperature, or a dtype that is too coarse")

    def finite(self):
        self.norms.append(self.grad_norm)
        if math.isfinite(self.grad_norm) and all(map(math.isfinite, self.critic_norms[-1:])):
            return True
        self.skipped_updates += 1
        return False

    def row(self):
        tokens = max(1, self.total.get("tokens", 0))
        mean = {name: value / tokens for name, value in self.total.items()}
        compared = max(1, self.total.get("compared", 0))
        kl, kl_k1 = (self.total[name] / compared if name in self.total else None for name in ("kl", "kl_k1"))
        finite = [n for n in self.norms if math.isfinite(n)]
        return {
            "loss": self.total.get("loss", 0.0) / max(1, len(self.norms)), "entropy": mean.get("entropy", 0.0),
            "grad_norm": sum(finite) / len(finite) if finite else float("nan") if self.norms else 0.0,
            "clip_frac": mean.get("clipped", 0.0), "approx_kl": mean.get("approx_kl", 0.0),
            "kl": kl, "kl_k1": kl_k1, "mismatch_mean": self.total.get("mismatch", 0.0) / compared,
            "mismatch_max": self.mismatch_max, "mismatch_ratio": self.total.get("mismatch_ratio", compared) / compared,
            "skipped_updates": self.skipped_updates, "trained_tokens": int(self.total.get("tokens", 0)),
        }

    def value_row(self):
        """The critic's columns (PPO)."""
        finite = [n for n in self.critic_norms if math.isfinite(n)]
        return {"value_loss": self.total.get("value_loss", 0.0) / max(1, len(self.norms)),
                "value_clip_frac": self.total.get("value_clipped", 0.0) / max(1, self.total.get("tokens", 0)),
                "critic_grad_norm": sum(finite) / len(finite) if finite else 0.0}


PHASES = ("rollout", "reward", "logprobs", "train", "sync", "eval", "save")


def seconds(spent, tokens=0):
    """
    Timer phases -> columns, and `other`: the step less all that was timed (packing, summaries, writing the metrics). A
    checkpoint is counted in the step after it, or in its own where an evaluation follows. tokens_per_second: prompt and
    response tokens over the whole step but its evaluation and checkpoint, all ranks.
    """
    names = dict.fromkeys([*PHASES, *spent])
    row = {f"seconds_{name}": spent.get(name, 0.0) for name in names}
    row["seconds_other"] = spent["step"] - sum(s for name, s in spent.items() if name != "step")
    row["tokens_per_second"] = tokens / max(1e-9, spent["step"] - spent.get("eval", 0.0) - spent.get("save", 0.0))
    return row


def last_evaluation(row):
    """What the next evaluation is compared with, see hacked."""
    return {name: row[name] for name in ("step", "reward", "eval_correct")}


def more_seconds(row, spent):
    """The seconds_* columns of a step, with what its held-out evaluation and the checkpoint before that took."""
    return {name: row.get(name, 0.0) + s for name, s in seconds(spent).items() if name.startswith("seconds_")}


def console_line(row, num_steps):
    held_out = f" | held-out {row['eval_correct']:.1%} greedy {row['eval_correct_greedy']:.1%}" if "eval_correct" in row else ""
    kl = f" kl {row['kl']:.4f}" if row["kl"] is not None else ""
    critic = f"  explained {row['explained_variance']:.2f}" if "explained_variance" in row else ""
    skipped = f" SKIPPED {row['skipped_updates']} updates" if row["skipped_updates"] else ""
    return (f"step {row['step']:4d}/{num_steps} | reward {row['reward']:.3f}  right {row['correct']:4.0%}  "
            f"format-err {row['format_error']:3.0%} | len {row['response_len']:.0f}  cut {row['truncated']:.0%}  "
            f"no-variance {row['zero_variance_groups']:.0%} | |g| {row['grad_norm']:.2f}  ent {row['entropy']:.2f}  "
            f"clip {row['clip_frac']:.1%}{kl}  gap {row['mismatch_mean']:.0e}{critic} | "
            f"{where_time_goes(row)}{skipped}{held_out}")


def where_time_goes(row):
    """'rollout 0.5 + ... + other 0.0 = 1.1 s ...': every second of the step, then how near to the machine's limits."""
    phases = [name for name in ("rollout", "reward", "logprobs", "values", "train", "sync", "save", "eval", "other")
              if name != "values" or "seconds_values" in row]
    text = " + ".join(f"{name} {row[f'seconds_{name}']:.{1 if row[f'seconds_{name}'] >= 1 else 2}f}" for name in phases)
    limits = "  ".join(f"{name} {row[name]:.0%}" for name in ("mfu", "mbu", "roofline") if row.get(name) is not None)
    return f"{text} = {row['seconds_step']:.1f} s  {row['tokens_per_second'] / 1000:.1f}k tok/s  {limits}".rstrip()
