"""Hashes of texts that are the same in every process and on every machine."""

from __future__ import annotations

import hashlib


def hash64(text: str) -> int:
    """64 bits that stand for a text, whatever characters are in it."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
