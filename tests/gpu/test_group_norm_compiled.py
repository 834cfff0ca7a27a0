"""Group normalisation whose programs wait for each other, as it is compiled: it is exported nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("triton")

# Of Stable Diffusion's UNet: side, channels, those beside them, whether shifted.
PICTURES = [(64, 320, 0, False), (64, 320, 0, True), (64, 640, 320, True), (32, 1280, 640, True), (16, 1280, 640, True)]
EXPORT = """
import json, sys
from pathlib import Path
from steploom_kernels.aot import _compile, _resources
from steploom_kernels.group_norm import _Normed, _Stage, _variant
from steploom_kernels.group_norm_plans import Picture, default_plan
found = []
for side, channels, beside, shifted in json.loads(sys.argv[2]):
    picture = Picture(side * side, channels + beside, 32, channels if beside else 0)
    normed = _Normed(picture.channels, picture.border, shifted=shifted)
    variant = _variant("group_norm", _Stage(32, side, (), 0, ()), normed, default_plan(picture), picture, True, True)
    compiled = _compile(variant, 90)
    cubin = Path(sys.argv[1]) / f"{variant.name}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    found.append([variant.num_warps * 32, *_resources(cubin), compiled.asm["ptx"]])
print(json.dumps(found))
"""


class Compiled(NamedTuple):
    """A form for an H100."""

    threads: int
    registers: int
    spilled_bytes: int
    ptx: str


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    folder: Path = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", EXPORT, str(folder), json.dumps(PICTURES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [Compiled(*each) for each in json.loads(done.stdout)]


def test_three_programs_share_a_multiprocessor(compiled: list[Compiled]) -> None:
    """Of 64 Ki registers, and none is spilled: while one waits the others read and write."""
    assert [each.spilled_bytes for each in compiled] == [0] * len(PICTURES)
    assert all(3 * each.threads * each.registers <= 65536 for each in compiled)


def test_a_tile_is_read_once_in_pieces_of_16_bytes(compiled: list[Compiled]) -> None:
    """Eight a thread, of two pictures side by side too; so are vectors where threads outnumber their lanes."""
    wide = r"%s\.global\S*\.v(?:4\.b32|2\.b64)"
    for each, (_, _, _, shifted) in zip(compiled, PICTURES, strict=True):
        reads = [match.start() for match in re.finditer(wide % "ld", each.ptx)]
        arrived = each.ptx.index("atom.")
        has_wide_vectors = each.threads > 128
        assert sum(place < arrived for place in reads) == 8 + (shifted and has_wide_vectors)
        assert sum(place > arrived for place in reads) <= 3 + 1  # moments, perhaps
        assert len(re.findall(wide % "st", each.ptx)) == 8


def test_what_is_written_is_written_before_a_program_says_so(compiled: list[Compiled]) -> None:
    """By all its threads. What the others wrote is read after all of them have."""
    for each in compiled:
        arrived = each.ptx.index("atom.global.gpu.acq_rel.add")
        assert each.ptx.rindex("st.global", 0, arrived) < each.ptx.rindex("bar.sync", 0, arrived)
        seen = re.search(r"(ld|atom)\.global\.gpu\.acquire", each.ptx)
        assert seen is not None
        assert arrived < seen.start() < each.ptx.index("bra", seen.start()) < each.ptx.index("ld.global.b", seen.end())
