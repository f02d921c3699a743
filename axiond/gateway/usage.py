"""Cut event streams at event boundaries and read token counts from the end of an answer, without parsing JSON."""

import re

TAIL_BYTES = 4096
MOST_HELD_BYTES = 2**20

# Inside a JSON string the quotes would be escaped, so these match only real keys.
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})')


def count_tokens(answer: bytes) -> tuple[int | None, int | None]:
    """The last prompt and completion counts in the last bytes of *answer*; None where it names none."""
    tail = answer[-TAIL_BYTES:]
    prompt, completion = _PROMPT.findall(tail), _COMPLETION.findall(tail)
    return int(prompt[-1]) if prompt else None, int(completion[-1]) if completion else None


def split_events(data: bytes) -> tuple[bytes, bytes]:
    """
    Split into complete server-sent events and the beginning of the next.

    A beginning of over `MOST_HELD_BYTES` is let through as it is, so that memory stays bounded.
    """
    if data.endswith(b"\n\n") or len(data) > MOST_HELD_BYTES:
        return data, b""
    cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
    return (data[:cut], data[cut:]) if cut > 3 else (b"", data)
