"""The server's addresses, as a WSGI application: for one lab's own machine, without accounts or encryption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlsplit

from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    LengthRequired,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
    ServiceUnavailable,
    TooManyRequests,
    UnsupportedMediaType,
)
from werkzeug.routing import Map, Rule
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from adatad_ds.serving.jobs import PAGE, RESULT, VIDEO, Job, Jobs, QueueFullError
from adatad_ds.serving.video_paths import OutsideError, file_inside

UPLOADS_AT_ONCE = 4
BLOCK_BYTES = 2**20
SPARE_BYTES = 2**30  # of the disk, which uploads leave free
MOST_JSON_BYTES = 10_000
LONGEST_NAME = 200
VIDEO_TYPES = {  # by container; whoever uploads a video chooses its suffix, which is not to make a page of it
    **dict.fromkeys((".mp4", ".m4v"), "video/mp4"),
    **dict.fromkeys((".mpg", ".mpeg"), "video/mpeg"),
    **{".mkv": "video/x-matroska", ".webm": "video/webm", ".avi": "video/x-msvideo", ".mov": "video/quicktime"},
    **{".ts": "video/mp2t", ".flv": "video/x-flv", ".wmv": "video/x-ms-wmv", ".ogv": "video/ogg"},
}
OTHER = "application/octet-stream"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

URLS = Map(
    [
        Rule("/", endpoint="home", methods=["GET"]),
        Rule("/health", endpoint="health", methods=["GET"]),
        Rule("/jobs", endpoint="list", methods=["GET"]),
        Rule("/jobs", endpoint="submit", methods=["POST"]),
        Rule("/jobs/<job_id>", endpoint="job", methods=["GET"]),
        Rule("/jobs/<job_id>", endpoint="remove", methods=["DELETE"]),
        Rule(f"/jobs/<job_id>/<any('{RESULT}','{PAGE}','{VIDEO}'):name>", endpoint="file", methods=["GET"]),
    ]
)


class App:
    """The application.

    Args:
        jobs: the queue.
        folder: of videos that requests may name; None: only uploads.
        hosts: names by which the server may be called, in the Host header; none: any.
        about: of the detector, for the page.
    """

    def __init__(self, jobs: Jobs, *, folder: Path | None, hosts: Iterable[str], about: str) -> None:
        self._jobs, self._folder, self._hosts, self._about = jobs, folder, frozenset(hosts), about
        self._uploads = BoundedSemaphore(UPLOADS_AT_ONCE)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(environ)
        try:
            self._check_origin(request)
            endpoint, arguments = URLS.bind_to_environ(environ).match()
            response = getattr(self, f"_{endpoint}")(request, **arguments)
        except HTTPException as error:
            response = _json({"error": error.description or error.name}, status=error.code or 500)
            for name, value in error.get_headers(environ):
                if name in ("Allow", "Location", "Retry-After"):
                    response.headers[name] = value
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response(environ, start_response)

    def _check_origin(self, request: Request) -> None:
        """Requests by other sites' pages in a browser of this machine are refused."""
        named, origin = request.environ.get("HTTP_HOST"), request.headers.get("Origin")
        try:
            host, site = urlsplit(f"//{named or ''}"), urlsplit(origin or "")
            known = named is None or not self._hosts or host.hostname in self._hosts  # browsers always name one
        except ValueError:
            raise BadRequest("the Host or Origin header is not an address") from None
        if not known:
            raise Forbidden("the Host header names another server")
        if origin is not None and site.netloc != host.netloc:
            raise Forbidden("requests from other sites' pages are refused")

    def _home(self, request: Request) -> Response:
        page = (files("adatad_ds.serving") / "home.html").read_text(encoding="utf-8")
        facts = {"about": self._about, "max_mb": self._jobs.limits.max_mb, "paths": self._folder is not None}
        return Response(page.replace("@FACTS@", json.dumps(facts).replace("<", "\\u003c")), mimetype="text/html")

    def _health(self, request: Request) -> Response:
        states = [job.state for job in self._jobs.all()]
        tree = {state: states.count(state) for state in ("queued", "running", "done", "failed")}
        alive = self._jobs.alive
        return _json({"status": "ok" if alive else "stopped", **tree}, status=200 if alive else 503)

    def _submit(self, request: Request) -> Response:
        """A job from JSON that names a file of the folder, or from the video itself as the body."""
        try:
            self._jobs.reserve()
        except QueueFullError:
            raise TooManyRequests(f"{self._jobs.limits.max_queued} jobs are already waiting", retry_after=30) from None
        try:
            if request.mimetype == "application/json":
                name, path, uploaded = *self._named(request), False
            elif request.mimetype in ("application/octet-stream", "") or request.mimetype.startswith("video/"):
                name, path, uploaded = *self._uploaded(request), True
            else:
                raise UnsupportedMediaType(
                    'send the video as the body (application/octet-stream), or {"path": ...} as application/json'
                )
        except BaseException:
            self._jobs.release()
            raise
        job = self._jobs.add(name=name, path=path, uploaded=uploaded)
        response = _json(job.to_dict(), status=202)
        response.headers["Location"] = f"/jobs/{job.id}"
        return response

    def _named(self, request: Request) -> tuple[str, Path]:
        if self._folder is None:
            raise Forbidden("this server takes uploads only: it was started without --folder")
        if not request.content_length or request.content_length > MOST_JSON_BYTES:
            raise BadRequest('expected {"path": "FILE"}')
        try:
            tree = json.loads(request.get_data())
            asked = tree["path"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadRequest('expected {"path": "FILE"}') from None
        if not isinstance(asked, str):
            raise BadRequest('expected {"path": "FILE"}')
        try:
            return asked[-LONGEST_NAME:], file_inside(self._folder, asked)
        except OutsideError as error:
            raise NotFound(str(error)) from None

    def _uploaded(self, request: Request) -> tuple[str, Path]:
        """Write the body to a file of its own, which goes again if it is not whole."""
        size, most = request.content_length, round(self._jobs.limits.max_mb * 1e6)
        if size is None:
            raise LengthRequired("send the body with its length (Content-Length)")
        if size > most:
            raise RequestEntityTooLarge(f"more than {self._jobs.limits.max_mb:g} MB")
        if size == 0:
            raise BadRequest("the body is empty")
        if shutil.disk_usage(self._jobs.folder).free < size + SPARE_BYTES:
            raise ServiceUnavailable("the server's disk is full")
        if not self._uploads.acquire(blocking=False):
            raise ServiceUnavailable(f"{UPLOADS_AT_ONCE} uploads are under way", retry_after=10)
        name = (request.args.get("name") or "video").replace("\\", "/").rpartition("/")[2][-LONGEST_NAME:] or "video"
        path = self._jobs.upload_path(name)
        try:
            with path.open("wb") as file:
                for block in _received(request, size=size):
                    file.write(block)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ServiceUnavailable(f"the server cannot store the upload: {error.strerror}") from None
            raise
        finally:
            self._uploads.release()
        return name, path

    def _list(self, request: Request) -> Response:
        return _json([job.to_dict() for job in self._jobs.all()])

    def _job(self, request: Request, job_id: str) -> Response:
        return _json(self._known(job_id).to_dict())

    def _remove(self, request: Request, job_id: str) -> Response:
        self._jobs.remove(self._known(job_id))
        return Response(status=204)

    def _file(self, request: Request, job_id: str, name: str) -> Response:
        job = self._known(job_id)
        if job.state != "done":
            raise NotFound(f"the job is {job.state}")
        path = job.path if name == VIDEO else self._jobs.file(job, name)
        kind = {RESULT: "application/json", PAGE: "text/html"}.get(name) or VIDEO_TYPES.get(path.suffix.lower(), OTHER)
        called = os.fsencode(path.name).decode("utf-8", "replace")  # a name may not be UTF-8, nor may a path:
        try:  # no ETag is made of it, and clients go by the time of change
            return send_file(path, request.environ, mimetype=kind, download_name=called, conditional=True, etag=False)
        except OSError:
            raise NotFound("the file is gone") from None

    def _known(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound("there is no such job, or it is no longer kept")
        return job


def _received(request: Request, *, size: int) -> Iterator[bytes]:
    """A request's body, in blocks; the server's handler limits how long it may take to arrive."""
    body, left = request.environ["wsgi.input"], size  # `request.stream` does not tell a timeout from a client that left
    while left:
        try:
            block = body.read(min(BLOCK_BYTES, left))
        except TimeoutError:
            raise RequestTimeout("the upload stopped, or took too long") from None
        except OSError:
            block = b""
        if not block:
            raise BadRequest("the upload broke off")
        yield block
        left -= len(block)


def _json(tree: Any, *, status: int = 200) -> Response:
    return Response(json.dumps(tree) + "\n", status=status, mimetype="application/json")
