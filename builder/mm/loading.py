"""How one sample is made: the methods of upstream's CaptionDataset. Subclasses override and call them."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.base.errors import OptionError
from builder.mm import transforms
from builder.mm.arrays import ArrayColumns
from builder.mm.batch import Batch
from builder.mm.buckets import Buckets
from builder.mm.captions import CaptionChoice, make_prompt
from builder.mm.ceph import ObjectClient, open_client
from builder.mm.samples import (
    Entries,
    find_annotation,
    find_image,
    is_list,
    parse_document,
    path_in,
    read_lists,
)
from builder.mm.tensors import load_tensor
from builder.mm.transforms import ScaledPixels, Target
from builder.read.columns import Values
from builder.read.folders import Folder
from builder.read.groups import NoColumnError
from builder.read.opening import open_dataset
from builder.read.view import Rows

CAPTION_KEYS = ("re_caption", "caption")
"""Fields from which a row's caption is taken. If one of them is wanted and a document lacks it, the row's caption
replaces it."""

DataSample = dict[str, Any]


class SampleLoading:
    """Upstream's attributes and methods. You may change attributes after construction, and override methods."""

    data_path: str
    data_list: Sequence[Mapping[str, Any]]
    image_folder: str | None
    cap_folder: str | None
    cap_source: str
    tokenizer: Any
    tokenizer_kwargs: dict[str, Any]
    prompt_template: Mapping[str, Any] | None
    max_length: int
    min_image_size: int
    image_size: int
    unconditional: float
    image_tokens_folder: str | None
    image_latents_folder: str | None
    latents_ceph_folder: str | None
    ceph_folder: str | None
    ceph_config: str | None
    imdecode_backend: str
    out: str
    buckets: Buckets | None
    FILE_CLIENT: ObjectClient | None  # upstream's name (as is use_ceph): its subclasses use it

    _source: Rows | None
    _columns_of_files: dict[str, Any]  # image_column, caption_column
    _choice: CaptionChoice | None
    _texts: dict[str, Values]  # columns with captions
    _arrays: ArrayColumns | None
    _images: Folder | None
    _captions: Folder | None

    def _load_data(self, data_path: str) -> None:
        """Set ``data_list``. JSON lists are read whole. Anything else is opened with the reader, which reads its rows
        on demand."""
        path = Path(data_path)
        lists = is_list(path)
        if not lists:
            self._source = open_dataset(data_path, **self._columns_of_files)
            self.data_list = Entries(self._source)
            return
        if self._columns_of_files:
            name, column = next(iter(self._columns_of_files.items()))
            problem = f"{shlex.quote(data_path)} is a JSON list, which has no columns"
            raise OptionError(name, column, f"{problem}. Leave this out")
        self.data_list = read_lists(path)
        if path.is_dir() and (path / "raw").is_dir():
            self.image_folder = self.image_folder or str(path / "raw")
            captions = path / "captions"
            self.cap_folder = self.cap_folder or str(captions if captions.is_dir() else path / "raw")

    def _load(self, entry: Mapping[str, Any]) -> DataSample:
        return self._loaded(entry, None)

    def _loaded(self, entry: Mapping[str, Any], batch: Batch | None) -> DataSample:
        """One sample. The image comes first, then the text: upstream draws from ``random`` in this order."""
        image_file = path_in(entry, "image")
        data = self._image_of(image_file, batch)
        if self._arrays:
            data.update(self._arrays.of(find_image(self._samples(), image_file).row))
        caption = self._caption_of(path_in(entry, "annotation"))
        if batch is not None and batch.tokenizes:
            batch.add_prompt(self._prompt(caption))
            data["input_ids"] = None  # set when the batch is tokenised
        else:
            data.update(self._process_text(caption))
        data.update(image_dir=self.image_folder, image_file=str(image_file), type="text2image")
        return data

    def _image_of(self, image_file: str, batch: Batch | None) -> DataSample:
        """The image as the sample holds it: tokens, latents or pixels."""
        if self.image_tokens_folder is not None:
            return {"image_tokens": load_tensor(os.path.join(self.image_tokens_folder, f"{image_file}.pt")).long()}
        if self.latents_ceph_folder is not None:
            latents = self._read_ceph(os.path.join(self.latents_ceph_folder, f"{image_file}.pt"))
            return {"image_latents": load_tensor(latents)}
        if self.image_latents_folder is not None:
            return {"image_latents": load_tensor(os.path.join(self.image_latents_folder, f"{image_file}.pt"))}
        if self._arrays and "image_latents" in self._arrays:
            return {}
        image = self._read_image(image_file)
        if batch is not None and batch.holds_pixels:
            return {"pixel_values": self._pixels(image, batch.place)}
        return self._process_image(image)

    def _caption_of(self, annotation_file: str) -> str:
        if self._choice is None:
            caption = self._read_json(annotation_file)[self.cap_source]
            if not isinstance(caption, str):
                raise ValueError(f"the field {self.cap_source} of {shlex.quote(str(annotation_file))} is not a string")
            return caption
        document: dict[str, Any] | None = None

        def text_of(name: str) -> Any:
            nonlocal document
            if name in self._texts:
                return self._texts[name][find_annotation(self._samples(), annotation_file).row]
            if document is None:
                document = self._read_json(annotation_file)
            return document.get(name)

        return self._choice.choose(text_of)

    def _read_image(self, image_file: str) -> Any:
        """A Pillow image (RGB), or ScaledPixels with ``imdecode_backend='cv2'``. It has passed upstream's checks."""
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
        """The annotation as a dict. With an index, the row's caption is put in if the wanted caption field is missing.
        Datasets of other tools may have no annotations. Then the dict holds only the caption."""
        if self._source is not None:
            sample = find_annotation(self._source, annotation_file)
            try:
                document = parse_document(sample.annotation, annotation_file)
            except NoColumnError:
                if not sample.caption.strip():
                    raise ValueError("the row has neither an annotation nor a caption") from None
                document = {}
            for name in CAPTION_KEYS:
                if name not in document and (name == self.cap_source or (self._choice and name in self._choice)):
                    document[name] = sample.caption
            return document
        if self.cap_folder is not None:
            self._captions = _folder(self.cap_folder, self._captions)
            return parse_document(self._captions.read(annotation_file), annotation_file)
        return parse_document(self._read_ceph(self._in_ceph(annotation_file)).getvalue(), annotation_file)

    def _read_ceph(self, ceph_path: str) -> io.BytesIO:
        if self.FILE_CLIENT is None:
            if self.ceph_config is None or not os.path.exists(self.ceph_config):
                give = "give" if self.ceph_config is None else "there is no such file. Give"
                allowed = f"{give} the client's configuration file, to read {shlex.quote(str(ceph_path))}"
                raise OptionError("ceph_config", self.ceph_config, allowed)
            self.FILE_CLIENT = open_client(self.ceph_config)
        content = self.FILE_CLIENT.get(ceph_path)
        if content is None:
            raise FileNotFoundError(f"{shlex.quote(str(ceph_path))} is not there")
        return io.BytesIO(content)

    def _in_ceph(self, path: str) -> str:
        if self.ceph_folder is None:
            allowed = f"give it, or image_folder and cap_folder, to read {shlex.quote(str(path))}"
            raise OptionError("ceph_folder", None, allowed)
        return os.path.join(self.ceph_folder, path)

    @property
    def _target(self) -> Target:
        return Target(self.image_size, self.buckets)

    def _process_image(self, image: Any) -> DataSample:
        return {"pixel_values": self._pixels(image, self._new_pixels)}

    @property
    def _pixel_type(self) -> torch.dtype:
        return torch.uint8 if self.out == "uint8" else torch.float32

    def _new_pixels(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._pixel_type)

    def _pixels(self, image: Any, place: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """``pixel_values`` (c h w; float32, -1 to 1, or uint8). ``place`` returns memory of a given shape for them."""
        width, height = self._target.of(image.width, image.height)
        pixels = place((3, height, width))
        if not isinstance(image, ScaledPixels):
            pixels.copy_(torch.from_numpy(transforms.crop_exact(image, self._target)).permute(2, 0, 1))
        elif pixels.dtype == torch.uint8:
            transforms.crop_fast(image, self._target, pixels.numpy())
        else:
            pixels.copy_(torch.from_numpy(transforms.crop_fast(image, self._target)))
        if pixels.dtype == torch.uint8:
            return pixels
        return pixels.div_(255).mul_(2).sub_(1)  # in place; rounds three times, as upstream's 2 * (x / 255) - 1

    def _process_text(self, text: str) -> DataSample:
        prompt = self._prompt(text)
        input_ids = self.tokenizer.encode(prompt, return_tensors="pt", **self.tokenizer_kwargs)[0]
        return {"input_ids": input_ids[: self.max_length]}

    def _prompt(self, caption: str) -> str:
        if self.prompt_template is None or self.tokenizer is None:
            raise TypeError("a sample's text needs tokenizer and prompt_template. Give both to CaptionDataset")
        return make_prompt(self.prompt_template, caption, self.unconditional)

    def _samples(self) -> Rows:
        if self._source is None:
            problem = "a JSON list has no index, which this needs"
            raise OptionError("data_path", self.data_path, f"{problem}. Make one: laion6m index SOURCE")
        return self._source

    def _text_columns(self, names: Sequence[str]) -> dict[str, Values]:
        """Those of ``names`` that are columns of the dataset. Raises OptionError for columns of arrays."""
        if self._source is None:
            return {}
        found = {}
        for name in set(names) & set(self._source.reader.added_columns()):
            column = self._source.reader._column(name)
            if not isinstance(column, Values):
                raise OptionError("captions", name, "this column holds arrays. Name a column of texts")
            found[name] = column
        return found


def _folder(root: str, before: Folder | None) -> Folder:
    """The Folder at this path. A subclass may change the path at any time. If it has not changed, the old Folder is
    returned, because it has already scanned its tars."""
    return before if before is not None and before.root == Path(root) else Folder(root)
