"""An engine that samples from old weights: seven of eight weight syncs do not happen."""
from experiments.collapse import faults
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "stale_engine"
mismatch_bound = 100.0                # else the canary ends the run in step 2

faults.stale_engine(every=8)
