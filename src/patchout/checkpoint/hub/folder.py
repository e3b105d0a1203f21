"""The folder that is pushed: weights, config.json, card; for transformers also the code that it runs."""

import json
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from patchout.checkpoint import own
from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.hub.card import card
from patchout.errors import InputError
from patchout.files import write_aside, write_json
from patchout.models.tagger import Tagger, TaggerConfig, check_labels, family_of

CODE = "modeling_patchout.py"
CLASSES = {"passt": "Passt", "maskspec": "MaskSpec", "cnn": "Cnn"}  # in that file, by family
FILES = ("model.safetensors", "config.json", "README.md", "preprocessor_config.json", CODE)
RESTRICTED = re.compile(  # words of licences that restrict who may share a model trained on the data, or how
    r"\bNC\b|non-?\s?commercial|\bND\b|no-?\s?deriv|unknown|see source|none stated|not stated|proprietary",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(r"class \d+")  # label of public weights that bring no names


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Licences that the user gives: of weights and training data, and a restricting one that is accepted."""

    licence: str = ""
    data_licence: str = ""
    accept: str = ""


def write_folder(model: Tagger, folder: Path, *, repo_id: str, transformers: bool) -> list[Path]:
    """Write a model on the CPU, as `shareable` gave it, into an existing folder; returns the files.

    Files of an earlier push in it are replaced.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    config, weights = model.config, folder / "model.safetensors"
    own.save(model, weights, transformers=transformers)
    write_json(folder / "config.json", config_json(config, type(model).__name__, transformers=transformers))
    text = card(config, repo_id=repo_id, sha256=file_sha256(weights), transformers=transformers)
    with write_aside(folder / "README.md") as aside:
        aside.write_text(text, encoding="utf-8")
    if transformers:
        extractor: dict[str, Any] = {"feature_extractor_type": "PatchoutFeatureExtractor"}
        extractor["auto_map"] = {"AutoFeatureExtractor": _class("PatchoutFeatureExtractor")}
        extractor["sampling_rate"] = config.mel.sample_rate
        write_json(folder / "preprocessor_config.json", extractor)
        source = resources.files("patchout.checkpoint.hub") / CODE
        with resources.as_file(source) as path, write_aside(folder / CODE) as aside:
            shutil.copyfile(path, aside)
    return [folder / name for name in FILES if (folder / name).exists()]


def config_json(config: TaggerConfig, model: str, *, transformers: bool) -> dict[str, Any]:
    """The content of config.json: what a checkpoint's header holds, and the fields of transformers."""
    tagger = asdict(config)
    labels = tagger.pop("labels")
    thresholds = config.decision.thresholds
    named = {} if thresholds is None else dict(zip(labels, thresholds.tolist(), strict=True))
    is_single = config.task == "multi_class"
    content = {
        "model_type": "patchout",
        "model": model,
        "tagger": tagger,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification" if is_single else "multi_label_classification",
        "thresholds": named,
        "sampling_rate": config.mel.sample_rate,
    }
    if transformers:
        name = f"{CLASSES[family_of(config)]}ForAudioClassification"
        auto = {"AutoConfig": _class("PatchoutConfig"), "AutoModelForAudioClassification": _class(name)}
        content |= {"architectures": [name], "auto_map": auto, "dtype": "float32", "torch_dtype": "float32"}
    return json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no NaN


def _class(name: str) -> str:
    return f"{CODE.removesuffix('.py')}.{name}"


def shareable(model: Tagger, terms: Terms) -> Tagger:
    """The model with its licences, and without paths of this machine in its provenance.

    Raises InputError for a model without labels or licence, and for licences that restrict sharing which
    `terms` do not accept by name; ValueError for a licence that contradicts the checkpoint's.
    """
    config = model.config
    check_labels(config)
    if all(PLACEHOLDER.fullmatch(label) for label in config.labels):
        todo = "give --labels FILE with one name a line"
        raise InputError(f"the weights bring no class names ({config.labels[0]} ...): {todo}")
    provenance = _without_paths(config.provenance)
    data = dict(provenance.get("data") or {})
    licence = _agreed("--licence", terms.licence, config.licence)
    data["licence"] = _agreed("--data-licence", terms.data_licence, data.get("licence") or "")
    if not licence:
        todo = "give --licence, e.g. --licence CC-BY-4.0, as the training data allow"
        raise InputError(f"the model has no licence: {todo}")
    texts = (licence, data["licence"], provenance.get("init_licence") or "")
    if (restricting := restriction(texts)) and terms.accept != restricting:
        reason = f"its licence field says {restricting!r}, which restricts sharing"
        raise InputError(
            f"the model: {reason}: if these terms let you, give --accept {shlex.quote(restricting)}"
        )
    if data["licence"] or "data" in provenance:
        provenance["data"] = data
    model.config = replace(config, licence=licence, provenance=provenance)
    return model


def restriction(licences: Iterable[str]) -> str:
    """Those of the licences that restrict sharing, in one line; "": none does."""
    return "; ".join(dict.fromkeys(licence for licence in licences if RESTRICTED.search(licence)))


def _agreed(flag: str, option: str, stored: str) -> str:
    """A licence by option or checkpoint; ValueError if both say one, and differ."""
    if option and stored and option != stored:
        raise ValueError(f"{flag} {option!r}: the checkpoint says {stored!r}: leave {flag} out")
    return option or stored


def _without_paths(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance with the last part of each absolute path alone: folders may tell names of people."""
    cleaned = {name: _name_of(text) if isinstance(text, str) else text for name, text in provenance.items()}
    if command := provenance.get("command"):
        cleaned["command"] = shlex.join(map(_name_of, shlex.split(command)))
    return cleaned


def _name_of(text: str) -> str:
    """The last part of an absolute path, any other text as it is."""
    return Path(text).name if text.startswith("~") or Path(text).is_absolute() else text
