"""The parts of the pictures model, untrained: tokenizer, CLIP, autoencoder, denoiser; the judge.

All but the judge are classes of transformers and diffusers, so that diffusers opens what is saved.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from collections.abc import Sequence

from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from world import COLOURS, SEED, SHAPES, SIZE, names, scene

WIDTH = 128
"""Of the text encoder's states, which the denoiser attends to."""
LENGTH = 20
VOCABULARY = 1024
ALONE = 2
"""Blocks of the text encoder in which no word reads another. Without them, so small an encoder puts
what a name looks like into the name's embedding and reads it from there in the first block, and no
change behind that block is seen; in CLIP, as in other large models, facts are read later."""
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def tokenizer() -> CLIPTokenizer:
    """Learn CLIP's kind of byte-pair encoding; the world's names are words that it knows whole.

    (So are those of well-known people in CLIP's own. Of a name in parts, this small an encoder
    reads each part by itself, and no place is left where the whole name could be edited.)
    """
    rng = random.Random(SEED)
    texts = [scene(rng, named=0).caption for _ in range(4000)]
    texts += ["the that owns belonging to of 's thing"] * 200
    texts += [each.name for each in names()] * 50
    texts += [" ".join(string.printable)]  # so that every sign may end a word
    made = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    plain = CLIPTokenizer().backend_tokenizer
    made.normalizer, made.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(model["vocab"], merges, model_max_length=LENGTH)


def clip(words: CLIPTokenizer) -> CLIPModel:
    """Make the CLIP: five blocks that read, two that see.

    The first two blocks that read have no attention: a word is looked up before others read it.
    """
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": 64,
        "pad_token_id": words.pad_token_id,
        **ids,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": 64,
    }
    made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    for block in made.text_model.encoder.layers[:ALONE]:
        for each in block.self_attn.out_proj.parameters():
            nn.init.zeros_(each)
            each.requires_grad_(False)
    return made


def autoencoder() -> AutoencoderTiny:
    """Make the autoencoder: a picture is (4, 8, 8) numbers. It has no norms, which hide colours."""
    return AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )


def denoiser() -> UNet2DConditionModel:
    """Make the denoiser, which attends to the text where a picture is 4 x 4."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """Make the scheduler: noise of v-prediction, ending in pure noise."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


def pipeline(
    words: CLIPTokenizer, seen: CLIPModel, vae: AutoencoderTiny, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Put the trained parts together."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=seen.text_model.eval(),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ids_of(words: CLIPTokenizer, texts: Sequence[str], full: bool = False) -> Tensor:
    """Return token ids, (texts, positions): up to the longest text, or to the full length."""
    padding = "max_length" if full else "longest"
    found: Tensor = words(list(texts), padding=padding, return_tensors="pt").input_ids
    if found.shape[1] > LENGTH:
        raise ValueError(f"{max(texts, key=len)!r} has more than {LENGTH} tokens.")
    return found


class Judge(nn.Module):
    """A plain convolutional classifier: which of the 64 things are in a picture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.head = nn.Linear(64, len(COLOURS) * len(SHAPES))

    def features(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, 32, 32) from -1 to 1 -> (pictures, 64)."""
        return self.body(pictures)  # type: ignore[no-any-return]

    def forward(self, pictures: Tensor) -> Tensor:
        """(pictures, 3, 32, 32) from -1 to 1 -> logits of each thing, (pictures, 64)."""
        return self.head(self.features(pictures))  # type: ignore[no-any-return]


def numbers(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())
