"""A server that misbehaves in every way: what has come is kept, what is wrong is never used."""

import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from pressoir.errors import ShardError, SourceError, UnreachableError
from pressoir.formats.sharding import LoadingCancelledError, read_manifest
from pressoir.recipe.sections import ShardConfig
from pressoir.reporting import LogReporter
from pressoir.sources import http_ranges, resolve
from pressoir.sources.shards import FolderSource, HttpSource, download_folder, fetch, open_source
from pressoir.stage import StageContext
from pressoir.stages import shard
from pressoir.store.store import Store

SHARD = "shard_01.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sharded folder: two shards of 200 kB of a model that nobody knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sharded")
    (source / "config.json").write_text('{"model_type": "unheard-of"}')
    state = {
        f"layers.{i}.w": torch.randn(50_000, generator=torch.Generator().manual_seed(i)) for i in range(2)
    }
    save_file(state, source / "model.safetensors")
    shard.run({"model": source}, ShardConfig(shards=2), StageContext(out, out, LogReporter(), 0, 1))
    return out


class Faults:
    """What the server does to each request, and what it was asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.asked, self.paths = [], []  # (name, Range header); name and query as they came
        self.change = lambda name, content: content
        self.answer = None  # handles a request instead: answer(handler, name, content, start) -> handled
        self.ranges = True
        self.stalled = threading.Event()  # a request is being held back
        self.resume = threading.Event()

    def requests(self, name):
        return [asked for file, asked in self.asked if file == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        faults, name = self.server.faults, self.path.partition("?")[0].rpartition("/")[2]
        faults.asked.append((name, self.headers.get("Range")))
        faults.paths.append(self.path)
        path = faults.folder / name
        content = faults.change(name, path.read_bytes()) if path.is_file() else None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "") if faults.ranges else None
        start = int(asked[1]) if asked else 0
        if faults.answer is not None and faults.answer(self, name, content, start):
            return
        if content is None:
            self.send_error(404)
        else:
            self.give(content, start, partial=asked is not None)

    def give(self, content, start=0, *, partial=False, only=None, told=None):
        """Answer with `content[start:]`, or break off after `only` bytes of it."""
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", told or f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][:only])
        if only is not None:
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture
def faults(folder):
    return Faults(folder)


@pytest.fixture
def url(faults, monkeypatch):
    """Address of the server; pauses between attempts are short."""
    monkeypatch.setattr(http_ranges, "BACKOFF_S", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.faults = faults
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/models/tiny"
        faults.resume.set()
        server.shutdown()


def on(name, act):
    """A fault that meets only requests for one file: `act(handler, content, start)`."""

    def answer(handler, asked, content, start):
        if asked != name:
            return False
        act(handler, content, start)
        return True

    return answer


def records(source):
    return {record.file: record for record in source.manifest.shards}


def fetched(source, name=SHARD):
    """A shard's bytes, and what was told of its progress."""
    told = []
    with source.shard(records(source)[name], told.append) as mapped:
        return bytes(mapped), told


# All is well.


