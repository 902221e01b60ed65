"""
In which order a run asks its prompts: a pure function of the seed, so that nothing about it is stored.
"""

import functools
import math
from fractions import Fraction

import numpy as np


def prompt_order(sizes, weights, seed, start, count):
    """
    Return the draws number start .. start+count-1 of a run, as [(source index, row index in that source)].

    This is a pure function, so that a run resumes at any draw, however draws are cut into steps. Each source goes
    through its rows epoch by epoch, each epoch a permutation made from (seed, source, epoch) alone. Sources take turns:
    after any number of draws each is within one draw of its share. weights None: shares in proportion to the sizes.
    """
    weights = list(sizes) if weights is None else list(weights)
    if len(weights) != len(sizes) or min(sizes, default=0) < 1 or not all(0 < w < math.inf for w in weights):
        raise ValueError(f"prompt_order wants sizes >= 1 and as many weights > 0, got {sizes} and {weights}")
    turns = take_turns(whole_shares(weights))
    cycles, offset = divmod(start, len(turns))
    drawn = [cycles * turns.count(s) + turns[:offset].count(s) for s in range(len(sizes))]  # before `start`
    order = []
    for position in range(start, start + count):
        source = turns[position % len(turns)]
        epoch, place = divmod(drawn[source], sizes[source])
        order.append((source, int(permutation(sizes[source], seed, source, epoch)[place])))
        drawn[source] += 1
    return order


@functools.lru_cache(maxsize=64)
def permutation(size, seed, source, epoch):
    """Return the order of one epoch of a source."""
    return np.random.default_rng([seed, source, epoch]).permutation(size)


def whole_shares(weights, longest=10_000):
    """Turn weights into whole numbers of draws in one cycle: [0.5, 0.3, 0.2] -> (5, 3, 2); exact, or to 1 in 10,000."""
    exact = [Fraction(str(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    cycle = math.lcm(*[share.denominator for share in exact])
    if cycle > longest:
        return tuple(max(1, round(share * longest)) for share in exact)
    return tuple(int(share * cycle) for share in exact)


@functools.lru_cache(maxsize=16)
def take_turns(shares):
    """
    Say whose turn it is at each draw of a cycle: never a full draw ahead of or behind the exact share.

    The k-th draw of a source with share r must fall between (k-1)/r and k/r; of the sources that may draw, the one
    with the nearest deadline does (earliest deadline first, which keeps all deadlines if that is possible at all, and
    for shares that sum to 1 it is: Baruah et al. 1996, proportionate progress).
    """
    cycle, drawn, turns = sum(shares), [0] * len(shares), []
    for position in range(cycle):
        ready = [s for s, share in enumerate(shares) if drawn[s] * cycle // share <= position]
        source = min(ready, key=lambda s: -(-(drawn[s] + 1) * cycle // shares[s]))
        drawn[source] += 1
        turns.append(source)
    return tuple(turns)
