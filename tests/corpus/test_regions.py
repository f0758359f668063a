"""Lines, many at a time, against lines one by one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from datainf_ray.corpus import records
from datainf_ray.corpus import regions as many
from datainf_ray.corpus.files import SourceFile, open_file
from datainf_ray.corpus.records import split_records, survey_text
from datainf_ray.corpus.regions import regions


def text_of(seed: int) -> bytes:
    """Rows from 2 to 300 bytes long, blank lines of every kind between them, the last without an end."""
    draw = np.random.default_rng(seed)
    blank = [b"\n", b"\r\n", b"  \t\n", b"\x0b\n", b"   {} \n"]
    lines = [b"\xef\xbb\xbf{}\n"] if seed % 2 else []
    for number in range(int(draw.integers(1, 700))):
        lines.append(json.dumps({"n": number, "t": "é" * int(draw.integers(0, 40))}).encode() + b"\r\n"[number % 2 :])
        lines += [blank[int(draw.integers(len(blank)))]] * int(draw.random() < 0.2)
    return b"".join(lines)[: -1 if seed % 3 else None]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 7, 300, 1 << 22])
def test_lines_are_where_they_are(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "_BLOCK", block)
    text = text_of(seed)
    found = [
        (region.data[start:end], is_row)
        for region in regions(io.BytesIO(text))
        for start, end, is_row in zip(region.starts, region.ends, region.is_row, strict=True)
    ]
    assert found == [(line, not line.isspace()) for line in io.BytesIO(text)]


@pytest.mark.parametrize("seed", range(6))
def test_a_survey_counts_and_places_what_reading_finds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stride that doubles several times."""
    monkeypatch.setattr(many, "_BLOCK", 1000)
    monkeypatch.setattr(records, "_STRIDE", 4)
    monkeypatch.setattr(records, "_OFFSETS", 16)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text_of(seed))
    file = SourceFile(str(path), "a.jsonl", "jsonl", None, path.stat().st_size, "")
    with open_file(file) as stream:
        want = [offset for offset, _ in split_records(stream, file, 0)]
    found = survey_text(file)
    assert found.rows == len(want)
    assert len(found.offsets) <= 16
    assert list(found.offsets) == want[:: found.stride]
