"""`semiocity image`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("containers"), help="where the definition lies")
    parser.add_argument("--out", type=Path, default=Path("containers"), help="where the image goes")
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="build argument, such as BASE=…"
    )
    parser.add_argument("--certificates", type=Path, help="CA bundle of a network with its own authority")
    parser.add_argument("--user", help="root only: build as this normal user")
    parser.add_argument("--scratch", type=Path, help="local disk for 12 GB of temporary files")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch.container import build

    overrides = dict(item.partition("=")[::2] for item in a.arg)
    print(build(a.out, a.folder, overrides=overrides, certificates=a.certificates, user=a.user, scratch=a.scratch))
    return 0
