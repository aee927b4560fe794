"""Order, batches and view seeds are functions of the seed; processes share them out without a remainder."""

import random
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.sampling import (
    Blocks,
    EvalSampler,
    StepSampler,
    augmentation_seeds,
    epoch_draws,
    epoch_ends,
    epoch_order,
    keys_of,
)

id_sets = st.sets(st.text("0123456789abcdef", min_size=4, max_size=16), min_size=1, max_size=60).map(sorted)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 1000)


def ids(count: int) -> list[str]:
    return [f"{number:016x}" for number in range(count)]


def sampler(num_samples: int, **changes: Any) -> StepSampler:
    settings = {"batch_size": 12, "num_steps": 5, "seed": 3} | changes
    return StepSampler(keys_of(ids(num_samples)), **settings)


# ------------------------------------------------------------------------------------------------- order


@given(names=id_sets, seed=seeds, epoch=epochs)
def test_the_order_of_an_epoch_is_a_permutation(names: list[str], seed: int, epoch: int) -> None:
    order = epoch_order(keys_of(names), seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(names)))


@given(names=id_sets, seed=seeds, epoch=epochs, mix=st.randoms(use_true_random=False))
def test_the_order_follows_the_ids_and_not_their_place(
    names: list[str], seed: int, epoch: int, mix: random.Random
) -> None:
    mixed = names.copy()
    mix.shuffle(mixed)
    in_order = [names[i] for i in epoch_order(keys_of(names), seed=seed, epoch=epoch)]
    assert [mixed[i] for i in epoch_order(keys_of(mixed), seed=seed, epoch=epoch)] == in_order


@given(names=id_sets, seed=seeds, epoch=epochs, data=st.data())
def test_leaving_samples_out_moves_no_others(names: list[str], seed: int, epoch: int, data: st.DataObject) -> None:
    fewer = sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    in_order = [names[i] for i in epoch_order(keys_of(names), seed=seed, epoch=epoch)]
    order_of_fewer = [fewer[i] for i in epoch_order(keys_of(fewer), seed=seed, epoch=epoch)]
    assert order_of_fewer == [name for name in in_order if name in fewer]


@given(seed=seeds, other=seeds, epoch=epochs)
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, other: int, epoch: int) -> None:
    keys = keys_of(ids(40))
    orders = {(s, e): tuple(epoch_order(keys, seed=s, epoch=e)) for s in (seed, other) for e in (epoch, epoch + 1)}
    assert len(set(orders.values())) == len(orders)


def test_each_sample_is_everywhere_in_the_order_equally_often() -> None:
    keys = keys_of(ids(10))
    places = np.stack([epoch_order(keys, seed=0, epoch=epoch) for epoch in range(2000)])
    table = np.stack([np.bincount(places[:, place], minlength=10) for place in range(10)])
    assert abs(table - 200).max() < 5 * np.sqrt(200)


def test_the_order_of_a_seed_is_frozen() -> None:
    assert epoch_order(keys_of(ids(8)), seed=0, epoch=0).tolist() == FROZEN_ORDER


def test_the_augmentation_seeds_of_a_seed_are_frozen() -> None:
    assert augmentation_seeds(keys_of(ids(2)), seed=0, epoch=0).tolist() == FROZEN_SEEDS


FROZEN_ORDER = [6, 7, 1, 2, 3, 5, 0, 4]
FROZEN_SEEDS = [2047390388989021935, 3855741626622520250]


# ------------------------------------------------------------------------------------------------- views


@given(names=id_sets, seed=seeds, epoch=epochs)
def test_the_seed_of_a_view_depends_on_its_own_id_only(names: list[str], seed: int, epoch: int) -> None:
    together = augmentation_seeds(keys_of(names), seed=seed, epoch=epoch)
    alone = [augmentation_seeds(keys_of([name]), seed=seed, epoch=epoch)[0] for name in names]
    assert together.tolist() == alone
    assert all(0 <= value < 2**63 for value in together.tolist())


