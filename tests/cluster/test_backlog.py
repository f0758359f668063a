"""What is left to do, seen by workers that die of certain rows: every chunk is done once, and the rows are found."""

from __future__ import annotations

import random

import pytest

from datainf_ray.cluster.backlog import Backlog, Work
from datainf_ray.common.errors import RunFailedError
from datainf_ray.corpus.chunks import Chunk, Segment


def chunks_of(rows: int, chunk_rows: int) -> list[Chunk]:
    return [
        Chunk(number, first, (Segment(0, first, min(first + chunk_rows, rows)),))
        for number, first in enumerate(range(0, rows, chunk_rows))
    ]


def number_of(chunk: Chunk) -> int:
    return chunk.segments[0].start


def rows_of(work: Work) -> set[int]:
    return {row for s in work.chunk.segments for row in range(s.start, s.stop)}


def worked_off(backlog: Backlog, deadly: set[int], random_deaths: float = 0.0, seed: int = 0) -> tuple[list[int], int]:
    """One worker after another, each with two chunks at a time where it may; the chunks done, and the deaths."""
    chance = random.Random(seed)
    done: list[int] = []
    deaths = 0
    now = 0.0
    while backlog.left:
        now += 1
        first = backlog.take("", now, alone=True)
        assert first is not None
        second = None if first.alone else backlog.take("", now, alone=False)
        have = [work for work in (first, second) if work is not None]
        known = backlog.crashed
        # a row is touched while its chunk is read, beside another chunk, or while it is computed
        if any(rows_of(work) & (deadly - known) for work in have) or chance.random() < random_deaths:
            deaths += 1
            for work in reversed(have):
                backlog.lose(work, len(have) == 1, preempted=False, reason="died")
            continue
        for work in have:
            if backlog.finish(work, now):
                done.append(work.chunk.number)
    return done, deaths


def test_every_chunk_is_done_once_in_order() -> None:
    assert worked_off(Backlog(chunks_of(100, 7)), set()) == (list(range(15)), 0)


@pytest.mark.parametrize("deadly", [{0}, {99}, {41}, {40, 41}, {3, 50, 51, 98}, set(range(20, 40))])
def test_the_rows_that_end_workers_are_found_and_no_others(deadly: set[int]) -> None:
    backlog = Backlog(chunks_of(100, 16), number_of=number_of)
    done, deaths = worked_off(backlog, deadly)
    assert sorted(done) == list(range(7))
    assert backlog.crashed == deadly
    assert deaths <= len(deadly) * 12 + 6


@pytest.mark.parametrize("seed", range(20))
def test_deaths_by_chance_lose_nothing_and_blame_no_row(seed: int) -> None:
    backlog = Backlog(chunks_of(100, 16), number_of=number_of)
    done, deaths = worked_off(backlog, {55}, random_deaths=0.15, seed=seed)
    assert sorted(done) == list(range(7))
    assert 55 in backlog.crashed
    assert len(backlog.crashed) <= 2  # by chance a row may be hit twice in a row
    assert deaths > 0


def test_where_rows_cannot_be_told_apart_the_run_ends() -> None:
    with pytest.raises(RunFailedError, match=r"chunk 2 \(rows 32 to 47\) goes on ending its worker: died"):
        worked_off(Backlog(chunks_of(100, 16)), {40})


def test_a_chunk_that_dies_though_its_rows_do_not_ends_the_run() -> None:
    backlog = Backlog(chunks_of(8, 8), number_of=number_of)

    def work_off() -> None:
        while backlog.left:
            work = backlog.take("", 0, alone=True)
            assert work is not None
            if work.search is None:
                backlog.lose(work, alone=True, preempted=False, reason="too large")
            else:
                backlog.finish(work, 0)

    with pytest.raises(RunFailedError, match="though none of its rows does so by itself: too large"):
        work_off()


def test_a_node_that_is_taken_away_is_nobodys_fault() -> None:
    backlog = Backlog(chunks_of(4, 4))
    for _ in range(10):
        work = backlog.take("", 0, alone=True)
        assert work is not None
        backlog.lose(work, alone=True, preempted=True, reason="spot")
    assert worked_off(backlog, set()) == ([0], 0)


def test_a_late_chunk_is_started_twice_and_counts_once() -> None:
    backlog = Backlog(chunks_of(3, 1))
    slow, *fast = (backlog.take("", 0, alone=True) for _ in range(3))
    assert slow is not None
    assert backlog.late(100) is None  # nothing is known yet of how long a chunk takes
    for work in fast:
        assert work is not None
        assert backlog.finish(work, 1)
    assert backlog.late(1.5) is None
    assert backlog.late(3) is slow
    assert backlog.late(3) is None  # twice, not three times
    assert backlog.finish(slow, 4)
    assert not backlog.left
    assert not backlog.finish(slow, 9)
    assert not backlog.left


