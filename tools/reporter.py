"""
Renew a run's report.html in a process of its own, so that the run need not wait for it.
"""

import os
import subprocess
import sys

from onebox.files import HERE


class Reporter:
    """The reports of one run: at most one is being made at a time."""

    def __init__(self, path, say):
        self.path, self.say, self.process = path, say, None

    def renew(self, wait=False):
        """
        Make report.html again, in at most 10 minutes, unless the one before is still at work; wait: until it is there.
        If it fails, report.log says why.
        """
        if self.process and self.process.poll() is None and not wait:
            return
        self.end()
        command = ["nice", "-n", "10", sys.executable, "-m", "tools.report"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LD_PRELOAD", "WANDB"))}
        try:
            with open(os.path.join(self.path, "report.log"), "w") as log:
                self.process = subprocess.Popen([*command, os.path.abspath(self.path)], cwd=HERE, env=environment,
                                                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except OSError as error:  # a full disk
            return self.say(f"WARNING: no report.html was made ({error})")
        if wait and self.end():
            self.say(f"no report.html was made: see {self.path}/report.log")

    def end(self):
        """Wait for the report that is being made, return its exit code. One that hangs is killed after 10 minutes."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(600)
        except subprocess.TimeoutExpired:
            self.process.kill()  # itself, not a child of it: `nice` has become the report
            return self.process.wait()
