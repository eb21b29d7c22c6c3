"""What comes out of cameras, disks and other people's programs is read right, or refused with the true reason."""

import contextlib
import io
import re
import shutil
import struct
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import run
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from plg_utils import checkpoints, datasets, figures, files, losses
from plg_utils import masks as mask_models
from plg_utils.datasets import _photos
from plg_utils.encoders import clip
from plg_utils.masks import sam
from plg_utils.records import Classes

H, W = 40, 60
PHOTO = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
RAMP = np.linspace(0, 1, H * W).reshape(H, W)
CONTIG = {"planarconfig": "contig"}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """An empty folder for photos; the data folder is beside it."""
    monkeypatch.setenv("PLG_DATA", str(tmp_path / "data"))
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


# Kinds of files


def png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (H, W, 3)."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    whole = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        whole += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return whole


def deep(low: float, high: float, colours: int = 1) -> np.ndarray:
    """A ramp (H, W, C) of 16-bit values."""
    return (low + (high - low) * RAMP)[..., None].repeat(colours, axis=2).astype("<u2")


@pytest.mark.parametrize(("low", "high"), [(0, 1023), (0, 4095), (200, 3000), (30_000, 33_000)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_the_values_in_use(low, high, suffix, tmp_path):
    """Of a microscope, say: a division by 256 would leave 16 grey values of 4,096, all nearly black."""
    values = deep(low, high)[..., 0]
    values[0, 0] = 65_535  # a defect
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image, remark = files.read_photo(tmp_path / f"a.{suffix}")
    assert np.abs(image[..., 1].astype(float) - 255 * RAMP)[1:].max() < 2
    assert remark.startswith("16-bit values:")


def test_sixteen_bits_that_are_all_in_use_keep_their_brightness(tmp_path):
    for name, values in {"ramp": deep(9_000, 60_000), "flat": deep(50_000, 50_000)}.items():
        Image.fromarray(values[..., 0]).save(tmp_path / f"{name}.png")
        image, remark = files.read_photo(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(image, (values >> 8).repeat(3, axis=2))
        assert remark == ""
    tifffile.imwrite(tmp_path / "white is zero.tif", 65_535 - deep(0, 65_535)[..., 0], photometric="miniswhite")
    image = files.read_image(tmp_path / "white is zero.tif")
    np.testing.assert_array_equal(image[..., 0], deep(0, 65_535)[..., 0] >> 8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colours_are_read_or_refused(suffix, tmp_path):
    dark = deep(0, 4_095, 3)
    dark[5, 5] = 65_535  # a defect
    for name, values in {"bright": deep(0, 65_535, 3), "dark": dark}.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(png(values)) if suffix == "png" else tifffile.imwrite(path, values, photometric="rgb")
    np.testing.assert_array_equal(files.read_image(tmp_path / f"bright.{suffix}"), deep(0, 65_535, 3) >> 8)
    Image.fromarray((dark >> 8).astype(np.uint8)).save(tmp_path / "night.jp2")
    content = bytearray((tmp_path / "night.jp2").read_bytes())
    stream = content.index(b"\xff\x4f\xff\x51")
    (tmp_path / "night.j2k").write_bytes(content[stream:])
    content[content.index(b"ihdr") + 14] = 15  # as Pillow reads one of 16 bits, which it cannot write
    (tmp_path / "dark.jp2").write_bytes(content)
    for name in (f"dark.{suffix}", "dark.jp2"):
        with pytest.raises(ValueError, match=r"is not a readable image \(16-bit colours that use .*8-bit RGB"):
            files.read_image(tmp_path / name)
    for name in ("night.jp2", "night.j2k"):  # colours of 8 bits may be dark
        np.testing.assert_array_equal(files.read_image(tmp_path / name), dark >> 8)


@pytest.mark.parametrize("bands", [4, 5])
def test_bands_that_are_no_colours_are_left_out_with_a_word_or_refused(bands, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (H, W, bands), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[0] * (bands - 3))
    image, remark = files.read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, values[..., :3])
    assert remark == f"the bands R, G, B are taken, and {bands - 3} more left out"


PLANES = deep(0, 65_535, 3).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("values", "how", "says"),
    [
        (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, "colours in planes"),
        ((255 * RAMP - 128).astype(np.int8), {}, "signed values"),
        ((9_000 * RAMP - 500).astype(np.int16), {}, "32-bit or signed values"),
        (RAMP.astype(np.float32), {}, "32-bit or signed values"),
        (deep(0, 4_095, 5), {"photometric": "minisblack"} | CONTIG, "values or bands that PIL does not"),
        (PHOTO, {"photometric": "minisblack"} | CONTIG, "export it again as 8-bit RGB"),
    ],
)
def test_values_that_pillow_would_take_for_others_are_refused(values, how, says, tmp_path):
    """The first two were read as other pictures, without a word."""
    tifffile.imwrite(tmp_path / "a.tif", values, **how)
    with pytest.raises(ValueError, match=rf"a\.tif is not a readable image \(.*{says}"):
        files.read_photo(tmp_path / "a.tif")


ALPHA = np.where(RAMP < 0.25, 0, 255).astype(np.uint8)  # of a photo that a person has cut out


def cut_out(mode: str) -> tuple[Image.Image, dict]:
    """An image that is transparent where ALPHA is 0, and how it is saved."""
    if mode == "P":
        image = Image.fromarray(ALPHA // 255)
        image.putpalette([9, 9, 9, 20, 200, 30])
        return image, {"transparency": 0}
    if mode == "RGB":  # of PNG: one colour is transparent
        return Image.fromarray(np.where(ALPHA[..., None], PHOTO | 1, 0).astype(np.uint8)), {"transparency": (0, 0, 0)}
    return Image.fromarray(np.dstack([PHOTO, ALPHA])).convert(mode), {}


@pytest.mark.parametrize(
    ("mode", "form"),
    [*((mode, "PNG") for mode in ("P", "RGB", "LA")), *(("RGBA", f) for f in ("PNG", "TIFF", "WEBP", "HEIC", "AVIF"))],
)
def test_transparent_pixels_are_white_and_told(mode, form, tmp_path):
    """What lies under them may be anything: no one has seen it since it was cut out."""
    image, how = cut_out(mode)
    if form == "HEIC":
        shutil.copyfile(HEIC / "cut_out.heic", tmp_path / "a")
    else:
        image.save(tmp_path / "a", form, **how)
    pixels, remark = files.read_photo(tmp_path / "a")
    assert (pixels[ALPHA == 0] > 250).all() and not (pixels[ALPHA > 0] > 250).all()
    assert re.fullmatch(r"transparent pixels, 25\.\d%, become white", remark)


@pytest.mark.parametrize("alpha", [0 * ALPHA, 0 * ALPHA + 128, np.uint8(250 * RAMP)])
def test_an_alpha_channel_that_is_no_cut_out_is_left_out(alpha, tmp_path):
    """Some programs write zeros, and others near infrared as a fourth band that readers take for transparency."""
    Image.fromarray(np.dstack([PHOTO, alpha])).save(tmp_path / "a.png")
    pixels, remark = files.read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, PHOTO)
    assert remark == "the alpha channel, which is no cut-out, is left out"


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1"])
def test_what_is_no_image_is_named_by_how_it_begins(content, tmp_path):
    """A failed download, a page in place of a photo, a pointer of Git LFS."""
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image \(it (is empty|begins with )") as error:
        files.read_image(tmp_path / "a.jpg")
    assert repr(content[:16]) in str(error.value) or not content


# Written by pillow-heif 1.8.1, which also encodes: SMOOTH turned back in each of the eight ways, as a phone does it, by
# a field of the format and the same in EXIF; SMOOTH with ALPHA; a red picture and a blue one, which is the main one.
HEIC = Path(__file__).parent / "heic"
SMOOTH = np.dstack([255 * RAMP, 255 * RAMP[::-1], 0 * RAMP]).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_s_heic_is_upright(orientation, tmp_path):
    """It must be turned once, not by the field and again by EXIF."""
    path = HEIC / f"orientation_{orientation}.heic"
    assert np.abs(files.read_image(path) - SMOOTH.astype(int)).mean() < 3
    assert files.image_size(path) == (H, W)
    if orientation == 6:  # a program has changed EXIF alone, which viewers pass over
        data = path.read_bytes()
        at = data.index(b"irot") + 4
        (tmp_path / "a.heic").write_bytes(data[:at] + b"\0" + data[at + 1 :])
        assert files.read_image(tmp_path / "a.heic").shape[:2] == files.image_size(tmp_path / "a.heic") == (W, H)


BANDS = np.random.default_rng(2).integers(0, 256, (H, W, 5), dtype=np.uint8)
LAYOUTS = {
    "each pixel": (BANDS, {"photometric": "minisblack", "planarconfig": "contig"}),
    "planes": (BANDS.transpose(2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}),
    "colours and more": (BANDS, {"photometric": "rgb", "extrasamples": [0, 0]}),
    "tiles": (BANDS, {"photometric": "rgb", "extrasamples": [0, 0], "tile": (16, 16), "compression": "zlib"}),
    "pages of ImageJ": (BANDS.transpose(2, 0, 1), {"imagej": True, "metadata": {"axes": "CYX"}}),
    "OME": (BANDS.transpose(2, 0, 1), {"ome": True, "metadata": {"axes": "CYX"}}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_that_a_user_chooses_are_shown(layout, tmp_path, monkeypatch):
    values, how = LAYOUTS[layout]
    tifffile.imwrite(tmp_path / "a.tif", values, **how)
    for bands in ((4, 3, 2), (5,)):
        image, remark = files.read_photo(tmp_path / "a.tif", bands)
        expected = BANDS[..., [band - 1 for band in bands]]
        np.testing.assert_array_equal(image, expected if len(bands) == 3 else expected.repeat(3, axis=2))
        assert remark == f"of 5 bands {', '.join(map(str, bands))} are taken"
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)  # the header has the size
    assert files.image_size(tmp_path / "a.tif") == (H, W)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a\.tif is not a readable image \(bands=\[6\], and it has 5"):
        files.read_photo(tmp_path / "a.tif", (6,))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])  # Pillow reads the header of the first
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_bands_of_a_photo_that_lies_on_its_side(orientation, kind, tmp_path):
    how = LAYOUTS["each pixel"][1] | {"extratags": [(files.ORIENTATION, "H", 1, orientation, True)]}
    tifffile.imwrite(tmp_path / "a.tif", BANDS.astype(kind), **how)
    image = files.read_image(tmp_path / "a.tif", (1, 2, 3))
    assert files.image_size(tmp_path / "a.tif") == image.shape[:2] == ((W, H) if orientation > 4 else (H, W))


def test_bands_of_many_bits_are_scaled_together_and_pixels_without_data_are_black(tmp_path):
    height = np.dstack([100 * RAMP + 20, 50 * RAMP + 20, 0 * RAMP]).astype(np.float32)
    height[:5], height[5] = -9999, np.nan
    tifffile.imwrite(tmp_path / "a.tif", height, photometric="rgb", extratags=[(42113, 2, 0, "-9999", True)])
    image, remark = files.read_photo(tmp_path / "a.tif", (1, 2, 2))
    known = height[6:]
    low, high = np.percentile(known[..., :2], [0.1, 99.9])
    expected = ((known[..., [0, 1, 1]] - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(image[6:] - expected).max() < 2 and not image[:6].any()
    assert re.search(
        r"of 3 bands 1, 2, 2 are taken; 32-bit values: 2\d\.\d+ becomes black and 1\d\d\.\d+ white", remark
    )


def test_a_data_set_in_chosen_bands(photos, monkeypatch):
    """Labelled photos too; other bands are another image for every stage."""
    values, how = LAYOUTS["each pixel"]
    tifffile.imwrite(photos / "a.tif", values, **how)
    files.write_label(photos / "maps" / "a.png", np.ones((H, W), np.uint8))
    load = partial(datasets.load, "folder", root=photos, classes=["cat"], labels=photos / "maps")
    with pytest.raises(ValueError, match=r"bands: \[4, 3, 2\] in dataset_options"):
        load()
    contents = set()
    for bands in ([4, 3, 2], [1, 2, 3], [1]):
        with pytest.warns(UserWarning, match=f"a.tif: of 5 bands {', '.join(map(str, bands))} are taken"):
            (sample,) = load(bands=bands).labelled
        np.testing.assert_array_equal(sample.image()[..., 0], BANDS[..., bands[0] - 1])
        assert sample.truth().all()
        contents.add(sample.content[:16])  # which stages compare
    tifffile.imwrite(photos / "a.tif", 255 - values, **how)
    with pytest.warns(UserWarning, match="of 5 bands 1 are taken"):
        contents.add(load(bands=[1]).labelled[0].content[:16])
    assert len(contents) == 4 and all(re.fullmatch("[0-9a-f]{16}", content) for content in contents)
    tifffile.imwrite(photos / "a.tif", values, **how)
    for bands, says in (([1, 2], "one or three numbers"), (4, "one or three"), ([0], "from 1"), ([1.5], "from 1")):
        with pytest.raises(ValueError, match=f"bands=.* must be .*{says}"):
            load(bands=bands)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r'pip install "plg-utils\[bands\]"'):
        load(bands=[5])


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "AVIF", "WEBP", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_and_image_agree_in_every_format(form, orientation, tmp_path):
    exif = Image.Exif()
    exif[files.ORIENTATION] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "a", form, exif=exif)
    expected = (W, H) if orientation > 4 else (H, W)
    assert files.read_image(tmp_path / "a").shape[:2] == files.image_size(tmp_path / "a") == expected


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG", "MPO", "HEIC"])
def test_of_several_pictures_in_a_file_the_first_is_taken(form, tmp_path):
    """Of a HEIC the main one; said, but for the two that a phone puts into a JPEG."""
    flat = [Image.new("RGB", (W, H), colour) for colour in ("red", "blue")]
    if form == "HEIC":
        shutil.copyfile(HEIC / "burst.heic", tmp_path / "a")
    else:
        flat[0].save(tmp_path / "a", form, save_all=True, append_images=flat[1:])
    image, remark = files.read_photo(tmp_path / "a")
    assert np.abs(image - ([0.0, 0, 255] if form == "HEIC" else [255.0, 0, 0])).max() < 9
    which = "main" if form == "HEIC" else "first"
    assert remark == ("" if form == "MPO" else f"the {which} of 2 pages or frames is taken")


def test_pages_of_a_kind_that_is_not_read_are_passed_over(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:  # a GeoTIFF with a mask of the pixels without data
        file.write(PHOTO, photometric="rgb", metadata=None)
        file.write(np.ones((H, W), bool), subfiletype=4, photometric="mask", metadata=None)
    image, remark = files.read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, PHOTO)
    assert remark == "" and files.image_size(tmp_path / "a.tif") == (H, W)


@pytest.mark.parametrize("bands", [(), (1, 2, 3)])
@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("order", ["thumbnail first", "pyramid", "thumbnail last"])
def test_of_a_tiff_with_smaller_copies_the_full_size_is_read(order, flag, bands, tmp_path):
    pages = [(PHOTO[::4, ::4], flag), (PHOTO[::2, ::2], flag), (PHOTO, 0)]
    pages = {"thumbnail first": pages[::2], "pyramid": pages[::-1], "thumbnail last": pages[::-2]}[order]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page, kind in pages:
            file.write(page, subfiletype=kind, photometric="rgb", metadata=None)
    image, remark = files.read_photo(tmp_path / "a.tif", bands)
    np.testing.assert_array_equal(image, PHOTO)
    assert files.image_size(tmp_path / "a.tif") == (H, W)
    which = "largest" if order == "thumbnail first" else "first"
    said = "" if flag else f"the {which} of {len(pages)} pages or frames is taken"
    assert remark == ("of 3 bands 1, 2, 3 are taken" if bands else said)


def test_changed_photos_are_said_again_in_each_run_though_not_read_again(photos, monkeypatch):
    Image.fromarray(PHOTO).save(photos / "a.jpg")
    Image.fromarray(deep(0, 4095)[..., 0]).save(photos / "deep.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match="deep.png: 16-bit values"):
            assert _photos.unreadable([photos / "a.jpg", photos / "deep.png"]) == {}
        monkeypatch.setattr(files, "read_photo", None)


def test_what_is_left_out_of_a_folder_is_said(photos):
    """Files by their suffix, but not those that no one takes for photos; folders, but not that of the label maps."""
    (photos / "sub").mkdir()
    for name in ("a.jpg", "b.JPG"):
        files.write_image(photos / name, PHOTO)
    files.write_label(photos / "maps" / "a.png", np.ones((H, W), np.uint8))
    for name in ("g.dng", "h.DNG", "j.cr2", "none", "labels.json", ".hidden"):
        (photos / name).write_bytes(b"?")
    says = "files left out: 2 dng, 1 cr2, 1 without suffix; folders not searched: sub[.] "
    with pytest.warns(UserWarning, match=says):
        datasets.load("folder", root=photos, classes=["cat"], labels=photos / "maps")


def test_of_a_heic_and_its_copy_the_copy_is_taken(photos):
    forms = {"a.jpg": "JPEG", "d.gif": "GIF", "e.jfif": "JPEG", "f.avif": "AVIF", "g.jp2": "JPEG2000", "i.TIFF": "TIFF"}
    for name, form in forms.items():
        Image.fromarray(PHOTO).save(photos / name, form)
    for name in ("IMG_1.HEIC", "b.heic", "h.HIF"):
        shutil.copyfile(HEIC / "burst.heic", photos / name)
    files.write_image(photos / "img_1.jpg", PHOTO)
    with pytest.warns(UserWarning, match="1 HEIC photos .* have a copy beside them and are not used, e.g. IMG_1.HEIC"):
        data = datasets.load("folder", root=photos, classes=["cat"])
    assert sorted(sample.path.name for sample in data.unlabelled) == sorted([*forms, "b.heic", "h.HIF", "img_1.jpg"])
    assert {sample.image().shape for sample in data.unlabelled} == {(H, W, 3)}


def test_a_folder_without_photos_says_what_it_holds(photos, monkeypatch):
    (photos / "sub").mkdir()
    for name in ("a.zip", "b.cr2", "c.CR2", ".DS_Store"):
        (photos / name).touch()
    with pytest.raises(FileNotFoundError, match=r"holds no photo .*; it holds 2 \.cr2, 1 (folders|\.zip), 1 "):
        datasets.load("folder", root=photos, classes=["cat"])
    (photos / "a.jpg").symlink_to("/gone/a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is a link to /gone/a\.jpg, which is not there"):
        datasets.load("folder", root=photos, classes=["cat"])
    (photos / "a.jpg").unlink()
    Image.new("RGB", (W, H)).save(photos / "a.jpg")
    monkeypatch.chdir(photos.parent)
    source = datasets.load("folder", root=photos.name, classes=["cat"]).source
    assert source["root"] == photos.as_posix()  # noted so that it is found from elsewhere


# Names

GOOD = (
    "3.45.12\u202fPM",
    "a\u00a0b",
    "a\u3000b",
    "cafe\u0301",
    "\U0001f468\u200d\U0001f469",
    "\u0645\u06cc\u200c\u062e",
)
GOOD += ("100% #1 (a&b)", "$5 or $10", "it's", "[1]", "x<y>")
BAD = {"a\u2028b": "LINE SEPARATOR", "a\nb": "control character", "a\x1bb": "control character", "a\udcffb": "control"}


def test_names_that_systems_allow_are_ids(photos):
    assert [files.check_stem(stem) for stem in GOOD] == [*GOOD]
    for stem, sign in BAD.items():
        with pytest.raises(ValueError, match=f"cannot be a file name: it must not .*{sign}.*Rename it"):
            files.check_stem(stem)
    for name in ("a.png", "a\u2028b.png"):
        Image.fromarray(PHOTO).save(photos / name)
    load = partial(datasets.load, "folder", root=photos, classes=["cat"])
    for how in ("stop", "when_read"):
        with pytest.raises(ValueError, match="LINE SEPARATOR"):
            load(on_bad_image=how)
    with pytest.warns(UserWarning, match="LINE SEPARATOR"):
        assert [sample.id for sample in load(on_bad_image="skip").unlabelled] == ["a"]


# Figures


@pytest.mark.parametrize("name", ["Ba$$in", "sale_$5_or_$10"])
def test_a_figure_takes_a_dollar_as_it_is(name, tmp_path):
    classes = Classes((name,) * 3, ((),) * 3, ((0, 0, 0),) * 3)
    figure = figures.gallery([[PHOTO], [PHOTO[:, :, 0] % 3]], [name], classes)
    figures.save(figure, tmp_path / "a.png")
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {name}
    assert not any(text.get_parse_math() for text in figure.findobj(plt.Text) if text.get_text() == name)


def test_a_gallery_of_strips_or_of_nothing_has_a_size_that_can_be_drawn(tmp_path):
    strips = [[np.zeros((900, 3, 3), np.uint8)], [np.zeros((3, 900, 3), np.uint8)]]
    for rows, titles in ((strips, ["a"]), ([[], []], [])):
        figure = figures.gallery(rows, titles)
        figures.save(figure, tmp_path / "a.png")
        assert max(figure.get_size_inches()) < 12


# Strips


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (1, 500)])
@pytest.mark.parametrize("model", ["sam", "sam_official"])
def test_masks_of_strips_have_their_size(model, size):
    """The network's 128 pixels of 900 leave less than half a pixel of 3."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    find = mask_models.build(model, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    (masks,) = find([image])
    assert masks.size == size and masks.dense().shape[1:] == size
    prompted, scores = sam.build_box_prompter()([image], [np.array([[0, 0, size[1], size[0]]])])[0]
    assert prompted.shape == (1, *size) and scores.shape == (1,)


# Checkpoint files


@pytest.fixture(scope="module")
def small_sam():
    """A state dict with the names of SAM vit_b, every weight one number."""
    names = sam_model_registry["vit_b"]().state_dict()
    return {name: torch.full((), float(index)) for index, name in enumerate(names)}


def unwrap(path: Path, state: dict) -> dict:
    shapes = {name: weight.shape for name, weight in state.items()}
    return checkpoints.unwrap(path, checkpoints.load_sam_state(path), shapes, "SAM vit_b")


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: weight for name, weight in state.items()}


OPTIMIZER = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "plain": lambda state: state,
    "model and optimizer": lambda state: {"model": state, "optimizer": OPTIMIZER, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "parallel training": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "lightning": lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 0.1}},
    "twice": lambda state: {"checkpoint": {"model": prefixed("module._orig_mod.", state)}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_weights_are_found(kind, small_sam, tmp_path):
    torch.save(WRAPPED[kind](small_sam), tmp_path / "a.pth")
    assert unwrap(tmp_path / "a.pth", small_sam) == small_sam


STRANGE = {
    "MobileSAM": lambda state: state | {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(2)},
    "SAM with the names of transformers, which is for masks/hf": lambda state: (
        prefixed("vision_encoder.", state) | {"mask_decoder.x": 1}
    ),
    "SAM 2, which is for masks/hf": lambda state: {"model": {"image_encoder.trunk.pos_embed": torch.zeros(2)}},
    "the state of an optimizer": lambda state: OPTIMIZER,
    "CLIP": lambda state: {"visual.proj": torch.zeros(2)},
    "SAM vit_b": lambda state: state | {"image_encoder.blocks.0.lora.a": torch.zeros(2)},  # an adapter: not dropped
    "SAM vit_l": lambda state: state | {"image_encoder.blocks.23.norm1.bias": torch.zeros(2)},
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_weights_of_another_network_are_refused_in_a_line(kind, small_sam, tmp_path):
    torch.save(STRANGE[kind](small_sam), tmp_path / "a.pth")
    says = f"a.pth does not hold the weights of SAM vit_b.*it seems to be {kind}: "
    with pytest.raises(ValueError, match=says) as error:
        unwrap(tmp_path / "a.pth", small_sam)
    assert len(str(error.value)) < 700 + len(str(tmp_path)) and "\n" not in str(error.value)


def test_two_copies_of_the_weights_are_not_chosen_from(small_sam, tmp_path):
    torch.save({"model": small_sam, "ema": small_sam}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="in `model`, `ema`: save"):
        unwrap(tmp_path / "a.pth", small_sam)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")  # would run code, which is not advised
    with pytest.raises(
        ValueError, match="whole.pt is not a readable checkpoint .*more than tensors.*state_dict"
    ) as error:
        checkpoints.load_sam_state(tmp_path / "whole.pt")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("load", [lambda path: sam.load(path, "vit_b"), clip.load])
def test_both_networks_say_what_a_file_seems_to_be(load, tmp_path):
    save_file({"vision_model.embeddings.x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors does not hold .*CLIP with the names of transformers"):
        load(str(tmp_path / "model.safetensors"))


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(*arguments: str, name: str = "demo", code: int = 0) -> str:
    """What a dry run prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert run.main([name, *arguments, "--dry-run"]) == code, out.getvalue()
    return out.getvalue()


def test_a_path_is_no_yaml(here):
    for name in ("trip #2", "2024-01-05", "2024", "null", "Rome: day 1", "~x", "[1]", "a, b", "0x10", "yes"):
        (here / name).mkdir()
        for short in ("data_root", "class_file") if name != "[1]" else ("data_root",):
            assert repr(str(here / name)) in dry("-p", short, name)


def test_a_class_list_that_lacks_brackets_is_answered_with_them(here):
    for given in ("cat,dog", "cat"):
        assert f"or a list of names: -p class_file '[{given}]'" in dry("-p", "class_file", given, code=2)
    assert "'classes': ['cat', 'dog']" in dry("-p", "class_file", "[cat, dog]", name="my_photos")
    assert "there is no" in dry("-p", "data_root", "none", code=2)
    assert "data_root is ''" in dry("-p", "data_root", "", code=2)  # a shell variable that is not set
    for name, value in (("labels", "2024"), ("root", "2024-01-05"), ("checkpoint", "2024-01-05")):
        options = "mask_options" if name == "checkpoint" else "dataset_options"
        assert f"{name} in {options} is " in dry("-p", options, f"{{{name}: {value}}}", code=2)
    for name, text in (("dataset_options", "{labels: /a/maps #2}"), ("labeller", "cam # or sepl")):
        assert f"the value of {name} is {text}, and YAML leaves out all after ' #'" in dry("-p", name, text, code=2)
    assert "maps #2" in dry("-p", "dataset_options", "{labels: '/a/maps #2'}", name="my_photos")


def test_relative_paths_in_options_are_meant_from_where_the_command_is_given(here):
    for name in ("my_sam.pth", "my.yaml", "encoder.safetensors", "miniature_sam"):
        (here / name).touch()
    (here / "maps").mkdir()
    for options, key, given in (
        ("dataset_options", "labels", "maps"),
        ("dataset_options", "root", "maps/.."),
        ("dataset_options", "classes", "my.yaml"),
        ("mask_options", "checkpoint", "my_sam.pth"),
        ("segmenter_options", "pretrained", "encoder.safetensors"),
    ):
        name = "my_photos" if options == "dataset_options" else "demo"
        assert f"'{key}': '{here / given}'" in dry("-p", options, f"{{{key}: {given}}}", name=name), given
        grids = [dry("-g", options, f"[{{{key}: {path}}}]", name=name) for path in (given, here / given)]
        assert grids[0] == grids[1], given
    for options, key, given in (
        ("mask_options", "checkpoint", "miniature_sam"),
        ("encoder_options", "checkpoint", "ViT-B/16"),
        ("dataset_options", "classes", "plg_utils/datasets/classes/voc.yaml"),
    ):
        assert f"'{key}': '{given}'" in dry("-p", options, f"{{{key}: {given}}}")
    assert f"there is no file {here / 'none.pth'}" in dry("-p", "mask_options", "{checkpoint: none.pth}", code=2)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("device", "gpu", "there is no device 'gpu', only auto, cpu, cuda"),
        ("mask_model", "sam2", "there is no mask_model 'sam2', only hf, sam, sam_official"),
        ("seed", "-1", "a whole number from 0 on"),
        ("labelled", "many", "a value of type int"),
        ("threshold", ".nan", "give a finite number"),
        ("steps", "null", "steps is None"),
        ("threshold", "20", "give a number from -1 to 1"),
        ("confidence", "95", "give a number from 0 to 1"),
        ("rule", "cosin", "there is no rule 'cosin', only cosine, softmax"),
        ("passes", "quick", "only exact, fast, v2"),
        ("methods", "[supervised, unimatc]", "there is no method 'unimatc'"),
        ("labeller", "few_shots", "did you mean 'few_shot'"),
        ("label_filter", "{precison: 0.9}", "no option of label_filter called 'precison', only precision, confidence"),
        ("label_filter", "{precision: high}", "precision in label_filter is 'high', a str; give a value of type float"),
        ("loss_options", "{fill: 1}", "fill in loss_options is 1, a int; give a value of type bool"),
        ("training_options", "{steps: 5}", "no option of training_options called 'steps'"),
        ("mask_options", "{tille: 512}", "did you mean 'tile'"),
    ],
)
def test_a_dry_run_refuses_what_would_fail_later(name, text, says):
    """Some failed after hours, with Python's TypeError, or were passed over (steps in training_options)."""
    assert says in dry("-p", name, text, code=2)


