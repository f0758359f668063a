from __future__ import annotations

from typing import Any

import jinja2
import pytest

from datainf_ray.corpus import templates
from datainf_ray.corpus.templates import Template, TemplateError, is_template

ALPACA = "{{ instruction }}{% if input %}\n\n{{ input }}{% endif %}"

VALUES: dict[str, Any] = {
    "a": " xyz x ", "b": "bb", "l": ["c", "b"], "d": {"k": 1, "l": "ü<"}, "n": 3, "f": 1.5, "t": True,
    "dl": [{"k": 1}, {"k": 2}],
}  # fmt: skip
TEXTS = [
    "{{ a ~ b }}\n", "{{ l|join(', ') }}", "{{ a.strip()|upper }}", "{{ d.k }} {{ d['k'] }} {{ d.get('z', '?') }}",
    "{% set q = a|trim %}{{ q }}{{ q }}", "{{ l|map('upper')|join('-') }}", "{{ a|replace('x', 'yy') }}",
    "{{ a|replace('x', 'yy', 1) }}", "{{ 3 * n + 1 }} {{ n / 2 }} {{ 7 // n }} {{ 7 % n }} {{ n ** 2 }}",
    "{{ 'ja' if b else 'nein' }}", "{{ d|tojson }}", "{{ l }} {{ d }} {{ n }} {{ f }} {{ t }}", "{{ [a, b][1] }}",
    "{% for x in l %}{{ loop.index }}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}", "{% for x in l if x == 'c' %}{{ x }}{% endfor %}",
    "{{ l[0] }}{{ l[-1] }}{{ a[1:] }}", "{{ a is defined }}{{ b is none }}", "{{ dl|map(attribute='k')|list }}",
    "{{ dl|selectattr('k', 'equalto', 2)|list }}", "{# no #}{{ a }}", "{%- if a -%}  {{ a }}  {%- endif -%}",
    "{{ l|sort(reverse=true)|first }}", "{{ 'x' * n }}{{ a + b }}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "a { b } c\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_what_jinja_makes_of_it(text: str) -> None:
    assert Template(text).render(VALUES) == jinja2.Template(text, keep_trailing_newline=True).render(VALUES)


def test_alpacas_prompts() -> None:
    def prompt(instruction: str, input: str | None) -> str:
        return instruction + (f"\n\n{input}" if input else "")

    template = Template(ALPACA)
    assert template.names == ("input", "instruction")
    for given in ({"instruction": "a", "input": "b"}, {"instruction": "a", "input": ""}):
        assert template.render(given) == prompt(**given)
    # A null, and what a JSON line leaves out, is false in a test and nothing in print.
    assert template.render({"instruction": "a", "input": None}) == template.render({"instruction": "a"}) == "a"
    assert Template("<{{ a }}|{{ a ~ 'x' }}>").render({"a": None}) == "<|x>"


def test_only_names_that_the_row_must_have_are_columns() -> None:
    text = "{% set x = a %}{% for y in b %}{{ x }}{{ y.z }}{{ loop.index }}{% endfor %}{{ range(2)|list }}{{ true }}"
    assert Template(text).names == ("a", "b")


@pytest.mark.parametrize(("text", "is_one"), [("{{ a }}", True), ("{% if a %}b{% endif %}", True), ("a.b", False),
                                              ("{a}", False)])  # fmt: skip
def test_which_texts_are_templates(text: str, is_one: bool) -> None:
    assert is_template(text) is is_one


REFUSED = {
    "{{ a": "is no Jinja text: unexpected end of template",
    "{% if %}": "is no Jinja text: Expected an expression",
    "a\n{{ a|format(1) }}": "No filter named 'format', in line 2",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) }}{% endmacro %}{{ f(99) }}": "macro is not available in columns",
    "{% for x in l recursive %}{{ loop(l) }}{% endfor %}": "a recursive loop is not available in columns",
    "{% set x %}{{ a }}{% endset %}": "assignblock is not available",
    "{% include 'x' %}": "include is not available", "{% import 'x' as y %}": "import is not available",
    "{{ a.format(1) }}": "format() is not available", "{{ a.ljust(10 ** 10) }}": "ljust() is not available",
    "{{ lipsum() }}": "lipsum() is not available", "{{ l|random }}": "No filter named 'random'",
    "{{ (a.upper)() }}x{{ a.upper()() }}": "a value() is not available",
    "{{ " + "(" * 500 + "a" + ")" * 500 + " }}": "it is nested too deeply",
    "{{ " + "-" * 5000 + "n }}": "it is nested too deeply",
    "{% if true %}" * 60 + "{% endif %}" * 60: "it is nested too deeply",
    "{% for a in [[a, a]] %}" * 25 + "{{ a }}" + "{% endfor %}" * 25: "it is nested too deeply",
    "a" * 100_001: "is longer than 100,000 characters",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_template_says_why(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


#: What would take all of the memory, or an hour.
BLOWN_UP = {
    "{{ 'x' * 10 ** 10 }}": "makes more than 2,097,152 characters",
    "{{ 10 ** 10 * 'x' }}": "makes more than", "{{ [a] * 10 ** 9 }}": "makes more than",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "loops more than 1,000,000 times",
    "{% for i in range(20) %}" * 6 + "x" + "{% endfor %}" * 6: "loops more than",
    "{% for i in range(99999) %}{{ long }}{% endfor %}": "makes more than",
    "{{ 9 ** 387420489 }}": "makes a number that is too large",
    "{% set n = n * n %}" * 60: "makes a number that is too large",
    "{{ '%999999999s' % a }}": "text % values is not available",
    "{% set a = a ~ a %}" * 60: "makes more than", "{% set a = a + a %}" * 60: "makes more than",
    "{% set a = [a, a] %}" * 60 + "{{ a }}": "makes more than",
    "{% set a = [a, a] %}" * 60 + "{{ a|string }}": "makes more than",
    "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a|tojson }}": "makes more than",
    "{% set a = [a, a] %}" * 60 + "{{ [a]|join }}": "makes more than",
    "{% set a = [a, a] %}" * 60 + "{{ [a]|map('string')|list }}": "makes more than",
    "{{ range(99999)|join(range(99999)|join) }}": "makes more than",
    "{{ long|replace('', long) }}": "makes more than",
    "{{ long|replace('x', long) }}": "makes more than",
}  # fmt: skip


@pytest.mark.parametrize("text", BLOWN_UP)
def test_a_text_that_would_blow_up_costs_its_row_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LONGEST", 1 << 21)  # sooner than it would be
    template = Template(text)
    with pytest.raises(TemplateError, match=BLOWN_UP[text]):
        template.render(VALUES | {"long": "x" * 1_000_000})
    assert Template("{{ a }}").render(VALUES) == VALUES["a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ a.__class__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ a['__class__']['__mro__'] }}", "is unsafe"),
        ("{{ l|map(attribute='__class__')|list }}", "is unsafe"),
        ("{{ dl|map(attribute='z')|list }}", "has no attribute 'z'"),
        ("{{ d.zzz }}", "'dict object' has no attribute 'zzz'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ a + n }}", "concatenate|unsupported"),
        ("{{ l|map('ljust', 9)|list }}", "No filter named 'ljust'"),
    ],
)
def test_what_a_row_does_not_have_is_its_error(text: str, says: str) -> None:
    template = Template(text)
    with pytest.raises(TemplateError, match=says):
        template.render(VALUES)
