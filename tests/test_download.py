"""download.py against a server on 127.0.0.1 that misbehaves in every way we know of."""

import hashlib
import io
import os
import pickle
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from datasets import download
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


@pytest.fixture
def dead():
    """The address of a port that is taken but that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/dead"


def listing(root) -> set[str]:
    """What is in `root`, but for the lock."""
    return {path.name for path in root.iterdir()} - {".cifar-10.lock"}


def times(root) -> dict:
    """When `root` and each thing in it last changed; a folder changes with what it lists."""
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


WHOLE = {download.ARCHIVE, download.FOLDER}


def assert_whole(root):
    assert listing(root) == WHOLE
    assert (root / download.ARCHIVE).read_bytes() == GOOD
    assert CIFAR10(root, train=True, download=False).targets == [0, 0]
    assert CIFAR10(root, train=False, download=False).targets == [1, 1]


def test_constants_are_those_of_torchvision():
    ours = (download.ARCHIVE, download.FOLDER, download.MD5)
    assert ours == (CIFAR10.filename, CIFAR10.base_folder, CIFAR10.tgz_md5)


def test_bad_sources_are_left_in_turn(server, dead, monkeypatch, tmp_path, capfd):
    paths = ["/gone", "/stall", "/other", "/short", "/good", "/never-asked"]
    monkeypatch.setattr(download, "SOURCES", [dead] + [server.url + path for path in paths])
    # Short, but long enough for the sources that do answer to do so on a busy machine.
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)

    download.ensure_cifar10(tmp_path / "new" / "data")  # root is made where it is missing

    assert_whole(tmp_path / "new" / "data")
    assert server.asked == paths[:-1]
    lines = capfd.readouterr().err.splitlines()
    expected = [
        (dead, "Connection refused"),
        (server.url + "/gone", "404"),
        (server.url + "/stall", "no bytes for 1 s"),
        (server.url + "/other", f"another file (MD5 {md5(OTHER)})"),
        (server.url + "/short", f"closed after 50 of {len(GOOD)} bytes"),
    ]
    assert len(lines) == len(expected)
    for line, (url, why) in zip(lines, expected, strict=True):
        assert url in line
        assert why in line


def test_second_call_does_nothing(server, sources, tmp_path, capfd):
    sources("/good")
    download.ensure_cifar10(tmp_path)
    before = times(tmp_path)
    download.ensure_cifar10(tmp_path)
    assert server.asked == ["/good"]
    assert times(tmp_path) == before  # not even a lock or a temporary: `root` may be read-only
    assert capfd.readouterr().err == ""


def test_cifar10_url_goes_first(server, sources, monkeypatch, tmp_path):
    sources("/never-asked")
    monkeypatch.setenv("CIFAR10_URL", server.url + "/good")
    download.ensure_cifar10(tmp_path)
    assert server.asked == ["/good"]
    assert_whole(tmp_path)


@pytest.mark.parametrize("url", ["not-a-url", "http://[", "http://127.0.0.1:port/"])
def test_senseless_cifar10_url_is_one_line(server, sources, monkeypatch, tmp_path, capfd, url):
    sources("/good")
    monkeypatch.setenv("CIFAR10_URL", url)
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert url in line


def test_archive_in_place_needs_no_source(server, sources, tmp_path, capfd):
    sources("/never-asked")
    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)
    assert server.asked == []
    assert capfd.readouterr().err == ""


def test_partial_archive_stays_until_a_whole_one_replaces_it(server, sources, tmp_path, capfd):
    archive = tmp_path / download.ARCHIVE
    archive.write_bytes(GOOD[:-1])
    sources("/other")
    with pytest.raises(UserError):
        download.ensure_cifar10(tmp_path)
    assert archive.read_bytes() == GOOD[:-1]
    assert listing(tmp_path) == {download.ARCHIVE}
    assert str(archive) in capfd.readouterr().err.splitlines()[0]

    sources("/good")
    download.ensure_cifar10(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_broken_folder_is_mended_and_a_persons_file_stays(server, sources, tmp_path, name):
    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    download.ensure_cifar10(tmp_path)
    folder = tmp_path / download.FOLDER
    (folder / "notes.txt").write_text("mine")
    broken = bytearray(FILES[name])
    broken[-2] ^= 1  # same length, one bit off
    (folder / name).write_bytes(broken)
    assert not download.is_whole(tmp_path)

    download.ensure_cifar10(tmp_path)

    assert download.is_whole(tmp_path)
    assert (folder / "notes.txt").read_text() == "mine"


def test_no_source_is_one_line_with_three_ways_out(server, dead, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "SOURCES", [dead, server.url + "/short"])
    with pytest.raises(UserError) as caught:
        download.ensure_cifar10(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for way_out in [str(tmp_path / download.ARCHIVE), "CIFAR10_URL", "sh exp.sh --quick"]:
        assert way_out in message
    assert listing(tmp_path) == set()


def test_unusable_root_is_one_line(server, sources, tmp_path):
    sources("/never-asked")
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "data"  # nobody, not even root, can write below a file
    with pytest.raises(UserError) as caught:
        download.ensure_cifar10(root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    ("raised", "seen"), [(OSError(28, "No space left"), UserError), (KeyboardInterrupt(), None)]
)
def test_full_disk_and_ctrl_c_end_it_and_leave_nothing(
    server, sources, monkeypatch, tmp_path, capfd, raised, seen
):
    sources("/good", "/never-asked")

    def fsync(_):
        raise raised

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(seen or KeyboardInterrupt):
        download.ensure_cifar10(tmp_path)
    assert server.asked == ["/good"]  # a full disk is not the source's fault
    assert capfd.readouterr().err == ""
    assert listing(tmp_path) == set()


def test_kill_while_unpacking_leaves_nothing_that_passes_for_whole(
    server, sources, monkeypatch, tmp_path
):
    (tmp_path / download.ARCHIVE).write_bytes(GOOD)
    moved = []

    def killed_at_the_last_file(source, target, replace=os.replace):
        if len(moved) == len(FILES) - 1:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_at_the_last_file)
        with pytest.raises(KeyboardInterrupt):
            download.ensure_cifar10(tmp_path)
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

    def unpack(*args, real=download.unpack):
        unpacked.append(args)
        real(*args)

    monkeypatch.setattr(download, "is_whole", is_whole)
    monkeypatch.setattr(download, "unpack", unpack)
    threads = [threading.Thread(target=download.ensure_cifar10, args=(tmp_path,)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/good"]
    assert len(unpacked) == 1
    assert_whole(tmp_path)
