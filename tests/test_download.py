"""download.py against a server on 127.0.0.1 that misbehaves in every way we know of."""

import hashlib
import io
import pickle
import socket
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from images import download
from utils import UserError


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def batch(label: int) -> bytes:
    return pickle.dumps({"data": np.full((2, 3072), label, np.uint8), "labels": [label, label]})


# CIFAR-10 in small: two training images, two test images, the same layout.
FILES = {
    "data_batch_1": batch(0),
    "test_batch": batch(1),
    "batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}),
}


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{download.FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


GOOD = tar_gz(FILES)
OTHER = tar_gz({**FILES, "data_batch_1": batch(2)})  # a sound archive, but not CIFAR-10


class Handler(BaseHTTPRequestHandler):
    """Serves /good, /other, /stall, /short; anything else is a 404."""

    # path: (bytes sent, Content-Length announced)
    replies = {
        "/good": (GOOD, len(GOOD)),
        "/other": (OTHER, len(OTHER)),
        "/stall": (GOOD[:50], len(GOOD)),
        "/short": (GOOD[:50], len(GOOD)),
    }

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in self.replies:
            return self.send_error(404)
        body, length = self.replies[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/stall":
            self.server.test_over.wait(10)
        return None

    def log_message(self, *args):
        pass  # stderr is under test


@pytest.fixture
def server(monkeypatch):
    """The server, with `asked` (paths, in order) and `url`; download.py believes in small data."""
    monkeypatch.setattr(download, "MD5", md5(GOOD))
    monkeypatch.setattr(download, "STALL_SECONDS", 5.0)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(FILES["data_batch_1"])]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(FILES["test_batch"])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(FILES["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.test_over = [], threading.Event()
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
    """Sets SOURCES to these paths on the server."""
    return lambda *paths: monkeypatch.setattr(download, "SOURCES", [server.url + p for p in paths])


def listing(root) -> set[str]:
    """What is in `root`, but for the lock."""
    return {path.name for path in root.iterdir()} - {".cifar-10.lock"}


def assert_whole(root):
    assert listing(root) == {download.ARCHIVE, download.FOLDER}
    assert (root / download.ARCHIVE).read_bytes() == GOOD
    assert CIFAR10(root, train=True, download=False).targets == [0, 0]
    assert CIFAR10(root, train=False, download=False).targets == [1, 1]


def test_bad_sources_are_left_in_turn(server, monkeypatch, tmp_path, capfd):
    paths = ["/gone", "/stall", "/other", "/short", "/good", "/never-asked"]
    # Short, but long enough for the sources that do answer to do so on a busy machine.
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    with socket.socket() as taken:  # a port that is taken but that nobody listens on
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/dead"
        odd = ["not-a-url", "http://[", "http://127.0.0.1:port/", dead]
        monkeypatch.setattr(download, "SOURCES", odd + [server.url + path for path in paths])
        download.ensure_cifar10(tmp_path / "new" / "data")  # root is made where it is missing

    assert_whole(tmp_path / "new" / "data")
    assert server.asked == paths[:-1]
    lines = capfd.readouterr().err.splitlines()
    reasons = ["", "", "", "refused", "404", "timed out", md5(OTHER), f"{len(GOOD) - 50} more"]
    for line, url, why in zip(lines, download.SOURCES[:-2], reasons, strict=True):
        assert line.startswith(f"CIFAR-10: left {url}: ")
        assert why in line


def test_cifar10_url_goes_first(server, sources, monkeypatch, tmp_path, capfd):
    sources("/never-asked")
    monkeypatch.setenv("CIFAR10_URL", server.url + "/good")
    download.ensure_cifar10(tmp_path)
    assert server.asked == ["/good"]
    assert_whole(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_bar_on_a_terminal(sources, monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    sources("/other", "/good")
    download.ensure_cifar10(tmp_path)
    shown = sys.stderr.getvalue()
    assert shown.count("CIFAR-10: 100%") == 2
    assert "\nCIFAR-10: left " in shown  # not behind the bar


def test_whole_folder_is_used_as_it_is(server, sources, tmp_path, capfd):
    def times():  # a folder's changes with what it lists
        return {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    sources("/never-asked")
    (tmp_path / download.FOLDER).mkdir()
    for name, data in FILES.items():
        (tmp_path / download.FOLDER / name).write_bytes(data)
    before = times()
    download.ensure_cifar10(tmp_path)
    assert times() == before  # not even a lock or a temporary: `root` may be read-only
    assert server.asked == []
    assert capfd.readouterr().err == ""


def test_archive_in_place_needs_no_source(server, sources, tmp_path, capfd):
    sources("/never-asked")
    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)
    assert server.asked == []
    assert capfd.readouterr() == ("", "")


def test_partial_archive_stays_until_a_whole_one_replaces_it(sources, tmp_path, capfd):
    archive = tmp_path / download.ARCHIVE
    archive.write_bytes(GOOD[:-1])
    sources("/other", "/short")
    with pytest.raises(UserError) as caught:
        download.ensure_cifar10(tmp_path)
    assert archive.read_bytes() == GOOD[:-1]
    assert listing(tmp_path) == {download.ARCHIVE}
    assert str(archive) in capfd.readouterr().err.splitlines()[0]
    message = str(caught.value)
    assert "\n" not in message
    for way_out in [str(archive), "CIFAR10_URL", "sh exp.sh --quick"]:
        assert way_out in message

    sources("/good")
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("missing", [False, True])
def test_broken_folder_is_mended_and_a_persons_file_stays(server, tmp_path, name, missing):
    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    download.ensure_cifar10(tmp_path)
    file = tmp_path / download.FOLDER / name
    file.with_name("notes.txt").write_text("mine")
    if missing:
        file.unlink()
    else:
        file.write_bytes(FILES[name][:-2] + b"?.")  # same length
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)
    assert file.with_name("notes.txt").read_text() == "mine"


def test_unusable_root_is_one_line(server, sources, tmp_path):
    sources("/never-asked")
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "data"  # nobody, not even root, can write below a file
    with pytest.raises(UserError) as caught:
        download.ensure_cifar10(root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked == []


STOPS = [(OSError(28, "No space left"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]


@pytest.mark.parametrize(("raised", "seen"), STOPS)
def test_full_disk_or_ctrl_c_while_downloading(
    server, sources, monkeypatch, tmp_path, capfd, raised, seen
):
    def stop(bar, size):  # pooch calls it after every block that it writes
        assert download.ARCHIVE not in listing(tmp_path)  # nor would a kill leave it
        raise raised

    sources("/good", "/never-asked")
    monkeypatch.setattr(download.tqdm, "update", stop)
    with pytest.raises(seen) as caught:
        download.ensure_cifar10(tmp_path)
    assert "\n" not in str(caught.value)
    assert server.asked == ["/good"]  # a full disk is not the source's fault
    assert capfd.readouterr().err == ""
    assert listing(tmp_path) == set()


@pytest.mark.parametrize(("raised", "seen"), STOPS)
def test_full_disk_or_ctrl_c_while_unpacking(server, monkeypatch, tmp_path, raised, seen):
    def stop(source, target, *_):
        target.write(source.read(10))
        raise raised

    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "copyfileobj", stop)
        with pytest.raises(seen):
            download.ensure_cifar10(tmp_path)
    assert any((tmp_path / download.FOLDER).iterdir())
    assert not download.is_whole(tmp_path)
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)


def test_two_at_once_do_the_work_once(server, sources, monkeypatch, tmp_path):
    sources("/good")
    both_saw_nothing = threading.Barrier(2, timeout=5)
    seen = threading.local()

    def is_whole(root, real=download.is_whole):
        answer = real(root)
        if not hasattr(seen, "first"):  # the look before the lock: hold both here
            seen.first = answer
            both_saw_nothing.wait()
        return answer

    unpacked = []

    def extract_archive(*args, real=download.extract_archive):
        unpacked.append(args)
        real(*args)

    monkeypatch.setattr(download, "is_whole", is_whole)
    monkeypatch.setattr(download, "extract_archive", extract_archive)
    threads = [threading.Thread(target=download.ensure_cifar10, args=(tmp_path,)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/good"]
    assert len(unpacked) == 1
    assert_whole(tmp_path)
