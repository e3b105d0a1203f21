"""The server of `patchout web`: list, sounds, ranges, labels, training, and what it refuses."""

import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE, tiny_config, tone, write_wav

pytest.importorskip("starlette", reason="the extra web")

from starlette.testclient import TestClient

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.cli.main import run_command
from patchout.data import augment
from patchout.inference.embedding import Embedder, mid_level
from patchout.inference.events import EventRule
from patchout.models.passt import Passt
from patchout.models.tagger import Tagger
from patchout.web.analysis import analyse
from patchout.web.learner import Learner
from patchout.web.server import application
from patchout.web.session import Session
from patchout.web.sound_index import Analysis, SoundIndex

TOKEN = "secret"
ADDRESS = f"http://127.0.0.1:8000/{TOKEN}"


def until(condition: Callable[[], Any]) -> None:
    """Wait for a thread."""
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a file."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoint.save(Passt(tiny_config(), rng=augment.keyed("web")), path)
    return path


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Four sounds, one that is none, and what the model has heard in them."""
    folder = tmp_path_factory.mktemp("tagged")
    for number in range(3):
        write_wav(folder / f"tone-{number}.wav", tone(1.0, 300 + 400 * number))
    write_wav(folder / "deep" / "long.wav", tone(3.5, 500))
    (folder / "broken.wav").write_bytes(b"nothing")
    session = Session(folder, str(model))
    session.worker.model = patchout.load(model, "cpu")
    while session.worker.step():
        pass
    session.close()
    return folder


@pytest.fixture
def session(tagged: Path, tmp_path: Path, model: Path) -> Iterator[Session]:
    """A copy of the tagged folder; nothing runs in the background."""
    folder = tmp_path / "sounds"
    shutil.copytree(tagged, folder)  # with the times of the files
    session = Session(folder, str(model))
    session.worker.model = patchout.load(model, "cpu")
    yield session
    session.close()


@pytest.fixture
def client(session: Session) -> TestClient:
    """A browser on the page."""
    return TestClient(application(session, TOKEN), base_url=ADDRESS, raise_server_exceptions=True)


def files(client: TestClient, **query: str) -> list[str]:
    """The list of the page."""
    return [row["file"] for row in client.get("api/sounds", params=query).json()["rows"]]


def label(client: TestClient, file: str, *labels: str) -> Any:
    """Label a whole sound."""
    after = {"start": 0, "end": None, "labels": list(labels)}
    return client.post("api/label", json={"file": file, "before": None, "after": after})


# -- what it shows -------------------------------------------------------------------------------------------


def test_the_page_and_its_parts_are_served_and_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    static = Path(patchout.__file__).parent / "web" / "static"
    for path in static.rglob("*.*"):
        assert client.get(path.relative_to(static).as_posix()).status_code == 200
        if path.parent.name == "static":
            assert "https://" not in path.read_text(encoding="utf-8")


def test_a_sound_has_the_tags_and_events_of_the_command(client: TestClient, session: Session) -> None:
    answer = client.get("api/sound", params={"file": "deep/long.wav"}).json()
    tags = patchout.tag(session.model(), session.folder / "deep" / "long.wav", top=10, events=EventRule())
    expected = tags.to_dict()
    assert [tag["label"] for tag in answer["tags"]] == [tag["label"] for tag in expected["tags"]]
    assert answer["tags"][0]["score"] == pytest.approx(expected["tags"][0]["score"], abs=2e-4)
    assert [event["label"] for event in answer["events"]] == [event["label"] for event in expected["events"]]
    assert answer["duration"] == 3.5


def test_what_was_heard_is_kept_for_the_next_day(session: Session) -> None:
    assert session.state()["tagged"] == 5
    assert session.state()["failed"] == 1


def test_a_sound_that_cannot_be_read_says_why(client: TestClient) -> None:
    assert "not audio" in client.get("api/sound", params={"file": "broken.wav"}).json()["error"]


def test_nothing_is_known_to_be_like_a_sound_that_cannot_be_read(client: TestClient) -> None:
    answer = client.get("api/similar", params={"file": "broken.wav", "start": "0", "end": "1"})
    assert (answer.status_code, "not audio" in answer.json()["error"]) == (422, True)


def test_a_store_that_cannot_be_read_is_told_in_words(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(session.index, "analysis", fail)
    answer = client.get("api/sound", params={"file": "tone-0.wav"})
    assert answer.status_code == 500
    assert "(disk I/O error): start the page again" in answer.json()["error"]


@pytest.mark.parametrize("endpoint", ["track", "picture"])
def test_over_time_a_sound_that_cannot_be_read_says_why(
    endpoint: str, client: TestClient, session: Session
) -> None:
    samples = np.full(61 * RATE, np.nan, np.float32)  # with a length by its header
    soundfile.write(session.folder / "nan.wav", samples, RATE, subtype="FLOAT")
    session.index.scan()
    session.worker.step()
    part = {"file": "nan.wav", "start": "0", "end": "61"}
    answer = client.get(f"api/{endpoint}", params=part)
    error = client.get("api/sound", params=part).json()["error"]
    assert (answer.status_code, answer.json()["error"]) == (422, error)


def test_the_list_is_sorted_and_searched(client: TestClient) -> None:
    assert files(client, sort="name")[:2] == ["broken.wav", "deep/long.wav"]
    assert files(client, search="tone 1") == ["tone-1.wav"]
    rows = client.get("api/sounds", params={"sort": "score"}).json()["rows"]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_least_certain_sounds_come_first_and_labelled_ones_last(client: TestClient, session: Session) -> None:
    first, *rest = files(client, sort="uncertain")
    margins = [session.index.sounds[file].summary.margin for file in (first, *rest)]  # type: ignore[union-attr]
    assert margins == sorted(margins)
    label(client, first, "dog")
    assert files(client, sort="uncertain") == [*rest, first]


def test_a_list_that_is_paged_through_keeps_its_order(client: TestClient) -> None:
    page = client.get("api/sounds", params={"sort": "uncertain", "count": 2}).json()
    label(client, page["rows"][0]["file"], "dog")
    second = {"first": 2, "count": 9, "order": page["order"]}
    rows = client.get("api/sounds", params=second).json()["rows"]
    assert len({row["file"] for row in (*page["rows"], *rows)}) == 5


def test_scores_over_time_are_those_of_the_part_that_is_shown(client: TestClient) -> None:
    part = {"file": "deep/long.wav", "start": "2", "end": "3.5"}
    track = client.get("api/track", params=part).json()
    assert len(track["labels"]) == len(track["scores"]) == 3
    assert 1 <= min(track["times"]) <= max(track["times"]) <= 3.5


def test_the_spectrogram_is_a_picture(client: TestClient) -> None:
    part = {"file": "deep/long.wav", "start": "0", "end": "3.5"}
    assert client.get("api/picture", params=part).content.startswith(b"\x89PNG")


def test_the_most_similar_sounds_are_the_nearest_embeddings(client: TestClient) -> None:
    part = {"file": "tone-0.wav", "start": "0", "end": "1"}
    rows = client.get("api/similar", params=part).json()["rows"]
    similarity = [row["similarity"] for row in rows]
    assert {row["file"] for row in rows} == {"tone-1.wav", "tone-2.wav", "deep/long.wav"}
    assert similarity == sorted(similarity, reverse=True)


@pytest.mark.parametrize("length_s", [0.3, 1.0, 1.4, 2.0, 2.6])
def test_the_end_of_a_sound_has_an_embedding(length_s: float, client: TestClient, session: Session) -> None:
    write_wav(session.folder / "end.wav", tone(length_s))
    session.index.scan()
    session.worker.step()
    rows = session.index.embeddings()
    spans = [span for part, _ in rows for span in part if span[0] == "end.wav"]
    window_s = Embedder(session.model(), mid_level(session.model().config)).scene_window / RATE
    assert spans[-1][1:] == pytest.approx((max(0.0, length_s - window_s), length_s))
    part = {"file": "end.wav", "start": str(length_s - 0.1), "end": str(length_s)}
    assert client.get("api/similar", params=part).status_code == 200


# -- sound in ranges -----------------------------------------------------------------------------------------


def test_a_file_is_served_in_ranges(client: TestClient, session: Session) -> None:
    content = (session.folder / "tone-0.wav").read_bytes()
    whole = client.get("api/audio", params={"file": "tone-0.wav"})
    part = client.get("api/audio", params={"file": "tone-0.wav"}, headers={"Range": "bytes=100-199"})
    assert whole.content == content
    assert (part.status_code, part.content) == (206, content[100:200])


@pytest.mark.parametrize("span", [(0, None), (0, 43), (30, 99), (1001, 40_000), (100_001, None)])
def test_what_no_browser_plays_is_decoded_in_the_same_ranges(
    span: tuple[int, int | None], client: TestClient, session: Session
) -> None:
    soundfile.write(session.folder / "odd.aiff", tone(2.0), RATE, format="AIFF", subtype="PCM_16")
    session.index.scan()
    whole = client.get("api/audio", params={"file": "odd.aiff"}).content
    start, end = span
    asked = {"Range": f"bytes={start}-{'' if end is None else end}"}
    part = client.get("api/audio", params={"file": "odd.aiff"}, headers=asked)
    assert part.content == whole[start : None if end is None else end + 1]
    assert part.headers["content-range"].endswith(f"/{len(whole)}")
    assert whole[:4] == b"RIFF"
    samples = np.frombuffer(whole[44:], "<i2") / 2**15
    assert samples == pytest.approx(tone(2.0), abs=2e-4)


def test_a_range_beyond_the_end_is_refused(client: TestClient) -> None:
    query, asked = {"file": "tone-0.wav", "decoded": "1"}, {"Range": "bytes=99999999-"}
    assert client.get("api/audio", params=query, headers=asked).status_code == 416


def test_ten_gigabytes_are_served_in_ranges_at_once(client: TestClient, session: Session) -> None:
    size = 10 * 2**30
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16,
                       b"data", 0)  # fmt: skip
    with (session.folder / "huge.wav").open("wb") as file:
        file.write(head)
        file.truncate(size)
    session.index.scan()
    started = time.process_time()
    asked = {"Range": f"bytes={size - 1000}-"}
    part = client.get("api/audio", params={"file": "huge.wav"}, headers=asked)
    assert (part.status_code, len(part.content)) == (206, 1000)
    assert client.get("api/sound", params={"file": "huge.wav"}).json()["duration"] > 3600
    picture = {"file": "huge.wav", "start": "167770", "end": "167772"}  # beyond 4 GB, at the far end
    assert client.get("api/picture", params=picture).status_code == 200
    assert time.process_time() - started < 5


# -- labels --------------------------------------------------------------------------------------------------


def test_a_label_is_on_the_disk_when_it_is_confirmed(client: TestClient, session: Session) -> None:
    answer = label(client, "tone-0.wav", "dog", "rain")
    assert answer.json()["labels"][0]["labels"] == ["dog", "rain"]
    assert "tone-0.wav,0,,dog;rain," in (session.folder / "labels.csv").read_text()


def test_a_conflict_is_told_as_one(client: TestClient) -> None:
    label(client, "tone-0.wav", "dog")
    answer = label(client, "tone-0.wav", "cat")
    assert answer.status_code == 409
    assert "is dog by" in answer.json()["error"]


def test_a_broken_list_is_told_and_kept(client: TestClient, session: Session) -> None:
    (session.folder / "labels.csv").write_text("file,labels\ntone-0.wav\n")
    assert "line 2" in client.get("api/state").json()["problems"][0]
    assert label(client, "tone-1.wav", "dog").status_code == 422
    assert (session.folder / "labels.csv").read_text() == "file,labels\ntone-0.wav\n"
    assert len(files(client)) == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_shown_without_labels(
    client: TestClient, session: Session
) -> None:
    session.folder.chmod(0o500)
    try:
        assert label(client, "tone-0.wav", "dog").status_code == 403
    finally:
        session.folder.chmod(0o700)


def test_no_permission_to_write_is_told(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert label(client, "tone-0.wav", "dog").status_code == 403
    assert "no permission to write" in client.get("api/state").json()["problems"][0]


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("http://127.0.0.1:8000/api/state", {}),
        ("http://127.0.0.1:8000/wrong/api/state", {}),
        (f"{ADDRESS}/api/state", {"Host": "evil.example"}),
        (f"{ADDRESS}/api/state", {"Origin": "https://evil.example"}),
        (f"{ADDRESS}/api/state", {"Sec-Fetch-Site": "cross-site"}),
    ],
    ids=["no token", "wrong token", "host", "origin", "site"],
)
def test_strangers_are_refused(address: str, headers: dict[str, str], client: TestClient) -> None:
    assert client.get(address, headers=headers).status_code == 403


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "deep/../../secret.wav", "", "labels.csv"])
@pytest.mark.parametrize("endpoint", ["sound", "audio", "picture", "track", "similar"])
def test_only_sounds_of_the_folder_are_served(
    endpoint: str, name: str, client: TestClient, session: Session
) -> None:
    write_wav(session.folder.parent / "secret.wav", tone(1.0))
    part = {"file": name, "start": "0", "end": "1"}
    assert client.get(f"api/{endpoint}", params=part).status_code == 404


@pytest.mark.parametrize("path", ["../x", "..%2f..%2fserver.py", "wavesurfer/../../server.py"])
def test_no_file_beside_the_page_is_served(path: str, client: TestClient) -> None:
    assert client.get(f"{ADDRESS}/{path}").status_code in (403, 404)


@pytest.mark.parametrize("name", ["../../x.md", "1/../../labels.csv", "1/report.md", "x/report.md"])
def test_only_reports_are_served(name: str, client: TestClient) -> None:
    assert client.get("api/report", params={"file": name}).status_code == 404


@pytest.mark.parametrize(
    ("query", "part"),
    [({"first": "-1"}, "sounds"), ({"sort": "size"}, "sounds"), ({"start": "2", "end": "1"}, "track"),
     ({"start": "nan", "end": "1"}, "track"), ({}, "picture")],
)  # fmt: skip
def test_nonsense_is_refused_in_words(query: dict[str, str], part: str, client: TestClient) -> None:
    answer = client.get(f"api/{part}", params={"file": "tone-0.wav", **query})
    assert (answer.status_code, "error" in answer.json()) == (422, True)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"after": {"start": 0}},
        {"after": 3},
        {"after": {"labels": []}},
        {"after": {"start": "x", "labels": ["a"]}},
    ],
)
def test_labels_that_make_no_sense_are_refused(body: dict[str, Any], client: TestClient) -> None:
    assert client.post("api/label", json={"file": "tone-0.wav", **body}).status_code == 422


def test_a_form_of_another_site_cannot_change_anything(client: TestClient) -> None:
    answer = client.post(
        "api/label", content=b'{"file": "tone-0.wav"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 422


# -- what changes under it -----------------------------------------------------------------------------------


def test_a_file_that_changes_is_heard_again(client: TestClient, session: Session) -> None:
    write_wav(session.folder / "tone-0.wav", tone(2.0))
    answer = client.get("api/sound", params={"file": "tone-0.wav"}).json()
    assert (answer["tagged"], answer["duration"], answer["tags"]) == (False, 2.0, [])
    session.start()
    until(lambda: session.index.sounds["tone-0.wav"].summary)
    assert client.get("api/sound", params={"file": "tone-0.wav"}).json()["tagged"]


def test_a_folder_that_disappears_is_told_and_its_list_stays(client: TestClient, session: Session) -> None:
    session.folder.rename(session.folder.with_name("away"))
    session.index.scan()
    assert "is gone" in client.get("api/state").json()["problems"][0]
    assert client.get("api/audio", params={"file": "tone-0.wav"}).status_code == 404
    assert len(files(client)) == 5
    session.folder.with_name("away").rename(session.folder)
    session.index.scan()
    assert client.get("api/state").json()["problems"] == []


def test_results_that_are_damaged_are_computed_again(session: Session) -> None:
    session.index.close()
    session.index.store.write_bytes(b"no database" * 1000)
    index = SoundIndex(session.folder, session.index.store)
    index.scan()
    assert len(index.untagged()) == 5
    index.close()


def test_a_sound_that_is_looked_at_is_tagged_before_the_others(session: Session) -> None:
    for number in range(200):
        write_wav(session.folder / f"a{number:03}.wav", tone(0.1))
    write_wav(session.folder / "z.wav", tone(1.0))
    session.index.scan()
    session.worker.want("z.wav")
    session.start()
    until(lambda: session.index.sounds["z.wav"].summary)
    assert len(session.index.untagged()) > 100


def test_sounds_that_share_batches_have_progress_of_their_own_and_are_read_once(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[tuple[str, float]] = []
    reads: list[str] = []

    def watched(model: Tagger, paths: Iterable[str], on_block: Callable[[float], None]) -> Iterator[Analysis]:
        def on_each_block(seconds: float) -> None:
            state = client.get("api/state").json()
            progress.append((state["current"], round(state["seconds"] + seconds, 1)))
            if len(progress) == 2:
                for number in (0, 1, 3):
                    client.get("api/sound", params={"file": f"new-{number}.wav"})
            on_block(seconds)

        def each() -> Iterator[str]:
            for path in paths:
                reads.append(Path(path).name)
                yield path

        return analyse(model, each(), on_each_block)

    monkeypatch.setattr("patchout.web.worker.analyse", watched)
    for number in range(4):
        write_wav(session.folder / f"new-{number}.wav", tone(0.2 + 0.1 * number))
    session.index.scan()
    session.worker.step()
    assert reads == ["new-0.wav", "new-1.wav", "new-3.wav", "new-2.wav"]
    assert progress == [("new-0.wav", 0.2), ("new-1.wav", 0.3), ("new-3.wav", 0.5), ("new-2.wav", 0.4)]
    assert session.index.untagged() == []


def test_a_full_disk_ends_tagging_and_is_told(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(session.index, "save", full)
    write_wav(session.folder / "new.wav", tone(0.5))
    session.index.scan()
    session.start()
    until(lambda: session.worker.error)
    assert "tagging has stopped (database or disk is full)" in client.get("api/state").json()["problems"][0]


# -- learning ------------------------------------------------------------------------------------------------


def test_one_class_is_too_few_to_learn(client: TestClient) -> None:
    label(client, "tone-0.wav", "dog")
    answer = client.post("api/learn", json={})
    assert (answer.status_code, "two classes" in answer.json()["error"]) == (422, True)


def test_a_class_and_what_is_rejected_as_it_are_enough_to_learn(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(Learner, "start", lambda learner, init, **options: started.append(init))
    label(client, "tone-0.wav", "dog")
    label(client, "tone-1.wav", "!cat")
    assert client.post("api/learn", json={}).status_code == 422
    label(client, "tone-2.wav", "!dog")
    assert client.post("api/learn", json={}).status_code == 200
    assert started == [session.model_name]
    assert client.get("api/state").json()["names"] == ["dog"]


def test_a_second_learner_is_refused_and_a_page_that_is_reloaded_sees_the_first(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import time; print('epoch', flush=True); time.sleep(60)"
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: PLAIN([sys.executable, "-c", script],
                                                                           **options))  # fmt: skip
    label(client, "tone-0.wav", "dog")
    label(client, "tone-1.wav", "rain")
    assert client.post("api/learn", json={}).json()["status"] == "running"
    assert client.post("api/learn", json={}).status_code == 409
    learning = client.get("api/state").json()["learning"]
    assert learning["status"] == "running"
    assert learning["command"].startswith("patchout train folder --data")
    client.post("api/stop", json={})
    until(lambda: client.get("api/state").json()["learning"]["status"] == "failed")


PLAIN = subprocess.Popen


def learnt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_done: Callable[[Path], None]) -> Learner:
    """A learner whose training has ended with a model."""

    def popen(words: list[str], **options: Any) -> Any:
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        (out / "model.safetensors").touch()
        return PLAIN([sys.executable, "-c", "pass"], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    learner = Learner(tmp_path / "labels.csv", tmp_path, lambda run, same: on_done(run))
    learner.start("sounds-tiny", all_layers=False)
    until(lambda: learner.status != "running")
    return learner


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk is full"), RuntimeError("out of memory")])
def test_a_model_that_cannot_be_adopted_is_a_failed_training(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(run: Path) -> None:
        raise error

    state = learnt(monkeypatch, tmp_path, fail).state("sounds-tiny")
    assert (state["status"], state["lines"]) == ("failed", [str(error)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_training_has_ended_although_its_log_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(run: Path) -> None:
        log = run.with_name(f"{run.name}.log")
        log.unlink()
        log.mkdir()
        raise OSError("disk is full")

    assert learnt(monkeypatch, tmp_path, fail).status == "failed"


@pytest.fixture
def run(session: Session) -> Path:
    """What a training of the page leaves."""
    folder = session.learner.folder / "runs" / "1"
    folder.mkdir(parents=True)
    checkpoint.save(Passt(tiny_config(), rng=augment.keyed("run")), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("part", ["checkpoint.zoo.load", "web.rescoring.adopt", "web.session.write_json"])
def test_a_model_that_cannot_be_adopted_leaves_the_page_with_the_one_before(
    part: str, run: Path, session: Session, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    session.start()
    monkeypatch.setattr(f"patchout.{part}", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.learner.on_done(run, True)
    write_wav(session.folder / "new.wav", tone(0.5))
    session.index.scan()
    session.worker.want("new.wav")
    until(lambda: session.index.sounds["new.wav"].summary)
    assert (session.model_name, session.generation) == (str(model), 0)


def test_a_model_is_adopted_while_the_page_answers_and_is_loaded_once(
    run: Path, client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchout.checkpoint import zoo
    from patchout.web import rescoring

    lists: list[list[str]] = []
    loads: list[str] = []
    adopt, load = rescoring.adopt, zoo.load

    def watched(old: SoundIndex, new: SoundIndex, tagger: Tagger) -> None:
        request = threading.Thread(target=lambda: lists.append(files(client)), daemon=True)
        request.start()
        request.join(10)
        assert len(lists) == 1
        adopt(old, new, tagger)

    def counted(name: str, device: str) -> Tagger:
        loads.append(name)
        return load(name, device)

    monkeypatch.setattr(rescoring, "adopt", watched)
    monkeypatch.setattr(zoo, "load", counted)
    before = session.worker, session.index
    session.start()
    session.learner.on_done(run, True)
    assert session.model() is session.worker.model
    until(lambda: not session.index.untagged())
    assert loads == [session.model_name] == [str(run / "model.safetensors")]
    assert (session.worker, session.index) != before
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        before[1].scan()


def test_the_command_trains_the_last_layer_or_all(tmp_path: Path) -> None:
    learner = Learner(tmp_path / "labels.csv", tmp_path, lambda run, same: None)
    words = learner.arguments("sounds-tiny", all_layers=False)
    assert words[: words.index("--init")] == [
        *("train", "folder", "--data", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "runs" / "1"))
    ]
    assert words[words.index("--freeze") + 1] == "encoder"
    assert "--freeze" not in learner.arguments("sounds-tiny", all_layers=True)


@pytest.mark.slow
def test_learning_sorts_the_list_by_the_new_model(client: TestClient, session: Session) -> None:
    for number in range(6):
        name, hz = f"low-{number}.wav", 150 + 5 * number
        write_wav(session.folder / name, tone(1.0, hz if number % 2 else 3000 + hz))
    session.index.scan()
    session.start()
    until(lambda: not session.index.untagged())
    for number in range(6):
        label(client, f"low-{number}.wav", "low" if number % 2 else "high")
    client.post("api/learn", json={})
    until(lambda: client.get("api/state").json()["learning"]["status"] != "running")
    state = client.get("api/state").json()
    assert state["learning"]["status"] == "done", state["learning"]
    assert state["model"].endswith("model.safetensors")
    assert state["generation"] == 1
    rows = client.get("api/sounds", params={"search": "tone"}).json()["rows"]
    assert {row["label"] for row in rows} <= {"low", "high"}
    assert "Report of" in client.get("api/report", params={"file": state["learning"]["report"]}).text
    assert Session(session.folder, "").model_name == state["model"]


# -- many sounds, and the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_many_sounds_are_listed_in_pages_at_once(tmp_path: Path, model: Path) -> None:
    sound = write_wav(tmp_path / "source.wav", tone(0.1))
    for number in range(3000):
        (tmp_path / f"{number // 500}").mkdir(exist_ok=True)
        os.link(sound, tmp_path / f"{number // 500}" / f"{number}.wav")
    session = Session(tmp_path, str(model))
    client = TestClient(application(session, TOKEN), base_url=ADDRESS)
    started = time.process_time()
    page = client.get("api/sounds", params={"sort": "uncertain", "search": "wav"}).json()
    for first in range(0, 500, 50):
        client.get("api/sounds", params={"first": first, "order": page["order"]})
    assert page["total"] == 3001
    assert time.process_time() - started < 2
    session.close()


def test_a_port_in_use_is_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_command(["web", str(tmp_path), "--port", str(port), "--no-open"]) == 1
    assert f"port {port}: Address already in use: give another --port" in capfd.readouterr().err


def test_a_folder_that_is_none_is_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(["web", str(tmp_path / "none"), "--no-open"]) == 1
    assert "no such folder" in capfd.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tagged: Path, model: Path) -> None:
    command = [sys.executable, "-m", "patchout", "web", str(tagged), "--model", str(model), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        address = process.stdout.readline().strip()
        from urllib.request import urlopen

        with urlopen(f"{address}api/state") as answer:
            assert b'"total":5' in answer.read()
        process.send_signal(2)
        assert process.wait() in (0, 130)
        watchdog.cancel()
