import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from patchout.checkpoint import download as module
from patchout.checkpoint.download import DownloadError, download, unreachable

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Site:
    """A server's one file and its manners; it keeps the headers of every request."""

    url: str
    body: bytes = BODY
    etag: str = '"first"'
    ranges: bool = True
    status: int = 200
    content_type: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)  # the next answers stop after so many bytes
    requests: list[dict[str, str]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(request.headers))
        start, status = 0, self.status
        if (
            self.ranges
            and request.headers.get("Range")
            and request.headers.get("If-Range", self.etag) == self.etag
        ):
            start, status = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-")), 206
        if start >= len(self.body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(status)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Type", self.content_type)
        request.send_header("Content-Length", str(len(self.body) - start))
        request.end_headers()
        stop = start + self.cuts.pop(0) if self.cuts else len(self.body)
        request.wfile.write(self.body[start:stop])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(f"http://127.0.0.1:{server.server_port}/weights.pt")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pt"


def test_a_file_comes_whole_and_leaves_nothing_unfinished(site: Site, path: Path) -> None:
    download(site.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY
    assert not list(path.parent.glob("*.part*"))


def test_progress_counts_up_to_the_size(site: Site, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(site.url, path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(BODY), len(BODY))


def test_the_first_use_records_the_hash_as_sha256sum_reads_it(site: Site, path: Path) -> None:
    download(site.url, path)
    assert Path(f"{path}.sha256").read_text() == f"{SHA256}  weights.pt\n"


def test_a_cut_connection_is_continued_where_it_stopped(site: Site, path: Path) -> None:
    site.cuts = [100_000]
    download(site.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY
    assert [request.get("Range") for request in site.requests] == [None, "bytes=100000-"]


def test_more_cuts_than_attempts_are_survived_while_bytes_come(site: Site, path: Path) -> None:
    site.cuts = [50_000] * (module.ATTEMPTS + 1)
    download(site.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY


def test_a_stopped_download_is_continued_by_the_next_call(site: Site, path: Path) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError, match="cut after 100000 of 256000 bytes"):
        download(site.url, path)
    download(site.url, path, sha256=SHA256)
    assert site.requests[-1]["Range"] == "bytes=100000-"
    assert path.read_bytes() == BODY


def test_a_server_that_ignores_ranges_starts_the_file_anew(site: Site, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    site.cuts, site.ranges = [100_000], False
    download(site.url, path, sha256=SHA256, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_half(site: Site, path: Path) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        download(site.url, path)
    site.body, site.etag = BODY[::-1], '"second"'
    download(site.url, path)
    assert path.read_bytes() == BODY[::-1]


def test_without_a_validator_the_file_starts_anew(site: Site, path: Path) -> None:
    site.cuts, site.etag = [100_000], ""
    download(site.url, path, sha256=SHA256)
    assert site.requests[1].get("Range") is None
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("waiting", [BODY, BODY + b"too long"], ids=["whole", "too long"])
def test_a_part_with_nothing_left_to_send_ends_well(site: Site, path: Path, waiting: bytes) -> None:
    path.parent.mkdir()
    Path(f"{path}.part").write_bytes(waiting)
    Path(f"{path}.part.etag").write_text(site.etag)
    download(site.url, path, sha256=SHA256)
    assert path.read_bytes() == BODY


def test_a_wrong_hash_names_both_and_keeps_nothing(site: Site, path: Path) -> None:
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256}, expected {'0' * 64}"):
        download(site.url, path, sha256="0" * 64)
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == []


def test_a_cached_file_that_changed_is_refused(site: Site, path: Path) -> None:
    download(site.url, path)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match="has changed"):
        download(site.url, path)


def test_a_file_brought_by_hand_is_recorded_without_a_request(site: Site, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(BODY)
    download(site.url, path)
    assert site.requests == []
    assert Path(f"{path}.sha256").exists()


def test_not_found_ends_at_once_and_says_how_to_bring_the_file(site: Site, path: Path) -> None:
    site.status = 404
    with pytest.raises(DownloadError) as caught:
        download(site.url, path)
    assert "404" in str(caught.value)
    assert site.url in str(caught.value)
    assert f"put it at {path}" in str(caught.value)
    assert len(site.requests) == 1


def test_a_busy_server_is_asked_again(site: Site, path: Path) -> None:
    site.status = 503
    with pytest.raises(DownloadError, match="503"):
        download(site.url, path)
    assert len(site.requests) == module.ATTEMPTS


def test_a_login_page_is_not_taken_for_the_file(site: Site, path: Path) -> None:
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        download(site.url, path)
    assert not path.exists()


def test_no_network_says_how_to_bring_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}/weights.pt"
    with pytest.raises(DownloadError, match="bring it by hand") as caught:  # the port is closed now
        download(url, path)
    assert "\n" not in str(caught.value)


def test_two_at_once_ask_the_server_once(site: Site, path: Path) -> None:
    threads = [threading.Thread(target=download, args=(site.url, path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.requests) == 1
    assert path.read_bytes() == BODY


def test_a_server_that_says_anything_is_there(site: Site) -> None:
    assert unreachable(site.url) == ""  # it refuses HEAD: an answer
    assert "does not answer" in unreachable("http://127.0.0.1:9")
