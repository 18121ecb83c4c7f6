"""What a run is asked to do: frozen, checked settings whose identity is the hash of their content."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Frozen, strict about unknown names and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(Settings):
    """One file of a menu and its options."""

    name: str
    options: dict[str, Any] = {}


class Training(Settings):
    """How an arm is trained; every arm of a comparison gets the same."""

    epochs: Annotated[int, Field(ge=1, le=1000, description="passes over the training images")] = 10
    batch_size: Annotated[
        int, Field(ge=2, le=4096, description="images per step; the batches of an epoch differ by at most one")
    ] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1, description="peak learning rate of the backbone")] = 3e-4
    head_learning_rate: Annotated[float, Field(gt=0, le=1, description="peak learning rate of the new head")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1, description="decoupled weight decay; none on biases and norms")] = 0.01
    optimizer: Annotated[Literal["adamw", "sgd"], Field(description="AdamW, or SGD with momentum 0.9")] = "adamw"
    warmup: Annotated[float, Field(ge=0, le=0.9, description="share of the steps in which the rate rises; then cosine to 0")] = (
        0.1
    )
    clip: Annotated[float, Field(gt=0, le=1000, description="largest gradient norm")] = 1.0
    augment: Annotated[Literal["none", "light", "strong"], Field(description="light: crops of 80 to 100 % and flips")] = "light"
    views: Annotated[int, Field(ge=1, le=4, description="seeded views per image; the pretrained model sees each once")] = 4
    split_seed: Annotated[
        int, Field(ge=0, lt=2**31, description="decides which images validate and test; the same for all seeds")
    ] = 0
    precision: Annotated[Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 autocast on CUDA, fp32 elsewhere")] = (
        "auto"
    )
    # Later settings are left out of the stored form at their defaults, so that the ids of experiments without them stay.
    shots: Annotated[
        int,
        Field(ge=0, le=10_000, exclude_if=lambda shots: shots == 0, description="training images of each class; 0 takes all"),
    ] = 0
    balanced: Annotated[
        bool, Field(exclude_if=lambda balanced: not balanced, description="draw every class equally often in an epoch")
    ] = False
    keep: Annotated[
        Literal["last", "epochs"],
        Field(exclude_if=lambda keep: keep == "last", description="epochs: the weights after every epoch are kept too"),
    ] = "last"
    shuffle_labels: Annotated[
        bool,
        Field(
            exclude_if=lambda shuffle: not shuffle,
            description="deal the training labels out at random: there is nothing to learn",
        ),
    ] = False


SHUFFLED = "labels shuffled"  # in the name of every arm that was trained so, lest it is taken for a real one
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {"epochs": 3},
    "thorough": {"epochs": 30},
    # Stated by Merlin 2023 (arXiv 2307.06006) for ViT-B/32; its batch size and clip come from the authors' scripts.
    "sgd_2307_06006": {
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "head_learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "epochs": 100,
        "batch_size": 256,
        "clip": 1.0,
    },
}


Strength = Annotated[
    Annotated[float, Field(ge=0, le=1e6)] | Literal["auto"],
    Field(description="weight of the penalty, which is relative; auto: chosen on validation images"),
]


class ArmOrder(Settings):
    """One arm as it is asked for; without a regularizer the strength is 0, or "auto" where its learning rate is chosen."""

    method: Choice = Choice(name="full")
    regularizer: Choice = Choice(name="rift")
    strength: Strength = 1.0


class Experiment(Settings):
    """One run: which images, which model, how it is finetuned, from which seed."""

    data: str  # digest of the image set
    natural: str  # digest of the natural set
    task: Choice = Choice(name="single_label")
    backbone: Choice = Choice(name="embedded")
    method: Choice = Choice(name="full")
    regularizer: Choice = Choice(name="none")
    strength: Strength = 0.0
    training: Training = Training()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def id(self) -> str:
        """Name of the run: 16 hexadecimal digits of the hash of all settings."""
        return digest(self.model_dump(mode="json"))[:16]

    @property
    def pair_id(self) -> str:
        """Hash of all that decides which images are seen in which order; runs with equal pair_id may be compared."""
        which = {"epochs", "batch_size", "augment", "views", "split_seed", "shots", "balanced", "shuffle_labels"}
        training = self.training.model_dump(include=which, mode="json")
        both = {"task", "backbone", "data", "natural", "seed"}
        return digest({**self.model_dump(mode="json", include=both), "training": training})[:16]


def digest(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
