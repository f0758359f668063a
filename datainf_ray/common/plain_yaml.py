"""YAML in which everything has one meaning. What YAML 1.1 and 1.2 read differently is refused, not guessed."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_CHARACTERS = 4 * 2**20  #: of a text; a configuration has some hundred
_MOST_NODES = 100_000  # with those that aliases repeat
_MERGE = "tag:yaml.org,2002:merge"
_SHOWN = 60  # characters of the text that is wrong

#: Plain (unquoted) texts that are refused, and what to write instead.
_AMBIGUOUS = (
    (
        re.compile(r"(?:y|yes|n|no|on|off)", re.IGNORECASE),
        "is a text for some readers of YAML and true or false for others",
        "write true or false, or quote it",
    ),
    (
        re.compile(r"[-+]?0(?:[0-9_]+|[oO][0-7_]+)"),
        "is an octal number for some readers of YAML and not for others",
        "write it without the leading zero, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"),
        "is a number of base 60 for some readers of YAML and a text for others",
        "write it as a plain number, or quote it",
    ),
)


class PlainYAMLError(ValueError):
    """A text is not YAML, or not plain.

    `text` is what is wrong in it, `problem` and `remedy` are as in a `RequestError`, and `line` begins at 1.
    """

    def __init__(
        self, problem: str, remedy: str | None = None, line: int | None = None, text: str | None = None
    ) -> None:
        super().__init__(problem, remedy, line, text)
        self.problem, self.remedy, self.line, self.text = problem, remedy, line, text

    def told(self, secret: bool) -> str:
        """What is wrong, in words, with the text only where that can be no secret."""
        return self.problem if self.text is None else f"{'a value' if secret else repr(self.text)} {self.problem}"


def read_yaml(text: str) -> Any:
    """The value that `text` stands for. Raises `PlainYAMLError` where it is not YAML, or can be read in two ways.

    Every mapping has distinct texts as keys; merge keys (`<<`) are taken. A date is a text, and 1e-6 a number.
    """
    if len(text) > MOST_CHARACTERS:
        raise PlainYAMLError(f"is longer than {MOST_CHARACTERS:,} characters")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except PlainYAMLError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join((error.problem or error.context or "").split())[:200]
        raise PlainYAMLError(f"not YAML: {problem}", None, mark.line + 1 if mark else None) from None
    except RecursionError:
        raise PlainYAMLError("not YAML: it is nested too deeply") from None
    except Exception as error:  # ReaderError; and what !!int and the like raise for what is none
        raise PlainYAMLError(f"not YAML: {' '.join(str(error).split())[:200]}") from None


class _Loader(yaml.SafeLoader):
    """What `read_yaml` reads with. Nodes are looked at as they are composed: later, merged keys stand among the own."""

    def get_single_node(self) -> Node | None:
        node: Node | None = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        plain = self.peek_event().implicit[0]  # neither quoted nor tagged
        node: ScalarNode = super().compose_scalar_node(anchor)
        if plain:
            for form, problem, remedy in _AMBIGUOUS:
                if form.fullmatch(node.value):
                    raise _wrong(node, problem, remedy)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if key.tag != self.DEFAULT_SCALAR_TAG:
                raise _wrong(key, "is a key and no text", "quote it")
            if key.value in seen:
                raise _wrong(key, "stands twice as a key of the same mapping", "keep one of them")
            seen.add(key.value)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Hashable:
        try:
            found: Hashable = super().construct_object(node, deep)
        except (ValueError, IndexError, KeyError, TypeError) as error:  # `!!int many`
            if isinstance(error, PlainYAMLError):
                raise
            raise _wrong(node, f"is no {node.tag.rpartition(':')[2]}") from None
        return found


_Loader.yaml_implicit_resolvers = {}  # in place of YAML 1.1's
for _tag, _form, _first in (
    (_MERGE, r"<<", "<"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:[0-9][0-9_]*|0b[0-1_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",  # 1e-6 too, which is a text in YAML 1.1
        r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form})\Z"), list(_first))


def _wrong(node: Node, problem: str, remedy: str | None = None) -> PlainYAMLError:
    text = node.value if isinstance(node, ScalarNode) else "a mapping" if isinstance(node, MappingNode) else "a list"
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return PlainYAMLError(problem, remedy, node.start_mark.line + 1, shown)


def _size(node: Node, known: dict[int, int]) -> int:
    """The number of nodes below one, with those that aliases repeat: a few lines of them can stand for billions."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _wrong(node, "holds itself")
        return known[id(node)]
    known[id(node)], size = 0, 1
    if not isinstance(node, ScalarNode):
        for inner in node.value:
            size += sum(_size(one, known) for one in (inner if isinstance(inner, tuple) else (inner,)))
        if size > _MOST_NODES:
            raise PlainYAMLError(f"has more than {_MOST_NODES:,} values, by its aliases")
    known[id(node)] = size
    return size
