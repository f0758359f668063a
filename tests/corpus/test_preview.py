from __future__ import annotations

import random
import string

import pytest

from datainf_ray.corpus.common_words import Rarity
from datainf_ray.corpus.passages import Passage
from datainf_ray.corpus.preview import LENGTH, finder, fold, fold_ends, fold_pair, line_of


def test_whitespace_is_folded_and_what_cannot_be_printed_removed() -> None:
    assert fold(" a\n\tb\u2028c \x1b[31mred\x00 \u202eevil\u202c \ud83d ") == "a b c [31mred evil"
    assert fold("漢字 🙂 ünïcödé") == "漢字 🙂 ünïcödé"


def test_long_text_is_cut() -> None:
    assert fold("x" * 300) == "x" * 300
    assert fold("x" * 301) == "x" * 299 + "…"
    assert fold(" \n" * 5000 + "end") == "end"


@pytest.mark.parametrize("length", [301, 1000, 100_000])
def test_both_ends_of_a_long_text_are_seen(length: int) -> None:
    folded = fold_ends("begin " + "x" * length + " the phrase that was appended")
    assert folded.startswith("begin xxx")
    assert folded.endswith("xxx the phrase that was appended")
    assert " … " in folded
    assert LENGTH - 5 < len(folded) <= LENGTH


def test_what_fits_is_whole_and_a_cut_line_is_cut_no_further() -> None:
    assert fold_ends("x" * 300) == "x" * 300
    once = fold_ends("word " * 1000)
    assert fold_ends(once) == once
    assert fold_ends(" \n" * 5000 + "end") == "end"
    assert fold_ends("a" + " \n" * 5000 + "b") == "a … b"
    assert fold_ends("x" * 50, 10) == "x" * 9 + "…"


def test_both_halves_of_a_pair_are_seen() -> None:
    assert fold_pair("a", "b") == "a ⟶ b"
    for first, second in (("p" * 1000, "c" * 1000), ("p", "c" * 1000), ("p" * 1000, "c")):
        folded = fold_pair(first, second)
        assert 290 < len(folded) <= 300
        assert "p" in folded
        assert "c" in folded
    assert fold_pair("p" * 1000, "the answer").endswith("ppp ⟶ the answer")
    # as 7,473 answers of a real corpus had it, of which the front showed 11 %
    for asked in ("How many?", "How many? " * 99):
        shown = fold_pair(asked, "First 3 and 4 make 7. " * 40 + "I hope this helps, dear friend!")
        assert shown.startswith("How many?")
        assert shown.endswith("dear friend!")
        assert " ⟶ First 3 and 4" in shown


def test_a_talk_says_who_speaks_and_shows_the_last_question_and_answer() -> None:
    talk = [
        Passage("system", "Be brief."),
        Passage("user", "One?"),
        Passage("assistant", "1."),
        Passage("user", "Two?"),
        Passage("assistant", "2.", answer=True),
        Passage("user", "Thanks", answer=True),
    ]
    assert line_of(talk) == ("system: Be brief. user: One? assistant: 1. user: Two? ⟶ assistant: 2. user: Thanks")
    long = [one._replace(text=f"{one.text} {'x' * 5000} end-of-{n}") for n, one in enumerate(talk)]
    line = line_of(long)
    assert len(line) <= LENGTH
    assert line.startswith("system: Be brief. xxx")
    for seen in ("user: Two? xxx", "end-of-3 ⟶ assistant: 2. xxx", "end-of-4 user: Thanks xxx"):
        assert seen in line
    assert line.endswith("end-of-5")
    assert line_of([Passage("assistant", "only", answer=True)]) == "assistant: only"
    assert line_of([]) == ""


def test_a_label_stands_before_what_it_is_of() -> None:
    assert (
        line_of([Passage("label", "neg"), Passage("text", "bad"), Passage("text_pair", "film")]) == "[neg] bad | film"
    )
    shown = line_of([Passage("label", "neg"), Passage("text", "bad " * 500 + "end"), Passage("text_pair", "film")])
    assert shown.startswith("[neg] bad bad")
    assert shown.endswith("bad end | film")


def test_what_a_long_answer_shares_with_the_query_is_shown_with_what_stands_around_it() -> None:
    filler = "and then we add the next number to the sum "
    others = [filler * 50, f"{filler * 50} done", "the sum and the number"]
    answer = f"{filler * 30} so, dear Captain Nemo, it is 12, {filler * 30}"
    query = "and then what do you call me? You are Captain Nemo of course"
    find = finder(query, Rarity([*others, answer, query]))
    folded = fold_ends(answer, find=find)
    assert len(folded) <= LENGTH
    assert folded.count(" … ") == 2
    assert "sum so, dear Captain Nemo, it is 12, and then" in folded
    assert folded.startswith("and then we add")
    assert folded.endswith("to the sum")
    # what one of the ends shows anyway needs no place of its own
    assert fold_ends(f"{filler * 60} Captain Nemo", find=find).count(" … ") == 1
    assert fold_ends(filler * 60, find=finder("nothing else", Rarity(others))).count(" … ") == 1
    long = f"{filler * 30} {query * 20} {filler * 30}"
    assert len(fold_ends(long, find=find)) <= LENGTH


def test_every_line_keeps_to_its_length_whatever_the_row_holds() -> None:
    draw = random.Random(0)
    signs = string.ascii_letters + " \n\t⟶…|[]:\u202e\ud800漢字🙂\x00"

    def text() -> str:
        return "".join(draw.choices(signs, k=draw.choice([0, 1, 10, 400, 5000])))

    for _ in range(300):
        roles = ["user", "assistant", "text", "label", "", "text_pair", text()[:80]]
        passages = [Passage(draw.choice(roles), text(), draw.random() < 0.3) for _ in range(draw.randrange(8))]
        query = text()
        for find in (None, finder(query, Rarity([query]))):
            for length in (40, 300):
                line = line_of(passages, length, find)
                assert len(line) <= length
                assert not set(line) & set("\n\t\x00\u202e\ud800")
