"""Base and adapter put together without weights: which class of model it is, how many tokens, which tensors are blocks.

The driver does this to find in seconds what does not fit, and a worker to know what to load. An adapter fits by the
names that its tensors have after PEFT's own conversion, which knows adapters of earlier versions of a model's layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.model.adapter import Adapter, read_adapter
from datainf_ray.model.blocks import ADAPTER_NAME, PREFIX, choose_blocks
from datainf_ray.model.files import local_folder
from datainf_ray.model.objective import Objective
from datainf_ray.model.quiet import quiet

#: What PEFT puts into the name of a base's tensor.
_WRAPPERS = ("modules_to_save", "original_module", "base_layer", ADAPTER_NAME)
#: Their starts are not looked for in the base's weights, which are not there; `mica` also says what is trained.
_KEPT_STARTS = ("mica",)


@dataclass(frozen=True)
class Assembly:
    """A base and its adapter, if it has one, on the meta device."""

    adapter: Adapter | None
    config: Any  #: the base's transformers configuration
    folder: str  #: of the base, here; or its hub id
    model_class: Any  #: what loads the base
    base_class: Any  #: what the base then is
    rows: int | None  #: to how many tokens the base's embeddings are brought; None: as they are
    model: nn.Module  #: what takes a gradient are the blocks
    base_parameters: int
    facts: dict[str, Any] = field(default_factory=dict)  #: the task's own

    def load(self, **settings: Any) -> nn.Module:
        """The base with its weights, in `settings` as transformers' from_pretrained takes them.

        Raises `UnusableBaseError` where it cannot be loaded, or lacks weights that the adapter does not bring.
        """
        try:
            base, info = self.model_class.from_pretrained(
                self.folder,
                config=copy.deepcopy(self.config),
                output_loading_info=True,
                use_safetensors=True,  # a pickle is not trusted
                **settings,
            )
        except Exception as error:  # no common type: what files, torch, safetensors and a model's own code raise
            raise UnusableBaseError(f"cannot be loaded: {one_line(error)[:300]}") from None
        self._must_be_complete(info)
        if self.rows is not None:
            base.resize_token_embeddings(self.rows, mean_resizing=False)  # the adapter brings the new ones
        loaded: nn.Module = base
        return loaded

    def require_complete(self, checkpoint: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `UnusableBaseError` where a checkpoint with tensors of these shapes lacks what `load` needs.

        A quantized one is left to the worker: its tensors are others than the model's.
        """
        if getattr(self.config, "quantization_config", None) is not None:
            return
        state = {key: torch.empty(shape, device="meta") for key, shape in checkpoint.items()}
        _, info = self.base_class.from_pretrained(
            None,
            config=copy.deepcopy(self.config),
            state_dict=state,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        self._must_be_complete(info)
        for key, there, here in info["mismatched_keys"]:
            raise UnusableBaseError(
                f"its checkpoint has {key} as {_by(there)}, and by its config.json it is {_by(here)}"
            )

    def _must_be_complete(self, info: Mapping[str, Any]) -> None:
        """`info` is what transformers says of the tensors it found in a checkpoint."""
        brought = set() if self.adapter is None else {_plain(key) for key in self.adapter.shapes}
        random = [key for key in info["missing_keys"] if key not in brought]
        if random:
            raise UnusableBaseError(
                f"its checkpoint has no {random[0]} (and {len(random) - 1} more), and the adapter does not bring it: "
                "random weights would be attributed"
            )


class UnusableBaseError(Exception):
    """Why a base cannot be used."""


class _Misfit(Exception):
    """Why an adapter does not fit a base."""


def assemble(model: ModelConfig, task: Objective, options: Options | None = None, weights: bool = False) -> Assembly:
    """Find the class of model that the adapter fits, and put the two together on the meta device.

    With `weights` the base's weights are fetched, too. Raises `RequestError` where the two do not fit.
    """
    adapter = read_adapter(model, options)
    config, folder = base_config(model, task.configure({} if adapter is None else adapter.shapes), weights, options)
    facts = task.facts(model, config)  # raises where such a model is none of the task's
    first: str | None = None
    for model_class, own in _candidates(task, config):
        try:
            with quiet():
                found = _put_together(model, adapter, model_class, own, folder)
        except _Misfit as error:
            first = first or str(error)
            continue
        return replace(found, facts=facts)
    raise RequestError("model.adapter", model.adapter, f"does not fit the base {model.base}: {first}")


def base_config(
    model: ModelConfig, settings: dict[str, Any], weights: bool = False, options: Options | None = None
) -> tuple[Any, str]:
    """The base model's transformers configuration, with `settings`, and the folder (or hub id) it was read from."""
    from transformers import AutoConfig

    folder = local_folder(model.base, "model.base", weights, options)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **settings)
    except Exception as error:  # OSError, ValueError, KeyError and what remote code raises: none of it can be loaded
        raise RequestError("model.base", model.base, f"cannot be loaded: {one_line(error)[:300]}") from None
    return config, folder


