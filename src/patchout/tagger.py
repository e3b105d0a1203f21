"""What the rest of the package runs: a model that gives an `Output`, of either family."""

from patchout.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.passt import Passt, PasstConfig

Tagger = Passt | MaskSpecClassifier
TaggerConfig = PasstConfig | MaskSpecClassifierConfig


def check_labels(config: TaggerConfig) -> None:
    """Refuse an encoder that knows no classes, before anything is heard."""
    if not config.labels:
        raise ValueError(
            "a pre-trained MaskSpec has no classes yet: fine-tune it (patchout train maskspec-esc50 --data ... --init "
            "FILE), or take its embeddings (patchout embed)"
        )
