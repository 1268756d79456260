"""Load base models by name, and name loaded ones.

A name is that of a bundled model, a folder, a GGUF file, or the hub's. A model is loaded whole or
not at all, and code that comes with it does not run unless it is allowed for that model.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from errata.config import check_dtype
from errata.errors import ConfigError, UnknownNameError
from errata.progress import report
from errata.saving import gguf_files
from errata.storage.identity import record_source

log = logging.getLogger(__name__)

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
_COMPUTED_BY = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""The capabilities of a CPU, as torch names them, that compute in a type of half precision."""


def name_of(base: PreTrainedModel) -> str:
    """Return the name that loads the base model again: bundled, an absolute path, or a hub's."""
    source = str(getattr(base.config, "_name_or_path", "") or "")
    if not source or not Path(source).is_dir():
        return source
    folder = Path(source).resolve()
    # where transformers itself was told to read one
    file = getattr(getattr(base.config, "quantization_config", None), "gguf_file", None)
    if file is not None:
        return str(folder / file)
    bundled = (name for name, path in BUNDLED.items() if path.resolve() == folder)
    return next(bundled, str(folder))


def load_base(
    name: str,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool | Collection[str] = False,
    saved_dtype: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Args:
        name: a bundled model's name, a local folder, a GGUF file or a hub name.
        dtype: a torch dtype's name, or `auto`: the saved one, of bundled models and GGUF files
            float32; and float32 instead of half precision on a CPU that does not compute in that.
        device_map: as in transformers; None is the CPU.
        trust_remote_code: whether code that comes with the model may run; or the names of the
            models whose code may.
        saved_dtype: what counts as the saved dtype; None: as above.

    Raises:
        UnknownNameError: there is no such model, it is damaged or lacks weights, or it cannot be
            loaded without running its code, which is not allowed.
        ConfigError: there is no such dtype, or the library for a GGUF file is missing.
    """
    check_dtype(dtype)
    names = [trust_remote_code] if isinstance(trust_remote_code, str) else trust_remote_code
    trusted = names if isinstance(names, bool) else name in names
    source = str(BUNDLED.get(name, name))
    file = gguf_files.gguf_file(source)
    saved = saved_dtype or ("auto" if name not in BUNDLED and file is None else "float32")
    options = {"dtype": saved if dtype == "auto" else dtype, "device_map": device_map}
    try:
        if file is None:
            where = {"pretrained_model_name_or_path": source, "trust_remote_code": trusted}
            model, tokenizer = _loaded(where, options)
            if dtype == "auto" and _is_slow(model):
                del model
                model, tokenizer = _loaded(where, options | {"dtype": torch.float32})
        else:
            with gguf_files.opened(file) as (where, for_model):
                model, tokenizer = _loaded(where, options | for_model)
                gguf_files.check_tokenizer(file, tokenizer)
            model.config.name_or_path = tokenizer.name_or_path = str(file)
    except ConfigError:
        raise
    except _UNLOADABLE as error:
        raise _unloadable(name, error) from error
    if file is not None:
        record_source(model, file)
    else:
        with contextlib.suppress(OSError):  # no local files
            if config := cached_file(source, "config.json", local_files_only=True):
                record_source(model, Path(config).parent)
    return model, tokenizer


def _loaded(
    where: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer with transformers; raise `ValueError` if weights are missing.

    Args:
        where: arguments that say where they are.
        options: arguments for the model alone.
    """
    config = AutoConfig.from_pretrained(**where)
    report("reading the tokenizer", 0, 0)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    report("reading the weights", 0, 0)
    model, found = AutoModelForCausalLM.from_pretrained(
        config=config, output_loading_info=True, **where, **options
    )
    if missing := sorted(found["missing_keys"]):
        some = ", ".join(missing[:2]) + (", ..." if len(missing) > 2 else "")
        raise ValueError(
            f"{len(missing)} of its weights are missing ({some}) and would be random; copy or "
            "download it again."
        )
    return model, tokenizer


def _unloadable(name: str, error: Exception) -> UnknownNameError:
    """Return the error to raise for a model that cannot be loaded."""
    if "trust_remote_code" in str(error):
        return UnknownNameError(
            f"model {name!r} brings code of its own, which is not run. If you know it and trust "
            f"it, allow it by name: `errata --trust-remote-code {name} ...`, or "
            "load_base(..., trust_remote_code=True)."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnknownNameError(
        f"model {name!r} cannot be loaded: {reason} Give a hub name, a local folder, a GGUF file, "
        f"or a bundled model ({', '.join(BUNDLED)})."
    )


def _is_slow(base: PreTrainedModel) -> bool:
    """Return whether a model is in half precision on a CPU that does not compute in that.

    Such a CPU converts each number before and after each operation, which takes several times as
    long. float32 holds every number of both exactly, so the model is loaded in it, anew: what a
    model computes when it is made, such as Gemma's scale of embeddings, was rounded. A quantized
    model stays as it is.
    """
    dtype, devices = base.dtype, {parameter.device.type for parameter in base.parameters()}
    quantized = getattr(base, "is_quantized", False)
    if devices != {"cpu"} or quantized or computes_in(dtype):
        return False
    shown = str(dtype).removeprefix("torch.")
    _warn_once(
        f"{name_of(base)} is saved in {shown}, in which this CPU does not compute: it is "
        f"loaded in float32 (dtype {shown} would keep it, and be slow)."
    )
    return True


def computes_in(dtype: torch.dtype) -> bool:
    """Return whether this machine's CPU has instructions that compute in a floating type."""
    # older versions of torch cannot tell
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    known = _COMPUTED_BY.get(dtype)
    return known is None or any(capabilities.get(name) for name in known)


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)
