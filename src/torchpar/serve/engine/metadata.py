"""Describes the engine's models in the protocol's words."""

from __future__ import annotations

from dataclasses import dataclass

from torchpar.serve.tensors import TensorSpec

# The repository extension's states.
READY = "READY"
LOADING = "LOADING"
UNLOADING = "UNLOADING"
UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class ModelMetadata:
    """One version of a model, described.

    versions are those that are served, oldest first; platform is Triton's word or the nearest, and kind its word for
    what computes, on so many instances. rowwise: its requests' first dimension is rows, which may be computed together,
    `most` of them at once; None: no number is set.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: str = "KIND_CPU"
    instances: int = 1
    rowwise: bool = False
    most: int | None = None


@dataclass(frozen=True)
class ModelIndex:
    """One version in the repository, served or not; reason says why not, or that it was not tried."""

    name: str
    version: str
    state: str
    reason: str
