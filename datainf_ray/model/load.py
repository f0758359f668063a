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
from datainf_ray.model.files import adapter_folder
from datainf_ray.model.inspect import ADAPTER_NAME, adapter_shapes, base_config, load_tokenizer, peft_config, quiet
from datainf_ray.model.objective import Objective, Reduction
from datainf_ray.model.replica import Replica
from datainf_ray.model.spread import place


def load_replica(
    model: ModelConfig,
    task: Objective,
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
            "cluster.gpus_per_worker",
            devices,
            f"torch sees {counted(seen, 'GPU')} in the worker",
            "use no more than its node has",
        )
    folder = adapter_folder(model, options)
    shapes = adapter_shapes(folder)
    peft_config(folder)  # raises where it is no adapter of ours
    config, base_folder = base_config(model, task.configure(shapes), True, options)
    extra: dict[str, Any] = {}
    if model.quantization is not None:
        if device.type != "cuda":
            raise RequestError(
                "model.quantization", model.quantization, "needs a CUDA GPU", f"use null on {device.type}"
            )
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
        device_map = _spread(model, task, config, dtype, devices)
    if device_map is not None:
        extra["device_map"] = dict(device_map)
    try:
        with quiet():
            base, info = task.model_class().from_pretrained(
                base_folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=model.trust_remote_code,
                use_safetensors=True,  # a pickle is not trusted
                **extra,
            )
    except Exception as error:  # no common type: what files, torch, safetensors and a model's own code raise
        raise RequestError("model.base", model.base, f"cannot be loaded: {one_line(error)[:300]}") from None
    brought = {key.removeprefix("base_model.model.") for key in shapes}
    random = [key for key in info["missing_keys"] if key not in brought]
    if random:
        raise RequestError(
            "model.base",
            model.base,
            f"its checkpoint has no {random[0]} (and {len(random) - 1} more), and the adapter does not bring it: "
            "random weights would be attributed",
        )
    task.complete(model, base, lambda: load_tokenizer(model, options))
    from peft import PeftModel

    if {"cpu", "disk"} & {*(device_map or {}).values()}:
        vars(base).pop("hf_device_map", None)  # where PEFT finds it, it spreads the model anew, adapter and all
    try:
        with quiet():
            wrapped = PeftModel.from_pretrained(base, folder, adapter_name=ADAPTER_NAME, is_trainable=True)
    except Exception as error:  # as above
        raise RequestError("model.adapter", model.adapter, f"cannot be loaded: {one_line(error)[:300]}") from None
    if device_map is not None:
        with quiet():
            _fill_in(wrapped, folder, device)
    if model.quantization is None and device_map is None:
        wrapped = wrapped.to(device)
    return Replica(wrapped, task, reduction, device)


def _spread(model: ModelConfig, task: Objective, config: Any, dtype: torch.dtype | str, devices: int) -> dict[str, int]:
    """The base's device map for the first `devices` GPUs, by what is free there."""
    with quiet(), torch.device("meta"):
        base = task.model_class().from_config(copy.deepcopy(config), trust_remote_code=model.trust_remote_code)
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
                    raise RequestError("device_map", None, "a module that is trained as a whole cannot be offloaded")
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device)))
                empty = True
    if empty:
        set_peft_model_state_dict(wrapped, load_peft_weights(folder, device=str(device)), adapter_name=ADAPTER_NAME)
