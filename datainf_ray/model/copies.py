"""What a layer gives once for a whole batch, and the model then copies for every row.

DeBERTa's attention projects its table of relative positions with the layers that project its rows, once, and repeats
the result. Autograd sums the rows' gradients in that repetition; the gradient of what was repeated has them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DEEPEST = 200  # nodes of a graph that are looked at between a layer's output and its repetition

#: Takes the gradients of one output of a layer, b × the output's own shape, less a first dimension of 1.
Take = Callable[[Tensor], None]


class Copies(TorchFunctionMode):
    """While active, sees `Tensor.repeat` make b copies of what depends on the outputs that were `expect`ed."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._outputs: list[tuple[Tensor, Callable[[], Take]]] = []

    def expect(self, output: Tensor, found: Callable[[], Take]) -> None:
        """`found` is called once for each time that copies of `output` are made, and gives what takes the gradients."""
        self._outputs.append((output, found))

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.repeat and self._outputs and result.requires_grad and _copies(result, args[0]):
            self._watch(args[0], result)
        return result

    def _watch(self, one: Tensor, copies: Tensor) -> None:
        if len(copies) != self._rows * len(one):
            return
        within = _graph(one)
        for output, found in self._outputs:
            if (output if output.is_leaf else output.grad_fn) in within:
                copies.register_hook(self._apart(one, output, found()))

    def _apart(self, one: Tensor, output: Tensor, take: Take) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            each = gradient.reshape(self._rows, *one.shape)
            (found,) = torch.autograd.grad(one, output, each, retain_graph=True, is_grads_batched=True)
            take(found.flatten(0, 1) if output.ndim > 2 else found)

        return hook


def _copies(result: Tensor, one: Tensor) -> bool:
    """Whether all copies lie one behind the other in the first dimension."""
    return one.ndim > 0 and len(result) > len(one) and result.shape[1:] == one.shape[1:] and result.ndim == one.ndim


def _graph(tensor: Tensor) -> set[Any]:
    """The nodes, and the leaves, that a tensor was made of, the nearest `_DEEPEST` of them."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting and len(seen) < _DEEPEST:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            seen.add(leaf)
        waiting += [before for before, _ in node.next_functions]
    return seen
