"""Every example's gradient from the whole model at once, by `torch.func`: where hooks cannot tell the rows apart.

A table that a model reads once for all rows, as DeBERTa's of relative positions, goes through layers with LoRA; what
flows back to it is the sum over the rows. Under vmap each row has its own. Needs rows of the same length, which are
called bare, and a model without control flow that depends on data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from datainf_ray.model.forward import bare_rows
from datainf_ray.model.objective import Losses, Predictions, Reduction, Values
from datainf_ray.model.seen import of_rows, seen

#: transformers looks at the tokens, to warn of padding without a mask.
_LOOKS = "warn_if_padding_and_no_attention_mask"


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, losses: Losses, reduction: Reduction) -> None:
        super().__init__()
        self.model, self.losses, self.reduction = model, losses, reduction

    def forward(self, values: Values) -> Tensor:
        """The loss of one example, whose tensors lack the first dimension."""
        return self.losses(self.model, {name: x[None] for name, x in values.items()}, self.reduction)[0]


def mapped(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    losses: Losses,
    values: Values,
    reduction: Reduction,
    scale: float = 1.0,
    predictions: Predictions | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """The b losses, {name: b × shape} of `parameters`, and what `predictions` makes of the model's output, b × ….

    `scale` times a loss is differentiated, and undone.

    Raises RuntimeError where torch has no rule for what the model does.
    """
    loss = _Loss(model, losses, reduction)
    inside = {id(parameter): name for name, parameter in loss.named_parameters()}
    names = {inside[id(parameter)]: name for name, parameter in parameters.items()}
    blocks = {inside[id(parameter)]: parameter.detach() for parameter in parameters.values()}

    def one(blocks: dict[str, Tensor], values: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        with seen(model, predictions) as predicted:
            found: Tensor = functional_call(loss, blocks, (values,))
        return found * scale, (found.detach(), *predicted)

    with bare_rows(), _not_looking(model), torch.no_grad():
        gradients, (_, aux) = vmap(grad_and_value(one, has_aux=True), in_dims=(None, 0))(blocks, dict(values))
    found, *predicted = aux
    each = of_rows([one[:, 0] for one in predicted], len(found))  # inside, a row was a batch of one
    return found, {names[name]: g / scale for name, g in gradients.items()}, each


@contextmanager
def _not_looking(model: nn.Module) -> Iterator[None]:
    changed = [module for module in model.modules() if hasattr(module, _LOOKS)]
    try:
        for module in changed:
            vars(module)[_LOOKS] = lambda *args, **keywords: None
        yield
    finally:
        for module in changed:
            del vars(module)[_LOOKS]
