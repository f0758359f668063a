from __future__ import annotations

import json

from datainf_ray.corpus.passages import ROW_BYTES, Passage, as_json, clean, from_json, pair, room_for, shares, shortened


def test_each_gets_what_it_wants_or_an_equal_part() -> None:
    assert shares([5, 100, 100], 65) == [5, 30, 30]
    assert shares([5, 6], 65) == [5, 6]
    assert shares([], 10) == []
    assert sum(shares([9, 9, 9], 10)) <= 10


def test_a_long_text_loses_its_middle_between_characters_and_says_how_much() -> None:
    text = "begin " + "漢🙂é" * 9000 + " end"
    passages = pair("short", text)
    first, second = shortened(passages, 1000)
    assert first == passages[0]
    assert second.answer
    head, tail = second.text.split(f" […{second.cut:,} characters…] ")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) + second.cut == len(text)
    assert 980 < len((first.text + head + tail).encode()) <= 1000
    assert shortened(passages, 10**6) == passages


def test_what_was_cut_is_cut_further_as_if_it_had_been_whole() -> None:
    text = "".join(map(str, range(20_000)))
    whole = [Passage("text", text)]
    twice = shortened(shortened(whole, 10_000), 500)
    assert twice == shortened(whole, 500)
    assert twice[0].cut == len(text) - 500


def test_passages_come_back_from_json_whatever_they_hold() -> None:
    passages = clean([Passage("user", '<script>"\n\x00', cut=3), Passage("r\ud800", "half \ud83d", answer=True)])
    text = as_json(passages)
    text.encode()
    assert from_json(text) == passages == [Passage("user", '<script>"\n\x00', cut=3), Passage("r?", "half ?", True)]
    assert json.loads(text)[1] == {"role": "r?", "text": "half ?", "answer": True}
    assert from_json(None) == from_json("") == []


def test_many_rows_have_less_room_each() -> None:
    assert room_for(0) == room_for(1) == room_for(200) == ROW_BYTES == 65536
    assert room_for(20_000) == 6710
    assert room_for(10**9) == 256