def test_one_of_two_that_have_a_chunk_may_die() -> None:
    backlog = Backlog(chunks_of(2, 1))
    slow, quick = (backlog.take("", 0, alone=True) for _ in range(2))
    assert slow is not None
    assert quick is not None
    backlog.finish(quick, 1)
    assert backlog.late(3) is slow
    backlog.lose(slow, alone=True, preempted=False, reason="died")
    assert backlog.take("", 4, alone=True) is None
    assert backlog.finish(slow, 5)
    assert not backlog.left


def test_chunks_go_where_their_gradients_are() -> None:
    places = {0: "a", 1: "b", 2: "a", 3: "b"}
    backlog = Backlog(chunks_of(4, 1), where=lambda chunk: places[chunk.number])
    taken = [backlog.take("b", 0, alone=True) for _ in range(4)]
    assert [work.chunk.number for work in taken if work is not None] == [1, 3, 0, 2]


def starving(backlog: Backlog, room: int) -> list[int]:
    """By one worker, whose machine has room for chunks whose batches are halved `room` times: the halvings of each."""
    took = []
    while backlog.left:
        work = backlog.take("", 0, alone=True)
        assert work is not None
        if work.halvings < room:
            backlog.lose(work, alone=True, preempted=False, reason="its machine ran out of memory", memory=True)
        else:
            assert backlog.finish(work, 0)
            took.append(work.halvings)
    return took


def test_a_chunk_that_takes_too_much_memory_is_computed_in_smaller_batches_and_so_are_those_after_it() -> None:
    backlog = Backlog(chunks_of(12, 4), number_of=number_of)
    deaths: list[int] = []
    lose = backlog.lose
    backlog.lose = lambda work, *values, **more: deaths.append(work.halvings) or lose(work, *values, **more)  # type: ignore[method-assign]
    assert starving(backlog, 2) == [2, 2, 2]
    assert deaths == [0, 0, 1]  # once may be chance
    assert backlog.crashed == set()


def test_memory_that_is_short_once_changes_no_batch() -> None:
    backlog = Backlog(chunks_of(8, 4))
    work = backlog.take("", 0, alone=True)
    assert work is not None
    backlog.lose(work, alone=True, preempted=False, reason="memory", memory=True)
    assert starving(backlog, 0) == [0, 0]


def test_a_chunk_that_takes_too_much_memory_beside_another_is_computed_alone_first() -> None:
    backlog = Backlog(chunks_of(8, 4))
    both = [backlog.take("", 0, alone=True), backlog.take("", 0, alone=False)]
    for work in both:
        assert work is not None
        backlog.lose(work, alone=False, preempted=False, reason="memory", memory=True)
    work = backlog.take("", 0, alone=True)
    assert work is not None
    assert work.alone
    assert work.halvings == 0


@pytest.mark.parametrize(("halvings", "smaller"), [(0, ""), (4, ", in batches of 1/16 of the size too")])
def test_a_chunk_that_always_takes_too_much_memory_ends_the_run_and_says_what_to_change(
    halvings: int, smaller: str
) -> None:
    want = rf"chunk 0 \(rows 0 to 3\) takes too much memory{smaller}: .* ran out of memory; use fewer .*batch_tokens"
    with pytest.raises(RunFailedError, match=want):
        starving(Backlog(chunks_of(12, 4), number_of=number_of, halvings=halvings), 99)


def test_a_call_that_does_not_come_through_is_made_again_later_but_not_for_ever() -> None:
    backlog = Backlog(chunks_of(8, 4), number_of=number_of)
    now = 0.0
    work = backlog.take("", now, alone=True)
    assert work is not None
    backlog.again(work, now, "the store is full")
    other = backlog.take("", now, alone=True)
    assert other is not None
    assert other is not work  # which waits
    assert backlog.take("", now, alone=True) is None
    assert backlog.finish(other, now)

    def work_off() -> None:
        nonlocal now
        while backlog.left:
            taken = backlog.take("", now, alone=True)
            if taken is None:
                now += 1
            else:
                backlog.again(taken, now, "the store is full")

    with pytest.raises(RunFailedError, match=r"chunk 0 .* could not be computed in 6 attempts: the store is full"):
        work_off()
    assert now == 1 + 2 + 4 + 8 + 16
    assert backlog.crashed == set()


def test_silence_is_told_less_and_less_often_and_never_while_chunks_come_back() -> None:
    backlog = Backlog(chunks_of(4, 1))
    assert backlog.silence(1000) is None  # no worker has anything
    first, second = (backlog.take("", 1000, alone=True) for _ in range(2))
    assert first is not None
    assert second is not None
    told = {now: s for now in range(1000, 2000) if (s := backlog.silence(now)) is not None}
    assert told == {1060: 60, 1120: 120, 1240: 240, 1480: 480, 1960: 960}
    assert backlog.finish(first, 2000)
    assert backlog.silence(2059) is None
    assert backlog.finish(second, 2059)
    third = backlog.take("", 3000, alone=True)
    assert third is not None
    assert backlog.silence(3000 + 4000) is None  # the chunks took 1000 s and 1059 s
    assert backlog.silence(3000 + 4200) == 4200
