"""
How near a step came to what the machine can do.

Work is what onebox/flops.py counts. So MFU is that of PaLM (arXiv 2204.02311, appendix B), except that PaLM counts the
whole square of attention. tests/test_flops.py checks the formulas.
"""

import math

import numpy as np

from onebox.distributed import sum_over_ranks
from onebox.flops import COLUMNS, forward_flops, kv_bytes_per_token


def decode_work(shape, prompt_lens, response_lens, num_seqs, bytes_each=2):
    """
    Count the least (bytes read, FLOPs) that one engine needs to sample these responses (R,), at most num_seqs at once.

        steps = max(longest response, ceil(all response tokens / num_seqs))       no schedule needs fewer
        bytes = steps * decode_weights * bytes_each  +  sum_i (r_i p_i + r_i (r_i + 1) / 2) * kv_bytes_per_token

    Every step reads each weight once, and of each running sequence all keys and values so far (a prefix that sequences
    share is still read by each). FLOPs: r_i tokens each through all weights; the prompts' own pass is not counted, as a
    group shares it.
    """
    p, r = np.asarray(prompt_lens, dtype=np.float64), np.asarray(response_lens, dtype=np.float64)
    if not r.sum():
        return 0.0, 0.0
    steps = max(r.max(), math.ceil(r.sum() / num_seqs))
    pairs = float((r * p + r * (r + 1) / 2).sum())
    flops = 2 * shape.decode_weights * r.sum() + 4 * shape.layers * shape.heads * shape.head_dim * pairs
    read = steps * shape.decode_weights * bytes_each + pairs * kv_bytes_per_token(shape, bytes_each)
    return float(read), float(flops)


def efficiency(row, machine, rollouts, batches, device):
    """
    Compute the columns that say how far a step was from what the machine can do; a collective. row: its seconds_*.

        mfu       FLOPs of all trainer passes / (seconds_logprobs + _values + _train) / (peak FLOP/s * world)
        mbu       bytes that decoding had to read / seconds_rollout / (peak bandwidth * world)
        roofline  (decode time at peak + trainer time at peak) / (seconds_step - eval - save); decode time at peak is
                  the larger of bytes / bandwidth and FLOPs / peak, trainer time FLOPs / peak, both in perfect balance
        packing   tokens / (ranks * tokens of the fullest rank), each micro-batch by itself: 1 = no rank waits
        tail      longest response / mean response
        seconds_tail  of the rollout, after 95 % of the slowest engine's responses were done

    rollouts: all of the step, on every rank; what finish_share left out was decoded too. batches: this rank's
    micro-batches, which count their own passes. The first three are None unless the device's peaks are known.
    """
    lens, size = [len(r.response_ids) for r in rollouts if not r.dropped], machine.round_size or len(rollouts)
    rounds = [rollouts[first:first + size] for first in range(0, len(rollouts), max(1, size))]
    filled, fullest = sum(b.tokens_of_all for b in batches), sum(b.tokens_of_fullest for b in batches)
    found = dict.fromkeys(COLUMNS) | {"packing": filled / (machine.world * fullest) if fullest else None,
                                      "tail": max(lens) * len(lens) / sum(lens) if sum(lens) else None,
                                      "seconds_tail": tail_seconds(rounds)}
    if machine.peaks is None:
        return found
    flops = sum_over_ranks({"flops": sum(trainer_flops(batch, machine) for batch in batches)}, device)["flops"]
    read = decode_s = 0.0
    for of_round in rounds:
        for engine in range(machine.engines):
            mine = [r for r in of_round if r.engine == engine]
            bytes_, ops = decode_work(machine.shape, [len(r.prompt_ids) for r in mine],
                                      [len(r.response_ids) for r in mine], machine.max_num_seqs, machine.bytes_each)
            read += bytes_
            decode_s += max(bytes_ / machine.peaks.bandwidth, ops / machine.peaks.flops) / machine.world
    train_s, read_s = flops / (machine.peaks.flops * machine.world), read / (machine.peaks.bandwidth * machine.world)
    spent = row["seconds_logprobs"] + row.get("seconds_values", 0.0) + row["seconds_train"]
    step = row["seconds_step"] - row["seconds_eval"] - row["seconds_save"]
    return found | {"mfu": train_s / spent if spent else None, "roofline": (decode_s + train_s) / step,
                    "mbu": read_s / row["seconds_rollout"] if row["seconds_rollout"] else None}


def tail_seconds(rounds):
    """Compute the time that the last 5 % of the slowest engine's responses took; 0 of fewer than 20."""
    tail = 0.0
    for of_round in rounds:
        slowest = max(of_round, key=lambda r: r.seconds).engine
        done = sorted(r.seconds for r in of_round if r.engine == slowest and not r.dropped)
        tail += done[-1] - done[-1 - len(done) // 20]
    return tail if rounds else None


def trainer_flops(batch, machine):
    """Count the FLOPs of the passes that a micro-batch has gone through so far; none for a rank's dummy token."""
    scored = len(batch.targets)
    flops = batch.policy_forwards * forward_flops(machine.shape, batch.lens, scored)
    if batch.critic_forwards:
        flops += batch.critic_forwards * forward_flops(machine.critic_shape, batch.lens, 0)
    return flops if scored else 0.0
