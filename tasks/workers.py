"""
Sympy (math-verify) decides what strings and fractions cannot, in processes that can be killed: it has no time bound of
its own, and a hung verifier stops a training run.

    Workers().submit(id, golds, prediction, rules);  .poll() -> [(id, "right" | "wrong" | "timeout" | "error")]
    ask_now(golds, prediction, rules)       waits for one verdict
    python -m tasks.workers                 is such a process: JSON lines in, JSON lines out
"""

import atexit
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

from tasks.math_equal import TRIGONOMETRIC, Rules, decide

# ---------------------------------------------------------------- what sympy says

DIGITS = 1500                   # exponents have at most three digits, so that other values differ before the 1,000th


def sympy_text(text):
    """Write decimals as exact fractions (0.25 -> (1/4), 1.5e-7), and degrees as radians where a function takes them."""
    if TRIGONOMETRIC.search(text):
        text = re.sub(r"([0-9]+(?:\.[0-9]+)?)\^\\circ ?", r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = re.sub(r"([0-9]*\.[0-9]+)[eE]([-+]?[0-9]{1,3})(?![0-9])", r"\1\\cdot10^{\2}", text)
    return re.sub(r"([0-9]*)\.([0-9]+)", lambda m: "(%d/%d)" % Fraction(m[0]).as_integer_ratio(), text)


def sympy_equal(gold, prediction, rules):
    """
    Compare two scalar expressions by math-verify 0.9, without its absolute tolerance of 1e-15: two numbers are equal if
    all of their digits are, or within the tolerance of the rules.
    """
    from latex2sympy2_extended import NormalizationConfig  # here, so that only a worker pays the import
    from math_verify import LatexExtractionConfig, parse, verify
    config = LatexExtractionConfig(normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"))      # units: '6m' as 6

    def parsed(*texts):
        return [parse(f"${text}$", [config], fallback_mode="no_fallback", extraction_mode="first_match",
                      parsing_timeout=None) for text in texts]

    g, p = parsed(sympy_text(gold), sympy_text(prediction))
    if not g or not p:
        return False
    equal = same_number(g[0], p[0], rules)
    if rules.decimals and "." in gold + prediction and not equal:       # rounding, but not to 0
        return verify(*parsed(gold, prediction), timeout_seconds=None) and not (equal is False and all(
            abs(side[0].evalf()) < 0.5 / 10 ** rules.decimals for side in (g, p)))
    if equal is not None:
        return equal
    if not verify(g, p, timeout_seconds=None):
        return same_roots(g[0], p[0])
    if is_expression(g[0], p[0]):
        return same_at(g[0], p[0], 1) is not False
    return verify(g, p, numeric_precision=DIGITS, timeout_seconds=None)     # sets, equations, inequalities


def is_expression(*sides):
    from sympy import Expr
    return all(isinstance(side, Expr) for side in sides)


def same_number(a, b, rules):
    """Tell whether two sympy numbers are equal; None if they are no numbers, or no finite ones."""
    from sympy import I, Integral, Limit, Product, Sum
    from sympy.core.evalf import PrecisionExhausted
    if not is_expression(a, b):
        return None
    a, b = (side.subs({s: I for s in side.free_symbols if s.name == "i"}) for side in (a, b))
    a, b = (side.doit() if side.has(Integral, Limit, Product, Sum) else side for side in (a, b))
    if a.free_symbols or b.free_symbols or a.has(Integral, Limit) or b.has(Integral, Limit):
        return None
    try:
        difference = (a - b).evalf(5, maxn=DIGITS, strict=True)
    except PrecisionExhausted:          # not one digit of it is certain
        return True
    if not all(part.is_Number and part.is_finite for part in difference.as_real_imag()):
        return None
    return bool(abs(difference) <= rules.rel_tol * max(abs(a.evalf()), abs(b.evalf())))


def same_at(a, b, sign):
    """Apply same_number() with numbers of this sign for the letters: different formulas differ there."""
    from sympy import Rational
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    point = {letter: sign * Rational(1237 + 10 * i, 1009) for i, letter in enumerate(letters)}
    return same_number(a.subs(point), b.subs(point), Rules())


def same_roots(a, b):
    """
    Tell whether two formulas are the same for positive letters, and for negative ones equal or not real: '\\sqrt{1/n}'
    and '\\frac{1}{\\sqrt{n}}', which sympy keeps apart because of n < 0. |x| is not x.
    """
    from sympy import Dummy, Pow, log, simplify
    if not is_expression(a, b) or a.free_symbols != b.free_symbols or not a.free_symbols or not any(
            power.exp.is_integer is not True for power in (a - b).atoms(Pow)) and not a.has(log):
        return False
    if simplify((a - b).subs({letter: Dummy(positive=True) for letter in a.free_symbols})) != 0:
        return False
    for sign in (-1, -10 ** 12):
        real = [abs(side.subs({letter: sign for letter in a.free_symbols}).evalf().as_real_imag()[1]) < 1e-9
                for side in (a, b)]
        if any(real) and same_at(a, b, sign) is not True:
            return False
    return same_at(a, b, 1) is True


def judge(golds, prediction, rules):
    """Decide with sympy. What sympy cannot read is not equal."""
    try:
        return bool(decide(golds, prediction, rules, sympy_equal))
    except Exception:       # sympy raises nearly everything, and under our limit MemoryError
        return False


# ---------------------------------------------------------------- processes

MEMORY_BYTES = 1 << 30          # address space of one worker; sympy needs ~200 MB
START_S = 120                   # to import sympy on a busy machine; the deadline of a job starts after it
JOBS_PER_WORKER = 500           # sympy's caches grow
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = (sys.executable, "-m", "tasks.workers")


def serve(judge=judge, cpu_s=10):
    """Run a worker: read lines [id, golds, prediction, rules] as JSON, answer [id, right], until stdin closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import math_verify  # noqa: F401   before the first deadline runs
    # An own reward may run programs that a model wrote: they get no way to these lines, and neither does a print
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in questions:
        job_id, golds, prediction, rules = json.loads(line)
        if rules == "own":
            found = own_answer(golds, prediction)
        else:
            limit_cpu(cpu_s)
            found = judge(golds, prediction, rules)
        # one write: where Python does not buffer, print() writes its line break apart, perhaps after the deadline
        answers.write(json.dumps([job_id, found]) + "\n")
        answers.flush()


def limit_cpu(seconds):
    """End this process after so much more CPU time: an orphan must not spin on after its parent was killed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def own_answer(where, sample):
    """Let an own reward score a response here, where it can be killed; see own.score_in_worker."""
    from tasks import own  # only a worker that is asked so loads the user's file

    most = resource.RLIM_INFINITY if where[3] == "inf" else int(float(where[3]) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    limit_cpu(60 + 16 * float(where[2]))  # of all its threads
    os.chdir(where[1])
    return own.score_in_worker(where, sample, lambda *question: "right" if judge(*question) else "wrong")


def own_seconds(golds, prediction, rules):
    """Return how long the own reward of a question may take; None where sympy is asked."""
    return float(golds[2]) if rules == "own" else None


@dataclass
class Worker:
    process: subprocess.Popen
    deadline: float
    ready: bool = False
    job: object = None          # that it works on
    loaded: set = field(default_factory=set)  # files of own rewards
    nonce: int = 0              # of the job
    jobs_done: int = 0
    buffer: bytes = b""


class Workers:
    """
    Grader processes that can be killed. submit() and poll() hand out jobs, read results and enforce deadlines; there is
    no thread. Verdicts: "right", "wrong", "timeout" (SIGKILLed at its deadline) or "error" (the process died).
    """

    def __init__(self, num_workers=2, timeout_s=3.0, command=COMMAND):
        self.num_workers, self.timeout_s, self.command = num_workers, timeout_s, list(command)
        self.queue, self.workers, self.done = deque(), [], []
        self.selector = selectors.DefaultSelector()
        self.failed_starts = 0
        atexit.register(self.close)

    def submit(self, job_id, golds, prediction, rules):
        self.queue.append((job_id, golds, prediction, rules))

    def poll(self, wait_s=0.0):
        """Return finished jobs as [(job id, verdict)]; wait at most wait_s for the first."""
        self._hand_out()
        deadlines = [w.deadline for w in self.workers if w.job or not w.ready]
        if deadlines:
            wait_s = 0.0 if self.done else max(0.0, min(wait_s, min(deadlines) - time.monotonic() + 0.01))
            for key, _ in self.selector.select(wait_s):     # first read: it may have answered while nobody looked
                self._read(key.data)
        for worker in [w for w in self.workers if (w.job or not w.ready) and time.monotonic() > w.deadline]:
            self._end(worker, "timeout")
        self._hand_out()
        done, self.done = self.done, []
        return done

    def withdraw(self, job_id):
        """Take a job from the queue, unless it runs already."""
        self.queue = deque(job for job in self.queue if job[0] != job_id)

    def drop(self):
        """Forget all jobs and end those that run: the batch is over."""
        self.queue.clear()
        for worker in [w for w in self.workers if w.job]:
            self._end(worker, "timeout")
        self.done.clear()

    def close(self):
        """End and reap all processes. A later submit() starts new ones."""
        self.queue.clear()
        for worker in list(self.workers):
            self._end(worker, "error")
        self.done.clear()
        atexit.unregister(self.close)

    def _hand_out(self):
        while self.queue and self.failed_starts >= 3:       # e.g. math-verify is not installed: fail, do not spin
            self.done.append((self.queue.popleft()[0], "error"))
        idle = [w for w in self.workers if w.ready and not w.job]
        while self.queue and idle:
            worker = idle.pop()
            worker.job, worker.nonce = self.queue.popleft(), int.from_bytes(os.urandom(6))
            question = worker.job[1:]
            worker.deadline = time.monotonic() + (own_seconds(*question) or self.timeout_s)
            if question[2] == "own" and question[0][0] not in worker.loaded:
                worker.deadline += START_S  # first the file, however long its imports take; _read sends the question
                self._send(worker, -1, question[0], "", "own")
            else:
                self._send(worker, worker.nonce, *question)
        starting = sum(not w.ready for w in self.workers)
        while len(self.queue) > starting and len(self.workers) < self.num_workers:
            self._start()
            starting += 1

    def _send(self, worker, number, *question):
        """Write a line to a worker. Return whether it still reads; if not, it is ended."""
        try:
            worker.process.stdin.write(json.dumps([number, *question]).encode() + b"\n")
            worker.process.stdin.flush()
            return True
        except OSError:
            self._end(worker, "error")
            return False

    def _start(self):
        # vLLM on the CPU preloads its OpenMP and malloc; with the hash seed sympy's search order and verdicts repeat
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        process = subprocess.Popen(
            self.command, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is not for it
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        os.set_blocking(process.stdout.fileno(), False)
        worker = Worker(process, deadline=time.monotonic() + START_S)
        self.workers.append(worker)
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _read(self, worker):
        try:
            data = os.read(worker.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not data:
            self._end(worker, "error")
            return
        worker.buffer += data
        *lines, worker.buffer = worker.buffer.split(b"\n")
        for line in lines:
            if line == b"ready":
                worker.ready, self.failed_starts = True, 0
                continue
            try:
                nonce, found = json.loads(line)
            except (ValueError, TypeError):
                return self._end(worker, "error")
            if worker.job and nonce == -1:
                worker.loaded.add(worker.job[1][0])
                worker.deadline = time.monotonic() + own_seconds(*worker.job[1:])
                if not self._send(worker, worker.nonce, *worker.job[1:]):
                    return
            elif worker.job and nonce == worker.nonce:
                self.done.append((worker.job[0], found if isinstance(found, str) else "right" if found else "wrong"))
                worker.job, worker.jobs_done = None, worker.jobs_done + 1
        if worker.jobs_done >= JOBS_PER_WORKER and not worker.job:
            self._end(worker, "error")

    def _end(self, worker, verdict):
        """Kill and reap a worker. Its job, if any, gets `verdict`."""
        self.workers.remove(worker)
        self.selector.unregister(worker.process.stdout)
        try:
            os.killpg(worker.process.pid, signal.SIGKILL)  # with the programs that an own reward has started
        except ProcessLookupError:
            worker.process.kill()
        worker.process.wait()
        worker.process.stdout.close()
        try:
            worker.process.stdin.close()
        except OSError:         # an unwritten rest for a dead process
            pass
        self.failed_starts += not worker.ready
        if worker.job:
            self.done.append((worker.job[0], verdict))


# ---------------------------------------------------------------- verdicts

MAX_KNOWN = 100_000


class Verdicts:
    """Decide for a batch of completions: from strings at once, else in grader processes while something else runs."""

    def __init__(self, num_workers=2, timeout_s=3.0):
        self.graders = Workers(num_workers, timeout_s)
        # {question: keys that wait for it}, {question: verdict}: the responses of a group repeat each other's answers
        self.waiting, self.known = {}, {}

    def ask(self, key, golds, prediction, rules):
        """Return "right" or "wrong", or "timeout" where only sympy can tell: then poll() will return this key."""
        question = (tuple(golds), prediction, rules)
        right = None if rules == "own" else decide(golds, prediction, rules)  # own: see tasks/own.py
        if right is not None or question in self.known:
            return self.known.get(question) or ("right" if right else "wrong")
        if question not in self.waiting:
            self.graders.submit(question, *question)
        if key not in (keys := self.waiting.setdefault(question, [])):
            keys.append(key)
        return "timeout"

    def poll(self, wait_s=0.0):
        """Return [(key, question, verdict)] of what was decided since; wait at most wait_s."""
        found = []
        if len(self.known) >= MAX_KNOWN:
            self.known.clear()
        for question, verdict in self.graders.poll(wait_s):
            if verdict in ("right", "wrong"):  # a timeout may be a busy machine's; a Score is as long as its response
                self.known[question] = verdict
            found += [(key, question, verdict) for key in self.waiting.pop(question, ())]  # (): forgotten meanwhile
        return found

    def own_seconds(self):
        """Return how long the own rewards that wait may take at most, from the start of their processes on."""
        seconds = [own_seconds(*question) for question in self.waiting if question[2] == "own"]
        return 2 * START_S * bool(seconds) + sum(seconds) / max(1, self.graders.num_workers)

    def undecided(self):
        """Return the set of keys that wait."""
        return {key for keys in self.waiting.values() for key in keys}

    def forget(self, key):
        """Withdraw the questions that only this key waits for. One that a process works on ends by drop() at latest."""
        for question, keys in list(self.waiting.items()):
            keys[:] = [other for other in keys if other != key]
            if not keys:
                del self.waiting[question]
                self.graders.withdraw(question)

    def drop(self):
        """Forget the questions that wait, and end what processes still work on."""
        self.graders.drop()
        self.waiting.clear()

    def close(self):
        self.graders.close()


_verdicts, _owner, _lock = None, 0, threading.Lock()


def ask_now(golds, prediction, rules):
    """Return one verdict, from one grader process of this module that starts when first needed."""
    global _verdicts, _owner
    with _lock:
        if _owner != os.getpid():  # after a fork the pipes belong to the parent
            _verdicts, _owner = Verdicts(num_workers=1), os.getpid()
        try:
            verdict = _verdicts.ask(None, golds, prediction, rules)
            while _verdicts.undecided():
                verdict = next((found for _, _, found in _verdicts.poll(wait_s=1.0)), verdict)
            return verdict
        finally:
            _verdicts.drop()  # after Ctrl-C the question would be answered to whoever asks next


if __name__ == "__main__":
    judge([r"2\sqrt{2}"], r"\sqrt{8}", "strict")        # what sympy loads at its first question counts in no deadline
    serve()
