"""`adatad-ds serve`: a video in, its detections out; whatever is asked, nothing outside its folder is read or left."""

from __future__ import annotations

import gc
import http.client
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from adatad_ds.evaluation.operating_point import ShownFrom
from adatad_ds.inference.video_detector import VideoDetector
from adatad_ds.predict import load_detector
from adatad_ds.serving import app as app_module
from adatad_ds.serving import server as server_module
from adatad_ds.serving.app import UPLOADS_AT_ONCE, App
from adatad_ds.serving.jobs import Jobs, Limits
from adatad_ds.serving.server import serving
from tests.support.browser import loaded
from tests.support.exports import make_export
from tests.support.launch import REPOSITORY, environment
from tests.support.videos import write_video

LIMITS = Limits(max_mb=1.0, max_video_min=0.5, max_job_min=5.0, max_queued=4, kept=5)
NOT_UTF8 = os.fsdecode(b"caf\xe9.mp4")
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"


@dataclass
class Served:
    """A server that runs, and what belongs to it."""

    port: int
    detector: VideoDetector
    jobs: Jobs
    folder: Path
    outside: Path
    work: Path

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if answer.headers.get_content_subtype() == "json" else content

    def submit(self, body: bytes, name: str = "clip.mp4") -> tuple[int, Any]:
        return self.ask("POST", f"/jobs?name={name}", body, **{"Content-Type": "application/octet-stream"})

    def submit_path(self, path: Any) -> tuple[int, Any]:
        return self.ask("POST", "/jobs", json.dumps({"path": path}), **{"Content-Type": "application/json"})

    def finished(self, job: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            status, job = self.ask("GET", f"/jobs/{job['id']}")
            assert status == 200
            if job["state"] not in ("queued", "running"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"not finished: {job}")

    def raw(self, request: bytes) -> bytes:
        """What the server answers to these bytes, after which the client says no more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("serve")
    folder, work = root / "videos", root / "work"
    (folder / "deep").mkdir(parents=True)
    work.mkdir()
    write_video(folder / "deep" / "match.mp4", frames=20)
    outside = write_video(root / "secret.mp4", frames=20)
    (folder / "link.mp4").symlink_to(outside)
    (folder / "up").symlink_to(root)
    (folder / "inside.mp4").symlink_to(folder / "deep" / "match.mp4")
    (folder / "list.mp4").write_text(PLAYLIST.format(outside))
    shutil.copy(outside, folder / NOT_UTF8)
    detector = load_detector(make_export(root / "mine.safetensors", test__max_per_video=50), device="cpu")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as standard output under en_US.UTF-8
    with serving(
        detector,
        host="127.0.0.1",
        port=0,
        folder=folder,
        shown=ShownFrom(0.3, "as requested"),
        limits=LIMITS,
        work=work,
        about="mine",
        report=lambda line: print(line, file=printed),
    ) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        app = server.app
        assert isinstance(app, App)
        yield Served(server.server_port, detector, app._jobs, folder, outside, next(work.iterdir()))
        server.shutdown()
        thread.join()
    assert list(work.iterdir()) == []


def test_a_video_in_and_its_detections_out(served: Served):
    path = served.folder / "deep" / "match.mp4"
    right = [found.record() for found in served.detector.detect(path)]
    assert right
    for status, job in (
        served.submit(path.read_bytes(), "match%20%22%3Cb%3E.mp4"),
        served.submit_path("deep/match.mp4"),
    ):
        assert status == 202
        job = served.finished(job)
        assert (job["state"], job["progress"]) == ("done", 1.0)
        status, tree = served.ask("GET", job["detections"])
        assert status == 200
        assert tree["results"] == {job["name"]: right}
        status, page = served.ask("GET", job["page"])
        assert status == 200
        assert b"<b>" not in page
        status, part = served.ask("GET", f"/jobs/{job['id']}/video", Range="bytes=4-7")
        assert (status, part) == (206, b"ftyp")
    status, jobs = served.ask("GET", "/jobs")
    assert [other["id"] for other in jobs][:1] == [job["id"]]
    assert served.ask("GET", "/")[0] == 200
    assert served.ask("GET", "/health")[1]["status"] == "ok"
    assert served.ask("DELETE", f"/jobs/{job['id']}")[0] == 204
    assert served.ask("GET", f"/jobs/{job['id']}")[0] == 404
    assert path.is_file()  # it was only named


OUTSIDE = [
    "../secret.mp4",
    "deep/../../secret.mp4",
    "..\\secret.mp4",
    "/etc/passwd",
    "//etc/passwd",
    "~/secret.mp4",
    "link.mp4",
    "up/secret.mp4",
    "%2e%2e/secret.mp4",
    "..%2fsecret.mp4",
    "deep",
    "",
    ".",
    "none.mp4",
    "deep/match.mp4\0",
    "a" * 5000,
    "file:///etc/passwd",
    "http://127.0.0.1/x.mp4",
    "\ud800.mp4",
]


WRONG_JSON = [b"{", b"[]", b'{"path": 3}', b"\xff", b"[" * 9000]
NO_ADDRESS = ["/x", "/jobs/x", "/jobs/x/video", "/jobs/x/y", "/jobs/%00"]


def test_a_name_that_is_not_utf8(served: Served):
    """It cannot be printed strictly, which is no reason to leave the jobs after it."""
    for _ in range(2):
        status, job = served.submit_path(NOT_UTF8)
        assert (status, job["name"]) == (202, NOT_UTF8)
        assert served.finished(job)["state"] == "done"
        for name in ("detections.json", "page.html", "video"):
            assert served.ask("GET", f"/jobs/{job['id']}/{name}")[0] == 200, name
    assert served.ask("GET", "/health")[1]["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.html", "application/octet-stream"), ("a.svg", "application/octet-stream"), ("a.MOV", "video/quicktime")],
)
def test_an_upload_never_comes_back_as_a_page(served: Served, name: str, kind: str):
    _, job = served.submit((served.folder / "deep" / "match.mp4").read_bytes(), name)
    assert served.finished(job)["state"] == "done"
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", f"/jobs/{job['id']}/video")
    headers = connection.getresponse().headers
    connection.close()
    assert (headers.get_content_type(), headers["X-Content-Type-Options"]) == (kind, "nosniff")


def test_no_path_leads_outside(served: Served):
    for asked in (*OUTSIDE, str(served.outside), str(served.folder / "deep" / "match.mp4")):
        status, said = served.submit_path(asked)
        assert status == 404, asked
        assert str(served.outside.parent) not in said["error"].replace(asked, "")
    for asked in (b"/../secret.mp4", b"/%2e%2e/secret.mp4", b"/jobs/../../etc/passwd", b"/jobs/..%2f..%2fx/video"):
        assert served.raw(b"GET " + asked + b" HTTP/1.0\r\n\r\n").split()[1] in (b"404", b"308", b"400")
    status, job = served.submit_path("inside.mp4")  # a link within the folder is none of these
    assert served.finished(job)["state"] == "done"


def test_what_names_other_files_is_not_opened(served: Served):
    for status, job in (
        served.submit_path("list.mp4"),
        served.submit(PLAYLIST.format(served.outside).encode(), "x.m3u8"),
        served.submit(f"ffconcat version 1.0\nfile {served.outside}\n".encode(), "x.mp4"),
        served.submit(b"no video", "../../../x.mp4"),
    ):
        assert status == 202
        job = served.finished(job)
        assert job["state"] == "failed"
        assert job["error"].startswith("not a video")
        assert "/" not in job["name"]


def test_limits(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert served.raw(b"POST /jobs HTTP/1.0\r\nContent-Length: 1000001\r\n\r\n").split()[1] == b"413"
    assert served.raw(b"POST /jobs HTTP/1.0\r\n\r\n").split()[1] == b"411"
    assert b"the body is empty" in served.raw(b"POST /jobs HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    assert served.submit_path("a" * 20_000) == (400, {"error": 'expected {"path": "FILE"}'})
    with monkeypatch.context() as full:
        full.setattr(app_module, "SPARE_BYTES", 2**62)
        assert served.submit(b"video") == (503, {"error": "the server's disk is full"})
    assert served.raw(b"POST /jobs HTTP/1.0\r\nContent-Length: 100\r\n\r\nshort").split()[1] == b"400"
    _, job = served.submit(write_video(tmp_path / "long.mp4", frames=310, width=32, height=32).read_bytes())
    assert served.finished(job)["error"] == "the video is longer than 0.5 minutes"
    before = served.jobs.limits
    served.jobs.limits = replace(before, max_job_min=0.0)
    try:
        _, job = served.submit_path("deep/match.mp4")
        assert served.finished(job)["error"] == "took more than 0 minutes"
    finally:
        served.jobs.limits = before
    answers = [served.submit_path("deep/match.mp4") for _ in range(30)]
    assert {status for status, _ in answers} == {202, 429}
    for job in [job for status, job in answers if status == 202][-LIMITS.kept :]:
        served.finished(job)
    _, jobs = served.ask("GET", "/jobs")
    assert len(jobs) <= LIMITS.kept + LIMITS.max_queued + 1


def test_an_upload_that_cannot_be_stored_is_not_the_clients_fault(served: Served):
    """As on a full disk, or over a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    left = sorted(served.work.rglob("*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        status, answer = served.submit(b"\0\0\0\x20ftypisom" + bytes(900_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (status, answer) == (503, {"error": "the server cannot store the upload: File too large"})
    assert sorted(served.work.rglob("*")) == left


def test_clients_that_trickle_are_let_go(served: Served, monkeypatch: pytest.MonkeyPatch):
    """They come to the end of their time although they are never silent; their places are others' again."""
    monkeypatch.setattr(server_module, "REQUEST_SEC", 1.0)
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(UPLOADS_AT_ONCE)]
    try:
        for connection in slow:
            connection.sendall(b"POST /jobs HTTP/1.0\r\nContent-Length: 100000\r\n\r\n")
        deadline, waiting = time.monotonic() + 60, slow
        while waiting and time.monotonic() < deadline:
            for connection in waiting:
                with suppress(ConnectionError):  # it has just been let go
                    connection.sendall(b"x")
            answered, _, _ = select.select(waiting, [], [], 0.1)
            assert all(connection.recv(12).endswith(b" 408") for connection in answered)
            waiting = [connection for connection in waiting if connection not in answered]
        assert not waiting
    finally:
        for connection in slow:
            connection.close()
    monkeypatch.undo()
    _, job = served.submit((served.folder / "deep" / "match.mp4").read_bytes())
    assert served.finished(job)["state"] == "done"


def test_other_sites_pages_are_refused(served: Served):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": ""},
        {"Host": "evil.example"},  # a name that was made to lead here
        {"Host": f"evil.example:{served.port}", "Origin": f"http://evil.example:{served.port}"},
    ):
        assert served.ask("GET", "/jobs", **headers)[0] == 403, headers
    for headers in ({"Host": "["}, {"Origin": "http://["}):
        assert served.ask("GET", "/jobs", **headers)[0] == 400, headers
    own = f"127.0.0.1:{served.port}"
    assert served.ask("GET", "/jobs", Host=own, Origin=f"http://{own}")[0] == 200


def test_two_hundred_requests_good_and_bad_leave_nothing(served: Served):
    good = (served.folder / "deep" / "match.mp4").read_bytes()
    process, dice = psutil.Process(), random.Random(0)
    kinds = {
        "upload": lambda: served.submit(good)[0],
        "named": lambda: served.submit_path("deep/match.mp4")[0],
        "cut": lambda: served.submit(good[: dice.randrange(1, len(good))])[0],
        "noise": lambda: served.submit(dice.randbytes(5000))[0],
        "damaged": lambda: served.submit(good[:2000] + dice.randbytes(500) + good[2500:])[0],
        "outside": lambda: served.submit_path(dice.choice(OUTSIDE))[0],
        "json": lambda: served.ask("POST", "/jobs", dice.choice(WRONG_JSON), **{"Content-Type": "application/json"})[0],
        "kind": lambda: served.ask("POST", "/jobs", b"x", **{"Content-Type": "text/plain"})[0],
        "method": lambda: served.ask(dice.choice(["PUT", "PATCH", "DELETE"]), "/jobs")[0],
        "address": lambda: served.ask("GET", dice.choice(NO_ADDRESS))[0],
        "broken": lambda: int(served.raw(b"POST /jobs HTTP/1.0\r\nContent-Length: 9000\r\n\r\nhalf").split()[1]),
        "no_http": lambda: served.raw(b"\x16\x03\x01\x02\x00\r\n\r\n") and 400,
        "list": lambda: served.ask("GET", "/jobs")[0],
        "health": lambda: served.ask("GET", "/health")[0],
    }  # fmt: skip

    def settle() -> tuple[int, float, set[str]]:
        deadline = time.monotonic() + 120
        while any(job.state in ("queued", "running") for job in served.jobs.all()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for job in served.jobs.all():
            served.jobs.remove(job)
        gc.collect()
        while process.num_threads() > threads and time.monotonic() < deadline:
            time.sleep(0.05)  # threads of the last answers
        return process.num_fds(), process.memory_info().rss / 1e6, {path.name for path in served.work.iterdir()}

    threads = 10**6
    for kind in kinds.values():
        kind()  # what is made once, and kept
    settle()
    threads = process.num_threads()
    descriptors, memory_mb, files = settle()
    seen: dict[str, set[int]] = {}
    for _ in range(200):
        name = dice.choice(list(kinds))
        seen.setdefault(name, set()).add(kinds[name]())
        assert served.jobs.alive
    after = settle()
    assert files == after[2] == set()
    assert after[0] <= descriptors + 2
    assert after[1] < memory_mb + 40
    assert seen["upload"] <= {202, 429}
    assert 202 in seen["upload"] | seen["named"]
    assert seen["outside"] <= {404, 429}
    assert seen["json"] <= {400, 429}
    assert seen["kind"] <= {415, 429}
    assert seen["broken"] <= {400, 429}
    assert seen["method"] == {405}
    assert seen["address"] == {404}
    assert seen["list"] == seen["health"] == {200}
    _, job = served.submit(good)
    assert served.finished(job)["state"] == "done"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("folder", [True, False])
def test_the_page_asks_for_a_path_where_there_is_a_folder(folder: bool, tmp_path: Path):
    page = (files("adatad_ds.serving") / "home.html").read_text(encoding="utf-8")
    page = page.replace("@FACTS@", json.dumps({"about": "", "paths": folder, "max_mb": 1}))
    page = page.replace("<body>", "<body><script>window.fetch = async () => null;</script>")  # there is no server
    (tmp_path / "home.html").write_text(f'{page}<script>document.title = $("named").offsetHeight > 0;</script>')
    assert f"<title>{str(folder).lower()}</title>" in loaded(tmp_path / "home.html")


def test_the_command_begins_and_ends(served: Served, tmp_path: Path):
    checkpoint = next(served.folder.parent.glob("*.safetensors"))
    command = [sys.executable, "-m", "adatad_ds", "serve", str(checkpoint), "--port", "0", "--work", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), line
        port = int(line.split("/;")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/jobs", '{"path": "x"}', {"Content-Type": "application/json"})
        assert connection.getresponse().status == 403  # uploads only
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_options_that_cannot_be_meant(served: Served, tmp_path: Path):
    from adatad_ds.cli.commands import main

    checkpoint = next(served.folder.parent.glob("*.safetensors"))
    for options in (["--port", "70000"], ["--max-mb", "0"], ["--work", "/none"], ["--folder", str(tmp_path / "none")]):
        assert main(["serve", str(checkpoint), *options]) == 2
    assert main(["serve", str(checkpoint), "--port", str(served.port)]) == 2  # taken
