import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from patchout.audio.mel import MelConfig
from patchout.audio.statistics import audioset_statistics
from patchout.checkpoint import download, zoo
from patchout.checkpoint import own as checkpoint
from patchout.checkpoint.download import DownloadError
from patchout.checkpoint.labels import LISTS, label_names, read_labels
from patchout.checkpoint.maskspec import export_maskspec, public_mel
from patchout.checkpoint.zoo_list import ALIASES, BUILT_IN, Entry
from patchout.cli.main import run_command
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt, PasstConfig

PUBLISHED = [entry for entry in zoo.MODELS.values() if entry.url and not entry.file]


def tiny(num_classes: int) -> Passt:
    labels = tuple(f"sound {index}" for index in range(num_classes))
    return Passt(
        PasstConfig(labels=labels, width=32, depth=1, heads=1, columns=4),
        rng=torch.Generator().manual_seed(0),
    )


def put_public(folder: Path, entry: Entry, num_classes: int) -> Path:
    """A tiny model in the public format, under the file name of a zoo entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / entry.url.rpartition("/")[2]
    torch.save(checkpoint.export_passt(tiny(num_classes)), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine that stays off the network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hf" / "patchout"


# -- the list ------------------------------------------------------------------------------------------------


def test_every_published_model_stands_in_the_list() -> None:
    """22 files in the authors' table, and five of ESC-50."""
    assert Counter(entry.labels for entry in PUBLISHED) == {
        "audioset": 17,
        "openmic2018": 3,
        "": 2,
        "esc50": 5,
    }


def test_every_published_model_has_its_own_file_a_licence_and_a_score() -> None:
    files = {entry.url.rpartition("/")[2] for entry in PUBLISHED}
    assert len(files) == len(PUBLISHED)
    for entry in PUBLISHED:
        assert entry.url.startswith("https://github.com/kkoutini/PaSST/releases/download/v")
        assert entry.url.endswith(".pt")
        assert entry.licence == "Apache-2.0"
        assert "." in entry.score


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_name_score_and_file_of_a_model_agree(entry: Entry) -> None:
    score = entry.score.rpartition(".")[2]  # .476 -> 476
    written = entry.url.rpartition("/")[2].removesuffix(".pt").removesuffix("-swa").rpartition(".")[2]
    assert score.startswith(written)
    assert entry.name.endswith((f"ap{written}", f"fold{entry.name[-1]}"))


def test_only_the_finer_models_have_another_hop() -> None:
    other = {entry.name: entry.hop_length for entry in zoo.MODELS.values() if entry.hop_length != 320}
    assert other == {"passt-s-hop160-ap473": 160, "passt-s-hop100-ap473": 100}


def test_short_names_lead_to_models() -> None:
    assert set(ALIASES.values()) <= set(zoo.MODELS)
    assert not set(ALIASES) & set(zoo.MODELS)


def test_label_lists_have_the_sizes_of_their_data_sets() -> None:
    sizes = {"audioset": 527, "dcase_scenes": 10, "esc50": 50, "openmic2018": 20, "speechcommands_v2": 35}
    assert {name: len(label_names(name)) for name in LISTS} == sizes


def test_rows_tell_what_is_on_this_machine(cache: Path) -> None:
    path = put_public(cache, zoo.MODELS["passt-s-ap476"], 527)
    rows = {row.name: row for row in zoo.rows()}
    assert rows["passt-s-ap476"].size_bytes == path.stat().st_size
    assert "passt-s;" in rows["passt-s-ap476"].note
    assert rows["passt-s-ap472"].size_bytes is None


