"""Base classes of the taggers: patch geometry, config, model, and the output of a forward pass."""

from dataclasses import Field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import Channel
from patchout.models.decision import Decision
from patchout.models.fill import fill


class Prediction(NamedTuple):
    """Class logits and clip embedding alone."""

    logits: Float[Tensor, "batch class"]
    embedding: Float[Tensor, "batch width"]


class Output(NamedTuple):
    """Output of a forward pass: class logits, clip embedding, token sequence."""

    logits: Float[Tensor, "batch class"]
    embedding: Float[Tensor, "batch width"]  # of a PaSST the mean of the C and D tokens after the final norm
    tokens: Float[Tensor, "batch token width"]  # class tokens, then the patches


def num_patches(size: int, patch: int, stride: int) -> int:
    """Patches along one axis of a spectrogram without padding; all in pixels."""
    return max(0, (size - patch) // stride + 1)


class Geometry:
    """Patch geometry of a model: samples, frames, and rows and columns of patches; the base of every config.

    `columns` is the most that a forward pass takes. No dataclass itself: its fields would come first in
    stored configs, whose order of fields is each family's own.
    """

    mel: MelConfig
    patch: int
    columns: int
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels between patches (frequency, time); without overlap unless a family overrides it."""
        return self.patch, self.patch

    @property
    def rows(self) -> int:
        """Rows of patches, along frequency."""
        return num_patches(self.mel.n_mels, self.patch, self.stride[0])

    @property
    def num_class_tokens(self) -> int:
        """Class tokens (and distillation tokens) before the patches."""
        return 1

    @property
    def max_frames(self) -> int:
        """Frames of the longest log-mel for one forward pass; more would need another column."""
        return self.num_frames(self.columns + 1) - 1

    @property
    def max_samples(self) -> int:
        """Samples of the longest waveform for one forward pass."""
        return self.max_frames * self.mel.hop_length

    @property
    def min_samples(self) -> int:
        """Samples of the shortest waveform that fills one patch."""
        return max(self.mel.min_samples, self.mel.num_samples(self.patch))

    def num_columns(self, num_frames: int) -> int:
        """Columns of patches in `num_frames` frames."""
        return num_patches(num_frames, self.patch, self.stride[1])

    def num_frames(self, columns: int) -> int:
        """Frames that `columns` columns of patches cover."""
        return self.patch + (columns - 1) * self.stride[1]

    def check(self, mel: Tensor, *, first_column: int = 0) -> int:
        """Columns of log-mels (batch, n_mels, frames), a ValueError if they do not fit from a column on."""
        if mel.ndim != 3 or mel.shape[1] != self.mel.n_mels:
            allowed = f"log-mels of shape (batch, {self.mel.n_mels}, frames)"
            raise ValueError(f"the model takes {allowed}, got {tuple(mel.shape)}")
        frames, columns = mel.shape[2], self.num_columns(mel.shape[2])
        if columns < 1:
            short = f"a clip of {frames} frames holds no patch of {self.patch}"
            raise ValueError(f"{short}: pad it to {self.min_samples} samples")
        if not 0 <= first_column <= self.columns - columns:
            longest = f"at most {self.max_frames} frames ({self.max_samples / self.mel.sample_rate:.2f} s)"
            shape = f"{frames} from column {first_column} on" if first_column else f"{frames}"
            hint = "cut the clip into windows, as patchout.tag does"
            raise ValueError(f"the model takes {longest}, got {shape}: {hint}")
        return columns


class TaggerConfig(Geometry):
    """Config of a tagger: geometry, class labels, and the input and licence that belong to the weights.

    `task`: one class a clip (softmax) or any number (sigmoid). `pad_s`: shorter sounds are padded with
    silence to so many seconds before they are tagged, and `channel`: the channel of a file that is the input,
    both as in the training of the weights. `decision`: calibration and thresholds of the scores. Without
    labels it is an encoder for embeddings.
    """

    labels: tuple[str, ...]
    task: Literal["multi_class", "multi_label"]
    width: int  # of the embedding
    pad_s: float
    channel: Channel
    licence: str
    provenance: dict[str, Any]
    decision: Decision

    title: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()  # settings of a training run that not every family has
    fixed: ClassVar[tuple[str, ...]] = ()  # fields that must equal those of the initial weights
    untrained: ClassVar[str] = "model without its last layer"  # name of a model without labels, in errors
    recipe: ClassVar[str]  # for fine-tuning, in errors
    other_start: ClassVar[str] = "is a {has}, a {title} was asked for: leave --model out, or start elsewhere"

    @classmethod
    def fresh(cls) -> "TaggerConfig":
        """The default config of a model trained from random weights, before a run sets labels and sizes."""
        return cls(labels=(), columns=1)  # type: ignore[call-arg]  # a family's own fields have defaults

    def lends(self, columns: int) -> bool:
        """Whether a model with `columns` columns of positions can be initialised with these weights."""
        return True

    @property
    def knows_silence(self) -> bool:
        """Whether silence is a class, as in AudioSet; other classes are not heard in digital silence."""
        return any(label.casefold() == "silence" for label in self.labels)

    def check_names(self) -> None:
        """Refuse labels that are not unique, and thresholds of other labels."""
        if (count := len(self.decision.points)) not in (0, len(self.labels)):
            raise ValueError(f"{count} thresholds for {len(self.labels)} labels: each needs one, or none has")
        if len(set(self.labels)) != len(self.labels):
            duplicate = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"label {duplicate!r} stands twice: every class needs its own name")


class Tagger(nn.Module):
    """Base class of the taggers: an encoder of log-mels with a classification `head`."""

    config: TaggerConfig
    head: Any  # embedding -> logits; None of an encoder without classes

    def __init__(self, config: TaggerConfig, *, rng: Generator | None = None) -> None:
        """Random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__()
        self.config = config

    def forward(self, mel: Float[Tensor, "batch mel frame"], *, rng: Generator | None = None) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; the randomness of training is drawn from `rng`."""
        raise NotImplementedError

    def predict(self, mel: Float[Tensor, "batch mel frame"]) -> Prediction:
        """Logits and embedding of `forward`; a family may leave out what only other tokens need."""
        out = self(mel)
        return Prediction(out.logits, out.embedding)

    def classified(self, embedding: Float[Tensor, "batch width"]) -> Float[Tensor, "batch class"]:
        """Logits of clip embeddings: the head alone."""
        return self.head(embedding)

    def adapted(self, config: Any, name: str, *, rng: Generator | None) -> "Tagger":
        """A model of `config` initialised with these weights (`name` in errors); other labels: a new head."""
        model = type(self)(config, rng=rng)
        fill(model, self.weights_for(model, ("head.",) if config.labels != self.config.labels else ()), name)
        return model

    def weights_for(self, model: "Tagger", new: tuple[str, ...]) -> dict[str, Tensor]:
        """These weights, with those of `model` where a name begins with one of `new`."""
        weights = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(new)}
        return weights | {name: tensor for name, tensor in model.state_dict().items() if name.startswith(new)}
