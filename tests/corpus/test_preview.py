from __future__ import annotations

from datainf_ray.corpus.preview import fold, fold_pair


def test_whitespace_is_folded_and_what_cannot_be_printed_removed():
    assert fold(" a\n\tb\u2028c \x1b[31mred\x00 \u202eevil\u202c \ud83d ") == "a b c [31mred evil"
    assert fold("漢字 🙂 ünïcödé") == "漢字 🙂 ünïcödé"


def test_long_text_is_cut():
    assert fold("x" * 300) == "x" * 300
    assert fold("x" * 301) == "x" * 299 + "…"
    assert fold(" \n" * 5000 + "end") == "end"


def test_both_halves_of_a_pair_are_seen():
    assert fold_pair("a", "b") == "a ⟶ b"
    for first, second in (("p" * 1000, "c" * 1000), ("p", "c" * 1000), ("p" * 1000, "c")):
        folded = fold_pair(first, second)
        assert len(folded) <= 300
        assert len(folded) > 290
        assert "p" in folded
        assert "c" in folded
    assert fold_pair("p" * 1000, "the answer").endswith("ppp… ⟶ the answer")
