"""An engine that samples from weights that are rounded too coarsely, to four bits."""
from experiments.collapse import faults
from experiments.collapse.healthy import *  # noqa: F403

_script = "train_grpo.py"

name = "rounded_engine"
mismatch_bound = 100.0                # else the canary ends the run in step 1

faults.rounded_engine(levels=7)
