"""Paths, and reading and writing files whole or not at all.

A file appears under its name only when it is complete (`atomic`), so a file that exists is finished. What is read is
checked here: an error names the file, says what was found, what was expected and what to do.
"""

import errno
import hashlib
import json
import os
import re
import reprlib
import secrets
import socket
import sys
import threading
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pi_heif
import yaml
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from plg_utils import run_lengths
from plg_utils.records import IGNORE, Masks

try:
    import fcntl
except ImportError:  # Windows: no locks, one process at a time
    fcntl = None
if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]  # notebooks run in different folders, so no path is relative to one
ORIENTATION, QUARTER = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and its values for photos that lie on their side
# Formats of photos, whatever their names end in. PIL knows more, and runs another program (Ghostscript) for one.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
HEIC = (".heic", ".heif", ".hif")  # suffixes of what phones write
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", *HEIC)
pi_heif.register_heif_opener()  # for PIL
# PIL warns of more pixels and refuses twice as many: 268 megapixels take 2 GB as they are read.
Image.MAX_IMAGE_PIXELS = 2**27
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LARGE = 2**25  # pixels; larger photos are read one after the other
_ONE = threading.Lock()
LONGEST = 200  # bytes of an id; file systems allow 255, of which suffixes and temporary names need some
DISK_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}


def data_root() -> Path:
    """Folder of the data sets: the environment's PLG_DATA, else `data` in the repository."""
    return Path(os.environ.get("PLG_DATA") or ROOT / "data").expanduser().absolute()


def results_root() -> Path:
    """Folder of the runs: the environment's PLG_RESULTS, else `results/local` in the repository."""
    return Path(os.path.expanduser(os.environ.get("PLG_RESULTS") or ROOT / "results" / "local")).absolute()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place if the block succeeds, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix hides half-written files from `*.png`; the token separates two writers of the same file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # of a new file of this user; some libraries write files no one else may read
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in DISK_FULL and "No space left" not in str(error):
            raise
        problem = f"the disk is full: {path} was not written. Free some space, and start the same command again"
        raise OSError(errno.ENOSPC, problem) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, *, wait_for: str = "") -> Iterator[str]:
    """Hold a lock while the block runs; give "", or who else holds it; wait_for: what that one makes, to wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        problem = f"no results can be written into {path.parent}: {error.strerror}"
        raise ValueError(f"{problem}. Let PLG_RESULTS name a folder where you may write") from error
    with file:
        try:
            fcntl and fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait_for:
                yield holder
                return
            print(f"waits for {holder} with {wait_for}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(f"{path} cannot be locked ({error}): let PLG_RESULTS name a disk that can") from error
        file.truncate(0)  # what is appended then stands at the start
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield ""


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_stem(stem: str, where: str = "") -> str:
    """Return the id of an image, or the name of a run, if it is safe as a file name; else refuse it.

    where: what the error begins with, such as the list and the line
    """
    if not isinstance(stem, str):
        problem = "it must be a text, so put it in quotes"
    elif not stem or stem.startswith("."):
        problem = "it must not be empty or start with a dot. Rename it"
    elif bad := [sign for sign in stem if sign in "/\\" or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]:
        which = unicodedata.name(bad[0], "a control character")
        problem = f"it must not hold a slash, a line break or a control character, as {bad[0]!a} ({which}). Rename it"
    elif len(stem.encode()) > LONGEST:
        problem = f"it has over {LONGEST} bytes. Shorten it"
    elif stem.casefold() in ("manifest", "outputs"):
        problem = f"each stage keeps a {stem.casefold()}.json. Rename it"
    else:
        return stem
    raise ValueError(f"{f'{where}: ' if where else ''}{shown(stem)} cannot be a file name: {problem}")


def same_name(stem: str) -> str:
    """The form in which two file names are the same on every system: accents in one way, case left out."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def repeated(items: Iterable) -> list:
    """Items that occur more than once."""
    return [item for item, count in Counter(items).items() if count > 1]


