"""
Act at a point of a run from outside, most often with SIGKILL: the scripts hold no hooks for it, functions are patched.

    FAULT_AT=backward:3:1 torchrun ... tests/kill_at.py train_grpo.py ...     # kill rank 1 in step 3; both are optional

sync, rollout, backward, optimizer, evaluate, metrics, save_write, after_rename and prune are the moment after that;
logprobs, save_manifest and export the moment before the update, the manifest, the rename of a finished export.
"""

import functools
import os
import re
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOW = {"step": None}  # which step the run is in


def replace(owner, name, new):
    """Set a function of a module, or a method, also where a file of this repository has imported it by its name."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").startswith(ROOT) and vars(module).get(name) is old:
            setattr(module, name, new)


def around(owner, name, before=None, after=None):
    """Call before(*args) before a function and after(result, *args) after it."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def patched(*args, **kwargs):
        if before:
            before(*args)
        result = real(*args, **kwargs)
        if after:
            after(result, *args)
        return result

    replace(owner, name, patched)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def at(point, step=None, action=kill, rank=None):
    """Call action() whenever the run comes to this point, in this step and on this rank."""
    import torch

    import eval as evaluation
    import policy
    import rollout
    from onebox import checkpoint, distributed, rundir

    def here(wanted=lambda *_: True):
        def act(*args):
            if wanted(*args) and step in (None, NOW["step"]) and rank in (None, int(os.environ.get("RANK", "0"))):
                action()
        return act

    def leads_to(pattern):
        return lambda result, source, target: bool(re.search(pattern, os.path.basename(target)))

    around(rundir.Run, "begin_step", before=lambda run, number: NOW.update(step=number))
    around(rundir.Run, "resume", after=lambda progress, *_: NOW.update(step=progress.step))
    around(rundir.Run, "finish", before=lambda run, *_: NOW.update(step=run.progress.step))
    points = {
        "sync": (rollout.Engine, "wake", None, here()),
        "rollout": (rollout.Engine, "sample", None, here()),
        "logprobs": (distributed.Clock, "phase", here(lambda clock, name: name == "train"), None),
        "backward": (torch.Tensor, "backward", None, here()),
        "optimizer": (policy, "optimizer_step", None, here()),
        "evaluate": (evaluation, "evaluate", None, here()),
        "metrics": (rundir.Run, "write_row", None, here()),
        "save_write": (checkpoint.dcp, "save", None, here()),
        "save_manifest": (checkpoint, "write_atomic", here(lambda path, *_: path.endswith("MANIFEST.json")), None),
        "after_rename": (os, "rename", None, here(leads_to(r"^step_\d+$"))),
        "prune": (os, "rename", None, here(leads_to("^tmp_pruned_"))),
        "export": (os, "rename", here(lambda source, target: os.path.basename(source) == "model.tmp"), None)}
    around(*points[point])


def install():
    """Kill as FAULT_AT says, but not again after a restart by torchrun."""
    if (wanted := os.environ.get("FAULT_AT")) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        point, step, rank = [*wanted.split(":"), None, None][:3]
        at(point, step and int(step), rank=rank and int(rank))


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    from onebox import rundir

    install()
    sys.argv = sys.argv[1:]
    rundir.entry(__import__(os.path.basename(sys.argv[0]).removesuffix(".py")).main)
