"""One file over HTTP: whole, checked and continued where it stopped, or not there at all."""

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

Progress = Callable[[int, int | None], None]  # bytes done, and bytes in all where the server says so

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
KNOCK_S = 5.0
ATTEMPTS = 3  # in a row without a new byte
BACKOFF_S = 0.5  # doubled by every fruitless attempt
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError)
PASSING = (408, 416, 425, 429)  # answers below 500 that another attempt may change


class DownloadError(OSError):
    """A file that could not be brought whole; the text says how to bring it by hand."""


def download(url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Bring `url` to `path`; a file that is already there is only checked.

    An unfinished file waits as `<path>.part` and is continued if the server still has the same one. The hash must be
    `sha256`, else the one in `<path>.sha256`, which the first use writes. Two processes take turns.
    Raises DownloadError.
    """
    from filelock import FileLock  # 0.1 s

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have brought it while this one waited
                return _bring(url, path, sha256, progress)
    expected, got = expected_sha256(path, sha256), file_sha256(path)
    if expected and got != expected:
        raise DownloadError(
            f"{path} has changed: its SHA-256 is {got}, expected {expected}; delete it (and {path.name}.sha256, if the "
            f"change was wanted) to have it brought again from {url}"
        )
    return _record(path, got)


def unreachable(url: str) -> str:
    """Why nothing answers at a server, "" if it does; the hub's own client tries for half a minute to find out."""
    try:
        urlopen(Request(url, method="HEAD", headers={"User-Agent": "patchout"}), timeout=KNOCK_S).close()
    except HTTPError as error:  # an answer, too
        error.close()
    except NETWORK_ERRORS as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # other tools trust others
            return f"{url} does not answer ({reason})"
    return ""


def by_hand(url: str, path: Path, reason: str) -> DownloadError:
    """The error that says what to do without a network."""
    return DownloadError(
        f"cannot download {url} ({reason}); bring it by hand: get it on another machine and put it at {path}"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def expected_sha256(path: Path, published: str | None) -> str | None:
    """The published hash, else the one that the first use wrote into `<path>.sha256`, else None."""
    record = Path(f"{path}.sha256")
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return published or (words[0] if words else None)


def _record(path: Path, sha256: str) -> None:
    """Remember a hash as `sha256sum -c` reads it; a shared cache that is read-only stays as it is."""
    record = Path(f"{path}.sha256")
    if not record.exists() and os.access(path.parent, os.W_OK):
        with write_aside(record) as aside:
            aside.write_text(f"{sha256}  {path.name}\n", encoding="utf-8")


def _bring(url: str, path: Path, sha256: str | None, progress: Progress | None) -> None:
    """Transfer, check, flush, rename."""
    part = Path(f"{path}.part")
    try:
        _transfer_all(url, part, progress)
    except (OSError, HTTPException) as error:  # OSError: the network's, and a full disk
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise by_hand(url, path, str(reason) or type(error).__name__) from error
    expected, got = expected_sha256(path, sha256), file_sha256(part)
    _validator_file(part).unlink(missing_ok=True)
    if expected and got != expected:
        part.unlink()
        raise by_hand(url, path, f"what came has SHA-256 {got}, expected {expected}")
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _record(path, got)


def _transfer_all(url: str, part: Path, progress: Progress | None) -> None:
    """Transfer until the file is whole; an answer that will not change, or attempts without a new byte, are the end."""
    most_bytes, fruitless = _size_bytes(part), 0
    while True:
        try:
            return _transfer(url, part, progress)
        except NETWORK_ERRORS as error:
            if isinstance(error, HTTPError):
                error.close()
                if error.code < 500 and error.code not in PASSING:
                    raise
            fruitless = 0 if _size_bytes(part) > most_bytes else fruitless + 1
            if fruitless == ATTEMPTS:
                raise
            most_bytes = max(most_bytes, _size_bytes(part))
        time.sleep(BACKOFF_S * 2**fruitless)


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Add to `part` what it lacks; a server that ignores ranges, or has another file by now, makes it start anew."""
    validator = _validator_file(part)
    done_bytes = _size_bytes(part) if validator.is_file() else 0
    request = Request(url, headers={"User-Agent": "patchout"})
    if done_bytes:
        request.add_header("Range", f"bytes={done_bytes}-")
        request.add_header("If-Range", validator.read_text(encoding="utf-8"))
    try:
        response = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416:  # nothing is left to send after this part: the next attempt starts anew
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
    """What names this very version of the file in If-Range; "" where the server gives nothing that may stand there."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_file(part: Path) -> Path:
    """Where the validator of an unfinished file waits beside it."""
    return Path(f"{part}.etag")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