def test_listing_the_models_needs_neither_torch_nor_the_hub() -> None:
    heavy = "{'torch', 'huggingface_hub', 'rich'}"
    code = f"import sys, patchout.checkpoint.zoo as z; z.rows(); print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# -- names to files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HOME": "/big/hf"}, "/big/hf/patchout"),
        ({"HF_HOME": "$DISK/hf", "DISK": "/big"}, "/big/hf/patchout"),
        ({"XDG_CACHE_HOME": "/fast"}, "/fast/huggingface/patchout"),
        ({"HOME": "/home/ada"}, "/home/ada/.cache/huggingface/patchout"),
    ],
)
def test_the_cache_is_the_hubs(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert zoo.cache_folder() == Path(folder)


def test_offline_says_where_to_put_the_file(cache: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        zoo.fetch("passt-s")
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert f"put it at {cache / 'passt-s-f128-p16-s10-ap.476-swa.pt'}" in str(caught.value)


def test_a_short_name_finds_the_cached_file_offline(cache: Path) -> None:
    path = put_public(cache, zoo.MODELS["passt-s-ap476"], 527)
    assert zoo.fetch("passt-s") == path


def test_a_model_that_is_not_here_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(
        "patchout.checkpoint.download.download", lambda url, path, **_: asked.append((url, path))
    )
    path = zoo.fetch("passt-s-ap476")
    assert asked == [(zoo.MODELS["passt-s-ap476"].url, path)]


def test_a_cached_file_with_another_hash_than_the_published_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = zoo.MODELS["passt-s-ap476"]
    put_public(cache, entry, 527)
    monkeypatch.setitem(zoo.MODELS, entry.name, replace(entry, sha256="0" * 64))
    with pytest.raises(DownloadError, match="has changed"):
        zoo.fetch("passt-s-ap476")


def test_the_built_in_model_lies_beside_the_code() -> None:
    (row,) = [row for row in zoo.rows() if row.name == BUILT_IN]
    path = Path(zoo.__file__).parent / "built_in" / "sounds-tiny.safetensors"
    if not path.is_file():
        pytest.skip("the built-in model has not been trained yet")
    assert zoo.fetch(BUILT_IN) == path
    assert row.size_bytes == path.stat().st_size


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(zoo.UnknownModelError, match=r"sounds-tiny.*patchout models"):
        zoo.locate("sounds_tiny")


def test_a_missing_weight_file_is_not_taken_for_a_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"runs/mine\.safetensors: no such file"):
        zoo.locate("runs/mine.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dog.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"not a weight file: its name must end in \.safetensors"):
        zoo.locate(tmp_path / "dog.wav")


def test_a_run_folder_gives_its_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert zoo.locate(tmp_path) == tmp_path / "model.safetensors"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without model\.safetensors"):
        zoo.locate(tmp_path)


def test_a_hub_id_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "unreachable", lambda url: "")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **_: str(tmp_path / repo / name)
    )
    assert zoo.locate("ada/barks") == tmp_path / "ada/barks/model.safetensors"


def test_a_hub_id_that_is_not_cached_fails_offline_in_one_line(cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"'ada/barks' is no file.*HF_HUB_OFFLINE") as caught:
        zoo.locate("ada/barks")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")  # closed again
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again"))
    with pytest.raises(
        DownloadError, match=rf"not cached, and http://127.0.0.1:{port} does not answer \(.*refused"
    ):
        zoo.locate("ada/barks")


# -- files to models -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    model, mel = tiny(3).eval(), torch.zeros(1, 128, 40)
    checkpoint.save(model, tmp_path / "mine.safetensors")
    loaded = zoo.load(tmp_path / "mine.safetensors", "cpu")
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded(mel).logits, model(mel).logits)


def test_a_zoo_name_brings_front_end_names_licence_and_score(cache: Path) -> None:
    entry = zoo.MODELS["passt-s-hop100-ap473"]
    put_public(cache, entry, 527)
    config = zoo.load("passt-s-hop100-ap473", "cpu").config
    assert config.mel == MelConfig(hop_length=100)
    assert config.labels == label_names("audioset")
    assert (config.licence, config.task) == ("Apache-2.0", "multi_label")
    assert config.provenance["name"] == "passt-s-hop100-ap473"
    assert config.provenance["score"] == "AudioSet mAP .473"
    assert config.provenance["url"] == entry.url


def test_a_published_file_by_its_path_is_the_same_model_as_by_its_name(tmp_path: Path) -> None:
    path = put_public(tmp_path, zoo.MODELS["passt-s-hop160-ap473"], 527)
    assert zoo.load(path, "cpu").config.mel.hop_length == 160


def test_esc50_models_choose_one_class(cache: Path) -> None:
    put_public(cache, zoo.MODELS["esc50-passt-s-n-fold1"], 50)
    config = zoo.load("esc50-passt-s-n-fold1", "cpu").config
    assert config.task == "multi_class"
    assert config.labels[0] == "dog"


def test_fsd50k_has_numbers_until_its_vocabulary_is_given(cache: Path, tmp_path: Path) -> None:
    put_public(cache, zoo.MODELS["fsd50k-passt-s-ap655"], 200)
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("".join(f"{index},Sound_{index},/m/0{index}\n" for index in range(200)))
    named = zoo.load("fsd50k-passt-s-ap655", "cpu", labels=read_labels(vocabulary))
    assert zoo.load("fsd50k-passt-s-ap655", "cpu").config.labels[:2] == ("class 0", "class 1")
    assert named.config.labels == tuple(f"Sound_{index}" for index in range(200))


