"""The bench measures what it says it measures, on the smallest input that shows it."""

import re

import pytest

from simmim_lite.errors import UserError
from simmim_lite.training import bench, bench_loader
from simmim_lite.training.run import Run


def test_ladder(monkeypatch) -> None:
    sizes = ["swinv2_atto", "swinv2_femto"]
    monkeypatch.setattr(bench, "LAPTOP", sizes)
    lines = list(bench.ladder(1))
    assert [line.split()[0] for line in lines] == sizes
    rates = [[float(x) for x in line.split()[1:3]] for line in lines]
    assert all(rate > 0 for pair in rates for rate in pair)
    assert all(re.search(r"\d+\.\d%$", line) for line in lines)


def test_ways_are_taken_in_turns() -> None:
    calls = []
    times = bench.in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "ab" + "ababab"
    assert [len(t) for t in times] == [3, 3]


def test_wrong_rounds() -> None:
    with pytest.raises(UserError, match="rounds is 0"):
        next(bench.bench("cpu", 0))


def test_step_seconds_of_any_size() -> None:
    small, large = (bench.step_seconds(Run(model=m, batch_size=8)) for m in ("swinv2_atto", "swinv2_nano"))
    assert small > 0
    assert large > 0


def test_the_loader_is_timed_beside_torchvisions(monkeypatch) -> None:
    monkeypatch.setattr(bench_loader, "STEPS", 1)
    monkeypatch.setattr(bench_loader, "_PICTURES", 64)
    head, *lines = bench_loader.bench_loader(1)
    assert "64 collages" in head
    rates = [float(re.search(r"(\d+) pictures/s", line).group(1)) for line in lines]
    assert len(rates) == 3 and all(rate > 0 for rate in rates)
    assert lines[0].endswith("1.00")
