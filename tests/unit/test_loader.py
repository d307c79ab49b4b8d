"""Loading is stateless: update i is a function of the seed and i, on any number of ranks, after any interruption."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
from collections import Counter

import pytest
import torch

from trivium.data.batch import IGNORE
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader, Prefetched
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the quick brown fox jumps over the lazy dog. " * 20], vocab_size=300)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(count: int, name: str = "d") -> list[dict[str, str]]:
    return [{"id": f"{name}{n}", "text": "the lazy dog jumps " * (n * 7 % 5) + f"over {n}"} for n in range(count)]


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory) -> Dataset:
    path = write_rows(tmp_path_factory.mktemp("data") / "documents.jsonl", texts(97))
    return opened(path, tokenizer)


def opened(train, tokenizer, kind="documents", **settings) -> Dataset:
    section = DataSection(train=train, sequence_length=LENGTH, **settings)
    return open_dataset(section.train, kind=kind, tokenizer=tokenizer, settings=section)


def loader(dataset, *, rows=6, micro_rows=2, packing="best_fit", **options) -> Loader:
    options = {"seed": 3, **options}
    return Loader(dataset, rows=rows, micro_rows=micro_rows, sequence_length=LENGTH, packing=packing, **options)


def ids(batches) -> list[str]:
    return [sample for batch in batches for sample in batch.sample_ids]


# Resuming


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_reads_exactly_the_next_sample(dataset, packing, accumulation, epoch):
    options = {"rows": 4, "micro_rows": 4 // accumulation, "packing": packing}
    whole = loader(dataset, **options)
    first = int(epoch * whole.updates_per_epoch)
    end = int((epoch + 1) * whole.updates_per_epoch)
    last = end + 3
    log = [ids(whole.update(index)) for index in range(last)]
    for position in (first, (first + end) // 2, end - 2, end - 1, end, end + 1):
        resumed = loader(dataset, **options)
        with resumed.prefetched(position, 2) as updates:
            assert [ids(batches) for batches in itertools.islice(updates, last - position)] == log[position:]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_each_epoch_has_each_sample_once(dataset, packing):
    whole = loader(dataset, rows=1, micro_rows=1, packing=packing)
    expected = Counter(dataset.sample_id(n) for n in range(len(dataset)))
    for epoch in range(3):
        start = epoch * whole.rows_per_epoch
        seen = Counter(sample for row in range(start, start + whole.rows_per_epoch) for sample in whole.sample_ids(row))
        assert seen == expected


def test_an_update_may_reach_from_one_epoch_into_the_next(dataset):
    one = loader(dataset, rows=1, micro_rows=1)
    size = next(size for size in range(5, 9) if one.rows_per_epoch % size)
    whole = loader(dataset, rows=size, micro_rows=size)
    last = one.rows_per_epoch // size
    for index in (last - 1, last, last + 1):
        rows = range(size * index, size * (index + 1))
        assert ids(whole.update(index)) == [sample for row in rows for sample in ids(one.update(row))]


# Ranks and micro-batches


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_rows", [1, 2, 6])
def test_ranks_share_the_same_samples(dataset, world, micro_rows):
    alone = loader(dataset)
    ranks = [loader(dataset, micro_rows=micro_rows, rank=rank, world=world) for rank in range(world)]
    for index in (0, 5, 17):
        shares = [rank.update(index) for rank in ranks]
        assert len({len(batches) for batches in shares}) == 1, "each rank has the same number of micro-batches"
        assert Counter(itertools.chain(*map(ids, shares))) == Counter(ids(alone.update(index)))
        assert Counter(alone.sample_ids(index)) == Counter(ids(alone.update(index)))
        trained = sum(batch.trained_tokens() for batches in shares for batch in batches)
        assert trained == sum(batch.trained_tokens() for batch in alone.update(index))


def test_a_rank_without_rows_gets_one_untrained_token(dataset):
    batches = loader(dataset, rows=2, micro_rows=1, rank=2, world=3).update(0)
    assert [(batch.tokens, batch.trained_tokens(), batch.sample_ids) for batch in batches] == [(1, 0, ())]


def test_the_number_of_micro_batches_changes_nothing_else(dataset):
    whole, split = loader(dataset, micro_rows=6).update(4), loader(dataset, micro_rows=2).update(4)
    assert len(whole) == 1
    assert len(split) == 3
    assert torch.equal(whole[0].input_ids, torch.cat([batch.input_ids for batch in split]))
    assert torch.equal(whole[0].targets, torch.cat([batch.targets for batch in split]))
    assert whole[0].layout.lengths == sum((batch.layout.lengths for batch in split), ())


# What is in a batch


def test_targets_are_the_next_tokens_of_the_sample(dataset):
    batch = loader(dataset).update(2)[0]
    numbers = {dataset.sample_id(n): n for n in range(len(dataset))}
    for sample, (start, end) in zip(batch.sample_ids, batch.layout.spans(), strict=True):
        tokens = dataset.sample(numbers[sample]).sequences[0].ids
        assert batch.input_ids[start:end].tolist() == tokens[:-1]
        assert batch.targets[start:end].tolist() == tokens[1:]


def test_rows_are_full_but_never_too_long(dataset):
    whole = loader(dataset, rows=1, micro_rows=1)
    sizes = [whole.update(row)[0].tokens for row in range(whole.rows_per_epoch)]
    assert max(sizes) <= LENGTH
    assert sum(sizes) / (len(sizes) * LENGTH) == pytest.approx(whole.packing_efficiency)
    assert whole.packing_efficiency > loader(dataset, packing="none").packing_efficiency


def test_target_bytes_add_up_to_the_text(dataset):
    size = sum(int(batch.fields["target_bytes"].sum()) for batch in loader(dataset).evaluation())
    assert size == dataset.summary()["bytes"]


def test_padded_micro_batches_all_have_one_shape(dataset):
    for packing, rank in itertools.product(["best_fit", "none"], [0, 3]):
        plain = loader(dataset, packing=packing, rank=rank, world=4).update(1)
        padded = loader(dataset, packing=packing, rank=rank, world=4, pad_rows=True).update(1)
        for batch, original in zip(padded, plain, strict=True):
            assert batch.tokens == 2 * LENGTH
            assert batch.sample_ids == original.sample_ids
            assert batch.trained_tokens() == original.trained_tokens()
            assert max(batch.layout.lengths) <= LENGTH, "padding must not be longer than the model's positions"
            trained = batch.targets != IGNORE
            assert torch.equal(batch.input_ids[trained], original.input_ids[original.targets != IGNORE])


def test_seed_and_shuffle_have_an_effect(dataset):
    assert ids(loader(dataset, seed=1).update(0)) != ids(loader(dataset, seed=2).update(0))
    in_order = ids(loader(dataset, shuffle=False, packing="none").update(0))
    assert in_order == [dataset.sample_id(n) for n in range(6)]
    assert ids(loader(dataset, packing="none").update(0)) != in_order


def test_raw_samples_are_those_of_the_update(dataset):
    for rank in range(2):
        share = loader(dataset, rank=rank, world=2)
        assert [sample.id for sample in share.samples(3)] == ids(share.update(3))


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_has_each_sample_once(dataset, packing, world):
    shares = [list(loader(dataset, packing=packing, rank=rank, world=world).evaluation()) for rank in range(world)]
    assert len({len(batches) for batches in shares}) == 1
    seen = Counter(itertools.chain(*map(ids, shares)))
    assert seen == Counter(dataset.sample_id(n) for n in range(len(dataset)))
    again = loader(dataset, packing=packing, world=world, seed=99).evaluation()
    assert [batch.sample_ids for batch in again] == [batch.sample_ids for batch in shares[0]]


def test_both_answers_of_a_preference_stay_together(tokenizer, tmp_path):
    rows = [
        {"prompt": "the dog", "chosen": f" jumps {n}", "rejected": " jumps over" * (n % 2) + " no", "margin": n}
        for n in range(20)
    ]
    dataset = opened(write_rows(tmp_path / "pairs.jsonl", rows), tokenizer, kind="preferences")
    assert all(len(dataset.sample(n).sequences) == 2 for n in range(20))
    for batch in loader(dataset, rows=3, pad_rows=True).update(0):
        pairs = len(batch.sample_ids)
        assert batch.layout.sequences >= 2 * pairs
        margins = batch.fields["margin"].tolist()
        lines = [float(int(sample.rpartition(":")[2]) - 1) for sample in batch.sample_ids]
        assert margins[: 2 * pairs] == [line for line in lines for _ in range(2)]
        assert not any(margins[2 * pairs :])


def test_prompts_are_inputs_to_the_last_token(tokenizer, tmp_path):
    rows = [{"prompt": f"the dog {n}", "answer": str(n)} for n in range(8)]
    dataset = opened(write_rows(tmp_path / "prompts.jsonl", rows), tokenizer, kind="prompts")
    batch = loader(dataset, rows=2, shuffle=False, packing="none").update(0)[0]
    start, end = next(batch.layout.spans())
    assert batch.input_ids[start:end].tolist() == tokenizer.encode_prompt("the dog 0")
    assert batch.trained_tokens() == 0
    assert dataset.sample(3).row["answer"] == "3"


# Mixtures


def test_a_mixture_draws_in_its_shares_and_walks_each_source_in_its_own_epochs(tokenizer, tmp_path):
    train = [
        {"path": write_rows(tmp_path / "a.jsonl", texts(60, "a")), "weight": 3},
        {"path": write_rows(tmp_path / "b.jsonl", texts(9, "b")), "weight": 1},
    ]
    dataset = opened(train, tokenizer)
    mixed = loader(dataset, rows=8, packing="none")
    updates = 20
    seen = [ids(mixed.update(index)) for index in range(updates)]
    assert all(Counter(name[0] for name in update) == {"a": 6, "b": 2} for update in seen)
    b = [name for update in seen for name in update if name[0] == "b"]
    samples = sum(dataset.sample_id(n)[0] == "b" for n in range(len(dataset)))
    for start in range(0, len(b) - samples, samples):
        assert len(set(b[start : start + samples])) == samples, "each of its epochs has each sample once"
    shares = mixed.progress(updates)
    assert [share["share"] for share in shares] == [0.75, 0.25]
    assert shares[1]["epochs"] == pytest.approx(2 * updates / samples)
    assert Counter(itertools.chain(*(batch.sample_ids for batch in mixed.evaluation()))) == Counter(
        dataset.sample_id(n) for n in range(len(dataset))
    )


def test_without_weights_sources_follow_each_other(tokenizer, tmp_path):
    train = [write_rows(tmp_path / f"{name}.jsonl", texts(count, name)) for name, count in (("a", 30), ("b", 5))]
    plain = loader(opened(train, tokenizer), packing="none")
    dumped = DataSection.model_validate(DataSection(train=train).model_dump()).train
    again = opened([source.model_dump() for source in dumped], tokenizer)
    assert loader(again, packing="none").sample_ids(0) == plain.sample_ids(0), "defaults written out change nothing"
    seen = Counter(name for row in range(plain.rows_per_epoch) for name in [plain.sample_ids(row)[0][0]][:1])
    assert len(plain.dataset.parts) == 1
    assert seen["a"] > 2 * seen["b"]


# Prefetching


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def until(condition, seconds=5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetching_changes_nothing(depth):
    with Prefetched(lambda number: number * number, start=5, depth=depth) as items:
        assert list(itertools.islice(items, 20)) == [number * number for number in range(5, 25)]
    assert not prefetch_threads()


def test_no_more_than_depth_items_are_prepared():
    made = []
    with Prefetched(lambda number: made.append(number) or number, start=0, depth=3) as items:
        assert until(lambda: len(made) == 4), "three wait and one is in the hand of the thread"
        time.sleep(0.05)
        assert len(made) == 4
        next(items)
        assert until(lambda: len(made) == 5)


def test_an_error_of_the_thread_reaches_the_consumer_at_its_item():
    def make(number):
        if number == 2:
            raise RuntimeError("item two")
        return number

    for depth in (0, 2):
        with Prefetched(make, start=0, depth=depth) as items:
            assert [next(items), next(items)] == [0, 1]
            with pytest.raises(RuntimeError, match="item two"):
                next(items)
    assert not prefetch_threads()


def test_closing_ends_the_thread_whatever_it_does():
    started = threading.Event()

    def slow(number):
        started.set()
        time.sleep(0.05)
        return number

    items = Prefetched(slow, start=0, depth=2)
    started.wait()
    items.close()
    assert not prefetch_threads()
    items.close()
    with pytest.raises(StopIteration):
        next(items)


def test_an_abandoned_iterator_leaves_no_thread():
    items = Prefetched(lambda number: number, start=0, depth=2)
    next(items)
    del items
    gc.collect()
    assert until(lambda: not prefetch_threads())
