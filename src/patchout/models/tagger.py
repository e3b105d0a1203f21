"""Registry of the tagger families: PaSST, MaskSpec classifier, CNN."""

from typing import NamedTuple

from patchout.audio.stream import Source, Stream
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.family import Tagger, TaggerConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt, PasstConfig

__all__ = ["FAMILIES", "Family", "Tagger", "TaggerConfig", "check_labels", "family_of", "hear"]


class Family(NamedTuple):
    """A model class, whose name is stored in checkpoints, and its config class."""

    model: type[Tagger]
    config: type[TaggerConfig]


FAMILIES = {  # by the name that `patchout train --model` takes
    "passt": Family(Passt, PasstConfig),
    "maskspec": Family(MaskSpecClassifier, MaskSpecClassifierConfig),
    "cnn": Family(Cnn, CnnConfig),
}


def family_of(config: TaggerConfig) -> str:
    """The family (as in `--model`) of a config."""
    return next(name for name, family in FAMILIES.items() if family.config is type(config))


def hear(config: TaggerConfig, source: Source) -> Stream:
    """A source decoded at the sample rate and channel of a model's config."""
    return Stream(source, config.mel.sample_rate, channel=config.channel)


def check_labels(config: TaggerConfig) -> None:
    """Refuse a model without labels, before anything is decoded."""
    if not config.labels:
        command = f"patchout train {config.recipe} --data ... --init FILE"
        hint = f"fine-tune it ({command}), or take its embeddings (patchout embed)"
        raise ValueError(f"a {config.untrained} has no classes yet: {hint}")