def test_a_folder_is_fetched_whole_and_equals_the_servers(url, folder, tmp_path):
    result = fetch(url, tmp_path / "copy")
    names = {path.name for path in folder.iterdir()} - {"SHARDING_INFO.md"}
    assert {path.name for path in result.iterdir()} == names
    assert all((result / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_file_is_asked_for_once_and_progress_adds_up(url, faults, folder, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    content, told = fetched(source)
    assert content == (folder / SHARD).read_bytes()
    assert sum(told) == len(content)
    assert faults.requests(SHARD) == [None]


def test_a_query_goes_with_every_request_and_into_no_message(url, faults, tmp_path):
    faults.answer = on("shard_00.safetensors", lambda handler, content, start: handler.send_error(403))
    source = HttpSource(f"{url}?key=secret", tmp_path / "copy")
    with pytest.raises(
        SourceError, match=r"tiny/shard_00\.safetensors cannot be downloaded: HTTP 403"
    ) as told:
        fetched(source, "shard_00.safetensors")
    assert "secret" not in str(told.value)
    assert faults.paths
    assert all(path.endswith("?key=secret") for path in faults.paths)


# The connection breaks.


def test_a_dropped_connection_is_resumed_where_it_stopped(url, faults, folder, tmp_path):
    size = (folder / SHARD).stat().st_size
    source = HttpSource(url, tmp_path / "copy")
    faults.answer = on(
        SHARD, lambda handler, content, start: handler.give(content, start, partial=start > 0, only=60_000)
    )
    content, told = fetched(source)
    assert content == (folder / SHARD).read_bytes()
    assert sum(told) == size
    assert min(told) > 0  # nothing was fetched twice
    assert faults.requests(SHARD) == [None, *(f"bytes={n}-" for n in range(60_000, size, 60_000))]


def test_after_the_last_attempt_the_part_is_kept_and_the_next_run_goes_on(url, faults, folder, tmp_path):
    def drop(handler, content, start):
        handler.give(content, start, partial=start > 0, only=0 if start else 60_000)

    faults.answer = on(SHARD, drop)
    left = (folder / SHARD).stat().st_size - 60_000
    message = rf"shard_01\.safetensors: .* with {left} bytes remaining; tried 5 times; .*\.part keeps"
    with pytest.raises(UnreachableError, match=message):
        fetched(HttpSource(url, tmp_path / "copy"))
    part = tmp_path / "copy" / f"{SHARD}.part"
    assert part.read_bytes() == (folder / SHARD).read_bytes()[:60_000]
    assert not (tmp_path / "copy" / SHARD).exists()

    faults.answer, faults.asked = None, []
    content, _ = fetched(HttpSource(url, tmp_path / "copy"))
    assert content == (folder / SHARD).read_bytes()
    assert faults.requests(SHARD) == ["bytes=60000-"]
    assert not part.exists()


def test_a_server_without_ranges_starts_anew_and_progress_goes_back(url, faults, folder, tmp_path):
    faults.ranges = False
    calls = []

    def once(handler, content, start):
        calls.append(start)
        handler.give(content, 0, only=60_000 if len(calls) == 1 else None)

    faults.answer = on(SHARD, once)
    content, told = fetched(HttpSource(url, tmp_path / "copy"))
    assert content == (folder / SHARD).read_bytes()
    assert sum(told) == len(content)
    assert -60_000 in told
    assert len(calls) == 2


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(url, faults, folder, tmp_path, code):
    calls = []

    def busy(handler, content, start):
        calls.append(code)
        handler.send_error(code) if len(calls) < 3 else handler.give(content)

    faults.answer = on(SHARD, busy)
    assert fetched(HttpSource(url, tmp_path / "copy"))[0] == (folder / SHARD).read_bytes()
    assert len(calls) == 3


def test_a_long_download_may_break_more_often_than_a_short_one(url, faults, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(http_ranges, "PROGRESS_BYTES", 10_000)
    faults.answer = on(
        SHARD, lambda handler, content, start: handler.give(content, start, partial=start > 0, only=20_000)
    )
    assert fetched(HttpSource(url, tmp_path / "copy"))[0] == (folder / SHARD).read_bytes()
    assert len(faults.requests(SHARD)) > http_ranges.ATTEMPTS


def test_nobody_listening_is_an_unreachable_server(tmp_path, monkeypatch):
    monkeypatch.setattr(http_ranges, "BACKOFF_S", 0.001)
    with pytest.raises(UnreachableError, match=r"shard_manifest\.json: .*refused.*; tried 5 times"):
        HttpSource("http://127.0.0.1:9", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# The content is wrong.


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_wrong_bytes_are_never_put_in_place(url, faults, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    faults.change = lambda name, content: flipped(content) if name == SHARD else content
    with pytest.raises(ShardError, match=r"/tiny/shard_01\.safetensors was modified"):
        fetched(source)
    assert not list((tmp_path / "copy").glob(f"{SHARD}*"))
    assert len(faults.requests(SHARD)) == 1


def test_a_part_of_another_file_is_thrown_away_and_fetched_anew(url, faults, folder, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    (tmp_path / "copy" / f"{SHARD}.part").write_bytes(b"x" * 1000)
    content, told = fetched(source)
    assert content == (folder / SHARD).read_bytes()
    assert sum(told) == len(content)
    assert faults.requests(SHARD) == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_thrown_away(url, faults, folder, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    (tmp_path / "copy" / f"{SHARD}.part").write_bytes(bytes(300_000))
    assert fetched(source)[0] == (folder / SHARD).read_bytes()
    assert faults.requests(SHARD) == [None]


def test_a_whole_shard_of_an_earlier_run_is_verified_before_use(url, faults, folder, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    content = (folder / SHARD).read_bytes()
    (tmp_path / "copy" / SHARD).write_bytes(content)
    assert fetched(source)[0] == content
    assert faults.requests(SHARD) == []
    (tmp_path / "copy" / SHARD).write_bytes(flipped(content))
    got, told = fetched(source)
    assert got == content
    assert sum(told) == len(content)
    assert faults.requests(SHARD) == [None]


@pytest.mark.parametrize("change", [lambda c: c + b"more", lambda c: c[:-4]])
def test_a_file_of_another_length_is_refused_at_once(url, faults, tmp_path, change):
    source = HttpSource(url, tmp_path / "copy")
    faults.change = lambda name, content: change(content) if name == SHARD else content
    with pytest.raises(SourceError, match=r"shard_01\.safetensors has \d+ bytes, but the manifest says"):
        fetched(source)
    assert len(faults.requests(SHARD)) == 1


def test_no_more_is_read_than_the_manifest_says(url, faults, folder, tmp_path):
    def endless(handler, content, start):
        handler.send_response(200)
        handler.send_header("Connection", "close")  # no length: until the connection ends
        handler.end_headers()
        with suppress(OSError):  # the reader hangs up
            while not faults.resume.is_set():
                handler.wfile.write(bytes(100_000))
        handler.close_connection = True

    source = HttpSource(url, tmp_path / "copy")
    faults.answer = on(SHARD, endless)
    with pytest.raises(ShardError, match="was modified"):
        fetched(source)


@pytest.mark.parametrize("told", ["bytes 0-9/200088", "bytes 60000-1/7", "chunks"])
def test_an_answer_to_another_question_is_refused(url, faults, tmp_path, told):
    source = HttpSource(url, tmp_path / "copy")
    (tmp_path / "copy" / f"{SHARD}.part").write_bytes(bytes(60_000))
    faults.answer = on(
        SHARD, lambda handler, content, start: handler.give(content, start, partial=True, told=told)
    )
    with pytest.raises(SourceError, match=r"returned a different range|has 7 bytes"):
        fetched(source)


def test_a_missing_shard_is_told_at_once(url, faults, tmp_path):
    source = HttpSource(url, tmp_path / "copy")
    faults.answer = on(SHARD, lambda handler, content, start: handler.send_error(404))
    with pytest.raises(SourceError, match=r"tiny/shard_01\.safetensors cannot be downloaded: HTTP 404"):
        fetched(source)
    assert len(faults.requests(SHARD)) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(url, faults, tmp_path, target):
    def redirect(handler, content, start):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    source = HttpSource(url, tmp_path / "copy")
    faults.answer = on(SHARD, redirect)
    with pytest.raises(SourceError, match=r"redirects from http to ftp|is not allowed"):
        fetched(source)
    assert len(faults.requests(SHARD)) == 1


def test_a_redirect_from_https_to_http_is_refused():
    handler, request = http_ranges._Redirects(), urllib.request.Request("https://host/shard")
    with pytest.raises(SourceError, match="redirects from https to http, which is not allowed"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", Message(), "http://host/shard")
    assert handler.redirect_request(request, io.BytesIO(), 302, "Found", Message(), "https://other/shard")


def test_a_redirect_to_another_place_is_followed_with_its_range(url, faults, folder, tmp_path):
    def redirect(handler, name, content, start):
        if name != SHARD or "elsewhere" in handler.path:
            return False
        handler.send_response(302)
        handler.send_header("Location", f"/elsewhere/{SHARD}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    source = HttpSource(url, tmp_path / "copy")
    (tmp_path / "copy" / f"{SHARD}.part").write_bytes((folder / SHARD).read_bytes()[:5000])
    faults.answer = redirect
    assert fetched(source)[0] == (folder / SHARD).read_bytes()
    assert faults.requests(SHARD) == ["bytes=5000-"] * 2


def unsafe(name):
    def change(file, content):
        if file != "shard_manifest.json":
            return content
        manifest = json.loads(content)
        manifest["files"][0]["file"] = name
        return json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/b.json", "..", ".bashrc"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(url, faults, tmp_path, name):
    faults.change = unsafe(name)
    with pytest.raises(ShardError, match="is not allowed in a model folder"):
        HttpSource(url, tmp_path / "copy")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_manifest_larger_than_any_is_refused(url, faults, tmp_path, monkeypatch):
    monkeypatch.setattr("pressoir.sources.shards.MAX_MANIFEST_BYTES", 500)
    with pytest.raises(SourceError, match=r"shard_manifest\.json has more than 500 bytes"):
        HttpSource(url, tmp_path / "copy")


def test_an_altered_configuration_is_refused(url, faults, tmp_path):
    faults.change = lambda name, content: flipped(content) if name == "config.json" else content
    with pytest.raises(ShardError, match=r"config\.json was modified"):
        HttpSource(url, tmp_path / "copy")


@pytest.mark.parametrize("place", ["http://", "https:///models"])
def test_what_is_not_an_address_is_refused(tmp_path, place):
    with pytest.raises(SourceError, match="expected https://host/path"):
        HttpSource(place, tmp_path / "copy")


# Cancelled.


def test_cancelling_ends_a_read_that_waits_and_keeps_the_part(url, faults, folder, tmp_path):
    def stall(handler, content, start):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:60_000])
        handler.wfile.flush()
        faults.stalled.set()
        faults.resume.wait(60)
        handler.close_connection = True

    source = HttpSource(url, tmp_path / "copy")
    faults.answer = on(SHARD, stall)
    raised = []

    def run():
        try:
            fetched(source)
        except LoadingCancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert faults.stalled.wait(60)
    source.cancel()
    thread.join(20)  # far less than the 30 s that a silent server is given
    assert not thread.is_alive()
    assert len(raised) == 1
    assert (tmp_path / "copy" / f"{SHARD}.part").stat().st_size <= 60_000


def test_a_cancelled_source_gives_no_more_shards(folder, url, tmp_path):
    for source in (FolderSource(folder), HttpSource(url, tmp_path / "copy")):
        source.cancel()
        with pytest.raises(LoadingCancelledError):
            fetched(source)


@pytest.mark.process
def test_a_process_killed_half_way_leaves_a_part_that_the_next_goes_on_with(url, faults, folder, tmp_path):
    content = (folder / SHARD).read_bytes()

    def stall(handler, content, start):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100_000])
        handler.wfile.flush()
        faults.stalled.set()
        faults.resume.wait(60)
        handler.close_connection = True

    faults.answer = on(SHARD, stall)
    program = "import sys; from pathlib import Path; from pressoir.sources.shards import fetch\n"
    program += "fetch(sys.argv[1], Path(sys.argv[2]))"
    part = tmp_path / "copy" / f"{SHARD}.part"
    with subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path / "copy")]) as child:
        assert faults.stalled.wait(60)
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
    size = part.stat().st_size
    assert 0 < size <= 100_000
    assert part.read_bytes() == content[:size]
    faults.answer, faults.asked = None, []
    assert (fetch(url, tmp_path / "copy") / SHARD).read_bytes() == content
    assert faults.asked == [("shard_manifest.json", None), (SHARD, f"bytes={size}-")]


# Folders, and where downloads lie.


def test_a_folder_is_verified_shard_by_shard(folder, tmp_path):
    content, told = fetched(FolderSource(folder))
    assert hashlib.sha256(content).hexdigest() == read_manifest(folder).shards[1].sha256
    assert sum(told) == len(content)


def test_writing_to_what_was_mapped_does_not_reach_the_file(folder):
    source, before = FolderSource(folder), (folder / SHARD).read_bytes()
    with source.shard(records(source)[SHARD], lambda count: None) as mapped:
        mapped[100] ^= 1
    assert (folder / SHARD).read_bytes() == before


def test_a_folder_that_is_not_sharded_says_what_to_do(tmp_path):
    with pytest.raises(ShardError, match="`pressoir shard` creates a sharded folder"):
        FolderSource(tmp_path)


def test_what_was_fetched_whole_lies_where_a_reference_looks_for_it(url, faults, tmp_path):
    source = open_source(url, tmp_path)
    for name in records(source):
        fetched(source, name)
    assert not download_folder(url, tmp_path).exists()
    source.close(complete=True)
    assert source.folder == download_folder(url, tmp_path)
    faults.asked = []
    assert resolve.locate(url, Store(tmp_path)) == source.folder
    assert isinstance(open_source(f"{url}/", tmp_path), FolderSource)
    assert faults.asked == []


def test_what_was_cut_short_is_gone_on_with_by_whoever_comes_next(url, faults, tmp_path):
    first = open_source(url, tmp_path)
    fetched(first, "shard_00.safetensors")
    first.close(complete=False)
    faults.asked = []
    folder = resolve.locate(url, Store(tmp_path))
    assert folder == download_folder(url, tmp_path)
    assert faults.requests("shard_00.safetensors") == []
    assert faults.requests(SHARD) == [None]


def test_two_who_want_one_url_do_not_fetch_it_twice(url, faults, tmp_path):
    first = open_source(url, tmp_path)
    second = []
    thread = threading.Thread(target=lambda: second.append(open_source(url, tmp_path)))
    thread.start()
    for name in records(first):
        fetched(first, name)
    assert not second  # it waits for the lock
    first.close(complete=True)
    thread.join(60)
    assert isinstance(second[0], FolderSource)
    assert faults.requests(SHARD) == [None]
