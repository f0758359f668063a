"""The token that batches are padded with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as T

from datainf_ray.model.forward import padding
from tests import tiny
from tests.model.compare import examples_of, rows_for

OWN, TOKENIZERS, END = 7, 5, 6


@pytest.mark.parametrize(
    ("own", "tokenizer", "vocabulary", "right"),
    [
        (OWN, SimpleNamespace(pad_token_id=TOKENIZERS, eos_token_id=END), 9, OWN),
        (None, SimpleNamespace(pad_token_id=TOKENIZERS, eos_token_id=END), 9, TOKENIZERS),
        (-1, SimpleNamespace(pad_token_id=TOKENIZERS, eos_token_id=END), 9, TOKENIZERS),
        (None, SimpleNamespace(pad_token_id=9, eos_token_id=END), 9, END),
        (None, None, 9, 0),
        (OWN, None, 9, OWN),
    ],
)
def test_the_models_own_token_comes_first(own: int | None, tokenizer: Any, vocabulary: int, right: int) -> None:
    config = T.LlamaConfig(pad_token_id=own)
    model: Any = SimpleNamespace(config=config)
    assert padding(model, tokenizer, vocabulary) == right
    assert padding(SimpleNamespace(), tokenizer, vocabulary) in (0, TOKENIZERS, END)  # type: ignore[arg-type]


def test_a_decoder_with_a_head_finds_the_end_of_each_row_by_it(tmp_path: Path) -> None:
    """Another token than the model's own would be taken for a row's last."""
    model = tiny.save_model(tmp_path, "llama-classifier", settings={"pad_token_id": 3})
    replica = tiny.replica(model)
    examples = examples_of(rows_for(model, tmp_path))
    task = tiny.task(model["task"])
    batch = task.batch(examples, range(4), padding(replica.model, None, tiny.VOCABULARY))
    losses = replica.losses(batch)
    alone = torch.cat([replica.losses(batch.one(k)) for k in range(4)])
    torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-6)
