"""The families of taggers: what the rest of the package runs is one of them."""

from typing import NamedTuple

from patchout.audio.stream import Source, Stream
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.family import Tagger, TaggerConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt, PasstConfig

__all__ = ["FAMILIES", "Family", "Tagger", "TaggerConfig", "check_labels", "family_of", "hear"]


class Family(NamedTuple):
    """A module's model, whose class name stands in its files, and its config."""

    model: type[Tagger]
    config: type[TaggerConfig]


FAMILIES = {  # by the name that `patchout train --model` takes
    "passt": Family(Passt, PasstConfig),
    "maskspec": Family(MaskSpecClassifier, MaskSpecClassifierConfig),
    "cnn": Family(Cnn, CnnConfig),
}


def family_of(config: TaggerConfig) -> str:
    """The name of a config's family."""
    return next(name for name, family in FAMILIES.items() if family.config is type(config))


def hear(config: TaggerConfig, source: Source) -> Stream:
    """A sound source as a model of this config hears it: at its rate, and of several channels its own."""
    return Stream(source, config.mel.sample_rate, channel=config.channel)


def check_labels(config: TaggerConfig) -> None:
    """Refuse an encoder that knows no classes, before anything is heard."""
    if not config.labels:
        raise ValueError(
            f"a {config.untrained} has no classes yet: fine-tune it (patchout train {config.recipe} --data ... "
            "--init FILE), or take its embeddings (patchout embed)"
        )
