"""Every kind of file gives the RGB image that a person would see, or one clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from timmscope.images import array_to_rgb, open_image, to_rgb
from timmscope_registry import ImageError

RAMP = np.linspace(0, 255, 64).reshape(8, 8)
GREY_RAMP = RAMP.astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_greyscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = RAMP.astype(np.uint8)
    got = pixels(save(Image.fromarray(grey), tmp_path / "a.png"))
    np.testing.assert_array_equal(got, np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    bits = RAMP > 100
    got = pixels(save(Image.fromarray(bits), tmp_path / "a.png"))
    np.testing.assert_array_equal(got[:, :, 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.rint(RAMP * 257).astype(np.uint16)
    got = pixels(save(Image.fromarray(deep), tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(got[:, :, 1], np.rint(deep / 257).astype(np.uint8))


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path: Path) -> None:
    deep = np.full((4, 4), 2570, dtype=np.uint16)  # 10 of 255
    assert np.unique(pixels(save(Image.fromarray(deep), tmp_path / "a.png"))).tolist() == [10]


def test_32_bit_integers_beyond_16_bits_are_stretched(tmp_path: Path) -> None:
    wide = (np.arange(4, dtype=np.int32) * 1_000_000).reshape(2, 2)
    got = pixels(save(Image.fromarray(wide), tmp_path / "a.tif"))
    assert got[:, :, 0].ravel().tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 0.4, 1.0], [0, 51, 102, 255]),
        ([0.0, 51.0, 102.0, 255.0], [0, 51, 102, 255]),
        ([0.0, 2570.0, 25700.0, 65535.0], [0, 10, 100, 255]),
        ([-1.0, 0.0, 1.0, 2.0], [0, 85, 170, 255]),
    ],
)
def test_float_tiffs_are_read_in_their_own_range(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    image = Image.fromarray(np.array(values, dtype=np.float32).reshape(2, 2))
    assert pixels(save(image, tmp_path / "a.tif"))[:, :, 2].ravel().tolist() == expected


def test_float_tiffs_with_nan_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0.1, np.nan]], dtype=np.float32))
    with pytest.raises(ImageError, match="1 of 2 pixels are NaN"):
        open_image(save(image, tmp_path / "a.tif"))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 0] = 200  # red beneath
    rgba[0, :, 3] = [0, 255, 51]  # clear, opaque, one fifth
    got = pixels(save(Image.fromarray(rgba), tmp_path / "a.png"))
    assert got[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


def test_grey_with_alpha_is_composited_over_white(tmp_path: Path) -> None:
    la = np.zeros((1, 2, 2), dtype=np.uint8)
    la[0, 1, 1] = 255
    got = pixels(save(Image.fromarray(la, mode="LA"), tmp_path / "a.png"))
    assert got[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette_images_keep_their_colours_and_become_opaque(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    got = pixels(save(image, tmp_path / f"a{suffix}", transparency=1))
    assert got[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_a_colour_key_in_an_rgb_png_is_transparent(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    got = pixels(save(image, tmp_path / "a.png", transparency=(1, 2, 3)))
    assert got[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = pixels(save(red, tmp_path / "a.jpg", quality=95))
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 3


def test_lab_tiffs_are_converted(tmp_path: Path) -> None:
    white = Image.new("LAB", (2, 2), (255, 128, 128))
    assert pixels(save(white, tmp_path / "a.tif")).min() >= 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray((np.arange(6).reshape(2, 3) * 40).astype(np.uint8)).convert("RGB")
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = upright
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif", "a.webp"):
        path = save(image, tmp_path / name, exif=exif, lossless=True)
        np.testing.assert_array_equal(pixels(path), np.asarray(upright))
        with Image.open(path) as opened:
            size = opened.size
            picture = to_rgb(opened)
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(upright))
            assert name == "a.tif" or opened.size == size  # Pillow itself turns a TIFF
        for again in (picture, open_image(path)):  # upright, and not turned a second time
            np.testing.assert_array_equal(np.asarray(to_rgb(again)), np.asarray(upright))


def test_an_image_with_damaged_exif_can_be_read(tmp_path: Path) -> None:
    path = save(
        Image.new("RGB", (8, 8), (10, 20, 30)), tmp_path / "a.png", exif=b"Exif\0\0MM\0*bad"
    )
    assert pixels(path)[0, 0].tolist() == [10, 20, 30]


def test_an_animation_is_read_as_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(path)[0, 0].tolist() == [250, 0, 0]


def test_file_objects_can_be_read() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (1, 2, 3)).save(buffer, "PNG")
    buffer.seek(0)
    assert np.asarray(open_image(buffer))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_the_error_for_a_truncated_file_names_it_in_one_line(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"cut{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"cut{suffix}: ") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)


def test_errors_distinguish_empty_missing_and_non_image_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    for name, reason in {
        "empty.jpg": "0 bytes",
        "text.jpg": "not an image",
        "absent.jpg": "no such file",
        "": "a folder",
    }.items():
        with pytest.raises(ImageError, match=reason):
            open_image(tmp_path / name)


def test_too_large_images_are_refused_before_decoding_with_the_limit(tmp_path: Path) -> None:
    path = save(Image.new("1", (20_000, 10_000)), tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="limit of 178956970 pixels"):
        open_image(path)
    huge = save(Image.new("1", (20_000, 20_000)), tmp_path / "huge.png")
    with pytest.raises(ImageError, match=r"png: 400000000 pixels, above the limit of 178956970 "):
        open_image(huge)
    with pytest.raises(ImageError, match="100x50 pixels, above the limit of 4999 pixels"):
        open_image(save(Image.new("L", (100, 50)), tmp_path / "b.png"), max_pixels=4999)


@pytest.mark.parametrize(
    "pixels",
    [
        GREY_RAMP,
        GREY_RAMP[..., None],
        np.stack([GREY_RAMP] * 3, 2),
        np.stack([GREY_RAMP] * 3, 0),
        GREY_RAMP.astype(np.uint16) * 257,
        GREY_RAMP / 255,
        np.stack([GREY_RAMP] * 3 + [np.full_like(GREY_RAMP, 255)], 2),
    ],
    ids=["grey", "one channel", "HWC", "CHW", "16 bits", "float", "opaque RGBA"],
)
def test_arrays_of_all_layouts_give_the_same_image(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(array_to_rgb(pixels)), np.stack([GREY_RAMP] * 3, 2))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (GREY_RAMP.astype(float), "values from 0 to 255"),
        (GREY_RAMP / 255 - 0.5, "values from -0.5"),
        (np.full((4, 4), np.nan), "values from nan"),
        (GREY_RAMP.astype(np.int64), "type int64"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 0, 3), np.uint8), r"shape \(0, 0, 3\)"),
        (np.zeros(3), r"shape \(3,\)"),
    ],
)
def test_an_array_that_is_not_an_image_is_refused_in_one_line(
    pixels: np.ndarray, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        array_to_rgb(pixels)
    assert "\n" not in str(caught.value)


def test_pictures_in_memory_fail_as_files_do(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:4000])
    with Image.open(path) as image, pytest.raises(ImageError, match="image: cannot be decoded"):
        to_rgb(image)
    with pytest.raises(ImageError, match="0x4 pixels"):
        to_rgb(Image.new("RGB", (0, 4)))


def test_an_upright_rgb_picture_is_not_copied() -> None:
    picture = Image.new("RGB", (2, 2))
    assert to_rgb(picture) is picture


@pytest.mark.parametrize("kind", ["long text", "much text", "profile"])
def test_a_png_is_read_without_the_text_that_pillow_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 21)
    picture = Image.fromarray(np.stack([GREY_RAMP, GREY_RAMP.T, 255 - GREY_RAMP], 2))
    text = PngImagePlugin.PngInfo()
    if kind == "long text":
        text.add_text("workflow", "x" * (3 << 20), zip=True)
    elif kind == "much text":
        for number in range(3):
            text.add_text(f"k{number}", "x" * 1_000_000)
    profile = bytes(3 << 20) if kind == "profile" else None
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(picture, tmp_path / "a.png", pnginfo=text, icc_profile=profile, exif=exif)
    with pytest.raises(ValueError), Image.open(path) as opened:
        opened.load()
    np.testing.assert_array_equal(pixels(path), np.asarray(picture.rotate(180)))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"IDAT") + 10])
    with pytest.raises(ImageError, match=r"a\.png: "):
        open_image(path)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ImageError, match=r"a\.jpg: PostScript, which is a program"):
        open_image(path)


def test_big_endian_arrays_are_images() -> None:
    for kind, scale in ((">u2", 257.0), (">f4", 1 / 255), (">f8", 1 / 255)):
        got = array_to_rgb((GREY_RAMP * scale).astype(kind))
        np.testing.assert_array_equal(np.asarray(got)[:, :, 0], GREY_RAMP)


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize(
    "data",
    [
        b"P6 0 0 255\n",
        b"P6 -3 4 255\n" + bytes(99),
        b"P6 99999999999999999999 1 255\n" + bytes(99),
        b"P5 3 3 99999999999\n" + bytes(99),
        b"BM" + bytes(12) + (40).to_bytes(4, "little") + b"\xff" * 36,
        b"BM" + bytes(12) + (40).to_bytes(4, "little") + bytes(36),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 8 + b"\x08\x02\0\0\0" + bytes(4),
        b"GIF89a\0\0\0\0" + bytes(40),
        b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\xff\xff\xff\xff\0\0\0\0",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 200,
        b"\0\0\x01\0\xff\xff" + bytes(200),
        b"Pf\n-9 9\n-1.0\n" + bytes(400),
        b"8BPS\0\x01" + bytes(6) + b"\0\x03" + b"\xff" * 8 + b"\0\x08\0\x03" + bytes(100),
        b"\x0a\x05\x01\x08" + b"\xff\xff\0\0" * 30,
    ],
)
def test_odd_sizes_in_a_header_are_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "odd.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"odd\.png: ") as caught:
        open_image(tmp_path / "odd.png")
    assert "\n" not in str(caught.value)
