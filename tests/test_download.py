"""Downloads: from a server of this test, which breaks off, changes files, ignores ranges, lies and refuses."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from multimae_eo.data import download as downloads
from multimae_eo.data import received, releases, web
from multimae_eo.data.download import NAMES, download
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, UnknownNameError, WriteError

NAME = "data_100k_v001"
H5, SPLITS = f"{NAME}.h5", f"{NAME}_splits.json"
API = f"/api/datasets/{releases.GEOBENCH}/tree/main"
FILES = f"/datasets/{releases.GEOBENCH}/resolve/main"
EUROSAT = "classification_v1.0/m-eurosat"


def hdf5(size: int = 300_000, version: int = 0, end: int | None = None) -> bytes:
    """Bytes with the header of an HDF5 file that ends at `end`, and no sense behind it."""
    numbers = [0, 2**64 - 1, size if end is None else end]
    head = {0: 24, 1: 28, 2: 12, 3: 12}[version]
    start = bytearray(b"\x89HDF\r\n\x1a\n" + bytes([version]) + bytes(head - 9))
    start[13 if version < 2 else 9] = 8
    start += b"".join(number.to_bytes(8, "little") for number in numbers)
    return bytes(start) + bytes(i * i % 251 for i in range(size - len(start)))


class Server:
    """What a test can say of each path: its bytes, its ETag, and what goes wrong."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}  # before the real one
        self.cuts: dict[str, list[int]] = {}  # bytes after which an answer breaks off
        self.ranges, self.head, self.lengths = True, True, True
        self.slow = self.stall = self.beat = 0.0  # seconds before an answer, in the middle, and every 10,000 bytes
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.open = self.most = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self, end: str, method: str = "GET") -> list[str | None]:
        """The Range of each request for a path with this end."""
        return [headers.get("Range") for m, path, headers in self.log if m == method and path.endswith(end)]

    def release(self, **changed: bytes) -> None:
        """Put up MMEarth100k."""
        sides = {f"{NAME}_{side}.json": b'{"rows": [1, 2]}' for side in ("splits", "band_stats", "tile_info")}
        for name, content in {"LICENSE-data": b"CC BY 4.0", **sides, H5: hdf5()}.items():
            self.files[f"/{name}"] = content

    def hub(self, files: dict[str, bytes], pages: int = 1) -> None:
        """Put up files as the Hub does: a list in pages, of which large files have a SHA-256."""
        entries: list[dict] = [{"type": "directory", "path": "classification_v1.0", "oid": "0", "size": 0}]
        for path, content in files.items():
            self.files[f"{FILES}/{path}"] = content
            entry = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path.endswith(".zip"):
                entry |= {"oid": "1", "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}}
            entries.append(entry)
        for page in range(pages):
            path = API if page == 0 else f"{API}/{page}"
            self.files[path] = json.dumps(entries[page::pages]).encode()
            self.types[path] = "application/json"
            if page + 1 < pages:
                self.links[path] = f'<{self.base}{API}/{page + 1}?recursive=true>; rel="next"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args):
        self.state = server
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        if self.state.head:
            self.do_GET()
        else:
            self.refuse(501, {})

    def do_GET(self):
        state, path = self.state, unquote(urlsplit(self.path).path)
        with state.lock:
            state.log.append((self.command, path, dict(self.headers)))
            answers = state.answers.get(path)
            answer = answers.pop(0) if answers else None
        if answer:
            self.refuse(*answer)
        elif path in state.redirects:
            self.refuse(302, {"Location": state.redirects[path]})
        elif path not in state.files:
            self.refuse(404, {})
        else:
            self.send(path, state.files[path])

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, path: str, content: bytes) -> None:
        state, start = self.state, 0
        etag, wanted = state.etags.get(path, '"one"'), self.headers.get("Range")
        if wanted and state.ranges and self.headers.get("If-Range", etag) == etag:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            start = int(first)
            if start >= len(content):
                return self.refuse(416, {})
            self.send_response(206)
            end = min(int(last or len(content)), len(content) - 1)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Type", state.types.get(path, "application/octet-stream"))
        if etag:
            self.send_header("ETag", etag)
        if path in state.links:
            self.send_header("Link", state.links[path])
        if state.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        cuts = state.cuts.get(path)
        if self.command == "GET":
            self.pour(body[: cuts.pop(0) if cuts else None])

    def pour(self, body: bytes) -> None:
        state = self.state
        with state.lock:
            state.open += 1
            state.most = max(state.most, state.open)
        time.sleep(state.slow)
        with contextlib.suppress(OSError):
            for at in range(0, len(body), 10_000):
                time.sleep(state.stall if at == 150_000 else state.beat)
                self.wfile.write(body[at : at + 10_000])
        with state.lock:
            state.open -= 1


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "BACKOFF_S", (0, 0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()
    yield state
    state.http.shutdown()
    state.http.server_close()


def mmearth(server: Server, out: Path, **options) -> Path:
    return download("mmearth100k", out, base=server.base, **options)


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


IMAGES = {f"id_{i:04d}.hdf5": hdf5(500 + i) for i in range(5)} | {"default_partition.json": b"{}"}


def test_a_release_of_mmearth(server, tmp_path):
    server.release()
    seen: list[tuple[int, int]] = []
    folder = mmearth(server, tmp_path, progress=lambda *done: seen.append(done))
    assert folder == tmp_path / NAME
    assert tree(folder) == {path[1:]: content for path, content in server.files.items()}
    total = sum(map(len, server.files.values()))
    assert seen[-1] == (total, total)
    assert all(0 <= done <= of == total for done, of in seen)


def test_a_complete_release_is_not_fetched_again(server, tmp_path):
    server.release()
    mmearth(server, tmp_path)
    server.log.clear()
    seen: list[tuple[int, int]] = []
    mmearth(server, tmp_path, progress=lambda *done: seen.append(done))
    assert {method for method, *_ in server.log} == {"HEAD"}
    assert seen[-1][0] == seen[-1][1] > 300_000


def test_a_broken_connection_goes_on_at_the_byte(server, tmp_path):
    server.release()
    server.cuts[f"/{H5}"] = [100_000, 50_000, 0]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked(H5) == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert [headers.get("If-Range") for m, path, headers in server.log if m == "GET" and path == f"/{H5}"] == [
        *(None, '"one"', '"one"', '"one"')
    ]


def stopped(server, tmp_path, at: int = 120_000) -> Path:
    """A download that was interrupted."""
    server.cuts[f"/{H5}"] = [at, *[0] * len(web.BACKOFF_S)]
    with pytest.raises(
        DataError, match=rf"{H5}' broke off after {at} of 300000 bytes\. What has come down is kept; the"
    ):
        mmearth(server, tmp_path, only=[H5])
    partial = tmp_path / NAME / f"{H5}.partial"
    assert partial.read_bytes() == server.files[f"/{H5}"][:at]
    assert not (tmp_path / NAME / H5).exists()
    server.log.clear()
    return partial


def test_another_call_goes_on_at_the_byte(server, tmp_path):
    server.release()
    stopped(server, tmp_path)
    mmearth(server, tmp_path)
    assert server.asked(H5) == ["bytes=120000-"]
    assert sorted(tree(tmp_path / NAME)) == sorted(path[1:] for path in server.files)
    assert (tmp_path / NAME / H5).read_bytes() == hdf5()


def test_what_came_down_to_the_last_byte_is_not_asked_for_again(server, tmp_path):
    server.release()
    partial = stopped(server, tmp_path)
    partial.write_bytes(hdf5())
    mmearth(server, tmp_path, only=[H5])
    assert server.asked(H5) == []
    assert (tmp_path / NAME / H5).read_bytes() == hdf5()


@pytest.mark.parametrize("size", [300_000, 310_000, 90_000])
def test_a_changed_file_starts_over(server, tmp_path, size):
    server.release()
    stopped(server, tmp_path)
    server.files[f"/{H5}"], server.etags[f"/{H5}"] = hdf5(size)[:200] + bytes(size - 200), '"two"'
    mmearth(server, tmp_path)
    assert server.asked(H5) == ["bytes=120000-"]
    assert (tmp_path / NAME / H5).read_bytes() == server.files[f"/{H5}"]


def test_a_changed_file_of_a_server_that_ignores_if_range_starts_over(server, tmp_path, monkeypatch):
    server.release()
    stopped(server, tmp_path)
    monkeypatch.setitem(server.etags, f"/{H5}", '"two"')
    server.files[f"/{H5}"] = hdf5()[:200] + bytes(299_800)
    ask = web.ask
    monkeypatch.setattr(
        downloads, "ask", lambda url, headers=None, **k: ask(url, {**(headers or {}), "If-Range": '"two"'}, **k)
    )
    mmearth(server, tmp_path)
    assert server.asked(H5) == ["bytes=120000-", None]
    assert (tmp_path / NAME / H5).read_bytes() == server.files[f"/{H5}"]


def test_without_anything_to_tell_a_version_by_the_size_decides(server, tmp_path):
    server.release()
    server.etags = dict.fromkeys(server.files, "")
    stopped(server, tmp_path)
    mmearth(server, tmp_path, only=[H5])
    assert server.asked(H5) == ["bytes=120000-"]
    (tmp_path / NAME / H5).unlink()
    partial = stopped(server, tmp_path)
    notes = partial.with_name(f"{partial.name}.json")
    notes.write_text(notes.read_text().replace("127.0.0.1", "mirror"))
    mmearth(server, tmp_path, only=[H5])  # of another server: nothing of it is trusted
    assert server.asked(H5) == [None]


@pytest.mark.parametrize(
    ("etag", "modified", "asked"),
    [('"a"', "Mon", '"a"'), ('W/"a"', "Mon", "Mon"), ('W/"a"', None, None), (None, "Mon", "Mon"), (None, None, None)],
)
def test_what_tells_a_version(server, etag, modified, asked):
    server.release()
    with web.ask(f"{server.base}/{H5}") as response:
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            del response.headers[name]
            if value:
                response.headers[name] = value
        assert web.version_of(response) == (asked or "")


def test_a_server_without_ranges(server, tmp_path):
    server.release()
    stopped(server, tmp_path)
    server.ranges = False
    server.cuts[f"/{H5}"] = [200_000]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked(H5) == ["bytes=120000-", "bytes=200000-"]


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server, tmp_path):
    server.release()
    server.ranges = False
    server.cuts[f"/{H5}"] = [200_000] * 99
    with pytest.raises(DataError, match="broke off after 200000"):
        mmearth(server, tmp_path)
    assert len(server.asked(H5)) == len(web.BACKOFF_S) + 1


