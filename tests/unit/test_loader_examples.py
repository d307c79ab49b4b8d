"""Methods that make their own examples: new noise each epoch, the same noise after a resume and on any ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trivium.data.batch import IGNORE
from trivium.data.corruption.example import Example, next_token, taught, tokens
from trivium.data.corruption.spans import corrupt_spans
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

LENGTH, MARGIN = 32, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the quick brown fox jumps over the lazy dog. " * 20
    return train_bpe([text], vocab_size=320, special=[f"<extra_id_{number}>" for number in range(20)])


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "documents.jsonl"
    rows = [{"id": f"d{n}", "text": "the lazy dog jumps " * (n * 7 % 9) + f"over {n}"} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def opened(path: str, tokenizer: Tokenizer, *, bare: bool, length: int = LENGTH) -> Dataset:
    section = DataSection(train=path, sequence_length=length)
    return open_dataset(section.train, kind="documents", tokenizer=tokenizer, settings=section, bare=bare)


@pytest.fixture(scope="module")
def dataset(path, tokenizer) -> Dataset:
    return opened(path, tokenizer, bare=True, length=LENGTH - MARGIN)


def denoise(ids, random) -> Example:
    """As T5: holes in the source, what was in them as target; both framed by 1 and 2."""
    source, target = corrupt_spans(ids, random, sentinels=range(8, 28), roll=True)
    return taught(tokens(1, source, 2), tokens(target, 2), start=0)


def hide(ids, random) -> Example:
    """As BERT, roughly, with a number of its own for each position."""
    noise = random.random(len(ids) + 2)
    framed, targets = tokens(1, ids, 2), np.full(len(ids) + 2, IGNORE)
    hidden = np.flatnonzero(noise < 0.3)
    targets[hidden] = framed[hidden]
    framed[hidden] = 0
    return Example(framed, targets, fields={"noise": noise})


def loader(dataset, example=denoise, *, rows=6, micro_rows=2, **options) -> Loader:
    settings = {"packing": "best_fit", "seed": 3, "margin": MARGIN, "example": example, **options}
    return Loader(dataset, rows=rows, micro_rows=micro_rows, sequence_length=LENGTH, **settings)


def sequences(batches):
    """(sample, inputs, targets, source) of each sample, in a form to compare."""
    found = []
    for batch in batches:
        spans = list(batch.layout.spans())
        sources = list(batch.source.layout.spans()) if batch.source is not None else [(0, 0)] * len(spans)
        for sample, (start, end), (begin, stop) in zip(batch.sample_ids, spans, sources, strict=False):
            source = [] if batch.source is None else batch.source.ids[begin:stop].tolist()
            found.append((sample, batch.input_ids[start:end].tolist(), batch.targets[start:end].tolist(), source))
    return sorted(found)


def test_bare_pieces_are_the_text_without_its_frame(path, tokenizer):
    bare, framed = opened(path, tokenizer, bare=True, length=10), opened(path, tokenizer, bare=False, length=10)
    texts: dict[str, list[int]] = {}
    for number in range(len(bare)):
        sample = bare.sample(number)
        texts.setdefault(sample.id.partition("#")[0], []).extend(sample.sequences[0].ids)
        assert len(sample.sequences[0].ids) <= 10
    assert len(texts) == 60
    for line, text in zip(Path(path).read_text().splitlines(), texts.values(), strict=True):
        assert text == tokenizer.encode(json.loads(line)["text"])
    assert bare.fingerprint() != framed.fingerprint()
    assert "trained_tokens" not in bare.summary()
    assert framed.summary()["trained_tokens"] == framed.summary()["tokens"]


@pytest.mark.parametrize("example", [denoise, hide])
@pytest.mark.parametrize("world", [2, 3])
def test_noise_is_the_same_on_any_ranks_and_after_a_resume(dataset, example, world):
    alone = loader(dataset, example)
    for index in (0, 3, int(alone.updates_per_epoch) + 2):
        shares = [loader(dataset, example, rank=rank, world=world, micro_rows=1).update(index) for rank in range(world)]
        assert sequences(batch for share in shares for batch in share) == sequences(alone.update(index))
        with loader(dataset, example).prefetched(index, 2) as ahead:
            assert sequences(next(ahead)) == sequences(alone.update(index))


@pytest.mark.parametrize("example", [denoise, hide])
def test_noise_is_another_in_each_epoch_and_with_each_seed(dataset, example):
    whole = loader(dataset, example, rows=1, micro_rows=1)

    def epoch(number, source=whole):
        start = number * whole.rows_per_epoch
        return sequences(batch for row in range(whole.rows_per_epoch) for batch in source.update(start + row))

    first, second, other = epoch(0), epoch(1), epoch(0, loader(dataset, example, rows=1, micro_rows=1, seed=4))
    for changed in (second, other):
        assert [one[0] for one in changed] == [one[0] for one in first]
        assert sum(one != two for one, two in zip(first, changed, strict=True)) > len(first) / 2
    assert epoch(0) == first


def test_held_out_data_is_corrupted_alike_always(dataset):
    once = sequences(loader(dataset).evaluation())
    assert once == sequences(loader(dataset, seed=99).evaluation(micro_rows=5))
    assert once == sequences(batch for rank in range(3) for batch in loader(dataset, rank=rank, world=3).evaluation())


def test_rows_hold_what_the_encoder_reads(dataset):
    whole = loader(dataset, rows=1, micro_rows=1)
    for row in range(whole.rows_per_epoch):
        (batch,) = whole.update(row)
        assert batch.tokens <= LENGTH
        assert batch.source.layout.tokens <= LENGTH
        assert batch.source.layout.sequences == batch.layout.sequences == len(batch.sample_ids)
    assert 0.8 < whole.packing_efficiency <= 1


def test_an_example_longer_than_announced_is_refused(dataset):
    with pytest.raises(ValueError, match="announced"):
        loader(dataset, hide, margin=1, rows=60, micro_rows=60).update(0)


def test_target_bytes_are_those_of_the_targets(dataset, tokenizer):
    for batch in loader(dataset).update(0):
        targets = batch.targets.tolist()
        size = batch.fields["target_bytes"].tolist()
        texts = [tokenizer.decode([token]) for token in targets]
        assert size == [len(text.encode()) for text in texts]
        assert 0 in size


@pytest.mark.parametrize("example", [denoise, hide])
def test_padding_gives_one_shape_on_both_sides(dataset, example):
    for rank in (0, 3):
        plain = loader(dataset, example, rank=rank, world=4).update(1)
        padded = loader(dataset, example, rank=rank, world=4, pad_rows=True).update(1)
        assert len({batch.tokens for batch in padded}) == 1
        for batch, original in zip(padded, plain, strict=True):
            assert batch.sample_ids == original.sample_ids
            assert sequences([batch]) == sequences([original])
            assert batch.trained_tokens() == original.trained_tokens()
            assert max(batch.layout.lengths) <= LENGTH
            if batch.source is not None:
                assert batch.source.layout.tokens == batch.tokens == 3 * LENGTH
                assert max(batch.source.layout.lengths) <= LENGTH
                assert min(batch.source.layout.lengths + batch.layout.lengths) >= 1


@pytest.mark.parametrize("example", [denoise, hide])
def test_a_rank_without_rows_gets_a_filler_of_the_same_kind(dataset, example):
    (batch,) = loader(dataset, example, rows=2, micro_rows=1, rank=2, world=3).update(0)
    assert (batch.tokens, batch.trained_tokens(), batch.sample_ids) == (1, 0, ())
    assert (batch.source is None) == (example is hide)
    assert ("noise" in batch.fields) == (example is hide)


def test_fields_and_prefixes_of_examples_reach_the_batch(path, tokenizer):
    dataset = opened(path, tokenizer, bare=False)

    def example(ids, random):
        made = next_token(ids)
        return Example(made.inputs, made.targets, prefix=len(made.inputs) // 2, fields={"half": made.inputs * 0.5})

    (batch,) = loader(dataset, example, margin=0, rows=2).update(0)
    assert batch.layout.prefixes == tuple(length // 2 for length in batch.layout.lengths)
    assert torch.equal(batch.fields["half"], batch.input_ids * 0.5)
    plain = Loader(dataset, rows=2, micro_rows=2, sequence_length=LENGTH, packing="best_fit", seed=3).update(0)[0]
    assert torch.equal(plain.input_ids, batch.input_ids)
    assert plain.layout.prefixes is None
