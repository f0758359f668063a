"""Every example's gradient in every block, from one backward pass over the batch.

For a linear layer y = W x the gradient of example i is Σ_t (∂loss/∂y_it) x_itᵀ, so what a hook sees of the layer's
input and of its output's gradient is enough; `samplers` has what other layers need, and `sites` where the hooks are. No
weight asks autograd for a gradient: the base gets none, and the batch's own gradient is never formed. Each block is
handed on as soon as the backward pass has it, and then forgotten; one that several layers use, at the end.

Hooks are right for layers whose input has one row per example, as b × …, or flattened, or with the sequence first.
`unsupported` says what stands in the way in a given model, and `Replica.check` compares with autograd on real rows;
where either objects, the replica takes the slow way, one example at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.model.copies import Copies
from datainf_ray.model.samplers import Call, CaptureError, Layout, reads_output
from datainf_ray.model.sites import Site, find_sites

__all__ = ["Capture", "CaptureError", "Consume", "unsupported"]

#: Receives a block's name, gradients (k × d_l, float32 or wider) and the k positions in the batch that they belong to.
Consume = Callable[[str, Tensor, Tensor], object]


def unsupported(model: nn.Module, blocks: dict[str, nn.Parameter]) -> str | None:
    """Why hooks cannot capture these blocks, in a few words; None where they can."""
    found = find_sites(model, blocks)
    return found if isinstance(found, str) else None


class _Watch:
    """A hooked layer during one forward and backward pass."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.layout: Layout | None = None  # how the layer is fed its rows, once a batch has shown it
        self.is_table = False  # it is fed s × … that holds no rows, whatever s is
        self.calls = self.arrived = 0
        self.emitted = False
        self.gradients: dict[str, Tensor] = {}  # by the tensor's name, summed over the calls so far

    def reset(self) -> None:
        self.calls = self.arrived = 0
        self.emitted = False
        self.gradients = {}

    def layout_of(self, x: Any, b: int, lengths: Collection[int]) -> Layout | None:
        """How a layer's first input holds b rows; None where it does not, or otherwise than it did before.

        Where b is s, b × s × … and s × b × … look the same: then it is as it was in other batches.
        """
        fits: list[Layout] = []
        if isinstance(x, Tensor) and x.ndim > 1:
            if len(x) == b:
                fits.append("rows")
            if x.ndim == 3 and x.shape[1] == b and len(x) > 1:
                fits.append("sequence")
            if x.ndim == 2 and not self.is_table and len(x) > b and len(x) % b == 0 and len(x) // b in lengths:
                fits.append("flat")
        if self.layout is None and len(fits) == 1 and b > 1:
            self.layout = fits[0]
        if self.layout is None:
            return fits[0] if fits else None
        return self.layout if self.layout in fits or (b == 1 and fits) else None


