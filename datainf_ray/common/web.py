"""Files on web servers, of which fsspec says "no such file" whatever went wrong."""

from __future__ import annotations

from typing import Any

from fsspec.implementations.http import HTTPFileSystem

_GONE = (404, 410)


class Web(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's, but that only what a server says it has not got is missing; all else is raised as it was found."""

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await super()._info(url, **kwargs)
        except FileNotFoundError as error:
            if error.__cause__ is None or getattr(error.__cause__, "status", None) in _GONE:
                raise
            raise error.__cause__ from None
        return found

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            await self._info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    async def _find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            await self._ls(path)  # a walk takes a folder that cannot be listed for an empty one
        except FileNotFoundError:
            return {} if kwargs.get("detail") else []
        return await super()._find(path, *args, **kwargs)
