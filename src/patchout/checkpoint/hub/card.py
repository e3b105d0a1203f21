"""The model card of a tagger: what its checkpoint knows, and where nothing is recorded."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from patchout.files import markdown_table
from patchout.models.decision import DEFAULT_THRESHOLD, OperatingPoint
from patchout.models.tagger import TaggerConfig, family_of

UNKNOWN = "not recorded"
MANY = 60  # labels beyond which their list is folded up
LICENCES = {  # the hub's identifiers
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "mpl-2.0"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "unlicense"),
}
SHOWN = {  # facts of the provenance that have a place of their own; the card lists all others
    *(
        "data",
        "licence",
        "command",
        "recipe",
        "seed",
        "init",
        "init_licence",
        "scores",
        "intervals",
        "scored",
    ),
    *("score", "cost", "paper", "accuracy", "accuracy_interval", "clips", "url"),
}


def card(config: TaggerConfig, *, repo_id: str, sha256: str, transformers: bool) -> str:
    """The card (README.md) of a model whose weights have this SHA-256; `transformers`: it reads them too."""
    body = description(config, name=repo_id, transformers=transformers)
    files = f"## Files\n\nSHA-256 of `model.safetensors`: `{sha256}`\n"
    return f"{_front_matter(config, transformers)}\n\n{body}\n{files}"


def description(config: TaggerConfig, *, name: str, transformers: bool = False) -> str:
    """Markdown on a model that `patchout.load` knows by this name: use, labels, scores, data, limits."""
    facts = config.provenance
    kind = "one class a clip (softmax)" if config.task == "multi_class" else "any number of labels (sigmoid)"
    title = f"# {name.rpartition('/')[2]}\n\n{config.title} that tags sound: {kind}"
    parts = [
        f"{title}, {len(config.labels)} labels. Made with patchout.",
        f"## Use\n\n{_snippets(config, name, transformers)}",
        f"## Labels\n\n{_labels(config)}",
        f"## Scores\n\n{_scores(facts)}",
        f"## Data and licences\n\n{_bullets(_licences(config))}",
        f"## Training\n\n{_bullets(_training(facts))}",
        f"## Front end\n\n{_front_end(config)}",
        "## Limits\n\n" + "".join(f"- {limit}\n" for limit in _limits(config)),
    ]
    if further := {name: value for name, value in facts.items() if name not in SHOWN}:
        parts.append(f"## Further facts in the checkpoint\n\n{_bullets(further)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def hub_licence(text: str) -> str:
    """The hub's identifier of a licence, up to a semicolon; "other" where it has none."""
    name = re.sub(r"[\s_]+", "-", text.partition(";")[0].strip().lower())
    return name if name in LICENCES else "other"


def _front_matter(config: TaggerConfig, transformers: bool) -> str:
    """The YAML that the hub reads; JSON strings are YAML."""
    licence = hub_licence(config.licence)
    lines = {"license": licence}
    if licence == "other":
        lines["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", config.licence.lower()).strip("-")[:60]
    lines["library_name"] = "transformers" if transformers else "patchout"
    lines["pipeline_tag"] = "audio-classification"
    tags = json.dumps(["audio", "patchout", family_of(config)])
    return "\n".join(
        ["---", *(f"{name}: {json.dumps(text)}" for name, text in lines.items()), f"tags: {tags}", "---"]
    )


def _snippets(config: TaggerConfig, name: str, transformers: bool) -> str:
    """Python that tags a file, by patchout and by transformers."""
    lines = [
        "import patchout",
        "",
        f'model = patchout.load("{name}")',
        'print(patchout.tag(model, "dog.ogg"))',
    ]
    blocks = ["\n".join(lines)]
    if transformers:
        rate, channel = (
            config.mel.sample_rate,
            {"left": "[:, 0]", "right": "[:, 1]"}.get(config.channel, ".mean(axis=1)"),
        )
        function = "softmax" if config.task == "multi_class" else "sigmoid"
        lines = ["import soundfile", "from transformers import pipeline", ""]
        lines += [f'classify = pipeline("audio-classification", model="{name}", trust_remote_code=True)']
        lines += ['waves, rate = soundfile.read("dog.ogg", dtype="float32", always_2d=True)']
        lines += [
            f'sound = {{"array": waves{channel}, "sampling_rate": rate}}  # resample it if not {rate} Hz'
        ]
        lines += [f'for tag in classify(sound, top_k=3, function_to_apply="{function}"):']
        lines += ['    print(tag["label"], tag["score"], classify.model.config.thresholds.get(tag["label"]))']
        blocks.append("\n".join(lines))
    return "\n\n".join(f"```python\n{block}\n```" for block in blocks)


def _labels(config: TaggerConfig) -> str:
    """The labels, with threshold, precision and recall where there are any."""
    decision, text = config.decision, ", ".join(config.labels)
    if decision.points:
        head = ("label", "threshold", "precision", "95 % within", "recall", "95 % within")
        text = markdown_table(head, map(_point_row, config.labels, decision.points))
        note = "Thresholds of validation clips: precision holds where a label is as frequent as there."
        text = f"{note}\n\n{text}"
    if decision.calibrates:
        text = f"Logits are calibrated: times {decision.slope:.4g} plus {decision.bias:.4g}.\n\n{text}"
    is_long = len(config.labels) > MANY
    return (
        f"<details><summary>{len(config.labels)} labels</summary>\n\n{text}\n\n</details>"
        if is_long
        else text
    )


