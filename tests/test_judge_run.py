"""`patchout judge` on sounds: the rules of protocols, kept embeddings, pairs, warnings, the command."""

import json
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, tiny_config, tone, write_wav
from filelock import FileLock

from patchout.audio.mel import log_mel
from patchout.checkpoint.own import save
from patchout.cli.main import run_command
from patchout.errors import InputError
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.judge import PROTOCOLS, Clip, Settings, compare, frechet, judge, statistics
from patchout.judge.caches import is_kept, save_reference
from patchout.judge.measures import reference_statistics
from patchout.judge.report import write_report
from patchout.models.passt import Passt


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tiny: Passt, tmp_path: Path) -> str:
    save(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    """Twelve sounds of one second by the same names in two folders: tones, and the same with noise."""
    for index in range(12):
        wave = tone(1.0, 200.0 * (index + 1))
        write_wav(tmp_path / "reference" / f"{index:02}.wav", wave)
        write_wav(tmp_path / "generated" / f"{index:02}.wav", wave + 0.1 * noise(1.0, index))
    return str(tmp_path / "generated"), str(tmp_path / "reference")


def silence_of(folder: str) -> None:
    """Twelve files of zeros in the place of what is there."""
    for file in Path(folder).iterdir():
        write_wav(file, np.zeros(32_000, np.float32))


@pytest.mark.slow
def test_an_inception_score_of_few_clips_says_how_high_it_can_be(sets: tuple[str, str], model: str) -> None:
    (text,) = [text for text in judge(*sets, model=model).warnings if "Inception" in text]
    assert "12 clips in 10 chunks is at most 1.2" in text


# -- numbers ----------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_model_on_the_protocol_s_windows(
    sets: tuple[str, str], model: str, tiny: Passt
) -> None:
    judgement = judge(*sets, model=model)
    features, logits = {}, {}
    for name in sets:
        rows = []
        for file in sorted(Path(name).iterdir()):
            wave = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
            wave = wave - wave.mean()
            with torch.inference_mode():
                rows.append(tiny(log_mel(wave[None], tiny.config.mel)))
        features[name] = np.concatenate([row.embedding.numpy() for row in rows])
        logits[name] = torch.cat([row.logits for row in rows]).double()
    assert judgement.values["fd"].value == pytest.approx(
        frechet(*(features[name] for name in sets)), rel=1e-4
    )
    generated, reference = (logits[name].log_softmax(1) for name in sets)
    expected = (reference.exp() * (reference - generated)).sum(1).mean()
    assert judgement.values["kl"].value == pytest.approx(float(expected), rel=1e-4)
    assert 1 <= judgement.values["is"].value <= 3


