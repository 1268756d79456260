"""Base models, by name: found and loaded. No code that comes with one runs unless its name was
given for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from errata.errors import ConfigError, UnknownNameError
from errata.saving.identity import loaded_from

BUNDLED = {"atlas": Path(__file__).parent.parent / "atlas" / "model"}
"""Models that come with errata, by name."""

_UNLOADABLE = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
"""What comes of files that are missing, damaged, or made to do harm, while transformers makes a
model of them.
"""


def name_of(base: PreTrainedModel) -> str:
    """How the base model can be found again: a bundled name, an absolute folder, or a hub name."""
    given = str(getattr(base.config, "_name_or_path", "") or "")
    for name, folder in BUNDLED.items():
        if given and Path(given).is_dir() and Path(given).resolve() == folder.resolve():
            return name
    return str(Path(given).resolve()) if given and Path(given).is_dir() else given


def load_base(
    name: str,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool | Collection[str] = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model and its tokenizer, from a bundled name, a local folder or a hub name.

    Args:
        dtype: a torch type's name, or `auto`: as the file says (the bundled models: float32, which
            is fast on a CPU).
        trust_remote_code: whether code that comes with the model may run; or the names of the
            models whose code may.

    Raises:
        UnknownNameError: there is no such model, or it cannot be loaded without running its code,
            which is not allowed.
        ConfigError: there is no such type.
    """
    where = str(BUNDLED.get(name, name))
    wanted: Any = "float32" if dtype == "auto" and name in BUNDLED else dtype
    if wanted != "auto" and not isinstance(getattr(torch, wanted, None), torch.dtype):
        raise ConfigError(f"dtype {dtype!r} is unknown; try float32, bfloat16 or float16.")
    names = [trust_remote_code] if isinstance(trust_remote_code, str) else trust_remote_code
    trusted = names if isinstance(names, bool) else name in names
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trusted)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=wanted, device_map=device_map, trust_remote_code=trusted
        )
    except _UNLOADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            raise UnknownNameError(
                f"model {name!r} brings code of its own, which is not run. If you know it and trust it, allow it by name: "
                f"`errata --trust-remote-code {name} ...`, or load_base(..., trust_remote_code=True)."
            ) from error
        bundled = ", ".join(BUNDLED)
        raise UnknownNameError(
            f"model {name!r} cannot be loaded: {reason} Give a hub name, a local folder, or a bundled model ({bundled})."
        ) from error
    with contextlib.suppress(OSError):  # it is not what files say that can be looked at
        if config := cached_file(where, "config.json", local_files_only=True):
            loaded_from(model, Path(config).parent)
    return model, tokenizer
