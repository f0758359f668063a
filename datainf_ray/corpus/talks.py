"""Talks in every shape that corpora have them in, as the lists of messages that chat templates take.

Three shapes: messages of role and content; ShareGPT's messages of from and value; and either as JSON texts, each
message or the whole list, as the Json type of `datasets` has them. What a message says beyond that is left to the
template as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from datainf_ray.common.keywords import checked
from datainf_ray.corpus.passages import Passage

Message = dict[str, Any]

#: What ShareGPT corpora call who speaks. Messages of role and content keep their roles: a template knows its own.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",  # LLaMA-Factory's: its value is the call, as JSON
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "tool": "tool",
    "system": "system",
}
#: Keys by which a message says whether it was trained on: OpenAI's and axolotl's weight, axolotl's train and training,
#: LLaMA-Factory's trainable and loss_weight, ms-swift's loss.
TRAINED = ("weight", "train", "training", "trainable", "loss", "loss_weight")
_PARTS = ("text", "thinking", "reasoning")  # kinds of parts that are text


def is_talk(value: Any) -> bool:
    """Whether a value is meant as a list of messages: `[{"role": "user", "content": "Hi"}]`."""
    return isinstance(value, list) and all(isinstance(message, (dict, str)) for message in value)


def messages_of(value: Any, role: str = "messages", system: str | None = None) -> list[Message]:
    """The messages that a row has in `role`, as templates take them; `system` is put before them.

    Without the nulls that Parquet and Arrow put where a struct has no value. Raises ValueError where one is no message,
    or has a part that a model of text does not take.

    Example: `messages_of([{"from": "human", "value": "Hi"}]) == [{"role": "user", "content": "Hi"}]`.
    """
    if not isinstance(value, list):
        raise ValueError(f"{role} is no list of messages")
    if not value:
        raise ValueError(f"{role} is empty")
    try:
        found = [_message(number, message) for number, message in enumerate(value)]
    except ValueError as error:
        raise error if role == "messages" else ValueError(f"{role}: {error}") from None
    return found if not system else [{"role": "system", "content": system}, *found]


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The tools that a row has: a list, or JSON of one, of dicts or of JSON of those; None where it has none.

    A tool without the envelope `{"type": "function", "function": …}`, as LLaMA-Factory's are, gets one. Raises
    ValueError where one is no tool.
    """
    value = _parsed(value, "tools")
    if not value:
        return None
    if not isinstance(value, list):
        raise ValueError("tools is no list")
    found = [_parsed(tool, f"tool {number}") for number, tool in enumerate(value)]
    for number, tool in enumerate(found):
        if not isinstance(tool, dict):
            raise ValueError(f"tool {number} is no object")
    return [_enveloped(tool) for tool in found]


