"""Read what an image's bytes state, judge if that is acceptable, and (for verification only) decode all pixels.

``jpegs``, ``avif`` and ``image_formats`` read JPEG, AVIF and WebP. Pillow reads all other formats (a PNG takes 50 µs),
and whatever these are not sure of. Pillow is imported when first needed: most processes never ask it.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO, RawIOBase
from typing import IO, TYPE_CHECKING, Any

from builder.base.errors import too_many_open
from builder.base.options import SamplePolicy
from builder.base.records import ImageInfo, Reason, SampleProblem
from builder.source import image_formats, jpegs
from builder.source.avif import is_avif, is_cut, read_avif

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PILLOW_PIXEL_LIMIT = 178_956_970
"""Most pixels that Pillow accepts by default: twice its MAX_IMAGE_PIXELS of 2**30 // 4 // 3."""

_REFUSALS = (
    OSError,  # the plugins' usual error; UnidentifiedImageError is one
    SyntaxError,  # a malformed part that is read late, PNG chunks on load
    ValueError,  # sizes or tags out of range, bad text (UnicodeDecodeError), text chunks too large
    RuntimeError,  # AVIF's decoder; NotImplementedError for variants of DDS and BLP
    struct.error,  # this and the next: data ends after ImageFile.__init__, which would make it SyntaxError
    IndexError,
    KeyError,
    TypeError,
    EOFError,
    zlib.error,  # compressed FITS in versions that do not turn it into OSError
    OverflowError,  # seeks and sizes beyond 64 bits
    ZeroDivisionError,  # resolutions and scales of 0
    AttributeError,  # a part that a plugin expects after a header is None
    AssertionError,  # the same, asserted by newer versions
)
"""What Pillow raises for bad bytes, besides DecompressionBombError (a plain Exception) and MemoryError."""

_FIRST = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG")
"""Formats whose plugins Pillow imports first."""

FORMATS = (
    *_FIRST,
    *("BLP", "BUFR", "CUR", "PCX", "DCX", "DDS", "EPS", "FITS", "FLI", "FTEX", "GBR", "GRIB", "HDF5", "JPEG2000"),
    *("ICNS", "ICO", "IM", "IMT", "IPTC", "MCIDAS", "MPEG", "TIFF", "MSP", "PCD", "PIXAR", "PSD", "QOI", "SGI"),
    *("SPIDER", "SUN", "TGA", "WEBP", "WMF", "XBM", "XPM", "XVTHUMB", "AVIF"),
)
"""Formats that Pillow may open, in its own order: those that every version reads, and those it only recognises.
source/avif.py reads AVIF; Pillow only decodes it. Plugins of other packages (HEIC, JPEG XL) never make rows."""

_DETAIL_LENGTH = 200  # characters of a message kept in a report


def probe(buffer: bytes | bytearray, start: int = 0, end: int | None = None) -> ImageInfo:
    """Format, stored size, frames and presence of the end marker of ``buffer[start:end]``. Decodes nothing.

    ``0 <= start <= end <= len(buffer)``. The bytes are read in place, by Pillow too.

    Raises SampleProblem: image_unreadable (no format that Pillow decodes), image_too_large (Pillow refuses it as a
    decompression bomb), image_truncated (cut so early that it has no size).
    """
    if end is None:
        end = len(buffer)
    if buffer.startswith(jpegs.MAGIC, start, end):
        width, height, scan, sure = jpegs.read_header(buffer, start, end)
        if sure and width * height <= PILLOW_PIXEL_LIMIT:
            return ImageInfo("JPEG", width, height, 1, jpegs.is_complete(buffer, scan, end))
    elif is_avif(buffer, start, end):
        return _probe_avif(buffer, start, end)
    elif image_formats.recognise(buffer, start, end) == "WEBP":
        size = image_formats.webp_header(buffer, start, end)
        if size and size[0] * size[1] <= PILLOW_PIXEL_LIMIT:
            frames = image_formats.webp_frames(buffer, start, end)
            return ImageInfo("WEBP", *size, frames, image_formats.webp_is_complete(buffer, start, end))
    return probe_with_pillow(buffer, start, end)


def _probe_avif(buffer: bytes | bytearray, start: int, end: int) -> ImageInfo:
    """Probe an AVIF without Pillow. Some Pillows have an AVIF decoder, some not, and rows must not depend on it."""
    avif = read_avif(buffer, start, end)
    if avif is None and is_cut(buffer, start, end):
        raise _cut_early("AVIF", end - start)
    if avif is None:
        raise SampleProblem(Reason.IMAGE_UNREADABLE, f"AVIF of {end - start} bytes whose boxes do not state its size")
    _refuse_large(avif.width, avif.height)
    return ImageInfo("AVIF", *avif)


