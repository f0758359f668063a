"""What pyarrow's errors mean: it raises the same kinds for what a file holds and for what the store did."""

from __future__ import annotations

import pyarrow as pa


def of_content(error: BaseException) -> bool:
    """Whether pyarrow raised an error because of what a file holds: not the store's, and not for want of memory."""
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | ValueError | OverflowError | NotImplementedError) and not isinstance(
        error, MemoryError
    )
