"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steploom.pictures import format_of, write_whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "out.png"
    file.write_bytes(b"before")
    broken: Any = ["no bytes"]
    with pytest.raises(TypeError):
        write_whole(file, broken)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.png", b"before")]


def test_a_new_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.png", b"1")
    (tmp_path / "b.png").write_bytes(b"1")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b.png").stat().st_mode


def test_the_suffix_is_the_format_in_any_case() -> None:
    assert [format_of(Path(name)) for name in ("a.PNG", "a.jpg", "a.JPEG", "a.webp")] == ["png", "jpeg", "jpeg", "webp"]
    with pytest.raises(ValueError, match=r"cannot write \.bmp; use one of \.png"):
        format_of(Path("a.bmp"))
