"""Image files: what their headers say, their pixels, and the folder that they lie in."""

import difflib
import mmap
import os
import re
import stat
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator

import cv2
import numpy as np

from dpose_jax.data.image_headers import FORMATS, Header, check_decodable, read_header, tiff_as_stored
from dpose_jax.data.jpeg_parts import Window, cut, decode_part

# A photo of 200 megapixels is read. Decoding the largest PNG takes 1.6 GiB, an animated WebP 2.8.
MAX_PIXELS = 1 << 28
# cv2.warpAffine addresses the pixels of its source by 16-bit numbers.
MAX_SIDE = 32_766
_MAX_BYTES = 1 << 31  # of a file
# What turns an image upright by its orientation: whether the axes are exchanged, then the steps along both axes.
_TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip
_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|[\\/]|[A-Za-z][A-Za-z0-9+.-]*://")  # a path of a system, or a URL
_HINTED = 2_000  # file names among which the closest are looked for


def decode_image(data: bytes, *, upright: bool = False, window: Window | None = None) -> np.ndarray:
    """Decodes an image file to (height, width, 3) uint8 RGB; grey, CMYK and 16-bit are converted, alpha is dropped.

    The pixels are the stored ones, whatever orientation the file asks for; with `upright` they are turned by it, as
    photo viewers do. The rule is the same for all formats. Raises ValueError before decoding if the data is empty, of
    no format of FORMATS, above MAX_PIXELS or MAX_SIDE, or refused by `check_decodable`, and if it cannot be decoded.

    Of pixels outside of a `window`, of the result, some may be black: a JPEG is then decoded in part.
    """
    if not data:
        raise ValueError("the file is empty")
    header = read_header(data)
    if header is None:
        raise ValueError(f"cannot be decoded: no image, cut short, or none of {', '.join(FORMATS)}")
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"has {width} x {height} pixels, more than {MAX_SIDE:,} a side")
    check_decodable(data)
    turned = header.orientation != 1
    if header.format == "TIFF":  # OpenCV would turn it in any case, and multiply its colours by alpha
        data = tiff_as_stored(data)
    as_stored = not (turned and upright)
    if window is not None and as_stored and header.format == "JPEG" and (part := cut(data, window)) is not None:
        if (image := decode_part(part, header.size)) is not None:
            return image
    image = _decode(data, header.format)
    if not as_stored:
        exchanged, down, right = _TURNS[header.orientation]
        image = np.ascontiguousarray((image.swapaxes(0, 1) if exchanged else image)[::down, ::right])
    return image


def _decode(data: bytes, kind: str) -> np.ndarray:
    # OpenCV 5.0 decodes an AVIF with alpha to BGR in either case.
    order = cv2.IMREAD_COLOR_BGR if kind == "AVIF" else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), order | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: {' '.join(str(error).split())}") from error
    if image is None:
        raise ValueError("cannot be decoded: damaged or cut short")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if kind == "AVIF" else image


def check_size(image: np.ndarray, size, data: bytes) -> None:
    """Raises ValueError if an image (h, w, 3) has not the (height, width) of its annotation; `data` may say why."""
    if image.shape[:2] == tuple(size):
        return
    why = f"the image is {image.shape[1]} x {image.shape[0]} px, its annotation says {size[1]} x {size[0]}"
    header = read_header(data)
    if header is not None and header.orientation >= 5 and image.shape[1::-1] == tuple(size):
        wanted = "upright" if image.shape[1::-1] == header.size else "stored"
        why += f": its EXIF orientation, {header.orientation}, explains that; set data.orientation={wanted!r}"
    raise ValueError(why)


def parts(name: str) -> tuple[str, ...]:
    """Folders and name of a path, equal for backslashes and for both ways in which Unicode writes accents."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return tuple(part for part in name.split("/") if part not in ("", "."))


def plain_name(name: str) -> str:
    """A name that annotations give, as on a disk: a URL without query and escapes.

    Of Label Studio's `/data/local-files/?d=a/b.jpg` it is `a/b.jpg`. Other names stay as they are.
    """
    if not _ABSOLUTE.match(name) or not ("?" in name or "%" in name):
        return name
    address, _, local = name.partition("?d=")
    return urllib.parse.unquote(local or address.partition("?")[0])


def walk_files(
    folder: str, *, passed_over: Collection[str] = (), unlisted: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields the folder and each sub-folder that is not hidden, with the names of its files, in the order of names.

    Links are followed, after all else: a folder comes once, by its own name where that lies in `folder`. Sub-folders of
    which the real path is in `passed_over` are left out; `unlisted` gets the error of a folder that cannot be listed.
    """
    waiting, seen = [folder], set(passed_over) - {os.path.realpath(folder)}
    for start in waiting:
        for place, folders, files in os.walk(start, onerror=unlisted):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != ".")
            waiting += filter(os.path.islink, (os.path.join(place, name) for name in folders))
            yield place, sorted(files)


