"""Which worker computed what and when, drawn from a run's events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from datainf_ray.common.words import printable
from datainf_ray.runs.report.drawing import PAGE, Palette, inline_svg, plain, styled

LANES = 40  #: workers that are drawn, the first ones
_FINEST = 800  # pieces of the whole time; what is nearer together is drawn as one


@dataclass(frozen=True)
class Lane:
    """One worker's time, in seconds since the run was first begun, without the time between attempts."""

    label: str
    up: float
    down: float
    lost: bool  # it did not leave by itself
    busy: dict[str, np.ndarray]  # by sweep: (pieces × 2) begin and end of computing


@dataclass(frozen=True)
class Timeline:
    """All workers of a run; `attempts` are the times at which it was started."""

    lanes: list[Lane]
    attempts: list[float]
    end: float
    hosts: int
    computing: float  # seconds, of all workers
    waiting: float  # the same, for rows that were still being read
    lost_chunks: int

    @property
    def share(self) -> float:
        """The part of the workers' time in which they computed."""
        up = sum(lane.down - lane.up for lane in self.lanes)
        return min(1.0, self.computing / up) if up else 0.0


def timeline(events: pa.Table) -> Timeline | None:
    """What the events say of workers; None where there was none, or the run is older than events."""
    events = _sound(events)
    lanes, starts = [], []
    offset = 0.0
    for attempt in dict.fromkeys(events["attempt"].to_pylist()):
        some = events.filter(pc.equal(events["attempt"], attempt))
        first, last = pc.min(some["time"]).as_py(), pc.max(some["time"]).as_py()
        found = _lanes(some, offset - first, last + offset - first)
        if found:
            starts.append(offset)
            lanes += found
            offset += last - first
    if not lanes:
        return None
    chunks = events.filter(pc.equal(events["event"], "chunk_done"))
    return Timeline(
        lanes,
        starts,
        offset,
        len(set(chunks["host"].to_pylist())),
        float(pc.sum(pc.subtract(chunks["ended"], chunks["began"])).as_py() or 0.0),
        float(pc.sum(chunks["waited"]).as_py() or 0.0),
        pc.sum(pc.equal(events["event"], "chunk_lost")).as_py() or 0,
    )


#: What an event of a worker must say to be drawn. A damaged one, which does not, is left out.
_NEEDED = {
    "worker_up": ("worker", "host"),
    "worker_lost": ("worker",),
    "worker_released": ("worker",),
    "chunk_done": ("worker", "host", "sweep", "began", "ended", "waited"),
}


def _sound(events: pa.Table) -> pa.Table:
    """The events that have all that a drawing takes of them."""
    columns = {name: events[name].to_pylist() for name in sorted({"event", *sum(_NEEDED.values(), ())})}

    def sound(at: int) -> bool:
        needed = _NEEDED.get(columns["event"][at], ())
        worker = columns["worker"][at] or ""
        return not needed or (
            worker.isascii() and worker.isdigit() and all(columns[name][at] is not None for name in needed)
        )

    return events.filter(pa.array([sound(at) for at in range(len(events))], pa.bool_()))


def draw(times: Timeline, palette: Palette = PAGE) -> Figure:
    """A lane per worker, a bar where it computed, a colour per sweep."""
    lanes = times.lanes[:LANES]
    sweeps = list(dict.fromkeys(sweep for lane in lanes for sweep in lane.busy))
    colours = {sweep: palette.series[k % len(palette.series)] for k, sweep in enumerate(sweeps)}
    with styled("timeline"):
        height = 0.75 + 0.22 * len(lanes)
        figure = Figure(figsize=(9, height))
        axes = figure.add_axes((0.18, 0.42 / height, 0.78, 1 - 0.75 / height))
        for place, lane in enumerate(lanes):
            ends = [lane.up, lane.down]
            axes.plot(ends, [place, place], color=palette.line, linewidth=1, solid_capstyle="butt", zorder=1)
            for sweep, pieces in lane.busy.items():
                spans = [(begin, end - begin) for begin, end in pieces]
                axes.broken_barh(spans, (place - 0.32, 0.64), facecolors=colours[sweep], linewidth=0, zorder=2)
            if lane.lost:
                axes.plot(lane.down, place, marker="x", color=palette.ink, markersize=5, zorder=3)
        for start in times.attempts[1:]:
            axes.axvline(start, color=palette.ink, linewidth=0.8, linestyle=(0, (2, 2)))
        for sweep, colour in colours.items():
            axes.barh(0, 0, color=colour, label=sweep)
        axes.set_yticks(range(len(lanes)), [lane.label for lane in lanes])
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_xlim(0, max(times.end, 1e-3))
        axes.set_xlabel("seconds", color=palette.ink)
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=max(1, len(colours)), frameon=False, labelcolor=palette.ink,
            borderaxespad=0, handlelength=1, handleheight=0.8,
        )  # fmt: skip
        plain(axes, palette)
        axes.tick_params(axis="y", length=0)
    return figure


def _lanes(events: pa.Table, shift: float, end: float) -> list[Lane]:
    """The lanes of one attempt; `shift` is added to the driver's times, and the attempt is over at `end`."""
    rows = [e for e in events.to_pylist() if e["event"] in _OF_WORKERS]
    ups = {e["worker"]: e for e in rows if e["event"] == "worker_up"}
    downs = {e["worker"]: e for e in rows if e["event"] in ("worker_lost", "worker_released")}
    chunks = events.filter(pc.equal(events["event"], "chunk_done"))
    workers, sweeps = np.array(chunks["worker"].to_pylist()), np.array(chunks["sweep"].to_pylist())
    times = np.array([chunks[name].to_numpy() for name in ("began", "ended", "time")]).reshape(3, -1)
    lanes = []
    for worker, up in sorted(ups.items(), key=lambda item: int(item[0])):
        down = downs.get(worker)
        mine = workers == worker
        began, ended, told = times[:, mine]
        # A worker's clock may be another than the driver's; nothing was told before it was so.
        clock = float((told - ended).min()) if mine.any() else 0.0
        spans = np.stack([began, ended], axis=1) + clock + shift
        lanes.append(
            Lane(
                printable(f"{up['host']} · {worker}")[-22:],
                up["time"] + shift,
                end if down is None else down["time"] + shift,
                down is not None and down["event"] == "worker_lost",
                {s: _joined(spans[sweeps[mine] == s], end) for s in dict.fromkeys(sweeps[mine].tolist())},
            )
        )
    return lanes


_OF_WORKERS = ("worker_up", "worker_lost", "worker_released")


def _joined(spans: np.ndarray, whole: float) -> np.ndarray:
    """Spans (pieces × 2) with those joined that are nearer together than can be seen."""
    spans = spans[np.argsort(spans[:, 0])]
    latest = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > latest[:-1] + whole / _FINEST])
    return np.stack([spans[first, 0], latest[np.concatenate([first[1:], [True]])]], axis=1)


def describe(times: Timeline) -> dict[str, Any]:
    """What the report says under the drawing."""
    return {
        "svg": inline_svg(draw(times), "timeline", "when each worker computed which sweep"),
        "workers": len(times.lanes),
        "drawn": min(len(times.lanes), LANES),
        "hosts": times.hosts,
        "share": times.share,
        "waiting": times.waiting,
        "lost": sum(lane.lost for lane in times.lanes),
        "lost_chunks": times.lost_chunks,
        "attempts": len(times.attempts),
    }