def test_a_server_without_head_and_lengths(server, tmp_path):
    server.release()
    server.head = False
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked(H5) == ["bytes=0-0", None]
    shutil.rmtree(tmp_path / NAME)
    server.lengths = server.ranges = False
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    mmearth(server, tmp_path)


@pytest.mark.parametrize("end", [H5, SPLITS])
def test_a_cut_that_no_length_tells_is_found_in_the_file(server, tmp_path, end):
    server.release()
    server.lengths = server.ranges = False
    server.cuts[f"/{end}"] = [15] if end == SPLITS else [200_000]
    with pytest.raises(DataError, match=r"is cut off: .*It was thrown away; run the same command again"):
        mmearth(server, tmp_path, only=[end])
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_answer_that_may_pass_is_waited_for(server, tmp_path, status, monkeypatch):
    server.release()
    waits = []
    monkeypatch.setattr(web, "BACKOFF_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(downloads._Job, "pause", lambda job, seconds=0.0: waits.append(seconds))
    date = formatdate(time.time() + 3, usegmt=True)
    server.answers[f"/{H5}"] = [(status, {}), (status, {"Retry-After": "7"}), (status, {"Retry-After": date})]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    first, second, third = (w for w in waits if w)
    assert (first, second) == (0.01, 7.0)
    assert 1 < third <= 3


def test_patience_ends(server, tmp_path):
    server.release()
    server.answers[f"/{H5}"] = [(503, {})] * 99
    with pytest.raises(
        DataError, match=rf"{H5}' answers with 503 \(Service Unavailable\)\. What has come down is kept"
    ):
        mmearth(server, tmp_path)
    server.answers[f"/{H5}"] = [(503, {"Retry-After": "3600"})] * 99
    with pytest.raises(DataError, match=r"503 .*asks to come back in 3600 s; the same command goes on then"):
        mmearth(server, tmp_path)


@pytest.mark.parametrize(("status", "says"), [(401, "wants a login"), (403, "refuses"), (404, "has no such file")])
def test_a_refusal_names_the_address_and_what_to_do(server, tmp_path, status, says):
    server.release()
    server.answers[f"/{H5}"] = [(status, {})] * 9
    with pytest.raises(
        DataError, match=rf"{server.base}/{H5}': the server {says}.*\({status}\).*in a browser.*by hand"
    ):
        mmearth(server, tmp_path)
    assert not (tmp_path / NAME / H5).exists()


def test_a_mirror_may_lack_the_licence(server, tmp_path):
    server.release()
    del server.files["/LICENSE-data"]
    assert len(tree(mmearth(server, tmp_path))) == 4


def test_a_host_without_an_address(tmp_path, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for what, host in (("mmearth64", "sid.erda.dk"), ("geobench", "huggingface.co")):
        with pytest.raises(DataError, match=rf"https://{host}/.*host '{host}' is not found.*a proxy.*by hand"):
            download(what, tmp_path)
    with pytest.raises(ConfigError, match="base 'file:///etc' is no address"):
        download("mmearth", tmp_path, base="file:///etc")


def test_a_port_where_nobody_answers(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(DataError, match="refused"):
            download("mmearth", tmp_path, base=f"http://127.0.0.1:{free.getsockname()[1]}")


def test_a_server_that_falls_silent(server, tmp_path, monkeypatch):
    server.release()
    monkeypatch.setattr(web, "TIMEOUT_S", 0.05)
    server.slow = 0.2
    with pytest.raises(DataError, match="timed out"):
        mmearth(server, tmp_path, only=[H5])


def test_a_proxy_is_heeded(server, tmp_path, monkeypatch):
    server.release()
    monkeypatch.setenv("http_proxy", server.base)
    server.files["/there/LICENSE-data"] = b"CC BY 4.0"
    folder = download("mmearth100k", tmp_path, base="http://mirror.example/there/", only=["LICENSE-data"])
    assert (folder / "LICENSE-data").read_bytes() == b"CC BY 4.0"
    assert server.log[-1][2]["Host"] == "mirror.example"


def test_redirects_are_followed_with_the_range(server, tmp_path):
    server.release()
    server.redirects[f"/{H5}"], server.files["/elsewhere"] = f"{server.base}/elsewhere", server.files[f"/{H5}"]
    server.cuts["/elsewhere"] = [100_000]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked("/elsewhere") == [None, "bytes=100000-"]
    assert server.asked("/elsewhere", "HEAD") == [None]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "{base}/{h5}"])
def test_redirects_to_anything_but_http_and_in_circles(server, tmp_path, target):
    server.release()
    server.redirects[f"/{H5}"] = target.format(base=server.base, h5=H5)
    with pytest.raises(
        DataError, match=rf"{H5}' (leads to an address that is not fetched|cannot be fetched: unknown url)"
    ):
        mmearth(server, tmp_path)


def test_a_web_page_instead_of_data(server, tmp_path):
    server.release()
    server.types[f"/{H5}"] = "text/html; charset=utf-8"
    with pytest.raises(DataError, match=rf"{H5}' answers with a web page instead of data\. Open it in a browser"):
        mmearth(server, tmp_path)
    server.types.clear()
    page = b"\n <!DOCTYPE html><html>" + bytes(100)
    for name in (H5, SPLITS, "LICENSE-data"):
        server.release()
        server.files[f"/{name}"] = page
        with pytest.raises(DataError, match=rf"{name}' is a web page, not data\. Files fetched by hand"):
            mmearth(server, tmp_path / name, only=[name])
        assert not (tmp_path / name / NAME / name).exists()


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_hdf5_is_held_against_its_own_header(server, tmp_path, version):
    server.release()
    server.files[f"/{H5}"] = hdf5(1000, version)
    mmearth(server, tmp_path)
    server.files[f"/{H5}"] = hdf5(1000, version, end=1001)
    with pytest.raises(DataError, match="is cut off: its header tells of 1001 bytes, it has 1000"):
        mmearth(server, tmp_path / "2")
    server.files[f"/{H5}"] = bytes(1000)
    with pytest.raises(DataError, match="is no HDF5 file"):
        mmearth(server, tmp_path / "3")


def test_the_header_is_where_h5py_writes_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    for libver in ("earliest", "latest"):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w", libver=libver) as file:
            file["x"] = list(range(1000))
        content = path.read_bytes()
        assert received.flaw_of(path.name, content, len(content)) == ""
        assert received.flaw_of(path.name, content, len(content) - 1).startswith("is cut off")


def test_a_file_that_is_there_is_never_written_over(server, tmp_path):
    server.release()
    folder = mmearth(server, tmp_path)
    (folder / SPLITS).write_text('{"train": [], "val": [1]}')
    with pytest.raises(DataError, match=r"splits\.json' is there already with 25 bytes, but .* has 16\. Move it away"):
        mmearth(server, tmp_path)
    mmearth(server, tmp_path, only=["*.h5"])
    (folder / H5).write_bytes(bytes(300_000))
    with pytest.raises(DataError, match=rf"{H5}' is no HDF5 file\. Delete it, and the same command fetches it anew"):
        mmearth(server, tmp_path, only=["*.h5"])


def test_a_part_of_the_files(server, tmp_path):
    server.release()
    assert sorted(tree(mmearth(server, tmp_path, only=["*_splits.json", "LICENSE-*"]))) == ["LICENSE-data", SPLITS]
    assert not server.asked(H5)
    with pytest.raises(UnknownNameError, match=rf"unknown file '{NAME}_split\.json'\. Did you mean '{SPLITS}'"):
        mmearth(server, tmp_path, only=[f"{NAME}_split.json"])


def test_files_come_down_at_the_same_time(server, tmp_path):
    server.release()
    server.slow = 0.1
    mmearth(server, tmp_path / "1", workers=5)
    assert 2 <= server.most <= 5
    server.most = 0
    mmearth(server, tmp_path / "2", workers=1)
    assert server.most == 1
    with pytest.raises(ConfigError, match="workers must be 1 or more; got 0"):
        mmearth(server, tmp_path, workers=0)


def test_the_first_error_stops_the_others_and_keeps_what_they_have(server, tmp_path):
    server.release()
    server.answers[f"/{SPLITS}"] = [(200, {}), (404, {})]
    server.slow = 0.1
    with pytest.raises(DataError, match=r"splits\.json.* 404|splits\.json.*\(404\)"):
        mmearth(server, tmp_path)
    del server.answers[f"/{SPLITS}"]
    assert len(tree(mmearth(server, tmp_path))) == 5


def test_too_little_disk_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    server.release()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(
        WriteError, match=r"'mmearth100k' needs 0\.00 GB more, but 0\.00 GB are free\. Make room, or give"
    ):
        mmearth(server, tmp_path)
    assert not any(method == "GET" for method, *_ in server.log)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    stopped(server, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    mmearth(server, tmp_path)  # what is there need not be fetched again


def test_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    server.release()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"could not be written: .*the same command goes on"):
        mmearth(server, tmp_path / "file")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=rf"{H5}' could not be written: No space left on device\. What has come down"):
        mmearth(server, tmp_path, only=[H5])


