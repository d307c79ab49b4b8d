"""Rows of several lengths in one kernel: what it is asked for, and when. The kernel itself needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models import attention
from trivium.models.attention import Pattern, RaggedAttention, fits_varlen, varlen_reason

LENGTHS = (5, 1, 9, 9, 16)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch's documentation says that `varlen_attn` computes, a sequence at a time."""
    assert ends.dtype == key_ends.dtype == torch.int32
    assert longest == longest_key == max(LENGTHS)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    before, after = (length if length >= 0 else longest for length in window_size)
    results = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (x[start:end].float().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        at = torch.arange(end - start)
        apart = at[:, None] - at[None, :]
        scores = scores.masked_fill((apart > before) | (-apart > after), float("-inf"))
        results.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(results).to(query.dtype)


@pytest.mark.parametrize(
    "pattern",
    [Pattern(), Pattern(window=4), Pattern(causal=False), Pattern(scale=0.3), Pattern(causal=False, window=3)],
    ids=str,
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_kernel_is_asked_for_what_separate_calls_compute(
    pattern: Pattern, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    source, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    query, key, value = (torch.randn(sum(LENGTHS), heads, 8, generator=source) for heads in (4, kv_heads, kv_heads))
    expected = RaggedAttention(Layout(LENGTHS), pattern=pattern, device=cpu)(query, key, value, layer=0, dropout=0.0)
    called: list[Any] = []

    def stand_in(*args: Any, **settings: Any) -> Tensor:
        called.append(settings)
        return reference(*args, **settings)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(attention, "varlen_reason", lambda device: "")
    monkeypatch.setattr(attention, "fits_varlen", lambda query: True)
    attend = RaggedAttention(Layout(LENGTHS), pattern=pattern, device=cpu)
    found = attend(query, key, value, layer=0, dropout=0.0)
    assert len(called) == 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_kernel_takes_half_precision_and_usual_heads() -> None:
    assert fits_varlen(torch.zeros(3, 2, 64, dtype=torch.bfloat16))
    assert fits_varlen(torch.zeros(3, 2, 128, dtype=torch.float16))
    assert not fits_varlen(torch.zeros(3, 2, 64))
    assert not fits_varlen(torch.zeros(3, 2, 320, dtype=torch.bfloat16))
    assert not fits_varlen(torch.zeros(3, 2, 12, dtype=torch.bfloat16))


def test_the_way_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen_reason(torch.device("cpu"))
    old, new = torch.device("cuda:3"), torch.device("cuda:4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device == old else (9, 0))
    assert "8.0" in varlen_reason(old)
    assert not varlen_reason(new)
    varlen_reason.cache_clear()
