"""Duplicates: equal texts, near duplicates, repeated paragraphs and passages, texts that mean the same."""

from trivium.lazy import lazy_attributes

__getattr__ = lazy_attributes(
    __name__,
    {
        "PLACES": "trivium.data.dedup.signatures",
        "Signer": "trivium.data.dedup.signatures",
        "similarity": "trivium.data.dedup.signatures",
        "clusters": "trivium.data.dedup.buckets",
    },
)
