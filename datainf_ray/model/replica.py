"""A replica: base and adapter, on one device or on several, giving each example's loss and gradients in a batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block
from datainf_ray.model.capture import Capture, CaptureError, Consume, unsupported
from datainf_ray.model.files import adapter_folder
from datainf_ray.model.inspect import (
    _ADAPTER,
    HEADS,
    adapter_shapes,
    base_config,
    head_size,
    kind_of,
    model_class,
    name_blocks,
    peft_config,
    quiet,
)
from datainf_ray.model.loss import Reduction, chunked_losses, class_losses, token_losses
from datainf_ray.model.probe import find_head, is_causal, reshapes_logits, standing_in
from datainf_ray.model.spread import place


class Batch(Protocol):
    """What a replica needs of a batch of b examples, s tokens long with padding; see `corpus.batches`."""

    input_ids: Tensor  # b × s
    attention_mask: Tensor  # b × s, 1 where there is a token
    position_ids: Tensor  # b × s
    token_type_ids: Tensor | None  # b × s
    labels: Tensor  # b × s token ids with -100 where there is no target; or b classes


@dataclass(frozen=True)
class Verdict:
    """How a replica takes its losses and gradients, and how that compares with plain autograd on single rows."""

    path: Literal["hooks", "one by one"]
    cosine: float | None  # the smallest over blocks, between a row's gradient in a batch and alone; None: not measured
    reason: str | None  # why not by hooks
    loss: Literal["chunked", "whole"]
    loss_reason: str | None  # why from whole logits


class Replica:
    """A model in eval mode whose adapter's tensors are the blocks.

    `blocks` are in the order of the model's parameters; `path` is "hooks" or "one by one" (see `capture`), and `loss`
    "chunked" or "whole" (see `loss`). Both are the quick way unless `reason` or `whole` says why not. A reason is given
    when the replica is made and may be by `check`; assign one to take the plain way on purpose. `unmasked` says whether
    batches padded on the right go without a mask (see `probe`).

    `device` is where batches are expected and where losses and gradients come, wherever a block lies; `devices` has it
    first, and then the others that hold a part of the model. Not given, it is that of the first block.
    """

    def __init__(
        self, model: nn.Module, task: str, reduction: Reduction = "mean", device: torch.device | None = None
    ) -> None:
        self.model = model.eval()
        self.task, self.reduction = task, reduction
        self.parameters = name_blocks(model)
        self.blocks = tuple(Block(n, kind_of(model, p), tuple(p.shape)) for n, p in self.parameters.items())
        self.device = next(iter(self.parameters.values())).device if device is None else device
        places = [p.device for p in model.parameters() if not p.is_meta]  # meta: offloaded by accelerate
        self.devices = tuple(dict.fromkeys([self.device, *places]))
        # In float16 small gradients vanish on the way down; a power of two is undone without rounding.
        half = any(p.dtype == torch.float16 for p in model.parameters())
        self.scale = 1024.0 if half else 1.0
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(inspect.signature(base.forward).parameters)
        # RoBERTa and its kin derive positions from the padding themselves, and count from another number
        self._own_positions = any(hasattr(m, "create_position_ids_from_input_ids") for m in base.modules())
        self.reason = unsupported(model, self.parameters)
        self._capture = Capture(model, self.parameters) if self.reason is None else None
        self._head: nn.Linear | None = None
        self.unmasked = False
        self.whole: str | None = "a row has few classes, not a vocabulary for every token"
        if task == "causal-lm":
            head = find_head(base, self.parameters.values())
            if isinstance(head, str):
                self.whole = head
            else:
                self._head, self.whole = head, reshapes_logits(self._logits, head, self.device)
            self.unmasked = is_causal(self._logits if self.whole else self._hidden, self.device)
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @property
    def path(self) -> Literal["hooks", "one by one"]:
        return "hooks" if self.reason is None else "one by one"

    @property
    def device_name(self) -> str:
        """What computes, for a person: cpu, NVIDIA H100, 2 × NVIDIA H100."""
        if self.device.type != "cuda":
            return self.device.type
        name = torch.cuda.get_device_name(self.device)
        return name if len(self.devices) == 1 else f"{len(self.devices)} × {name}"

    @property
    def loss(self) -> Literal["chunked", "whole"]:
        return "chunked" if self.whole is None else "whole"

    def losses(self, batch: Batch, plain: bool = False) -> Tensor:
        """The b losses of a batch, float32 or wider, on `device`.

        `plain`: from whole logits and with a mask, whatever is known.
        """
        given: dict[str, Any] = {"input_ids": batch.input_ids}
        if batch.token_type_ids is not None and "token_type_ids" in self._takes:
            given["token_type_ids"] = batch.token_type_ids
        if plain or not self.unmasked or not bool(batch.attention_mask[:, 0].all()):
            given["attention_mask"] = batch.attention_mask
            if "position_ids" in self._takes and not self._own_positions:
                given["position_ids"] = batch.position_ids
        if self.task != "causal-lm":
            logits = self.model(**given).logits
            return class_losses(logits, batch.labels.to(logits.device)).to(self.device)
        if plain or self.whole is not None or self._head is None:
            logits = self._logits(**given)
            return token_losses(logits, batch.labels.to(logits.device), self.reduction).to(self.device)
        head = self._head
        there = head.weight.device  # the hidden states go to the head, which is larger than they are
        hidden, labels = self._hidden(**given).to(there), batch.labels.to(there)
        return chunked_losses(hidden, head.weight, head.bias, labels, self.reduction).to(self.device)

    def _logits(self, input_ids: Tensor, **given: Any) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False, **given).logits

    def _hidden(self, input_ids: Tensor, **given: Any) -> Tensor:
        """The states that the head is fed, b × s × h, times what the model multiplies its logits with."""
        assert self._head is not None
        with standing_in(self._head, lambda hidden: hidden):
            return self._logits(input_ids, **given)

    def gradients(self, batch: Batch, consume: Consume) -> Tensor:
        """The b losses of a batch; on the way, `consume(block, gradients, rows)` gets its gradients, all on `device`.

        By hooks a block comes once, with all b rows; one by one it comes for every row by itself. A block that a row's
        loss does not depend on may not come at all: its gradient is zero.
        """
        b = len(batch.input_ids)
        if self._capture is None or self.reason is not None:
            return torch.stack([self._alone(_row(batch, i), i, consume) for i in range(b)])
        with self._capture.into(consume, torch.arange(b, device=self.device), self.scale):
            losses = self.losses(batch)
            (losses.sum() * self.scale).backward()
        return losses.detach()

    def _alone(self, batch: Batch, position: int, consume: Consume, plain: bool = False) -> Tensor:
        """One example, by autograd on the blocks themselves: right for any layer, and slow."""
        blocks = list(self.parameters.items())
        for _, parameter in blocks:
            parameter.requires_grad_(True)
        try:
            loss = self.losses(batch, plain)[0]
            gradients = torch.autograd.grad(loss * self.scale, [p for _, p in blocks], allow_unused=True)
        finally:
            for _, parameter in blocks:
                parameter.requires_grad_(False)
        rows = torch.tensor([position], device=self.device)
        for (name, _), gradient in zip(blocks, gradients, strict=True):
            if gradient is not None:
                wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                consume(name, wide.reshape(1, -1).to(self.device) / self.scale, rows)
        return loss.detach()

    def check(self, batch: Batch | None) -> Verdict:
        """Compare the losses and gradients of a batch with plain autograd on each of its rows alone.

        Where they differ by more than rounding, the replica takes the plain forward pass (whole logits, with a mask)
        from then on, or if that is not it, one row at a time, or both; and says why. Without a batch nothing is
        compared, and the verdict is what was found when the replica was made.
        """
        if batch is None or (self.path == "one by one" and self.loss == "whole" and not self.unmasked):
            return self._verdict(None)
        exact = self._table(batch)
        put = _put_into(exact)
        losses = torch.stack([self._alone(_row(batch, i), i, put, plain=True) for i in range(len(batch.input_ids))])
        cosine, wrong = self._compare(batch, losses, exact)
        if wrong is not None and self.path == "hooks":
            spared = self.whole, self.unmasked
            self._plainly(wrong)
            cosine, still = self._compare(batch, losses, exact)
            if still is None:
                return self._verdict(cosine)
            (self.whole, self.unmasked), self.reason = spared, wrong
            cosine, wrong = self._compare(batch, losses, exact)
        if wrong is not None:
            self._plainly(wrong)
        return self._verdict(cosine)

    def _plainly(self, reason: str) -> None:
        """From now on the model's own forward pass, with all of its logits and a mask."""
        self.whole, self.unmasked = self.whole or reason, False

    def _verdict(self, cosine: float | None) -> Verdict:
        return Verdict(self.path, cosine, self.reason, self.loss, self.whole)

    def _table(self, batch: Batch) -> dict[str, Tensor]:
        return {b.name: torch.zeros(len(batch.input_ids), b.size, device=self.device) for b in self.blocks}

    def _compare(self, batch: Batch, losses: Tensor, exact: dict[str, Tensor]) -> tuple[float | None, str | None]:
        """The smallest cosine to the exact gradients, and what differs by more than rounding.

        What is wrong differs by its own size, so the bounds are wide: half precision rounds the same sums by some per
        cent.
        """
        got = self._table(batch)
        try:
            found = self.gradients(batch, _put_into(got))
        except CaptureError as error:
            return None, one_line(error)
        single = not any(p.dtype in (torch.float16, torch.bfloat16) for p in self.model.parameters())
        tolerance = 1e-2 if single else 0.5
        # a row that is not finite gets its status in the sweep
        off = ((found - losses).abs() / losses.abs().clamp(min=1))[losses.isfinite()]
        if not bool((off <= tolerance).all()):
            return None, f"the losses of a batch differ from those of its rows alone by {float(off.max()):.1%}"
        cosine = 1.0
        for name, right in exact.items():
            size = right.norm(dim=1).double()
            if not size.isfinite().all() or not (size > 0).any():
                continue  # a row without gradient has no direction
            error = (got[name] - right).norm(dim=1).double()
            # a row whose gradient is a billionth of its neighbour's is all rounding
            worst = (error / size.clamp(min=1e-6 * float(size.max()))).max()
            dots = torch.nn.functional.cosine_similarity(got[name].double(), right.double(), dim=1)
            cosine = min(cosine, float(dots[size > 1e-6 * size.max()].min()))
            if not worst <= tolerance:
                return cosine, f"the gradients of {name} differ from autograd's by {float(worst):.1%}"
        return cosine, None


