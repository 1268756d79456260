"""Open a GGUF file with transformers' own reader, as a dense model, and say what is wrong with one.

A GGUF file holds a model's settings, tokenizer and weights, the weights mostly quantized; opened,
they are dequantized, and the model is like any other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import modeling_gguf_pytorch_utils

from errata.errors import ConfigError
from errata.progress import report

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
_NEEDED = ("gguf", "accelerate")
_DAMAGED = (OSError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError, RuntimeError)
"""What the library raises on a file that is cut off, or whose bytes are others."""
_ONE_AT_A_TIME = threading.Lock()
_SPACES = ("\u2581", "\u0120")
"""What stands for a space before a word: SentencePiece's and GPT-2's."""
_LOOKED_AT = 2000  # tokens of a vocabulary
_ENOUGH = 20  # words among them, to say anything


def gguf_file(name: str) -> Path | None:
    """Return the absolute path of a GGUF file; None if the name can be none of a file.

    Any file counts, since some programs keep theirs without a suffix.
    """
    try:
        path = Path(name)
        named = path.suffix.lower() == SUFFIX and not path.is_dir()
        return path.absolute() if named or path.is_file() else None
    except (OSError, ValueError):  # too long, or no path at all
        return None


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Check a GGUF file; yield the arguments of transformers' `from_pretrained` that load it.

    The second are for the model alone. Within the block, the library reads the file once and
    transformers reports progress. One thread at a time is within.

    Raises:
        ConfigError: a library is missing.
        ValueError: there is no such file, or it is no GGUF file, damaged, or a part of one.
    """
    if not all(map(find_spec, _NEEDED)):
        raise ConfigError("a GGUF file needs a library to be read: pip install 'errata[gguf]'.")
    import gguf

    with _ONE_AT_A_TIME, contextlib.ExitStack() as changed, tempfile.TemporaryDirectory() as empty:
        # its header was parsed four times, and the table of names made once for every module
        for name in ("GGUFReader", "get_tensor_name_map"):
            changed.enter_context(_replaced(gguf, name, functools.cache(getattr(gguf, name))))
        steps = functools.partial(_reported, f"dequantizing {file.name}")
        changed.enter_context(_replaced(modeling_gguf_pytorch_utils, "tqdm", steps))
        report(f"reading {file.name}", 0, 0)
        _check(file, gguf)
        # in a folder of its own, so that no other file beside it is taken for this model's
        where = {"pretrained_model_name_or_path": empty, "gguf_file": str(file)}
        kind = getattr(transformers, "GgufConfig", None)  # before it, all were dequantized
        yield where, {"quantization_config": kind(dequantize=True)} if kind else {}


def check_tokenizer(file: Path, tokenizer: Any) -> None:
    """Check that transformers made the file's own tokenizer; call it while the file is `opened`.

    Some versions (5.17 for Gemma 3) make one that takes words apart, or begins no text with the
    token that the model wants first; such a model answers nonsense, and nothing else says so.

    Raises:
        ConfigError: it is another one.
    """
    import gguf

    field = gguf.GGUFReader(str(file)).fields.get("tokenizer.ggml.add_bos_token")
    begins = field is not None and bool(field.contents()) and tokenizer.bos_token_id is not None
    if begins and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        raise _misread(file, "no text begins with the token that the model wants first")
    every = max(1, len(tokenizer) // _LOOKED_AT)
    tokens = tokenizer.convert_ids_to_tokens(range(0, len(tokenizer), every))
    words = [word[1:] for word in tokens if word[:1] in _SPACES and word[1:].isalpha()]
    parts = [min(len(_ids(tokenizer, word)), len(_ids(tokenizer, " " + word))) for word in words]
    if len(words) >= _ENOUGH and sum(part > 1 for part in parts) > len(words) / 2:
        raise _misread(file, "its words are taken apart")


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _misread(file: Path, how: str) -> ConfigError:
    return ConfigError(
        f"transformers {transformers.__version__} reads the tokenizer of {file.name} wrongly: "
        f"{how}. Install another version: pip install -U transformers."
    )


def _check(file: Path, gguf: Any) -> None:
    """Raise `ValueError`, with the reason, unless the file is a whole model."""
    if not file.is_file():
        raise ValueError("there is no such file.")
    with file.open("rb") as opened_file:
        if opened_file.read(4) != b"GGUF":
            raise ValueError("it is no GGUF file (its first bytes are not 'GGUF').")
    try:
        reader = gguf.GGUFReader(str(file))
        fields = reader.fields
        fields["general.architecture"]
        parts = fields["split.count"].contents() if "split.count" in fields else 1
    except _DAMAGED as error:
        raise ValueError("it is cut off or damaged; copy or download it again.") from error
    if parts > 1:
        raise ValueError(
            f"it is one of {parts} parts; join them first (gguf-split --merge), and give the whole."
        )
    if any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        log.warning(
            "%s holds rescaled positions (rope_...), which transformers does not read: in long "
            "texts its answers may differ from those of programs that do.",
            file,
        )


def _reported(what: str, items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Go through a list, as tqdm does, and report how far it is."""
    items = list(items)
    for done, item in enumerate(items):
        report(what, done, len(items))
        yield item
    report(what, len(items), len(items))


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give a name of a module another value within a `with` block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