def _candidates(task: Objective, config: Any) -> Iterator[tuple[Any, Any]]:
    """Classes of model that an adapter may be made for, each with its configuration, the task's own first.

    A model of images and texts has up to three: with all of its parts, its part for texts as transformers' language
    models, and that part of the configuration alone.
    """
    import transformers

    first = task.model_class()
    yield first, config
    if first is transformers.AutoModelForCausalLM and config.get_text_config() is not config:
        yield transformers.AutoModelForImageTextToText, config
        yield first, config.get_text_config()


def _put_together(model: ModelConfig, adapter: Adapter | None, model_class: Any, config: Any, folder: str) -> Assembly:
    trusted = model.trust_remote_code
    try:
        with torch.device("meta"):
            base = model_class.from_config(copy.deepcopy(config), trust_remote_code=trusted)
            base_class = type(base)
            rows = None if adapter is None else _rows_of(base, adapter)
            if rows is not None:
                base.resize_token_embeddings(rows, mean_resizing=False)
            parameters = sum(p.numel() for p in base.parameters())
            wrapped = base.requires_grad_(True) if adapter is None else _wrapped(base, adapter)
    except _Misfit:
        raise
    except Exception as error:  # peft says ValueError for most misfits, torch and transformers have their own
        kind = "" if adapter is None or adapter.kind == "LORA" else f"as {adapter.kind}, "
        raise _Misfit(f"{kind}{one_line(error)[:300]}") from None
    if adapter is not None:
        _must_fit(wrapped, adapter)
    choose_blocks(wrapped, model)
    return Assembly(adapter, config, folder, model_class, base_class, rows, wrapped, parameters)


def _wrapped(base: nn.Module, adapter: Adapter) -> nn.Module:
    from peft import get_peft_model

    config = copy.deepcopy(adapter.config)
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower() not in _KEPT_STARTS:
        config.init_lora_weights = True  # some read the base's weights, which are not here
    return get_peft_model(base, config, adapter_name=ADAPTER_NAME)


def _plain(key: str) -> str:
    """The base's own name of a tensor in the adapter's file."""
    return ".".join(part for part in key.removeprefix(PREFIX).split(".") if part not in _WRAPPERS)


