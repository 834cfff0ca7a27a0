"""The gateway's settings."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from steploom_common.settings import ConfigError, from_table, to_toml
from steploom_gateway.config import GatewayConfig, host_and_port


def test_defaults() -> None:
    config = GatewayConfig()
    assert (config.listen, config.metrics_listen, config.batcher) == ("127.0.0.1:8001", "127.0.0.1:8002", "")
    assert config.max_message_bytes > config.max_image_bytes
    assert from_table(GatewayConfig, tomllib.loads(to_toml(config)), "") == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": "8001"}, "listen: is '8001', must be host:port"),
        ({"listen": "localhost:"}, "listen"),
        ({"listen": "localhost:65536"}, "at most 65535"),
        ({"listen": ":80"}, "listen"),
        ({"metrics_listen": "localhost:-1"}, "metrics_listen"),
        ({"codec_threads": 0}, "codec_threads: is 0, must be at least 1"),
        ({"max_image_side": 16_384}, "max_image_side: is 16384, must be at least 1 and at most 16383"),
        ({"poll_s": 0.0}, "poll_s: is 0.0, must be above 0"),
        ({"max_guidance_scale": float("nan")}, "max_guidance_scale: is nan"),
    ],
)
def test_errors_name_key_value_and_bound(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GatewayConfig(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("settings", [{"listen": "[::1]:0"}, {"listen": "0.0.0.0:65535"}, {"metrics_listen": ""}])
def test_addresses_that_are_taken(settings: dict[str, Any]) -> None:
    GatewayConfig(**settings)


def test_host_and_port() -> None:
    assert host_and_port("[::1]:8001") == ("::1", 8001)
    assert host_and_port("localhost:0") == ("localhost", 0)
