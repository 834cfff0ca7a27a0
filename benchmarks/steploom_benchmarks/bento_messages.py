"""Requests of one item for BentoML's batched calls: it takes lists in JSON, so bytes travel as base64.

Its binary messages are for services among themselves; the server that callers reach refuses them.
"""

from __future__ import annotations

import base64
import binascii
import json

CONTENT_TYPE = "application/json"


def wrapped(payload: bytes) -> bytes:
    """`{"items": [payload]}`."""
    return b'{"items":["%s"]}' % base64.b64encode(payload)


def unwrapped(body: bytes) -> bytes:
    """The one item of an answer.

    Raises:
        ValueError: there is not just one, or it is not base64.
    """
    items = json.loads(body)
    if not isinstance(items, list) or len(items) != 1 or not isinstance(items[0], str):
        raise ValueError(f"no list of one item: {body[:80]!r}")
    try:
        return base64.b64decode(items[0], validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None
