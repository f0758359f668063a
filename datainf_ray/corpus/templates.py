"""Jinja texts over a row's columns, where `columns` has one in place of a column's name.

Example: `Template("{{ instruction }}{% if input %}\\n\\n{{ input }}{% endif %}")`.

It is the part of Jinja that makes a text of values: output, if, for, set, tests, and the filters and methods below.
What is left out runs without a bound, repeats a text by a number, or draws at random. A text that grows too long and a
loop that runs too often are errors of the row that makes them so.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from datainf_ray.common.errors import one_line

LONGEST = 1 << 24  #: characters of what a row gives, and of any text on the way there
STEPS = 1_000_000  #: turns of all loops for one row
_DEEPEST, _LONGEST_SOURCE = 50, 100_000
_BITS = 4096  # of a number
_STEPS_LEFT = "steps left"  # no variable can be called so

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort",
    "string", "title", "tojson", "trim", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS = frozenset(
    ("capitalize", "count", "cycle", "endswith", "find", "get", "index", "isdigit", "items", "keys", "lower", "lstrip",
     "removeprefix", "removesuffix", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
     "values")
)  # fmt: skip
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For, nodes.Assign,
    nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.Filter, nodes.Test, nodes.Call, nodes.Concat, nodes.BinExpr, nodes.UnaryExpr, nodes.List,
    nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword,
)  # fmt: skip


class TemplateError(ValueError):
    """A text is no template, or a row cannot be put into it. One line."""


class Template:
    """A Jinja text; `names` are the columns that it uses. Raises `TemplateError` where it is none."""

    def __init__(self, source: str) -> None:
        if len(source) > _LONGEST_SOURCE:
            raise TemplateError(f"is longer than {_LONGEST_SOURCE:,} characters")
        environment = _environment()
        try:
            tree = environment.parse(source)
            _check(tree, 0)
            self.names = tuple(sorted(meta.find_undeclared_variables(tree) - {"range"}))
            self._template = environment.from_string(_Bounded().visit(tree))
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"is no Jinja text: {one_line(error.message).rstrip('.')}, in line {error.lineno}"
            ) from None
        except (RecursionError, SyntaxError, MemoryError):  # Python's compiler has limits of its own
            raise TemplateError("is no Jinja text: it is nested too deeply") from None

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for a row with these values; a name that is not among them is null.

        A null is false in a test, and nothing where it is printed. Raises `TemplateError`.
        """
        given = {name: values.get(name) for name in self.names}
        pieces, length = [], 0
        try:
            for piece in self._template.generate(given | {_STEPS_LEFT: [STEPS]}):
                length += len(piece)
                if length > LONGEST:
                    raise TemplateError(f"makes more than {LONGEST:,} characters")
                pieces.append(piece)
        except (TemplateError, MemoryError):
            raise
        except Exception as error:  # whatever a template makes of hostile values
            raise TemplateError(one_line(error)) from None
        return "".join(pieces)


def is_template(text: str) -> bool:
    """Whether this is a Jinja text rather than the name of a column."""
    return "{{" in text or "{%" in text


@functools.lru_cache(maxsize=64)
def template(source: str) -> Template:
    """The template of a text, made once."""
    return Template(source)


def _check(node: nodes.Node, depth: int) -> None:
    """Raises TemplateSyntaxError where a template has what is not available here."""
    what = type(node).__name__.lower()
    line = node.lineno or 1
    if depth > _DEEPEST:
        raise jinja2.TemplateSyntaxError("it is nested too deeply", line)
    known = isinstance(node, _NODES)
    if isinstance(node, nodes.For) and node.recursive:
        known, what = False, "a recursive loop"
    if isinstance(node, nodes.Call):
        of = node.node
        called = of.name if isinstance(of, nodes.Name) else of.attr if isinstance(of, nodes.Getattr) else "a value"
        known = called == "range" if isinstance(of, nodes.Name) else called in _METHODS
        what = f"{called}()"
    if not known:
        raise jinja2.TemplateSyntaxError(f"{what} is not available in columns", line)
    for child in node.iter_child_nodes():
        _check(child, depth + 1)


class _Bounded(NodeTransformer):
    """Puts a bound on every loop, and on every place where a text can grow."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "joined")


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Arithmetic that cannot make a giant of two small values."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int) and _size(value) * times > LONGEST:
                    raise TemplateError(f"makes more than {LONGEST:,} characters")
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _BITS:
            raise TemplateError("makes a number that is too large")
        if operator == "%" and isinstance(left, str):
            raise TemplateError("text % values is not available; write text ~ value")
        return _bounded(super().call_binop(context, operator, left, right))


@functools.cache
def _environment() -> _Sandbox:
    environment = _Sandbox(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, optimized=False, finalize=_printed
    )
    environment.globals = {"range": environment.globals["range"]}
    environment.filters = {name: _of_bounded(FILTERS[name]) for name in _FILTERS} | {
        "counted": _counted, "join": _join, "joined": _joined, "replace": _replace,
    }  # fmt: skip
    return environment


def _of_bounded(function: Any) -> Any:
    """A filter of Jinja's that looks at no value that is too large to be printed."""

    @functools.wraps(function)  # with the marks that say what Jinja gives it besides
    def bounded(*given: Any, **named: Any) -> Any:
        for value in given:
            if isinstance(value, str | list | tuple | dict | int):
                _bounded(value)
        return function(*given, **named)

    return bounded


def _printed(value: Any) -> Any:
    return "" if value is None else _bounded(value)


@jinja2.pass_context
def _counted(context: Any, values: Iterable[Any]) -> Iterator[Any]:
    left = context[_STEPS_LEFT]
    for value in values:
        left[0] -= 1
        if left[0] < 0:
            raise TemplateError(f"loops more than {STEPS:,} times")
        yield value


def _joined(values: list[Any]) -> str:
    """What `a ~ b` makes: as it would be printed."""
    return _join(["" if value is None else value for value in values])


def _join(values: Iterable[Any], separator: str = "") -> str:
    texts, length = [], 0
    for value in itertools.islice(values, STEPS + 1):
        texts.append(str(_bounded(value)))
        length += len(texts[-1]) + len(separator)
        if length > LONGEST or len(texts) > STEPS:
            raise TemplateError(f"makes more than {LONGEST:,} characters")
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(_bounded(text))
    found = text.count(old) if count is None else min(text.count(old), count)
    if len(text) + found * len(new) > LONGEST:
        raise TemplateError(f"makes more than {LONGEST:,} characters")
    return text.replace(old, new, -1 if count is None else count)


def _bounded(value: Any) -> Any:
    """The value. Raises `TemplateError` where it is, or would be printed as, more than `LONGEST` characters."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise TemplateError("makes a number that is too large")
    if not isinstance(value, str) or len(value) > LONGEST:
        _size(value)
    return value


def _size(value: Any) -> int:
    """About as many characters as the value is printed with. Raises `TemplateError` at more than `LONGEST`."""
    total, pending = 0, [value]
    while pending:
        one = pending.pop()
        if isinstance(one, jinja2.Undefined):
            str(one)  # which raises: in a list it would be printed
        total += len(one) if isinstance(one, str) else 1
        if isinstance(one, dict):
            pending.extend(itertools.chain.from_iterable(one.items()))
        elif isinstance(one, list | tuple):
            pending.extend(one)
        if total + len(pending) > LONGEST:
            raise TemplateError(f"makes more than {LONGEST:,} characters")
    return total
