"""Models as ONNX files: the scores of PyTorch at every length, self-tests, and what is refused."""

import copy
import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from conftest import DATA, LABELS, RATE, needs_data, noise, tiny_config, tone, write_wav
from exported import no_shape_checks
from torch import Tensor, nn

import patchout
from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.window_mels import window_mels
from patchout.checkpoint import own
from patchout.cli.main import run_command
from patchout.errors import InputError
from patchout.export import sherpa, verify, write
from patchout.export.verify import Agreement, Precision
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.decision import Decision, OperatingPoint
from patchout.models.family import Tagger
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt

EXAMPLE = Path(__file__).parent.parent / "examples" / "onnx_tag.py"
POINTS = [
    OperatingPoint(
        threshold=threshold,
        precision=0.9,
        precision_interval=(0.5, 1.0),
        recall=0.5,
        recall_interval=(0.2, 0.8),
    )
    for threshold in (0.3, 0.5, 0.4)
]
PLACES = {"decision": Decision(slope=1.3, bias=-0.4, points=tuple(POINTS)), "licence": "CC0", "pad_s": 0.5}


GRAPHS: dict[object, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def one_graph_for_all_files_of_it() -> Iterator[None]:
    """Tracing takes seconds; int8 is made of the graph of fp32."""
    trace = write._proto

    def traced(model: Tagger, lengths: write.Lengths, *, is_mel: bool, half: bool) -> Any:
        sums = tuple(float(value.double().sum()) for value in model.state_dict().values())
        key = (str(model), repr(model.config), sums, lengths, is_mel, half)
        if key not in GRAPHS:
            GRAPHS[key] = trace(model, lengths, is_mel=is_mel, half=half)
        return copy.deepcopy(GRAPHS[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_proto", traced)
        yield
    GRAPHS.clear()


def export(model: Tagger, path: Path, **options: Any) -> Agreement:
    with no_shape_checks():
        return write.export(model, path, **options)


@pytest.fixture(scope="module")
def model() -> Passt:
    return Passt(tiny_config(**PLACES), rng=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def file(model: Passt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, of any length."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export(model, path)
    return path


@pytest.fixture(scope="module")
def session(file: Path) -> Any:
    return verify.open_session(file)


def altered(file: Path, path: Path, change: Any) -> Path:
    """A copy of a file after a change of its `ModelProto`."""
    proto = onnx.load(file)
    change(proto)
    onnx.save(proto, path)
    return path


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("samples", [4801, 4802, 8000, 20_000, 33_600])
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_and_scores_are_pytorchs_at_every_length(
    model: Passt, session: Any, samples: int, batch: int
) -> None:
    assert (model.config.min_samples, model.config.max_samples) == (4801, 33_600)
    waves = np.stack([noise(samples / RATE, seed) for seed in range(batch)])
    scores, logits = session.run(["scores", "logits"], {"waveform": waves})
    with torch.inference_mode():
        expected = model(log_mel(waves, model.config.mel)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(scores, (1.3 * expected - 0.4).softmax(1), atol=1e-4)  # calibrated


@pytest.mark.slow
def test_the_graph_holds_no_transform_but_one_convolution(file: Path) -> None:
    proto = onnx.load(file)
    operations = [node.op_type for node in proto.graph.node]
    assert operations.count("Conv") == 1
    assert not {"STFT", "DFT"} & set(operations)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    shapes = [value.type.tensor_type.shape.dim for value in (proto.graph.input[0], proto.graph.output[0])]
    assert [dim.dim_param or dim.dim_value for shape in shapes for dim in shape] == [
        "batch",
        "samples",
        "batch",
        3,
    ]


@pytest.mark.slow
def test_nothing_in_the_file_names_this_machine(file: Path) -> None:
    assert os.fspath(Path(patchout.__file__).parent).encode() not in file.read_bytes()


@pytest.mark.slow
def test_metadata_says_what_the_file_takes_and_knows(model: Passt, session: Any) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert MelConfig(**json.loads(metadata["front_end"])) == model.config.mel
    assert json.loads(metadata["thresholds"]) == [0.3, 0.5, 0.4]
    sizes = [int(metadata[f"{name}_samples"]) for name in ("min", "pad", "window")]
    assert sizes == [4801, 16_000, 33_600]
    assert (metadata["licence"], metadata["task"], metadata["channel"]) == ("CC0", "multi_class", "mean")


@pytest.mark.slow
def test_a_fixed_length_is_the_only_one(tiny: Passt, tmp_path: Path) -> None:
    export(tiny, tmp_path / "a.onnx", seconds=0.5)
    session = verify.open_session(tmp_path / "a.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["min_samples"] == metadata["window_samples"] == "16000"
    assert "thresholds" not in metadata
    wave = noise(0.5)[None]
    with torch.inference_mode():
        expected = tiny(log_mel(wave, tiny.config.mel)).logits
    np.testing.assert_allclose(verify.logits_of(session, wave), expected, atol=1e-4)
    with pytest.raises(Exception, match="invalid dimensions"):
        verify.logits_of(session, noise(0.6)[None])


def standardised() -> Tagger:
    mel = MelConfig(mean=(0.1,), std=(0.5,), low_pass_hz=11_000.0, half_precision=True)
    config = MaskSpecClassifierConfig(labels=LABELS, width=32, depth=1, heads=2, columns=6, mel=mel)
    return MaskSpecClassifier(config, rng=torch.Generator().manual_seed(0)).eval()


def plain_cnn() -> Tagger:
    return Cnn(CnnConfig(labels=LABELS, columns=6), rng=torch.Generator().manual_seed(0)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", [standardised, plain_cnn])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_family_is_exported(make: Any, precision: Precision, tmp_path: Path) -> None:
    agreement = export(make(), tmp_path / "a.onnx", precision=precision)
    assert agreement.same_top == agreement.clips == 9
    assert verify.verify(tmp_path / "a.onnx")[1].difference < 1e-4


@pytest.mark.slow
def test_smaller_precisions_are_smaller_and_near(model: Passt, file: Path, tmp_path: Path) -> None:
    sizes = {"fp32": file.stat().st_size}
    for precision, share in (("fp16", 0.01), ("int8", 0.1)):
        path = tmp_path / f"{precision}.onnx"
        agreement = export(model, path, precision=precision)
        assert 0 < agreement.difference < share * agreement.spread
        sizes[precision] = path.stat().st_size
    front_end = 4 * 480 * (2 * 800 + 128)  # stays in float32
    assert sizes["fp16"] - front_end < 0.75 * (sizes["fp32"] - front_end)
    assert sizes["int8"] < sizes["fp32"]


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_built_in_model_says_of_real_clips_what_it_says_in_pytorch(
    precision: Precision, tmp_path: Path
) -> None:
    assert DATA is not None
    model = patchout.load("sounds-tiny", device="cpu")
    export(model, tmp_path / "a.onnx", precision=precision, seconds=5.0)  # traced faster than any length
    session = verify.open_session(tmp_path / "a.onnx")
    with (DATA / "esc10" / "esc10.csv").open() as table:
        names = [row["filename"] for row in csv.DictReader(table) if row["fold"] == "5"][::4]
    waves = [patchout.audio.load(DATA / "esc10" / "audio" / name)[: 5 * RATE] for name in names]
    with torch.inference_mode():
        expected = [model(log_mel(wave[None], model.config.mel)).logits for wave in waves]
    logits = [verify.logits_of(session, wave[None]) for wave in waves]
    agreement = verify.compare(torch.cat(expected).numpy(), np.concatenate(logits))
    assert agreement.difference < (1e-4 if precision == "fp32" else 0.1 * agreement.spread)
    assert agreement.same_top >= len(names) - (precision == "int8")


# -- a file's own test ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_passes_its_self_test(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["export", "--verify", str(file)]) == 0
    assert "PaSST in fp32" in capfd.readouterr().out


@pytest.mark.slow
def test_a_changed_weight_fails_the_self_test(file: Path, tmp_path: Path) -> None:
    def change(proto: Any) -> None:
        weight = next(part for part in proto.graph.initializer if part.name.endswith("head.1.weight"))
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.5, weight.name))

    with pytest.raises(InputError, match="fails its self-test"):
        verify.verify(altered(file, tmp_path / "a.onnx", change))


@pytest.mark.slow
def test_a_file_of_an_older_opset_is_refused(file: Path, tmp_path: Path) -> None:
    def change(proto: Any) -> None:
        proto.opset_import[0].version = 17

    with pytest.raises(InputError, match="opset 17, this patchout writes 18"):
        verify.verify(altered(file, tmp_path / "a.onnx", change))


@pytest.mark.slow
def test_a_file_of_another_tool_is_refused(file: Path, tmp_path: Path) -> None:
    foreign = altered(file, tmp_path / "a.onnx", lambda proto: proto.ClearField("metadata_props"))
    with pytest.raises(InputError, match="give a file of `patchout export`"):
        verify.verify(foreign)


@pytest.mark.parametrize("content", [b"no ONNX at all", b"\x08\xff"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.onnx"):
        verify.verify(tmp_path / "a.onnx")


@pytest.mark.slow
def test_an_operation_that_the_runtime_does_not_know_is_refused(file: Path, tmp_path: Path) -> None:
    def change(proto: Any) -> None:
        proto.graph.node[0].op_type = "Unheard"

    with pytest.raises(InputError, match="cannot run it"):
        verify.verify(altered(file, tmp_path / "a.onnx", change))


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_parity_there_is_no_file(
    tiny: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LOGIT_LIMIT", -1.0)
    with pytest.raises(InputError, match="not written"):
        export(tiny, tmp_path / "a.onnx", seconds=0.5)
    assert list(tmp_path.iterdir()) == []


class Undecided(nn.Module):
    """A part whose way depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_says_in_which_part(tiny: Passt, tmp_path: Path) -> None:
    tiny.encoder.blocks[1].mlp = Undecided()
    with pytest.raises(InputError, match=r"part 'encoder\.blocks\.1\.mlp' of the model cannot be exported"):
        export(tiny, tmp_path / "a.onnx", seconds=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_pretrained_model_without_classes_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = MaskSpecConfig(
        width=32, depth=1, heads=2, columns=6, decoder_width=16, decoder_depth=1, decoder_heads=2
    )
    own.save(MaskSpec(config), tmp_path / "m.safetensors")
    assert run_command(["export", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "a.onnx")]) == 2
    assert "has no classes yet" in capfd.readouterr().err


@pytest.mark.parametrize(("seconds", "said"), [(20.0, "0.15 to 1.05 s"), (0.1, "0.15 to 1.05 s")])
def test_a_length_beyond_the_table_is_refused(tiny: Passt, tmp_path: Path, seconds: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write.export(tiny, tmp_path / "a.onnx", seconds=seconds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "name a model and --out"),
        ("sounds-tiny --out a.pt", "exported as .onnx"),
        ("sounds-tiny --out a.onnx --seconds ten", "a number or any, got 'ten'"),
        ("sounds-tiny --out a.onnx --seconds -1", "--seconds -1 is not what this model takes"),
        ("sounds-tiny --out a.onnx --seconds nan", "a number or any, got 'nan'"),
        ("sounds-tiny --verify a.onnx", "leave MODEL, --out and the other options away"),
        ("--verify a.onnx --precision int8", "leave MODEL, --out and the other options away"),
    ],
)
def test_a_wrong_request_exits_with_2(
    options: str,
    said: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", *options.split()]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "exporting" not in err


def test_a_folder_that_is_not_there_or_not_writable_is_named(
    tiny: Passt, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", "sounds-tiny", "--out", str(tmp_path / "no" / "a.onnx")]) == 1
    assert "no such folder" in capfd.readouterr().err
    (tmp_path / "a.onnx").mkdir()
    assert run_command(["export", "sounds-tiny", "--out", str(tmp_path / "a.onnx")]) == 1
    said = capfd.readouterr().err
    assert "is a folder: name a file" in said
    assert "comparing" not in said  # refused before work
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder"):
        write.export(tiny, tmp_path / "file" / "a.onnx")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"need onnxscript: pip install 'patchout\[onnx\]'"):
        verify.check_extra()


def test_an_old_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.13.1")
    with pytest.raises(InputError, match=r"onnxruntime 1\.13\.1 does not know opset 18"):
        verify.check_extra()


def test_weights_beyond_one_file_are_refused(
    tiny: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="try --precision fp16"):
        write.export(tiny, tmp_path / "a.onnx")


@pytest.mark.slow
def test_a_model_without_products_is_not_quantised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no matrix product that int8 could speed up"):
        export(plain_cnn(), tmp_path / "a.onnx", precision="int8")


@pytest.mark.slow
def test_the_rest_of_the_package_does_without_onnx() -> None:
    code = "import sys, patchout.cli.main, patchout.cli.tag; patchout.load, patchout.tag, patchout.embed"
    code += "; print([name for name in ('onnx', 'onnxscript', 'onnxruntime') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# -- without torch and patchout ------------------------------------------------------------------------------


def run_example(file: Path, sounds: list[Path]) -> subprocess.CompletedProcess[str]:
    """The example in an interpreter that has neither."""
    blocked = (
        "import sys, runpy; sys.modules |= dict.fromkeys(('torch', 'patchout')); sys.argv = sys.argv[1:]"
    )
    code = f"{blocked}; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(EXAMPLE), str(file), *map(str, sounds)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def scores_by_example(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, float]]:
    """What the example printed: file -> label -> score."""
    scores: dict[str, dict[str, float]] = {}
    for name, label, score in csv.reader(done.stdout.splitlines()):
        scores.setdefault(name, {})[label] = float(score)
    return scores


@pytest.mark.slow
def test_the_example_gives_the_scores_of_tag_at_every_length(
    model: Passt, file: Path, tmp_path: Path
) -> None:
    stereo = np.stack([tone(3.3, 700.0, rate=44_100), 0.3 * tone(3.3, 300.0, rate=44_100)], axis=1)
    sounds = [
        write_wav(tmp_path / "windows.wav", noise(4.0)),
        write_wav(tmp_path / "window.wav", noise(1.05)),
        write_wav(tmp_path / "short, quiet.wav", noise(0.05)),
        write_wav(tmp_path / "stereo.wav", stereo, rate=44_100),
    ]
    assert len(noise(1.05)) == model.config.max_samples
    tagged = scores_by_example(run_example(file, sounds))
    assert [*tagged] == [*map(str, sounds)]
    for name, scores in tagged.items():
        tags = patchout.tag(model, name)
        assert scores == pytest.approx(dict(zip(tags.labels, tags.scores, strict=True)), abs=2e-4)


@pytest.mark.slow
def test_the_example_names_files_that_it_cannot_tag_and_goes_on(file: Path, tmp_path: Path) -> None:
    broken = noise(0.5)
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 32_000, subtype="FLOAT")
    sounds = [write_wav(tmp_path / "empty.wav", noise(0.0)), tmp_path / "nan.wav", tmp_path / "not-there.wav"]
    sounds.append(write_wav(tmp_path / "noise.wav", noise(1.0)))
    done = run_example(file, sounds)
    assert done.returncode == 1
    assert [*scores_by_example(done)] == [str(sounds[3])]
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [*map(str, sounds[:3])]


@pytest.mark.slow
def test_the_example_says_what_is_wrong_with_a_model(file: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "noise.wav", noise(1.0))
    foreign = altered(file, tmp_path / "foreign.onnx", lambda proto: proto.ClearField("metadata_props"))
    for path, said in (
        (foreign, "give a file of `patchout export`"),
        (sound, "cannot run it"),
        (tmp_path / "not-there.onnx", "cannot run it"),
    ):
        done = run_example(path, [sound])
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"{path}: ")
        assert said in done.stderr


# -- sherpa-onnx ---------------------------------------------------------------------------------------------


def test_the_front_end_of_sherpa_is_the_contract() -> None:
    """16 kHz, 32 ms of periodic Hann every 10 ms, Kaldi's 64 mels, dB, at most 120 below the loudest."""
    wave = noise(1.0)[:16_000] * np.linspace(0, 10, 16_000, dtype=np.float32) ** 8
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    mirrored = np.pad(wave[1:].astype(np.float64), 256, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, 512)[::160] * window
    edges = np.linspace(0, 1127 * np.log1p(8000 / 700), 66)[:, None]
    bins = 1127 * np.log1p(np.arange(256) * 16_000 / 512 / 700)
    slopes = (
        (bins - edges[:-2]) / np.diff(edges, axis=0)[:-1],
        (edges[2:] - bins) / np.diff(edges, axis=0)[1:],
    )
    power = np.maximum(np.minimum(*slopes), 0) @ (np.abs(np.fft.rfft(frames))[:, :256] ** 2).T
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    expected = np.maximum(decibels, decibels.max() - 120)
    assert expected.min() > decibels.min()
    np.testing.assert_allclose(log_mel(wave[None], sherpa.MEL)[0], expected, atol=0.02)


def test_windows_in_decibels_are_counted_from_their_own_loudest() -> None:
    wave = torch.from_numpy(noise(2.0)[None] * np.linspace(0, 1, 2 * RATE, dtype=np.float32) ** 20)
    expected = log_mel(wave.unfold(1, 16_000, 8_000)[0], sherpa.MEL)
    torch.testing.assert_close(window_mels(wave, sherpa.MEL, size=16_000, hop=8_000), expected)


@pytest.mark.parametrize(
    ("field", "value", "said"), [("pre_emphasis", 1.0, "below 1"), ("scale", "log", "ln or db")]
)
def test_a_front_end_that_makes_no_sense_is_refused(field: str, value: Any, said: str) -> None:
    with no_shape_checks(), pytest.raises(ValueError, match=said):
        MelConfig(**{field: value})


@pytest.mark.slow
def test_sherpa_gets_probabilities_of_log_mels_of_any_length_and_a_table_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        depth=1, mel=replace(sherpa.MEL, mean=(-30.0,), std=(20.0,)), labels=("Speech", 'a "b", c', "dog")
    )
    model = Passt(config, rng=torch.Generator().manual_seed(0)).eval()
    own.save(model, tmp_path / "m.safetensors")
    out = tmp_path / "a.onnx"
    with no_shape_checks():
        command = ["export", str(tmp_path / "m.safetensors"), "--out", str(out), "--front-end", "sherpa"]
        assert run_command(command) == 0
    session = verify.open_session(out)
    for frames in (16, 40, config.max_frames, 3 * config.max_frames):
        mel = np.random.default_rng(0).normal(-30, 20, (1, 64, frames)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy((mel + 30) / 20)[:, :, : config.max_frames]).logits.softmax(1)
        np.testing.assert_allclose(session.run(None, {"log_mel": mel})[0], expected, atol=1e-5)
    with out.with_suffix(".csv").open(encoding="utf-8") as table:
        rows = list(csv.reader(table))
    header = ["index", "mid", "display_name"]
    assert rows == [
        header,
        ["0", "/m/09x0r", "Speech"],
        ["1", "class_1", 'a "b", c'],
        ["2", "class_2", "dog"],
    ]
    assert verify.verify(out)[0]["input"] == "log-mel"


def test_sherpa_takes_no_other_front_end_and_no_fixed_length(tiny: Passt, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n_mels 128 instead of 64"):
        write.export(tiny, tmp_path / "a.onnx", front_end="sherpa")
    with pytest.raises(ValueError, match="log-mels of any length"):
        write.export(tiny, tmp_path / "a.onnx", front_end="sherpa", seconds=1.0)


def test_an_agreement_reads_as_one_line() -> None:
    agreement = verify.compare(
        np.array([[0.0, 1.0], [2.0, 0.5]], np.float32), np.array([[0.0, 1.1], [2.0, 3.0]], np.float32)
    )
    assert re.fullmatch(
        r"logits differ by at most 2\.5 \(125\.00% .*\), best class the same in 1 of 2 clips", str(agreement)
    )
