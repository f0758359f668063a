"""Chat templates that ask for today's date, and get the day of the run."""

from __future__ import annotations

from datetime import date

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chat import ChatTemplate
from datainf_ray.corpus.today import asks_today, pinned
from tests.corpus import chats
from tests.corpus.chats import TALKS, TEMPLATES

ASKING = [name for name in chats.STOCK if asks_today(TEMPLATES[name])]


@pytest.mark.parametrize("name", ASKING)
def test_a_pinned_template_is_the_template_of_that_day(name: str) -> None:
    tokenizer = chats.tokenizer()
    talk = TALKS["two turns"]
    found = []
    for _ in range(2):  # one of two is not cut by midnight
        today = date.today().isoformat()
        want = tokenizer.apply_chat_template(talk, chat_template=TEMPLATES[name], return_dict=True)["input_ids"]
        found.append(ChatTemplate(tokenizer, TEMPLATES[name], {"date": today}).encode(talk).ids == want)
    assert any(found)
    other = ChatTemplate(tokenizer, TEMPLATES[name], {"date": "2001-02-03"}).encode(talk)
    text = tokenizer.decode(other.ids)
    assert "03 Feb 2001" in text or "2001-02-03" in text
    assert len(other.spans) == 2


def test_every_directive_is_as_strftime_has_it() -> None:
    tokenizer = chats.tokenizer()
    day = date(2026, 2, 3)
    for directive in ("%d %b %Y", "%-d/%-m/%y", "%A, %B %d", "100%% %Y%%d", "%j %U %H:%M:%S", '"%F"'):
        template = "{{ strftime_now('" + directive + "') }}{% for m in messages %}{{ m.content }}{% endfor %}"
        made = tokenizer.apply_chat_template(
            [chats.user("!")], chat_template=pinned(template, day.isoformat()), tokenize=False
        )
        assert made == day.strftime(directive) + "!"


def test_nothing_else_of_a_template_changes() -> None:
    tokenizer = chats.tokenizer()
    for start in ("", "\n", "  ", "\n\n  {% set a = 1 %}\n", "{#- x -#}\n", "  {%- if true %} b{% endif %}\n"):
        template = start + "{% for m in messages %}{{ m.content }}{% endfor %}{{ strftime_now('%Y') if false }}"
        talk = TALKS["one turn"]
        plain = tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False)
        assert (
            tokenizer.apply_chat_template(talk, chat_template=pinned(template, "2026-01-01"), tokenize=False) == plain
        )


def test_a_template_that_does_not_ask_is_left_alone() -> None:
    assert pinned(TEMPLATES["qwen3"], "nonsense") == TEMPLATES["qwen3"]
    with pytest.raises(RequestError, match=r"^model.chat_template_kwargs.date: nonsense: is no day; an example"):
        pinned(TEMPLATES["llama3_2"], "nonsense")


def test_the_day_is_no_variable_of_a_template_that_asks_for_it() -> None:
    tokenizer = chats.tokenizer()
    ends = "{% if date is defined %}{{ date }}{% endif %}"
    for template, shown in ((TEMPLATES["llama3_2"] + ends, False), (TEMPLATES["qwen3"] + ends, True)):
        made = ChatTemplate(tokenizer, template, {"date": "2001-02-03"}).encode(TALKS["one turn"])
        assert tokenizer.decode(made.ids).endswith("2001-02-03") == shown
