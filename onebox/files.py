"""
Files that a kill leaves whole, and reading those that it did not.
"""

import io
import json
import os

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository


def has_tools():
    """Return whether tools/ is there: a run can do without, and then says and keeps less."""
    return os.path.isdir(os.path.join(HERE, "tools"))


def write_atomic(path, content):
    """Write text or bytes, synced to the disk. After a kill the file is the old one or the new one, never a part."""
    tmp = f"{path}.tmp{os.environ.get('RANK', 0)}"  # ranks may write together
    with open(tmp, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def sync_folder(path):
    """Sync a directory: a name reaches the disk with its directory, not with the file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path, errors="strict"):
    """Return the JSON object of a file, {} if there is none that can be read; errors="replace" reads damaged UTF-8."""
    try:
        with open(path, encoding="utf-8", errors=errors) as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path):
    """Yield (line, row) of a file with one JSON object a line, if it is there; row is {} where a kill cut the line."""
    with open(path, errors="replace") if os.path.exists(path) else io.StringIO() as f:
        for line in f:
            try:
                row = json.loads(line) if line.endswith("\n") else {}
            except ValueError:
                row = {}
            yield line, row if isinstance(row, dict) else {}