@given(seed=seeds, other=seeds, epoch=epochs)
def test_views_differ_between_samples_epochs_and_seeds(seed: int, other: int, epoch: int) -> None:
    keys = keys_of(ids(50))
    pairs = {(s, e) for s in (seed, other) for e in (epoch, epoch + 1)}
    values = list(chain.from_iterable(augmentation_seeds(keys, seed=s, epoch=e).tolist() for s, e in pairs))
    assert len(set(values)) == len(values)


def test_views_do_not_follow_the_order() -> None:
    keys = keys_of(ids(50))
    by_seed = np.argsort(augmentation_seeds(keys, seed=0, epoch=0)).tolist()
    assert by_seed != epoch_order(keys, seed=0, epoch=0).tolist()


# ------------------------------------------------------------------------------------------------- steps

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)).filter(lambda s: s[1] <= s[0])


@given(shape=shapes, seed=seeds)
def test_epochs_end_with_the_step_that_completes_them(shape: tuple[int, int, int], seed: int) -> None:
    num_samples, batch_size, num_epochs = shape
    ends = epoch_ends(num_samples=num_samples, batch_size=batch_size, epochs=num_epochs)
    assert len(ends) == num_epochs
    for epoch, end in enumerate(ends, 1):
        assert (end - 1) * batch_size < epoch * num_samples <= end * batch_size


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\b32\b.*\b31\b"):
        epoch_ends(num_samples=31, batch_size=32, epochs=1)


@given(shape=shapes, seed=seeds)
def test_every_batch_is_full_and_every_epoch_is_whole(shape: tuple[int, int, int], seed: int) -> None:
    num_samples, batch_size, num_epochs = shape
    num_steps = epoch_ends(num_samples=num_samples, batch_size=batch_size, epochs=num_epochs)[-1]
    batches = list(sampler(num_samples, batch_size=batch_size, num_steps=num_steps, seed=seed))
    assert {len(batch) for batch in batches} == {batch_size}
    stream = list(chain.from_iterable(batches))
    whole = num_epochs * num_samples
    assert Counter(stream[:whole]) == Counter((i, e) for i in range(num_samples) for e in range(num_epochs))
    tail = stream[whole:]
    assert len(tail) < batch_size
    assert {epoch for _, epoch in tail} <= {num_epochs}
    assert len(set(tail)) == len(tail)


@given(shape=shapes, seed=seeds)
def test_each_epoch_of_the_stream_has_the_order_of_that_epoch(shape: tuple[int, int, int], seed: int) -> None:
    num_samples, batch_size, num_epochs = shape
    num_steps = epoch_ends(num_samples=num_samples, batch_size=batch_size, epochs=num_epochs)[-1]
    stream = list(chain(*sampler(num_samples, batch_size=batch_size, num_steps=num_steps, seed=seed)))
    for epoch in range(num_epochs):
        order = epoch_order(keys_of(ids(num_samples)), seed=seed, epoch=epoch)
        assert stream[epoch * num_samples : (epoch + 1) * num_samples] == [(i, epoch) for i in order.tolist()]


@given(shape=shapes, seed=seeds, start=st.integers(0, 10))
def test_starting_at_a_step_equals_dropping_the_steps_before(
    shape: tuple[int, int, int], seed: int, start: int
) -> None:
    num_samples, batch_size, _ = shape
    whole = list(sampler(num_samples, batch_size=batch_size, num_steps=10, seed=seed))
    late = sampler(num_samples, batch_size=batch_size, num_steps=10, seed=seed, start_step=start)
    assert len(late) == 10 - start
    assert list(late) == whole[start:]


@given(num_samples=st.integers(24, 60), accumulation=st.sampled_from([1, 2, 3, 4, 6, 12]), start=st.integers(0, 5))
def test_the_pieces_of_accumulation_make_up_the_batch(num_samples: int, accumulation: int, start: int) -> None:
    batches = list(sampler(num_samples, batch_size=24, start_step=start))
    pieces = sampler(num_samples, batch_size=24, start_step=start, accumulation=accumulation)
    assert len(pieces) == len(batches) * accumulation
    parts = list(pieces)
    joined = [list(chain(*parts[i : i + accumulation])) for i in range(0, len(parts), accumulation)]
    assert joined == batches