@pytest.mark.slow
def test_all_protocols_on_one_decoding(sets: tuple[str, str], model: str) -> None:
    decoded: list[tuple[int, float]] = []
    settings = Settings(on_progress=lambda clips, seconds: decoded.append((clips, seconds)))
    judgements = compare(*sets, model=model, settings=settings)
    assert sum(clips for clips, _ in decoded) == 24
    assert sum(seconds for _, seconds in decoded) == pytest.approx(24.0)
    metrics = {each.protocol.name: [*each.values] for each in judgements}
    assert metrics == {name: [*rules.metrics] for name, rules in PROTOCOLS.items()}
    for each in judgements:
        alone = judge(*sets, protocol=each.protocol.name, model=model)
        for metric, value in each.values.items():
            assert alone.values[metric].value == pytest.approx(value.value, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_equal_sets_have_the_distance_zero(sets: tuple[str, str], model: str) -> None:
    judgement = judge(sets[1], sets[1], model=model)
    assert (judgement.values["fd"].value, judgement.values["kl"].value) == (0.0, 0.0)
    assert any("the sets overlap: 12 sounds are in both" in text for text in judgement.warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"average": "max"},
        {"diagonal": 0.5},
        {"features": "row"},
        {"direction": "generated-reference"},
        {"inside": 0.1},
        {"half_precision": True},
        {"clip": Clip(policy="first", window_s=0.5)},
        {"logits_clip": Clip(policy="pieces", window_s=0.4)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_rule_of_a_protocol_counts(sets: tuple[str, str], model: str, change: dict[str, object]) -> None:
    base = replace(PROTOCOLS["fastvideo"], logits_clip=Clip(policy="windows", window_s=0.5, hop_s=0.25))
    changed = replace(base, **change)  # type: ignore[arg-type]
    one, two = compare(*sets, protocols=[base, changed], metrics=["fd", "kl"], model=model)
    assert {name: value.value for name, value in one.values.items()} != {
        name: value.value for name, value in two.values.items()
    }


@pytest.mark.slow
def test_a_metric_alone_embeds_its_windows_alone(sets: tuple[str, str], model: str) -> None:
    rules = replace(PROTOCOLS["fastvideo"], logits_clip=Clip(policy="pieces", window_s=0.5))
    judgement = judge(*sets, protocol=rules, metrics=["kl"], model=model)
    assert len(judgement.sets[0].tables) == 1
    assert all(np.isnan(record.distance) for record in judgement.files())


@pytest.mark.slow
def test_windows_are_averaged_or_rows_of_their_own(tmp_path: Path, model: str) -> None:
    for index in range(3):
        write_wav(tmp_path / "long" / f"{index}.wav", noise(2.5, index))
    mean = judge(str(tmp_path / "long"), str(tmp_path / "long"), protocol="stable-audio", model=model)
    pieces = judge(str(tmp_path / "long"), str(tmp_path / "long"), protocol="audiocraft", model=model)
    tables = [next(iter(each.sets[0].tables.values())) for each in (mean, pieces)]
    assert [table.clips.tolist() for table in tables] == [[0, 1, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_a_scene_is_that_of_the_embedder(tmp_path: Path, model: str, tiny: Passt) -> None:
    wave = noise(3.0)
    write_wav(tmp_path / "in" / "a.wav", wave)
    scene = replace(
        PROTOCOLS["kadtk"], clip=Clip(policy="scene", window_s=1.0, hop_s=0.25), half_precision=False
    )
    judged = judge(str(tmp_path / "in"), str(tmp_path / "in"), protocol=scene, metrics=["kl"], model=model)
    config = EmbedConfig(scene_window_ms=1000.0, scene_hop_ms=250.0)
    written = soundfile.read(tmp_path / "in" / "a.wav", dtype="float32")[0]
    expected = Embedder(tiny, config).scenes_of_each([written])[0]
    (table,) = judged.sets[0].tables.values()
    np.testing.assert_allclose(table.values[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_sound_of_minutes_is_read_when_its_turn_comes(tmp_path: Path, model: str) -> None:
    for index in range(2):
        write_wav(tmp_path / "in" / f"{index}.wav", noise(61.0, index))
    judged = judge(str(tmp_path / "in"), str(tmp_path / "in"), protocol="audiocraft", model=model)
    (table,) = judged.sets[0].tables.values()
    assert np.bincount(table.clips).tolist() == [61, 61]


# -- what is kept -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reference_is_embedded_once(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    first = judge(*sets, model=model)
    done: list[float] = []
    second = judge(*sets, model=model, settings=Settings(on_progress=lambda clips, s: done.append(s)))
    assert sum(done) == pytest.approx(12.0)  # seconds of generated sound alone
    assert second.values == first.values


@pytest.mark.slow
def test_a_killed_judgement_goes_on(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    settings = Settings(embeddings=tmp_path / "out" / "embeddings")
    judge(*sets, model=model, settings=settings)
    (tmp_path / "out" / "embeddings" / "part-000001.parquet").unlink()
    done: list[float] = []
    judge(*sets, model=model, settings=settings._replace(on_progress=lambda clips, s: done.append(s)))
    assert sum(done) == pytest.approx(4.0)  # twelve clips are shards of eight and four


@pytest.mark.slow
def test_embeddings_of_a_judgement_are_a_set(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    whole = judge(*sets, model=model, settings=Settings(embeddings=tmp_path / "kept"))
    again = judge(str(tmp_path / "kept"), sets[1], model=model)
    assert again.values == whole.values
    with pytest.raises(InputError, match="was not made by the rules"):
        judge(str(tmp_path / "kept"), sets[1], protocol="kadtk", model=model)


@pytest.mark.slow
def test_scenes_of_patchout_embed_are_a_set(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    out = str(tmp_path / "scenes")
    assert run_command(["embed", sets[1], "--model", model, "--out", out]) == 0
    judgement = judge(sets[0], out, model=model, metrics=["fd"])
    assert judgement.values["fd"].value >= 0
    assert any("loading rules that are not known" in text for text in judgement.warnings)
    with pytest.raises(InputError, match="comes of a model without logits"):
        judge(sets[0], out, model=model, metrics=["kl"])


@pytest.mark.slow
def test_statistics_of_a_reference_are_enough_for_fd(
    sets: tuple[str, str], model: str, tmp_path: Path
) -> None:
    whole = judge(*sets, model=model)
    path = tmp_path / "reference.npz"
    save_reference(
        path, reference_statistics(whole.protocol, whole.sets[1]), whole.protocol, whole.model_sha256
    )
    saved = judge(sets[0], str(path), model=model)
    assert saved.values["fd"].value == pytest.approx(whole.values["fd"].value, rel=1e-9)
    assert "statistics alone have no class scores" in saved.left_out["kl"]
    with pytest.raises(
        InputError, match=r"the protocol av-benchmark, which differs from kadtk in name.*loading"
    ):
        judge(sets[0], str(path), protocol="kadtk", model=model)


def test_a_reference_folder_that_is_not_there_is_refused_before_work(
    sets: tuple[str, str], model: str
) -> None:
    heard: list[int] = []
    with pytest.raises(InputError, match="nowhere: is not there"):
        judge(
            sets[0],
            "nowhere",
            model=model,
            settings=Settings(on_progress=lambda clips, _: heard.append(clips)),
        )
    assert heard == []


def test_statistics_of_another_model_are_refused(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    rules = PROTOCOLS["av-benchmark"].scaled(1.0)
    save_reference(path, statistics(np.eye(32)), rules, "0" * 64)
    with pytest.raises(InputError, match="different models"):
        judge(sets[0], str(path), model=model)
    save_reference(path, statistics(np.eye(7)), rules, "")
    with pytest.raises(InputError, match="features of 32 and 7 values"):
        judge(sets[0], str(path), model=model, metrics=["fd"])


def vectors(seed: int, size: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {f"{index:02}": torch.randn(size, generator=rng) for index in range(12)}


def test_caches_of_av_benchmark(tmp_path: Path) -> None:
    for side in (0, 1):
        (tmp_path / str(side)).mkdir()
        torch.save(vectors(side, 24), tmp_path / str(side) / "passt_features_embed.pth")
        torch.save(vectors(side + 2, 527), tmp_path / str(side) / "passt_logits.pth")
    judgement = judge(str(tmp_path / "0"), str(tmp_path / "1"))  # needs no model
    expected = frechet(*(np.stack([*map(np.asarray, vectors(side, 24).values())]) for side in (0, 1)))
    assert judgement.values["fd"].value == pytest.approx(expected, rel=1e-9)
    assert [*judgement.values] == ["fd", "kl", "is"]
    assert judgement.files()[0].classes[0][0] in judgement.labels
    assert len(judgement.labels) == 527


@pytest.mark.parametrize("kind", ["tensor", "numpy", "numpy 1"])
def test_pickles_of_stable_audio_metrics(tmp_path: Path, kind: str) -> None:
    probabilities = [{k: v.softmax(0) for k, v in vectors(seed, 527).items()} for seed in (0, 1)]
    for side, table in enumerate(probabilities):
        content = table if kind == "tensor" else {k: v.numpy() for k, v in table.items()}
        old_address = (b"numpy._core", b"numpy.core" if kind == "numpy 1" else b"numpy._core")
        (tmp_path / f"{side}.pkl").write_bytes(pickle.dumps(content, protocol=2).replace(*old_address))
    judgement = judge(str(tmp_path / "0.pkl"), str(tmp_path / "1.pkl"), protocol="stable-audio")
    pairs = zip(*(table.values() for table in probabilities), strict=True)
    expected = np.mean([float((p * (p.log() - (q + 1e-6).log())).sum()) for p, q in pairs])
    assert judgement.values["kl"].value == pytest.approx(expected, rel=1e-5)


class Harm:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["a.pkl", "passt_logits.pth"])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        (torch.save if name.endswith("pth") else pickle.dump)({"a": Harm(str(tmp_path / "harm"))}, file)
    with pytest.raises(InputError, match="nothing in a file is run"):
        judge(str(tmp_path / name), str(tmp_path / name), metrics=["kl"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({"a": "b"})])
def test_other_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl"):
        judge(str(tmp_path / "a.pkl"), str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("content", [b"", b"PK", b"text"])
def test_a_broken_npz_is_refused(sets: tuple[str, str], model: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="no statistics that --save-reference wrote"):
        judge(sets[0], str(tmp_path / "a.npz"), model=model)
    assert is_kept(tmp_path / "a.npz")


def test_other_values_than_probabilities_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({k: v.numpy() for k, v in vectors(0, 527).items()}))
    with pytest.raises(InputError, match="the values of 00 are no probabilities"):
        judge(str(tmp_path / "a.pkl"), str(tmp_path / "a.pkl"), protocol="stable-audio")


def test_a_clip_without_finite_values_in_a_cache_is_named(tmp_path: Path) -> None:
    features = vectors(0, 24)
    features["03"][5] = np.nan
    torch.save(features, tmp_path / "passt_features_embed.pth")
    with pytest.raises(InputError, match=r"1 of 12 clips hold NaN or infinite values \(03 is one\)"):
        judge(str(tmp_path), str(tmp_path))


@pytest.mark.slow
def test_embeddings_of_an_interrupted_job_are_refused(
    sets: tuple[str, str], model: str, tmp_path: Path
) -> None:
    out = tmp_path / "embeddings"
    judge(*sets, model=model, settings=Settings(embeddings=out))
    (out / "part-000001.parquet").unlink()
    with pytest.raises(InputError, match="holds 1 of 2 shards, its job was interrupted"):
        judge(str(out), sets[1], model=model)


@pytest.mark.slow
def test_embeddings_of_a_judgement_are_both_sets(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    out = tmp_path / "embeddings"
    whole = judge(*sets, model=model, settings=Settings(embeddings=out))
    save_reference(
        tmp_path / "a.npz",
        reference_statistics(whole.protocol, whole.sets[1]),
        whole.protocol,
        whole.model_sha256,
    )
    again = judge(str(out), str(tmp_path / "a.npz"), model="not needed", metrics=["fd"])
    assert again.values["fd"].value == pytest.approx(whole.values["fd"].value, rel=1e-9)


def test_a_damaged_parquet_file_is_named(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: is no Parquet file, or damaged"):
        judge(str(tmp_path / "a.parquet"), sets[1], model=model)


@pytest.mark.parametrize("name", ["a.npz", "a.NPZ"])
def test_a_broken_reference_is_refused_before_work(
    sets: tuple[str, str], model: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"text")
    heard: list[int] = []
    settings = Settings(on_progress=lambda clips, _: heard.append(clips))
    with pytest.raises(InputError, match="no statistics that --save-reference wrote"):
        judge(sets[0], str(tmp_path / name), model=model, settings=settings)
    assert heard == []


@pytest.mark.slow
def test_a_reference_that_another_judgement_embeds_is_waited_for(
    sets: tuple[str, str], model: str, tmp_path: Path
) -> None:
    notes: list[str] = []
    judge(*sets, model=model)
    (lock,) = (FileLock(path) for path in tmp_path.glob("home/**/judge/*.lock"))
    lock.acquire()

    def finish(note: str) -> None:
        notes.append(note)
        lock.release()

    assert judge(*sets, model=model, settings=Settings(on_note=finish)).values
    assert notes == ["waiting for another process that embeds the same reference"]


# -- pairs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_stand_in_two_columns_of_a_list(sets: tuple[str, str], model: str, tmp_path: Path) -> None:
    rows = [f"generated/{index:02}.wav,reference/{11 - index:02}.wav" for index in range(12)]
    listed = tmp_path / "pairs.csv"
    listed.write_text("\n".join(["generated,reference", *rows]))
    judgement = judge(str(listed), model=model)
    records = judgement.files()
    assert [Path(record.pair).name for record in records] == [f"{11 - i:02}.wav" for i in range(12)]
    assert judgement.values["kl"].value > judge(*sets, model=model).values["kl"].value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file\na.wav", "columns generated and reference; it has file"),
        ("generated,reference\na.wav,", "fill both columns"),
        ("generated,reference\na, b.wav,c.wav", "pairs.csv line 2: has 3 cells"),
        ("generated,reference\n", "a list without rows"),
    ],
)
def test_a_list_without_pairs_is_refused(model: str, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        judge(str(tmp_path / "pairs.csv"), model=model)


def test_times_in_a_list_of_pairs_are_said_to_be_unused(
    sets: tuple[str, str], model: str, tmp_path: Path
) -> None:
    text = "generated,reference,start_s,end\ngenerated/00.wav,reference/00.wav,0,.5"
    (tmp_path / "pairs.csv").write_text(text)
    notes: list[str] = []
    judge(str(tmp_path / "pairs.csv"), model=model, settings=Settings(on_note=notes.append))
    assert notes[0] == "pairs.csv: columns that are not used: start_s, end: pairs are files as a whole"


def test_one_folder_is_refused(sets: tuple[str, str], model: str) -> None:
    with pytest.raises(InputError, match="give a second set"):
        judge(sets[0], model=model)


def test_two_files_are_a_pair(sets: tuple[str, str], model: str) -> None:
    judgement = judge(f"{sets[0]}/03.wav", f"{sets[1]}/07.wav", model=model)
    assert [*judgement.values] == ["kl"]
    assert "a distance of sets needs 2 or more" in judgement.left_out["fd"]
    assert "needs 10 clips or more" in judgement.left_out["is"]
    with pytest.raises(InputError, match="2 or more"):
        judge(f"{sets[0]}/03.wav", f"{sets[1]}/07.wav", model=model, metrics=["fd"])


@pytest.mark.slow
def test_missing_pairs_are_counted(sets: tuple[str, str], model: str) -> None:
    Path(sets[1], "03.wav").unlink()
    judgement = judge(*sets, model=model)
    assert any(f"{sets[0]}: 1 of 12 clips have no pair" in text for text in judgement.warnings)


@pytest.mark.slow
def test_no_pair_by_name(sets: tuple[str, str], model: str) -> None:
    for file in Path(sets[1]).iterdir():
        file.rename(file.with_name(f"other-{file.name}"))
    judgement = judge(*sets, model=model)
    assert [*judgement.values] == ["fd", "is"]
    assert "pairs share a name" in judgement.left_out["kl"]
    with pytest.raises(InputError, match="pairs share a name"):
        judge(*sets, model=model, protocol="stable-audio")


@pytest.mark.slow
def test_names_that_stand_twice_make_no_pairs(sets: tuple[str, str], model: str) -> None:
    (Path(sets[0]) / "more").mkdir()
    shutil.copy(Path(sets[0]) / "03.wav", Path(sets[0]) / "more" / "03.wav")
    judgement = judge(*sets, model=model)
    assert "1 names stand twice (03 is one)" in judgement.left_out["kl"]
    assert "fd" in judgement.values


# -- what a reader should know ----------------------------------------------------------------------------


def test_damaged_files_are_named(sets: tuple[str, str], model: str) -> None:
    damaged = Path(sets[0]) / "00.wav"
    damaged.write_bytes(damaged.read_bytes()[:40_000])
    (remark,) = (text for text in judge(*sets, model=model).warnings if "are damaged" in text)
    assert remark == f"{sets[0]}: 1 of 12 files are damaged or odd ({damaged})"


@pytest.mark.slow
def test_warnings_of_files(sets: tuple[str, str], model: str) -> None:
    write_wav(Path(sets[0]) / "00.wav", np.zeros(32_000, np.float32))
    write_wav(Path(sets[0]) / "01.wav", tone(0.5, rate=16_000), 16_000)
    write_wav(Path(sets[0]) / "02.wav", tone(1.5))
    (Path(sets[0]) / "03.wav").write_bytes(b"not a sound")
    said: list[str] = []
    judgement = judge(*sets, model=model, settings=Settings(on_note=said.append))
    told = "\n".join(judgement.warnings)
    for part in (
        "1 of 11 files are not at 32000 Hz",
        f"1 of 11 files are silent ({Path(sets[0]) / '00.wav'})",
        "1 of 11 files are longer than 1 s and were cut",
        "1 of 11 files are shorter than 1 s and were padded",
        "1 of 12 files cannot be read",
        "takes 1 s at a time, not 10",
        "is not passt-s",
        "11 and 12 clips of 32 features are too few",
    ):
        assert part in told
    assert any("03.wav" in text for text in said)


def test_silent_sounds_are_no_overlap(sets: tuple[str, str], model: str) -> None:
    for name in sets:
        write_wav(Path(name) / "00.wav", np.zeros(32_000, np.float32))
    warnings = judge(*sets, model=model).warnings
    assert sum("1 of 12 files are silent" in text for text in warnings) == 2
    assert not any("overlap" in text for text in warnings)


@pytest.mark.slow
def test_all_silent_is_a_number_and_a_warning(sets: tuple[str, str], model: str) -> None:
    silence_of(sets[0])
    for judgement in compare(*sets, model=model):
        assert all(np.isfinite(value.value) for value in judgement.values.values())
        assert any("12 of 12 files are silent" in text for text in judgement.warnings)


def test_files_too_short_for_pieces_do_not_count(sets: tuple[str, str], model: str) -> None:
    write_wav(Path(sets[0]) / "00.wav", tone(0.1))
    judgement = judge(*sets, protocol="audiocraft", model=model)
    assert any("1 of 12 files are too short for this protocol" in text for text in judgement.warnings)
    assert len(judgement.sets[0].rows(judgement.protocol, "kl").clips) == 11


def test_nothing_readable_is_refused(sets: tuple[str, str], model: str) -> None:
    for file in Path(sets[0]).iterdir():
        file.write_bytes(b"not a sound")
    with pytest.raises(InputError, match="none of 12 files can be read"):
        judge(*sets, model=model)


def test_a_model_without_logits_has_no_kl(sets: tuple[str, str], tmp_path: Path) -> None:
    encoder = Passt(tiny_config(labels=()), rng=torch.Generator().manual_seed(0))
    save(encoder, tmp_path / "encoder.safetensors")
    judgement = judge(*sets, model=str(tmp_path / "encoder.safetensors"))
    assert [*judgement.values] == ["fd"]
    assert "a model without logits" in judgement.left_out["kl"]


@pytest.mark.slow
def test_another_file_than_the_published_one_is_told(
    sets: tuple[str, str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchout.judge.run.PUBLISHED", model)
    judgement = judge(*sets, model=model)
    assert any("SHA-256" in text and judgement.model_sha256 in text for text in judgement.warnings)


def test_an_unknown_metric_names_the_known_ones(sets: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no metric 'fid': there are fd, kl"):
        judge(*sets, metrics=["fid"])


# -- files, report, command -------------------------------------------------------------------------------


@pytest.mark.slow
def test_records_name_the_pair_the_nearest_and_the_classes(sets: tuple[str, str], model: str) -> None:
    shutil.copy(f"{sets[1]}/07.wav", f"{sets[0]}/05.wav")
    records = judge(*sets, model=model).files()
    changed = records[5]
    assert (changed.id, Path(changed.pair).name, Path(changed.nearest).name) == ("05", "05.wav", "07.wav")
    assert changed.distance < 1e-3
    assert changed.kl > 0
    assert {name for name, _, _ in changed.classes} == {"bell", "dog", "rain"}


def run(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run_command(["judge", *args])
    printed = capfd.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_the_command_writes_a_report(
    sets: tuple[str, str], model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, printed, said = run(capfd, *sets, "--compare", "--model", model, "--out", str(out))
    assert code == 0
    assert [line.split()[:2] for line in printed.splitlines()][:2] == [
        ["av-benchmark", "fd"],
        ["av-benchmark", "kl"],
    ]
    assert "of 32 features are too few" in said
    names = {path.name for path in out.iterdir()}
    pictures = {"compare.png", *(f"worst-{number}.png" for number in range(1, 6))}
    assert names == {"embeddings", "judge.json", "files.csv", "report.md", *pictures}
    stored = json.loads((out / "judge.json").read_text())
    assert stored[0]["rules"]["loading"]["resampler"] == "hann"
    assert len((out / "files.csv").read_text().splitlines()) == 13
    assert "Worst files" in (out / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["json", "csv"])
def test_formats(sets: tuple[str, str], model: str, capfd: pytest.CaptureFixture[str], format: str) -> None:
    code, printed, _ = run(capfd, *sets, "--model", model, "--format", format, "--cut-s", "0.5")
    assert code == 0
    if format == "json":
        record = json.loads(printed)
        assert record["rules"]["clip"]["cut_s"] == 0.5
        assert record["values"]["fd"]["value"] > 0
    else:
        assert printed.startswith("protocol,metric,value,low,high\nav-benchmark,fd,")


@pytest.mark.slow
def test_a_saved_reference_is_used_by_the_command(
    sets: tuple[str, str], model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "reference.npz")
    assert run(capfd, *sets, "--model", model, "--save-reference", path)[0] == 0
    code, printed, _ = run(capfd, sets[0], path, "--model", model, "--metrics", "fd")
    assert (code, printed.split()[:2]) == (0, ["av-benchmark", "fd"])


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        ([], 2, "give the generated sounds and the reference"),
        (["a", "b", "c"], 2, "got 3"),
        (["a", "b", "--cut-s", "0"], 2, "--cut-s must be more than 0"),
        (["a", "b", "--cut-s", "8", "--protocol", "kadtk"], 2, "kadtk cuts no clips: leave --cut-s out"),
        (["a", "b", "--save-reference", "a.json"], 2, "NAME.npz"),
        (["a", "b", "--save-reference", "a.npz", "--metrics", "kl"], 2, "of FD: name it in --metrics too"),
        (["a", "b", "--model", "sounds-tiny"], 1, "a"),
    ],
)
def test_wrong_usage(capfd: pytest.CaptureFixture[str], args: Sequence[str], code: int, reason: str) -> None:
    assert run(capfd, *args)[0] == code
    assert reason in (run(capfd, *args)[2])


@pytest.mark.slow
def test_a_failed_file_is_in_the_exit_code(
    sets: tuple[str, str], model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (Path(sets[0]) / "03.wav").write_bytes(b"not a sound")
    code, _, said = run(capfd, *sets, "--model", model)
    assert (code, "03.wav" in said) == (1, True)


def test_a_report_of_caches_has_no_spectrograms(tmp_path: Path) -> None:
    torch.save(vectors(0, 24), tmp_path / "passt_features_embed.pth")
    torch.save(vectors(2, 527), tmp_path / "passt_logits.pth")
    judgement = judge(str(tmp_path), str(tmp_path))
    (tmp_path / "out").mkdir()
    for name in ("compare.png", "worst-1.png"):  # of a judgement before
        (tmp_path / "out" / name).touch()
    write_report(tmp_path / "out", [judgement])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"judge.json", "files.csv", "report.md"}
