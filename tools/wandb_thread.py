"""
Send metrics to Weights & Biases from a thread of its own: a service that is down, slow or full must not hold a run up.
"""

import os
import queue
import threading


class WandbThread(threading.Thread):
    """
    Log rows to wandb, or say in one line why not and go on without it. metrics.jsonl is the truth.

    Rows that a resumed run writes again are dropped by wandb, and are the same.
    """

    def __init__(self, say, **settings):
        super().__init__(daemon=True)
        self.say, self.settings, self.rows = say, settings, queue.SimpleQueue()
        os.environ.setdefault("WANDB_SILENT", "true")
        self.start()

    def run(self):
        try:
            import wandb

            run = wandb.init(**self.settings, settings=wandb.Settings(init_timeout=30, login_timeout=30))
            while (row := self.rows.get()) is not None:
                run.log(row, step=row["step"])
            run.finish()
        except Exception as error:  # no package, no key, no connection, disk full: the run does not depend on it
            self.say(f"wandb: {type(error).__name__}: {error}; going on without it")

    def log(self, row):
        self.rows.put(row)

    def close(self, wait_s=60):
        """Wait for the rows to be sent, but not longer than wait_s."""
        self.rows.put(None)
        self.join(wait_s)
        if self.is_alive():
            self.say(f"wandb: not done after {wait_s} s; not waiting for it")
