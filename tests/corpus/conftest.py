"""Rows in every format, and a small real tokenizer."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system: you are a helpful assistant",
    "def add(a, b):\n    return a + b\n",
]


def trained(post: str | None = "<s> $A") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts `post` around a text."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    if post is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=post, special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return trained


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return trained()


def encoded(rows: Sequence[dict[str, Any]], name: str) -> bytes:
    """The rows in the format that `name`'s suffix stands for, before compression."""
    out = io.BytesIO()
    if ".jsonl" in name or ".ndjson" in name:
        out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    elif ".json" in name:
        out.write(json.dumps(list(rows), ensure_ascii=False, indent=1).encode())
    elif ".csv" in name or ".tsv" in name:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
        out.write(text.getvalue().encode())
    else:
        table = pa.Table.from_pylist(list(rows))
        if ".parquet" in name or ".pq" in name:
            pq.write_table(table, out, row_group_size=7)
        else:
            make = pa.ipc.new_stream if ".ipc" in name else pa.ipc.new_file
            with make(out, table.schema) as sink:
                sink.write_table(table, max_chunksize=7)
    return out.getvalue()


def compressed(content: bytes, name: str) -> bytes:
    def by_arrow(data: bytes, codec: str) -> bytes:
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, codec) as sink:
            sink.write(data)
        return out.getvalue().to_pybytes()

    codecs: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: by_arrow(data, "zstd"),
        ".lz4": lambda data: by_arrow(data, "lz4"),
    }
    return codecs.get(Path(name).suffix, bytes)(content)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """write(name, content) puts rows, text or bytes into a file below tmp_path and returns its path."""

    def write(name: str, content: Sequence[dict[str, Any]] | str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            content = encoded(content, name)
        path.write_bytes(compressed(content, name))
        return str(path)

    return write