def test_a_public_file_of_someone_else_is_read_with_the_default_front_end(tmp_path: Path) -> None:
    torch.save(checkpoint.export_passt(tiny(3)), tmp_path / "mine.pt")
    config = zoo.load(tmp_path / "mine.pt", "cpu").config
    assert config.mel == MelConfig()
    assert config.provenance == {}


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tiny(3), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="2 labels for the 3 classes"):
        zoo.load(tmp_path / "mine.safetensors", "cpu", labels=["dog", "cat"])


def test_a_device_that_is_not_there_is_refused_before_anything_is_brought(cache: Path) -> None:
    with pytest.raises(ValueError, match="no device 'cuda:99'"):
        zoo.load("passt-s", "cuda:99")


# -- MaskSpec ------------------------------------------------------------------------------------------------


def public_maskspec(*, tuned: bool) -> dict[str, torch.Tensor]:
    """Weights in the public format of a model of one thin block."""
    sizes: dict[str, Any] = {"width": 64, "heads": 1, "depth": 1, "columns": 4}
    if tuned:
        return export_maskspec(
            MaskSpecClassifier(MaskSpecClassifierConfig(**sizes, labels=label_names("audioset")))
        )
    return export_maskspec(
        MaskSpec(MaskSpecConfig(**sizes, decoder_width=384, decoder_depth=1, decoder_heads=6))
    )


def test_files_on_a_drive_say_how_to_bring_them(cache: Path) -> None:
    rows = {row.name: row for row in zoo.rows()}
    for name in ("maskspec-base", "maskspec-ap471"):
        entry = zoo.MODELS[name]
        assert f"fetch {entry.url} with a browser and save it as {cache / entry.file}" in rows[name].note
        with pytest.raises(DownloadError, match=r"a drive that only a browser can read.*put it at .*\.pth"):
            zoo.fetch(name)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_file_that_was_brought_hears_as_the_public_weights_did(tuned: bool, cache: Path) -> None:
    entry = zoo.MODELS["maskspec-ap471" if tuned else "maskspec-base"]
    cache.mkdir(parents=True)
    torch.save({"model": public_maskspec(tuned=tuned)}, cache / entry.file)
    model = zoo.load(entry.name, "cpu")
    mel = model.config.mel
    assert (mel.low_pass_hz, mel.mean, mel.std) == (11_000.0, *audioset_statistics())
    assert mel.half_precision
    assert zoo.whole(entry.name, half_precision=False).config.mel == replace(mel, half_precision=False)
    assert len(model.config.labels) == (527 if tuned else 0)
    assert model.config.licence == entry.licence


@pytest.mark.slow
def test_the_command_saves_public_weights_that_hear_in_float32(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(public_maskspec(tuned=False), tmp_path / "public.pth")
    exact = tmp_path / "exact.safetensors"
    line = ["models", "--save", str(tmp_path / "public.pth"), str(exact)]
    assert run_command([*line, "--no-half-precision"]) == 0
    assert capfd.readouterr().out == f"{exact}\n"
    saved = zoo.load_pretrained(exact, "cpu").config  # with its decoder
    assert saved.mel == public_mel(half_precision=False)
    assert run_command(line) == 0
    assert zoo.load_pretrained(exact, "cpu").config.mel == public_mel()


@pytest.mark.parametrize(
    "options",
    [
        "--no-half-precision",
        "--save sounds-tiny model.pt",
        "--save sounds-tiny no/m.safetensors",
        "a --save a b",
    ],
)
def test_a_model_that_cannot_be_saved_is_one_line(options: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["models", *options.split()]) in (1, 2)
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_any_public_maskspec_file_is_known_by_what_it_holds(tmp_path: Path) -> None:
    torch.save(public_maskspec(tuned=False), tmp_path / "checkpoint-75.pth")
    assert isinstance(zoo.load(tmp_path / "checkpoint-75.pth", "cpu"), MaskSpecClassifier)
    assert zoo.load_pretrained(tmp_path / "checkpoint-75.pth", "cpu").config.decoder_heads == 6
    torch.save(public_maskspec(tuned=True), tmp_path / "tuned.pth")
    with pytest.raises(ValueError, match="is a tagger or an encoder without a decoder"):
        zoo.load_pretrained(tmp_path / "tuned.pth", "cpu")