def probe_with_pillow(buffer: bytes | bytearray, start: int, end: int) -> ImageInfo:
    """``probe`` without its fast paths: ``PIL.Image.open`` for the size, the same rules for the rest."""
    try:
        with opened(BufferedReader(_Stretch(memoryview(buffer)[start:end]))) as image:
            form, (width, height) = image.format or "", image.size
            frames = _frames(image, buffer, start, end)
    except SampleProblem as problem:
        if problem.reason is Reason.IMAGE_UNREADABLE and (form := _cut_format(buffer, start, end)):
            raise _cut_early(form, end - start) from problem
        raise
    return ImageInfo(form, width, height, frames, _has_end(form, buffer, start, end))


class _Stretch(RawIOBase):
    """Bytes in memory as a file for Pillow. A copy would double the memory for an image of 256 MiB."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        place = offset + (0, self._at, len(self._data))[whence]
        if place < 0:
            raise ValueError("a place before the beginning")
        self._at = place
        return place

    def readinto(self, into: Any, /) -> int:
        part = self._data[self._at : self._at + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)


def _cut_early(form: str, length: int) -> SampleProblem:
    return SampleProblem(Reason.IMAGE_TRUNCATED, f"{form} of {length} bytes, cut before its size can be read")


def _refuse_large(width: int, height: int) -> None:
    """Refuse what Pillow refuses. A process may have removed Pillow's own limit."""
    if width * height > PILLOW_PIXEL_LIMIT:
        raise SampleProblem(Reason.IMAGE_TOO_LARGE, f"{width} x {height} pixels, more than {PILLOW_PIXEL_LIMIT}")


def judge(info: ImageInfo, policy: SamplePolicy) -> None:
    """Raise the first SampleProblem of image_too_large, image_truncated, image_too_small, aspect_ratio that applies.

    The policy's ``max_pixels``, ``min_side`` (None: off) and ``max_aspect_ratio`` (longer by shorter side, 0: off) are
    inclusive.
    """
    width, height, min_side, max_aspect_ratio = info.width, info.height, policy.min_side, policy.max_aspect_ratio
    if width * height > policy.max_pixels:
        detail = f"{width} x {height} = {width * height} pixels, more than {policy.max_pixels}"
        raise SampleProblem(Reason.IMAGE_TOO_LARGE, detail)
    if not info.complete:
        raise SampleProblem(Reason.IMAGE_TRUNCATED, f"{info.format} {width} x {height} without an end marker")
    if min_side is not None and (width < min_side or height < min_side):
        raise SampleProblem(Reason.IMAGE_TOO_SMALL, f"{width} x {height}, shorter side under {min_side}")
    ratio = max(width, height) / min(width, height)
    if max_aspect_ratio and ratio > max_aspect_ratio:
        raise SampleProblem(Reason.ASPECT_RATIO, f"{width} x {height} = {ratio:.4g}, more than {max_aspect_ratio:g}")


def decode(data: bytes) -> tuple[int, int]:
    """Decode every pixel of the first frame. Returns width and height as stored. For ``verify --decode``.

    Raises SampleProblem as ``probe`` does, and image_truncated or image_unreadable if pixels cannot be decoded. Memory:
    at least four bytes per pixel, up to Pillow's limit of pixels. Call ``judge`` first if that is too much.
    """
    try:
        with opened(BytesIO(data)) as image:
            size = image.size
            image.load()
    except SampleProblem as problem:
        if is_avif(data, 0, len(data)) and (detail := _lacks_avif()):
            raise SampleProblem(Reason.IMAGE_UNREADABLE, detail) from problem
        raise _cut_or_not(problem, data) from problem
    return size


def _cut_or_not(problem: SampleProblem, data: bytes) -> SampleProblem:
    """image_truncated instead of image_unreadable, if the bytes end too early."""
    cut = _cut_format(data, 0, len(data)) or "truncated" in problem.detail.lower()
    unreadable = problem.reason is Reason.IMAGE_UNREADABLE
    return SampleProblem(Reason.IMAGE_TRUNCATED, problem.detail) if cut and unreadable else problem


def thumbnail(data: bytes, side: int) -> bytes:
    """The first frame resized to ``side`` by ``side`` pixels: RGB, row by row, 3 · side² bytes.

    A JPEG is decoded at an eighth to the whole of its size: the smallest that has ``side`` pixels each way. Other
    formats decode whole. Transparent pixels lie on white. EXIF rotation is not applied. Raises SampleProblem as
    ``decode`` does.
    """
    pillow, _ = _pillow()
    try:
        with opened(BytesIO(data)) as image:
            drafted = image.draft("RGB", (side, side))  # None if the format cannot decode smaller
            area = drafted[1] if drafted else (0, 0, *image.size)
            box = (0, 0, min(area[2], image.width), min(area[3], image.height))  # leaves out the last block's padding
            mode = _plain_mode(image)
            if image.mode != mode:
                image = _converted(image, mode)
            small = image.resize((side, side), pillow.Resampling.BILINEAR, box, reducing_gap=2.0)
            if mode == "RGBA":
                small = pillow.alpha_composite(pillow.new("RGBA", small.size, "white"), small)
            return bytes(small.convert("RGB").tobytes())
    except SampleProblem as problem:
        raise _cut_or_not(problem, data) from problem