def test_two_downloads_do_not_write_one_file(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    server.release()
    partial = tmp_path / NAME / f"{H5}.partial"
    partial.parent.mkdir()
    with open(partial, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WriteError, match=rf"{H5}\.partial' is being written by another download"):
            mmearth(server, tmp_path)
    mmearth(server, tmp_path)


def test_an_interrupt_leaves_what_is_there_even_if_the_server_is_silent(server, tmp_path):
    server.release()
    server.stall = 20

    def interrupt(done, of):
        if done > 150_000:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mmearth(server, tmp_path, progress=interrupt)
    assert time.monotonic() - began < 5
    there = (tmp_path / NAME / f"{H5}.partial").read_bytes()
    assert there == hdf5()[:150_000]
    server.stall = 0
    server.log.clear()
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked(H5) == ["bytes=150000-"]


def test_a_killed_download_goes_on(server, tmp_path):
    server.release()
    server.beat = 0.02
    code = "import sys, pathlib; from multimae_eo.data.download import download as d; "
    code += "d('mmearth100k', pathlib.Path(sys.argv[1]), base=sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.base])
    partial = tmp_path / NAME / f"{H5}.partial"
    while not partial.exists() or partial.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = partial.stat().st_size
    assert 50_000 <= reached < 300_000
    assert not (tmp_path / NAME / H5).exists()
    server.beat = 0
    server.log.clear()
    assert (mmearth(server, tmp_path) / H5).read_bytes() == hdf5()
    assert server.asked(H5) == [f"bytes={reached}-"]


@pytest.mark.parametrize("what", ["mmearth46", "geobench:m-eurosatt", "m-eurosat", "geobench:"])
def test_an_unknown_name(tmp_path, what):
    with pytest.raises(UnknownNameError, match=r"unknown data set '.*Did you mean '(mmearth64|geobench)"):
        download(what, tmp_path)


def test_names_and_addresses_are_those_of_the_publishers():
    from multimae_eo.data.geobench_sets import SETS

    real = {name: known.folder for name, known in SETS.items() if not name.startswith("synthetic")}
    assert set(releases.SETS) == set(real)
    assert set(releases.FOLDERS) == set(real.values())
    assert NAMES[:5] == ("mmearth64", "mmearth100k", "mmearth", "geobench", "geobench:m-eurosat")
    assert [file.url for file in releases.mmearth_files("mmearth64", None)][-1] == (
        "https://sid.erda.dk/share_redirect/bX5JzPuwJF/data_1M_v001_64.h5"
    )
    assert releases.hub_list(None) == (
        "https://huggingface.co/api/datasets/recursix/geo-bench-1.0/tree/main?recursive=true"
    )


def test_importing_it_imports_nothing_heavy():
    code = "import sys, multimae_eo.data.download; print([m for m in ('torch', 'numpy', 'h5py') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def geobench(server: Server, out: Path, what: str = "geobench:m-eurosat", **options) -> Path:
    return download(what, out, base=server.base, **options)


@pytest.mark.parametrize("inside", ["m-eurosat/", "classification_v1.0/m-eurosat/", ""])
def test_a_set_of_geobench_is_unpacked(server, tmp_path, inside):
    junk = {"__MACOSX/x": b"1", f"{inside}.DS_Store": b"1"}
    server.hub({f"{EUROSAT}.zip": zipped({f"{inside}{name}": c for name, c in IMAGES.items()} | junk)})
    assert geobench(server, tmp_path) == tmp_path
    assert tree(tmp_path / EUROSAT) == IMAGES
    assert sorted(os.listdir(tmp_path / "classification_v1.0")) == [".m-eurosat.zip.unpacked.json", "m-eurosat"]
    server.log.clear()
    geobench(server, tmp_path)
    assert [path for _, path, _ in server.log] == [API]  # neither fetched nor unpacked again
    (tmp_path / EUROSAT / "id_0003.hdf5").unlink()
    geobench(server, tmp_path)
    assert tree(tmp_path / EUROSAT) == IMAGES


def test_all_of_geobench_in_pages(server, tmp_path):
    files = {
        "README.md": b"?",
        "classification_v1.0/normalizer.json": b"{}",
        f"{EUROSAT}.zip": zipped({f"m-eurosat/{n}": c for n, c in IMAGES.items()}),
        "segmentation_v1.0/m-pv4ger-seg.zip": zipped({"m-pv4ger-seg/a.hdf5": b"a"}),
        "classification_v1.0/m-pv4ger/part 1.zip": zipped({"b.hdf5": b"b"}),
        "classification_v1.0/m-pv4ger/part 2.zip": zipped({"m-pv4ger/c.hdf5": b"c"}),
        "classification_v1.0/m-so2sat_1.zip": zipped({"d.hdf5": b"d"}),
        "segmentation_v1.0/m-nz-cattle/band_stats.json": b"{}",
    }
    server.hub(files, pages=3)
    geobench(server, tmp_path / "all", "geobench")
    found = {path: content for path, content in tree(tmp_path / "all").items() if "/." not in path}
    assert found == {
        **{f"{EUROSAT}/{name}": content for name, content in IMAGES.items()},
        "classification_v1.0/normalizer.json": b"{}",
        "segmentation_v1.0/m-pv4ger-seg/a.hdf5": b"a",
        "classification_v1.0/m-pv4ger/b.hdf5": b"b",
        "classification_v1.0/m-pv4ger/c.hdf5": b"c",
        "classification_v1.0/m-so2sat/d.hdf5": b"d",
        "segmentation_v1.0/m-nz-cattle/band_stats.json": b"{}",
    }
    geobench(server, tmp_path / "one", "geobench:m-pv4ger")
    assert sorted(p.name for p in (tmp_path / "one").rglob("*.hdf5")) == ["b.hdf5", "c.hdf5"]
    geobench(server, tmp_path / "two", "geobench", only=["m-eurosat", "m-pv4ger-seg"])
    assert len(list((tmp_path / "two").rglob("*.hdf5"))) == 6
    with pytest.raises(DataError, match=r"lists no file of 'm-forestnet'"):
        geobench(server, tmp_path, "geobench:m-forestnet")


def test_a_wrong_checksum(server, tmp_path):
    content = zipped({f"m-eurosat/{n}": c for n, c in IMAGES.items()})
    server.hub({f"{EUROSAT}.zip": content, "classification_v1.0/normalizer.json": b'{"a": 1}'})
    server.files[f"{FILES}/{EUROSAT}.zip"] = content[:500] + b"X" + content[501:]
    with pytest.raises(DataError, match=r"m-eurosat\.zip' is damaged: its checksum \(sha256\) is .*It was thrown away"):
        geobench(server, tmp_path)
    assert tree(tmp_path) == {}
    server.files[f"{FILES}/{EUROSAT}.zip"] = content
    server.files[f"{FILES}/classification_v1.0/normalizer.json"] = b'{"a": 2}'
    with pytest.raises(DataError, match=r"normalizer\.json' is damaged: its checksum \(git\)"):
        geobench(server, tmp_path, "geobench", only=["normalizer.json"])
    server.files[f"{FILES}/{EUROSAT}.zip"] = content + b"1"
    with pytest.raises(DataError, match=r"m-eurosat\.zip' has \d+ bytes, expected \d+: it has just changed"):
        geobench(server, tmp_path)


def test_unpacking_goes_on_where_it_was_stopped(server, tmp_path, monkeypatch):
    server.hub({f"{EUROSAT}.zip": zipped({f"m-eurosat/{n}": c for n, c in IMAGES.items()})})
    written, write = [], received._write

    def stop(archive, member, target, partial):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target.name)
        write(archive, member, target, partial)

    monkeypatch.setattr(received, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        geobench(server, tmp_path)
    assert tree(tmp_path / EUROSAT) == {name: IMAGES[name] for name in written}
    (tmp_path / EUROSAT / written[0]).write_bytes(b"x" * len(IMAGES[written[0]]))  # as a crash may leave it
    server.log.clear()
    kept, written[:] = list(written), []
    monkeypatch.setattr(received, "_write", lambda *args: (written.append(args[2].name), write(*args)))
    geobench(server, tmp_path)
    assert tree(tmp_path / EUROSAT) == IMAGES
    assert Counter(written) == Counter({kept[0]: 1, **{name: 1 for name in IMAGES if name not in kept}})
    assert not server.asked(".zip")


@pytest.mark.parametrize(
    "name", ["../evil", "m-eurosat/../../evil", "/evil", "C:/evil", "a\\..\\evil", "m-eurosat//evil"]
)
def test_a_zip_cannot_write_elsewhere(server, tmp_path, name):
    server.hub({f"{EUROSAT}.zip": zipped({"m-eurosat/good": b"1", name: b"2"})})
    with pytest.raises(DataError, match=r"m-eurosat\.zip' names the path .*which leads out of its folder; nothing"):
        geobench(server, tmp_path)
    assert sorted(tree(tmp_path)) == [f"{EUROSAT}.zip"]
    assert not list(tmp_path.parent.glob("evil"))


def test_a_zip_cannot_make_links(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("m-eurosat/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    server.hub({f"{EUROSAT}.zip": buffer.getvalue()})
    with pytest.raises(DataError, match="'m-eurosat/link' is a link"):
        geobench(server, tmp_path)


def test_a_zip_that_states_less_than_it_holds(server, tmp_path):
    content = bytearray(zipped({"m-eurosat/bomb": bytes(10_000_000)}))
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = content.index(mark) + place
        content[at : at + 4] = (1000).to_bytes(4, "little")
    server.hub({f"{EUROSAT}.zip": bytes(content)})
    with pytest.raises(DataError, match=r"m-eurosat\.zip' cannot be unpacked: .*Delete it, and the same command"):
        geobench(server, tmp_path)
    assert sorted(tree(tmp_path)) == [f"{EUROSAT}.zip"]


def test_a_zip_that_states_more_than_the_disk_has(server, tmp_path, monkeypatch):
    server.hub({f"{EUROSAT}.zip": zipped({"m-eurosat/large": bytes(10_000_000)})})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    with pytest.raises(WriteError, match=r"unpacking 'm-eurosat\.zip' needs 0\.01 GB more, but 0\.01 GB are free"):
        geobench(server, tmp_path)
    assert not (tmp_path / EUROSAT / "large").exists()


@pytest.mark.parametrize("content", [b"PK not a zip" + bytes(100), zipped({}), b"Rar!" + bytes(100)])
def test_zips_that_are_none(server, tmp_path, content):
    server.hub({f"{EUROSAT}.zip": content})
    with pytest.raises(DataError, match=r"cannot be unpacked|holds no file|is no zip file"):
        geobench(server, tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>", "answers with no list of files, but b'<html>'"),
        (b'{"error": "x"}', "answers with no list of files"),
        (b'[{"type": "file", "path": "classification_v1.0/m-eurosat.zip"}]', "an entry that makes no sense"),
        (b'["x"]', "an entry that makes no sense"),
        (b'[{"type": "file", "path": "../m-eurosat.zip", "size": 1, "oid": "1"}]', "leads out of its folder"),
        (b"[]", "lists no file of 'm-eurosat'"),
    ],
)
def test_lists_that_make_no_sense(server, tmp_path, content, says):
    server.files[API] = content
    with pytest.raises(DataError, match=says):
        geobench(server, tmp_path)


def test_a_list_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "PAGES", 3)
    server.hub({f"{EUROSAT}.zip": b"PK"})
    server.links[API] = f"<{API}>; rel=next"
    with pytest.raises(DataError, match="more than 3 pages"):
        geobench(server, tmp_path)
    assert len(server.log) == 3


def test_files_fetched_by_hand_are_taken(server, tmp_path):
    content = zipped({f"m-eurosat/{n}": c for n, c in IMAGES.items()})
    server.hub({f"{EUROSAT}.zip": content})
    (tmp_path / EUROSAT).parent.mkdir()
    (tmp_path / f"{EUROSAT}.zip").write_bytes(content)
    geobench(server, tmp_path)
    assert not server.asked(".zip")
    assert tree(tmp_path / EUROSAT) == IMAGES


def test_what_comes_down_is_what_the_readers_read(server, tmp_path):
    pytest.importorskip("h5py")
    from geobench_files import write_set
    from worlds import write_world

    from multimae_eo.data.geobench import GeoBench
    from multimae_eo.data.mmearth import MMEarth
    from multimae_eo.modalities import get_modality

    world = write_world(tmp_path / "made", NAME, tiles=4)
    server.files = {f"/{path.name}": path.read_bytes() for path in world.iterdir()}
    folder = mmearth(server, tmp_path / "data")
    assert len(MMEarth(folder, [get_modality("rgb")])) == 4
    made = write_set(tmp_path / "made", "m-eurosat", size=8)
    server.hub({f"{EUROSAT}.zip": zipped({f"m-eurosat/{p.name}": p.read_bytes() for p in made.iterdir()})})
    assert len(GeoBench(geobench(server, tmp_path / "data"), "m-eurosat").ids["train"]) == 6


def test_every_error_is_one_that_the_command_line_prints():
    assert issubclass(web.Refused, MultiMAEError)
