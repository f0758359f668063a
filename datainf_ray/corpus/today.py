"""Templates that ask for today's date, as Llama 3.2's do, pinned to one day: else no two days give the same tokens."""

from __future__ import annotations

import functools
import json
from datetime import date, datetime

from datainf_ray.common.errors import RequestError

ASKS = "strftime_now"  #: the function that templates call
KEY = "date"  #: in `model.chat_template_kwargs`: the day, as 2026-11-26

_LETTERS = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUvVwWxXyYzZ"


def asks_today(template: str) -> bool:
    """Whether a template's text depends on the day on which it is rendered."""
    return ASKS in template


@functools.lru_cache(64)
def pinned(template: str, day: str) -> str:
    """The template with `strftime_now` answering for `day` (2026-11-26), at midnight. Raises `RequestError`.

    The function becomes a macro of the template's own, so nothing outside of it changes. The line break behind it is
    one that Jinja takes away (trim_blocks), as transformers sets it.
    """
    if not asks_today(template):
        return template
    moment = datetime.combine(parsed(day), datetime.min.time())
    said = {f"%{letter}": moment.strftime(f"%{letter}") for letter in _LETTERS}
    said |= {f"%-{letter}": said[f"%{letter}"].lstrip("0 ") or "0" for letter in "dmHIMSyjU" if said[f"%{letter}"]}
    steps = "".join(f" | replace({json.dumps(what)}, {json.dumps(value)})" for what, value in said.items())
    hidden = ' | replace("%%", "\\u0000")', ' | replace("\\u0000", "%")'
    return f"{{% macro {ASKS}(format) %}}{{{{ format{hidden[0]}{steps}{hidden[1]} }}}}{{% endmacro %}}\n{template}"


def parsed(day: object) -> date:
    """The day that `model.chat_template_kwargs` names. Raises `RequestError`."""
    try:
        return date.fromisoformat(str(day))
    except ValueError:
        raise RequestError(
            f"model.chat_template_kwargs.{KEY}", str(day)[:60], "is no day", "an example is 2026-11-26"
        ) from None
