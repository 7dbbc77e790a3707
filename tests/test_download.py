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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from multimae_eo.data import download as downloads
from multimae_eo.data import releases, web
from multimae_eo.data.download import download
from multimae_eo.errors import ConfigError, DataError, UnknownNameError, WriteError

NAME = "data_100k_v001"
H5, SPLITS = f"{NAME}.h5", f"{NAME}_splits.json"
API = f"/api/datasets/{releases.GEOBENCH}/tree/main"
FILES = f"/datasets/{releases.GEOBENCH}/resolve/main"
EUROSAT = "classification_v1.0/m-eurosat"
CONTENT = b"\x89HDF\r\n\x1a\n" + bytes(i * i % 251 for i in range(299_992))  # begins like HDF5, no sense behind it
SIZE = "bytes=0-0"  # the Range of requests that ask how long a file is


class Server:
    """Files by path, of MMEarth100k at first; and what goes wrong."""

    def __init__(self):
        sides = {f"/{NAME}_{side}.json": b'{"rows": [1, 2]}' for side in ("splits", "band_stats", "tile_info")}
        self.files: dict[str, bytes] = {"/LICENSE-data": b"CC BY 4.0", **sides, f"/{H5}": CONTENT}
        self.etags: dict[str, str] = {}
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}  # before the real one
        self.pages: dict[str, bytes] = {}  # instead of a file, to all who do not only ask how long it is
        self.cuts: dict[str, list[int]] = {}  # bytes after which an answer breaks off
        self.ranges = self.lengths = self.honest = True  # honest: heeds If-Range
        self.slow = self.beat = 0.0  # seconds before an answer, and every 10,000 bytes
        self.log: list[tuple[str, dict[str, str]]] = []
        self.open = self.most = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self, end: str) -> list[str | None]:
        """The Range of each request for a path with this end, but those that ask for its size."""
        asked = [headers.get("Range") for path, headers in self.log if path.endswith(end)]
        return [part for part in asked if part != SIZE]

    def hub(self, files: dict[str, bytes]) -> None:
        """Put up files as the Hub does: a list, in which they have a SHA-256."""
        entries: list[dict] = [{"type": "directory", "path": "classification_v1.0", "oid": "0", "size": 0}]
        for path, content in files.items():
            self.files[f"{FILES}/{path}"] = content
            size, oid = len(content), hashlib.sha256(content).hexdigest()
            entries.append({"type": "file", "path": path, "size": size, "lfs": {"oid": oid, "size": size}})
        self.files[API] = json.dumps(entries).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args):
        self.state = server
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        state, path = self.state, unquote(urlsplit(self.path).path)
        with state.lock:
            state.log.append((path, dict(self.headers)))
            answers = state.answers.get(path)
            answer = answers.pop(0) if answers else None
        if path in state.pages and self.headers.get("Range") != SIZE:
            self.instead(state.pages[path])
        elif answer or path not in state.files:
            status, headers = answer or (404, {})
            self.answer(status, {"Content-Length": "0", **headers})
        else:
            self.send(path, state.files[path])

    def instead(self, page: bytes) -> None:
        self.close_connection = True
        self.answer(200, {"Content-Type": "text/html", "Connection": "close"})
        self.pour(page)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, path: str, content: bytes) -> None:
        state, start, part = self.state, 0, {}
        etag, wanted = state.etags.get(path, '"one"'), self.headers.get("Range")
        if wanted and state.ranges and (not state.honest or self.headers.get("If-Range", etag) == etag):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            start = int(first)
            part = {"Content-Range": f"bytes {start}-{last or len(content) - 1}/{len(content)}"}
        body = content[start:]
        about = {"ETag": etag, "Connection": "close", **part}
        about |= {"Content-Length": str(len(body))} if state.lengths else {}
        self.close_connection = True
        self.answer(206 if part else 200, about)
        if wanted == SIZE:
            self.pour(body[: 1 if part else 16])
        else:
            cuts = state.cuts.get(path)
            self.pour(body[: cuts.pop(0) if cuts else None])

    def pour(self, body: bytes) -> None:
        state = self.state
        with state.lock:
            state.open += 1
            state.most = max(state.most, state.open)
        time.sleep(state.slow)
        with contextlib.suppress(OSError):
            for at in range(0, len(body), 10_000):
                time.sleep(state.beat)
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


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_release_of_mmearth(server, tmp_path):
    seen: list[tuple[int, int]] = []
    folder = mmearth(server, tmp_path, progress=lambda *done: seen.append(done))
    assert folder == tmp_path / NAME
    assert tree(folder) == {path[1:]: content for path, content in server.files.items()}
    total = sum(map(len, server.files.values()))
    assert seen[-1] == (total, total)
    server.log.clear()
    mmearth(server, tmp_path, progress=lambda *done: seen.append(done))
    assert server.asked("") == []  # a complete one is not fetched again
    assert seen[-1] == (total, total)


