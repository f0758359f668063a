"""Ask for what is wrong, in every way that we know of, and see that each answer is one line and status 2.

    python jobs/hostile.py [WORDS ...] [--all] [--table FILE]

The requests are those of hostile_cases.py and hostile_adapters.py; WORDS choose the cases whose name has one of them.
Each runs the `datainf` command on a small model, in a process and a folder of its own. An answer is right if it has
status 2, one line on standard error that says what, where and what would be right, no traceback, and every file as it
was; and if it comes before a worker would be started: whatever reaches the cluster is wrong here.

Prints the cases that are answered wrongly (with --all each one) with the status and the line, and counts; status 1 if
there is any. `--table` writes all of them as a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile_adapters
import hostile_cases
from hostile_cases import Case

_LONGEST = 60  # seconds that a case may take
_WIDEST = 600  # characters of a line
_REACHED = "WOULD HAVE STARTED A WORKER"


@dataclass(frozen=True)
class Answer:
    """What a command gave: its status, and all that it wrote to standard error; None: it did not end."""

    status: int | None
    text: str
    out: str

    @property
    def line(self) -> str:
        return self.text.strip().splitlines()[-1] if self.text.strip() else ""


def main() -> None:
    asked = _parser().parse_args()
    os.environ.update(hostile_cases.ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    _import_all()  # once: a case is a fork of this process
    known = [*hostile_cases.CASES, *hostile_adapters.CASES]
    cases = [c for c in known if not asked.words or any(word in c.name for word in asked.words)]
    told: list[tuple[Case, Answer, str | None]] = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        scene = hostile_cases.scene(Path(folder) / "scene")
        for number, case in enumerate(cases):
            place = Path(folder) / str(number)
            shutil.copytree(scene, place, symlinks=True)
            answer, problem = judged(case, place)
            told.append((case, answer, problem))
            if problem or asked.all:
                shown = answer.line.replace(str(place), "…")
                print(f"{'WRONG: ' + problem if problem else 'right'}\n    {case.name}\n    {answer.status}  {shown}")
            shutil.rmtree(place, ignore_errors=True)
    if asked.table:
        Path(asked.table).write_text(_table(told))
    wrong = sum(problem is not None for _, _, problem in told)
    print(f"{len(told)} wrong requests: {len(told) - wrong} answered by one line and their status, {wrong} not")
    sys.exit(1 if wrong else 0)


def judged(case: Case, place: Path) -> tuple[Answer, str | None]:
    """The answer to a case in its own folder, and what is wrong with it."""
    arguments = case.make(place)
    before = _files(place)
    answer = _ask([argument.replace("@", str(place)) for argument in arguments], place, case.joins)
    return answer, _problem(case, answer, place, before)


def _problem(case: Case, answer: Answer, place: Path, before: dict[str, str]) -> str | None:
    lines = answer.text.strip().splitlines()
    if answer.status is None:
        return f"no answer within {_LONGEST} s"
    if _REACHED in answer.text:
        return "it would have started a worker"
    if "Traceback" in answer.text + answer.out:
        return "a traceback"
    if answer.status != case.status:
        return f"status {answer.status}, not {case.status}"
    if len(lines) != 1 and not case.usage:  # of a wrong option: typer's lines
        return f"{len(lines)} lines"
    if len(answer.line.replace(str(place), "")) > _WIDEST:
        return f"a line of {len(answer.line)} characters"
    if any(not character.isprintable() for line in lines for character in line):
        return "characters that are not printable"
    if case.says and case.says not in answer.text:
        return f"the line does not say {case.says!r}"
    now = _files(place)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f"files were touched: {', '.join(changed[:3])}" if changed else None


def _ask(arguments: list[str], place: Path, joins: bool) -> Answer:
    """Run the command in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(arguments, place, joins, theirs))
    process.start()
    theirs.close()
    try:
        answer = Answer(*ours.recv()) if ours.poll(_LONGEST) else Answer(None, "", "")
    except EOFError:
        answer = Answer(process.exitcode, "the process died", "")
    if process.is_alive():
        process.kill() if answer.status is None else process.join(5)
    process.join(5)
    return answer


def _command(arguments: list[str], place: Path, joins: bool, pipe: Any) -> None:
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    out, err = io.StringIO(), io.StringIO()
    _start_nothing(joins=joins)
    sys.argv = ["datainf", *arguments]
    status: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        from datainf_ray.cli import main as command

        try:
            command()
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
    pipe.send((int(status), err.getvalue(), out.getvalue()))
    os._exit(0)


def _start_nothing(joins: bool) -> None:
    """No Ray while the request is looked at, which would only cost time; and a mark where one would be joined."""
    from datainf_ray.cluster import ahead
    from datainf_ray.session import checkup, execute

    def reached(*_: Any, **__: Any) -> Any:
        print(_REACHED, file=sys.stderr)
        raise SystemExit(99)

    # By setattr: a type checker knows that these are not ours to replace.
    setattr(ahead.Ahead, "begin", lambda self: None)  # noqa: B010
    if not joins:
        setattr(execute, "connected", reached)  # noqa: B010
        setattr(checkup, "connected", reached)  # noqa: B010


def _import_all() -> None:
    import datainf_ray.cli
    import datainf_ray.planning.forecast
    import datainf_ray.request.job
    import datainf_ray.runs.report.page
    import datainf_ray.session.checkup
    import datainf_ray.session.execute
    import datainf_ray.session.plan
    import datainf_ray.tasks.register  # noqa: F401


def _files(place: Path) -> dict[str, str]:
    """Every file and folder of a place, by what is in it."""
    found = {}
    for path in sorted(place.rglob("*")):
        regular = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
    return found


def _table(told: list[tuple[Case, Answer, str | None]]) -> str:
    lines = ["| asked | status | the line |", "|---|---|---|"]
    for case, answer, problem in told:
        cells = (case.name, str(answer.status), (f"WRONG ({problem}): " if problem else "") + answer.line)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask for what is wrong, and see that each answer is one line.")
    parser.add_argument("words", nargs="*", help="of the names of cases; none: all")
    parser.add_argument("--all", action="store_true", help="print the answers that are right, too")
    parser.add_argument("--table", help="write a Markdown table of all answers")
    return parser


if __name__ == "__main__":
    began = time.perf_counter()
    try:
        main()
    finally:
        print(f"{time.perf_counter() - began:.0f} s")
