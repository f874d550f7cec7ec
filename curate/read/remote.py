"""A file on remote storage, read so that no failure of the storage passes for damage of the file.

Every storage backend has exceptions of its own, and some of them are bare OSErrors or ValueErrors,
which is what decoders raise about bytes. So what counts is where an error arose, not its kind:
whatever the storage raises leaves here as the error that the caller makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RemoteStream:
    """A stream opened for reading, whose failures are what `refusal` makes of them."""

    def __init__(self, stream: Any, refusal: Callable[[Exception], Exception]) -> None:
        self._stream, self._refusal = stream, refusal

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all that are left if it is negative."""
        try:
            return bytes(self._stream.read(size))
        except Exception as error:
            raise self._refusal(error) from None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place.

        Raises:
            ValueError: it lies before the start, where only a damaged file can point.
        """
        if whence == 0 and offset < 0:
            raise ValueError(f"it points to byte {offset}")
        try:
            return int(self._stream.seek(offset, whence))
        except Exception as error:
            raise self._refusal(error) from None

    def tell(self) -> int:
        """The place."""
        try:
            return int(self._stream.tell())
        except Exception as error:
            raise self._refusal(error) from None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, where the storage can."""
        return bool(self._stream.seekable())

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self._stream.closed)

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
