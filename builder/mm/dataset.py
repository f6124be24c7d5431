"""OpenUni's CaptionDataset over a converted folder, an index, or the JSON lists and files it was written for."""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from builder.base.errors import OptionError
from builder.base.paths import StrPath, path_of, path_or_none
from builder.mm import transforms
from builder.mm.arrays import ArrayColumns
from builder.mm.batch import Batch, tokenizes_batches
from builder.mm.bucket_sampler import bucketed
from builder.mm.buckets import Buckets
from builder.mm.captions import CaptionChoice
from builder.mm.checks import no_text, one_of
from builder.mm.engine import has_mmengine, mmengine
from builder.mm.loading import DataSample, SampleLoading
from builder.mm.samples import Entries, RowPath, find_image, path_in
from builder.mm.skips import BAD_SAMPLE, COMPLETE, CONFIGURATION, SKIPS_ALLOWED, SampleError, Skips, problem_of
from builder.mm.tensors import build

if TYPE_CHECKING:
    _Base = Dataset[DataSample]
elif has_mmengine():
    _Base = mmengine("dataset").BaseDataset  # mmengine's ConcatDataset takes only this class
else:
    _Base = Dataset


class CaptionDataset(SampleLoading, _Base):
    """Images and captions for text-to-image training, with upstream's constructor, results and random draws.

    ``data_path`` is one of:

    * a folder that ``laion6m convert`` wrote, an index, or a source that has an index;
    * a folder of Parquet or Arrow files with images and captions;
    * upstream's JSON list, or a folder of such lists. Images are then read below ``image_folder``, annotations below
      ``cap_folder``, as files or from tars.

    Only a list uses the two folders. Every other ``data_path`` holds images and annotations itself. ``image_folder``
    is then only copied into the samples.

    A sample holds ``pixel_values`` (float32, c h w, -1 to 1; or ``image_latents``, or ``image_tokens``), ``input_ids``
    (int64), ``image_dir``, ``image_file`` (the path as in data.json) and ``type`` ("text2image").

    What upstream does not have:

    * ``on_error='raise'``: a bad sample raises SampleError, which names it.
    * ``on_error='skip'``: the next good index replaces a bad sample. With ``buckets`` it is the next of the same
      bucket, because a batch has one shape. There is one warning for each kind of problem. If more than
      ``max_skip_ratio`` of the samples tried in this process were bad, it raises TooManyBadSamplesError.
    * ``imdecode_backend='cv2'``: faster, not bit-identical. ``out='uint8'``: 0 to 255, for ``normalize_pixels``.
    * ``buckets``: a list of (width, height), or True for sizes around ``image_size``. Images are cropped to the bucket
      of the nearest ratio.
    * ``captions``: several captions by weight, such as ``{"caption": 0.7, "short": 0.2, "TEXT": 0.1}``. The names are
      columns or annotation fields. They replace ``cap_source``. A row that lacks one uses the others.
    * ``image_latents``, ``arrays``: columns of arrays that ``laion6m add-column`` made. ``image_latents`` replaces the
      pixels. ``arrays`` are added under their own names.
    * ``missing_ok``: True, or the columns in which a row may have no array. The sample then holds None.
    * ``image_column``, ``caption_column``: for Parquet or Arrow files without an index. See ``open_dataset``.

    Loaders of torch 2 ask for whole batches (``__getitems__``). They get the same samples from the same random draws.
    The images of a batch are read together and written into one block of memory.
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
        arrays: Sequence[str] = (),
        missing_ok: bool | Sequence[str] = False,
        captions: Mapping[str, float] | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        Dataset.__init__(self)  # not BaseDataset's, which would load annotations
        one_of("on_error", on_error, "raise", "skip")
        one_of("imdecode_backend", imdecode_backend, "pillow", "cv2")
        one_of("out", out, "float32", "uint8")
        no_text("min_image_size", min_image_size, "give a number of pixels")
        no_text("image_size", image_size, "give a number of pixels")
        if isinstance(image_size, int) and image_size < 1:
            raise OptionError("image_size", image_size, "give 1 pixel or more")
        no_text("max_length", max_length, "give a number of tokens")
        no_text("unconditional", unconditional, "give a share, 0 to 1")
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
        self.FILE_CLIENT = None
        self._retries = 0
        self._source = self._images = self._captions = self._arrays = None
        self._choice = None if captions is None else CaptionChoice(captions)
        self._numbers: NDArray[np.int16] | None = None
        files = {"image_column": image_column, "caption_column": caption_column}
        self._columns_of_files = {name: column for name, column in files.items() if column is not None}
        self._load_data(self.data_path)
        self._texts = {} if self._choice is None else self._text_columns([*self._choice.weights])
        if image_latents is not None or arrays:
            self._arrays = ArrayColumns(self._samples(), image_latents, arrays, missing_ok)

    def __len__(self) -> int:
        return len(self.data_list)

    def __getitem__(self, index: int) -> DataSample:
        """Raises SampleError (``on_error='raise'``), TooManyBadSamplesError (``'skip'``), IndexError."""
        return self._first_good(self._number(index))

    def __getitems__(self, indices: Sequence[int]) -> list[DataSample]:
        """The same as ``[self[index] for index in indices]``, but faster. Raises what ``__getitem__`` raises."""
        if not self._is_own("__getitem__"):
            return [self[index] for index in indices]
        numbers = [self._number(int(index)) for index in indices]
        batch = Batch(
            len(numbers),
            self._pixel_type,
            holds_pixels=self._is_own("_process_image"),
            tokenizes=self._is_own("_process_text") and tokenizes_batches(self.tokenizer, self.tokenizer_kwargs),
        )
        samples: list[DataSample] = []
        for number, entry in zip(numbers, self._entries(numbers), strict=True):
            samples.append(self._first_good(number, entry, batch if self._is_own("_load") else None))
            batch.number += 1
        if batch.tokenizes and self._is_own("_load"):
            batch.tokenize(samples, self.tokenizer, self.tokenizer_kwargs, self.max_length)
        return samples

    def _is_own(self, method: str) -> bool:
        """Whether no subclass overrides ``method``. An override must be called for each sample."""
        return getattr(type(self), method) is getattr(CaptionDataset, method)

    def _entries(self, numbers: Sequence[int]) -> Sequence[Mapping[str, Any]]:
        """Entries of ``data_list``. Their images are read together if the samples hold pixels."""
        if (entries := self._with_pixels()) is not None:
            try:
                return entries.fetch(numbers)
            except BAD_SAMPLE:
                pass  # read one by one below, to see which is bad
        return [self.data_list[number] for number in numbers]

    def _with_pixels(self) -> Entries | None:
        """``data_list``, if samples hold pixels that are read from an index. Else None."""
        files = (self.image_tokens_folder, self.latents_ceph_folder, self.image_latents_folder)
        latents = files != (None, None, None) or (self._arrays and "image_latents" in self._arrays)
        return self.data_list if isinstance(self.data_list, Entries) and not latents else None

    def announce(self, numbers: Sequence[int]) -> None:
        """Say which samples will be loaded soon. Images on a local disk are then read into the page cache, where the
        loader's workers find them. Returns at once. The samplers call this."""
        if (entries := self._with_pixels()) is not None:
            entries.announce(numbers)

    def _number(self, index: int) -> int:
        if self.debug:
            return 0
        if index < 0:
            index += len(self)
            if index < 0:
                raise IndexError(index - len(self))
        return index

    def _first_good(self, index: int, read: Mapping[str, Any] | None = None, batch: Batch | None = None) -> DataSample:
        """The sample, or the one that replaces it. ``read``: the sample's entry, if it has been read already."""
        for number in self._candidates(index):
            entry = self.data_list[number] if read is None or number != index else read
            try:
                data = self._load(entry) if batch is None else self._loaded(entry, batch)
            except CONFIGURATION:
                raise  # the configuration is wrong, not the sample
            except BAD_SAMPLE as error:
                bad = SampleError(self.data_path, number, str(entry.get("image", "")), problem_of(error))
                if self.on_error == "raise":
                    raise bad from error
                self.skips.add(bad, error)
            else:
                self.skips.tried += 1
                return data
        raise self.skips.too_many()

    def _retry(self) -> DataSample:
        """For subclasses that copy upstream's ``except Exception: return self._retry()``.

        Called in an ``except`` block:

        * A mistake in the program, or an error of ours whose message is complete: raises that error again.
        * Any other error, with ``on_error='raise'``: raises SampleError from it.
        * Any other error, with ``on_error='skip'``: counts it and returns a random sample, as upstream does. After 20
          bad ones in a row it raises SampleError. It ignores ``max_skip_ratio``: only the subclass knows how many
          samples were good.

        Called outside an ``except`` block, it returns a random sample. Raises OptionError with ``buckets``: a batch has
        one shape, and a random sample may have another.
        """
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            if isinstance(error, COMPLETE) or not isinstance(error, BAD_SAMPLE):
                raise error
            bad = SampleError(self.data_path, None, "", problem_of(error))
            if self.on_error == "raise" or self._retries >= SKIPS_ALLOWED:
                raise bad from error
            self.skips.note(bad, error)
        if self.buckets is not None:
            allowed = "_retry() cannot give a sample of the same shape. Take it out: on_error='skip' can"
            raise OptionError("buckets", self.buckets.sizes, allowed)
        self._retries += 1
        try:
            return self[random.choice(range(len(self)))]
        finally:
            self._retries -= 1

    def _candidates(self, index: int) -> Iterator[int]:
        """The row asked for, then the rows that may replace it: those of its bucket, or all others if there are no
        buckets."""
        yield index  # past the end, data_list raises IndexError
        numbers = self._bucket_numbers()
        if numbers is None:
            yield from ((index + step) % len(self) for step in range(1, len(self)))
            return
        same = np.flatnonzero(numbers == numbers[index])
        for rows in (same[same > index], same[same < index]):
            yield from map(int, rows)

    def _bucket_numbers(self) -> NDArray[np.int16] | None:
        """The bucket number of each row, computed at the first bad sample. None without buckets. None if the sizes are
        unknown: then no sampler makes batches of one bucket either."""
        if self.buckets is None:
            return None
        if self._numbers is None or len(self._numbers) != len(self):
            try:
                self._numbers = bucketed(self)[1]
            except OptionError:
                return None
        return self._numbers

    @property
    def metainfo(self) -> dict[str, Any]:
        """For mmengine's wrappers. Empty: the samples have no common metadata."""
        return {}

    def full_init(self) -> None:
        """For mmengine's wrappers. Does nothing: the constructor has loaded everything."""

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """For mmengine's wrappers: a row's ``image`` and ``annotation`` (paths) and ``sample_idx``. Reads no file."""
        number = idx + len(self) if idx < 0 else idx
        return {**self.data_list[number], "sample_idx": number}

    def widths(self) -> NDArray[np.int32]:
        """Widths in pixels of all rows of ``data_list``, int32, from the index. Raises OptionError for a JSON list
        (it has no sizes), and for rows that are not in the index."""
        return self._of_rows(self._samples().widths())

    def heights(self) -> NDArray[np.int32]:
        return self._of_rows(self._samples().heights())

    def _of_rows(self, column: NDArray[np.int32]) -> NDArray[np.int32]:
        """A column of the index, for the rows of ``data_list`` in its order. A subclass may have removed rows."""
        if isinstance(self.data_list, Entries):
            return column
        rows = np.fromiter(map(self._row_of, self.data_list), np.int64, len(self.data_list))
        return column[rows]

    def _row_of(self, entry: Mapping[str, Any]) -> int:
        try:
            path = path_in(entry, "image")
            return path.row if isinstance(path, RowPath) else find_image(self._samples(), path).row
        except (KeyError, ValueError, FileNotFoundError) as error:
            place = shlex.quote(self.data_path)
            raise OptionError("data_list", entry, f"not a row of {place}: {problem_of(error)}") from error
