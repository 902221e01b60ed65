"""
The Hugging Face hub: whether it can be reached. No torch here.
"""

import os
import socket
import urllib.parse


def hub_reachable():
    """Tell whether the Hugging Face hub, or the mirror of HF_ENDPOINT, answers; behind a proxy it is taken to."""
    if any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return True
    host = urllib.parse.urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