def check_inside(path: Path, root: Path) -> Path:
    """Return a path below a data set's root, unless a link leads out of the root; PLG_LINKS=1 allows such links."""
    real = path.resolve()
    if real.is_relative_to(root.resolve()) or os.environ.get("PLG_LINKS") == "1":
        return path
    raise ValueError(
        f"{path} is a link that leads out of {root}, to {real}. A downloaded list must not choose files elsewhere. "
        "Copy the file there, or, if you made the link, allow links with PLG_LINKS=1 in the environment"
    )


@contextmanager
def reading(path: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Make the error of a file that cannot be read name the file, and say what it should be and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        remedy = remedy.removeprefix("delete it and ")
        if Path(path).is_symlink():
            raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is not there") from error
        raise FileNotFoundError(f"{path} does not exist. It should be {what}: {remedy}") from error
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read by this user: change its permissions, or {remedy}") from error
    except Image.DecompressionBombError as error:
        problem = f"{path} is refused: {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels are the most ({error})"
        raise ValueError(f"{problem}. Make it smaller, or cut it into several files") from error
    except MemoryError as error:  # the file may be good, so it must not count as a bad one
        problem = f"{path} was not read: the memory is full ({error})"
        raise MemoryError(f"{problem}. Free some, or use less at once") from error
    except Exception as error:  # of a damaged file the libraries raise nearly anything
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a folder, not {what}: {remedy}") from error
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).replace(f" {str(path)!r}", "")
        reason = _unknown(path) if isinstance(error, UnidentifiedImageError) else reason
        raise ValueError(f"{path} is not {what} ({reason[:300] or type(error).__name__}); {remedy}") from error


def _unknown(path: str | Path) -> str:
    """Say what a file is that PIL does not take for an image."""
    if _begin(path, 4) in TIFF:
        return f"a TIFF of values or bands that PIL does not read; {CHOOSE}"
    return f"it begins with {begin!r}" if (begin := _begin(path, 16)) else "it is empty"


# Images and label maps

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how it begins
CHOOSE = "bands: [4, 3, 2] in dataset_options (plg label: --bands 4,3,2) would choose what to show"
DEFECTS = 0.001  # share of the pixels that may be defects, at each end of the values
PHOTO = "a readable image", "export it again as 8-bit RGB, or remove it"


def read_image(path: str | Path, bands: Sequence[int] = ()) -> np.ndarray:
    """Read a photo as a camera's owner sees it (EXIF rotation applied, grey becomes RGB): (H, W, 3) uint8 RGB."""
    return read_photo(path, bands)[0]


def read_photo(path: str | Path, bands: Sequence[int] = ()) -> tuple[np.ndarray, str]:
    """Read a photo as `read_image` does, and say what of the file the image does not show; "" if it shows all.

    What is transparent becomes white, as on a page.
    bands: which bands of the file are red, green and blue, or one that is grey, counted from 1; () those it says itself
    """
    if bands:
        return _read_bands(path, bands)
    with reading(path, *PHOTO), Image.open(path, formats=FORMATS) as image, _turn(image):
        others = _to_full_size(image)
        remarks, coding = [], str([tile.args for tile in image.tile])  # the coding is gone once the image is loaded
        if others and image.format != "MPO":  # a phone's MPO holds the photo twice
            which = ("main" if image.format == "HEIF" else "largest") if image.tell() else "first"
            remarks.append(f"the {which} of {others + 1} pages or frames is taken")
        if rest := re.search(r"'(RGB|L)X+\b", coding):
            remarks.append(f"the bands {', '.join(rest[1])} are taken, and {rest[0].count('X')} more left out")
        if image.format == "TIFF":
            _check_values(image, coding)
        ImageOps.exif_transpose(image, in_place=True)  # without a copy
        upright = image
        if upright.mode in ("I", "F"):
            raise ValueError(f"32-bit or signed values, mode {upright.mode}: which value is white is unknown; {CHOOSE}")
        if upright.mode.startswith("I;16"):  # 16-bit grey, which PIL would clip at 255
            values = np.asarray(upright)
            inverse = image.format == "TIFF" and image.tag_v2.get(262) == 0  # white is 0, which PIL passes over
            grey, remark = _eight_bits(65_535 - values if inverse else values)
            remarks, upright = [*remarks, *remark], Image.fromarray(grey)
        if upright.has_transparency_data:
            upright, remark = _on_white(upright)
            remarks += remark
        pixels = np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
        deep = ";16" in coding or (image.format == "JPEG2000" and _is_deep(path))
        if deep and image.mode[0] != "I" and (pixels >= 64).mean() < DEFECTS:  # Pillow reads the upper 8 bits of 16
            raise ValueError(f"16-bit colours that use 14 bits or fewer{f'; {CHOOSE}' * (image.format == 'TIFF')}")
    return pixels, "; ".join(remarks)


