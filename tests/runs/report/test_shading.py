"""Tokens shaded by their shares: hostile text stays text, and the colours follow the signs and sizes."""

from __future__ import annotations

import re

import pytest

from datainf_ray.runs.report.shading import BLUE, DARKEST, RED, merged, over, shaded
from datainf_ray.runs.token_rows import TokenRow, TokenRows


def test_a_share_is_a_colour_and_a_token_is_text() -> None:
    html = str(shaded(["a", '<b onclick="x">', "&", " c"], [None, -2.0, 1.0, 0.0]))
    assert html == (
        f'a<span style="background:rgba({",".join(map(str, BLUE))},{DARKEST:.2f});border-radius:2px" '
        'title="-2.00e+00">&lt;b onclick=&#34;x&#34;&gt;</span>'
        f'<span style="background:rgba({",".join(map(str, RED))},{DARKEST / 2:.2f});border-radius:2px" '
        'title="+1.00e+00">&amp;</span> c'
    )
    assert str(shaded([], [])) == ""
    assert str(shaded(["<"], [0.0])) == "&lt;"


def test_a_character_of_several_tokens_has_the_sum_of_their_shares() -> None:
    assert list(merged(["n", "", "é", "", "x"], [None, 1.0, 2.0, 5.0, None])) == [("n", None), ("é", 3.0), ("x", 5.0)]


def row(**other: object) -> TokenRow:
    return TokenRow(
        **{
            "query": 0, "direction": "harmful", "rank": 1, "row": 7, "id": "<i>", "status": "ok", "detail": "",
            "influence": 3.0, "tokens": ["<script>", " b"], "shares": [None, 3.0],
        } | other
    )  # fmt: skip


@pytest.mark.parametrize("status", ["ok", "failed"])
def test_a_cell_is_escaped(status: str) -> None:
    one = row(status=status, detail="<u>", shares=[None, 3.0] if status == "ok" else [None, None])
    html = TokenRows([one])._repr_html_()
    assert {tag.split()[0] for tag in re.findall(r"<(/?\w[^>]*)>", html)} <= {"div", "/div", "b", "/b", "span", "/span"}
    assert "&lt;script&gt;" in html
    assert "&lt;i&gt;" in html


def test_in_words_the_strongest_tokens_come_first() -> None:
    one = row(tokens=["a", " b", "\n"], shares=[1.0, None, -2.0], influence=-1.0)
    assert str(one).splitlines() == [
        "query 0 · row 7 · <i> · harmful, rank 1 · influence -1 from 2 targets",
        "-2.000e+00  '\\\\n'",
        "+1.000e+00  'a'",
    ]
    assert row(direction="query", rank=None).heading == "query 0 itself, row 7 · <i> · v·r of +3 from 1 target"
    assert row(status="failed", detail="why").heading.endswith("failed: why")


def test_a_terminal_has_the_colour_over_its_own() -> None:
    assert over(1.0, 0.0) == over(-1.0, 0.0) == (24, 24, 24)
    assert over(1.0, 1.0) == RED
    assert over(-1.0, 1.0) == BLUE
