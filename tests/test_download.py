"""download.py against a server on 127.0.0.1 that misbehaves in every way we know of."""

import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from images import download
from images.cifar import CIFAR10
from utils import UserError


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


GOOD = random.Random(0).randbytes(200_000)  # what is in an archive is nothing to download.py
OTHER = GOOD[:-1] + b"?"


class Handler(BaseHTTPRequestHandler):
    """Serves what `replies` names and some that have no end; anything else is a 404."""

    # path: (bytes sent, Content-Length announced)
    replies = {
        "/good": (GOOD, len(GOOD)),
        "/other": (OTHER, len(OTHER)),
        "/stall": (GOOD[:50], len(GOOD)),
        "/short": (GOOD[:50], len(GOOD)),
        "/drip": (b"", len(GOOD)),
        "/header": (b"", None),
        "/endless": (b"", None),
    }

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in self.replies:
            return self.send_error(404)
        body, length = self.replies[self.path]
        self.send_response(200)
        if self.path == "/header":  # one that never ends
            self.end_headers = lambda: None
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        over = self.server.test_over
        try:
            if self.path == "/stall":
                over.wait(10)
            while self.path in ("/drip", "/header") and not over.wait(0.05):
                self.wfile.write(b"x")
            while self.path == "/endless" and not over.is_set():
                self.server.sent += self.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # whoever asked has left
        return None

    def log_message(self, *args):
        pass  # stderr is under test


@pytest.fixture
def server(monkeypatch):
    """The server, with `asked` (paths, in order) and `url`; download.py believes in small data."""
    monkeypatch.setattr(CIFAR10, "md5", md5(GOOD))
    monkeypatch.setattr(CIFAR10, "size", len(GOOD))
    monkeypatch.setattr(download, "STALL_SECONDS", 5.0)
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.sent, server.test_over = [], 0, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.test_over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sources(server, monkeypatch):
    """Sets the sources to these paths on the server."""
    return lambda *paths: monkeypatch.setattr(CIFAR10, "sources", [server.url + p for p in paths])


def listing(root) -> set[str]:
    """What is in `root`, but for the lock."""
    return {path.name for path in root.iterdir()} - {".cifar-10.lock"}


def assert_whole(root):
    assert listing(root) == {CIFAR10.archive}
    assert (root / CIFAR10.archive).read_bytes() == GOOD


def test_bad_sources_are_left_in_turn(server, monkeypatch, tmp_path, capfd):
    paths = ["/gone", "/stall", "/other", "/short", "/drip", "/header", "/endless", "/good"]
    paths.append("/never-asked")
    # Short, but long enough for the sources that do answer to do so on a busy machine.
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    with socket.socket() as taken:  # a port that is taken but that nobody listens on
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/dead"
        odd = ["not-a-url", "http://[", "http://127.0.0.1:port/", "file:///etc/hosts", dead]
        monkeypatch.setattr(CIFAR10, "sources", odd + [server.url + path for path in paths])
        began = time.monotonic()
        new = tmp_path / "new" / "data"  # made where it is missing
        archive = download.ensure_archive(new, CIFAR10)
        assert time.monotonic() - began < 20

    assert archive == tmp_path / "new" / "data" / CIFAR10.archive
    assert_whole(archive.parent)
    assert server.asked == paths[:-1]
    assert server.sent < 2e7  # what was taken and what sockets hold: no body without an end
    lines = capfd.readouterr().err.splitlines()
    reasons = ["", "", "", "", "refused", "404", "timed out", md5(OTHER), f"{len(GOOD) - 50} more"]
    reasons += ["bytes a second", "it does not answer", "more than the archive's 200,000 bytes"]
    for line, url, why in zip(lines, CIFAR10.sources[:-2], reasons, strict=True):
        assert line.startswith(f"CIFAR-10: left {url}: ")
        assert why in line