def open_regular(path: str) -> int:
    """A file descriptor for reading; OSError if the file is no regular file, such as a FIFO."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without the flag, a FIFO would wait for its writer
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(f"{path}: is no regular file")


def read_file(path: str) -> bytes:
    """The content of a regular file; OSError if it is none, or above 2 GiB."""
    with open(open_regular(path), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise OSError(f"{path}: has {size} bytes, more than {_MAX_BYTES}")
        return file.read()


def file_header(path: str) -> Header | None:
    """What the header of an image file says; None if it cannot be read, is no regular file, or of no known format."""
    try:
        # Of the mapped file no more is read than what is looked at, which may lie at its end.
        with open(open_regular(path), "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return read_header(data)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None


class ImageStore:
    """Encoded images of a folder by file name."""

    def __init__(self, path: str, *, upright: bool = False):
        """`upright`: annotations refer to pixels turned by EXIF's orientation, not to the stored ones."""
        self._path, self._upright = path, upright

    def place(self, name: str) -> str:
        """Where the image is, for reports."""
        return os.path.join(self._path, name)

    def problem(self, name: str) -> str | None:
        """The rule of docs/data.md that the file name breaks, or None if there is such an image."""
        path = os.path.normpath(name)
        if os.path.isabs(path) or path.split(os.sep)[0] in ("..", "."):
            return "image_outside_folder"
        return None if self._has(name) else "image_missing"

    def _has(self, name: str) -> bool:
        raise NotImplementedError

    def find(self, name: str, path: str | None = None) -> str | None:
        """The store's name of the image that annotations call `name`, and maybe `path`; None if there is none."""
        return None if self.problem(name) else name

    def closest(self, name: str) -> list[str]:
        """Up to three names of the store that are like a missing one."""
        return []

    def read(self, name: str) -> bytes:
        """The file's bytes; raises OSError or ValueError where it cannot be read."""
        raise NotImplementedError

    def decode(self, data: bytes, size, window: Window | None = None) -> np.ndarray:
        """The pixels to which annotations refer, (height, width, 3) uint8 RGB; ValueError if not of that size.

        Some outside of the `window` may be black.
        """
        image = decode_image(data, upright=self._upright, window=window)
        check_size(image, size, data)
        return image

    def size(self, name: str) -> tuple[int, int] | None:
        """(width, height) in pixels, for annotations that do not say it; None where it is not known."""
        return None


class ImageFolder(ImageStore):
    """The image files of a folder and its sub-folders; each is listed once, not a file at a time."""

    def __init__(self, path: str, *, upright: bool = False):
        """Raises FileNotFoundError or ValueError if the folder does not exist or is empty."""
        if not os.path.isdir(path):
            raise FileNotFoundError(f"{path}: no such folder of images")
        super().__init__(path, upright=upright)
        self._listings = {"": set(os.listdir(path))}
        self._index: dict[tuple[str, ...], str | None] | None = None  # names by `parts`; None for two of the same
        if not self._listings[""]:
            raise ValueError(f"{path}: the image folder is empty")

    def __getstate__(self):
        return self.__dict__ | {"_listings": {}, "_index": None}  # a worker lists nothing

    def _has(self, name: str) -> bool:
        folder, base = os.path.split(os.path.normpath(name))
        if folder not in self._listings:
            full = self.place(folder)
            self._listings[folder] = set(os.listdir(full)) if os.path.isdir(full) else set()
        return base in self._listings[folder]

    def find(self, name: str, path: str | None = None) -> str | None:
        """As ImageStore. The first of these that is a file of the folder:

        the longest tail of a `path` that ends in `name`; `name`, also with other slashes or in the other Unicode form;
        `name` without leading folders with which the folder's own path ends; the longest tail of an absolute `name`, of
        a URL (see `plain_name`), or of what follows leading `..`.
        """
        asked, whole = parts(name), parts(path or "")
        if len(whole) > len(asked) > 0 and whole[-len(asked) :] == asked and ".." not in whole:
            longer = self._first(whole[start:] for start in range(len(whole) - len(asked)))
            if longer is not None:
                return longer
        if self.problem(name) is None:
            return name
        outside = bool(_ABSOLUTE.match(name)) or asked[:1] == ("..",)
        while asked[:1] == ("..",):
            asked = asked[1:]
        if ".." in asked:
            return None
        own = parts(os.path.abspath(self._path))
        tails = [asked] + [asked[k:] for k in range(len(asked) - 1, 0, -1) if own[-k:] == asked[:k]]
        if outside:
            plain = parts(plain_name(name))
            tails += [asked[start:] for start in range(1, len(asked))]
            tails += [plain[start:] for start in range(len(plain))] if plain != asked else []
        return self._first(tails)

    def _first(self, names: Iterable[tuple[str, ...]]) -> str | None:
        return next((file for name in names if (file := self._by_parts().get(name)) is not None), None)

    def _by_parts(self) -> dict[tuple[str, ...], str | None]:
        if self._index is None:
            self._index = {}
            for folder, files in walk_files(self._path):
                for file in files:
                    name = os.path.normpath(os.path.join(os.path.relpath(folder, self._path), file))
                    self._index[parts(name)] = None if parts(name) in self._index else name
        return self._index

    def closest(self, name: str) -> list[str]:
        """As ImageStore: names that differ in case, ending or folder alone, else the most similar of some."""
        stem = os.path.splitext(parts(name)[-1])[0].lower() if parts(name) else ""
        names = sorted(file for file in self._by_parts().values() if file is not None)
        same = [file for file in names if os.path.splitext(os.path.basename(file))[0].lower() == stem]
        return same[:3] or difflib.get_close_matches(name[-200:], names[:_HINTED], n=3, cutoff=0.5)

    def read(self, name: str) -> bytes:
        return read_file(self.place(name))

    def header(self, name: str) -> Header | None:
        """What the header of an image says; None where there is no such image, or its format is not known."""
        return None if self.problem(name) else file_header(self.place(name))

    def size(self, name: str) -> tuple[int, int] | None:
        if (header := self.header(name)) is None:
            return None
        return header.upright_size if self._upright else header.size
