"""What was done to a corpus, or what would be: the figures, and how a person reads them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datainf_ray.common.words import counted, escaped, percent, printable
from datainf_ray.runs.cut import Cut
from datainf_ray.runs.scores import Because

_ID, _PREVIEW = 40, 100


@dataclass(frozen=True)
class Suggested:
    """Which rows stand out on the side that is to blame."""

    cut: Cut
    because: Because

    def lines(self) -> list[str]:
        """It as a person reads it, with the command that drops these rows."""
        rows, runs = self.cut.of(self.because).stand_out, " ".join(shlex.quote(run) for run in self.cut.runs)
        lines = self.cut.lines(self.because)
        if not rows:
            return [*lines, "nothing is suggested; say how many are to go by --drop, --drop-above or another rule"]
        return [*lines, f"datainf curate {runs} --because {self.because} --drop {rows} --to NEW --rejected GONE"]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"because": self.because, "suggested": self.cut.of(self.because).stand_out, **self.cut.as_dict()}


@dataclass(frozen=True)
class Curated:
    """What became of a corpus' rows."""

    runs: list[str]
    to: str | None  #: None where it was only looked at
    rejected: str | None
    rule: str  #: why rows go, in words
    because: str
    across: str
    queries: int  #: that have scores
    rows: int
    kept: int
    dropped: int  #: by the rule
    near_duplicates: int  #: that went with those
    without_score: dict[str, int]  #: rows by status
    without_score_kept: int
    share: float  #: of all that rows are blamed with, what goes
    first: list[dict[str, Any]] = field(default_factory=list)  #: the first rows that go, as in the rejected rows' file
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """It as a person reads it."""
        rows = counted(self.rows, "row")
        gone = self.rows - self.kept
        would = "would " if self.to is None else ""
        lines = [f"{self.kept:,} of {rows} {would}stay, {gone:,} ({percent(gone / self.rows)}) {would}go"]
        if gone:
            parts = [f"{self.dropped:,} {self.rule}" if self.dropped else ""]
            parts.append(f"{self.near_duplicates:,} nearly alike with these" if self.near_duplicates else "")
            lines.append(f"gone: {'; '.join(part for part in parts if part) or 'rows without a score'}")
            lines.append(f"with them goes {percent(self.share)} of all {self.because} influence")
        if self.without_score:
            total = sum(self.without_score.values())
            by = ", ".join(f"{count:,} {escaped(status)}" for status, count in sorted(self.without_score.items()))
            lines.append(
                f"{counted(total, 'row')} without a score ({by}), of which {self.without_score_kept:,} {would}stay"
            )
        lines += self.notes
        lines += _table(self.first)
        lines += [f"{what}: {place}" for what, place in (("rows", self.to), ("rejected", self.rejected)) if place]
        return lines


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The first rows that go, a line each."""
    if not rows:
        return []
    lines = [f"{'rank':>5} {'row':>9} {'influence':>11} {'share':>8}  id · query"]
    for row in rows:
        share = percent(row["share"])
        names = f"{printable(row['id'], _ID)} · {printable(row['query'] or '', _ID)}"
        lines.append(f"{row['rank']:>5} {row['row']:>9} {row['influence']:>+11.3e} {share:>8}  {names}")
        if row.get("preview"):
            lines.append(f"{'':>6}{printable(row['preview'], _PREVIEW)}")
    return lines
