"""Tiny random text-to-image pipelines of each layout, built in process, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = "a photo of an image picture drawing painting close up the ball box kelor zapus red blue"


def tokenizer(length: int = 24) -> Any:
    """CLIP's kind of tokenizer, which knows some words whole and others by their letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz-'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        if len(word) > 1:
            parts = [*word[:-1], f"{word[-1]}</w>"]
            while len(parts) > 1:
                merges[parts[-2], parts[-1]] = None
                parts[-2:] = ["".join(parts[-2:])]
                tokens.append(parts[-1])
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocabulary, list(merges), model_max_length=length)


def encoder(words: Any, width: int, blocks: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        projection_dim=width,
        initializer_factor=4.0,  # else all texts are read alike
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def pipeline(two: bool = False) -> Any:
    """Stable Diffusion's layout, or SDXL's, which has two text encoders."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    words = tokenizer()
    more: dict[str, Any] = {}
    if two:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        }
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=40 if two else 16,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        sample_size=32,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    first = encoder(words, 16, 3)
    if two:
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=first,
            text_encoder_2=encoder(words, 24, 4, projected=True),
            tokenizer=words,
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=first,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def saved(folder: Path, two: bool = False) -> Path:
    """Save a tiny pipeline; return its folder."""
    pipeline(two).save_pretrained(folder)
    return folder