def test_a_broken_connection_goes_on_at_the_byte(server, tmp_path):
    server.cuts[f"/{H5}"] = [100_000, 50_000, 0]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == CONTENT
    assert server.asked(H5) == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert [headers.get("If-Range") for path, headers in server.log if path == f"/{H5}"][2:] == ['"one"'] * 3


def stopped(server, tmp_path, at: int = 120_000) -> Path:
    """A download that was interrupted."""
    server.cuts[f"/{H5}"] = [at, *[0] * len(web.BACKOFF_S)]
    with pytest.raises(DataError, match=rf"{H5}' broke off after {at} of 300000 bytes\. What has come down is kept;"):
        mmearth(server, tmp_path, only=[H5])
    partial = tmp_path / NAME / f"{H5}.partial"
    assert partial.read_bytes() == server.files[f"/{H5}"][:at]
    assert not (tmp_path / NAME / H5).exists()
    server.log.clear()
    return partial


@pytest.mark.parametrize("etag", ['"one"', "", 'W/"weak"'])  # without any that tells a version, the size decides
def test_another_call_goes_on_at_the_byte(server, tmp_path, etag):
    server.etags = dict.fromkeys(server.files, etag)
    partial = stopped(server, tmp_path)
    mmearth(server, tmp_path)
    assert server.asked(H5) == ["bytes=120000-"]
    if_range = [headers.get("If-Range") for path, headers in server.log if path == f"/{H5}"]
    assert if_range == [None, etag if etag == '"one"' else None]
    assert tree(tmp_path / NAME) == {path[1:]: content for path, content in server.files.items()}
    (tmp_path / NAME / H5).rename(partial)
    server.log.clear()
    mmearth(server, tmp_path)
    assert server.asked(H5) == []  # it had come down to the last byte


@pytest.mark.parametrize("size", [300_000, 310_000, 90_000])
@pytest.mark.parametrize("honest", [True, False])
def test_a_changed_file_starts_over(server, tmp_path, size, honest):
    stopped(server, tmp_path)
    server.files[f"/{H5}"], server.etags[f"/{H5}"] = CONTENT[:200] + bytes(size - 200), '"two"'
    server.honest = honest
    mmearth(server, tmp_path)
    assert server.asked(H5)[0] == ("bytes=120000-" if size > 120_000 else None)
    assert (tmp_path / NAME / H5).read_bytes() == server.files[f"/{H5}"]


