"""Certificates in files: what is wrong with them is said beside the setting's name, and changes are taken."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Pair, authority, needs_openssl, signed

from steploom_common.reread import Reread
from steploom_common.settings import ConfigError
from steploom_common.tls_files import ServerTls, TlsFiles


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cert": "a.pem"}, "key: is empty, must be set where cert is"),
        ({"key": "a.key"}, "cert: is empty, must be set where key is"),
        ({"client_ca": "ca.pem"}, "client_ca: is of no use without cert and key"),
    ],
)
def test_settings_go_together(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerTls(**settings)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert not ServerTls()
    assert ServerTls(cert="a", key="b")


@pytest.fixture
def ca(tmp_path: Path) -> Pair:
    return authority(tmp_path)


def files(pair: Pair, ca: Pair) -> TlsFiles:
    return TlsFiles(("tls.cert", pair.cert), ("tls.key", pair.key), ("tls.client_ca", ca.cert))


@needs_openssl
def test_what_fits_is_read_and_not_shown(tmp_path: Path, ca: Pair) -> None:
    pair = signed(tmp_path, "server", ca)
    read = files(pair, ca).read()
    assert (read.cert, read.key, read.ca) == tuple(Path(path).read_bytes() for path in (pair.cert, pair.key, ca.cert))
    assert repr(read) == "Credentials()"


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nonsense(path: Path) -> None:
    path.write_text("no PEM file")


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:150])


def locked(path: Path) -> None:
    path.write_text(path.read_text().replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE"))


def of_another(path: Path) -> None:
    other = authority(path.parent, "other")
    Path(other.key).replace(path)


@needs_openssl
@pytest.mark.parametrize(
    ("setting", "spoil", "words"),
    [
        ("cert", missing, "server.pem cannot be read: No such file"),
        ("key", missing, "server.key cannot be read: No such file"),
        ("client_ca", missing, "authority.pem cannot be read: No such file"),
        ("cert", a_folder, "server.pem cannot be read: Is a directory"),
        ("cert", nonsense, "server.pem holds no certificate in PEM format"),
        ("client_ca", nonsense, "authority.pem holds no certificate in PEM format"),
        ("cert", cut, "server.pem holds no certificate in PEM format, or a damaged one"),
        ("key", nonsense, "server.key holds no private key in PEM format"),
        ("key", cut, "server.key cannot be used with"),
        ("key", locked, "server.key has a password: write the key without one"),
        ("key", of_another, "server.key is not the key of the certificate in"),
    ],
)
def test_a_wrong_file_is_named_with_its_setting(
    tmp_path: Path, ca: Pair, setting: str, spoil: Callable[[Path], None], words: str
) -> None:
    pair = signed(tmp_path, "server", ca)
    named = files(pair, ca)
    spoil(Path({"cert": pair.cert, "key": pair.key, "client_ca": ca.cert}[setting]))
    with pytest.raises(ConfigError) as caught:
        named.read()
    assert str(caught.value).startswith(f"tls.{setting}: ")
    assert words in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="for root every file can be read")
@needs_openssl
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, ca: Pair) -> None:
    pair = signed(tmp_path, "server", ca)
    Path(pair.key).chmod(0)
    with pytest.raises(ConfigError, match=r"tls.key: .*server.key cannot be read: Permission denied"):
        files(pair, ca).read()


class Number:
    """A file with a number, read by `Reread`."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.num_reads = 0
        self.write(str(number))
        self.reread = Reread([str(path), ""], self.read)

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def read(self) -> int:
        self.num_reads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError("number", type(error).__name__) from None


def test_files_are_read_again_when_they_have_changed_and_only_then(tmp_path: Path) -> None:
    number = Number(tmp_path / "n", 1)
    assert [number.reread.current() for _ in range(3)] == [1, 1, 1]
    assert number.num_reads == 1
    number.write("22")
    assert [number.reread.current() for _ in range(3)] == [22, 22, 22]
    assert number.num_reads == 2


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_was_right_stays_in_use_and_the_wrong_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_gone: bool
) -> None:
    number = Number(tmp_path / "n", 1)
    if is_gone:
        number.path.unlink()
    else:
        number.write("many")
    with caplog.at_level(logging.ERROR):
        assert [number.reread.current() for _ in range(3)] == [1, 1, 1]
    assert [record.message.split(";")[1] for record in caplog.records] == [" what was read before stays in use"]
    assert caplog.records[0].message.startswith("number: ")
    number.write("3")
    assert number.reread.current() == 3


def test_a_file_that_is_wrong_from_the_start_is_an_error(tmp_path: Path) -> None:
    def read() -> int:
        raise ConfigError("number", "is missing")

    with pytest.raises(ConfigError, match="number: is missing"):
        Reread([str(tmp_path / "n")], read)


def test_whoever_comes_while_another_reads_takes_what_there_is(tmp_path: Path) -> None:
    number = Number(tmp_path / "n", 1)
    is_reading, may_go_on = threading.Event(), threading.Event()
    quick = number.reread._read

    def slow() -> int:
        is_reading.set()
        assert may_go_on.wait(60)
        return quick()

    number.reread._read = slow
    number.write("2")
    reader = threading.Thread(target=number.reread.current)
    reader.start()
    assert is_reading.wait(60)
    assert number.reread.current() == 1
    may_go_on.set()
    reader.join(60)
    assert number.reread.current() == 2
