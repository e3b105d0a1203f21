"""Pushed models: card, licences, the hub's interface, and what transformers makes of them."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, RATE, noise, tiny_config, tone, write_wav
from hub_server import CUT, TOKEN, Hub, running
from huggingface_hub import constants

import patchout
from patchout.audio.mel import MelConfig, log_mel
from patchout.checkpoint import own
from patchout.checkpoint.download import DownloadError
from patchout.checkpoint.hub.card import card
from patchout.checkpoint.hub.folder import CLASSES, CODE, Terms, restriction, shareable, write_folder
from patchout.cli.main import run_command
from patchout.errors import InputError
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.decision import Decision, OperatingPoint
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.models.tagger import FAMILIES, Tagger

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client

RECORDED = {
    "recipe": "folder",
    "seed": 7,
    "init": "/home/ada/runs/start",
    "init_licence": "Apache-2.0",
    "command": "patchout train folder --data barks --out mine --init /home/ada/runs/start",
    "data": {"name": "barks", "clips": 90, "licence": "CC0-1.0", "source": "https://example.org/barks"},
    "scores": {"accuracy": 0.9, "d_prime": None},
    "intervals": {"accuracy": [0.8, 0.95], "d_prime": [1.0, None]},
    "scored": "20 clips, test split of barks",
    "cost": {"seconds": 5400.0, "device": "8 cores, cpu"},
    "version": "0.1.0",
}
POINT = OperatingPoint(
    threshold=0.42, precision=0.9, precision_interval=(0.8, 0.95), recall=0.7, recall_interval=(0.6, 0.8)
)
DECISION = Decision(slope=1.5, bias=-0.3, points=(POINT, None, POINT), background=("wind",))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def passt(**changes: Any) -> Passt:
    return Passt(tiny_config(licence="CC-BY-4.0", **changes), rng=seeded()).eval()


def maskspec(**changes: Any) -> MaskSpecClassifier:
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "columns": 6, "licence": "MIT"}
    return MaskSpecClassifier(
        MaskSpecClassifierConfig(labels=LABELS, **sizes, **changes), rng=seeded()
    ).eval()


def cnn() -> Cnn:
    return Cnn(CnnConfig(labels=LABELS, columns=6, licence="MIT"), rng=seeded()).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint that may be shared."""
    own.save(passt(provenance=RECORDED, decision=DECISION), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, an empty cache, and a token."""

    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{template}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def push(*args: object) -> int:
    return run_command(["push", *map(str, args)])


# -- the card ------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_checkpoint_knows() -> None:
    config = passt(provenance=RECORDED, decision=DECISION).config
    text = card(config, repo_id="ada/barks", sha256="abc123", transformers=False)
    wanted = ["# barks", 'license: "cc-by-4.0"', "one class a clip (softmax), 3 labels", 'load("ada/barks")']
    wanted += ["| accuracy | 0.9000 | 0.800 and 0.950 |", "| d_prime | not recorded | not recorded |"]
    wanted += ["20 clips, test split of barks", "licence of the data: CC0-1.0", "https://example.org/barks"]
    wanted += ["seed: 7", "1.50 h on 8 cores, cpu", "initial weights: /home/ada/runs/start", "`abc123`"]
    wanted += ["32000 Hz", "| bell | 0.420 | 0.90 | 0.80 and 0.95 |", "times 1.5 plus -0.3", "silent on wind"]
    wanted += ["- version: 0.1.0"]  # a fact without a place of its own
    assert [words for words in wanted if words not in text] == []


def test_the_card_says_of_a_silent_class_that_none_was_named() -> None:
    decision = replace(
        DECISION, points=(replace(POINT, precision=float("nan"), recall=0.0), *DECISION.points[1:])
    )
    text = card(passt(decision=decision).config, repo_id="ada/barks", sha256="", transformers=False)
    assert "| 0.420 | none was named |" in text
    assert "nan" not in text


def test_the_card_says_where_nothing_is_recorded() -> None:
    text = card(passt().config, repo_id="ada/barks", sha256="", transformers=False)
    unknown = re.findall(r"- (.*): not recorded", text)
    assert {"command", "seed", "cost", "trained on", "licence of the data"} <= {*unknown}
    assert "Scores: not recorded." in text
    assert "No score is recorded with these weights" in text


def test_a_licence_without_identifier_is_other_on_the_hub() -> None:
    config = replace(passt().config, licence="Ours: ask us", labels=("a", "b"))
    assert 'license: "other"\nlicense_name: "ours-ask-us"' in card(
        config, repo_id="ada/barks", sha256="", transformers=False
    )


def test_paths_of_this_machine_stay_here(saved: Path, tmp_path: Path) -> None:
    assert push(saved, "ada/barks", "--dry-run", tmp_path / "dry") == 0
    files = [*(tmp_path / "dry").iterdir()]
    assert {path.name for path in files} == {"model.safetensors", "config.json", "README.md"}
    assert [path.name for path in files if b"/home/ada" in path.read_bytes()] == []
    assert "--init start" in (tmp_path / "dry" / "README.md").read_text()


def test_a_hub_id_is_no_path_of_this_machine() -> None:
    facts = {"init": "ada/start", "command": "patchout train folder --init ada/start"}
    assert shareable(passt(provenance=facts), Terms()).config.provenance == facts


def test_config_json_has_labels_front_end_and_thresholds(saved: Path, tmp_path: Path) -> None:
    assert push(saved, "ada/barks", "--dry-run", tmp_path / "dry") == 0
    content = json.loads((tmp_path / "dry" / "config.json").read_text())
    assert content["id2label"] == {"0": "bell", "1": "dog", "2": "rain"}
    assert content["tagger"]["mel"]["hop_length"] == 320
    assert content["thresholds"] == {"bell": 0.42, "dog": 0.5, "rain": 0.42}


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "terms", "reason"),
    [
        ({"labels": ()}, Terms(), "has no classes yet: fine-tune it"),
        ({"labels": ("class 0", "class 1")}, Terms(), "no class names .* give --labels FILE"),
        ({"licence": ""}, Terms(), "no licence: give --licence, e.g. --licence CC-BY-4.0"),
        ({}, Terms(licence="MIT"), "--licence 'MIT': the checkpoint says 'CC-BY-4.0'"),
        ({"licence": "CC BY-NC 3.0"}, Terms(), "'CC BY-NC 3.0', .* give --accept 'CC BY-NC 3.0'"),
        ({"provenance": {"data": {"licence": "unknown"}}}, Terms(), "give --accept unknown"),
        ({"provenance": {"init_licence": "CC-BY-ND-4.0"}}, Terms(accept="MIT"), "--accept CC-BY-ND-4.0"),
    ],
)
def test_what_may_not_be_shared_is_refused(changes: dict[str, Any], terms: Terms, reason: str) -> None:
    model = passt()
    model.config = replace(model.config, **changes)
    with pytest.raises(ValueError, match=reason):
        shareable(model, terms)


def test_a_restricting_licence_is_accepted_by_its_name() -> None:
    model = passt()
    model.config = replace(model.config, licence="")
    both = "CC-BY-NC-4.0; CC BY-NC 3.0"
    terms = Terms(licence="CC-BY-NC-4.0", data_licence="CC BY-NC 3.0", accept=both)
    config = shareable(model, terms).config
    assert (config.licence, config.provenance["data"]["licence"]) == ("CC-BY-NC-4.0", "CC BY-NC 3.0")


def test_licences_that_let_a_model_be_shared_do_not_restrict() -> None:
    assert restriction(["Apache-2.0", "CC0", "CC BY 4.0", "CC BY-SA 4.0", "", "Francis's own"]) == ""


@pytest.mark.parametrize("name", ["barks", "ada/barks/more", "ada/ba rks", "/barks", "ada/"])
def test_what_is_no_name_of_a_repository_is_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push("sounds-tiny", name, "--dry-run", tmp_path / "dry") == 2
    assert "OWNER/NAME" in capfd.readouterr().err
    assert not (tmp_path / "dry").exists()


def test_a_folder_with_files_is_overwritten_only_if_asked(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dry").mkdir()
    (tmp_path / "dry" / "modeling_patchout.py").write_text("of an earlier push")
    assert push(saved, "ada/barks", "--dry-run", tmp_path / "dry") == 1
    assert "--overwrite" in capfd.readouterr().err
    assert push(saved, "ada/barks", "--dry-run", tmp_path / "dry", "--overwrite") == 0
    assert not (tmp_path / "dry" / "modeling_patchout.py").exists()


# -- the hub -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["patchout", "transformers"])
def test_a_pushed_model_is_loaded_by_its_name(
    form: str, hub: Hub, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(saved, "ada/barks", "--format", form) == 0
    revision = capfd.readouterr().out.strip()
    model, original = patchout.load("ada/barks", "cpu"), patchout.load(saved, "cpu")
    assert model.config.decision == original.config.decision
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), original.parameters(), strict=True))
    assert patchout.load(f"hf://{revision}", "cpu").config == model.config
    files = hub.files("ada/barks")
    assert files is not None
    assert ("modeling_patchout.py" in files) == (form == "transformers")


def test_a_name_that_exists_gets_a_new_revision_only_if_asked(
    hub: Hub, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(saved, "ada/barks", "--format", "transformers") == 0
    first = capfd.readouterr().out.strip()
    own.save(cnn(), saved)
    assert push(saved, "ada/barks") == 1
    assert "ada/barks exists on the hub: --overwrite" in capfd.readouterr().err
    assert push(saved, "ada/barks", "--overwrite") == 0
    assert set(hub.files("ada/barks") or ()) == {"model.safetensors", "config.json", "README.md"}
    assert isinstance(patchout.load("ada/barks", "cpu"), Cnn)
    assert isinstance(patchout.load(first, "cpu"), Passt)


def test_a_private_repository_needs_a_token(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert push(saved, "ada/barks", "--private") == 0
    assert hub.private == {"ada/barks": True}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DownloadError, match="none of this name, or a private one: `hf auth login`"):
        patchout.load("ada/barks", "cpu")


def test_a_revision_that_is_not_there_is_told(hub: Hub, saved: Path) -> None:
    assert push(saved, "ada/barks") == 0
    with pytest.raises(DownloadError, match=r"ada/barks@v9.*[Rr]evision"):
        patchout.load("ada/barks@v9", "cpu")


def test_without_a_token_nothing_is_sent(
    hub: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert push(saved, "ada/barks") == 1
    assert "no token for the hub: make one" in capfd.readouterr().err
    assert hub.revisions == {}


def test_without_network_the_dry_run_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert push(saved, "ada/barks") == 1
    assert "HF_HUB_OFFLINE is set: --dry-run DIR" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("part", "status", "reason"),
    [
        ("/api/repos/create", 403, "the token may not write as ada"),
        ("/commit/", 401, "the hub does not accept the token"),
        ("/commit/", 413, "413"),
        ("/api/repos/create", CUT, "the connection failed"),
        ("/lfs/", 403, "the token may not write as ada"),  # of a file that is sent by itself
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    part: str, status: int, reason: str, hub: Hub, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.refused[part] = status
    assert push(saved, "ada/barks") == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("patchout: ada/barks: not pushed, ")
    assert reason in last


# -- transformers --------------------------------------------------------------------------------------------


@pytest.fixture
def transformers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a folder of its own for the code that it copies."""
    library = pytest.importorskip("transformers", reason="the extra `hub`")
    from transformers import dynamic_module_utils

    place = tmp_path_factory.getbasetemp() / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(place))
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


