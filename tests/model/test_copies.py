"""What a layer gives once for all rows and the model copies for each, as DeBERTa's table of positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from datainf_ray.model.capture import Capture
from datainf_ray.model.replica import Replica
from tests import reference, tiny
from tests.model.compare import captured, examples_of, relative

TABLE = 8  # rows of the table of positions
ADAPTERS: dict[str, dict[str, Any]] = {
    "q and v": {"target_modules": ["query_proj", "value_proj"]},
    "k alone, with its bias": {"target_modules": ["key_proj"], "bias": "lora_only"},
    "DoRA": {"target_modules": ["query_proj", "key_proj"], "use_dora": True},
    "the table's norm": {"target_modules": ["query_proj", "key_proj"], "modules_to_save": ["LayerNorm"]},
}


def deberta(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=tiny.VOCABULARY,
        max_position_embeddings=64, pad_token_id=0, relative_attention=True, position_buckets=TABLE // 2,
        norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        **{"pos_att_type": ["p2c", "c2p"], "share_att_key": True, **settings},
    )  # fmt: skip
    config.num_labels = 3
    return transformers.AutoModelForSequenceClassification.from_config(config)


def adapted(base: nn.Module, adapter: dict[str, Any]) -> Any:
    model = get_peft_model(base, LoraConfig(r=3, task_type="SEQ_CLS", **adapter)).double()  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def rows(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows that look like the table: as long as it, and pairs of half its length."""
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(4, 60, (length,), generator=generator).tolist(), "labels": k % 3}
        for k, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("settings", [{}, {"share_att_key": False}, {"pos_att_type": ["p2c"]}], ids=str)
@pytest.mark.parametrize("case", ADAPTERS)
def test_gradients_are_autograds_for_each_row(case: str, settings: dict[str, Any]) -> None:
    model = adapted(deberta(**settings), ADAPTERS[case])
    replica = Replica(model, tiny.task("sequence-classification"))
    given = rows((5, 9, 12, 4, 4, 8, 3))
    for parameter in replica.parameters.values():
        parameter.requires_grad_(True)
    want = reference.gradients(model, given)
    for parameter in replica.parameters.values():
        parameter.requires_grad_(False)
    assert replica.path == "hooks"
    for size in (3, 2, 1):
        got, _ = captured(replica, examples_of(given), size, dtype=torch.float64)
        for (name, gradients), exactly in zip(got.items(), want.values(), strict=True):
            if float(exactly.norm()) > 1e-9:  # a key's bias is rounding
                assert relative(gradients, exactly) < 1e-9, (name, size)


class Summed(nn.Module):
    """A model whose table reaches every row without a copy: hooks see no more than the rows' sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return (self.layer(x) @ self.layer(table).transpose(1, 2)).square().flatten(1).sum(1)


def test_a_table_that_is_not_copied_is_an_error() -> None:
    model = Summed()
    capture = Capture(model, dict(model.named_parameters()))
    x, table = torch.randn(3, 5, 4), torch.randn(1, 6, 4)
    with (
        pytest.raises(Exception, match=r"layer\.weight is fed \(1, 6, 4\): no row for each of 3 examples"),
        capture.into(lambda *taken: None, torch.arange(3)),
    ):
        model(x, table).sum().backward()
    assert not torch.overrides._get_current_function_mode_stack()