class Capture:
    """Hooks for `blocks` (name: parameter) of `model`; ValueError where `unsupported` says why there are none."""

    def __init__(self, model: nn.Module, blocks: dict[str, nn.Parameter]) -> None:
        sites = find_sites(model, blocks)
        if isinstance(sites, str):
            raise ValueError(sites)
        self._watches = [_Watch(site) for site in sites]
        named = [block for site in sites for block in site.blocks.values()]
        self._shared = {block for block in named if named.count(block) > 1}
        self._sums: dict[str, Tensor] = {}  # of the shared blocks
        self.rows = torch.empty(0, dtype=torch.int64)
        self.lengths: Collection[int] = ()
        self.scale = 1.0
        self.consume: Consume | None = None
        self._copies, self._copying = Copies(1), False
        self._turn = threading.Lock()  # where layers lie on several GPUs, each GPU's backward pass has its own thread
        self._sampling = threading.local()  # a sampler may run a layer again, of which hooks must not take note
        for watch in self._watches:
            watch.site.layer.register_forward_pre_hook(self._repeat)
            watch.site.layer.register_forward_hook(self._hook(watch), with_kwargs=True)

    @contextmanager
    def into(self, consume: Consume, rows: Tensor, scale: float = 1.0, lengths: Collection[int] = ()) -> Iterator[None]:
        """Hand the gradients of the forward and backward pass inside to `consume`, divided by `scale`.

        `rows` are the positions 0 to b − 1 of the batch's examples, and `lengths` how many tokens a row of the batch
        has, by which rows are known that a model lays end to end. Gradients come where `rows` is: a layer on another
        device sends its own over.
        """
        self.consume, self.rows, self.scale, self.lengths = consume, rows, scale, lengths
        self._copies = Copies(len(rows))
        try:
            yield
            for watch in self._watches:
                if watch.arrived and not watch.emitted:  # another call's output of this layer did not reach the loss
                    self._emit(watch)
            for block, gradient in self._sums.items():
                consume(block, gradient, self.rows)
        finally:
            if self._copying:
                self._copies.__exit__(None, None, None)
                self._copying = False
            self.consume = None
            self._sums = {}
            for watch in self._watches:
                watch.reset()

    def _running(self) -> bool:
        """Whether a layer is called by the model on the batch, and not by a sampler."""
        return self.consume is not None and torch.is_grad_enabled() and not getattr(self._sampling, "now", False)

    def _repeat(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """A table of positions is looked up once for all rows; here for each of them, so that they stay apart."""
        first = inputs[0] if inputs else None
        if not self._running() or not isinstance(first, Tensor) or first.is_floating_point():
            return None
        alone = first.ndim == 2 and len(first) == 1 and first.shape[1] in self.lengths
        return (first.expand(len(self.rows), -1), *inputs[1:]) if alone else None

    def _hook(self, watch: _Watch) -> Callable[..., Any]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if not self._running():
                return output
            if isinstance(output, tuple):  # one may be made of another: as views each has a gradient of its own
                output = tuple(x.view_as(x) if isinstance(x, Tensor) else x for x in output)
            self._forward(watch, inputs, keywords, output)
            return output

        return hook

    def _forward(self, watch: _Watch, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        first = next((x for x in (*inputs, *keywords.values()) if isinstance(x, Tensor)), None)
        layout = watch.layout_of(first, len(self.rows), self.lengths)
        for part, out in _outputs(watch.site, output):
            if not out.requires_grad:
                out.requires_grad_(True)
            returned = None if layout is None or first is None else _returned(out, first, layout, len(self.rows))
            if self._is_single(first, out, layout):
                self._once(watch, inputs, keywords, out, part)
                continue
            if layout is None or returned is None:
                # no harm where it does not reach the loss, as what DoRA takes its norms from does not
                out.register_hook(lambda gradient: self._lost(watch, first))
                continue
            watch.calls += 1
            # accelerate moves a layer's input behind this hook's back
            kept = tuple(self._kept(x, first, layout, out.device) for x in inputs)
            named = {name: self._kept(x, first, layout, out.device) for name, x in keywords.items()}
            shown = self._kept(out, out, layout, out.device) if reads_output(watch.site.sampler) else None
            call = Call(kept, named, shown, layout, returned, part)
            out.register_hook(lambda gradient, call=call: self._in_turn(watch, call, gradient))

    def _is_single(self, first: Any, out: Tensor, layout: Layout | None) -> bool:
        """Whether a layer was called once for all of several rows: with 1 × s × …, or with s × … that holds no rows."""
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return False
        alone = (first.ndim == 3 and len(first) == 1 < len(self.rows)) or (first.ndim == 2 and layout is None)
        return alone and out.ndim == first.ndim and out.shape[:-1] == first.shape[:-1]

    def _once(
        self, watch: _Watch, inputs: tuple[Any, ...], keywords: dict[str, Any], out: Tensor, part: int | None
    ) -> None:
        """A call that the rows share: its gradients come where the model copies what came of it for every row."""
        b, expected = len(self.rows), False

        def copied(x: Any) -> Any:
            same = isinstance(x, Tensor) and x.shape[:-1] == out.shape[:-1]
            return x.detach().expand(b, *x.shape[-2:]) if same else x

        kept, named = tuple(map(copied, inputs)), {name: copied(x) for name, x in keywords.items()}
        call = Call(kept, named, copied(out) if reads_output(watch.site.sampler) else None, "rows", "rows", part)

        if b == 1:
            watch.calls += 1
            out.register_hook(lambda gradient: self._in_turn(watch, call, gradient[None]))
            return

        def found() -> Callable[[Tensor], None]:
            nonlocal expected
            expected = True
            watch.calls += 1
            watch.is_table = watch.is_table or out.ndim == 2
            return lambda gradients: self._in_turn(watch, call, gradients)

        def arrived(gradient: Tensor) -> None:
            if not expected:
                self._lost(watch, inputs[0] if inputs else None)

        out.register_hook(arrived)
        self._copies.expect(out, found)
        if not self._copying:  # it costs every call of torch a little, so only where there is such a layer
            self._copies.__enter__()
            self._copying = True

    def _kept(self, x: Any, like: Any, layout: Layout, device: torch.device) -> Any:
        """What a layer was fed, with its rows first where it has the rows that its first input has."""
        if not isinstance(x, Tensor):
            return x
        x = x.detach().to(device)
        same = x.ndim > 0 and len(x) == len(like) and (layout != "sequence" or x.shape[1:2] == like.shape[1:2])
        return _rows_first(x, layout, len(self.rows)) if same else x

    def _lost(self, watch: _Watch, first: Any) -> None:
        shape = tuple(first.shape) if isinstance(first, Tensor) else "no tensor"
        raise CaptureError(f"{watch.site} is fed {shape}: no row for each of {len(self.rows)} examples")

    def _in_turn(self, watch: _Watch, call: Call, gradient: Tensor) -> None:
        with self._turn:
            self._sampling.now = True
            try:
                self._backward(watch, call, _rows_first(gradient.detach(), call.returned, len(self.rows)))
            finally:
                self._sampling.now = False

    def _backward(self, watch: _Watch, call: Call, gradient: Tensor) -> None:
        site = watch.site
        for tensor, found in site.sampler(site.layer, call, gradient, site.blocks).items():
            watch.gradients[tensor] = watch.gradients[tensor] + found if tensor in watch.gradients else found
        if watch.emitted:  # layers called again inside a checkpointed backward pass, for one
            raise CaptureError(f"{site} got more gradient after it seemed complete")
        watch.arrived += 1
        if watch.arrived == watch.calls:
            self._emit(watch)

    def _emit(self, watch: _Watch) -> None:
        assert self.consume is not None
        for tensor, gradient in watch.gradients.items():
            block = watch.site.blocks[tensor]
            flat = gradient.flatten(1).to(self.rows.device)
            flat = flat / self.scale if self.scale != 1 else flat
            if block in self._shared:
                self._sums[block] = self._sums[block] + flat if block in self._sums else flat
            else:
                self.consume(block, flat, self.rows)
        watch.gradients = {}
        watch.emitted = True


def _outputs(site: Site, output: Any) -> list[tuple[int | None, Tensor]]:
    """The tensors that a layer returns and that may have a gradient, each with its place where it is one of several."""
    if isinstance(output, Tensor):
        return [(None, output)]
    if type(output) is not tuple or not all(x is None or isinstance(x, Tensor) for x in output):
        raise CaptureError(f"{site} belongs to a layer that gives a {type(output).__name__}, not tensors")
    return [(k, x) for k, x in enumerate(output) if x is not None and x.is_floating_point()]


def _rows_first(x: Tensor, layout: Layout, b: int) -> Tensor:
    """b × … of what is laid out in one of the ways."""
    if layout == "flat":
        return x.reshape(b, -1, *x.shape[1:])
    return x.transpose(0, 1) if layout == "sequence" else x


def _returned(output: Tensor, first: Tensor, layout: Layout, b: int) -> Layout | None:
    """How an output holds the rows of the input: as that does, or, as of some routers, laid end to end; None: not."""
    if layout == "sequence":
        return layout if output.ndim > 1 and output.shape[:2] == first.shape[:2] else None
    if output.ndim > 0 and len(output) == len(first):
        return layout
    return "flat" if first.ndim > 2 and output.ndim == 2 and len(output) == b * first.shape[1] else None
