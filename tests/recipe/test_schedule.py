"""Learning rates as functions of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.recipe.schedule import lr_factor

KINDS = ("constant", "cosine", "step")


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int]:
    """(total_steps, warmup_steps)."""
    total_steps = draw(st.integers(1, 3000))
    return total_steps, draw(st.integers(0, total_steps - 1))


@given(run=runs(), kind=st.sampled_from(KINDS), step_size=st.floats(0.5, 500), gamma=st.floats(0.01, 1), data=st.data())
def test_a_factor_lies_between_0_and_1(
    run: tuple[int, int], kind: str, step_size: float, gamma: float, data: st.DataObject
) -> None:
    total_steps, warmup_steps = run
    step = data.draw(st.integers(0, total_steps + 10))
    factor = lr_factor(
        step, kind=kind, total_steps=total_steps, warmup_steps=warmup_steps, step_size=step_size, gamma=gamma
    )
    assert 0 <= factor <= 1


@given(run=runs().filter(lambda run: run[1] > 1), kind=st.sampled_from(KINDS))
def test_warm_up_rises_from_above_0_in_equal_steps(run: tuple[int, int], kind: str) -> None:
    total_steps, warmup_steps = run
    factors = [
        lr_factor(step, kind=kind, total_steps=total_steps, warmup_steps=warmup_steps) for step in range(warmup_steps)
    ]
    assert factors[0] > 0
    rises = [b - a for a, b in pairwise(factors)]
    assert min(rises) > 0
    assert max(rises) == pytest.approx(min(rises))


@given(run=runs(), kind=st.sampled_from(("constant", "cosine")))
def test_the_first_step_after_warm_up_has_the_full_rate(run: tuple[int, int], kind: str) -> None:
    total_steps, warmup_steps = run
    assert lr_factor(warmup_steps, kind=kind, total_steps=total_steps, warmup_steps=warmup_steps) == 1


@given(run=runs())
def test_the_cosine_falls_steadily_to_0_at_the_end(run: tuple[int, int]) -> None:
    total_steps, warmup_steps = run
    factors = [
        lr_factor(step, kind="cosine", total_steps=total_steps, warmup_steps=warmup_steps)
        for step in range(warmup_steps, total_steps + 1)
    ]
    assert all(a > b for a, b in pairwise(factors))
    assert factors[-1] == 0


def test_the_cosine_is_one_half_in_the_middle() -> None:
    assert lr_factor(50, kind="cosine", total_steps=100) == pytest.approx(0.5)
    assert lr_factor(60, kind="cosine", total_steps=100, warmup_steps=20) == pytest.approx(0.5)


def test_no_step_that_trains_has_a_rate_of_0() -> None:
    assert min(lr_factor(step, kind="cosine", total_steps=100) for step in range(100)) > 0


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "gamma"), [(7, 5, 0.1), (1, 3, 0.5), (3, 1, 0.9)])
def test_the_step_schedule_is_torchs(epochs: int, steps_per_epoch: int, gamma: float) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=epochs, gamma=gamma)
    for epoch in range(3 * epochs + 1):
        for inside in range(steps_per_epoch):
            factor = lr_factor(
                epoch * steps_per_epoch + inside,
                kind="step",
                total_steps=10_000,
                step_size=epochs * steps_per_epoch,
                gamma=gamma,
            )
            assert factor == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_step_without_a_size_never_falls() -> None:
    assert lr_factor(10**9, kind="step", total_steps=10, step_size=math.inf) == 1


@given(total_steps=st.integers(1, 100), extra=st.integers(0, 10))
def test_a_warm_up_that_leaves_nothing_is_refused(total_steps: int, extra: int) -> None:
    with pytest.raises(ValueError, match=rf"\b{total_steps + extra}\b.*\b{total_steps}\b"):
        lr_factor(0, kind="cosine", total_steps=total_steps, warmup_steps=total_steps + extra)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="linear"):
        lr_factor(0, kind="linear", total_steps=10)
