"""Edits of text-to-image models: what a diffusers pipeline draws where its prompt names a subject.

They are written into the pipeline's CLIP text encoders (ReFACT), or kept in a memory beside them.
"""

from errata.images.folder import ImageArtifact, holds_images, read_images
from errata.images.image_edit import ImageEdit, read_image_edits
from errata.images.image_model import ImageModel
from errata.images.method import ImageMethod, Written
from errata.images.methods import method_of
from errata.images.opening import is_pipeline

__all__ = [
    "ImageArtifact",
    "ImageEdit",
    "ImageMethod",
    "ImageModel",
    "Written",
    "holds_images",
    "is_pipeline",
    "method_of",
    "read_image_edits",
    "read_images",
]
