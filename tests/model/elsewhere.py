"""A second device where there is none: tensors that say that they lie on `meta`, and have their values all the same.

Inside `second_device` every operation goes through one place, which refuses what a second GPU would refuse: tensors of
two devices in one operation, unless it is a copy or one of them is a single number. PyTorch's own autograd runs over
these tensors, so a backward pass crosses devices where the forward pass did.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook_on_blocks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SECOND = torch.device("lazy")
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor on the second device; `here` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor, requires_grad: bool = False) -> Elsewhere:
        out = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=SECOND,
            requires_grad=requires_grad,
        )  # fmt: skip
        out.here = here
        return out

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("outside `second_device`")


class second_device(TorchDispatchMode):
    """Operations on tensors of the second device, and on those of the first as always."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        second = [t for t in tensors if isinstance(t, Elsewhere)]
        first = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim]
        if second and first and func not in _COPIES:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {func}")
        device = kwargs.get("device")
        there = bool(second) if device is None else torch.device(device) == SECOND
        if func is torch.ops.aten.copy_.default:
            there = isinstance(args[0], Elsewhere)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        inner = tree_map(lambda t: t.here if isinstance(t, Elsewhere) else t, (args, kwargs))
        out = func(*inner[0], **inner[1])
        if func is torch.ops.aten._to_copy.default and any(out is t for t in tree_leaves(inner)):
            out = out.clone()
        given = {id(t.here): t for t in second}  # what an operation changes in place it gives back

        def outer(t: Any) -> Any:
            return given.get(id(t)) if id(t) in given else Elsewhere(t) if there and isinstance(t, Tensor) else t

        return tree_map(outer, out)


def dispatch(model: nn.Module, second: tuple[str, ...]) -> None:
    """Put the modules `second` of a transformers model (with or without an adapter) on the second device.

    By accelerate's own hooks, attached as its `dispatch_model` does.
    """
    for name in second:
        for module in model.get_submodule(name).modules():
            for key, parameter in module.named_parameters(recurse=False):
                moved = Elsewhere(parameter.detach())
                setattr(module, key, nn.Parameter(moved, requires_grad=parameter.requires_grad))
            for key, buffer in module.named_buffers(recurse=False):
                module._buffers[key] = Elsewhere(buffer)
    first = tuple(name for name, _ in model.named_modules() if name and not any(_near(name, other) for other in second))
    where: dict[str, Any] = dict.fromkeys(first, "cpu") | dict.fromkeys(second, SECOND)
    attach_align_device_hook_on_blocks(model, where, dict.fromkeys(where, False))
    add_hook_to_module(model, AlignDevicesHook(torch.device("cpu"), io_same_device=True))


def _near(name: str, other: str) -> bool:
    return f"{other}.".startswith(f"{name}.") or f"{name}.".startswith(f"{other}.")
