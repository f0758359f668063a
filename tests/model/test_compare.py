"""What the check at start takes for rounding, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datainf_ray.corpus.tokens import Example
from datainf_ray.model.check import _pairs, check
from datainf_ray.model.compare import Rounding, Taken, difference, in_double
from datainf_ray.request.job import rows_to_compare
from tests import tiny
from tests.model.compare import batch_of, examples_of, is_right, rows_for

BOUNDS = Rounding(1e-4, 1e-6)


def taken(losses: list[float] | None = None, **blocks: Tensor) -> Taken:
    return Taken(torch.tensor(losses or [1.0, 2.0]), blocks, frozenset(blocks))


def test_a_difference_counts_by_the_gradients_own_size_unless_it_is_noise() -> None:
    torch.manual_seed(0)
    large, small = torch.randn(2, 50), 1e-3 * torch.randn(2, 50)
    exact = taken(large=large, small=small, bias=1e-7 * torch.randn(2, 5))
    noise = 1e-7 * torch.randn(2, 5)  # as large as the exact one, and of no meaning
    cosine, wrong = difference(taken(large=large * (1 + 5e-5), small=small, bias=noise), exact, BOUNDS)
    assert wrong is None
    assert cosine == pytest.approx(1, abs=1e-6)  # noise has no direction
    for factor, small_factor, name in ((1 + 3e-4, 1, "large"), (1, 1 + 3e-3, "small"), (1, -1, "small")):
        got = taken(large=large * factor, small=small * small_factor, bias=noise)
        assert f"the gradients of {name} differ" in str(difference(got, exact, BOUNDS)[1])
    got = taken([1.0, 2.001], large=large, small=small, bias=noise)
    assert "the losses of a batch differ" in str(difference(got, exact, BOUNDS)[1])


def test_a_row_that_is_not_finite_is_not_compared() -> None:
    g = torch.randn(2, 50)
    broken = g.clone()
    broken[1] = torch.nan
    assert difference(taken([1.0, float("nan")], a=broken), taken([1.0, float("nan")], a=broken), BOUNDS)[1] is None
    assert difference(taken([1.0, float("nan")], a=2 * broken), taken([1.0, float("nan")], a=broken), BOUNDS)[1]


def test_a_model_in_double_is_the_same_afterwards(tmp_path: Path) -> None:
    model = tiny.replica(tiny.save_model(tmp_path, "bert")).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = list(model.parameters())
    with in_double(model) as can:
        assert can
        assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(p is q for p, q in zip(model.parameters(), tensors, strict=True))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_what_only_rounding_sets_apart_is_no_reason_for_a_slower_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many layers of float32 make more of rounding than fits the bounds; here the bounds are less instead."""
    monkeypatch.setattr("datainf_ray.model.compare._FLOAT32", Rounding(1e-9, 1e-12))
    model = tiny.save_model(tmp_path, "bert")
    replica = tiny.replica(model)
    examples = examples_of(rows_for(model, tmp_path))
    monkeypatch.setattr("datainf_ray.model.check.difference", seen := Seen())
    verdict = check(replica, batch_of(examples, [0, 1]))
    assert [wrong is None for wrong in seen.found] == [False, True]  # in float32, and in float64
    assert (verdict.path, verdict.reason, verdict.lengths_reason) == ("hooks", None, None)


class Seen:
    def __init__(self) -> None:
        self.found: list[str | None] = []

    def __call__(self, *given: Any) -> tuple[float | None, str | None]:
        found = difference(*given)
        self.found.append(found[1])
        return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_biases_without_gradient_do_not_make_a_run_slow(tmp_path: Path, dtype: str) -> None:
    """Under softmax a key's bias adds the same to all scores: its gradient is zero but for rounding."""
    lora = {"bias": "lora_only", "target_modules": ["query", "key", "value"]}
    model = tiny.save_model(tmp_path, "bert", lora=lora) | {"dtype": dtype}
    replica = tiny.replica(model)
    verdict = check(replica, batch_of(examples_of(rows_for(model, tmp_path)), [0, 1, 2, 3]))
    assert (verdict.path, verdict.reason, verdict.lengths_reason) == ("hooks", None, None)


