"""What must not be written down: names that look like secrets, and places where one was written after all.

The site file's contents end up in sbatch files, attempts and command lines, which others can read. A variable that the
submitting shell exports reaches jobs by itself. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS?|(?:API|ACCESS)_?KEY)(?:_|$)", re.IGNORECASE
)
_ASSIGNED = re.compile(r"(?<![\w$])([A-Za-z_]\w*)=[\"']?(?![$`\s;,\"'])\S")
_IN_A_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret."""
    return _NAME.search(name) is not None


def holds_password(value: str) -> bool:
    """Whether a value has a URL with a password in it, as proxies and package indices are given."""
    return _IN_A_URL.search(value) is not None


def assigned(text: str) -> Iterator[str]:
    """Names of secrets that a shell line, or an option such as `--export`, gives values in plain text.

    What is read elsewhere, `NAME=$(cat FILE)` or `NAME=$OTHER`, is no plain text.
    """
    yield from filter(is_secret, _ASSIGNED.findall(text))
