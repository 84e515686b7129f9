"""Batches from files: generators that are put back, any step on any number of workers, and nothing left running."""

import multiprocessing
import random

import numpy as np
import pytest
import torch

from simmim_lite.data.loading import Order, StepLoader, seeded
from simmim_lite.errors import UserError

IDS = np.arange(10, dtype=np.uint64) * 7919


def draw(place: int) -> torch.Tensor:
    """A sample that takes a number from each global generator."""
    return torch.tensor([place, random.random(), np.random.rand(), torch.rand(1).item()])


def loader(workers: int = 0, share: slice = slice(0, 4), steps: int = 6) -> StepLoader:
    return StepLoader(draw, Order(IDS, 3, 4), share, steps, workers=workers)


def stumble(place: int) -> torch.Tensor:
    if place == 4:
        raise UserError("4.png: cannot be read; replace it")
    return draw(place)


def test_a_batch_depends_on_its_step_alone() -> None:
    once = loader()
    steps = [once.batch(step) for step in range(6)]
    assert torch.equal(loader().batch(4), steps[4]), "begun in the middle"
    halves = [loader(share=half).batch(4) for half in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat(halves), steps[4]), "shared by two"
    assert not torch.equal(steps[0][:, 1], steps[3][:, 1])
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(1, 2):
        draw(0)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]), "generators are put back"


def test_worker_processes_change_nothing_and_end_with_the_last_step() -> None:
    before = set(multiprocessing.active_children())
    alone, ahead = loader(), loader(workers=2)
    for step in range(6):
        assert torch.equal(ahead.batch(step), alone.batch(step))
        assert step == 5 or set(multiprocessing.active_children()) - before
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_one_line_and_nothing_is_left_running(workers: int) -> None:
    before = set(multiprocessing.active_children())
    batches = StepLoader(stumble, Order(IDS, 3, 4), slice(0, 4), 6, workers=workers)
    with pytest.raises(UserError) as caught:
        for step in range(6):
            batches.batch(step)
    assert str(caught.value) == "4.png: cannot be read; replace it"
    assert not set(multiprocessing.active_children()) - before
