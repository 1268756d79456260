"""Edits in weights, for engines that know nothing of errata: as a LoRA in PEFT's format.

What a weight editor adds to a matrix is of low rank, mostly; its singular vectors are the adapter
(Hu et al., "LoRA", arXiv 2106.09685). vLLM and llama.cpp load it at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import ConfigError, UsageError
from errata.model import EditModel
from errata.storage.checkpoints import put_whole

CONFIG = "adapter_config.json"
"""The file by which a folder counts as a LoRA."""
NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class LoraReport:
    """What was written.

    Attributes:
        ranks: module -> the rank of its adapter.
        error: the share of the change that was cut off, in the Frobenius norm; 0 where none was.
    """

    ranks: dict[str, int]
    error: float


@torch.no_grad()
def export_lora(model: EditModel, folder: str | Path, rank: int | None = None) -> LoraReport:
    """Write what the edits add to the base model's weights as a LoRA.

    Args:
        model: an edited model whose method changes weights.
        folder: where the adapter goes.
        rank: of each matrix's adapter, at most; None keeps all.

    Raises:
        ConfigError: the edits are beside the weights, or change more than the matrices of linear
            layers, or change nothing.
        OSError: the disk refused; a folder with a config has a whole LoRA.
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UsageError("a LoRA needs PEFT: pip install 'errata[peft]'.") from error
    method = model.method
    if method.patch.reads_prompts:
        raise ConfigError(
            f"edits of {method.config.method} are beside the weights, by the prompt, so that no "
            "LoRA holds them; export them for an engine (--to vllm), or serve them: `errata serve`."
        )
    changes = _changes(model)
    if not changes:
        raise ConfigError("the edits change no weight: there is nothing to export.")
    tensors: dict[str, Tensor] = {}
    ranks, lost, all_of_it = dict[str, int](), 0.0, 0.0
    for name, change in changes.items():
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        count = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
        ranks[name] = min(count, rank or count)
        all_of_it += float(values.square().sum())
        lost += float(values[ranks[name] : count].square().sum())
        root, kept = values[: ranks[name]].sqrt(), ranks[name]
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = (root[:, None] * right[:kept]).contiguous()
        tensors[f"{prefix}.lora_B.weight"] = (left[:, :kept] * root).contiguous()
    most = max(ranks.values())
    is_conv = any(isinstance(model.base.get_submodule(name), Conv1D) for name in ranks)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=most, lora_alpha=most, target_modules=sorted(ranks),
        rank_pattern=ranks, alpha_pattern=ranks, lora_dropout=0.0, bias="none",
        fan_in_fan_out=is_conv, base_model_name_or_path=model.lm.name, inference_mode=True,
    )  # fmt: skip
    with put_whole(Path(folder), CONFIG) as beside:
        save_file(tensors, beside / "adapter_model.safetensors")
        config.save_pretrained(str(beside))
    return LoraReport(ranks, (lost / all_of_it) ** 0.5)


def _changes(model: EditModel) -> dict[str, Tensor]:
    """Return what is added to the weights (out, in) of linear layers, by module, in fp32.

    Raises:
        ConfigError: something else has changed.
    """
    edited = {name: tensor.detach().clone() for name, tensor in model.base.named_parameters()}
    found = {}
    with model.disable_edits():
        for name, before in model.base.named_parameters():
            after = edited.pop(name, None)
            if after is None or after.shape != before.shape or torch.equal(after, before):
                continue
            module = model.base.get_submodule(name.rpartition(".")[0])
            if not name.endswith(".weight") or not isinstance(module, nn.Linear | Conv1D):
                raise ConfigError(
                    f"the edits change {name}, which is no matrix of a linear layer; a LoRA cannot "
                    "hold that. Export with --to weights."
                )
            change = (after.float() - before.detach().float()).cpu()
            found[name.rpartition(".")[0]] = change.T if isinstance(module, Conv1D) else change
    return found
