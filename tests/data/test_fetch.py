"""A file is either the right one, complete, or not there at all: whatever the network and the user do."""

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from screpro.data import fetch
from screpro.data.fetch import DataFile
from screpro.errors import ScreproError

BODY = bytes(range(256)) * 2000


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` at every path; can cut the answer short or send it drop by drop."""

    body, short, slow, served = BODY, False, False, 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.served += 1
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        try:
            if server.short:
                self.wfile.write(server.body[: len(server.body) // 2])
            elif server.slow:
                for start in range(0, len(server.body), 4096):
                    self.wfile.write(server.body[start : start + 4096])
                    time.sleep(0.2)
            else:
                self.wfile.write(server.body)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCREPRO_CACHE", str(folder))
    monkeypatch.delenv("SCREPRO_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def a_file(server=None, *, known=True, **over) -> DataFile:
    url = f"{server.url}/cells.bin" if server else None
    fields = {"name": "cells.bin", "place": "files/tiny/cells.bin", "url": url} | over
    return DataFile(sha256=sha(BODY) if known else None, **fields)


def test_downloads_once_then_serves_from_the_cache(server, cache):
    path = fetch.fetch(a_file(server))
    assert path == cache / "files/tiny/cells.bin"
    assert path.read_bytes() == BODY
    fetch.fetch(a_file(server))
    assert server.served == 1
    assert [each.name for each in path.parent.iterdir()] == ["cells.bin"]  # nothing left beside it


def test_wrong_bytes_at_the_address_never_reach_the_cache(server, cache):
    server.body = b"an error page with status 200"
    with pytest.raises(ScreproError, match=sha(BODY)) as caught:
        fetch.fetch(a_file(server))
    assert sha(server.body) in str(caught.value)
    assert not [each for each in cache.rglob("*") if each.is_file()]


@pytest.mark.parametrize("known", [True, False])
def test_a_connection_that_breaks_leaves_nothing(server, cache, known):
    """Above all no lock: half a file must not become the file everyone has to match."""
    server.short = True
    with pytest.raises(ScreproError, match="no complete answer"):
        fetch.fetch(a_file(server, known=known))
    assert not [each for each in cache.rglob("*") if each.is_file()]


def test_a_damaged_copy_in_the_cache_is_replaced(server, cache, capsys):
    path = fetch.fetch(a_file(server))
    path.write_bytes(BODY[:1000])
    assert fetch.fetch(a_file(server)).read_bytes() == BODY
    assert "damaged" in capsys.readouterr().err


def test_a_damaged_copy_offline_is_an_error_not_data(server, cache):
    file = a_file(server)
    path = fetch.fetch(file)
    path.write_bytes(BODY[::-1])
    server.shutdown()
    server.server_close()
    with pytest.raises(ScreproError, match="no complete answer"):
        fetch.fetch(file)


def test_killed_download_is_repeated_in_full(server, cache):
    server.slow = True
    code = (
        "from screpro.data.fetch import DataFile, fetch\n"
        f"fetch(DataFile('cells.bin', 'files/tiny/cells.bin', {server.url + '/cells.bin'!r}, {sha(BODY)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"SCREPRO_CACHE": str(cache)})
    deadline = time.time() + 30
    while not any(each.stat().st_size for each in cache.rglob(".cells*")) and time.time() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(cache.rglob(".cells*")), "the child was not killed in the middle of its download"
    assert not (cache / "files/tiny/cells.bin").exists()
    server.slow = False
    path = fetch.fetch(a_file(server))
    assert path.read_bytes() == BODY
    old = time.time() - 10 * 24 * 3600
    for left in path.parent.glob(".cells*"):
        os.utime(left, (old, old))
    path.unlink()
    fetch.fetch(a_file(server))
    assert [each.name for each in path.parent.iterdir()] == ["cells.bin"]  # what the dead child left is swept


def test_screpro_data_comes_first(server, cache, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    place = folder / "files/tiny/cells.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    monkeypatch.setenv("SCREPRO_DATA", str(folder))
    fetch.fetch(a_file(server))
    assert fetch.fetch(a_file(server)) == place
    assert server.served == 0
    assert fetch.locate(a_file()) == (place, "in SCREPRO_DATA")


def test_wrong_hash_in_screpro_data_names_both_hashes(server, tmp_path, monkeypatch):
    place = tmp_path / "files/tiny/cells.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not it")
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    with pytest.raises(ScreproError) as caught:
        fetch.fetch(a_file(server))
    assert sha(BODY) in str(caught.value) and sha(b"not it") in str(caught.value)
    assert server.served == 0 and place.read_bytes() == b"not it"


def test_screpro_data_that_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ScreproError, match="SCREPRO_DATA"):
        fetch.fetch(a_file())


def test_offline_error_says_which_file_where_and_how(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    file = a_file(url="http://127.0.0.1:9/cells.bin")
    with pytest.raises(ScreproError) as caught:
        fetch.fetch(file)
    for needed in ("cells.bin", str(cache / file.place), str(tmp_path / file.place), file.url, sha(BODY)):
        assert needed in str(caught.value)


def test_http_status_is_told(server):
    with pytest.raises(ScreproError, match="404"):
        fetch.fetch(a_file(server, url=f"{server.url}/missing"))


def test_file_by_hand(cache):
    file = DataFile("Liver.h5ad", "manual/liver/Liver.h5ad", obtain="take it from the atlas")
    with pytest.raises(ScreproError, match="take it from the atlas") as caught:
        fetch.fetch(file)
    assert str(cache / file.place) in str(caught.value)
    target = cache / file.place
    target.parent.mkdir(parents=True)
    target.write_bytes(b"cells")
    assert fetch.fetch(file) == target
    assert fetch.known_hash(file) == sha(b"cells")


def test_lock_records_the_first_arrival_and_then_binds(server, capsys):
    file = a_file(server, known=False)
    assert fetch.known_hash(file) is None
    path = fetch.fetch(file)
    record = json.loads(fetch.lock_path(file).read_text())
    assert (record["sha256"], record["bytes"], record["url"]) == (sha(BODY), len(BODY), file.url)
    assert fetch.lock_path(file).name == "cells.bin.lock.json" and fetch.lock_path(file).parent == path.parent
    assert sha(BODY) in capsys.readouterr().err
    fetch.fetch(file)
    assert capsys.readouterr().err == ""  # said once

    path.write_bytes(b"changed")  # refused: only the user knows which of the two is right
    with pytest.raises(ScreproError) as caught:
        fetch.fetch(file)
    assert sha(BODY) in str(caught.value) and sha(b"changed") in str(caught.value)

    path.unlink()
    server.body = b"the publisher changed it"
    with pytest.raises(ScreproError, match=sha(BODY)):
        fetch.fetch(file)
    assert not path.exists()
    fetch.lock_path(file).unlink()
    assert fetch.fetch(file).read_bytes() == server.body


def test_lock_binds_in_screpro_data_too(server, tmp_path, monkeypatch):
    file = a_file(server, known=False)
    fetch.fetch(file)
    other = tmp_path / "mine" / file.place
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another")
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path / "mine"))
    with pytest.raises(ScreproError, match=sha(BODY)):
        fetch.fetch(file)


def test_unreadable_lock_is_one_clear_error(server):
    file = a_file(server, known=False)
    fetch.fetch(file)
    fetch.lock_path(file).write_text("{")
    with pytest.raises(ScreproError, match="lock"):
        fetch.fetch(file)


def test_truncation_is_told_by_size(server, tmp_path, monkeypatch):
    place = tmp_path / "files/tiny/cells.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY[:-1])
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    with pytest.raises(ScreproError, match="truncated"):
        fetch.fetch(a_file(server, bytes=len(BODY)))


@pytest.mark.parametrize("known", [True, False])
def test_many_at_once(server, cache, known):
    file = a_file(server, known=known)
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch.fetch(file, progress=False), range(12)))
    assert {path.read_bytes() for path in paths} == {BODY}
    left = {each.name for each in cache.rglob("*") if each.is_file()}
    assert left == {"cells.bin"} | (set() if known else {"cells.bin.lock.json"})


def test_two_processes_at_once(server, cache):
    code = (
        "from screpro.data.fetch import DataFile, fetch\n"
        f"print(fetch(DataFile('cells.bin', 'files/tiny/cells.bin', {server.url + '/cells.bin'!r})))"
    )
    env = os.environ | {"SCREPRO_CACHE": str(cache)}
    children = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert (cache / "files/tiny/cells.bin").read_bytes() == BODY


def test_racing_locks_keep_the_first(tmp_path):
    file = DataFile("a", "manual/a/a")
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert fetch._lock(one, file, sha(b"1")) == sha(b"1")
    assert fetch._lock(two, file, sha(b"2")) == sha(b"1")


def test_combined_hash_is_of_the_sorted_lines():
    assert fetch.combined_hash({"only": "ab"}) == "ab"
    two = fetch.combined_hash({"b": "2", "a": "1"})
    assert two == fetch.combined_hash({"a": "1", "b": "2"}) == sha(b"a:1\nb:2\n")
    assert two != fetch.combined_hash({"a": "2", "b": "1"})


def test_repository_files_follow_from_commit_and_path():
    file = DataFile.in_repository("owner/name", "0123456789abcdef" * 2 + "01234567", "data/a b.rda")
    assert file.place == "owner/name/0123456789ab/data/a b.rda"
    assert file.url.endswith("/owner/name/0123456789abcdef0123456789abcdef01234567/data/a%20b.rda")
    assert Path(file.place).name == "a b.rda"
