"""What a file holds, what its store did, and what memory was short of are told apart."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.arrow import of_content


def test_what_arrow_says_of_a_damaged_file_is_of_its_content(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": range(100)}), file, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    seen: list[Exception] = []
    for place in range(4, len(data), 7):
        harmed = bytearray(data)
        harmed[place] ^= 0xFF
        try:
            pq.ParquetFile(pa.BufferReader(bytes(harmed)), page_checksum_verification=True).read()
        except Exception as error:
            seen.append(error)
    assert {OSError, pa.ArrowInvalid} <= {type(error) for error in seen}
    assert [error for error in seen if not of_content(error)] == []


@pytest.mark.parametrize(
    "error",
    [
        pa.ArrowMemoryError("malloc failed"),
        MemoryError(),
        OSError(errno.EIO, "the disk"),
        FileNotFoundError(),
        KeyError(),
    ],
)
def test_what_is_not_of_the_content(error: Exception) -> None:
    assert not of_content(error)
