"""What is left of a sweep, as a reader is told."""

from __future__ import annotations

import pytest

from datainf_ray.watch import meter as metering
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Progress, Silent


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(metering, "time", one)
    return one


def test_what_is_left_falls_while_a_chunk_is_open(clock: Clock) -> None:
    meter = Meter(Silent())
    meter.begin("scores", 100)
    clock.now += 5
    meter.advance(0, 0, 1)  # a worker is up, and the clock begins
    assert meter.progress.seconds_left is None
    clock.now += 10
    meter.advance(20, 2000, 1)
    left = []
    for _ in range(6):
        left.append(meter.progress.seconds_left)
        clock.now += 10
        meter.advance(0, 0, 1)
    assert left == [40, 30, 20, 10, 0, 0]  # it never climbs, and never falls below zero
    meter.advance(20, 2000, 1)  # 70 s for 40 rows
    assert meter.progress.seconds_left == 105


def test_rows_of_an_earlier_attempt_took_no_time(clock: Clock) -> None:
    meter = Meter(Silent())
    meter.begin("scores", 100)
    meter.advance(50, 0, 0)
    clock.now += 3
    meter.advance(0, 0, 2)
    clock.now += 10
    assert meter.progress.seconds_left is None  # of this attempt nothing is done yet
    meter.advance(10, 1000, 2)
    assert meter.progress.seconds_left == 40
    assert meter.progress.done == 60


def test_a_figure_of_another_version_is_read() -> None:
    assert Progress("running", "scores", 100, 50, 5000, 10.0, 2).seconds_left == 10
