"""The Hugging Face builder of laion6m: images and recaptions as one dataset.

    from datasets import load_dataset                                    # datasets 3.x: this file is the script
    load_dataset("laion6m.py", data_dir="data/laion6m", split="train", trust_remote_code=True)

    from builder import load_dataset                                     # any version
    load_dataset("laion6m.py", data_dir="data/laion6m", split="train", num_proc=8)
    load_dataset("laion6m.py", data_dir="data/laion6m", split="train", streaming=True)

    import datasets, laion6m                                             # datasets 4 and 5, plain, after this import
    datasets.load_dataset("laion6m.py", data_dir="data/laion6m", split="train")

``data_dir``: a source in any layout (tars or extracted), or a folder that ``laion6m convert`` made. Without it:
data/laion6m if that exists, else the Hub repository wusize/laion6m, downloaded or streamed.

This module has every name of ``builder``: ``from laion6m import convert, open_dataset, load_dataset``. And
``python -m laion6m`` is the command.

Options, as keyword arguments: ``caption_key``, ``max_aspect_ratio``, ``min_side``, ``max_pixels``, ``recaptions``,
``hub_revision``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import builder
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "laion6m.py needs the package that it belongs to: run pip install . in its checkout, or start Python there",
        name="builder",
    ) from None

if "open_dataset" not in getattr(builder, "__all__", ()):
    raise ImportError(
        f"laion6m needs its own package builder, but Python found another one: {builder.__file__ or builder.__path__}. "
        "Rename that one, or take its folder off sys.path (the working directory, PYTHONPATH).",
        name="builder",
    )

if __name__ == "__main__":
    from builder.cli.commands import command

    command()  # ends the process
else:
    from builder.hf import builder as hf  # indented: datasets 3 asks to install unindented imports

if TYPE_CHECKING:
    from builder import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(builder, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *builder.__all__})


class Laion6m(hf.Builder):
    """Rows of key, image, caption, width, height and annotation. Options: :class:`builder.hf.builder.Config`."""


if __name__ == "laion6m":  # imported by name, not run by datasets 3 as a copy in its module cache
    hf.register(__name__)
