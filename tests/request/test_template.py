"""A chat template of the request's own, and the day that is today for it: what makes a run this run."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import RunConfig, load_config
from datainf_ray.request.identity import difference
from datainf_ray.request.job import Job, prepare
from datainf_ray.request.understand import portable
from datainf_ray.runs.record import RUN_FILE
from datainf_ray.session.execute import _begun
from tests import tiny

PLAIN = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }} " + PLAIN


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Any]:
    model = tiny.save_model(tmp_path, "llama")
    for name in ("train", "queries"):
        rows = [
            {
                "name": f"{name}-{k}",
                "messages": [{"role": "user", "content": f"w{k}"}, {"role": "assistant", "content": "w2 w3"}],
            }
            for k in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


def asked(folder: Path, model: dict[str, Any], **keys: Any) -> RunConfig:
    return load_config(tiny.configuration(folder, model | keys, folder / "run"))


def prepared(folder: Path, model: dict[str, Any], **keys: Any) -> Job:
    job = prepare(asked(folder, model, **keys), writable=False)
    assert job.identity
    return job


def test_a_template_is_known_by_what_its_file_holds(tmp_path: Path, model: dict[str, Any]) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(PLAIN)
    job = prepared(tmp_path, model, chat_template=str(file))
    assert job.examples["train"][0].rule == "the assistant's turns, as the template renders them"
    assert job.config.model.chat_template == PLAIN  # which workers have, and later queries
    copy = tmp_path / "elsewhere.jinja"
    copy.write_text(PLAIN)
    assert prepared(tmp_path, model, chat_template=str(copy)).fingerprint == job.fingerprint
    assert prepared(tmp_path, model, chat_template=PLAIN).fingerprint == job.fingerprint
    with fsspec.open("memory://templates/t.jinja", "w") as remote:
        remote.write(PLAIN)
    assert prepared(tmp_path, model, chat_template="memory://templates/t.jinja").fingerprint == job.fingerprint
    file.write_text(PLAIN.replace("</s>", "<s>"))
    other = prepared(tmp_path, model, chat_template=str(file))
    assert difference(job.identity, other.identity) == "model.chat_template holds another template"
    assert difference(job.identity, job.identity) is None
    assert portable(asked(tmp_path, model, chat_template=str(copy))).model.chat_template == PLAIN


def test_a_template_that_is_none_is_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(
        RequestError, match=r"^model.chat_template: .*no.jinja: no such file; name a file of Jinja text"
    ):
        prepared(tmp_path, model, chat_template=str(tmp_path / "no.jinja"))
    with pytest.raises(RequestError, match=r"^model.chat_template: \S+: is a folder; name a file of Jinja text"):
        prepared(tmp_path, model, chat_template=str(tmp_path))
    (tmp_path / "long.jinja").write_text("{{ x }}" * 200_000)
    with pytest.raises(RequestError, match=r"long.jinja: holds more than 1,048,576 characters"):
        prepared(tmp_path, model, chat_template=str(tmp_path / "long.jinja"))
    (tmp_path / "open.jinja").write_text("{{ bos_token }}\n{% if x %}")
    for named in (str(tmp_path / "open.jinja"), "{{ bos_token }}\n{{ messages | nofilter }}"):
        with pytest.raises(RequestError, match=r"^model.chat_template: .*is no chat template: .*, in line 2$"):
            prepared(tmp_path, model, chat_template=named)
    (tmp_path / "empty.jinja").write_text("chatml")
    with pytest.raises(RequestError, match=r"empty.jinja: holds no Jinja template"):
        prepared(tmp_path, model, chat_template=str(tmp_path / "empty.jinja"))
    (tmp_path / "bytes.jinja").write_bytes(b"{{ \xff }}")
    with pytest.raises(RequestError, match=r"bytes.jinja: cannot be read"):
        prepared(tmp_path, model, chat_template=str(tmp_path / "bytes.jinja"))
    with pytest.raises(
        RequestError, match=r"^model.base: the tokenizer of .* has no chat template.*model.chat_template"
    ):
        prepared(tmp_path, model)
    for name in ("tokenize", "messages", "conversations", "self"):
        with pytest.raises(RequestError, match=rf"model.chat_template_kwargs: .*{name} is no variable of a template"):
            asked(tmp_path, model, chat_template_kwargs={name: False})


def test_variables_are_part_of_what_a_run_is(tmp_path: Path, model: dict[str, Any]) -> None:
    template = PLAIN + "{{ mood }}"
    one, other = (
        prepared(tmp_path, model, chat_template=template, chat_template_kwargs={"mood": w}) for w in ("w4", "w5")
    )
    assert one.fingerprint != other.fingerprint
    assert one.examples["train"][0].values["input_ids"] != other.examples["train"][0].values["input_ids"]


def test_today_is_the_day_on_which_the_run_began(tmp_path: Path, model: dict[str, Any]) -> None:
    first = prepared(tmp_path, model, chat_template=DATED)
    day = first.config.model.chat_template_kwargs["date"]
    assert abs((date.fromisoformat(day) - date.today()).days) <= 1
    given = prepared(tmp_path, model, chat_template=DATED, chat_template_kwargs={"date": "2001-02-03"})
    assert given.fingerprint != first.fingerprint
    assert (
        given.fingerprint
        == prepared(tmp_path, model, chat_template=DATED, chat_template_kwargs={"date": "2001-02-03"}).fingerprint
    )
    # A run that began on another day, and is taken up today.
    record = _begun(given).model_dump(mode="json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(record))
    again = prepare(asked(tmp_path, model, chat_template=DATED))  # which compares it with the run that is there
    assert again.config.model.chat_template_kwargs == {"date": "2001-02-03"}
    assert again.fingerprint == given.fingerprint
    with pytest.raises(RequestError, match=r"holds another run: model\.chat_template_kwargs is"):
        prepare(asked(tmp_path, model, chat_template=DATED, chat_template_kwargs={"date": "2001-02-04"}))
    with pytest.raises(RequestError, match=r"^model.chat_template_kwargs.date: tomorrow: is no day"):
        prepared(tmp_path, model, chat_template=DATED, chat_template_kwargs={"date": "tomorrow"})


def test_a_day_that_nobody_asks_for_is_no_part_of_a_run(tmp_path: Path, model: dict[str, Any]) -> None:
    assert prepared(tmp_path, model, chat_template=PLAIN).config.model.chat_template_kwargs == {}
    for name in ("train", "queries"):  # no talks: the template has nothing to do with them
        (tmp_path / f"{name}.jsonl").write_text('{"name": "a", "prompt": "w1", "completion": "w2"}\n')
    assert prepared(tmp_path, model, chat_template=DATED).config.model.chat_template_kwargs == {}
    talk = {
        "name": "a",
        "prompt": [{"role": "user", "content": "w1"}],
        "completion": [{"role": "assistant", "content": "w2"}],
    }
    (tmp_path / "queries.jsonl").write_text(json.dumps(talk) + "\n")
    assert "date" in prepared(tmp_path, model, chat_template=DATED).config.model.chat_template_kwargs
