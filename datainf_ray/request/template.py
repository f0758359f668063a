"""The chat template that a request names, and the day that is today for it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import jinja2

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.regular import local_path, regular, sought
from datainf_ray.common.storage import reason, store_of
from datainf_ray.config import RunConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.corpus.talks import is_talk
from datainf_ray.corpus.today import KEY, asks_today, parsed
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.record import RUN_FILE, read_record

_LONGEST = 1 << 20  # characters of a template
_REMEDY = "name a file of Jinja text, as chat_template.jinja beside a model is"
_ROWS = 16  # of prompt and completion, looked at to see whether they are talks


def with_template(config: RunConfig) -> RunConfig:
    """The request with the text of `model.chat_template` in place of its file: a worker may not have that.

    Raises `RequestError` where there is no such file, or where it holds no template.
    """
    named = config.model.chat_template
    key = "model.chat_template"
    if named is None or _is_text(named):
        _check(named, named, key)
        return config
    try:
        if (local := local_path(named)) is not None:
            regular(local, key)
        fs, path = store_of(named, config.storage_options)
        with fs.open(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read(_LONGEST + 1)
    except RequestError:
        raise
    except FileNotFoundError:
        raise RequestError(key, named, "no such file", sought(named) or _REMEDY) from None
    except IsADirectoryError:
        raise RequestError(key, named, "is a folder", _REMEDY) from None
    except Exception as error:  # every storage library has its own classes; or it is not UTF-8
        raise RequestError(key, named, f"cannot be read: {reason(error)}") from None
    if len(text) > _LONGEST:
        raise RequestError(key, named, f"holds more than {_LONGEST:,} characters", _REMEDY)
    if not _is_text(text):
        raise RequestError(key, named, "holds no Jinja template", _REMEDY)
    _check(text, named, key)
    return _changed(config, chat_template=text)


def with_day(config: RunConfig, tokenizer: Any, corpora: dict[str, Corpus], directory: RunDirectory) -> RunConfig:
    """The request with the day that is today for its chat template, where that asks for it.

    It is `model.chat_template_kwargs.date`; else the one of the run that `directory` has already; else today.
    """
    given = config.model.chat_template_kwargs.get(KEY)
    if not any(map(asks_today, _templates(config, tokenizer))) or not any(map(_are_talks, corpora.values())):
        return config
    if given is not None:
        return config
    day = _day_of(directory) or datetime.now().date().isoformat()
    return _changed(config, chat_template_kwargs={**config.model.chat_template_kwargs, KEY: day})


def _check(text: str | None, named: Any, key: str) -> None:
    """Raises `RequestError` where a text is no template for transformers, which renders it without a talk."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        if text is not None:
            render_jinja_template([[]], chat_template=text)
    except jinja2.TemplateSyntaxError as error:
        problem = f"is no chat template: {one_line(error.message).rstrip('.')}, in line {error.lineno}"
        raise RequestError(key, named, problem) from None
    except Exception:  # a template may want a talk, and more besides
        return


def _is_text(named: str) -> bool:
    return "{{" in named or "{%" in named


def _changed(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=keys)})


def _templates(config: RunConfig, tokenizer: Any) -> list[str]:
    own = config.model.chat_template or getattr(tokenizer, "chat_template", None)
    return [text for text in (own.values() if isinstance(own, dict) else [own]) if isinstance(text, str)]


def _are_talks(corpus: Corpus) -> bool:
    """Whether a chat template has to do with the rows of a corpus."""
    if corpus.kind != "prompt-completion":
        return corpus.kind == "messages"
    reader = RowReader(corpus)
    try:
        rows = reader.read(rows_chunk(corpus, range(min(_ROWS, corpus.rows))))
    finally:
        reader.close()
    return any(is_talk(row.fields.get("prompt")) for row in rows)


def _day_of(directory: RunDirectory) -> str | None:
    """The day of the run that is there; None where there is none, or none that can be read."""
    try:
        model = read_record(directory).config["model"] if directory.exists(RUN_FILE) else {}
        return str(parsed(model["chat_template_kwargs"][KEY]))
    except Exception:  # what is wrong with the place is said when it is tried
        return None
