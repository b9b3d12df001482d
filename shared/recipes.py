"""The catalogue of recipes: what can be trained without code, with each recipe's hyperparameters (torch-free)."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from shared.micro_batch import MicroBatch

BATCH_SIZE = "Rows of one optimizer step, of all ranks together; at least one for each rank"


class UnknownRecipe(KeyError):
    """Raised when no recipe has this name; the message lists those there are."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Hyperparameters(BaseModel):
    """Strict, so that a mistyped value is refused at submit and not read as something else on the GPU host."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    lr: FiniteFloat = Field(default=0.003, gt=0, le=10, description="Peak learning rate of AdamW")
    weight_decay: FiniteFloat = Field(default=0.01, ge=0, le=10, description="AdamW's decoupled weight decay")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up: falling to zero at the last epoch, or constant"
    )
    warmup: FiniteFloat = Field(
        default=0.05, ge=0, lt=1, description="Part of all steps in which the learning rate rises to its peak"
    )


class _ClassifierHyperparameters(_Hyperparameters):
    batch_size: int = Field(default=64, ge=1, le=1_048_576, description=BATCH_SIZE)
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Rows in memory at once, of all ranks together (each holds its share, rounded up); a divisor of "
        "batch_size. Not given: batch_size / accumulation_steps",
    )
    accumulation_steps: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Micro-batches of one optimizer step, however many ranks there are; not given: batch_size / "
        "micro_batch_size",
    )
    dropout: FiniteFloat = Field(
        default=0.1, ge=0, lt=1, description="Part of the last hidden layer dropped in training"
    )
    val_fraction: FiniteFloat = Field(
        default=0.2, gt=0, lt=1, description="Part of the rows kept for validation, where the data brings no such split"
    )

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        parts = MicroBatch.of(self.model_dump(include={"batch_size", "micro_batch_size", "accumulation_steps"}))
        if parts is None or parts.size * parts.accumulation_steps != self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be micro_batch_size ({self.micro_batch_size}) x "
                f"accumulation_steps ({self.accumulation_steps}); give one of the two, a divisor of batch_size"
            )
        return self


class ImageClassifier(_ClassifierHyperparameters):
    """Hyperparameters of the recipe image-classifier."""

    dataset: Literal["digits", "fashion-mnist", "npz"] = Field(
        default="digits",
        description="digits: 1,797 scans of 8x8, always there; fashion-mnist: 70,000 images of 28x28, where its four "
        "files are; npz: your own images, from data_dir",
    )
    data_dir: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Folder on the training host. npz: train.npz and val.npz, or any *.npz, with arrays images "
        "(N, H, W) or (N, H, W, C) and labels (N,); fashion-mnist: the four idx files, if not in the usual place",
    )
    model: Literal["cnn", "mlp"] = Field(default="cnn", description="Convolutional network, or fully connected one")
    width: int = Field(default=32, ge=1, le=4096, description="Channels of the first layer (mlp: hidden units / 8)")
    shift: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="In training, images are moved by up to so many pixels each way, anew in each epoch; smaller than "
        "the image. Not given: 1 for fashion-mnist, else 0",
    )
    flip: bool | None = Field(
        default=None,
        description="In training, half of the images are mirrored, left for right. Not given: only fashion-mnist",
    )
    compile: bool = Field(
        default=False, description="torch.compile on a GPU: half a minute at the start, for long runs; ignored on a CPU"
    )

    @model_validator(mode="after")
    def _folder_where_needed(self) -> Self:
        if self.dataset == "npz" and self.data_dir is None:
            raise ValueError("dataset npz needs data_dir, a folder on the training host with .npz files")
        if self.dataset == "digits" and self.data_dir is not None:
            raise ValueError("data_dir belongs to the datasets npz and fashion-mnist; digits needs none")
        return self


class TabularClassifier(_ClassifierHyperparameters):
    """Hyperparameters of the recipe tabular-classifier."""

    dataset: Literal["breast-cancer", "wine", "csv"] = Field(
        default="breast-cancer",
        description="breast-cancer: 569 rows, 2 classes; wine: 178 rows, 3 classes; csv: your own table, from path",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="csv: the file on the training host; UTF-8, a header line, numbers and categories, empty = missing",
    )
    target: str | None = Field(default=None, min_length=1, max_length=1024, description="csv: the column to predict")
    hidden: int = Field(default=64, ge=1, le=65_536, description="Units of each hidden layer")
    layers: int = Field(default=2, ge=0, le=64, description="Hidden layers; 0 is logistic regression")
    batch_size: int = Field(default=32, ge=1, le=1_048_576, description=BATCH_SIZE)

    @model_validator(mode="after")
    def _path_and_target_with_csv(self) -> Self:
        if self.dataset == "csv" and (self.path is None or self.target is None):
            raise ValueError("dataset csv needs path (a file on the training host) and target (the column to predict)")
        if self.dataset != "csv" and (self.path is not None or self.target is not None):
            raise ValueError(f"path and target belong to the dataset csv; {self.dataset} brings its own")
        return self


class LanguageModel(_Hyperparameters):
    """Hyperparameters of the recipe language-model."""

    text_dir: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Folder on the training host: all UTF-8 files below it. Neither text_dir nor text_file given: the "
        "sources of Python's standard library",
    )
    text_file: str | None = Field(
        default=None, min_length=1, max_length=4096, description="One UTF-8 file on the training host"
    )
    weight_decay: FiniteFloat = Field(default=0.1, ge=0, le=10, description="AdamW's decay of the weight matrices")
    clip_norm: FiniteFloat = Field(default=1.0, gt=0, description="Longest gradient; a longer one is scaled down")
    layers: int = Field(default=3, ge=1, le=1024, description="Transformer blocks")
    width: int = Field(default=96, ge=2, le=65_536, description="Size of a byte's vector; heads x an even number")
    heads: int = Field(default=3, ge=1, le=1024, description="Attention heads of each block")
    context: int = Field(default=128, ge=2, le=1_048_576, description="Bytes that the model sees")
    micro_batch_size: int = Field(
        default=8,
        ge=1,
        le=1_048_576,
        description="Texts in memory at once, of all ranks together; each rank holds its share, rounded up",
    )
    accumulation_steps: int = Field(
        default=1, ge=1, le=1_048_576, description="Micro-batches of one optimizer step, however many ranks there are"
    )
    steps_per_epoch: int = Field(default=100, ge=1, le=10_000_000, description="Optimizer steps that make one epoch")
    dropout: FiniteFloat = Field(default=0.0, ge=0, lt=1, description="Part of each block's output dropped in training")
    val_fraction: FiniteFloat = Field(
        default=0.1, gt=0, lt=1, description="Part of the files kept for validation; of a single file, its end"
    )
    sample_bytes: int = Field(default=120, ge=0, le=4096, description="Length of each epoch's sample in the log")
    compile: bool = Field(
        default=False, description="torch.compile on a GPU: half a minute at the start, for long runs; ignored on a CPU"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.text_dir is not None and self.text_file is not None:
            raise ValueError("text_dir and text_file are both given; give one of them")
        return self

    @model_validator(mode="after")
    def _heads_of_even_size(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not heads ({self.heads}) x an even number; {2 * self.heads * 16} would be"
            )
        return self


@dataclass(frozen=True)
class Recipe:
    """One recipe; its script is `worker/recipes/<name with underscores>.py`."""

    name: str
    title: str
    description: str
    default_epochs: int
    hyperparameters: type[BaseModel]

    def describe(self) -> dict[str, Any]:
        """As `GET /recipes` shows it."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "default_epochs": self.default_epochs,
            "hyperparameters": self.hyperparameters.model_json_schema(),
        }


CATALOGUE = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "image-classifier",
            "Image classifier",
            "Trains a small CNN or MLP on handwritten digits, Fashion-MNIST or your own .npz images.",
            20,
            ImageClassifier,
        ),
        Recipe(
            "tabular-classifier",
            "Table classifier",
            "Trains a small neural network on the breast-cancer or wine data or on any CSV file.",
            50,
            TabularClassifier,
        ),
        Recipe(
            "language-model",
            "Language model",
            "Trains a small GPT on the bytes of any text; by itself, on the sources of Python's standard library.",
            3,
            LanguageModel,
        ),
    )
}


def get(name: str) -> Recipe:
    """Raises UnknownRecipe."""
    if name not in CATALOGUE:
        raise UnknownRecipe(f"there is no recipe {name!r}; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def validate(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters with defaults filled in. Raises UnknownRecipe, and pydantic.ValidationError naming fields."""
    return get(name).hyperparameters.model_validate(hyperparameters).model_dump()