def _rows_of(base: Any, adapter: Adapter) -> int | None:
    """How many tokens the base must have for an adapter of a model whose vocabulary was changed; None: as it has.

    Raises `_Misfit` where its tables contradict each other, or where tokens would have random embeddings.
    """
    try:
        table, head = base.get_input_embeddings(), base.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # a model that has none, or does not say
        return None
    has = getattr(table, "num_embeddings", None)
    names = {id(module): name for name, module in base.named_modules(remove_duplicate=False)}
    if has is None or id(table) not in names:
        return None
    of_table, of_head = names[id(table)], names.get(id(head)) if head is not None else None
    told = dict(_told_rows(adapter, of_table, of_head))
    last = max(_trained_tokens(adapter.config), default=-1)
    wanted = set(told.values()) or ({last + 1} if last >= has else set())
    if wanted <= {has}:
        return None
    if len(wanted) > 1:
        key, other = sorted(told)[:2]
        raise _Misfit(f"{key} has {told[key]:,} tokens and {other} {told[other]:,}")
    rows = wanted.pop()
    brought = {_plain(key) for key in adapter.shapes}
    new = set(range(has, rows)) - set(_trained_tokens(adapter.config))
    tied = head is None or head.weight is table.weight
    if (new and f"{of_table}.weight" not in brought and not (tied and f"{of_head}.weight" in brought)) or (
        rows > has and not tied and f"{of_head}.weight" not in brought
    ):
        raise _Misfit(
            f"it was made for {rows:,} tokens, the base has {has:,}, and it does not bring what the new ones have "
            "(PEFT saves that with save_embedding_layers=True)"
        )
    return rows


def _told_rows(adapter: Adapter, table: str, head: str | None) -> Iterator[tuple[str, int]]:
    """The adapter's tensors that have a row or a column for every token, and how many those are."""
    ends = {table.rpartition(".")[2]: "lora_embedding_A", (head or table).rpartition(".")[2]: "lora_B"}
    for key, shape in adapter.shapes.items():
        parts = _plain(key).split(".")
        if len(shape) != 2:
            continue
        if parts[-1] == "weight" and parts[-2:-1] and parts[-2] in ends:
            yield key, shape[0]
        elif parts[-1] == "lora_embedding_A" and parts[-2] in ends:
            yield key, shape[1]
        elif parts[-2:] == ["lora_B", "weight"] and parts[-3] == (head or "").rpartition(".")[2]:
            yield key, shape[0]


def _trained_tokens(config: Any) -> tuple[int, ...]:
    """The tokens that are trained one by one."""
    found = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or ()
    lists = found.values() if isinstance(found, Mapping) else [found]
    return tuple(int(k) for indices in lists for k in indices)


def _must_fit(wrapped: nn.Module, adapter: Adapter) -> None:
    """Every tensor of the adapter's file has its place and its shape in the model, and every trained one is there."""
    places = wrapped.state_dict()
    found = _converted(wrapped, adapter)
    names: dict[int, list[str]] = {}
    for name, parameter in wrapped.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    for same in sorted(names.values()):
        if not found.keys() & set(same):
            raise _Misfit(f"its file has no {_filed(same[0])}")
    known = {_plain(place) for place in places}
    for name, tensor in found.items():
        if name not in places and _plain(name) in known:
            continue  # of a table that was saved whole and resized, PEFT has saved everything, and some of it twice
        if name not in places:
            raise _Misfit(f"the base has no place for {_filed(name)}")
        if tensor.shape != places[name].shape:
            there, here = _by(tensor.shape), _by(places[name].shape)
            raise _Misfit(f"{_filed(name)} is {there} in the adapter and {here} in the base")


def _converted(wrapped: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors, on meta, by the names under which PEFT would load them."""
    from peft import set_peft_model_state_dict

    state = {key: torch.empty(shape, device="meta") for key, shape in adapter.shapes.items()}
    taken: dict[str, Tensor] = {}

    def take(found: Mapping[str, Tensor], *args: Any, **settings: Any) -> Any:
        taken.update(found)
        return nn.modules.module._IncompatibleKeys([], [])

    vars(wrapped)["load_state_dict"] = take
    try:
        set_peft_model_state_dict(wrapped, state, adapter_name=ADAPTER_NAME)
    except KeyError as error:  # of a module that is saved whole, or of tokens: its tensor is not in the file
        raise _Misfit(f"its file has no {error.args[0]}") from None
    except Exception as error:  # what the conversion of one architecture's layers into another's raises
        raise _Misfit(one_line(error)[:300]) from None
    finally:
        del vars(wrapped)["load_state_dict"]
    return taken


def _filed(name: str) -> str:
    """The name in the adapter's file of a tensor of the model."""
    return ".".join(part for part in name.split(".") if part != ADAPTER_NAME)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