def _to_full_size(image: Image.Image) -> int:
    """Turn to the photo in a file of several pages; returns how many there are besides it, its smaller copies left out.

    In a TIFF it is the largest page, the first of equals: thumbnails and the levels of a pyramid may come before it.
    """
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) - 1
    pixels = {}  # of each page that is no "reduced-resolution version of another image in this file"
    with suppress(EOFError):
        for page in count():
            with suppress(SyntaxError):  # of a kind that PIL does not read, such as some masks
                image.seek(page)
                pixels[page] = image.width * image.height * (1 - image.tag_v2.get(254, 0) % 2)
    image.seek(max(pixels, key=pixels.get))
    return max(0, sum(map(bool, pixels.values())) - 1)


def _is_deep(path: str | Path) -> bool:
    """Whether a JPEG 2000 has values of over 8 bits; its header has the bits, of which the first is for signed values.

    A file has a box called ihdr, and a stream without file around it the mark SIZ.
    """
    found = re.search(rb"ihdr.{10}(.)|\xff\x4f\xff\x51.{38}(.)", _begin(path, 4096), re.DOTALL)
    return found is None or (found[1] or found[2])[0] & 127 > 7  # bits - 1; 255 where they differ


def _check_values(image: Image.Image, coding: str) -> None:
    """Refuse a TIFF whose values Pillow would take for others; coding: how it would read them."""
    if 2 in image.tag_v2.get(339, ()) and image.mode != "I":
        raise ValueError("signed values: which is white is unknown")
    if max(image.tag_v2.get(258, (1,))) > 8 and image.mode[0] not in "IF" and ";16" not in coding:
        raise ValueError(f"16-bit colours in planes; {CHOOSE}")


