"""Options that several commands have, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steploom.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from steploom.access import Access
    from steploom.config import SteploomConfig
    from steploom.runtime import RuntimeDir

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="STEPLOOM_CONFIG", help="steploom.toml; without it, the defaults."),
]
RuntimeFolder = Annotated[
    Path | None,
    typer.Option(
        "--runtime-dir", envvar="STEPLOOM_RUNTIME_DIR", help="Folder of the internal sockets. [up.runtime_dir]"
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", "-a", envvar="STEPLOOM_ADDRESS", help="host:port of the gateway; default: the one that runs here."
    ),
]

Secure = Annotated[bool, typer.Option("--tls", envvar="STEPLOOM_TLS", help="Connect by TLS; so does --tls-ca.")]
TlsAuthority = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", "--ca", envvar="STEPLOOM_TLS_CA", help="Authorities of the gateway's certificate, PEM file."
    ),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option("--tls-cert", "--cert", envvar="STEPLOOM_TLS_CERT", help="Your own certificate, PEM file."),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", "--key", envvar="STEPLOOM_TLS_KEY", help="Its private key, PEM file.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="STEPLOOM_TOKEN_FILE",
        help="File with your token; or the token itself in STEPLOOM_TOKEN.",
    ),
]


def configuration(path: Path | None) -> SteploomConfig:
    """Of the file, or the defaults."""
    from steploom.config import read_config

    return read_config(path)


def override(settings: SteploomConfig, table: str, **options: str | int | None) -> SteploomConfig:
    """`settings` with the options that were given.

    Raises:
        CommandError: an option is out of its bound; names it as it was typed.
    """
    from steploom_common.settings import ConfigError, replace

    try:
        return replace(settings, **{table: replace(getattr(settings, table), **options)})
    except ConfigError as error:
        raise CommandError(f"--{error.key.replace('_', '-')}: {error.problem}", ExitCode.USAGE) from None


def runtime_folder(settings: SteploomConfig, given: Path | None) -> RuntimeDir:
    """The folder that was given, else the one of the settings, else the user's."""
    import os

    from steploom.runtime import RuntimeDir
    from steploom_common.runtime import runtime_path

    return RuntimeDir(given or runtime_path(settings.up.runtime_dir, os.environ, os.getuid()))


def access_of(
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None = None,
    token: str | None = None,
) -> Access:
    """What the options and the environment say of certificates and token; a token that is given wins.

    Raises:
        CommandError: a file cannot be read or is wrong; names the option.
    """
    import os

    from steploom.access import Access, Tls, authorization
    from steploom_common.settings import ConfigError

    secure = Tls(ca, cert, key) if tls or ca or cert or key else None
    try:
        if secure:
            secure.credentials()
        if token is None:
            token = token_file.read_text().strip() if token_file else os.environ.get("STEPLOOM_TOKEN") or None
        authorization(token)
    except ConfigError as error:
        raise CommandError(f"--{error.key.replace('.', '-')}: {error.problem}", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"--token-file: {token_file} cannot be read: {error.strerror}", ExitCode.USAGE) from None
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    return Access(secure, token)


def gateway_address(address: str | None, runtime_dir: Path | None, access: Access) -> str:
    """The address that was given, else that of the gateway that runs here, else the default.

    One that runs here and wants certificates is reached by its plain socket, unless there are options for TLS.
    """
    from steploom.channel import DEFAULT_ADDRESS
    from steploom.config import SteploomConfig

    if address:
        return address
    services = runtime_folder(SteploomConfig(), runtime_dir).read_services()
    if services is None:
        return DEFAULT_ADDRESS
    return (services.local if access.tls is None else "") or services.gateway