STATISTICS: dict[str, Any] = {"mean": (-1.0,) * 128, "std": tuple(np.linspace(0.5, 2.0, 128).tolist())}
TAGGERS = {
    "passt": lambda: passt(pad_s=0.5),
    "passt-grid": lambda: passt(
        positions="grid", distilled=False, stride=(16, 10), task="multi_label", decision=DECISION
    ),
    "maskspec": lambda: maskspec(mel=MelConfig(half_precision=True, low_pass_hz=11_000.0, **STATISTICS)),
    "maskspec-token": lambda: maskspec(
        pooling="token", task="multi_class", mel=MelConfig(scale="db", periodic=True, pre_emphasis=0.0)
    ),
    "cnn": cnn,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAGGERS)
def test_transformers_gives_the_logits_and_scores_of_ours(
    name: str, transformers: Any, tmp_path: Path
) -> None:
    model: Tagger = TAGGERS[name]()
    write_folder(model, tmp_path, repo_id="ada/barks", transformers=True)
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path, trust_remote_code=True)
    extract = transformers.AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)
    waves = [noise(1.0), noise(0.2, 1), noise(3.3, 2)]  # a window, padded, several windows
    with torch.inference_mode():
        logits = theirs(**extract(waves, sampling_rate=RATE, return_tensors="pt")).logits
        whole = model(log_mel(waves[0][None], model.config.mel)).logits.numpy()
    assert logits[0].numpy() == pytest.approx(model.config.decision.scaled(whole)[0], abs=1e-5)
    scores = logits.softmax(1) if model.config.task == "multi_class" else logits.sigmoid()
    for wave, row in zip(waves, scores, strict=True):
        tags = patchout.tag(model, (wave, RATE), top=3)
        expected = dict(zip(tags.labels, tags.scores, strict=True))
        assert row.numpy() == pytest.approx([expected[label] for label in LABELS], abs=1e-5)