def _on_white(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """An image on white where it is transparent, and how much that is; without its alpha, if that is no cut-out."""
    image, pixels = image.convert("RGBA"), image.width * image.height
    clear, *_, opaque = image.getchannel("A").histogram()
    if opaque == pixels:
        return image.convert("RGB"), []
    if clear == pixels or clear + opaque < pixels / 2:  # a program wrote zeros, or another band such as near infrared
        return image.convert("RGB"), ["the alpha channel, which is no cut-out, is left out"]
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return white, [f"transparent pixels, {1 - opaque / pixels:.1%}, become white"]


def _read_bands(path: str | Path, bands: Sequence[int]) -> tuple[np.ndarray, str]:
    """Read these bands of a photo, see `read_photo`; values of over 8 bits are scaled by those in use."""
    with reading(path, *PHOTO), _ONE:
        if _begin(path, 4) in TIFF:
            with _tiff(path) as (pixels, size, tags):
                values = np.moveaxis(pixels.asarray(), [pixels.axes.index("Y"), pixels.axes.index("X")], [0, 1])
                turned = tags.valueof(ORIENTATION, 1)
                nothing = float(str(tags.valueof(42113, "nan")).strip("\0 "))  # GDAL's text for no data
            values = values.reshape(*size, -1)  # (H, W, all bands)
            values = values.astype(np.uint8) * 255 if values.dtype == bool else values
        else:
            with Image.open(path, formats=FORMATS) as image:
                turned, nothing = image.getexif().get(ORIENTATION, 1), None
                values = np.atleast_3d(np.asarray(image.convert("RGBA") if image.mode == "P" else image))
        count = values.shape[2]
        if max(bands) > count:
            raise ValueError(f"bands={list(bands)}, and it has {count}")
        values = values[:, :, [band - 1 for band in bands]]  # (H, W, 1 or 3)
        values, remarks = (values, []) if values.dtype == np.uint8 else _eight_bits(values, nothing)
        image = Image.fromarray(np.broadcast_to(values, (*values.shape[:2], 3)).copy())
        image.getexif()[ORIENTATION] = turned
        taken = f"of {count} bands {', '.join(map(str, bands))} are taken"
        return np.array(ImageOps.exif_transpose(image)), "; ".join([taken, *remarks])


def _begin(path: str | Path, length: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)


@contextmanager
def _tiff(path: str | Path) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    """Open a TIFF: give tifffile's series of its pixels, which are not read yet, their size (H, W), and the tags."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError('bands of a TIFF are read after pip install "plg-utils[bands]"') from error
    with tifffile.TiffFile(path) as file:
        first = max(file.series, key=lambda one: one.sizes.get("height", 0) * one.sizes.get("width", 0))  # no thumbnail
        sizes = dict(zip(first.axes, first.shape, strict=True))
        if sum(size > 1 for axis, size in sizes.items() if axis not in "YX") > 1 or not {"Y", "X"} <= sizes.keys():
            raise ValueError(f"{sizes} pixels, and not height, width and bands")
        if sizes["Y"] * sizes["X"] > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{sizes['X']} x {sizes['Y']} pixels")
        yield first, (sizes["Y"], sizes["X"]), first.pages[0].tags


def _turn(image: Image.Image) -> AbstractContextManager:
    """Wait until no other thread decodes a large photo, if this is one; PIL and NumPy need 7 bytes for a pixel."""
    return _ONE if image.width * image.height > LARGE else nullcontext()


def _eight_bits(values: np.ndarray, nothing: float | None = None) -> tuple[np.ndarray, list[str]]:
    """Values as uint8, and what was done, unless they are 16-bit ones that use a quarter of the 65,536 values.

    Cameras and microscopes of 10 to 14 bits write such files. A thousandth of the pixels at each end may be defects.
    nothing: the value of pixels without data, which become black, as those that are not finite
    """
    empty = None if nothing is None else ~np.isfinite(values) | (values == nothing)
    used = values if empty is None else values[~empty]
    low, high = (float(value) for value in np.percentile(used, [100 * DEFECTS, 100 * (1 - DEFECTS)]))
    if high == low:  # small things on a flat ground
        low, high = float(used.min()), float(used.max())
    if values.dtype == np.uint16 and (high - low >= 2**14 or high == low):
        scaled, said = values >> 8, []
    else:
        scaled = np.round((values.astype(np.float32) - low) * (255 / (high - low or 1))).clip(0, 255)
        said = [f"{8 * values.itemsize}-bit values: {low:.5g} becomes black and {high:.5g} white"]
    return (scaled if empty is None else np.where(empty, 0, scaled)).astype(np.uint8), said


def image_size(path: str | Path) -> tuple[int, int]:
    """Read from its header what size (H, W) `read_image` will return."""
    with reading(path, *PHOTO):
        try:
            with Image.open(path, formats=FORMATS) as image:
                _to_full_size(image)
                (width, height), orientation = image.size, image.getexif().get(ORIENTATION)
                turned = orientation in QUARTER and image.format != "TIFF"  # whose size Pillow has turned already
        except UnidentifiedImageError:
            if _begin(path, 4) not in TIFF:
                raise
            with _tiff(path) as (_, (height, width), tags):
                turned = tags.valueof(ORIENTATION, 1) in QUARTER
    return (width, height) if turned else (height, width)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 RGB: JPEG if the name ends so, else PNG."""
    _expect(path, image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size, image, "uint8 (H, W, 3) pixels")
    with atomic(path) as partial:
        Image.fromarray(image).save(partial, format="JPEG" if _is_jpeg(path) else "PNG", quality=95)


def _is_jpeg(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".jpg", ".jpeg")


def _expect(path: str | Path, right: bool, values: "np.ndarray | torch.Tensor", what: str) -> None:
    if not right:
        raise ValueError(f"{path} would hold {values.dtype} {tuple(values.shape)}, not {what}")


def read_label(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Read a label map, a palette or grey PNG: (H, W) uint8, values below `num_classes` (if given) or IGNORE."""
    remedy = "write it again with the stage or the tool that made it"
    with reading(path, "a readable label map", remedy), Image.open(path, formats=FORMATS) as image:
        few_bits = re.search(r"'L;([24])'", str(image.tile))  # gone once the image is loaded
        image.load()
    label, problem = np.array(image), ""
    if image.format != "PNG":
        problem = f"is a {image.format} file, not a PNG: other formats may change class values"
    elif label.dtype != np.uint8 or label.ndim != 2:
        problem = f"holds {label.dtype} {label.shape}, not a uint8 (H, W) label map"
    elif few_bits:
        problem = f"is grey of {few_bits[1]} bits, which readers stretch to 0 to 255"
    if problem:
        remedy = "save the numbers of the classes, not colours, as 8-bit grey or palette PNG"
        raise ValueError(f"{path} {problem}; {remedy}")
    if num_classes is not None:
        unknown = [int(value) for value in np.unique(label) if value >= num_classes and value != IGNORE]
        if unknown:
            raise ValueError(
                f"{path} holds the values {shown(unknown)}, not classes 0 to {num_classes - 1} or {IGNORE} (void); "
                "give the classes that it was made with, or change these values"
            )
    return label


@cache
def voc_palette() -> np.ndarray:
    """Colours of the VOC development kit for the values of a label map: (256, 3) uint8 RGB, not to be written to."""
    values = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):  # bits 0, 1, 2 of the value are the highest bits of R, G, B, the next three the next ones
        for channel in range(3):
            palette[:, channel] |= ((values >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


def write_label(path: str | Path, label: np.ndarray, colours: Sequence[tuple[int, int, int]] = ()) -> None:
    """Write a label map (H, W) uint8 as palette PNG: class k has colours[k], other values VOC's colours."""
    right = label.dtype == np.uint8 and label.ndim == 2 and label.size and not _is_jpeg(path)
    _expect(path, right, label, "a PNG of uint8 (H, W) pixels")
    palette = voc_palette().copy()
    if len(colours):
        palette[: len(colours)] = colours
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())  # this makes it a palette image of the same values
    with atomic(path) as partial:
        # Runs of one colour are all there is to find: six times as fast as PNG's usual search at VOC's size, the file
        # is a fifth larger. optimize=True would save a tenth of the bytes and take ten times as long.
        image.save(partial, format="PNG", compress_type=zlib.Z_RLE)


# Masks


def write_masks(path: str | Path, masks: Masks) -> None:
    """Write the masks of an image in their order, as JSON: run lengths, area, box (XYWH) and the two scores."""
    counts = [rle["counts"] for rle in masks.rles]
    # The text of a float32 is the shortest that reads back as the same.
    scores = [[float(str(score)) for score in scores] for scores in (masks.predicted_iou, masks.stability)]
    keys = ("counts", "area", "bbox", "predicted_iou", "stability")
    rows = zip(counts, masks.areas(), masks.boxes(), *scores, strict=True)
    write_json(path, {"size": list(masks.size), "masks": [dict(zip(keys, row, strict=True)) for row in rows]})


def read_masks(path: str | Path, size: tuple[int, int] | None = None) -> Masks:
    """Read the masks of an image, in the order in which they were written.

    size: (H, W) of the image, to be sure that they are its own; None: whatever the file says
    """
    again = "delete it and make the masks again"
    table = read_json(path, again)
    with reading(path, "a file of masks", again):
        (height, width), listed = table["size"], table["masks"]
        if not all(type(length) is int and length > 0 for length in (height, width)) or not isinstance(listed, list):
            raise ValueError(f"size {shown(table['size'])}, not [height, width], or {shown(listed)} is no list")
        rows = [(row["counts"], row["predicted_iou"], row["stability"]) for row in listed]
        for counts, *scores in rows:
            if not isinstance(counts, str) or not {*map(type, scores)} <= {int, float, type(None)}:
                raise ValueError("run lengths must be a text, and each score a number or null")
        scores = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 2)  # null becomes nan
        if (np.abs(scores) > np.finfo(np.float32).max).any():
            raise ValueError("a score that is no finite number")
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"{path} holds masks of size {(height, width)}, the image has {tuple(size)}; {again}")
    rles = tuple({"size": [height, width], "counts": counts} for counts, *_ in rows)
    masks = Masks(rles, (height, width), *scores.T.astype(np.float32))
    try:
        run_lengths.check(masks.runs, masks.size)
    except run_lengths.BrokenRunLengths as error:
        raise ValueError(f"{path}, mask {error.index}: {error}; {again}") from error
    return masks