def test_a_source_that_starts_fast_and_then_crawls_is_left(server, sources, monkeypatch, tmp_path):
    monkeypatch.setattr(Handler, "replies", Handler.replies | {"/drip": (GOOD[:-50], len(GOOD))})
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    sources("/drip", "/good")
    download.ensure_archive(tmp_path, CIFAR10)
    assert server.asked == ["/drip", "/good"]


def test_a_wrong_ca_bundle_is_not_the_disks_fault(sources, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    sources("/good")
    secure = ["https://127.0.0.1:1/", *CIFAR10.sources]
    monkeypatch.setattr(CIFAR10, "sources", secure)
    download.ensure_archive(tmp_path, CIFAR10)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("CIFAR-10: left https://") and "nowhere.pem" in line
    assert_whole(tmp_path)


def test_cifar10_url_goes_first(server, sources, monkeypatch, tmp_path, capfd):
    sources("/never-asked")
    monkeypatch.setenv("CIFAR10_URL", server.url + "/good")
    download.ensure_archive(tmp_path, CIFAR10)
    assert server.asked == ["/good"]
    assert_whole(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_bar_on_a_terminal(sources, monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    sources("/other", "/good")
    download.ensure_archive(tmp_path, CIFAR10)
    shown = sys.stderr.getvalue()
    assert shown.count("CIFAR-10: 100%") == 2
    assert "\nCIFAR-10: left " in shown  # not behind the bar


def test_an_archive_in_place_is_left_as_it_is(server, sources, tmp_path, capfd):
    sources("/never-asked")
    (tmp_path / CIFAR10.archive).write_bytes(b"somebody's")
    assert download.ensure_archive(tmp_path, CIFAR10).read_bytes() == b"somebody's"
    assert server.asked == [] and capfd.readouterr() == ("", "")


def test_no_source_is_one_line_with_ways_out(sources, tmp_path):
    sources("/other", "/short")
    with pytest.raises(UserError) as caught:
        download.ensure_archive(tmp_path, CIFAR10)
    assert listing(tmp_path) == set()
    message = str(caught.value)
    assert "\n" not in message
    for way_out in [str(tmp_path / CIFAR10.archive), "CIFAR10_URL", "sh exp.sh --quick"]:
        assert way_out in message


def test_unusable_root_is_one_line(server, sources, tmp_path):
    sources("/never-asked")
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "data"  # nobody, not even root, can write below a file
    with pytest.raises(UserError) as caught:
        download.ensure_archive(root, CIFAR10)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked == []


STOPS = [(OSError(28, "No space left"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]


@pytest.mark.parametrize(("raised", "seen"), STOPS)
def test_full_disk_or_ctrl_c_while_downloading(
    server, sources, monkeypatch, tmp_path, capfd, raised, seen
):
    def stop(bar, size):  # called after every block that is written
        assert CIFAR10.archive not in listing(tmp_path)  # nor would a kill leave it
        raise raised

    sources("/good", "/never-asked")
    monkeypatch.setattr(download.tqdm, "update", stop)
    with pytest.raises(seen) as caught:
        download.ensure_archive(tmp_path, CIFAR10)
    assert "\n" not in str(caught.value)
    assert server.asked == ["/good"]  # a full disk is not the source's fault
    assert capfd.readouterr().err == ""
    assert listing(tmp_path) == set()


def test_kills_leave_one_file_and_the_next_try_takes_it(server, sources, tmp_path):
    code = "import sys\nfrom images.cifar import CIFAR10, ensure_archive\n"
    code += "ensure_archive(sys.argv[1], CIFAR10)"
    for tries in (1, 2):
        env = os.environ | {"CIFAR10_URL": server.url + "/stall", "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-c", code, str(tmp_path)]
        process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
        while len(server.asked) < tries:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(listing(tmp_path)) <= 1
    sources("/good")
    download.ensure_archive(tmp_path, CIFAR10)
    assert_whole(tmp_path)


def test_two_at_once_download_once(server, sources, tmp_path):
    sources("/good")
    threads = [
        threading.Thread(target=download.ensure_archive, args=(tmp_path, CIFAR10)) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/good"]
    assert_whole(tmp_path)
