"""Decoding: what Pillow gives, faster; reduced where the target is small; one message for damage."""

import io

import numpy as np
import pytest
from make_images import encoded, jpeg, label_png, pixels, png, with_alpha
from PIL import Image

from semiocity.data.decode import DecodeError, crop_of, decode_cropped, decode_ids, decode_rgb, picture_size
from semiocity.data.geometry import resize_image


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def variants() -> dict[str, bytes]:
    picture = Image.fromarray(pixels(75, 51, 3))
    jpegs = {f"{n}": encoded(picture, "JPEG", quality=80, subsampling=n) for n in (0, 1, 2)}
    return {
        **jpegs,
        "progressive": encoded(picture, "JPEG", progressive=True),
        "grey": encoded(picture.convert("L"), "JPEG"),
        "cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "png": png(75, 51),
        "palette": encoded(picture.quantize(9), "PNG"),
        "grey png": encoded(picture.convert("L"), "PNG"),
        "alpha": with_alpha(),
    }


@pytest.mark.parametrize("name", variants())
def test_the_pixels_are_pillows(name: str) -> None:
    data = variants()[name]
    found = decode_rgb(data)
    assert np.array_equal(found, by_pillow(data))
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert picture_size(data) == Image.open(io.BytesIO(data)).size


def test_reduced_to_no_less_than_asked_for() -> None:
    data = jpeg(301, 203)
    for least, shape in (
        ((301, 203), (203, 301)),
        ((151, 102), (102, 151)),
        ((152, 10), (203, 301)),
        ((1, 1), (26, 38)),
    ):
        assert decode_rgb(data, least).shape[:2] == shape
    assert decode_rgb(png(301, 203), (1, 1)).shape == (203, 301, 3)


@pytest.mark.parametrize("shape", [(24, 24), (60, 20), (20, 60), (90, 31), (301, 203)])
@pytest.mark.parametrize("kind", [jpeg, png])
def test_cropped_is_close_to_a_full_decode(kind: object, shape: tuple[int, int]) -> None:
    """Reduced decoding moves nothing: a shift of half a pixel would cost far more than this."""
    data = kind(301, 203, 5)  # type: ignore[operator]
    geometry = crop_of((301, 203), shape)
    whole = Image.fromarray(by_pillow(data))
    exact = np.asarray(resize_image(whole, geometry) if geometry else whole)
    found = decode_cropped(data, shape)
    assert found.shape == (shape[1], shape[0], 3)
    error = float(((found.astype(float) - exact) ** 2).mean())
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 45
    assert np.array_equal(found, decode_cropped(data, shape))


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404</html>", jpeg()[:-200], jpeg()[:30], png()[:-40], b"\xff\xd8" + bytes(60)],
    ids=["empty", "html", "cut jpeg", "header", "cut png", "zeros"],
)
def test_damage_is_one_kind_of_error(data: bytes) -> None:
    messages = set()
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            decode_rgb(data)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert "0x" not in messages.pop()


def test_ids_come_as_they_are_stored() -> None:
    assert decode_ids(label_png()).dtype == np.uint8
    deep = encoded(Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 999), "PNG")
    assert decode_ids(deep).tolist() == [[0, 999, 1998], [2997, 3996, 4995]]
    with pytest.raises(DecodeError, match="not one channel of ids"):
        decode_ids(png())