def _put_into(table: dict[str, Tensor]) -> Consume:
    return lambda block, gradients, rows: table[block].index_copy_(0, rows, gradients.to(table[block].dtype))


@dataclass
class Rows:
    """A `Batch` and no more."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    labels: Tensor


def _row(batch: Batch, i: int) -> Rows:
    """One example of a batch, without its padding."""
    real = batch.attention_mask[i].bool()

    def cut(x: Tensor) -> Tensor:
        return x[i][real][None]

    types = None if batch.token_type_ids is None else cut(batch.token_type_ids)
    labels = batch.labels[i : i + 1] if batch.labels.ndim == 1 else cut(batch.labels)
    return Rows(cut(batch.input_ids), cut(batch.attention_mask), cut(batch.position_ids), types, labels)


def load_replica(
    model: ModelConfig,
    device: torch.device | str = "cpu",
    reduction: Reduction = "mean",
    *,
    devices: int = 1,
    device_map: Mapping[str, int | str | torch.device] | None = None,
    options: Options | None = None,
) -> Replica:
    """Base and adapter, loaded and checked: what the base's checkpoint lacks the adapter must bring.

    With more than one of `devices` the base is spread over the first so many CUDA devices (see `spread`), and `device`,
    where batches and gradients are, is the first of them. A `device_map` of one's own, by accelerate's rules, is taken
    instead; what it offloads is fetched again for every batch, and all of it is held until the batch is done. A store
    that they lie in is opened with `options`. Raises `RequestError` where base and adapter cannot be loaded, or where
    there are not so many GPUs.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    seen = torch.cuda.device_count() if device.type == "cuda" else 0
    if devices > 1 and seen < devices:
        raise RequestError(
            f"cluster.gpus_per_worker: {devices}: torch sees {seen} GPU{'s' * (seen != 1)} in the worker; use no more "
            "than its node has"
        )
    folder = adapter_folder(model, options)
    shapes = adapter_shapes(folder)
    adapter = peft_config(folder)
    labelled = model.task == "sequence-classification"
    config, base_folder = base_config(model, head_size(shapes) if labelled else None, True, options)
    extra: dict[str, Any] = {}
    if model.quantization is not None:
        if device.type != "cuda":
            raise RequestError(f"model.quantization: {model.quantization} needs a CUDA GPU; use null on {device.type}")
        from transformers import BitsAndBytesConfig

        four = model.quantization == "4bit"
        extra = {
            "quantization_config": BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four),
            "device_map": {"": device},
        }
    dtype: Any = getattr(torch, model.dtype) if model.dtype != "auto" else "auto"
    if model.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # half precision on a CPU is slow and gains nothing
    if device_map is None and devices > 1:
        device_map = _spread(model, config, dtype, devices)
    if device_map is not None:
        extra["device_map"] = dict(device_map)
    try:
        with quiet():
            base, info = model_class(model.task).from_pretrained(
                base_folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=model.trust_remote_code,
                **extra,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RequestError(f"model.base: {model.base}: cannot be loaded: {one_line(error)[:300]}") from None
    saved = tuple(adapter.modules_to_save or ()) + (HEADS if head_size(shapes) is not None else ())
    random = [key for key in info["missing_keys"] if not any(name in key.split(".") for name in saved)]
    if random:
        raise RequestError(
            f"model.base: {model.base}: its checkpoint has no {random[0]} (and {len(random) - 1} more), and the "
            "adapter does not bring it: random weights would be attributed"
        )
    if labelled and base.config.pad_token_id is None:
        base.config.pad_token_id = _padding(model)
    from peft import PeftModel

    if {"cpu", "disk"} & {*(device_map or {}).values()}:
        vars(base).pop("hf_device_map", None)  # where PEFT finds it, it spreads the model anew, adapter and all
    with quiet():
        wrapped = PeftModel.from_pretrained(base, folder, adapter_name=_ADAPTER, is_trainable=True)
        if device_map is not None:
            _fill_in(wrapped, folder, device)
    if model.quantization is None and device_map is None:
        wrapped = wrapped.to(device)
    return Replica(wrapped, model.task, reduction, device)


def _spread(model: ModelConfig, config: Any, dtype: torch.dtype | str, devices: int) -> dict[str, int]:
    """The base's device map for the first `devices` GPUs, by what is free there."""
    with quiet(), torch.device("meta"):
        base = model_class(model.task).from_config(copy.deepcopy(config), trust_remote_code=model.trust_remote_code)
    if isinstance(dtype, str):
        dtype = getattr(config, "dtype", None) or torch.float32  # the checkpoint's own
    free = [torch.cuda.mem_get_info(k)[0] for k in range(devices)]
    return place(base, free, dtype, model.quantization)


def _fill_in(wrapped: nn.Module, folder: str, device: torch.device) -> None:
    """Give the adapter's tensors their values where PEFT has put them on meta, beside weights that are offloaded.

    They stay on `device`, where accelerate lets offloaded modules compute.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    empty = False
    for module in wrapped.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter.is_meta:
                if getattr(getattr(module, "_hf_hook", None), "offload", False):
                    raise RequestError("device_map: a module that is trained as a whole cannot be offloaded")
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device)))
                empty = True
    if empty:
        set_peft_model_state_dict(wrapped, load_peft_weights(folder, device=str(device)), adapter_name=_ADAPTER)


def _padding(model: ModelConfig) -> int:
    """The id that decoders with a classification head look for to find a row's last token."""
    from datainf_ray.model.inspect import load_tokenizer

    tokenizer = load_tokenizer(model)
    for token in ("pad_token_id", "eos_token_id"):
        if tokenizer is not None and getattr(tokenizer, token, None) is not None:
            return getattr(tokenizer, token)
    raise RequestError(f"model.base: {model.base}: neither the model nor its tokenizer has a padding token")
