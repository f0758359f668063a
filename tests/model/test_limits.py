from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from datainf_ray.model.forward import token_arguments
from datainf_ray.model.limits import is_rotary, longest_row, traces
from tests import tiny


@pytest.mark.parametrize(
    ("config", "tokens", "rotary"),
    [
        (transformers.XLNetConfig(), None, False),  # says −1
        (transformers.T5Config(), None, False),
        (transformers.BloomConfig(), None, False),
        (transformers.BertConfig(), 512, False),
        (transformers.GPT2Config(), 1024, False),
        (transformers.RobertaConfig(max_position_embeddings=514), 512, False),
        (transformers.LlamaConfig(), 2048, True),
        (transformers.Qwen2Config(), 32768, True),
        (transformers.GPTNeoXConfig(), 2048, True),
        (transformers.GPTJConfig(), 2048, False),  # a table of angles
        (transformers.EsmConfig(), 1026, False),
        (transformers.LlamaConfig(max_position_embeddings=10**30), None, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PretrainedConfig) else None,
)
def test_what_a_model_takes_is_what_it_has_positions_for(config: Any, tokens: int | None, rotary: bool) -> None:
    assert longest_row(config) == tokens
    assert is_rotary(config) == rotary


@pytest.mark.parametrize("kind", ["Camembert", "MPNet", "Longformer"])
def test_positions_that_begin_behind_the_paddings_are_fewer_and_the_models_own(kind: str) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    more = {"attention_window": 4} if kind == "Longformer" else {}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, max_position_embeddings=20, **sizes, **more)
    base = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert longest_row(config, base) == 18
    ids = torch.tensor([list(range(5, 5 + 18))])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(base(**token_arguments(base, given)).logits, base(ids).logits, rtol=1e-5, atol=1e-6)


def test_traces_of_the_trainings_limit(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    assert tokenizer.model_max_length > 10**29
    assert traces(tmp_path, None) == traces(tmp_path, tokenizer) == ()
    tokenizer("w1 w2 w3", truncation=True, max_length=7)  # what trainings do, and tokenizers keep
    tokenizer.model_max_length = 9
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert traces(tmp_path, again) == (
        ("the truncation in tokenizer.json", 7, True),
        ("the tokenizer's model_max_length", 9, True),
    )
    (tmp_path / "README.md").write_text("```yaml\nbase_model: b\nsequence_len: 5  # tokens\n```\nmax_length: none\n")
    (tmp_path / "training_args.yaml").write_bytes(b"\xff\ncutoff_len: 6\nmy_max_length: 3\nmax_length: 99999999999\n")
    (tmp_path / "other.txt").write_text("max_length: 1\n")
    assert traces(tmp_path, None) == (
        ("sequence_len in the adapter's README.md", 5, True),
        ("cutoff_len in the adapter's training_args.yaml", 6, True),
    )
