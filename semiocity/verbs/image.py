"""`semiocity image`"""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, nargs="?", help="an image that is there, for --check, --sign and --verify")
    parser.add_argument("--folder", type=Path, default=Path("containers"), help="where the definition lies")
    parser.add_argument("--out", type=Path, default=Path("containers"), help="where the image goes")
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="build argument, such as BASE=…"
    )
    parser.add_argument("--cpu", action="store_true", help="the small image: packing and stages without a network")
    parser.add_argument("--certificates", type=Path, help="CA bundle of a network with its own authority")
    parser.add_argument("--user", help="root only: build as this normal user")
    parser.add_argument("--scratch", type=Path, help="local disk for 16 GB of temporary files")
    parser.add_argument("--check", action="store_true", help="compare an image with definition and lock; build nothing")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign with this private key (PEM)")
    parser.add_argument("--verify", type=Path, metavar="KEY", help="verify by this public key (PEM)")
    parser.add_argument("--json", action="store_true", help="with --check: the comparison as JSON")


def run(a: argparse.Namespace) -> int:
    from semiocity.launch import container, image_check, signatures

    overrides = dict(item.partition("=")[::2] for item in a.arg)
    if a.cpu:
        overrides["VARIANT"] = "cpu"
    if a.check:
        image = a.image or container.image_path(a.out, container.recipe_digest(a.folder, overrides))
        found = image_check.compare(image, a.folder, overrides)
        print(found.json() if a.json else "\n".join(found.lines()))
        if a.verify:
            signatures.require(image, a.verify)
        return 0 if found.usable else 1
    image = a.image
    if image is None:
        options = {"certificates": a.certificates, "user": a.user, "scratch": a.scratch}
        image = container.build(a.out, a.folder, overrides=overrides, **options)
    if a.sign:
        signatures.sign(image, a.sign)
    if a.verify:
        signatures.require(image, a.verify)
    print(image)
    return 0
