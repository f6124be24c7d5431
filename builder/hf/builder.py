"""The ``datasets`` builder behind laion6m.py, and a ``load_dataset`` that finds it.

data_dir → find_source → plan → units → tables → datasets writes them, or streams them
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import pyarrow as pa
import xxhash
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from builder import __version__
from builder.base import schema
from builder.base.errors import OptionError, SourceError
from builder.base.names import SELECTION
from builder.base.options import MAX_PIXELS, ConvertOptions, SamplePolicy
from builder.base.paths import StrPath, path_of, path_or_none, paths_of
from builder.hf.rows import reader_dataset
from builder.hf.source import (
    DEFAULT_FOLDER,
    REPOSITORY,
    ConvertedFolder,
    HubSource,
    LocalSource,
    SelectedRows,
    Source,
    downloaded,
    find_source,
)
from builder.hf.stream import plan_pairs
from builder.hf.tally import Tally, in_words
from builder.hf.units import TABLE_BYTES, Planned, Unit, plan_layout, plan_rows, plan_shards

__all__ = ["Builder", "Config", "load_dataset", "load_dataset_builder", "reader_dataset", "register"]

NAMES = ("laion6m", "laion6m.py")
_log = logging.getLogger(__name__)


@dataclass
class Config(datasets.BuilderConfig):  # type: ignore[misc]
    """Options of the builder. Give them to ``load_dataset`` by name.

    The first four choose samples: see :class:`builder.SamplePolicy`.
    ``recaptions``: files with captions (Parquet, JSON lines, CSV), or folders of such files.
    ``on``: the field of the images' sidecars that joins them with the recaptions. The default is ``url``. Recaptions
    without a ``url`` are joined by their names.
    ``listing``: a file to read as data.json. False reads none.
    ``hub_revision``: branch, tag or commit of the Hub repository. It is used only if there is no data_dir.
    """

    caption_key: str = "auto"
    max_aspect_ratio: float = 3.0
    min_side: int | None = None
    max_pixels: int = MAX_PIXELS
    recaptions: StrPath | Sequence[StrPath] = ()
    on: str | None = None
    listing: StrPath | bool | None = None
    hub_revision: str = "main"
    hub_token: str | bool | None = field(default=None, repr=False)  # load_dataset(token=…)
    source: Source | None = field(default=None, init=False, repr=False)

    @property
    def policy(self) -> SamplePolicy:
        return SamplePolicy(self.caption_key, self.max_aspect_ratio, self.min_side, self.max_pixels)

    @property
    def options(self) -> ConvertOptions:
        """The options of a conversion. Paths are absolute: the working directory may change while a stream is open."""
        listing = self.listing
        return ConvertOptions(
            policy=self.policy,
            recaptions=tuple(map(os.path.abspath, paths_of(self.recaptions))),
            on=self.on,
            listing=listing if listing is None or isinstance(listing, bool) else os.path.abspath(path_of(listing)),
        )

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """The name of the cache folder. Only what the rows depend on decides it. Looks at the source for that."""
        self.source = find_source(self.data_dir, self.options, self.hub_revision, self.hub_token)
        facts = {
            "source": self.source.fingerprint(),
            "policy": [self.caption_key, self.max_aspect_ratio, self.min_side, self.max_pixels],
            "version": __version__,
            **({"on": self.on} if self.on else {}),
        }
        digest = xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape"))
        return str(super().create_config_id({"source": digest}, custom_features))


class Builder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Gives rows of schema.ROW from a source, a converted folder or the Hub. The subclass in ``laion6m.py`` gives it
    its name."""

    BUILDER_CONFIG_CLASS = Config

    def __init__(
        self,
        *args: Any,
        data_files: Any = None,
        dataset_name: str | None = None,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """``datasets`` passes ``dataset_name`` and a DataFilesDict; both are ignored. The name may be "laion6m.py". The
        dict holds the files that ``datasets`` found in data_dir. Raises OptionError if the user gave data_files."""
        if data_files is not None and not isinstance(data_files, DataFilesDict):
            raise _no_data_files(data_files)
        if token is not None:
            token = _clean(token)
            kwargs |= {"token": token, "hub_token": token}
        self._planned: Planned | None = None
        self._tally = Tally()
        super().__init__(*args, **kwargs)

    def _info(self) -> Any:
        return datasets.DatasetInfo(
            description="Images of laion-aesthetics-12m-umap with recaptions, paired by path.",
            homepage="https://huggingface.co/datasets/wusize/laion6m",
            features=datasets.Features.from_dict(schema.FEATURES),
        )

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        streaming = isinstance(dl_manager, datasets.StreamingDownloadManager)
        planned = self._plan(dl_manager, streaming)
        for remark in planned.remarks:
            _log.warning("%s", remark)
        if streaming and planned.rejected:
            _log.warning("%s", in_words(planned.rejected, planned.listed))
        self._planned = replace(planned, units=[])  # with num_proc, datasets pickles this builder for each job
        train = datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"units": planned.units})
        if planned.rows is not None:
            train.split_info.num_examples = planned.rows  # total of the progress bar; the real count replaces it
        return [train]

    def _plan(self, dl_manager: Any, streaming: bool) -> Planned:
        config = self.config
        source: Source = config.source
        if isinstance(source, ConvertedFolder):
            return plan_shards(source.shards)
        if isinstance(source, SelectedRows):
            return plan_rows(source.rows)
        if isinstance(source, LocalSource):
            return plan_layout(source.layout, config.options)
        layout = source.layout(config.hub_token)
        return plan_pairs(layout) if streaming else plan_layout(downloaded(layout, dl_manager.download), config.options)

    def _prepare_split(self, split_generator: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate the split, then log once what was lost. Workers of ``num_proc`` write their counts into the tally's
        folder."""
        assert self._planned is not None
        with self._tally.collected() as rejected:
            rejected.update(self._planned.rejected)
            result = super()._prepare_split(split_generator, *args, **kwargs)
        if split_generator.split_info.num_examples == 0:
            found = in_words(rejected, self._planned.listed) if rejected else "nothing is listed."
            source = REPOSITORY if isinstance(self.config.source, HubSource) else DEFAULT_FOLDER
            raise SourceError(f"{shlex.quote(path_of(self.config.data_dir or source))} has no rows: {found}")
        if rejected:
            _log.warning("%s", in_words(rejected, self._planned.listed))
        return result

    def _generate_tables(self, units: list[Unit]) -> Iterator[tuple[str, pa.Table]]:
        """Yield tables of about TABLE_BYTES. Each becomes one or more row groups. Streaming calls this for each
        unit."""
        ready: list[pa.Table] = []
        number = 0
        for unit in units:
            rejected: Counter[str] = Counter()
            for table in unit.tables(self.config.policy, rejected):
                ready.append(table)
                if sum(each.nbytes for each in ready) >= TABLE_BYTES:
                    yield str(number), pa.concat_tables(ready)
                    number += 1
                    ready = []
            self._tally.add(rejected)
        if ready:
            yield str(number), pa.concat_tables(ready)


def load_dataset(
    path: StrPath,
    name: str | None = None,
    data_dir: StrPath | None = None,
    data_files: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``datasets.load_dataset`` that also loads "laion6m.py" and "laion6m", on every version of ``datasets``.

    For these names, data_dir is a source or a converted folder, and is not globbed. Without data_dir, data/laion6m is
    loaded if it exists, else the Hub repository. Options: see :class:`Config`. The path of a selection means the same
    as data_dir. Any other path goes to ``datasets`` unchanged.
    """
    return datasets.load_dataset(*_known(path, name, data_dir, data_files, kwargs), *args, **kwargs)


def load_dataset_builder(
    path: StrPath,
    name: str | None = None,
    data_dir: StrPath | None = None,
    data_files: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``datasets.load_dataset_builder`` that also knows "laion6m.py" and "laion6m": see :func:`load_dataset`."""
    return datasets.load_dataset_builder(*_known(path, name, data_dir, data_files, kwargs), *args, **kwargs)


def _known(
    path: StrPath, name: str | None, data_dir: StrPath | None, data_files: Any, kwargs: dict[str, Any]
) -> tuple[str, str | None, str | None, Any]:
    """The first arguments as ``datasets`` understands them. Options for our builder are renamed in ``kwargs``."""
    path, data_dir = os.fspath(path), path_or_none(data_dir)
    if data_dir is None and os.path.exists(os.path.join(path, SELECTION)):
        path, data_dir = NAMES[0], path  # datasets would load the row numbers in it
    if path in NAMES or path.replace("\\", "/").endswith(f"/{NAMES[1]}"):
        if data_files is not None:
            raise _no_data_files(data_files)
        importlib.import_module(NAMES[0])  # registers itself
        path, data_files = NAMES[0], DataFilesDict({schema.SPLIT: DataFilesList([], [])})  # None: it searches data_dir
        kwargs.pop("trust_remote_code", None)  # this package runs no remote code
        if kwargs.get("revision") is not None:
            kwargs["hub_revision"] = str(kwargs.pop("revision"))
    if "token" in kwargs:
        kwargs["token"] = _clean(kwargs["token"])
    return path, name, data_dir, data_files


def _clean(token: str | bool | None) -> str | bool | None:
    """The token without blanks around it. A token read from a file ends in a newline, and HTTP headers allow none."""
    return token.strip() if isinstance(token, str) else token


def register(module: str) -> None:
    """Register an importable module under NAMES. ``datasets`` looks into this table first. The second part of an entry
    becomes part of the cache's path."""
    for name in NAMES:
        _PACKAGED_DATASETS_MODULES[name] = (module, xxhash.xxh3_64_hexdigest(__version__.encode()))


def _no_data_files(data_files: Any) -> OptionError:
    return OptionError("data_files", data_files, "this builder finds its files itself. Give a folder as data_dir")