def keywords_of(value: Any) -> dict[str, Any]:
    """What a row has for its template beside its messages, as TRL's column chat_template_kwargs. Raises ValueError."""
    value = _parsed(value, "chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("chat_template_kwargs is no object")
    return checked({name: each for name, each in value.items() if each is not None})


def trained(number: int, message: Mapping[str, Any]) -> bool | None:
    """Whether a message says that it was trained on, or that it was not; None where it says nothing.

    Raises ValueError where it says so of parts of it, or by a weight between.
    """
    if message.get("train_detail"):
        raise ValueError(f"message {number} has train_detail: targets within a message are not supported")
    said = {key: message[key] for key in TRAINED if message.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(f"message {number} has {key} {value!r}, and only 0 and 1, false and true are supported")
    return all(said.values()) if said else None


def without_nulls(value: Any) -> Any:
    """The same without the fields that are null, at any depth, in what is no list of plain values.

    In Parquet and Arrow all dicts of a column have the same fields, so that a field one of them lacks is null there:
    whether it was null before cannot be told any more.
    """
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def other_arguments(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of their tool calls in the other form: JSON for a dict, a dict for its JSON."""
    return [_called(message) if message.get("tool_calls") else message for message in messages]


def _message(number: int, given: Any) -> Message:
    message = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):  # then it is no message, which is said below
            message = json.loads(given)
    if isinstance(message, dict) and "from" in message and "role" not in message:
        message = _spoken(message)
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {number} is no object with a role and a content")
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("tool_calls"), (list, str)):
        calls = _parsed(message["tool_calls"], f"the tool_calls of message {number}")
        message["tool_calls"] = [_parsed(call, f"a tool call of message {number}") for call in calls or []]
        if not message["tool_calls"]:
            del message["tool_calls"]
    if message.get("content") is None and not message.get("tool_calls"):
        if "function_call" in message:
            raise ValueError(
                f"message {number} has function_call, the older form of tool_calls: write it as tool_calls"
            )
        raise ValueError(f"message {number} has no content")
    if message["role"] == "assistant" and not isinstance(message.get("content", ""), (str, list)):
        raise ValueError(f"message {number} has a content that is neither a text nor a list of parts")
    if isinstance(message.get("content"), list):
        message["content"] = [_part(number, part) for part in message["content"]]
    return message


def _spoken(message: Message) -> Message:
    """A message of ShareGPT's as one of role and content."""
    speaker, said = message.get("from"), message.get("value", message.get("content"))
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    calls = _calls(said) if speaker == "function_call" else None
    return {"role": role, **rest, **({"content": said} if calls is None else {"content": "", "tool_calls": calls})}


def _calls(said: Any) -> list[Message] | None:
    """The tool calls that are spelt out as JSON; None where it is none."""
    try:
        found = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        return None
    listed = found if isinstance(found, list) else [found]
    if not listed or not all(isinstance(call, dict) and "name" in call for call in listed):
        return None
    return [{"type": "function", "function": call} for call in listed]


def _part(number: int, part: Any) -> Any:
    """A part of a content, without nulls."""
    if not isinstance(part, dict):
        return part
    kind = part.get("type", "text" if isinstance(part.get("text"), str) else None)
    if kind not in _PARTS:
        raise ValueError(f"message {number} has a part of type {kind!r}, which a model of text does not take")
    return {key: value for key, value in part.items() if value is not None}


def _enveloped(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": tool} if "name" in tool and not {"type", "function"} & set(tool) else tool


def _called(message: Message) -> Message:
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and "arguments" in function:
            given = function["arguments"]
            other = _parsed(given, "arguments") if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            function = {**function, "arguments": other}
            call = {**call, "function": function} if "function" in call else function
        calls.append(call)
    return {**message, "tool_calls": calls}


def _parsed(value: Any, what: str) -> Any:
    """A value, or what it holds as JSON where it is text. Raises ValueError where that is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is text that is not JSON: {error}") from None


def said_in(messages: Any) -> list[Passage]:
    """What is said in a list of messages, of anything at all; what the assistant said last is the answer."""
    found = [Passage(str(message.get("role")), _line(message)) for message in _listed(messages)]
    last = max((i for i, one in enumerate(found) if one.role == "assistant"), default=len(found))
    return [one._replace(answer=number >= last) for number, one in enumerate(found)]


def said_in_pair(prompt: Any, completion: Any) -> list[Passage]:
    """What is said in a prompt and its completion, each a list of messages, or anything at all."""
    sides = (prompt, False), (completion, True)
    return [one._replace(answer=answer) for side, answer in sides for one in said_in(side)]


def text_of_talk(messages: Any) -> str:
    """All that is said in a list of messages, whoever says it; of anything at all."""
    return " ".join(map(_line, _listed(messages)))


def _listed(messages: Any) -> list[Message]:
    """Those of the messages that are any, each made one of role and content as far as it can be."""
    found = []
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        try:
            found.append(_message(number, message))
        except ValueError:  # a preview shows what it can
            found += [message] if isinstance(message, dict) else []
    return found


def _line(message: Message) -> str:
    """A message's text, and the names of the tools it calls; content may come in parts of several kinds."""
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    texts = ["" if content is None else str(content)]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        texts.append(f"{function.get('name')}({function.get('arguments')})" if isinstance(function, dict) else "")
    return " ".join(text for text in texts if text)
