"""The runtime folder: sockets, the lock that makes one `up` the only one, and what other commands read of it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from steploom_common.runtime import socket_address
from steploom_common.settings import ConfigError

MAX_SOCKET_PATH = 107  # bytes: sun_path of unix(7) less its NUL
_LONGEST_SOCKET = "/worker-999.a.sock"


class AlreadyRunning(Exception):
    """Another `up` holds the runtime folder."""


@dataclass(frozen=True)
class Services:
    """What `up` has started, for the other commands."""

    pid: int  # of the supervisor
    gateway: str  # host:port
    batcher: str  # address of the batcher's socket
    workers: tuple[str, ...]  # addresses of the workers' sockets
    local: str = ""  # the gateway's plain socket for this user, where it has one


class RuntimeDir:
    """A folder of this user alone."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __repr__(self) -> str:
        return f"RuntimeDir({self.path})"

    def address(self, service: str) -> str:
        """The address of a service's socket."""
        return socket_address(self.path, service)

    @property
    def config_file(self) -> Path:
        """The effective configuration that the services read."""
        return self.path / "steploom.toml"

    @property
    def control(self) -> Path:
        """The socket on which the supervisor is asked to act."""
        return self.path / "control.sock"

    def create(self) -> None:
        """Makes the folder with owner-only rights.

        Raises:
            ConfigError: it cannot be made, belongs to somebody else, or its path is too long for a socket.
        """
        too_long = len(os.fsencode(self.path)) + len(_LONGEST_SOCKET) - MAX_SOCKET_PATH
        if too_long > 0:
            raise ConfigError("up.runtime_dir", f"{self.path} is {too_long} bytes too long for a Unix socket")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            raise ConfigError("up.runtime_dir", f"{self.path} cannot be made: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ConfigError("up.runtime_dir", f"{self.path} is not a folder of this user")
        self.path.chmod(0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the kernel lets go of it when the process ends.

        Raises:
            AlreadyRunning: another process holds it.
            ConfigError: it cannot be written.
        """
        try:
            handle = (self.path / "lock").open("a+")
        except OSError as error:
            raise ConfigError("up.runtime_dir", f"{error.filename} cannot be used: {error.strerror}") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise AlreadyRunning(f"already running here: {self.path} is held by process {owner}") from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def restore(self, config: str, services: Services) -> None:
        """Writes what is missing of the configuration that the services read, and of what other commands read."""
        if not self.config_file.exists():
            _write_whole(self.config_file, config)
        if self.read_services() is None:
            self.write_services(services)

    def write_services(self, services: Services) -> None:
        """Tells the other commands what runs."""
        _write_whole(self._services_file, json.dumps(asdict(services)))

    def read_services(self) -> Services | None:
        """What an `up` has started here, or None."""
        try:
            table = json.loads(self._services_file.read_text())
            return Services(**(table | {"workers": tuple(table["workers"])}))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Removes what a run leaves behind, all but the lock's file."""
        for file in (*self.path.glob("*.sock"), self._services_file, self.config_file):
            file.unlink(missing_ok=True)

    @property
    def _services_file(self) -> Path:
        return self.path / "services.json"


def _write_whole(file: Path, text: str) -> None:
    """Writes a file that is there whole or not at all: half a configuration would be read as another one."""
    draft = file.with_suffix(".new")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