# Embeddings and weights


def write_embeddings(path: str | Path, embeddings: "torch.Tensor") -> None:
    """Write the embeddings of an image's segments, (N, D), in the order of its masks, as safetensors."""
    _expect(path, embeddings.ndim == 2, embeddings, "(N, D) embeddings")
    _write_tensors(path, {"embeddings": embeddings})


def read_embeddings(path: str | Path) -> "torch.Tensor":
    """Read the embeddings of an image's segments: (N, D), on the CPU."""
    with reading(path, "a file of embeddings", "delete it and make it again"):
        with safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor("embeddings")
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ValueError(f"{embeddings.dtype} {tuple(embeddings.shape)}, not (N, D) of floating point")
        if not embeddings.isfinite().all():
            raise ValueError("some are not finite numbers")
    return embeddings


def write_weights(path: str | Path, model: "torch.nn.Module") -> None:
    """Write a network's weights as safetensors."""
    _write_tensors(path, model.state_dict())


def _write_tensors(path: str | Path, tensors: "dict[str, torch.Tensor]") -> None:
    from safetensors.torch import save_file  # torch takes seconds to import, and most files need none

    with atomic(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)


def read_weights(path: str | Path, model: "torch.nn.Module") -> None:
    """Read weights into a network of the same shape."""
    from safetensors.torch import load_file

    again = "delete it and train the network again, or build the network that it was written for"
    with reading(path, "a file of this network's weights", again):
        weights = load_file(path)
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise ValueError(f"{broken[0]} holds what is no finite number")
        model.load_state_dict(weights)


