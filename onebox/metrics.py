"""
From rollouts and micro-batches to one row of metrics.jsonl, one line on the console and some rollouts kept in samples/.

Sums are taken over all ranks and divided once: no mean of means. docs/metrics.md explains every column.
"""

import itertools
import math

import numpy as np
import torch
import torch.distributed as dist

from tasks.words import word_columns
from onebox.distributed import Broken, gather, max_over_ranks, sum_over_ranks
from onebox.files import has_tools
from onebox.flops import COLUMNS

# Monitors that rewards.Score.flags may hold: each a way to look right, or a grader that gave up.
FLAGS = ("several_answers", "answer_in_thinking", "several_boxes", "empty_thinking", "non_ascii_answer", "timeout",
         "error")
PHASES = ("rollout", "reward", "logprobs", "train", "sync", "eval", "save")
VALUE_COLUMNS = ("explained_variance", "value_mean", "return_mean", "advantage_std", "corr_length_advantage",
                 "value_loss", "value_clip_frac", "critic_grad_norm")  # of PPO
TOKEN_VALUES = ("logprobs", "old_logprobs", "entropy", "ratio", "clipped", "old_values", "advantages")
EXACT = ("rollout_logprobs", "old_logprobs", "old_values")  # of training all digits of fp32, for tools/replay.py


# ---------------------------------------------------------------- rollouts


def summarize(rollouts, group_size=None):
    """
    Average over the rollouts of a step: reward, shares of correct, wrong and badly formatted ones, lengths in tokens,
    words of reasoning and of reflection. The rank that scored a response has counted its words and the tokens of its
    answer (tasks/words.py). With a group_size also zero_variance_groups, the share of groups whose rewards all agree; 0
    for groups of one. Of what finish_share left out only groups and tokens are counted.
    """
    dropped, rollouts = [r for r in rollouts if r.dropped], [r for r in rollouts if not r.dropped]

    def mean(values, of=rollouts):
        return sum(values) / max(1, len(of))

    lens, answer_lens = [len(r.response_ids) for r in rollouts], [r.counts["answer_len"] for r in rollouts]
    row = {
        "reward": mean(r.score.total for r in rollouts),
        "reward_std": float(np.std([r.score.total for r in rollouts])) if rollouts else 0.0,
        "correct": mean(r.score.correct for r in rollouts),
        "format_error": 1 - mean(r.score.format_ok for r in rollouts),
        "wrong_answer": mean(r.score.format_ok and not r.score.correct for r in rollouts),
        "truncated": mean(r.truncated for r in rollouts),
        "response_len": mean(lens),
        "response_len_max": max(lens, default=0),
        "think_len": (sum(lens) - sum(answer_lens)) / max(1, len(rollouts)),
        "answer_len": mean(answer_lens),
        **word_columns([r.counts for r in rollouts]),
        "num_rollouts": len(rollouts),
        "dropped_groups": len({r.prompt for r in dropped}) or None,
        "dropped_tokens": sum(len(r.response_ids) for r in dropped) if dropped else None,
    }
    for name in sorted({name for r in rollouts for name in r.score.parts}):
        row[f"part/{name}"] = mean(r.score.parts.get(name, 0.0) for r in rollouts)
    row |= {f"flag/{name}": mean(name in r.score.flags for r in rollouts) for name in FLAGS}
    row["flag/phantom_ids"] = mean(r.phantom for r in rollouts)
    sources = sorted({r.source for r in rollouts})
    for source in sources if len(sources) > 1 else ():  # of a mixture: each data set by itself
        of_source = [r for r in rollouts if r.source == source]
        row[f"source/{source}/share"] = len(of_source) / len(rollouts)
        row[f"source/{source}/reward"] = mean((r.score.total for r in of_source), of_source)
        row[f"source/{source}/correct"] = mean((r.score.correct for r in of_source), of_source)
        row[f"source/{source}/response_len"] = mean((len(r.response_ids) for r in of_source), of_source)
    if group_size is not None:
        groups = [rollouts[i:i + group_size] for i in range(0, len(rollouts), group_size)]
        agreeing = sum(group_size > 1 and len({r.score.total for r in group}) == 1 for group in groups)
        row["zero_variance_groups"] = mean([agreeing], groups)
    return row


