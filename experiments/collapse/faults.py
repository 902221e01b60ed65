"""Faults of the engine, planted in a training process by a recipe: it calls one of these functions."""

import os
import sys


def training():
    """Return the rollout module of a training process; None anywhere else that a recipe is read."""
    script = os.path.basename(getattr(sys.modules["__main__"], "__file__", None) or "")
    return sys.modules.get("rollout") if script in ("train_grpo.py", "train_ppo.py") else None


def stale_engine(every):
    """Give the engine new weights only every so many steps, as a sync that fails silently would."""
    if (rollout := training()) is None:
        return
    wake = rollout.Engine.wake

    def late(self, policy, version):
        if self.version is None or version % every == 0:
            wake(self, policy, version)
        self.asleep = False

    rollout.Engine.wake = late


def rounded_engine(levels):
    """Round the weights that the engine gets to so many levels on each side of 0, of each tensor's largest."""
    if (rollout := training()) is None:
        return
    stream = rollout.hf_stream

    def rounded(model, dtype):
        for name, weight in stream(model, dtype):
            step = weight.abs().max() / levels
            yield name, (weight / step).round() * step

    rollout.hf_stream = rounded