def _plain_mode(image: Any) -> str:
    return "RGBA" if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info else "RGB"


def _converted(image: Any, mode: str) -> Any:
    """``Image.convert``, but 16-bit greys are divided by 256. ``convert`` would clip them at 255."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert(mode)
    return image.convert(mode)


@contextmanager
def opened(file: IO[bytes]) -> Iterator[ImageFile]:
    """Open an image in Pillow: the only place where it gets bytes. Whatever it raises becomes a SampleProblem.

    Opening reads headers only, with exceptions. ICO's plugin decodes its largest icon, which is checked against the
    pixel limit by itself. GIF fills one canvas if the first frame must be disposed of. AVIF and WebP decoders allocate
    their canvas. No plugin runs a program or opens another file on opening.
    """
    pillow, plugins = _pillow()
    try:
        with _pillow_as_shipped(plugins), _open(pillow, file) as image:
            if image.format == "EPS":
                detail = "EPS needs a program (Ghostscript) to draw it, which is not run on files of strangers"
                raise SampleProblem(Reason.IMAGE_UNREADABLE, detail)
            if image.format == "MPEG" or isinstance(image, plugins.StubImageFile):
                raise SampleProblem(Reason.IMAGE_UNREADABLE, f"Pillow recognises {image.format}, but never decodes it")
            _refuse_large(image.width, image.height)
            yield image
    except pillow.DecompressionBombError as error:
        raise SampleProblem(Reason.IMAGE_TOO_LARGE, _words(error)) from error
    except MemoryError as error:  # a header claims a size; none is believed beyond the limits above
        raise SampleProblem(Reason.IMAGE_TOO_LARGE, "it needs more memory than there is") from error
    except pillow.UnidentifiedImageError as error:  # its message holds a memory address, different each time
        file.seek(0)
        head = file.read(512)
        named = image_formats.other_format(head)
        detail = f"no known format, begins with {head[:8].hex(' ')}" if head else "empty"
        detail = f"{named}, which is not among the formats that make rows" if named else detail
        raise SampleProblem(Reason.IMAGE_UNREADABLE, detail) from error
    except _REFUSALS as error:
        if too_many_open(error):
            raise  # a plugin's import failed: every image would fail
        raise SampleProblem(Reason.IMAGE_UNREADABLE, _words(error)) from error


def _open(pillow: Any, file: IO[bytes]) -> Any:
    """``PIL.Image.open`` limited to FORMATS, whatever plugins this process has."""
    try:
        return pillow.open(file, formats=_FIRST)
    except pillow.UnidentifiedImageError:
        pillow.init()  # imports all plugins
        return pillow.open(file, formats=[form for form in FORMATS if form in pillow.OPEN])


@contextmanager
def _pillow_as_shipped(plugins: Any) -> Iterator[None]:
    """For this moment: no warnings, and none of the leniences that a process may have set. Other threads see it too."""
    lenient = plugins.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugins.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            plugins.LOAD_TRUNCATED_IMAGES = lenient


@cache
def _pillow() -> tuple[Any, Any]:
    """The modules PIL.Image and PIL.ImageFile."""
    from PIL import Image, ImageFile

    return Image, ImageFile


@cache
def _lacks_avif() -> str:
    """What to say if this Pillow cannot decode AVIF; "" if it can."""
    import PIL
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a version that does not know the feature
        known = features.check("avif")
    return (
        "" if known else f"this Pillow ({PIL.__version__}) has no AVIF decoder to check it with: pip install -U pillow"
    )


def _frames(image: ImageFile, buffer: bytes | bytearray, start: int, end: int) -> int:
    """Number of frames. Read from the bytes if Pillow would seek through all of them, else from Pillow."""
    if image.format == "GIF":
        return image_formats.gif_frames(buffer, start, end)[0]
    if image.format == "TIFF":
        return image_formats.tiff_pages(buffer, start, end)
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except _REFUSALS:  # PSD reads its layers only now; the image itself is open
        return 1


def _has_end(form: str, buffer: bytes | bytearray, start: int, end: int) -> bool:
    """Whether the end marker exists; True for formats that have none to look for."""
    if form in ("JPEG", "MPO"):  # in a multi-picture file: the first picture's end
        return jpegs.is_complete(buffer, jpegs.read_header(buffer, start, end).scan, end)
    if form == "PNG":
        return image_formats.png_is_complete(buffer, start, end)
    if form == "WEBP":
        return image_formats.webp_is_complete(buffer, start, end)
    if form == "GIF":
        return image_formats.gif_frames(buffer, start, end)[1]
    return True


def _cut_format(buffer: bytes | bytearray, start: int, end: int) -> str:
    """The format that these bytes begin as but do not end as; "" if there is none."""
    is_jpeg = buffer.startswith(jpegs.MAGIC, start, end)
    form = "JPEG" if is_jpeg else image_formats.recognise(buffer, start, end)
    return "" if _has_end(form, buffer, start, end) else form


def _words(error: Exception) -> str:
    return f"Pillow: {str(error) or type(error).__name__}"[:_DETAIL_LENGTH]
