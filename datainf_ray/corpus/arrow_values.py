"""Arrow's columns as Python objects, one row's values at a time, whatever type they have."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa

from datainf_ray.corpus.records import Parsed, decode

_Convert = Callable[[Any], Any]


def parse_batch(batch: pa.RecordBatch, raw: Collection[str] = ()) -> Iterator[Parsed]:
    """The rows of a record batch. The bytes of columns `raw` are left as they are.

    Times are text; so are bytes, and those that are not UTF-8 come as lone surrogates. What the types arrow.json (Json
    in `datasets`) and arrow.uuid hold is what they mean, at any depth.
    """
    columns = [_values(x, name not in raw) for name, x in zip(batch.schema.names, batch.columns, strict=True)]
    for row in zip(*columns, strict=True):
        yield Parsed(dict(zip(batch.schema.names, row, strict=True)))


def check_batch(batch: pa.RecordBatch) -> None:
    """Raises ArrowInvalid where the batch points outside its own memory: Arrow's files hold offsets as they are used.

    Text that is not UTF-8 is no such mistake, so text is looked at as bytes.
    """
    for column in batch.columns:
        column.validate()
        column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes in place of text, at any depth, and without extensions."""
    plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    lists = {
        pa.types.is_list: pa.list_,
        pa.types.is_large_list: pa.large_list,
        pa.types.is_list_view: pa.list_view,
        pa.types.is_large_list_view: pa.large_list_view,
        pa.types.is_fixed_size_list: lambda field: pa.list_(field, kind.list_size),
    }
    for is_one, make in lists.items():
        if is_one(kind):
            return make(_field(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type), kind.keys_sorted)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    return _as_bytes(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else plain.get(kind, kind)


def _field(field: pa.Field) -> pa.Field:
    return field.with_type(_as_bytes(field.type))


def _values(column: pa.Array, top: bool = True) -> list[Any]:
    if pa.types.is_temporal(column.type):  # as Python objects they would depend on whether pandas is there
        column = column.cast(pa.string())
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(value) for value in column]
    convert = _converter(column.type, top)
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:  # the text itself, or somewhere within a list or a struct
        return decode(error.object)


def _converter(kind: pa.DataType, top: bool = True) -> _Convert | None:
    """What makes a value of this type, as pyarrow gives it, what it means; None where it is that already.

    Bytes are text where they are a column's values; within others they may be an image.
    """
    if isinstance(kind, pa.BaseExtensionType):
        known: dict[str, _Convert] = {"arrow.json": _from_json, "arrow.uuid": str}
        return known.get(kind.extension_name)
    if pa.types.is_dictionary(kind):
        return _converter(kind.value_type, top)
    if pa.types.is_struct(kind):
        parts = {field.name: made for field in kind if (made := _converter(field.type, False)) is not None}
        return _within(parts) if parts else None
    if pa.types.is_map(kind) or not hasattr(kind, "value_type"):
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
        return decode if top and (is_bytes or pa.types.is_fixed_size_binary(kind)) else None
    made = _converter(kind.value_type, False)
    return None if made is None else lambda value: [None if v is None else made(v) for v in _list(value)]


def _within(parts: dict[str, _Convert]) -> _Convert:
    def convert(value: Any) -> Any:
        if not isinstance(value, dict):  # text that is not UTF-8, in place of the struct that it stands in
            return value
        return {k: parts[k](v) if k in parts and v is not None else v for k, v in value.items()}

    return convert


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _from_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
