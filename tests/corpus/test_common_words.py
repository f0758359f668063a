from __future__ import annotations

import math
import random

from datainf_ray.corpus.common_words import Phrases, Rarity, words_of


def _words(text: str) -> list[str]:
    return [word for word, _, _ in words_of(text)]


def test_words_are_of_one_case_and_know_their_places() -> None:
    text = "Don't STOP, Straße_2 北京です ½"
    found = list(words_of(text))
    assert [word for word, _, _ in found] == ["don", "t", "stop", "strasse_2", "北", "京", "で", "す", "½"]
    assert [text[start:stop] for _, start, stop in found][3] == "Straße_2"


def test_the_longest_common_sequences_are_those_of_a_plain_search() -> None:
    draw = random.Random(1)
    for _ in range(200):
        a, b = (" ".join(draw.choices("abcd", k=draw.randrange(30))) for _ in range(2))
        words, others = _words(a), _words(b)
        runs = {tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        want = {}
        for last in range(1, len(others) + 1):
            first = next((k for k in range(last) if tuple(others[k:last]) in runs), None)
            if first is not None:
                want[last] = first
        found = list(Phrases(a).common(b))
        assert {span.last: span.first for span in found} == want
        assert all(_words(b[span.start : span.stop]) == others[span.first : span.last] for span in found)
        best = Phrases(a).best(b)
        assert (best and best.last - best.first) == max((last - first for last, first in want.items()), default=None)


def test_rare_words_weigh_more_than_many_common_ones() -> None:
    texts = [f"the cat and the dog saw number {k}" for k in range(64)]
    texts[5] += " zebra"
    rarity = Rarity(texts)
    for word, having in (("the", 64), ("zebra", 1), ("5", 1)):
        assert rarity.weight(word) == math.floor(math.log2(64 / having))
    assert rarity.weight("nowhere") == 6
    best = Phrases("a zebra! And the cat and the dog saw").best("the cat and the dog saw a zebra", rarity)
    assert best is not None
    assert (best.first, best.last, best.weight) == (6, 8, 12)
    assert Phrases("nothing").best("else") is None
    assert Phrases("").best("") is None


def test_hostile_text_takes_time_and_memory_in_proportion() -> None:
    """The states of the automaton are counted: of n words there are at most 2n, and 3n ways from one to another."""
    draw = random.Random(0)
    hostile = ["a " * 20_000, "a b " * 10_000, " ".join(draw.choices("ab", k=20_000)), "x" * 10**6, "漢" * 20_000]
    for text in hostile:
        phrases = Phrases(text)
        count = len(_words(text))
        assert len(phrases._next) <= 2 * count + 1
        assert sum(map(len, phrases._next)) <= 3 * count + 1
        best = phrases.best(text)
        assert best is not None
        assert best.last - best.first == count