def test_a_server_without_ranges(server, tmp_path):
    stopped(server, tmp_path)
    server.ranges = False
    server.cuts[f"/{H5}"] = [200_000]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == CONTENT
    assert server.asked(H5) == ["bytes=120000-", "bytes=200000-"]
    shutil.rmtree(tmp_path / NAME)
    server.cuts[f"/{H5}"] = [200_000] * 99
    with pytest.raises(DataError, match="broke off after 200000"):
        mmearth(server, tmp_path)
    server.lengths = False
    with pytest.raises(DataError, match="does not say how long it is"):
        mmearth(server, tmp_path)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_answer_that_may_pass_is_waited_for(server, tmp_path, status, monkeypatch):
    waits = []
    monkeypatch.setattr(web, "BACKOFF_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(downloads._Job, "pause", lambda job, seconds=0.0: waits.append(seconds))
    server.answers[f"/{H5}"] = [(status, {}), (status, {"Retry-After": "7"}), (status, {})]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == CONTENT
    assert [w for w in waits if w] == [0.01, 7.0, 0.03]


REFUSED = {
    503: r" answers with 503 \(Service Unavailable\)\. It asks to come back in 3600 s\. What has come down is kept",
    401: r": the server wants a login \(401\).*in a browser.*by hand",
    404: r": the server has no such file \(404\).*in a browser.*by hand",
}


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_names_the_address_and_what_to_do(server, tmp_path, status):
    server.answers[f"/{H5}"] = [(status, {"Retry-After": "3600"})] * 9
    with pytest.raises(DataError, match=rf"{server.base}/{H5}'{REFUSED[status]}"):
        mmearth(server, tmp_path)
    assert not (tmp_path / NAME / H5).exists()
    server.answers.clear()
    del server.files["/LICENSE-data"]
    assert len(tree(mmearth(server, tmp_path))) == 4  # a mirror may lack the licence


def test_servers_that_cannot_be_reached(server, tmp_path, monkeypatch):
    server.slow = 0.2
    monkeypatch.setattr(web, "TIMEOUT_S", 0.05)
    with pytest.raises(DataError, match="timed out"):
        mmearth(server, tmp_path, only=[H5])
    with pytest.raises(DataError, match="refused"):
        download("mmearth", tmp_path, base="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="base 'file:///etc' is no address"):
        download("mmearth", tmp_path, base="file:///etc")

    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for what, host in (("mmearth64", "sid.erda.dk"), ("geobench", "huggingface.co")):
        with pytest.raises(DataError, match=rf"https://{host}/.*host '{host}' is not found.*a proxy.*by hand"):
            download(what, tmp_path)


def test_redirects_are_followed_with_the_range(server, tmp_path):
    server.answers[f"/{H5}"] = [(302, {"Location": f"{server.base}/elsewhere"})] * 9
    server.files["/elsewhere"], server.cuts["/elsewhere"] = CONTENT, [100_000]
    assert (mmearth(server, tmp_path) / H5).read_bytes() == CONTENT
    assert server.asked("/elsewhere") == [None, "bytes=100000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", H5])
def test_redirects_to_anything_but_http_and_in_circles(server, tmp_path, target):
    server.answers[f"/{H5}"] = [(302, {"Location": target})] * 99
    with pytest.raises(DataError, match=rf"{H5}' (leads to an address that is not fetched|cannot be fetched: unkn)"):
        mmearth(server, tmp_path)


@pytest.mark.parametrize("name", [H5, SPLITS])
def test_a_web_page_instead_of_data(server, tmp_path, name):
    server.files[f"/{name}"] = b"\n <!DOCTYPE html><html>" + bytes(100)
    with pytest.raises(DataError, match=rf"{name}' is no \w+ file, it begins with .*DOCTYPE.*Open it in a browser"):
        mmearth(server, tmp_path)
    assert not (tmp_path / NAME / name).exists()


@pytest.mark.parametrize("sized", [True, False])
def test_a_web_page_does_not_cost_what_is_there(server, tmp_path, sized):
    """A portal answers every request with a page; sized: only once the size of the file is known."""
    partial = stopped(server, tmp_path)
    page = b"<!DOCTYPE html><html>" + bytes(100)
    if sized:
        server.files[f"/{H5}"] = page
        server.ranges = False
    else:
        server.pages[f"/{H5}"] = page
    with pytest.raises(DataError, match="is no h5 file, it begins with"):
        mmearth(server, tmp_path, only=[H5])
    assert partial.read_bytes() == CONTENT[:120_000]
    server.files[f"/{H5}"], server.pages, server.ranges = CONTENT, {}, True
    assert (mmearth(server, tmp_path, only=[H5]) / H5).read_bytes() == CONTENT
    assert server.asked(H5)[-1] == "bytes=120000-"


def test_a_page_is_no_licence(server, tmp_path):
    server.files["/LICENSE-data"] = b"<html>log in</html>"
    assert "LICENSE-data" not in tree(mmearth(server, tmp_path))


def test_a_server_that_sends_too_much(server, tmp_path):
    server.pages[f"/{H5}"] = CONTENT + bytes(3_000_000)
    with pytest.raises(DataError, match=r"has \d+ bytes, expected 300000\. It was thrown away"):
        mmearth(server, tmp_path, only=[H5])
    assert not list((tmp_path / NAME).glob("*.partial"))


def test_a_part_of_the_files(server, tmp_path):
    assert sorted(tree(mmearth(server, tmp_path, only=["*_splits.json", "LICENSE-*"]))) == ["LICENSE-data", SPLITS]
    assert not server.asked(H5)
    (tmp_path / NAME / SPLITS).write_text('{"train": [], "val": [1]}')
    with pytest.raises(DataError, match=r"splits\.json' is there already, but has 25 bytes, expected 16\. Move it"):
        mmearth(server, tmp_path)
    with pytest.raises(UnknownNameError, match=rf"unknown file '{NAME}_split\.json'\. Did you mean '{SPLITS}'"):
        mmearth(server, tmp_path, only=[f"{NAME}_split.json"])
    with pytest.raises(UnknownNameError, match=r"unknown data set 'geobench:m-eurosatt'.*Did you mean 'geobench:m-e"):
        geobench(server, tmp_path, "geobench:m-eurosatt")


def test_files_come_down_at_the_same_time(server, tmp_path):
    server.slow = 0.1
    mmearth(server, tmp_path / "1", workers=5)
    assert 2 <= server.most <= 5
    with pytest.raises(ConfigError, match="workers must be 1 or more; got 0"):
        mmearth(server, tmp_path, workers=0)


def test_the_disk(server, tmp_path, monkeypatch):
    usage, fsync = shutil.disk_usage(tmp_path), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: os.stat(tmp_path / "nowhere"))  # any OSError
    with pytest.raises(WriteError, match=rf"{H5}' could not be written: No such"):
        mmearth(server, tmp_path / "2", only=[H5])
    monkeypatch.setattr(os, "fsync", fsync)
    server.hub({f"{EUROSAT}.zip": zipped({"m-eurosat/large": bytes(10_000_000)})})
    stopped(server, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(WriteError, match=r"'mmearth100k' needs 0\.00 GB more, but 0\.00 GB are free\. Make room, or g"):
        mmearth(server, tmp_path / "3")
    assert not server.asked("")  # it is said before anything is fetched
    mmearth(server, tmp_path)  # what is there need not be fetched again
    with pytest.raises(WriteError, match=r"unpacking 'm-eurosat\.zip' needs 0\.01 GB more"):
        geobench(server, tmp_path)
    assert sorted(tree(tmp_path / "classification_v1.0")) == ["m-eurosat.zip"]


def test_an_interrupt_leaves_what_is_there(server, tmp_path):
    server.beat = 0.02

    def interrupt(done, of):
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mmearth(server, tmp_path, progress=interrupt)
    reached = (tmp_path / NAME / f"{H5}.partial").stat().st_size
    assert 50_000 <= reached < 300_000
    server.beat = 0
    assert (mmearth(server, tmp_path) / H5).read_bytes() == CONTENT


def test_a_killed_download_goes_on(server, tmp_path):
    server.beat = 0.02
    code = "import sys, pathlib; from multimae_eo.data.download import download as d; "
    code += "d('mmearth100k', pathlib.Path(sys.argv[1]), base=sys.argv[2]); print('torch' in sys.modules)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.base])
    partial = tmp_path / NAME / f"{H5}.partial"
    while not partial.exists() or partial.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = partial.stat().st_size
    assert not (tmp_path / NAME / H5).exists()
    server.beat = 0
    run = subprocess.run(process.args, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"  # needs no torch
    assert (tmp_path / NAME / H5).read_bytes() == CONTENT
    assert server.asked(H5) == [None, f"bytes={reached}-"]


def test_names_and_addresses_are_those_of_the_publishers():
    from multimae_eo.data.geobench_sets import SETS

    real = {name: known.folder for name, known in SETS.items() if not name.startswith("synthetic")}
    assert set(releases.SETS) == set(real)
    assert set(releases.FOLDERS) == set(real.values())
    h5 = releases.mmearth_files("mmearth64", None)[-1]
    assert h5.url == "https://sid.erda.dk/share_redirect/bX5JzPuwJF/data_1M_v001_64.h5"


def geobench(server: Server, out: Path, what: str = "geobench:m-eurosat", **options) -> Path:
    return download(what, out, base=server.base, **options)


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


IMAGES = {f"m-eurosat/id_{i:04d}.hdf5": CONTENT[: 500 + i] for i in range(5)} | {"m-eurosat/band_stats.json": b"{}"}


@pytest.mark.parametrize("inside", ["", "classification_v1.0/"])
def test_a_set_of_geobench_is_unpacked(server, tmp_path, inside):
    content = zipped({f"{inside}{name}": c for name, c in IMAGES.items()} | {"__MACOSX/x": b"1"})
    server.hub({f"{EUROSAT}.zip": content})
    assert geobench(server, tmp_path) == tmp_path
    assert tree(tmp_path / "classification_v1.0") == IMAGES
    server.log.clear()
    geobench(server, tmp_path)
    shutil.rmtree(tmp_path / EUROSAT)
    (tmp_path / f"{EUROSAT}.zip").write_bytes(content)  # by hand
    geobench(server, tmp_path)
    assert tree(tmp_path / "classification_v1.0") == IMAGES
    assert not server.asked(".zip")  # neither fetched nor unpacked again


def test_some_sets_of_geobench(server, tmp_path):
    names = [EUROSAT, "segmentation_v1.0/m-pv4ger-seg", "classification_v1.0/m-pv4ger"]
    server.hub({"README.md": b"?", **{f"{n}.zip": zipped({f"{n}/a.hdf5": b"a"}) for n in names}})
    geobench(server, tmp_path / "all", "geobench")
    assert sorted(tree(tmp_path / "all")) == sorted(f"{name}/a.hdf5" for name in names)
    geobench(server, tmp_path / "two", "geobench", only=["m-eurosat", "m-pv4ger-*"])
    assert sorted(tree(tmp_path / "two")) == sorted(f"{name}/a.hdf5" for name in names[:2])
    with pytest.raises(DataError, match=r"lists no zip of 'm-forestnet'"):
        geobench(server, tmp_path, "geobench:m-forestnet")
    server.files[f"{FILES}/{EUROSAT}.zip"] = server.files[f"{FILES}/{EUROSAT}.zip"][:-1] + b"X"
    with pytest.raises(DataError, match=r"m-eurosat\.zip' is damaged: its SHA-256 is .*It was thrown away"):
        geobench(server, tmp_path / "three")
    assert tree(tmp_path / "three") == {}


LINK = zipfile.ZipInfo("m-eurosat/link")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16
BOMB = bytearray(zipped({"m-eurosat/bomb": bytes(10_000_000)}))  # states less than it holds
for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
    at = BOMB.index(mark) + place
    BOMB[at : at + 4] = (1000).to_bytes(4, "little")
PATHS = ("../evil", "m-eurosat/../../evil", "/evil", "C:/evil", "a\\..\\evil", "m-eurosat//evil")
HOSTILE = (
    *((zipped({"m-eurosat/good": b"1", path: b"2"}), r"names the path .*which leads out of its") for path in PATHS),
    (zipped({"m-eurosat/good": b"1", LINK: b"/etc"}), "'m-eurosat/link' is a link"),
    (bytes(BOMB), "cannot be unpacked: .*Delete it"),
    (b"PK not a zip" + bytes(100), "cannot be unpacked"),
    (zipped({"other/x": b"1"}), "holds no file in a folder 'm-eurosat'"),
    (b"Rar!" + bytes(100), "is no zip file"),
)


@pytest.mark.parametrize(("content", "says"), HOSTILE)
def test_zips_that_are_hostile_or_none(server, tmp_path, content, says):
    server.hub({f"{EUROSAT}.zip": content})
    with pytest.raises(DataError, match=rf"m-eurosat\.zip'.*{says}"):
        geobench(server, tmp_path)
    assert all(path.startswith(f"{EUROSAT}.zip") for path in tree(tmp_path))
    assert not list(tmp_path.parent.glob("evil"))


@pytest.mark.parametrize("content", [b"<html>", b'{"error": "x"}', b'["x"]', b'[{"type": "file"}]', b"7"])
def test_lists_that_make_no_sense(server, tmp_path, content):
    server.files[API] = content
    with pytest.raises(DataError, match="answers with no list of files"):
        geobench(server, tmp_path)