def trained_rows(step, rollouts, updates, cfg, tokenizer):
    """
    Describe the last cfg.keep_rollouts of a step, in whole groups, with what the trainer computed for each token; every
    rank together, but rank 0 alone gets the rows. The last, because with several updates a step only later ones have
    ratios other than 1.

    rollouts: those that were packed, or any if none was. updates: this rank's micro-batches of each update, after the
    last one.
    """
    kept = kept_in_samples(rollouts, cfg)
    values, rows = values_of_tokens(itertools.chain(*updates), kept), []
    for i in kept if dist.get_rank() == 0 else ():
        of_tokens = values.get(i, {})
        advantages = of_tokens.get("advantages", np.zeros(1))
        if advantages.min() == advantages.max():  # one number says it
            of_tokens.pop("advantages", None)
        rows.append({**rollout_row(rollouts[i], step, "train", tokenizer, of_tokens),
                     "advantage": round(float(advantages.mean()), 4)})
    return rows


def kept_in_samples(rollouts, cfg):
    """Return the indices of the last cfg.keep_rollouts of a step's rollouts, in whole groups."""
    return range(max(0, len(rollouts) + -cfg.keep_rollouts // cfg.group_size * cfg.group_size), len(rollouts))


def values_of_tokens(batches, wanted):
    """Gather the TOKEN_VALUES of all ranks' micro-batches, but for None: {response: {name: (len,) float64}}."""
    holding = [batch for batch in batches if any(i in wanted for i in batch.response_index.unique().tolist())]
    return dict(gather([(i, parts) for batch in holding for i, parts in batch.by_response(*TOKEN_VALUES).items()
                        if i in wanted]))


def rollout_row(r, step, split, tokenizer, token_values=None):
    """
    Turn a scored Rollout into one JSON object. split: "train" or "held-out". ends[t] is where token t ends in
    `response`, in code points; the report wants it, and without tools/ it is empty. token_values {name: (len,)} and
    rollout_logprobs have one number a token too.
    """
    lists, ends = {"rollout_logprobs": r.rollout_logprobs, **(token_values or {})}, []
    if has_tools():
        from tools.token_ends import token_ends
        ends = token_ends(r, tokenizer)
    return {**scored_row(r, r.asked, step), "split": split, "source": r.source, "gold": r.asked.answer,
            "reward_name": r.asked.reward, **({"row": r.asked.row} if ".py:" in r.asked.reward else {}),
            "flags": sorted(r.score.flags), "truncated": r.truncated, "ends": ends,
            "prompt_ids": np.asarray(r.prompt_ids).tolist(), "response_ids": np.asarray(r.response_ids).tolist(),
            **{name: [float(f"{x:.9g}") if split == "train" and name in EXACT else round(float(x), 4) for x in numbers]
               for name, numbers in lists.items()}}


def scored_row(r, prompt, step):
    """Say what samples/ and an evaluation's files have in common about a scored Rollout."""
    return {"step": step, "uid": prompt.uid, "sample": r.sample, "prompt": prompt.text, "response": r.text,
            "reward": r.score.total, "correct": r.score.correct, "format_ok": r.score.format_ok, "parts": r.score.parts,
            "tokens": len(r.response_ids), "finish_reason": r.finish_reason}


# ---------------------------------------------------------------- updates


class StepStats:
    """Sum over the response tokens of a step's updates, on this rank until check_mismatch adds up the ranks."""

    def __init__(self, device="cpu", max_mismatch=math.inf):
        self.device, self.max_mismatch = device, max_mismatch
        self.local, self.total = {}, {}
        self.max_local, self.mismatch_max = torch.zeros((), device=device), 0.0
        self.grad_norms, self.critic_grad_norms, self.skipped_updates = [], [], 0

    def count(self, stands_for=1.0, **sums):
        for name, value in sums.items():  # tensors stay on the device: no synchronization per micro-batch
            value = value.double() if torch.is_tensor(value) else value
            self.local[name] = self.local.get(name, 0.0) + stands_for * value

    def add_mismatch(self, batch):
        """
        Compare the trainer's log-probs of a micro-batch, old_logprobs, with the engine's and the reference's: each
        token once, before the weights that drew it change. KL(policy || reference) needs tokens that this policy drew.
        """
        log_ratio = batch.old_logprobs - batch.rollout_logprobs  # (T,)
        if log_ratio.numel():
            self.max_local = torch.maximum(self.max_local, log_ratio.abs().max())
        self.count(batch.stands_for, compared=log_ratio.numel(), mismatch=log_ratio.abs().sum(),
                   mismatch_ratio=log_ratio.exp().sum())
        if batch.ref_logprobs is not None:
            x = batch.ref_logprobs - batch.old_logprobs
            self.count(batch.stands_for, kl=(x.exp() - 1 - x).sum(), kl_k1=-x.sum())

    @torch.no_grad()
    def add(self, batch, logprobs, entropy, loss, clipped):
        """
        Count one micro-batch of an update: logprobs, entropy (T,); clipped bool (T,), where the clip stopped the
        gradient; loss: this micro-batch's share of the update's.
        """
        if "compared" not in self.total:
            self.add_mismatch(batch)
        ratio = (logprobs - batch.old_logprobs).exp()
        batch.logprobs, batch.entropy, batch.ratio, batch.clipped = logprobs.detach(), entropy.detach(), ratio, clipped
        self.count(loss=loss.detach())  # which those that got no pass have no part in
        self.count(batch.stands_for, tokens=logprobs.numel(), entropy=batch.entropy.sum(), clipped=clipped.sum(),
                   approx_kl=(ratio - 1 - ratio.log()).sum())

    @torch.no_grad()
    def add_values(self, batch, values, loss, value_clip):
        """Count the critic's part of a micro-batch: values (T,); loss: this micro-batch's share of the value loss."""
        kept = batch.old_values + (values - batch.old_values).clamp(-value_clip, value_clip)
        clipped = (kept - batch.returns).abs() > (values - batch.returns).abs() if value_clip else loss * 0
        self.count(value_loss=loss.detach(), value_clipped=clipped.sum())

    def check_mismatch(self):
        """
        Add up the ranks; every rank together. Then the canary: engine and trainer agree about what was just sampled.
        """
        for name, value in sum_over_ranks(self.local, self.device).items() if self.local else ():
            self.total[name] = self.total.get(name, 0.0) + value
        self.local = {}
        self.mismatch_max = max_over_ranks(self.max_local, self.device)
        compared = self.total.get("compared", 0)
        mean = self.total["mismatch"] / compared if compared else 0.0
        if not mean <= self.max_mismatch:  # NaN too
            raise Broken(
                f"engine and trainer disagree: mean |rollout - trainer| log-prob {mean:.3g} (max "
                f"{self.mismatch_max:.3g}) is above mismatch_bound {self.max_mismatch:.3g}. No weight was changed. "
                "Likely causes: the weight sync misses a tensor (a tied lm_head), a stale prefix cache, another "
                "temperature, or a dtype that is too coarse")

    def end_update(self, grad_norm, skipped=False, critic_grad_norm=None):
        """
        Record the gradient norm of one update. Return whether it and the critic's are finite; if not, it was not
        applied.

        skipped: there was nothing to learn from, so the policy stayed as it was.
        """
        finite = math.isfinite(grad_norm) and math.isfinite(critic_grad_norm or 0.0)
        self.grad_norms.append(grad_norm)
        self.critic_grad_norms += [] if critic_grad_norm is None else [critic_grad_norm]
        self.skipped_updates += skipped or not finite
        return finite

    def row(self):
        """Average into columns; null without an update."""
        tokens, compared, updates = (max(1, n) for n in (self.total.get("tokens", 0), self.total.get("compared", 0),
                                                         len(self.grad_norms)))
        total = {name: self.total.get(name, 0.0) for name in ("loss", "entropy", "clipped", "approx_kl", "mismatch")}
        kl, kl_k1 = (self.total[name] / compared if name in self.total else None for name in ("kl", "kl_k1"))
        row = {
            "loss": total["loss"] / updates, "entropy": total["entropy"] / tokens,
            "grad_norm": mean_of_finite(self.grad_norms), "clip_frac": total["clipped"] / tokens,
            "approx_kl": total["approx_kl"] / tokens, "kl": kl, "kl_k1": kl_k1,
            "mismatch_mean": total["mismatch"] / compared, "mismatch_max": self.mismatch_max,
            "mismatch_ratio": self.total.get("mismatch_ratio", compared) / compared,
            "skipped_updates": self.skipped_updates, "trained_tokens": round(self.total.get("tokens", 0)),
        }
        if "value_loss" in self.total:  # PPO with a critic
            row |= {"value_loss": self.total["value_loss"] / updates,
                    "value_clip_frac": self.total["value_clipped"] / tokens,
                    "critic_grad_norm": mean_of_finite(self.critic_grad_norms)}
        return row if self.grad_norms else dict.fromkeys(row)


def explain_values(values, returns, advantages):
    """
    Describe a critic, from {response: (T,)} each: means of values and returns, spread of the advantages before
    whitening, and explained variance 1 - var(return - value) / var(return). 1 knows the future, 0 is no better than a
    constant. The correlation with length takes the mean advantage of each response.
    """
    v, r, a = (np.concatenate([x[i] for i in values] or [np.zeros(1)]) for x in (values, returns, advantages))
    explained = 1 - (r - v).var() / r.var() if r.var() > 0 else math.nan
    return {"explained_variance": float(explained), "value_mean": float(v.mean()), "return_mean": float(r.mean()),
            "advantage_std": float(a.std()), "corr_length_advantage": correlation(
                [len(x) for x in values.values()], [advantages[i].mean() for i in values])}


def advantage_columns(advantages, lengths, in_loss):
    """Describe GRPO's advantages (R,): their spread, and their correlation with length in the responses in_loss."""
    in_loss = in_loss.bool()  # torch makes an empty list one of floats
    return {"advantage_std": float(advantages.std()) if len(advantages) > 1 else 0.0,
            "corr_length_advantage": correlation(lengths[in_loss].tolist(), advantages[in_loss].tolist())}


def correlation(x, y):
    """Compute Pearson's correlation of two lists of numbers; None for fewer than two, and where one is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2 or any(np.ptp(numbers) <= 1e-9 * np.abs(numbers).max() for numbers in (x, y)):  # but for rounding
        return None
    return float(np.corrcoef(x, y)[0, 1])


def mean_of_finite(norms):
    finite = [n for n in norms if math.isfinite(n)]
    return sum(finite) / len(finite) if finite else math.nan if norms else 0.0


# ---------------------------------------------------------------- rows and lines


def empty_row(*names):
    """Make the row of step 0, before any update. Columns without a value yet, `names` included, are null."""
    nulls = dict.fromkeys([*StepStats().row(), *COLUMNS, "zero_variance_groups", *names])
    return {"step": 0, "lr": 0.0, "prompts_seen": 0, **nulls, **seconds({"step": 0.0})}


def speed(clock, machine, rollouts, updates):
    """Tell where the time of a step went, and how near it came to the machine's limits; every rank together."""
    row = seconds(clock.take(), sum(len(r.prompt_ids) + len(r.response_ids) for r in rollouts if not r.dropped))
    if not has_tools():
        return row | dict.fromkeys(COLUMNS)
    from tools.efficiency import efficiency
    return row | efficiency(row, machine, rollouts, list(itertools.chain(*updates)), clock.device)


def seconds(spent, tokens=0):
    """
    Turn the phases of a Clock into columns; `other` is the step less all that was timed (packing, summaries, writing
    the metrics). tokens_per_second: prompt and response tokens of all ranks over the step without evaluation and
    checkpoint.
    """
    names = dict.fromkeys([*PHASES, *spent, "step"])
    row = {f"seconds_{name}": spent.get(name, 0.0) for name in names}
    row["seconds_other"] = row["seconds_step"] - sum(s for name, s in spent.items() if name not in ("step", "other"))
    work_s = row["seconds_step"] - row["seconds_eval"] - row["seconds_save"]
    row["tokens_per_second"] = tokens / max(1e-9, work_s)
    return row


def more_seconds(row, spent):
    """Add to the seconds_* columns of a row what its evaluation and checkpoint took."""
    return {name: row.get(name, 0.0) + s for name, s in seconds(spent).items() if name.startswith("seconds_")}


def console_lines(row, num_steps):
    """
    Show a row on the console, called as the columns are: one line, and another one for held-out success. A line has at
    most 160 columns; what does not fit is left out, format_error first.
    """
    step, lines = f"step {row['step']:4d}/{num_steps}", []
    shown = {"reward": ".3f", "correct": ".0%", "truncated": ".0%", "response_len": ".0f", "grad_norm": ".2f",
             "entropy": ".2f", "skipped_updates": "d", "kl": ".4f", "explained_variance": ".2f", "seconds_step": ".1f",
             "format_error": ".0%"}
    if row["step"]:
        lines = [step]
        for name, form in shown.items():
            part = "" if row.get(name) is None else f"  {name} {row[name]:{form}}"
            if len(lines[0] + part) <= 160 and part != "  skipped_updates 0":
                lines[0] += part
    if row.get("eval_correct") is not None:
        lines.append(f"{step}  held-out: eval_correct {row['eval_correct']:.1%}  eval_correct_greedy "
                     f"{row['eval_correct_greedy']:.1%}  seconds_eval {row['seconds_eval']:.1f}")
    return lines