def test_a_layer_that_is_never_called_is_seen(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model)
    layer: Any = replica.model.get_base_model().model.layers[1].self_attn.q_proj
    a, b, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    layer.forward = lambda x: layer.base_layer(x) + scale * F.linear(F.linear(x, a.weight), b.weight)
    verdict = check(replica, batch_of(examples_of(rows), [0, 1, 2]))
    assert verdict.path == "one by one"
    assert verdict.reason == (
        "no gradient of model.layers.1.self_attn.q_proj.lora_A.weight comes by hooks: its layer is not called"
    )
    is_right(replica, model, rows)


def test_rows_that_mind_their_neighbours_go_one_by_one(tmp_path: Path) -> None:
    """Also where rows of the same length are together: those two are different rows."""
    model = tiny.save_model(tmp_path, "llama")
    rows = rows_for(model, tmp_path)
    rows[1] = rows[0] | {"input_ids": [*rows[0]["input_ids"][::-1]]}
    replica = tiny.replica(model)
    norm: nn.Module = replica.model.get_base_model().model.norm
    norm.register_forward_hook(lambda module, inputs, out: out + 0.1 * (out - out.mean(0, keepdim=True)))
    verdict = check(replica, batch_of(examples_of(rows), [0, 1, 2]))
    assert verdict.path == "one by one"
    assert verdict.lengths_reason is None
    is_right(replica, model, rows)


def test_the_check_calls_the_model_with_tokens_alone(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "bert")
    replica = tiny.replica(model)
    given: list[tuple[int, list[str]]] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append((len(named["input_ids"]), [name for name, value in named.items() if isinstance(value, Tensor)]))

    replica.model.get_base_model().register_forward_pre_hook(look, with_kwargs=True)
    check(replica, batch_of(examples_of(rows_for(model, tmp_path)), [0, 1]))
    assert given == [(1, ["input_ids"])] * 2 + [(2, ["input_ids", "attention_mask"])]


def test_where_the_device_has_no_room_for_the_longest_row_the_others_are_compared(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    examples = examples_of(rows_for(model, tmp_path))
    longest = max(e.tokens for e in examples)
    replica = tiny.replica(model)

    def full(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if named["input_ids"].shape[1] >= longest:
            raise torch.OutOfMemoryError("no room")

    replica.model.get_base_model().register_forward_pre_hook(full, with_kwargs=True)
    verdict = check(replica, batch_of(examples, range(7)))
    assert (verdict.path, verdict.loss, verdict.reason) == ("hooks", "chunked", None)
    assert verdict.cosine is not None
    with pytest.raises(torch.OutOfMemoryError):
        check(replica, batch_of(examples, [k for k in range(7) if examples[k].tokens == longest]))


def test_rows_to_compare_span_the_lengths_and_have_two_alike() -> None:
    def rows(*lengths: int) -> list[Example]:
        return [Example(k, "", "ok" if n else "unreadable", lengths=(n,) if n else ()) for k, n in enumerate(lengths)]

    def chosen(*lengths: int) -> list[int]:
        return [example.tokens for example in rows_to_compare(rows(*lengths))]

    assert chosen(5, 9, 0, 3, 7, 9, 30, 7) == [3, 7, 7, 30]
    assert chosen(5, 5, 5) == [5, 5, 5]
    assert chosen(4, 4, 8, 8) == [4, 4, 8]
    assert chosen(4, 8) == [4, 8]
    assert chosen(4) == [4]
    assert chosen(0) == []


@pytest.mark.parametrize(
    ("lengths", "most", "pairs"),
    [
        ((5, 9, 5, 12), None, [[0, 3], [0, 2], [1]]),
        ((5, 9, 7, 12), None, [[0, 3], [2, 1]]),
        ((5, 9, 9, 12), 18, [[0], [3], [1, 2]]),  # what the budget of a batch does not allow is compared row by row
        ((6, 6), None, [[0, 1]]),
        ((4,), 2, [[0]]),
    ],
)
def test_rows_are_compared_in_pairs(lengths: tuple[int, ...], most: int | None, pairs: list[list[int]]) -> None:
    assert _pairs([(n,) for n in lengths], most) == pairs
