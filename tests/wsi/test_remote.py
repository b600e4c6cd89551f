"""Slides behind URLs, on a local web server and a local S3."""

from __future__ import annotations

import base64
import json
import multiprocessing
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from slide_files import picture, write_tiff
from typer.testing import CliRunner

from staging.cli import app
from wsi.errors import SlideError, SlideFormatError, SlideNotFoundError, TileError
from wsi.geometry import Region, Window
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

pytestmark = pytest.mark.slow  # its fixtures take seconds

pytest.importorskip("obstore", reason="the extra cloud is not installed")


class WebServer(ThreadingHTTPServer):
    """Serves a folder with or without range requests, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, folder: Path, *, has_ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.has_ranges = has_ranges
        self.asked: list[tuple[int, int]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.folder / unquote(self.path.lstrip("/"))
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.has_ranges:
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            self.server.asked.append((first, last + 1 - first))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    image = picture(1024, 1536)
    tiles = [
        None if (row, column) == (1, 2) else image[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
        for row in range(4)
        for column in range(6)
    ]
    write_pyramid(folder / "slide 1.tif", width=1500, height=1000, mpp=0.25, tile_size=256, tiles=tiles)
    (folder / "empty.tif").touch()
    (folder / "text.tif").write_text("no slide at all", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[WebServer]:
    with WebServer(folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="slides")
        for path in folder.iterdir():
            client.upload_file(str(path), "slides", f"some/where/{path.name}")
        yield "s3://slides/some/where/"
    server.stop()


def assert_equal_slides(remote: Slide, local: Slide) -> None:
    assert remote.levels == local.levels
    assert remote.mpp == local.mpp
    assert remote.properties == local.properties
    assert remote.name == local.name
    assert remote.fingerprint() == local.fingerprint()
    for level in range(len(local.levels)):
        size = local.levels[level]
        theirs, ours = (slide.read_window(level, Window.whole(size.shape)) for slide in (remote, local))
        np.testing.assert_array_equal(theirs, ours)
    regions = [Region(x=x, y=y, width=200, height=200) for x in range(-50, 1500, 170) for y in range(-50, 1000, 170)]
    np.testing.assert_array_equal(remote.read_many(regions), local.read_many(regions))
    assert remote.tile_bytes(0, 1, 1) == local.tile_bytes(0, 1, 1)


@pytest.mark.parametrize("name", ["slide%201.tif", "slide 1.tif"])
def test_a_slide_on_a_web_server_equals_the_file(web: WebServer, folder: Path, name: str) -> None:
    with Slide.open(web.url(name)) as remote, Slide.open(folder / "slide 1.tif") as local:
        assert_equal_slides(remote, local)


def test_a_slide_in_s3_equals_the_file(bucket: str, folder: Path) -> None:
    with Slide.open(f"{bucket}slide 1.tif") as remote, Slide.open(folder / "slide 1.tif") as local:
        assert_equal_slides(remote, local)


def test_requests_are_few_and_small(web: WebServer, folder: Path) -> None:
    web.asked.clear()
    with Slide.open(web.url("slide 1.tif")) as slide:
        opening = len(web.asked)
        assert opening <= 4
        slide.read_window(0, Window(row=0, column=0, height=1000, width=1500))
        reading = web.asked[opening:]
    assert len(reading) <= 3  # 23 tiles
    assert sum(count for _, count in reading) <= (folder / "slide 1.tif").stat().st_size
    web.asked.clear()
    with Slide.open(web.url("slide 1.tif")) as slide:
        slide.read_window(0, Window(row=300, column=10, height=50, width=50))
    assert sum(count for _, count in web.asked[opening:]) < 60_000


def test_a_lazy_level_reads_remotely(web: WebServer, folder: Path) -> None:
    with Slide.open(folder / "slide 1.tif") as local:
        wanted = local.read_window(1, Window(row=0, column=0, height=500, width=750))
    lazy: Any = Slide(web.url("slide 1.tif")).to_dask(1, tiles_per_chunk=1)
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), wanted)


@pytest.mark.parametrize("kind", ["web", "bucket"])
@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("absent.tif", SlideNotFoundError, "no such object"),
        ("text.tif", SlideFormatError, "is not a TIFF"),
        ("empty.tif", SlideFormatError, "is not a TIFF"),
    ],
)
def test_what_is_no_slide(
    request: pytest.FixtureRequest, kind: str, name: str, error: type[SlideError], reason: str
) -> None:
    server = request.getfixturevalue(kind)
    url = server.url(name) if isinstance(server, WebServer) else server + name
    with pytest.raises(error, match=reason) as caught:
        Slide.open(url)
    assert url in str(caught.value)


def test_unreachable_and_unknown_places() -> None:
    with pytest.raises(SlideError, match="cannot be reached"):
        Slide.open("http://127.0.0.1:9/slide.tif")
    with pytest.raises(SlideError, match="scheme 'ftp'"):
        Slide.open("ftp://127.0.0.1/slide.tif")


def test_a_server_without_ranges_is_refused(folder: Path) -> None:
    with WebServer(folder, has_ranges=False) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SlideError, match="Range request not supported"):
            Slide.open(server.url("slide 1.tif"))
        server.shutdown()


def test_a_server_that_is_gone_names_the_tile(folder: Path) -> None:
    with WebServer(folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        slide = Slide.open(server.url("slide 1.tif"))
        (folder / "slide 1.tif").rename(folder / "away.tif")
        try:
            with pytest.raises(TileError, match="level 0, tile row 3, tile column 5: cannot be read"):
                slide.read_window(0, Window(row=900, column=1400, height=10, width=10))
        finally:
            (folder / "away.tif").rename(folder / "slide 1.tif")
        server.shutdown()


def test_other_vendors_are_refused(folder: Path, web: WebServer) -> None:
    write_tiff(folder / "leica.tif", picture(), description='<scn xmlns="http://www.leica-microsystems.com/scn/2010">')
    with pytest.raises(SlideFormatError, match="is a leica file"):
        Slide.open(web.url("leica.tif"))


def _try(url: str, answers: Any) -> None:
    try:
        Slide.open(url)
    except SlideError as error:
        answers.put(str(error))


def test_a_fork_is_told_not_to_read_remotely(web: WebServer) -> None:
    url = web.url("slide 1.tif")
    Slide.open(url).close()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_try, args=(url, answers))
    child.start()
    assert "spawn" in answers.get(timeout=60)
    child.join()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(SlideError, match=r"sentinode\[cloud\]"):
        Slide.open("s3://bucket/slide.tif")


class GuardedServer(WebServer):
    """Answers GET alone, and only with the signature in the query and the right user."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.RequestHandlerClass = _GuardedHandler


