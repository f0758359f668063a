"""What the pages say: their links lead somewhere, and the commands and options that they show exist."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from datainf_ray.cli import app
from datainf_ray.config import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("datainf_ray/**/README.md"), *ROOT.glob("jobs/**/README.md")]
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def _anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub does it."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / path) if path else page
        assert there.exists(), path
        if anchor and there.suffix == ".md":
            assert anchor in _anchors(there), anchor


def _shown() -> list[str]:
    """Every command of ours in an indented block."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return [one.strip() for one in re.findall(r"^ {4}(?:\$ )?(datainf [^\n]*)$", text, re.MULTILINE)]


def test_every_command_that_the_readme_shows_can_be_typed() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert len(_shown()) > 10
    for line in _shown():
        words = shlex.split(line, comments=True)
        command = commands[words[1]]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        asked = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
        assert asked <= options, line
        keys = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "--set"]
        for part, _, name in (key.partition(".") for key in keys):
            field = RunConfig.model_fields[part]
            assert not name or name in field.annotation.model_fields, line  # type: ignore[union-attr]