def test_options_that_are_right_pass(monkeypatch):
    monkeypatch.setattr(losses, "choices", lambda: ["entropy_of_mine"])
    for name, text in {
        "methods": "[entropy_of_mine]", "labeller": "concepts", "label_filter": "{precision: 1}", "few_shot": "{}",
        "loss_options": "{gate: true, threshold: [0.9, 0.95]}", "training_options": "{ema: 0.99}",
        "encoder_options": "{checkpoint: ViT-B/16, tile: 512}", "evaluated": "[val, test]", "threshold": "0.3",
        "borders_too": "[official, zero_shot]", "mask_options": "{tile: 512, points_per_side: 16, density: 1}",
        "warm_up": "null", "labelled": "1/8", "device": "cuda:1", "steps": "7",
    }.items():  # fmt: skip
        assert f"'{name}': " in dry("-p", name, text), name
    right = "{bands: [4, 3, 2], on_bad_image: skip, val: 2}"
    assert "'bands': [4, 3, 2]" in dry("-p", "dataset_options", right, name="my_photos")


def test_data_root_of_a_grid_or_a_file_is_not_passed_over(here):
    """Both were: the run took the default folder."""
    assert "data_root is for -p alone" in dry("-g", "data_root", "a,b", code=2)
    (here / "published" / "mine").mkdir(parents=True)
    (here / "published" / "mine" / "parameters.yaml").write_text("data_root: /photos")
    with pytest.raises(run.Refused, match="write dataset_options: {root: '/photos'}"):
        run.steps_of(run.read("mine", published=here / "published"), {}, "mine")


