"""Files in a run directory, at a local path or any fsspec URL.

A file is there whole or not at all: readers never see one that is half written, whenever a writer is killed. Locally
that is a temporary file in a hidden folder of our own that is renamed; in an object store a put is atomic by itself.
`commit` creates a file once, so that two workers that computed the same chunk cannot overwrite each other.

Nothing is removed but what a run has named itself: whatever else lies beside it stays.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.redaction import keep_secret
from datainf_ray.common.storage import Options, open_store, persistently, reason, unreachable
from datainf_ray.corpus.pictures import Made

#: The hidden folder of files that are still being written, beside those that are whole.
SCRATCH = ".datainf"
#: The folder of the pictures that were made of queries' prompts.
MADE = "pictures"

_TEMPORARY = re.compile(r".{0,100}\.[0-9a-f]{32}\.tmp", re.DOTALL)


class RunDirectory:
    """A directory of files that are written atomically; small, and safe to pickle: the options that its filesystem was
    opened with go with it, and whoever unpickles it keeps their credentials secret.

    `url` is a path or fsspec URL; it need not exist yet. `key` is the configuration key that `RequestError`s name.
    `options` are the configuration's `storage_options`, with which a directory below it is opened too.
    A file's `name` is its path in the directory, with "/" on every system; names that begin with "." are no files
    of the run. What the storage raises is an `OSError`, and `FileNotFoundError` for a missing file, except
    by the constructor and `check_writable`, which raise `RequestError`.
    """

    def __init__(self, url: str | os.PathLike[str], key: str = "output", options: Options | None = None) -> None:
        url = os.fspath(url)
        self.key = key
        self.options: Options = options or {}
        self.fs, root = open_store(url, key, self.options)
        self.root: str = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.url: str = self.root if self.local else url.rstrip("/")  # absolute: a worker's own directory is another

    def __repr__(self) -> str:
        return f"RunDirectory({self.url!r})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        keep_secret(self.options)

    def path(self, name: str) -> str:
        """The URL (or the local path) of a file, for people and for other libraries."""
        return f"{self.url}/{name}"

    @property
    def made(self) -> Made:
        """Where the pictures lie that the run has made of its queries' prompts."""
        return Made(self.path(MADE), self.options)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing the one that is there in one step."""
        if self.local:
            with self.writing(name) as stream:
                stream.write(data)
        else:
            persistently(lambda: self.fs.pipe_file(self._at(name), data))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream whose bytes become the file, as by `write`, once the block ends; nothing if it ends in an error.

        They go to this machine's disk as they come, and from there to a store as one upload: what a stream to a store
        leaves behind when it breaks is another thing with every store.
        """
        if self.local:
            with self._temporary(name) as temporary:
                with _synced(temporary) as stream:
                    yield stream
                os.replace(temporary, self._at(name))
        else:
            with tempfile.TemporaryDirectory(prefix="datainf-") as folder:
                temporary = os.path.join(folder, "file")
                with open(temporary, "xb") as stream:
                    yield stream
                persistently(lambda: self.fs.put_file(temporary, self._at(name)))

    def commit(self, name: str, data: bytes) -> bool:
        """Create a file once.

        True if the file now holds `data`, whoever wrote it; False if it was there with other content, which stays.
        """
        return self._commit_local(name, data) if self.local else self._commit_remote(name, data)

    def read(self, name: str) -> bytes:
        """A file's content. Locally a regular file's: a FIFO would be waited for, and a device read without end."""
        if self.local and not stat.S_ISREG(os.stat(self._at(name)).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", self._at(name))
        return self._persistently(lambda: self.fs.cat_file(self._at(name)))

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()
        try:  # fsspec's own isfile says no, too, when the store does not answer
            return bool(self._persistently(lambda: self.fs.info(self._at(name)))["type"] == "file")
        except FileNotFoundError:
            return False

    def list(self, prefix: str = "") -> list[str]:
        """The sorted names of the files whose name begins with `prefix`, such as "examples/"; [] if there is none."""
        folder = prefix.rpartition("/")[0]
        top = self._at(folder) if folder else self.root
        if self.local:
            # fs.find asks for every file's size and fails when a temporary file vanishes meanwhile
            paths = [os.path.join(at, file).replace(os.sep, "/") for at, _, files in os.walk(top) for file in files]
        else:
            self.fs.invalidate_cache()
            paths = persistently(lambda: self.fs.find(top))
        names = (path.removeprefix(self.root + "/") for path in paths)
        return sorted(n for n in names if n.startswith(prefix) and not any(p.startswith(".") for p in n.split("/")))

    def entries(self) -> builtins.list[str]:
        """The names of the files and folders at the top of the directory, hidden ones too; [] where it is not there.

        A file in place of the directory is an entry as well.
        """
        self.fs.invalidate_cache()
        try:
            paths = self._persistently(lambda: self.fs.ls(self.root, detail=False))
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in names if name)  # a store may list the folder itself

    def remove_files(self, folder: str, ours: re.Pattern[str]) -> None:
        """Take away the files below `folder` whose names below it match, and the folders that are empty then."""
        if self.local:
            self._remove_local(folder, ours)
            return
        top = f"{self._at(folder)}/"

        def attempt() -> None:
            """Named file by file, because some stores' libraries take a folder for the beginning of a name."""
            self.fs.invalidate_cache()
            files = [path for path in self.fs.find(top) if path.startswith(top) and ours.fullmatch(path[len(top) :])]
            if files:
                self.fs.rm(files)

        with suppress(FileNotFoundError):
            persistently(attempt)

    def _remove_local(self, folder: str, ours: re.Pattern[str]) -> None:
        """By the folder's own entries, from the deepest: a link to a folder is none, and is not followed."""
        top = self._at(folder)
        for at, _, files in os.walk(top, topdown=False):
            for file in files:
                path = os.path.join(at, file)
                if ours.fullmatch(os.path.relpath(path, top).replace(os.sep, "/")):
                    with suppress(FileNotFoundError):
                        os.unlink(path)
            with suppress(OSError):  # something that is not ours is in there, or another has taken it away
                os.rmdir(at)

    def remove(self, name: str) -> None:
        """Take a file away; fine if it is not there."""
        with suppress(FileNotFoundError):
            self._persistently(lambda: self.fs.rm_file(self._at(name)))

    def remove_temporaries(self) -> None:
        """Take away what writers that were killed have left on a local path; only when nobody writes any more."""
        if self.local:
            self.remove_files(SCRATCH, _TEMPORARY)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    @contextmanager
    def reached(self) -> Iterator[None]:
        """What the storage raises within it becomes a `RequestError` of one line about this directory."""
        try:
            yield
        except Exception as error:  # every storage library has its own classes
            raise RequestError(self.key, self.url, unreachable(error)) from None

    def document(self, name: str, version: int, missing: str, remedy: str | None = None) -> dict[str, Any]:
        """A JSON document of ours, of format `version`.

        Raises `RequestError` where it cannot be read. Where it is not there, `missing` is the problem.
        """
        try:
            document = self.read_json(name)
        except FileNotFoundError:
            raise RequestError(self.key, self.url, missing, remedy) from None
        except ValueError as error:
            raise RequestError(self.key, self.url, f"{name} is not JSON: {one_line(error)}") from None
        except Exception as error:  # every storage library has its own classes, for credentials above all
            raise RequestError(self.key, self.url, f"cannot be read: {reason(error)}") from None
        found = document.get("format") if isinstance(document, dict) else None
        if found != version:
            raise RequestError(
                self.key, self.url, f"{name} has format {found!r}", f"this version reads format {version}"
            )
        return document

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write(name, (text + "\n").encode())

    def check_writable(self) -> None:
        """Create a small file and take it away again.

        `RequestError` with the reason if that cannot be done, or if the file can be created a second time: then two
        drivers could have one run.
        """
        probe = f"{SCRATCH}/probe.{uuid.uuid4().hex}.tmp"
        made = _missing(self._at(SCRATCH)) if self.local else []
        try:
            self.commit(probe, b"datainf")
            twice = self.commit(probe, b"datainf-ray")
        except Exception as error:  # every storage library has its own classes, for credentials above all
            raise RequestError(self.key, self.url, f"cannot be written: {reason(error)}") from None
        with suppress(Exception):  # a store that lets us write but not delete will do; Azure's errors are no OSErrors
            self.fs.rm_file(self._at(probe))
        for folder in made:  # where nothing was before, nothing stays
            with suppress(OSError):
                os.rmdir(folder)
        if twice:
            raise RequestError(
                self.key,
                self.url,
                "the store, or its library here, creates a file that is there already (S3: If-None-Match)",
                "use botocore 1.35.16 or newer, or a store that can create a file once",
            )

    def _persistently(self, operation: Callable[[], Any]) -> Any:
        """A local disk that fails is not asked again."""
        return operation() if self.local else persistently(operation)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _temporary(self, name: str) -> Iterator[str]:
        """The path of a temporary file for the file `name`; gone afterwards, unless it was renamed."""
        folder, file = os.path.split(self._at(name))
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(self._at(SCRATCH), f"{file[:100]}.{uuid.uuid4().hex}.tmp")
        try:
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _commit_local(self, name: str, data: bytes) -> bool:
        target = self._at(name)
        with self._temporary(name) as temporary:
            with _synced(temporary) as stream:
                stream.write(data)
            with suppress(FileExistsError):
                if created(temporary, target):
                    return True
        try:
            return self.read(name) == data
        except FileNotFoundError:  # taken away this moment, by whoever had made it
            return self._commit_local(name, data)

    def _commit_remote(self, name: str, data: bytes) -> bool:
        """Stores differ in what they raise when the file exists, and a lost answer looks like a failure: so look."""

        def attempt() -> bool:
            try:
                self.fs.pipe_file(self._at(name), data, mode="create")
                return True
            except (PermissionError, FileNotFoundError):
                raise
            except (
                OSError
            ) as error:  # exists; or S3's 409, two requests at the same time, of which neither need have won
                try:
                    return bool(self.fs.cat_file(self._at(name)) == data)
                except FileNotFoundError:
                    raise error from None

        return persistently(attempt)


def created(temporary: str, target: str) -> bool:
    """Give a local file its name, once; False where it had to be renamed. Raises `FileExistsError` if that is taken."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
            raise
    # No hard links here (exFAT, some network mounts). Two writers may then both rename, which does no harm when they
    # have the same content, as those of one chunk do.
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "is there already", target)
    os.replace(temporary, target)
    return False


def _missing(path: str) -> list[str]:
    """The folders that are to be made for a path to be there, the deepest first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


@contextmanager
def _synced(path: str) -> Iterator[IO[bytes]]:
    """A new file to write into, on the disk by the end of the block. Its folder is made if need be."""
    with _created(path) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())  # else a crash of the machine can leave the new name with no content


def _created(path: str) -> IO[bytes]:
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):  # another driver has ended this moment, and taken its empty folder away
            return open(path, "xb")
