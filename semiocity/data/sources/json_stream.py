"""Large JSON files, element by element: annotation files of datasets have hundreds of megabytes in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from semiocity.errors import UserError

BLOCK_CHARS = 1 << 20
WHITE = " \t\r\n"


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of the lists of a file's outermost object, in the order of the file.

    A list as the outermost value has the key "". Values that are no lists come as one element. Memory holds some
    megabytes of text, or one element where it is larger. Raises UserError when the file is no such JSON, OSError as
    opening does.
    """
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(file)
        try:
            if text.peek() == "[":
                yield from (("", item) for item in text.items())
            else:
                for key in text.members():
                    if text.peek() == "[":
                        yield from ((key, item) for item in text.items())
                    else:
                        yield key, text.value()
            if text.peek():
                raise ValueError("more after its end")
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
            raise UserError(f"{path}: damaged JSON: {error}") from None


class _Text:
    """A window on the file that moves forward only."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in WHITE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Read one of the characters `wanted`. Raises ValueError for any other."""
        found = self.peek()
        if not found or found not in wanted:
            raise ValueError(f"{found or 'the end'!r} where one of {wanted!r} is expected")
        self._at += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # What was read may end inside a number: only what ends it shows that it is whole.
            if self._text[end : end + 1] not in (*WHITE, *",]}:") and self._more():
                continue
            self._at = end
            return value

    def items(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller reads each value before the next key."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise ValueError(f"{self.peek() or 'the end'!r} where a key is expected")
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def _more(self) -> bool:
        """Read on, at least as much again as there is, so that a large element costs no more than twice its size."""
        rest = self._text[self._at :]
        block = self._file.read(max(BLOCK_CHARS, len(rest)))
        self._text, self._at = rest + block, 0
        return bool(block)
