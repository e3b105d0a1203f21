"""What a family of models is to the rest of the package: what it takes, what it gives, what it is trained with."""

from dataclasses import Field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import Channel
from patchout.models.fill import fill


class Output(NamedTuple):
    """What a tagger returns."""

    logits: Float[Tensor, "batch class"]
    embedding: Float[Tensor, "batch width"]  # of a PaSST the mean of the C and D tokens after the final norm
    tokens: Float[Tensor, "batch token width"]  # class tokens, then the patches that the model read


def num_patches(size: int, patch: int, stride: int) -> int:
    """Patches that lie whole on one side of a spectrogram, all in pixels."""
    return max(0, (size - patch) // stride + 1)


class Geometry:
    """Log-mels as a grid of patches: samples, frames and patch columns of one model. A config has it as a base.

    `columns` is how many columns a forward pass takes. No dataclass itself: its fields would come first in stored
    configs, whose order of fields is each family's own.
    """

    mel: MelConfig
    patch: int
    columns: int
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels between patches, frequency and time; side by side where a family does not say otherwise."""
        return self.patch, self.patch

    @property
    def rows(self) -> int:
        """Patch rows."""
        return num_patches(self.mel.n_mels, self.patch, self.stride[0])

    @property
    def num_class_tokens(self) -> int:
        """Tokens that stand for the whole clip."""
        return 1

    @property
    def max_frames(self) -> int:
        """The longest log-mel one forward pass takes; more would need another column."""
        return self.num_frames(self.columns + 1) - 1

    @property
    def max_samples(self) -> int:
        """The longest waveform one forward pass takes."""
        return self.max_frames * self.mel.hop_length

    @property
    def min_samples(self) -> int:
        """The shortest waveform that fills one patch."""
        return max(self.mel.min_samples, self.mel.num_samples(self.patch))

    def num_columns(self, num_frames: int) -> int:
        """Patch columns that fit into so many frames."""
        return num_patches(num_frames, self.patch, self.stride[1])

    def num_frames(self, columns: int) -> int:
        """Frames that so many columns cover."""
        return self.patch + (columns - 1) * self.stride[1]

    def check(self, mel: Tensor, *, first_column: int = 0) -> int:
        """Patch columns of log-mels (batch, n_mels, frames) that begin at a column, or a ValueError: what would fit."""
        if mel.ndim != 3 or mel.shape[1] != self.mel.n_mels:
            raise ValueError(
                f"the model takes log-mels of shape (batch, {self.mel.n_mels}, frames), got {tuple(mel.shape)}"
            )
        frames, columns = mel.shape[2], self.num_columns(mel.shape[2])
        if columns < 1:
            raise ValueError(
                f"a clip of {frames} frames holds no patch of {self.patch}: pad it to {self.min_samples} samples"
            )
        if not 0 <= first_column <= self.columns - columns:
            longest = f"{self.max_frames} frames ({self.max_samples / self.mel.sample_rate:.2f} s)"
            at = f" from column {first_column} on" if first_column else ""
            raise ValueError(
                f"the model takes at most {longest}, got {frames}{at}: cut the clip into windows, as patchout.tag does"
            )
        return columns


class TaggerConfig(Geometry):
    """What the config of every tagger says beside its geometry.

    `task`: one class a clip (softmax) or any number (sigmoid). `pad_s`: a shorter sound gets silence after it up to so
    many seconds before it is tagged, as in the training of this model. `channel`: which one of a file the model hears,
    as it did there. Without labels it is an encoder for embeddings alone.
    """

    labels: tuple[str, ...]
    task: Literal["multi_class", "multi_label"]
    width: int  # of the embedding
    pad_s: float
    channel: Channel
    licence: str
    provenance: dict[str, Any]

    title: ClassVar[str]
    options: ClassVar[frozenset[str]] = (
        frozenset()
    )  # of a training run's settings: those that not every family has
    fixed: ClassVar[tuple[str, ...]] = ()  # sizes that weights cannot change
    untrained: ClassVar[str] = "model without its last layer"  # what one without labels is called
    recipe: ClassVar[str]  # that gives it classes
    other_start: ClassVar[str] = "is a {has}, a {title} was asked for: leave --model out, or start elsewhere"

    @classmethod
    def fresh(cls) -> "TaggerConfig":
        """The config of random weights, before a run sets labels and sizes."""
        return cls(labels=(), columns=1)  # type: ignore[call-arg]  # a family's own fields have defaults

    def lends(self, columns: int) -> bool:
        """Whether a model with a table of so many columns can start from this one's weights."""
        return True

    def check_names(self) -> None:
        """Refuse classes of one name."""
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"label {twice!r} stands twice: every class needs its own name")


class Tagger(nn.Module):
    """A model that the rest of the package runs: built of its config, log-mel -> `Output`, a `head` on an encoder."""

    config: TaggerConfig

    def __init__(self, config: TaggerConfig, *, rng: Generator | None = None) -> None:
        """A family draws its random weights from `rng` (a CPU generator; torch's own when None)."""
        super().__init__()
        self.config = config

    def forward(self, mel: Float[Tensor, "batch mel frame"], *, rng: Generator | None = None) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; what training asks for beside it is drawn from `rng`."""
        raise NotImplementedError

    def adapted(self, config: Any, name: str, *, rng: Generator | None) -> "Tagger":
        """A model of `config` with these weights, called `name` in errors; for other labels the head is new."""
        model = type(self)(config, rng=rng)
        fill(model, self.weights_for(model, ("head.",) if config.labels != self.config.labels else ()), name)
        return model

    def weights_for(self, model: "Tagger", new: tuple[str, ...]) -> dict[str, Tensor]:
        """These weights, but those of `model` where a name begins with one of `new`."""
        kept = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(new)}
        return kept | {name: tensor for name, tensor in model.state_dict().items() if name.startswith(new)}
