"""What a person reads of other people's texts, and shares in words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import LENGTH, close, escaped, meant, percent, printable, visible
from datainf_ray.watch.bars import Bars
from datainf_ray.watch.lines import Lines

#: A text, what is read of it, and how it stands in an error.
TEXTS = {
    "plain #1": ("plain #1", "plain #1"),
    "größe/數據/بيانات/😀": ("größe/數據/بيانات/😀",) * 2,
    "\x1b[2J\x1b]0;title\x07a": ("[2J]0;titlea", "\\x1b[2J\\x1b]0;title\\x07a"),
    "\x9b31ma\x00b\x7f": ("31mab", "\\x9b31ma\\x00b\\x7f"),
    "a\r\nb\tc": ("a b c", "a\\r\\nb\\tc"),
    "\u202eabc\u2066d": ("abcd", "\\u202eabc\\u2066d"),
    "a\u200b\u2060\ufeffb": ("ab", "a\\u200b\\u2060\\ufeffb"),
    "a\u2028b\ud800": ("a b", "a\\u2028b\\ud800"),
    "a\U000e0041b": ("ab", "a\\U000e0041b"),
    "": ("", ""),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_hostile_text_is_read_without_what_is_not_seen(text: str) -> None:
    read, quoted = TEXTS[text]
    assert printable(text) == read
    assert escaped(text) == quoted
    assert escaped(quoted) == quoted
    assert str(RequestError("output", f"/tmp/{text}", "is bad")) == f"output: /tmp/{quoted}: is bad"
    for watcher in (Lines, Bars):
        shown = io.StringIO()
        watcher(Console(file=shown, width=300, soft_wrap=True)).say(f"row {text}")
        assert shown.getvalue() == f"row {quoted}\n"


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 10**6) == "x" * (LENGTH - 1) + "…"
    assert printable("x" * LENGTH) == "x" * LENGTH
    assert escaped("a" * 500 + "b" * 500, 20) == "a" * 10 + "…" + "b" * 9
    assert visible("a\n\tb\x1b\u202e") == "a\n\tb"
    error = RequestError("k" * 10**5, "v" * 10**5, "p" * 10**5, "r" * 10**5)
    assert len(str(error)) < 1300
    assert len(error.value) == 10**5
    assert len(meant("x", [f"{n}" * 100 for n in range(1000)])) < 1500
    assert len(close("a" * 10**4, ["a" * 10**4 + "b"]) or "") < 230


def test_an_emojis_name_in_a_row_is_no_emoji() -> None:
    for watcher in (Lines, Bars):
        shown = io.StringIO()
        watcher(Console(file=shown, width=300, soft_wrap=True)).say("a:warning:b [bold]")
        assert shown.getvalue() == "a:warning:b [bold]\n"


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    shares = {0: "0 %", 1: "100 %", 0.002: "0.2 %", 1 / 3: "33.3 %", 0.999999: "99.9 %", 1e-9: "1e-07 %", 0.01: "1 %"}
    assert {share: percent(share) for share in shares} == shares