class _GuardedHandler(_Handler):
    def _answer(self, *, with_body: bool) -> None:
        login = base64.b64encode(b"user:pass word").decode()
        path, _, query = self.path.partition("?")
        if not with_body or query != "X-Sig=a%2Fb&n=1" or self.headers["Authorization"] != f"Basic {login}":
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.path = path
        super()._answer(with_body=with_body)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedServer]:
    write_tiff(tmp_path / "slide.tif", picture())
    server = GuardedServer(tmp_path)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_signed_url_of_a_server_that_refuses_head_is_read(guarded: GuardedServer, tmp_path: Path) -> None:
    url = guarded.url("slide.tif").replace("://", "://user:pass%20word@") + "?X-Sig=a%2Fb&n=1"
    with Slide.open(url) as slide, Slide.open(tmp_path / "slide.tif") as local:
        assert slide.name == "slide"
        assert slide.fingerprint() == local.fingerprint()
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, local.read_frame(local.frame).array)


class _EchoingHandler(_Handler):
    """Refuses, and says what it was asked: as pages of errors do."""

    def _answer(self, *, with_body: bool) -> None:
        code = int(self.path.split("/")[1])
        text = f"refused {self.path} {self.headers['Authorization']}".encode()
        self.send_response(code if with_body or code != 405 else 405)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text if with_body else b"")


@pytest.mark.parametrize("code", [400, 401, 403, 416])
def test_what_a_server_says_of_an_error_repeats_no_secret(folder: Path, code: int) -> None:
    with WebServer(folder) as server:
        server.RequestHandlerClass = _EchoingHandler
        Thread(target=server.serve_forever, daemon=True).start()
        url = server.url(f"{code}/slide.tif").replace("://", "://bob:S3CRET@") + "?X-Amz-Signature=SIGSIG&b=ZZTOP"
        with pytest.raises(SlideError) as caught:
            Slide.open(url)
        server.shutdown()
    assert f"{code} " in str(caught.value)
    for secret in ("S3CRET", "SIGSIG", "ZZTOP", "Basic", base64.b64encode(b"bob:S3CRET").decode()):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://bob:p@ssWORD@127.0.0.1:9/a.tif",
        "http://bob:pw SECRET@127.0.0.1:9/a.tif",
        "http://bob:pw/SECRET@127.0.0.1:9/a.tif",
        "http://127.0.0.1:9/a.tif?disp=attachment; filename=a&signature=SECRET",
        "https://bob:p@ss@host/a.tif?b=c",
    ],
)
def test_a_url_whose_secrets_have_no_clear_end_is_refused_unseen(url: str, tmp_path: Path) -> None:
    for command in (["info", url], ["tissue", url, "-o", str(tmp_path / "t.png")]):
        done = CliRunner().invoke(app, command)
        said = f"{done.output}{done.exception}"
        assert done.exit_code == 1
        assert "write a blank as %20" in said
        assert not any(secret in said for secret in ("SECRET", "ssWORD", "p@ss", "pw", "bob"))


def test_no_secret_of_a_url_is_printed(guarded: GuardedServer, tmp_path: Path) -> None:
    good = guarded.url("slide.tif").replace("://", "://user:pass%20word@") + "?X-Sig=a%2Fb&n=1"
    bare = guarded.url("slide.tif")
    done = CliRunner().invoke(app, ["info", good, "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["path"] == bare
    found = CliRunner().invoke(app, ["tissue", good, "-o", str(tmp_path / "tissue.png"), "--slide-mpp", "4"])
    assert json.loads(found.stdout)["slide"] == bare, found.output
    for url in (good + "0", good.replace("slide.tif", "none.tif"), good.replace("pass", "wrong")):
        with pytest.raises(SlideError) as caught:
            Slide.open(url)
        text = str(caught.value) + done.output
        assert "127.0.0.1" in text
        for secret in ("user", "pass", "wrong", "Sig", "a%2Fb", "n=1"):
            assert secret not in text
