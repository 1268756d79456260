"""Load base models by name, and name loaded ones.

Code that comes with a model does not run unless it is allowed for that model.
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
from errata.storage.identity import record_source

BUNDLED = {"atlas": Path(__file__).parent.parent / "atlas" / "model"}
"""Folders of the models that come with errata, by name."""

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
"""What transformers raises while it loads missing, damaged or malicious files."""


def name_of(base: PreTrainedModel) -> str:
    """Return the name that loads the base model again: bundled, an absolute folder, or a hub's."""
    source = str(getattr(base.config, "_name_or_path", "") or "")
    if not source or not Path(source).is_dir():
        return source
    folder = Path(source).resolve()
    bundled = (name for name, path in BUNDLED.items() if path.resolve() == folder)
    return next(bundled, str(folder))


def load_base(
    name: str,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool | Collection[str] = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Args:
        name: a bundled model's name, a local folder or a hub name.
        dtype: a torch dtype's name, or `auto`: the saved one (of bundled models: float32, which is
            fast on a CPU).
        device_map: as in transformers; None is the CPU.
        trust_remote_code: whether code that comes with the model may run; or the names of the
            models whose code may.

    Raises:
        UnknownNameError: there is no such model, or it cannot be loaded without running its code,
            which is not allowed.
        ConfigError: there is no such dtype.
    """
    source = str(BUNDLED.get(name, name))
    used_dtype: Any = "float32" if dtype == "auto" and name in BUNDLED else dtype
    if used_dtype != "auto" and not isinstance(getattr(torch, used_dtype, None), torch.dtype):
        raise ConfigError(f"dtype {dtype!r} is unknown; try float32, bfloat16 or float16.")
    names = [trust_remote_code] if isinstance(trust_remote_code, str) else trust_remote_code
    trusted = names if isinstance(names, bool) else name in names
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=used_dtype, device_map=device_map, trust_remote_code=trusted
        )
    except _UNLOADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            raise UnknownNameError(
                f"model {name!r} brings code of its own, which is not run. If you know it and "
                f"trust it, allow it by name: `errata --trust-remote-code {name} ...`, or "
                "load_base(..., trust_remote_code=True)."
            ) from error
        bundled = ", ".join(BUNDLED)
        raise UnknownNameError(
            f"model {name!r} cannot be loaded: {reason} Give a hub name, a local folder, or a "
            f"bundled model ({bundled})."
        ) from error
    with contextlib.suppress(OSError):  # no local files
        if config := cached_file(source, "config.json", local_files_only=True):
            record_source(model, Path(config).parent)
    return model, tokenizer