def test_a_sampler_can_be_run_through_twice() -> None:
    steps = sampler(31)
    assert list(steps) == list(steps)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [12, 22, 24, 31])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_processes_share_each_step_out_without_overlap(
    num_processes: int, num_samples: int, accumulation: int, balanced: bool
) -> None:
    labels = np.arange(num_samples) % 10 == 0 if balanced else None
    settings = {"num_steps": 7, "accumulation": accumulation, "labels": labels}
    whole = list(sampler(num_samples, **settings))
    shards = [
        list(
            BatchSamplerShard(
                sampler(num_samples, **settings),
                num_processes=num_processes,
                process_index=rank,
                split_batches=True,
                even_batches=True,
            )
        )
        for rank in range(num_processes)
    ]
    assert {len(shard) for shard in shards} == {7 * accumulation}
    for step, batch in enumerate(whole):
        parts = [shard[step] for shard in shards]
        assert {len(part) for part in parts} == {12 // accumulation // num_processes}
        assert list(chain(*parts)) == batch


# ------------------------------------------------------------------------------------------------- balanced classes

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def draws(labels: np.ndarray, *, seed: int = 0, epochs: int = 4) -> list[list[tuple[int, int]]]:
    """(sample, how often it was drawn before) of each epoch."""
    keys = keys_of(ids(len(labels)))
    found = [epoch_draws(keys, seed=seed, epoch=epoch, labels=labels) for epoch in range(epochs)]
    return [list(zip(index.tolist(), drawn.tolist(), strict=True)) for index, drawn in found]


@given(labels=label_lists, seed=seeds)
def test_an_epoch_has_as_many_samples_and_each_class_the_same_share(labels: np.ndarray, seed: int) -> None:
    share = len(labels) / len(np.unique(labels))
    for epoch in draws(labels, seed=seed):
        assert len(epoch) == len(labels)
        counts = Counter(labels[index] for index, _ in epoch)
        assert all(abs(counts[label] - share) < 1 for label in np.unique(labels))


@given(labels=label_lists, seed=seeds)
def test_a_sample_comes_again_only_after_all_others_of_its_class(labels: np.ndarray, seed: int) -> None:
    seen: Counter[int] = Counter()
    for epoch in draws(labels, seed=seed):
        before = seen.copy()
        seen.update(index for index, _ in epoch)
        for index in range(len(labels)):  # its draws are numbered, and no number comes twice
            numbers = sorted(drawn for i, drawn in epoch if i == index)
            assert numbers == list(range(before[index], seen[index]))
        for label in np.unique(labels):
            times = [seen[i] for i in np.flatnonzero(labels == label)]
            assert max(times) - min(times) <= 1


def test_the_draws_of_one_image_have_views_of_their_own_and_lie_apart() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    keys = keys_of(ids(100))
    (epoch,) = draws(labels, epochs=1)
    rare = [(index, drawn) for index, drawn in epoch if labels[index] == 1]
    assert len(rare) == 50
    seeds = {int(augmentation_seeds(keys[index : index + 1], seed=0, epoch=drawn)[0]) for index, drawn in rare}
    assert len(seeds) == 50
    neighbours = sum(epoch[i][0] == epoch[i + 1][0] for i in range(99))
    assert neighbours < 15  # 5 in 100 are expected; were the draws of an image side by side, it would be 45


def test_classes_are_mixed_within_an_epoch() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    (epoch,) = draws(labels, epochs=1)
    batches = np.array([labels[index] for index, _ in epoch]).reshape(20, 50).sum(axis=1)
    assert 10 < batches.min() <= batches.max() < 40


def test_balanced_steps_are_pieces_of_one_stream_and_start_anywhere() -> None:
    labels = np.array([0] * 20 + [1] * 9 + [2] * 2)
    whole = list(sampler(31, labels=labels, num_steps=10))
    stream = list(chain.from_iterable(draws(labels, seed=3)))
    assert list(chain.from_iterable(whole)) == stream[: 10 * 12]
    assert list(sampler(31, labels=labels, num_steps=10, start_step=4)) == whole[4:]


# ------------------------------------------------------------------------------------------------- evaluation


@given(num_samples=st.integers(1, 100), batch_size=st.integers(1, 40))
def test_evaluation_sees_each_sample_once_in_order(num_samples: int, batch_size: int) -> None:
    batches = list(EvalSampler(num_samples, batch_size=batch_size))
    assert list(chain(*batches)) == [(index, 0) for index in range(num_samples)]
    assert len(batches) == len(EvalSampler(num_samples, batch_size=batch_size))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 11, 12, 22, 31])