# Tables and class files


def plain(value: Any) -> Any:
    """Turn numpy's numbers and arrays, tuples and paths into what JSON knows; nan becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return value.as_posix()
    return None if isinstance(value, float) and value != value else value


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that gives no needless diff: sorted keys, indented, one newline at the end; nan becomes null."""
    try:
        text = json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path} was not written: {error}") from error
    write_text(path, text + "\n")


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text file, such as a list of images; one that is no text is a ValueError that names it."""
    with reading(path, "text in UTF-8", "save it as plain text in UTF-8, one entry in each line"):
        return _text(path).splitlines()


def _text(path: str | Path) -> str:
    content = Path(path).read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")  # Windows marks both
    if "\0" in text:
        raise ValueError("it holds zeros")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, remedy: str = "delete it and run the stage again that writes it") -> Any:
    """Read JSON; a broken file is a ValueError that names it, and says what to do about it."""
    with reading(path, "readable JSON", remedy):
        return json.loads(_text(path), parse_constant=_no_constant, object_pairs_hook=_no_key_twice)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON, use null")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the key {repeated(name for name, _ in pairs)[0]!r} occurs twice")
    return content


class PlainYaml(yaml.SafeLoader):
    """YAML without repeated keys, which hide a mistake, and without aliases, which can fill the memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose what comes next, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} is an alias: write out its value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Make a dict, if no key is there twice."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in repeated(key.value for key in keys):
            *_, last = (key.start_mark for key in keys if key.value == name)
            raise yaml.MarkedYAMLError(problem=f"the key {name!r} twice: keep one", problem_mark=last)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str | Path, loader: type[yaml.SafeLoader] = PlainYaml) -> Any:
    """Parse YAML; whatever is wrong with it becomes a ValueError that begins with `where`."""
    try:
        return yaml.load(text, loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"{where} is not readable YAML: {error}") from error  # 2001-99-99 is no YAMLError


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; a ValueError names the file and what is wrong with it."""
    return parse_yaml("\n".join(read_lines(path)), path)


def shown(value: Any) -> str:
    """Python's text of a value, cut short before it is made: the text of nested lists can fill the memory."""
    cut = reprlib.Repr()
    cut.maxlevel, cut.maxlist, cut.maxdict, cut.maxstring, cut.maxother = 2, 8, 4, 80, 80
    return cut.repr(value)
