"""What the rest of the package runs: a model that gives an `Output`, of either family."""

from patchout.audio import Source, Stream
from patchout.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.passt import Passt, PasstConfig

Tagger = Passt | MaskSpecClassifier
TaggerConfig = PasstConfig | MaskSpecClassifierConfig


def hear(config: TaggerConfig, source: Source) -> Stream:
    """A sound source as a model of this config hears it: at its rate, and of several channels its own."""
    return Stream(source, config.mel.sample_rate, channel=config.channel)


def check_labels(config: TaggerConfig) -> None:
    """Refuse an encoder that knows no classes, before anything is heard."""
    if not config.labels:
        passt = isinstance(config, PasstConfig)
        name, recipe = (
            ("PaSST without its last layer", "esc50") if passt else ("pre-trained MaskSpec", "maskspec-esc50")
        )
        raise ValueError(
            f"a {name} has no classes yet: fine-tune it (patchout train {recipe} --data ... --init FILE), or take its "
            "embeddings (patchout embed)"
        )
