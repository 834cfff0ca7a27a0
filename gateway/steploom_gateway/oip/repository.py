"""The model repository: its index, and loading and unloading by name, each left to the keeper of that name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from steploom_common.errors import InvalidRequest, NotFound, Unsupported, Violation
from steploom_gateway.oip.names import VERSION
from steploom_protos.inference import grpc_service_pb2 as pb

_MAX_NAME = 300  # characters of a name that are looked at, and shown


class State(Enum):
    """Where a model stands, in Triton's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Entry:
    """A model, as the index shows it."""

    name: str
    state: State
    reason: str = ""  # empty: nothing is amiss
    version: str = VERSION


class Keeper(Protocol):
    """Keeps the models of one kind: lists them, loads and unloads them. Names of two keepers must differ."""

    def keeps(self, name: str) -> bool:
        """Whether a name is one of its own, loaded or not: what is asked under it then goes there and nowhere else."""

    async def entries(self) -> Sequence[Entry]:
        """All that it has, loaded or not, as it stands now."""

    async def load(self, name: str) -> None:
        """Loads it, or loads it anew from changed files; returns when it serves.

        Raises:
            SteploomError: it cannot be had, and what was there before serves on.
        """

    async def unload(self, name: str) -> None:
        """Offers it no more; requests that have begun end with it. Nothing where it is not loaded.

        Raises:
            SteploomError: it stays.
        """


class Repository:
    """See the module.

    Args:
        keepers: asked in this order whose a name is.
        is_controlled: whether clients may load and unload.
    """

    def __init__(self, keepers: Sequence[Keeper], is_controlled: bool) -> None:
        self._keepers = keepers
        self._is_controlled = is_controlled

    async def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """What there is; only what is ready, where that is asked.

        Raises:
            Unsupported: a repository is named.
        """
        _check_repository(request.repository_name)
        found = [entry for keeper in self._keepers for entry in await keeper.entries()]
        shown = [entry for entry in found if entry.state is State.READY or not request.ready]
        row = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                row(name=item.name, version=item.version, state=item.state.value, reason=item.reason) for item in shown
            ]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest) -> None:
        """Loads a model.

        Raises:
            SteploomError: it is not loaded; the message says why.
        """
        self._check("loaded", request)
        if request.parameters:
            raise Unsupported(
                "parameters: a model is loaded as its folder says; a configuration or files of a request are not taken"
            )
        await (await self._keeper(request.model_name)).load(request.model_name)

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> None:
        """Unloads a model. Triton's parameter `unload_dependents` asks for no more: what depends on it goes with it.

        Raises:
            SteploomError: it is not unloaded; the message says why.
        """
        self._check("unloaded", request)
        problems = [
            Violation(f"parameters.{name[:100]}", "does not exist; there is: unload_dependents")
            for name in request.parameters
            if name != "unload_dependents"
        ]
        if problems:
            raise InvalidRequest(*problems)
        await (await self._keeper(request.model_name)).unload(request.model_name)

    def _check(self, verb: str, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> None:
        if not self._is_controlled:
            raise Unsupported(f"models cannot be {verb} by clients; gateway.remote_model_control says whether they may")
        _check_repository(request.repository_name)
        if not 1 <= len(request.model_name) <= _MAX_NAME:
            length = len(request.model_name)
            raise InvalidRequest(Violation("model_name", f"has {length} characters, must have 1 to {_MAX_NAME}"))

    async def _keeper(self, name: str) -> Keeper:
        for keeper in self._keepers:
            if keeper.keeps(name):
                return keeper
        known = [entry.name for keeper in self._keepers for entry in await keeper.entries()]
        for keeper in self._keepers:  # a folder that has come since the last look
            if keeper.keeps(name):
                return keeper
        raise NotFound("model", name, known)


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported("there is one repository, without a name")