def test_a_folder_for_a_file_is_refused_in_a_line(here):
    (here / "published" / "mine" / "parameters.yaml").mkdir(parents=True)
    out = io.StringIO()
    with contextlib.redirect_stderr(out):
        assert run.main(["mine"], published=here / "published") == 2
    assert "parameters.yaml is a folder" in out.getvalue() and "\n" not in out.getvalue().strip()
    readers = (files.read_embeddings, files.read_image, files.read_label, files.read_lines)
    for read in (checkpoints.load_sam_state, *readers):
        with pytest.raises((ValueError, OSError), match=f"{here} is a folder"):
            read(here)


def test_a_dead_kernel_is_told_with_what_to_do(here, monkeypatch, capsys):
    def die(step, folder):
        raise type("DeadKernelError", (RuntimeError,), {})("Kernel died")

    monkeypatch.setattr(run, "execute", die)
    monkeypatch.setenv("PLG_RESULTS", str(here))
    assert not run.execute_all(run.steps_of(run.read("demo"), {}, "demo"), here / "demo")
    said = capsys.readouterr().err
    assert "Kernel died" in said and "probably out of memory" in said and "images_at_once" in said


def test_printed_commands_survive_spaces(here, monkeypatch, capsys):
    (here / "my run").mkdir()
    files.write_json(here / "my run" / "summary.json", {"rows": 5})
    run.write_page(here / "my run")
    assert "python -m plg_utils.page 'my run'" in capsys.readouterr().err


