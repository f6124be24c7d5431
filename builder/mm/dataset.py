"""OpenUni's CaptionDataset over a converted folder, an index, or the JSON lists and files it was written for."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from builder.base.errors import Laion6mError, MissingExtraError, OptionError
from builder.base.paths import StrPath, path_of, path_or_none
from builder.base.schema import INDEX
from builder.mm import transforms
from builder.mm.buckets import Buckets
from builder.mm.samples import (
    SKIPS_ALLOWED,
    Entries,
    RowPath,
    SampleError,
    SampleSource,
    Skips,
    TooManyBadSamplesError,
    find_annotation,
    find_image,
    problem_of,
    read_lists,
)
from builder.mm.tensors import build, from_array, load_tensor
from builder.mm.transforms import ScaledPixels, Target
from builder.read.columns import Column, open_column
from builder.read.folders import Folder
from builder.read.groups import NoColumnError
from builder.read.opening import open_dataset
from builder.source.ceph import ObjectClient, open_client

CAPTION_KEYS = ("re_caption", "caption")
"""Where the reader has the caption from; asked for either, a document that lacks it is helped out by the other."""

_BAD_SAMPLE = (*transforms.BAD_IMAGE, KeyError, RuntimeError, AssertionError, pickle.UnpicklingError, Laion6mError)
"""What a damaged or missing file raises on its way to a tensor (RuntimeError: torch's and OpenCV's; AssertionError: the
checks of subclasses written for upstream). Anything else is a mistake in the program and passes through."""

_OF_DATASETS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What ``datasets`` writes beside its data: no lists."""

_CONFIGURATION = (OptionError, MissingExtraError)
_OWN_WORDS = (*_CONFIGURATION, SampleError, TooManyBadSamplesError)

DataSample = dict[str, Any]


