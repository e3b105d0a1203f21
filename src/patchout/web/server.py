"""The HTTP server of the page: its files, and an interface in JSON for everything that it does."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from patchout.data.negatives import NEGATIVE, is_negative
from patchout.errors import InputError
from patchout.web import audio
from patchout.web.analysis import LONG_S, picture_between
from patchout.web.guard import Guard
from patchout.web.labels import ConflictError, Segment, segment
from patchout.web.learner import BusyError
from patchout.web.session import Session
from patchout.web.sound_index import Analysis, is_tagged

MAX_PAGE = 200  # rows of the list
MAX_POINTS = 1000  # over time
SIMILAR = 50

Answer = Callable[[Request], Response]


def application(session: Session, token: str) -> ASGIApp:
    """The ASGI application of a session, behind its token."""
    routes = _Routes(session)
    changing = {"label": routes.label, "learn": routes.learn, "stop": routes.stop}
    reading = {
        name: getattr(routes, name)
        for name in ("state", "sounds", "sound", "audio", "picture", "track", "similar", "report")
    }
    paths = [Route(f"/api/{name}", answer) for name, answer in reading.items()]
    paths += [Route(f"/api/{name}", _posted(answer), methods=["POST"]) for name, answer in changing.items()]
    static = StaticFiles(directory=Path(__file__).parent / "static", html=True)
    handlers = {ValueError: _refused, OSError: _failed, sqlite3.Error: _unread}
    app = Starlette(routes=[*paths, Mount("/", static)], exception_handlers=handlers)
    return Guard(app, token)


def _posted(answer: Callable[[Any], Any]) -> Callable[[Request], Any]:
    """An endpoint that passes JSON on and answers in JSON."""

    async def endpoint(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise InputError("send JSON")
        body = await request.json()
        if not isinstance(body, dict):
            raise InputError("send a JSON object")
        return JSONResponse(await run_in_threadpool(answer, body))

    return endpoint


def _refused(request: Request, error: Exception) -> Response:
    is_late = isinstance(error, ConflictError | BusyError)
    return JSONResponse({"error": str(error)}, 409 if is_late else 422)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    status = (
        404 if isinstance(error, FileNotFoundError) else 403 if isinstance(error, PermissionError) else 500
    )
    reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    return JSONResponse({"error": reason}, status)


def _unread(request: Request, error: Exception) -> Response:
    reason = f"what is known of the sounds cannot be read or written ({error}): start the page again"
    return JSONResponse({"error": reason}, 500)


class _Routes:
    """The endpoints, each a method."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def state(self, request: Request) -> Response:
        """Progress, problems, classes."""
        return JSONResponse(self.session.state())

    def sounds(self, request: Request) -> Response:
        """A page of the list."""
        query = request.query_params
        first, count = _whole(query.get("first", "0")), min(MAX_PAGE, _whole(query.get("count", "50")))
        chosen = {name: query.get(name, default) for name, default in (("sort", "name"), ("search", ""))}
        order = query.get("order", "")
        return JSONResponse(self.session.page(**chosen, first=first, count=count, order=order))

    def sound(self, request: Request) -> Response:
        """All about one sound; tagged at once if it was not."""
        session, file = self.session, request.query_params.get("file", "")
        sound = session.index.refreshed(file)
        path = session.index.path(file)
        analysis = session.index.analysis(file)
        if not is_tagged(sound):
            session.worker.want(file)
        duration_s = sound.summary.duration_s if sound.summary else 0.0
        peaks = analysis.peaks if analysis else np.zeros(0, np.uint8)
        details = analysis.details if analysis else {}
        return JSONResponse(
            {
                "file": file,
                "version": f"{sound.size_bytes}-{sound.modified_s}",
                "duration": duration_s or _length(path),
                "tagged": is_tagged(sound),
                "error": sound.summary.error if sound.summary else "",
                "native": path.suffix.lower() in audio.NATIVE,
                "tags": details.get("tags", []),
                "events": details.get("events", []),
                "warning": details.get("warning"),
                "peaks": peaks.tolist(),
                "labels": [_as_json(row) for row in session.labels.of(file)],
            }
        )

    def audio(self, request: Request) -> Response:
        """The file itself in ranges; with `decoded`, or where no browser plays it, as a WAV."""
        query = request.query_params
        path = self.session.index.path(query.get("file", ""))
        if path.suffix.lower() in audio.NATIVE and not query.get("decoded"):
            return FileResponse(path)
        summary = self.session.index.sounds[query["file"]].summary
        size = audio.wav_bytes(summary.duration_s if summary and summary.duration_s else audio.length_s(path))
        part = audio.byte_range(request.headers.get("range", ""), size)
        if part is None:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(part[1] - part[0])}
        is_part = "range" in request.headers
        if is_part:
            headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
        content = audio.wav_range(path, size, *part)
        return StreamingResponse(content, 206 if is_part else 200, headers, "audio/wav")

    def picture(self, request: Request) -> Response:
        """The log-mel of a part of a sound, as PNG."""
        file, start_s, end_s = self._part(request)
        path = str(self.session.index.path(file))
        if end_s - start_s <= LONG_S:
            drawn = picture_between(path, self.session.model().config, start_s, end_s)
        else:
            analysis = self._analysis(file)
            columns = _columns(analysis.picture.shape[1], analysis.summary.duration_s, start_s, end_s)
            drawn = analysis.picture[:, columns]
            drawn = drawn[:, np.linspace(0, drawn.shape[1] - 1, min(2000, drawn.shape[1])).astype(int)]
        return Response(audio.png(drawn), media_type="image/png", headers={"Cache-Control": "max-age=600"})

    def track(self, request: Request) -> Response:
        """Scores over time of a part of a sound, the highest of each of at most MAX_POINTS stretches."""
        file, start_s, end_s = self._part(request)
        analysis = self._analysis(file)
        inside = np.flatnonzero((analysis.times_s >= start_s - 1) & (analysis.times_s <= end_s + 1))
        starts = inside[:: max(1, len(inside) // MAX_POINTS)]
        track, times_s = analysis.track[: inside[-1] + 1] if len(inside) else analysis.track[:0], []
        pooled = np.zeros((0, 0))
        if len(starts):
            pooled = np.maximum.reduceat(track.astype(np.float32), starts, axis=0)
            times_s = analysis.times_s[starts].round(3).tolist()
        rows = pooled.T.round(3).tolist()
        labels = analysis.details["track"]
        return JSONResponse({"times": times_s, "labels": labels, "scores": rows})

    def similar(self, request: Request) -> Response:
        """The parts of all sounds that are most like one."""
        hits = self.session.index.nearest(*self._part(request), SIMILAR)
        rows = [
            {
                **self.session.row(file, self.session.labels.of(file)),
                "start": start_s,
                "similarity": round(s, 4),
            }
            for file, start_s, s in hits
        ]
        return JSONResponse({"rows": rows, "total": len(rows), "first": 0})

    def report(self, request: Request) -> Response:
        """The report of a training, and its pictures."""
        run, _, name = request.query_params.get("file", "").partition("/")
        folder = self.session.learner.folder / "runs" / run / "report"
        if not run.isdigit() or name not in {path.name for path in folder.glob("*") if path.is_file()}:
            raise FileNotFoundError(2, "no such report", name)
        return FileResponse(folder / name, media_type=None if name.endswith(".png") else "text/plain")

    def label(self, body: dict[str, Any]) -> dict[str, Any]:
        """Add, change or delete a labelled segment."""
        file = str(body.get("file", ""))
        self.session.index.path(file)
        before, after = (_segment(file, body.get(name)) for name in ("before", "after"))
        if before is None and after is None:
            raise InputError("neither a segment before nor one after")
        self.session.labels.change(before, after, by=self.session.user)
        return {"labels": [_as_json(row) for row in self.session.labels.of(file)]}

    def learn(self, body: dict[str, Any]) -> dict[str, Any]:
        """Train the last layer, or with `whole` the whole model, on the labels."""
        names = {name for row in self.session.labels.segments() for name in row.labels}
        classes = {name for name in names if not is_negative(name)}
        if not (len(classes) > 1 or any(f"{NEGATIVE}{name}" in names for name in classes)):
            others = "or of one, and background, or sounds that are rejected as it"
            raise InputError(f"label sounds of two classes or more ({others}), then it can learn")
        config = self.session.model().config
        longest_s = config.max_samples // (config.mel.sample_rate // 10) / 10  # in tenths
        name, is_whole = self.session.model_name, bool(body.get("whole"))
        self.session.learner.start(name, all_layers=is_whole, longest_s=longest_s)
        return self.session.learner.state(self.session.model_name)

    def stop(self, body: dict[str, Any]) -> dict[str, Any]:
        """End a training."""
        self.session.learner.stop()
        return self.session.learner.state(self.session.model_name)

    def _part(self, request: Request) -> tuple[str, float, float]:
        """File, start and end in seconds."""
        query = request.query_params
        try:
            start_s, end_s = float(query["start"]), float(query["end"])
        except (KeyError, ValueError):
            raise InputError("give start and end in seconds") from None
        if not 0 <= start_s < end_s < 1e7:
            raise InputError(f"no part from {start_s:g} s to {end_s:g} s")
        self.session.index.path(query.get("file", ""))
        return query["file"], start_s, end_s

    def _analysis(self, file: str) -> Analysis:
        analysis = self.session.index.analysis(file)
        if analysis is None or analysis.summary.is_provisional:
            self.session.worker.want(file)
            raise InputError(f"{file}: is not tagged yet")
        if analysis.summary.error:
            raise InputError(analysis.summary.error)
        return analysis


def _length(path: Path) -> float:
    """The length by the header, 0 where it says nothing."""
    try:
        return audio.length_s(path)
    except InputError:
        return 0.0


def _columns(count: int, duration_s: float, start_s: float, end_s: float) -> slice:
    """The columns of a part of a picture, at least one."""
    first = min(count - 1, int(start_s / duration_s * count))
    return slice(first, max(first + 1, round(end_s / duration_s * count)))


def _segment(file: str, value: Any) -> Segment | None:
    """A segment as the page sends it."""
    if value is None:
        return None
    try:
        start_s, end_s = float(value.get("start") or 0.0), value.get("end")
        return segment(
            file, start_s, None if end_s is None else float(end_s), list(map(str, value["labels"]))
        )
    except (AttributeError, KeyError, TypeError):
        raise InputError("a segment has start, end and labels") from None


def _as_json(row: Segment) -> dict[str, Any]:
    labels = {"labels": list(row.labels), "by": row.by, "when": row.when}
    return {"start": row.start_s, "end": row.end_s, **labels}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{text!r} is no whole number")
    return int(text)