@pytest.mark.slow
def test_a_pipeline_takes_the_function_of_the_task(transformers: Any, tmp_path: Path) -> None:
    model = TAGGERS["passt-grid"]()
    write_folder(model, tmp_path, repo_id="ada/barks", transformers=True)
    classify = transformers.pipeline("audio-classification", model=str(tmp_path), trust_remote_code=True)
    tags = patchout.tag(model, (tone(1.0), RATE), top=3)
    listed = classify({"array": tone(1.0), "sampling_rate": RATE})
    scores = {row["label"]: row["score"] for row in listed}
    assert scores == pytest.approx(dict(zip(tags.labels, tags.scores, strict=True)), abs=1e-5)
    assert classify.model.config.thresholds == {"bell": 0.42, "dog": 0.5, "rain": 0.42}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "heard"), [(16_000, "16000 Hz"), (None, "no rate")])
def test_a_sound_of_another_rate_is_refused_in_words(
    rate: int | None, heard: str, transformers: Any, tmp_path: Path
) -> None:
    write_folder(cnn(), tmp_path, repo_id="ada/barks", transformers=True)
    extract = transformers.AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match=f"hears sounds of 32000 Hz, got {heard}: resample it"):
        extract(tone(1.0), sampling_rate=rate)
    with pytest.raises(ValueError, match="one channel"):
        extract([np.zeros((2, 100))], sampling_rate=RATE)