class CaptionDataset(Dataset[DataSample]):
    """Images and captions for text-to-image training, with upstream's constructor, results and random draws.

    ``data_path``: a folder written by ``laion6m convert``, an index, a source that has one, any folder of Parquet or
    Arrow files with images and captions, or upstream's JSON list (or a folder of them), whose images and annotations
    are then read below ``image_folder`` and ``cap_folder``, as files or from tars. Over anything but a list, both are
    taken from there, and ``image_folder`` is only handed on.

    A sample holds ``pixel_values`` (float32, c h w, -1 to 1; or ``image_latents``, or ``image_tokens``), ``input_ids``
    (int64), ``image_dir``, ``image_file`` (the path as in data.json) and ``type`` ("text2image").

    What upstream does not have:

    * ``on_error``: ``raise`` names the sample; ``skip`` takes the next good index (with ``buckets``, in its bucket:
      a batch has one shape), warns once for each kind of problem, and raises TooManyBadSamplesError where over
      ``max_skip_ratio`` of the samples tried were bad (in each process).
    * ``imdecode_backend='cv2'``: faster, not bit-identical. ``out='uint8'``: 0 to 255, for ``normalize_pixels``.
    * ``buckets``: a list of (width, height), or True for those around ``image_size``: crop to the nearest ratio.
    * ``image_latents``: the name of a column made by ``laion6m add-column``.
    """

    def __init__(
        self,
        data_path: StrPath,
        image_folder: StrPath | None = None,
        debug: bool = False,
        image_processor: Any = None,
        ceph_folder: str | None = None,
        latents_ceph_folder: str | None = None,
        ceph_config: StrPath | None = None,
        tokenizer: Any = None,
        prompt_template: Mapping[str, Any] | None = None,
        max_length: int = 128,
        min_image_size: int = 80,
        image_size: int = 256,
        image_length: int = 256,
        image_tokens_folder: StrPath | None = None,
        image_latents_folder: StrPath | None = None,
        cap_folder: StrPath | None = None,
        cap_source: str = "caption",
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        unconditional: float = 0.1,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_skip_ratio: float = 0.05,
        imdecode_backend: Literal["pillow", "cv2"] = "pillow",
        out: Literal["float32", "uint8"] = "float32",
        buckets: Sequence[Sequence[int]] | bool = False,
        image_latents: str | None = None,
    ) -> None:
        super().__init__()
        _one_of("on_error", on_error, "raise", "skip")
        _one_of("imdecode_backend", imdecode_backend, "pillow", "cv2")
        _one_of("out", out, "float32", "uint8")
        _no_text("min_image_size", min_image_size, "a number of pixels")
        _no_text("image_size", image_size, "a number of pixels")
        if isinstance(image_size, int) and image_size < 1:
            raise OptionError("image_size", image_size, "1 pixel or more")
        _no_text("max_length", max_length, "a number of tokens")
        _no_text("unconditional", unconditional, "a share, 0 to 1")
        if imdecode_backend == "cv2":
            transforms.load_cv2()
        self.data_path = path_of(data_path)
        self.image_folder = path_or_none(image_folder)
        self.cap_folder = path_or_none(cap_folder)
        self.cap_source = cap_source
        self.debug = debug
        self.image_processor = build(image_processor)
        self.tokenizer = build(tokenizer)
        self.prompt_template = prompt_template
        self.max_length = max_length
        self.min_image_size = min_image_size
        self.image_size = image_size
        self.image_length = image_length
        self.image_tokens_folder = path_or_none(image_tokens_folder)
        self.image_latents_folder = path_or_none(image_latents_folder)
        self.unconditional = unconditional
        self.tokenizer_kwargs = {"add_special_tokens": True} if tokenizer_kwargs is None else dict(tokenizer_kwargs)
        self.ceph_folder = ceph_folder
        self.ceph_config = path_or_none(ceph_config)
        self.latents_ceph_folder = latents_ceph_folder
        self.use_ceph = self.ceph_config is not None and os.path.exists(self.ceph_config)
        self.on_error = on_error
        self.imdecode_backend = imdecode_backend
        self.out = out
        self.buckets = Buckets.around(image_size) if buckets is True else Buckets(buckets) if buckets else None
        self.skips = Skips(self.data_path, max_skip_ratio)
        self.FILE_CLIENT: ObjectClient | None = None  # this and use_ceph: upstream's names, for its subclasses
        self._retries = 0
        self._source: SampleSource | None = None
        self._images: Folder | None = None
        self._captions: Folder | None = None
        self._latents: Column | None = None
        self._numbers: NDArray[np.int16] | None = None
        self._load_data(self.data_path)
        if image_latents is not None:
            self._samples()
            self._latents = open_column(self.data_path, image_latents)

    def _load_data(self, data_path: str) -> None:
        """Upstream's JSON lists become lists; anything else is opened by the reader, and nothing is read row by row."""
        path = Path(data_path)
        source: SampleSource | None = None
        data_list: Sequence[Mapping[str, Any]]
        is_list = path.suffix == ".json"
        if not is_list and path.is_dir() and not (path / INDEX).exists():
            is_list = any(file.name not in _OF_DATASETS for file in path.glob("*.json"))
        if is_list:
            data_list = read_lists(path)
        else:
            source = open_dataset(data_path)
            data_list = Entries(source)
        self.data_list = data_list
        self._source = source
        if is_list and path.is_dir() and (path / "raw").is_dir():
            self.image_folder = self.image_folder or str(path / "raw")
            captions = path / "captions"
            self.cap_folder = self.cap_folder or str(captions if captions.is_dir() else path / "raw")

    def __len__(self) -> int:
        return len(self.data_list)

    def __getitem__(self, index: int) -> DataSample:
        """Raises SampleError (``on_error='raise'``), TooManyBadSamplesError (``'skip'``), IndexError."""
        if self.debug:
            index = 0
        if index < 0:
            index += len(self)
            if index < 0:
                raise IndexError(index - len(self))
        for number in self._candidates(index):
            entry = self.data_list[number]
            try:
                data = self._load(entry)
            except _CONFIGURATION:
                raise  # the configuration is wrong, not the sample
            except _BAD_SAMPLE as error:
                bad = SampleError(self.data_path, number, str(entry.get("image", "no image path")), problem_of(error))
                if self.on_error == "raise":
                    raise bad from error
                self.skips.add(bad, error)
            else:
                self.skips.tried += 1
                return data
        raise self.skips.too_many()

    def _retry(self) -> DataSample:
        """For subclasses that copy upstream's ``except Exception: return self._retry()``.

        Called while an error is being handled: raises SampleError from it, or the error itself where it is a mistake in
        the program or says enough; with ``on_error='skip'``, notes it and gives another sample, any, as upstream does,
        for up to 20 bad ones in a row. ``max_skip_ratio`` is not kept to: how many were good only the subclass knows.
        Called without an error: another sample. Raises OptionError with ``buckets``, whose batches have one shape.
        """
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            if isinstance(error, _OWN_WORDS) or not isinstance(error, _BAD_SAMPLE):
                raise error
            bad = SampleError(self.data_path, None, "", problem_of(error))
            if self.on_error == "raise" or self._retries >= SKIPS_ALLOWED:
                raise bad from error
            self.skips.note(bad, error)
        if self.buckets is not None:
            raise OptionError("buckets", self.buckets.sizes, "_retry() cannot tell which sample has that shape")
        self._retries += 1
        try:
            return self[random.choice(range(len(self)))]
        finally:
            self._retries -= 1

    def _candidates(self, index: int) -> Iterator[int]:
        """The row asked for, and those that may take its place: all that follow, or those of its bucket."""
        yield index  # beyond the end it is an IndexError, as in any list
        numbers = self._bucket_numbers()
        if numbers is None:
            yield from ((index + step) % len(self) for step in range(1, len(self)))
            return
        same = np.flatnonzero(numbers == numbers[index])
        for rows in (same[same > index], same[same < index]):
            yield from map(int, rows)

    def _bucket_numbers(self) -> NDArray[np.int16] | None:
        """The bucket of each row; None without buckets, or where nothing knows the sizes: no sampler makes batches of
        one bucket there. Worked out at the first bad sample."""
        if self.buckets is None:
            return None
        if self._numbers is None or len(self._numbers) != len(self):
            try:
                numbers = self.buckets.of_all(self.widths(), self.heights())
            except OptionError:
                return None
            if len(numbers) != len(self):
                return None
            self._numbers = numbers
        return self._numbers

    def _load(self, entry: Mapping[str, Any]) -> DataSample:
        """Image first, text second: the order in which upstream draws from ``random``."""
        image_file = _path(entry, "image")
        if self.image_tokens_folder is not None:
            data: DataSample = {
                "image_tokens": load_tensor(os.path.join(self.image_tokens_folder, f"{image_file}.pt")).long()
            }
        elif self.latents_ceph_folder is not None:
            latents = self._read_ceph(os.path.join(self.latents_ceph_folder, f"{image_file}.pt"))
            data = {"image_latents": load_tensor(latents)}
        elif self.image_latents_folder is not None:
            data = {"image_latents": load_tensor(os.path.join(self.image_latents_folder, f"{image_file}.pt"))}
        elif self._latents is not None:
            row = find_image(self._samples(), image_file).row
            data = {"image_latents": from_array(self._latents[row])}
        else:
            data = self._process_image(self._read_image(image_file))
        caption = self._read_json(_path(entry, "annotation"))[self.cap_source]
        if not isinstance(caption, str):
            raise ValueError(f"the field {self.cap_source} of {entry['annotation']} is not a string")
        data.update(self._process_text(caption))
        data.update(image_dir=self.image_folder, image_file=str(image_file), type="text2image")
        return data

    def _read_image(self, image_file: str) -> Any:
        """A Pillow image, RGB, that has passed upstream's checks; with ``imdecode_backend='cv2'`` ScaledPixels."""
        if self._source is not None:
            content = find_image(self._source, image_file).image
        elif self.image_folder is not None:
            self._images = _folder(self.image_folder, self._images)
            content = self._images.read(image_file)
        else:
            content = self._read_ceph(self._in_ceph(image_file)).getvalue()
        if self.imdecode_backend == "cv2":
            return transforms.open_fast(content, self.min_image_size, self._target)
        return transforms.open_exact(content, self.min_image_size)

    def _read_json(self, annotation_file: str) -> dict[str, Any]:
        """The annotation. Over an index, a document that lacks the caption field asked for gets the row's caption; a
        dataset of somebody else's, with images and captions only, has documents of nothing else."""
        if self._source is not None:
            sample = find_annotation(self._source, annotation_file)
            try:
                document = _document(sample.annotation, annotation_file)
            except NoColumnError:
                if not sample.caption.strip():
                    raise ValueError("the row has neither an annotation nor a caption") from None
                document = {}
            if self.cap_source not in document and self.cap_source in CAPTION_KEYS:
                document[self.cap_source] = sample.caption
            return document
        if self.cap_folder is not None:
            self._captions = _folder(self.cap_folder, self._captions)
            return _document(self._captions.read(annotation_file), annotation_file)
        return _document(self._read_ceph(self._in_ceph(annotation_file)).getvalue(), annotation_file)

    def _read_ceph(self, ceph_path: str) -> io.BytesIO:
        if self.FILE_CLIENT is None:
            if self.ceph_config is None or not os.path.exists(self.ceph_config):
                raise OptionError(
                    "ceph_config", self.ceph_config, f"name the client's configuration file to read {ceph_path}"
                )
            self.FILE_CLIENT = open_client(self.ceph_config)
        content = self.FILE_CLIENT.get(ceph_path)
        if content is None:
            raise FileNotFoundError(f"{ceph_path} is not there")
        return io.BytesIO(content)

    def _in_ceph(self, path: str) -> str:
        if self.ceph_folder is None:
            raise OptionError("ceph_folder", None, f"give it, or image_folder and cap_folder, to read {path}")
        return os.path.join(self.ceph_folder, path)

    @property
    def _target(self) -> Target:
        return Target(self.image_size, self.buckets)

    def _process_image(self, image: Any) -> DataSample:
        if isinstance(image, ScaledPixels):
            planes = torch.from_numpy(transforms.crop_fast(image, self._target))
        else:
            planes = torch.from_numpy(transforms.crop_exact(image, self._target)).permute(2, 0, 1)
        if self.out == "uint8":
            return {"pixel_values": planes.contiguous()}
        # In place, step by step: the same three roundings as upstream's x / 255, 2 * x, x - 1.
        pixels = planes.to(torch.float32, memory_format=torch.contiguous_format)
        return {"pixel_values": pixels.div_(255).mul_(2).sub_(1)}

    def _process_text(self, text: str) -> DataSample:
        template = self.prompt_template
        if template is None or self.tokenizer is None:
            raise TypeError("the text of a sample needs tokenizer and prompt_template; the dataset was made without")
        try:
            if random.uniform(0, 1) < self.unconditional:
                prompt = template["CFG"]
            else:
                prompt = template["GENERATION"].format(input=text.strip())
            prompt = template["INSTRUCTION"].format(input=prompt)
            if template.get("IMG_START_TOKEN_FOR_GENERATION", True):
                prompt += template["IMG_START_TOKEN"]
        except (KeyError, IndexError, ValueError) as error:  # not the sample's: its text is only put in
            raise OptionError("prompt_template", list(template), f"cannot be used: {error!r}") from error
        input_ids = self.tokenizer.encode(prompt, return_tensors="pt", **self.tokenizer_kwargs)[0]
        return {"input_ids": input_ids[: self.max_length]}

    def widths(self) -> NDArray[np.int32]:
        """Pixels of all rows of ``data_list``, from the index. Raises OptionError over a JSON list, which does not know
        them, and for rows that are not the index's."""
        return self._of_rows(self._samples().widths())

    def heights(self) -> NDArray[np.int32]:
        return self._of_rows(self._samples().heights())

    def _of_rows(self, column: NDArray[np.int32]) -> NDArray[np.int32]:
        """A column of the index, for the rows that a subclass has left in ``data_list``, in its order."""
        if isinstance(self.data_list, Entries):
            return column
        rows = np.fromiter(map(self._row_of, self.data_list), np.int64, len(self.data_list))
        return column[rows]

    def _row_of(self, entry: Mapping[str, Any]) -> int:
        try:
            path = _path(entry, "image")
            return path.row if isinstance(path, RowPath) else find_image(self._samples(), path).row
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise OptionError("data_list", entry, f"no row of {self.data_path}: {problem_of(error)}") from error

    def _samples(self) -> SampleSource:
        if self._source is None:
            raise OptionError("data_path", self.data_path, "a JSON list has no index; make one: `laion6m index SOURCE`")
        return self._source


def _folder(root: str, before: Folder | None) -> Folder:
    """The folder of this name, which a subclass may change at any time; the one there was, if it is the same: it knows
    what its tars hold."""
    return before if before is not None and before.root == Path(root) else Folder(root)


def _path(entry: Mapping[str, Any], name: str) -> str:
    path = entry[name]
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} is not a path but {_kind(path)}")
    return path  # type: ignore[return-value]  # a subclass's pathlib.Path goes through as it did


def _document(text: str | bytes, annotation_file: str) -> dict[str, Any]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{annotation_file} is not a JSON object but {_kind(document)}")
    return document


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _no_text(name: str, value: object, allowed: str) -> None:
    if isinstance(value, str):
        raise OptionError(name, value, f"{allowed}, not a text")


def _one_of(name: str, value: object, *allowed: str) -> None:
    if value not in allowed:
        raise OptionError(name, value, f"one of {', '.join(allowed)}")
