"""Download of a file over HTTP: resumed, verified by SHA-256, and renamed when it is whole."""

import hashlib
import os
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from patchout.files import write_aside

Progress = Callable[[int, int | None], None]  # bytes so far, and in total if the server says

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
HEAD_TIMEOUT_S = 5.0
ATTEMPTS = 3  # consecutive ones without a new byte
BACKOFF_S = 0.5  # doubled by every fruitless attempt
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError)
TRANSIENT = (408, 416, 425, 429)  # statuses below 500 that another attempt may change


class DownloadError(OSError):
    """A failed or altered download; the message says how to fetch the file by hand."""


def download(url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Download `url` to `path`; an existing file is only verified.

    An unfinished file stays as `<path>.part` and is resumed if the server still has the same one. The hash
    must be `sha256`, else the one in `<path>.sha256`, written at first use. Raises DownloadError.
    """
    from filelock import FileLock  # 0.1 s

    if not path.is_file():
        if is_offline():
            raise by_hand(url, path, "HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have downloaded it while this one waited
                return _fetch(url, path, sha256, progress)
    expected, digest = expected_sha256(path, sha256), file_sha256(path)
    if expected and digest != expected:
        raise DownloadError(
            f"{path} has changed: its SHA-256 is {digest}, expected {expected}; delete it (and "
            f"{path.name}.sha256, if the change was wanted) to have it brought again from {url}"
        )
    return _record(path, digest)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, which keeps downloads off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def unreachable(url: str) -> str:
    """Why a server does not answer, "" if it does; the hub's own client takes half a minute to give up."""
    try:
        request = Request(url, method="HEAD", headers={"User-Agent": "patchout"})
        urlopen(request, timeout=HEAD_TIMEOUT_S).close()
    except HTTPError as error:  # an answer
        error.close()
    except NETWORK_ERRORS as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # other clients may trust other certificates
            return f"{url} does not answer ({reason})"
    return ""


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors of huggingface_hub and of its HTTP client, which differs by version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def by_hand(url: str, path: Path, reason: str) -> DownloadError:
    """The error that tells how to install the file without a network."""
    hint = f"bring it by hand: get it on another machine and put it at {path}"
    return DownloadError(f"cannot download {url} ({reason}); {hint}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def expected_sha256(path: Path, published: str | None) -> str | None:
    """The published hash, else the one recorded in `<path>.sha256` at first use, else None."""
    record = Path(f"{path}.sha256")
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return published or (words[0] if words else None)


def _record(path: Path, sha256: str) -> None:
    """Record a hash in the format of `sha256sum -c`, unless the cache is read-only."""
    record = Path(f"{path}.sha256")
    if not record.exists() and os.access(path.parent, os.W_OK):
        with write_aside(record) as aside:
            aside.write_text(f"{sha256}  {path.name}\n", encoding="utf-8")


def _fetch(url: str, path: Path, sha256: str | None, progress: Progress | None) -> None:
    """Transfer, verify, flush, rename."""
    part = Path(f"{path}.part")
    try:
        _transfer_all(url, part, progress)
    except (OSError, HTTPException) as error:  # OSError: the network's, and a full disk
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise by_hand(url, path, str(reason) or type(error).__name__) from error
    expected, digest = expected_sha256(path, sha256), file_sha256(part)
    Path(f"{part}.etag").unlink(missing_ok=True)
    if expected and digest != expected:
        part.unlink()
        raise by_hand(url, path, f"what came has SHA-256 {digest}, expected {expected}")
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _record(path, digest)


def _transfer_all(url: str, part: Path, progress: Progress | None) -> None:
    """Transfer, and retry until the file is whole, an error is final, or `ATTEMPTS` bring no new byte."""
    most_bytes, fruitless = _size_bytes(part), 0
    while True:
        try:
            return _transfer(url, part, progress)
        except NETWORK_ERRORS as error:
            if isinstance(error, HTTPError):
                error.close()
                if error.code < 500 and error.code not in TRANSIENT:
                    raise
            fruitless = 0 if _size_bytes(part) > most_bytes else fruitless + 1
            if fruitless == ATTEMPTS:
                raise
            most_bytes = max(most_bytes, _size_bytes(part))
        time.sleep(BACKOFF_S * 2**fruitless)


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Resume `part`; it starts anew if the server ignores ranges or has another file by now."""
    validator = Path(f"{part}.etag")
    done_bytes = _size_bytes(part) if validator.is_file() else 0
    request = Request(url, headers={"User-Agent": "patchout"})
    if done_bytes:
        request.add_header("Range", f"bytes={done_bytes}-")
        request.add_header("If-Range", validator.read_text(encoding="utf-8"))
    try:
        response = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416:  # nothing is left after this part: the next attempt starts anew
            validator.unlink(missing_ok=True)
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("a web page came instead of the file: a proxy or a login page may stand in between")
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {done_bytes}-"):
            validator.unlink()
            raise HTTPException(f"asked for bytes {done_bytes}-, got {response.headers.get('Content-Range')}")
        if not continued:
            done_bytes = 0
            validator.unlink(missing_ok=True)
        with part.open("ab" if continued else "wb") as file:
            if not continued and (tag := _validator(response)):
                validator.write_text(tag, encoding="utf-8")
            left_bytes = response.headers.get("Content-Length")
            total_bytes = done_bytes + int(left_bytes) if left_bytes else None
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done_bytes += len(chunk)
                if progress:
                    progress(done_bytes, total_bytes)
    if total_bytes is not None and done_bytes != total_bytes:
        raise ConnectionError(f"the connection was cut after {done_bytes} of {total_bytes} bytes")


def _validator(response: HTTPResponse) -> str:
    """The version of the file for If-Range: a strong ETag or a date; "" if the server gives neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
