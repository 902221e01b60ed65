"""
Where the tokens of a response end in its text, for the colors of the report.
"""

import numpy as np
from tokenizers.decoders import DecodeStream


def token_ends(r, tokenizer):
    """
    Find where each token of a response ends in its text; a character of several tokens ends with the last of them. A
    slow tokenizer has no stream to ask: no list then, and no colors in the report.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    stream, ends, length = DecodeStream(skip_special_tokens=False), [], 0
    for token in np.asarray(r.response_ids).tolist():
        try:
            length += len(stream.step(backend, token) or "")
        except Exception:  # tokenizers raises nothing narrower; bytes that became no character spoil the stream
            stream = DecodeStream(skip_special_tokens=False)
        ends.append(min(length, len(r.text)))  # the text is without the stop token
    return ends
