"""Where hooks must sit to see what a trainable tensor does, and by which sampler its gradients are then had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from datainf_ray.model.samplers import Sampler, claimant, generic, refused, sampler_of

_Holders = dict[nn.Module, list[tuple[nn.Module, str]]]


@dataclass
class Site:
    """A layer that is hooked, with one sampler, and the tensors that are had there."""

    layer: nn.Module
    sampler: Sampler
    blocks: dict[str, str] = field(default_factory=dict)  # by the tensor's name in the layer: the block

    def __str__(self) -> str:
        return next(iter(self.blocks.values()))


def find_sites(model: nn.Module, blocks: Mapping[str, nn.Parameter]) -> list[Site] | str:
    """The sites of the blocks (name: parameter) of a model; or why there is a block without, in a few words.

    A block that several layers use has several sites: its gradient is the sum over them.
    """
    owners, holders = _owners(model), _holders(model)
    sites: dict[tuple[nn.Module, Sampler], Site] = {}
    for name, parameter in blocks.items():
        used = [user for module, tensor in owners[id(parameter)] for user in _users(module, tensor, holders)]
        if not used:
            return f"{name} is held by no layer that is called"
        for layer, tensor in used:
            place = _claimed(layer, tensor, holders)
            if place is None:
                if why := refused(layer):
                    return f"{name} belongs to {why}"
                place = layer, tensor, sampler_of(layer) if "." not in tensor else None
            layer, tensor, sampler = place
            key = layer, sampler or generic
            sites.setdefault(key, Site(*key)).blocks[tensor] = name
    return list(sites.values())


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For every parameter (by identity) the modules that hold it, and under which name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    return owners


def _holders(model: nn.Module) -> _Holders:
    """For every module those that it is a part of, and under which name."""
    holders: _Holders = {}
    for module in model.modules():
        for name, child in module.named_children():
            holders.setdefault(child, []).append((module, name))
    return holders


def _is_called(module: nn.Module) -> bool:
    """Whether a module computes something; one that does not, as a ParameterDict, is a container."""
    return type(module).forward is not nn.Module.forward


def _users(module: nn.Module, tensor: str, holders: _Holders) -> Iterator[tuple[nn.Module, str]]:
    """The module that holds a tensor; where that is a container, the layers that it is part of. And its name there."""
    if _is_called(module):
        yield module, tensor
        return
    for holder, name in holders.get(module, []):
        yield from _users(holder, f"{name}.{tensor}", holders)


def _claimed(layer: nn.Module, tensor: str, holders: _Holders) -> tuple[nn.Module, str, Sampler | None] | None:
    """The outermost of the layers around a tensor that claims it, the tensor's name there, and its sampler."""
    found = None
    first = layer
    while True:
        sampler = claimant(layer, tensor)
        if sampler is not None:
            found = layer, tensor, sampler
        elif layer is not first and _is_called(layer):
            return found
        above = holders.get(layer, [])
        if len(above) != 1:
            return found
        ((layer, name),) = above
        tensor = f"{name}.{tensor}"