def test_processes_evaluate_every_sample_in_equally_many_batches(num_processes: int, num_samples: int) -> None:
    shards = [
        list(
            BatchSamplerShard(
                EvalSampler(num_samples, batch_size=12),
                num_processes=num_processes,
                process_index=rank,
                split_batches=True,
                even_batches=True,
            )
        )
        for rank in range(num_processes)
    ]
    assert len({tuple(len(batch) for batch in shard) for shard in shards}) == 1
    assert {index for shard in shards for batch in shard for index, _ in batch} == set(range(num_samples))


# ------------------------------------------------------------------------------------------------- blocks


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12), size=st.integers(1, 40), epoch=st.integers(0, 3))
def test_blocks_are_shuffled_window_by_window(sizes: list[int], size: int, epoch: int) -> None:
    names = [f"block {number}" for number, count in enumerate(sizes) for _ in range(count)]
    keys = keys_of([str(i) for i in range(len(names))])
    blocks = Blocks.of(names, [1] * len(names), size=size)
    order, drawn = epoch_draws(keys, seed=1, epoch=epoch, blocks=blocks)
    assert sorted(order) == list(range(len(names)))
    assert set(drawn) == {epoch}
    if blocks is None:
        assert len(names) <= size
        assert order.tolist() == epoch_order(keys, seed=1, epoch=epoch).tolist()
        return
    seen = [names[i] for i in order]
    # a block is never in two windows: from its first to its last sample there are no more than a window holds
    for name in set(names):
        places = [place for place, other in enumerate(seen) if other == name]
        assert places[-1] - places[0] < size + max(sizes)


def test_windows_hold_so_many_bytes_at_most_or_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.sampling.WINDOW_BYTES", 1000)
    names, sizes = [f"block {i // 10}" for i in range(200)], [40 if i < 190 else 300 for i in range(200)]
    blocks = Blocks.of(names, sizes, size=10_000)
    assert blocks is not None
    windows = blocks.windows(seed=0, epoch=0)
    held = np.bincount(windows, weights=sizes)
    assert sorted(np.unique(held)) == [400, 800, 3000]
    assert len(np.unique(windows[190:])) == 1
    assert Blocks.of(names, [1] * 200, size=10_000) is None


def test_the_layout_of_blocks_tells_other_blocks_and_no_other_order_of_rows() -> None:
    ids, names = [str(i) for i in range(200)], [f"block {i // 10}" for i in range(200)]

    def layout(names: list[str], *, size: int = 20, sizes: int = 1) -> str:
        blocks = Blocks.of(names, [sizes] * len(names), size=size)
        assert blocks is not None
        return blocks.layout(ids)

    first = layout(names)
    blocks = Blocks.of(names[::-1], [1] * 200, size=20)
    assert blocks is not None
    assert blocks.layout(ids[::-1]) == first
    assert len({first, layout(names[::-1]), layout(names, size=30), layout(names, sizes=2)}) == 4


def test_blocks_come_in_another_order_every_epoch() -> None:
    names = [f"block {i // 10}" for i in range(200)]
    keys, blocks = keys_of([str(i) for i in range(200)]), Blocks.of(names, [1] * 200, size=20)
    firsts = {names[epoch_draws(keys, seed=0, epoch=epoch, blocks=blocks)[0][0]] for epoch in range(12)}
    assert len(firsts) > 4
