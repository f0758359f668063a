"""Base and adapter, loaded on one device or on several, and made a replica."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.common.words import counted
from datainf_ray.config import ModelConfig
from datainf_ray.model.adapter import Adapter
from datainf_ray.model.assemble import Assembly, UnusableBaseError, assemble
from datainf_ray.model.blocks import ADAPTER_NAME, choose_blocks
from datainf_ray.model.draws import DrawnReplica
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.objective import Objective, Reduction
from datainf_ray.model.quiet import quiet
from datainf_ray.model.replica import Replica
from datainf_ray.model.spread import place
from datainf_ray.model.states import StateReplica


def load_replica(
    model: ModelConfig,
    task: Objective,
    device: torch.device | str = "cpu",
    reduction: Reduction = "mean",
    *,
    devices: int = 1,
    device_map: Mapping[str, int | str | torch.device] | None = None,
    options: Options | None = None,
    states: bool = False,
) -> Replica:
    """Base and adapter, loaded and checked: what the base's checkpoint lacks the adapter must bring.

    With more than one of `devices` the base is spread over the first so many CUDA devices (see `spread`), and `device`,
    where batches and gradients are, is the first of them. A `device_map` of one's own, by accelerate's rules, is taken
    instead; what it offloads is fetched again for every batch, and all of it is held until the batch is done. A store
    that they lie in is opened with `options`. With `states` it gives hidden states in place of gradients (see
    `states`). Raises `RequestError` where base and adapter cannot be loaded, or where there are not so many GPUs.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    seen = torch.cuda.device_count() if device.type == "cuda" else 0
    if devices > 1 and seen < devices:
        raise RequestError(
            "cluster.gpus_per_worker",
            devices,
            f"torch sees {counted(seen, 'GPU')} in the worker",
            "use no more than its node has",
        )
    if task.load is not None:
        return _loaded_by_task(model, task, device, reduction, devices, options)
    found = assemble(model, task, options, weights=True)
    dtype: Any = getattr(torch, model.dtype) if model.dtype != "auto" else "auto"
    if model.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # half precision on a CPU is slow and gains nothing
    if device_map is None and devices > 1:
        device_map = _spread(model, found, dtype, devices)
    try:
        with quiet():
            base = found.load(
                dtype=dtype,
                trust_remote_code=model.trust_remote_code,
                **_quantized(model, device),
                **({} if device_map is None else {"device_map": dict(device_map)}),
            )
    except UnusableBaseError as error:
        raise RequestError("model.base", model.base, str(error)) from None
    task.complete(model, base, lambda: load_tokenizer(model, options))
    if found.adapter is None:
        loaded = base.requires_grad_(True)
    else:
        offloads = bool({"cpu", "disk"} & {*(device_map or {}).values()})
        loaded = _with_adapter(model, found.adapter, base, offloads, None if device_map is None else device)
    choose_blocks(loaded, model)
    if model.quantization is None and device_map is None:
        loaded = loaded.to(device)
    return (StateReplica if states else Replica)(loaded, task, reduction, device)


def _loaded_by_task(
    model: ModelConfig,
    task: Objective,
    device: torch.device,
    reduction: Reduction,
    devices: int,
    options: Options | None,
) -> Replica:
    """A replica of a model that is no transformers model, on one device."""
    assert task.load is not None
    if devices > 1:
        raise RequestError("cluster.gpus_per_worker", devices, f"task {model.task} takes one GPU a worker", "use 1")
    loaded = task.load(model, device, options)
    return (Replica if task.draws is None else DrawnReplica)(loaded, task, reduction, device)


def _quantized(model: ModelConfig, device: torch.device) -> dict[str, Any]:
    """What transformers is told of `model.quantization`."""
    if model.quantization is None:
        return {}
    if device.type != "cuda":
        raise RequestError("model.quantization", model.quantization, "needs a CUDA GPU", f"use null on {device.type}")
    from transformers import BitsAndBytesConfig

    four = model.quantization == "4bit"
    return {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four),
        "device_map": {"": device},
    }


def _with_adapter(
    model: ModelConfig, adapter: Adapter, base: nn.Module, offloads: bool, device: torch.device | None
) -> nn.Module:
    """The base in PEFT's layers, with the adapter's values; with a `device` also where the base lies on several."""
    from peft import PeftModel

    if offloads:
        vars(base).pop("hf_device_map", None)  # where PEFT finds it, it spreads the model anew, adapter and all
    where = None if device is None else str(device)
    try:
        with quiet():
            wrapped: nn.Module = PeftModel.from_pretrained(
                base, adapter.folder, adapter_name=ADAPTER_NAME, is_trainable=True, torch_device=where or "cpu"
            )
    except Exception as error:  # no common type: what files, torch, safetensors and peft raise
        raise RequestError("model.adapter", model.adapter, f"cannot be loaded: {one_line(error)[:300]}") from None
    if device is not None:
        with quiet():
            _fill_in(wrapped, adapter.folder, device)
    return wrapped


def _spread(model: ModelConfig, found: Assembly, dtype: torch.dtype | str, devices: int) -> dict[str, int]:
    """The base's device map for the first `devices` GPUs, by what is free there."""
    with quiet(), torch.device("meta"):
        base = found.model_class.from_config(copy.deepcopy(found.config), trust_remote_code=model.trust_remote_code)
    if isinstance(dtype, str):
        dtype = getattr(found.config, "dtype", None) or torch.float32  # the checkpoint's own
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
                    raise RequestError("device_map", None, "a module that is trained as a whole cannot be offloaded")
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device)))
                empty = True
    if empty:
        set_peft_model_state_dict(wrapped, load_peft_weights(folder, device=str(device)), adapter_name=ADAPTER_NAME)
