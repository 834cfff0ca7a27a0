"""LogSettings: how much this gateway logs, as switches of levels."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from steploom_common.errors import InvalidRequest, Unsupported, Violation
from steploom_protos.inference import grpc_service_pb2 as pb

Setting = pb.LogSettingsRequest.SettingValue

_LOGGERS = ("steploom_gateway", "steploom_common")
_SILENT = logging.CRITICAL + 1
# Each switch turns on a level and all above it; without one, what is above it is left.
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"
_FIXED = {"log_file": "", "log_format": "default"}  # standard error, as the service was started


def log_settings() -> pb.LogSettingsResponse:
    """As they are now."""
    level = logging.getLogger(_LOGGERS[0]).getEffectiveLevel()
    answer = pb.LogSettingsResponse()
    for name, own in _LEVELS.items():
        answer.settings[name].bool_param = level <= own
    answer.settings[_VERBOSE].uint32_param = int(level <= logging.DEBUG)
    for name, value in _FIXED.items():
        answer.settings[name].string_param = value
    return answer


def change(settings: Mapping[str, Setting], is_allowed: bool) -> None:
    """Sets the level that the switches leave; a switch that is not named stays as it is.

    Raises:
        Unsupported: clients may not.
        InvalidRequest: an unknown name, or a value that it cannot have.
    """
    if not settings:
        return
    if not is_allowed:
        raise Unsupported(
            "log settings cannot be changed by clients; gateway.remote_log_settings says whether they may"
        )
    problems = [Violation(f"settings.{name[:100]}", problem) for name, value in settings.items()
                if (problem := _problem(name, value))]  # fmt: skip
    if problems:
        raise InvalidRequest(*problems)
    level = _level(settings)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level)


def _problem(name: str, value: Setting) -> str | None:
    kind = value.WhichOneof("parameter_choice")
    if name in _LEVELS:
        return None if kind == "bool_param" else "must be a bool"
    if name == _VERBOSE:
        return None if kind == "uint32_param" else "must be a whole number"
    if name in _FIXED:
        fixed = _FIXED[name]
        return None if kind == "string_param" and value.string_param == fixed else f"must be {fixed!r}"
    return f"does not exist; there are: {', '.join((*_LEVELS, _VERBOSE, *_FIXED))}"


def _level(settings: Mapping[str, Setting]) -> int:
    now = log_settings().settings
    if (settings[_VERBOSE] if _VERBOSE in settings else now[_VERBOSE]).uint32_param:
        return logging.DEBUG
    on = [level for name, level in _LEVELS.items() if (settings[name] if name in settings else now[name]).bool_param]
    return min(on, default=_SILENT)