@pytest.mark.slow
def test_the_snippets_of_the_card_run(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "dog.ogg", tone(1.0))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "barks").mkdir(parents=True)
    write_folder(passt(), tmp_path / "ada" / "barks", repo_id="ada/barks", transformers=True)
    snippets = re.findall(r"```python\n(.*?)```", (tmp_path / "ada/barks/README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert len(capfd.readouterr().out.splitlines()) == 1 + 3


def test_the_code_for_transformers_is_one_short_file_that_needs_nothing_of_ours() -> None:
    source = Path(patchout.__file__).parent / "checkpoint" / "hub" / CODE
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported == {"math", "typing", "numpy", "torch", "transformers"}


def test_every_family_has_a_class_in_that_file() -> None:
    source = Path(patchout.__file__).parent / "checkpoint" / "hub" / CODE
    text = source.read_text(encoding="utf-8")
    assert CLASSES.keys() == FAMILIES.keys()
    assert [name for name in CLASSES.values() if f"class {name}ForAudioClassification(" not in text] == []


def test_a_model_for_transformers_is_ours_too(tmp_path: Path) -> None:
    own.save(passt(), tmp_path / "m.safetensors", transformers=True)
    assert own.is_own(tmp_path / "m.safetensors")
    assert own.load(tmp_path / "m.safetensors").config == passt().config


def test_no_refusal_is_a_wrong_usage() -> None:
    model = passt()
    model.config = replace(model.config, licence="")
    with pytest.raises(InputError):
        shareable(model, Terms())
