from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus import arrays, records
from datainf_ray.corpus.arrays import split_array
from datainf_ray.corpus.rows import RowReader
from tests.corpus.reading import plan, read

ROWS = [{"prompt": f"What is {i}+2? ", "completion": f"It is {i + 2}."} for i in range(12)]
#: Arrays as people write them.
WRITTEN = {
    "pretty": json.dumps(ROWS, indent=2),
    "perline": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "compact": json.dumps(ROWS),
}
HARD: list[Any] = [
    {"a": 'a "quoted" \\ one, [with] {all}'}, [], {}, [[1, 2], {"b": [3]}], "text, with ] and \"", 5, None,
    {"ü漢": "🙂"}, "\\", {"a": "\\\\", "b": "\\\""}, "", True,
]  # fmt: skip


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 1])
@pytest.mark.parametrize("ascii", [True, False])
def test_elements_are_those_of_the_json_module(monkeypatch: Any, block: int, indent: int | None, ascii: bool) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", block)
    rows = [random.Random(i).choice(HARD) for i in range(30)] + HARD
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode()
    # An opening must be within the first block, as it is but in the smallest.
    for start in [b"", b"\xef\xbb\xbf", b" \n "] if block > 9 else [b""]:
        found = list(split_array(io.BytesIO(start + content + b" \n"), 0))
        assert [json.loads(element) for _, element in found] == rows
        for offset, element in found[::5]:  # and from any of them on
            stream = io.BytesIO(start + content)
            stream.seek(offset)
            assert next(split_array(stream, offset)) == (offset, element)


@pytest.mark.parametrize("content", [b"[]", b" [ ] ", b"[\n]\n"])
def test_an_empty_array_has_no_elements(content: bytes) -> None:
    assert list(split_array(io.BytesIO(content), 0)) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"a": 1}', "never closed"), (b'[{"a": "1]', "never closed"), (b'[{"a": 1}}', "never closed"),
        (b'["a"]\n{"a": 1}\n', "goes on behind"), (b"[1] 2", "goes on behind"), (b'{"a": [1]}', "no array"),
        (b"[" * 100_000, "never closed"),
    ],
)  # fmt: skip
def test_what_is_no_array(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(split_array(io.BytesIO(content), 0))


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_the_arrays_that_people_have(write: Callable[..., str], name: str, how: str) -> None:
    rows = read(plan(write(name, WRITTEN[how])), chunk_rows=5)
    assert [row.fields for row in rows] == ROWS
    assert [row.id for row in rows] == [f"{name}#{i}" for i in range(12)]


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
def test_chunks_of_an_array_in_any_order(write: Callable[..., str], monkeypatch: Any, codec: str) -> None:
    monkeypatch.setattr(records, "_STRIDE", 4)
    corpus = plan(write(f"a.json{codec}", [{"text": f"{i} [,{{"} for i in range(41)]))
    whole = read(corpus)
    assert [row.fields["text"] for row in whole] == [f"{i} [,{{" for i in range(41)]
    reader, chunks = RowReader(corpus), corpus.chunks(5)
    for number in (0, 3, 8, 2, 7, 1, 1):
        assert reader.read(chunks[number]) == whole[5 * number : 5 * number + 5]


def test_bad_elements_cost_their_own_rows(write: Callable[..., str]) -> None:
    content = b'[{"text": "a"}, 5, {"text": "caf\xe9"}, {"text": tru}, , {"text": null}, {"text": "b"}]'
    problems = [row.problem or "" for row in read(plan(write("a.json", content)))]
    assert [problem[:16] for problem in problems] == [
        "", "not a JSON objec", "text is not UTF-", "not JSON: Expect", "not JSON: Expect", "text is null", "",
    ]  # fmt: skip


def test_json_lines_that_begin_with_a_bad_line_are_json_lines(write: Callable[..., str]) -> None:
    for first in (b'["text"]', b"[" * 10_000, b'["text'):
        rows = read(plan(write("a.jsonl", first + b'\n{"text": "a"}\n{"text": "b"}\n')))
        assert [row.problem is None for row in rows] == [False, True, True]


@pytest.mark.parametrize("cut", [3, 40, 300, -3])
@pytest.mark.parametrize("how", WRITTEN)
def test_a_broken_array_is_refused(write: Callable[..., str], how: str, cut: int) -> None:
    """Its last line, an object by itself, was taken for all of its rows."""
    content = WRITTEN[how].strip().encode()
    with pytest.raises(RequestError, match="nor is it a JSON array: the array is never closed"):
        plan(write("a.json", content[:cut]))
    with pytest.raises(RequestError, match="nor is it a JSON array"):
        plan(write("a.json", content.replace(b'"It is 5."', b'"It is 5.')))


def test_a_long_array_is_read_in_little_memory(write: Callable[..., str], tmp_path: Path) -> None:
    with (tmp_path / "long.json").open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"text": f"{i} " + "x" * 2000}) for i in range(20_000)) + "]")
    tracemalloc.start()
    corpus = plan(str(tmp_path / "long.json"))
    reader = RowReader(corpus)
    assert reader.read(corpus.chunks(10)[-1])[-1].fields["text"].startswith("19999 ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpus.rows == 20_000
    assert peak < 10 * 2**20 < (tmp_path / "long.json").stat().st_size


def test_rows_under_a_key_are_refused_with_the_remedy(write: Callable[..., str]) -> None:
    whole = {"version": 1, "data": ROWS}
    perline = '{"version": 1, "data": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}"
    for content in (json.dumps(whole), json.dumps(whole, indent=2), perline):
        with pytest.raises(RequestError) as caught:
            plan(write("my rows.json", content))
        assert "it is an object whose data has the rows; make lines of them: jq -c '.data[]' 'my rows.json' > " in str(
            caught.value
        ).replace('"', "'")
    with pytest.raises(RequestError, match=r"jq -c '.\[\"my rows\"\]\[\]' a.json"):
        plan(write("a.json", '{"my rows": [{"text": "a"}]}'))
    with pytest.raises(RequestError) as caught:  # nor are many lines
        plan(write("a.jsonl", '{"talk": [{"text": "a"}]}\n' * 2))
    assert "jq" not in str(caught.value)
    # One row of a talk is no such file, whatever its columns are called.
    for row in (
        {"dialog": [{"role": "user", "content": "a"}]},
        {"prompt": [{"content": "a", "role": "user"}], "chosen": []},
        {"chat": [{"from": "human", "value": "a"}]},
        {"input": {"messages": [{"role": "user", "content": "a"}]}},
    ):
        with pytest.raises(RequestError, match="map them by columns") as caught:
            plan(write("one.json", json.dumps(row)))
        assert "jq" not in str(caught.value)
    rows_of_talks = {"data": [{"messages": [{"role": "user", "content": "a"}]}]}
    with pytest.raises(RequestError, match=r"whose data has the rows"):
        plan(write("one.json", json.dumps(rows_of_talks)))
    talk = {"messages": [{"role": "user", "content": "a"}]}
    assert read(plan(write("one.json", json.dumps(talk))))[0].fields == talk