def _point_row(label: str, point: OperatingPoint | None) -> list[str]:
    if point is None:
        return [label, f"({DEFAULT_THRESHOLD:g}: too few clips to choose one)", "", "", "", ""]
    shares = (point.precision, point.precision_interval), (point.recall, point.recall_interval)
    cells = [text for share, (low, high) in shares for text in (_share(share), f"{low:.2f} and {high:.2f}")]
    return [label, f"{point.threshold:.3f}", *cells]


def _share(share: float) -> str:
    """A precision, which no clip has where none was named, or a recall."""
    return "none was named" if math.isnan(share) else f"{share:.2f}"


def _scores(facts: Mapping[str, Any]) -> str:
    """The table of scores with intervals, and the clips that they stand on."""
    scores = facts.get("scores") or ({"accuracy": facts["accuracy"]} if "accuracy" in facts else {})
    intervals = facts.get("intervals") or {"accuracy": facts.get("accuracy_interval")}
    if not scores:
        return f"As published: {facts['score']}." if "score" in facts else f"Scores: {UNKNOWN}."
    rows = [
        (name, UNKNOWN if value is None else f"{value:.4f}", _interval(intervals.get(name)))
        for name, value in scores.items()
    ]
    table = markdown_table(("score", "value", "95 % within"), rows)
    return f"{table}\nMeasured on: {_text(facts.get('scored'))}."


def _interval(interval: Sequence[float | None] | None) -> str:
    if interval is None or None in interval:
        return UNKNOWN
    return " and ".join(f"{end:.3f}" for end in interval)


def _licences(config: TaggerConfig) -> dict[str, Any]:
    facts, data = config.provenance, config.provenance.get("data") or {}
    initial = {"licence of the initial weights": facts["init_licence"]} if facts.get("init_licence") else {}
    return {
        "licence of the weights": config.licence,
        "trained on": data.get("name"),
        "clips": data.get("clips", facts.get("clips")),
        "licence of the data": data.get("licence"),
        "source of the data": data.get("source"),
        **initial,
    }


def _training(facts: Mapping[str, Any]) -> dict[str, Any]:
    cost = facts.get("cost") or {}
    took = f"{cost['seconds'] / 3600:.2f} h on {cost['device']}" if cost else None
    paper = {"paper": facts["paper"]} if facts.get("paper") else {}
    source = {"weights from": facts["url"]} if facts.get("url") else {}
    command = facts.get("command")
    return {
        "command": f"`{command}`" if command else None,
        "recipe": facts.get("recipe"),
        "seed": facts.get("seed"),
        "initial weights": "random" if facts.get("init") == "" else facts.get("init"),
        "cost": took,
        **paper,
        **source,
    }


def _front_end(config: TaggerConfig) -> str:
    mel = config.mel
    bands = f"{mel.n_mels} bands from {mel.f_min:g} to {mel.f_max:g} Hz"
    sizes = f"{bands}, a window of {mel.win_length} samples every {mel.hop_length}"
    length_s = config.max_samples / mel.sample_rate
    pad = f" Sounds below {config.pad_s:g} s are padded with silence." if config.pad_s else ""
    heard = "the mean of the channels" if config.channel == "mean" else f"the {config.channel} channel"
    return (
        f"{mel.sample_rate} Hz, {heard}; log-mel of {sizes}, by the settings that are stored with the "
        f"weights. Up to {length_s:.2f} s are heard in one pass; of longer sounds the scores of windows that "
        f"overlap by half are averaged.{pad}"
    )


def _limits(config: TaggerConfig) -> list[str]:
    """What the model cannot do, in words."""
    facts, data = config.provenance, (config.provenance.get("data") or {}).get("name")
    limits = [f"Nothing above {config.mel.f_max:g} Hz is heard; a sound of another rate has to be resampled."]
    if config.task == "multi_class":
        limits.append(
            "It gives every sound one of its labels, silence and sounds it has never heard included."
        )
    else:
        limits.append("It knows these labels alone; a low score of all of them says nothing else of a sound.")
    if facts.get("scores") or "accuracy" in facts:
        limits.append(
            f"Scores hold for sounds like those of {data or 'its test clips'}: measure it on your own."
        )
    else:
        limits.append("No score is recorded with these weights: measure it on your own sounds first.")
    if not config.decision.points:
        limits.append("No thresholds were chosen: a score is no decision.")
    if config.decision.background:
        names = ", ".join(config.decision.background)
        limits.append(f"It was taught to be silent on {names}; other background was never heard.")
    return limits


def _bullets(facts: Mapping[str, Any]) -> str:
    return "".join(f"- {name}: {_text(value)}\n" for name, value in facts.items())


def _text(value: Any) -> str:
    """A fact in words; one that is missing is said to be."""
    if value is None or value == "":
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value)