# Large photos


def test_photos_beyond_the_bound_are_refused_with_the_bound(tmp_path, monkeypatch):
    files.write_image(tmp_path / "a.png", PHOTO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Image.MAX_IMAGE_PIXELS > 110_000_000  # a photo of 100 megapixels is read without a word
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W)
        assert files.read_image(tmp_path / "a.png").shape == (H, W, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    for read in (files.read_image, files.image_size, files.read_label):
        with pytest.raises(ValueError, match=r"a\.png is refused: 0 megapixels are the most .* cut it into"):
            read(tmp_path / "a.png")
    shutil.copyfile(HEIC / "burst.heic", tmp_path / "a.heic")
    tifffile.imwrite(tmp_path / "a.tif", PHOTO)
    for name, bands in (("a.heic", ()), ("a.tif", (1,))):
        with pytest.raises(ValueError, match=rf"{name} is refused: 0 megapixels are the most .* cut it into"):
            files.read_image(tmp_path / name, bands)


def test_large_photos_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    for name in "abcd":
        files.write_image(tmp_path / f"{name}.png", PHOTO)
    inside, seen, transpose = [], [], files.ImageOps.exif_transpose

    def slow(image, **how):
        inside.append(image)
        seen.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return transpose(image, **how)

    monkeypatch.setattr(files.ImageOps, "exif_transpose", slow)
    for large, is_alone in ((H * W, False), (H * W - 1, True)):
        monkeypatch.setattr(files, "LARGE", large)
        seen.clear()
        with ThreadPoolExecutor(4) as readers:
            list(readers.map(files.read_image, tmp_path.glob("*.png")))
        assert len(seen) == 4 and (max(seen) == 1) == is_alone
