"""The shared-memory arena: loans, bounds, and what is left of dead processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_common.arena import Arena, ArenaViews, Block, RegionRef, borrowed, default_directory, remove_stale

HEIGHT, WIDTH = 4, 5
BLOCK = HEIGHT * WIDTH * 3


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(tmp_path, BLOCK, 3)
    yield arena
    arena.close()


def filled(value: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def lent(arena: Arena) -> Block:
    block = arena.borrow()
    assert block
    return block


def test_every_block_is_lent_once(arena: Arena) -> None:
    blocks = [lent(arena) for _ in range(3)]
    assert arena.num_used == 3
    assert arena.borrow() is None
    assert len({block.index for block in blocks}) == 3
    arena.give_back(blocks[1])
    assert lent(arena).index == blocks[1].index


def test_a_loan_ends_once(arena: Arena) -> None:
    block = lent(arena)
    arena.give_back(block)
    with pytest.raises(ValueError, match="not borrowed"):
        arena.give_back(block)
    for index in (-1, 3):
        with pytest.raises(ValueError, match="not borrowed"):
            arena.give_back(Block(index, block.input, block.output))
    assert arena.num_used == 0


def test_a_loan_may_end_after_its_arena(tmp_path: Path) -> None:
    arena = Arena(tmp_path, BLOCK, 1)
    block = lent(arena)
    arena.close()
    arena.give_back(block)
    assert arena.num_used == 0


def test_borrowed_gives_back_on_error(arena: Arena) -> None:
    def fail() -> None:
        with borrowed(arena) as block:
            assert block
            assert arena.num_used == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert arena.num_used == 0


def test_regions_do_not_overlap(arena: Arena) -> None:
    regions = [region for _ in range(3) for block in [lent(arena)] for region in (block.input, block.output)]
    for value, region in enumerate(regions):
        arena.write(region, filled(value))
    for value, region in enumerate(regions):
        assert (arena.read(region, HEIGHT, WIDTH) == value).all()


def test_another_process_writes_into_the_output(arena: Arena, tmp_path: Path) -> None:
    block = lent(arena)
    arena.write(block.input, filled(7))
    code = f"""
from pathlib import Path
from steploom_common.arena import ArenaViews, RegionRef
views = ArenaViews(Path({str(tmp_path)!r}))
views.picture({block.output!r}, 4, 5)[:] = views.picture({block.input!r}, 4, 5) + 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (arena.read(block.output, HEIGHT, WIDTH) == 8).all()
    assert (arena.read(block.input, HEIGHT, WIDTH) == 7).all()


def test_a_copy_outlives_the_loan(arena: Arena) -> None:
    block = lent(arena)
    arena.write(block.output, filled(1))
    copy = arena.read(block.output, HEIGHT, WIDTH)
    arena.write(block.output, filled(2))
    assert (copy == 1).all()


def test_the_file_is_the_owners_alone(arena: Arena) -> None:
    assert arena.path.stat().st_mode & 0o777 == 0o600


def test_closing_removes_the_file_but_not_what_others_see(tmp_path: Path) -> None:
    arena = Arena(tmp_path, BLOCK, 1)
    view = ArenaViews(tmp_path).picture(lent(arena).input, HEIGHT, WIDTH)
    arena.close()
    assert not arena.path.exists()
    view[:] = 9
    assert (view == 9).all()


def test_a_region_is_not_written_once_its_loan_has_ended(tmp_path: Path) -> None:
    arena = Arena(tmp_path, BLOCK, 1)
    views = ArenaViews(tmp_path)
    block = lent(arena)
    views.picture(block.output, HEIGHT, WIDTH)[:] = 3
    arena.give_back(block)
    with pytest.raises(ValueError, match="has ended"):
        views.picture(block.output, HEIGHT, WIDTH)
    again = lent(arena)
    assert again.index == block.index
    with pytest.raises(ValueError, match="has ended"):
        views.picture(block.output, HEIGHT, WIDTH)
    views.picture(again.output, HEIGHT, WIDTH)[:] = 4
    assert (arena.read(again.output, HEIGHT, WIDTH) == 4).all()
    arena.close()


HOLD = """
import sys
from pathlib import Path
from steploom_common.arena import Arena
arena = Arena(Path(sys.argv[1]), 64, 1)
print(arena.path, flush=True)
sys.stdin.read()
"""


def test_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        file = Path(owner.stdout.readline().strip())
        remove_stale(tmp_path)
        assert file.exists()
        owner.kill()
        owner.wait()
    assert file.exists()
    Arena(tmp_path, BLOCK, 1).close()
    assert not file.exists()


@pytest.mark.parametrize("pid", [os.getpid(), 2**31 - 1])
def test_the_pid_in_a_name_says_nothing(tmp_path: Path, pid: int) -> None:
    """It may be that of another process by now, or of another container that shares the folder."""
    stale = tmp_path / f"steploom-arena-{pid}-abcd"
    stale.write_bytes(bytes(BLOCK))
    live = Arena(tmp_path, BLOCK, 1)
    assert not stale.exists()
    renamed = live.path.rename(tmp_path / f"steploom-arena-{pid}-live")
    remove_stale(tmp_path)
    assert renamed.exists()
    live.close()


def test_an_arena_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    new = tmp_path / "steploom-arena-1-abcd"
    new.touch()
    remove_stale(tmp_path)
    assert new.exists()


def test_what_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    """In a folder of all users: another one's arena cannot be opened, and a link is not followed."""
    (tmp_path / "steploom-arena-1-folder").mkdir()
    target = tmp_path / "target"
    target.write_bytes(b"x")
    (tmp_path / "steploom-arena-1-link").symlink_to(target)
    Arena(tmp_path, BLOCK, 1).close()
    assert target.exists()


def test_no_room_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        Arena(tmp_path, 2**40, 2**10)
    assert not list(tmp_path.iterdir())


def test_paths_outside_are_refused(arena: Arena, tmp_path: Path) -> None:
    inside = tmp_path / "views"
    inside.mkdir()
    secret = tmp_path / "steploom-arena-secret"
    secret.write_bytes(bytes(BLOCK))
    (inside / "steploom-arena-link").symlink_to(secret)
    (inside / "plain").write_bytes(bytes(BLOCK))
    views = ArenaViews(inside)
    for path in (
        secret,
        arena.path,
        inside / ".." / secret.name,
        inside / "steploom-arena-link",
        inside / "plain",
        Path("/etc/passwd"),
    ):
        with pytest.raises(ValueError, match="is no arena"):
            views.picture(RegionRef(str(path), 0, BLOCK), HEIGHT, WIDTH)


def test_a_missing_arena_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="steploom-arena-1-gone"):
        ArenaViews(tmp_path).picture(RegionRef(f"{tmp_path}/steploom-arena-1-gone", 0, BLOCK), HEIGHT, WIDTH)


@settings(max_examples=100, deadline=None)
@given(offset=st.integers(-100, 500), size=st.integers(-10, 500), height=st.integers(-2, 9), width=st.integers(-2, 9))
def test_no_view_leaves_its_region(
    tmp_path_factory: pytest.TempPathFactory, offset: int, size: int, height: int, width: int
) -> None:
    folder = tmp_path_factory.mktemp("arena")
    arena = Arena(folder, BLOCK, 2)
    region = RegionRef(str(arena.path), offset, size)
    end = arena.path.stat().st_size
    is_inside = height > 0 and width > 0 and height * width * 3 <= size and 0 <= offset <= end - height * width * 3
    views = ArenaViews(folder)
    try:
        if is_inside:
            assert views.picture(region, height, width).shape == (height, width, 3)
        else:
            with pytest.raises(ValueError, match="does not fit"):
                views.picture(region, height, width)
    finally:
        arena.close()


@settings(max_examples=100, deadline=None)
@given(offset=st.integers(-100, 500), size=st.integers(-10, 500))
def test_all_bytes_of_a_region_are_had_only_where_it_lies_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, offset: int, size: int
) -> None:
    arena = Arena(tmp_path_factory.mktemp("arena"), BLOCK, 2)
    views = ArenaViews(arena.path.parent)
    try:
        if size >= 0 and 0 <= offset <= arena.path.stat().st_size - size:
            assert views.memory(RegionRef(str(arena.path), offset, size)).shape == (size,)
        else:
            with pytest.raises(ValueError, match="does not fit"):
                views.memory(RegionRef(str(arena.path), offset, size))
    finally:
        arena.close()


def test_the_bytes_of_a_loan_that_has_ended_are_nobodys(arena: Arena) -> None:
    views = ArenaViews(arena.path.parent)
    block = lent(arena)
    views.memory(block.output)[:] = 7
    arena.give_back(block)
    with pytest.raises(ValueError, match="has ended"):
        views.memory(block.output)


def test_removed_arenas_are_forgotten(tmp_path: Path) -> None:
    views = ArenaViews(tmp_path)
    for _ in range(5):
        arena = Arena(tmp_path, BLOCK, 1)
        views.picture(lent(arena).input, HEIGHT, WIDTH)
        arena.close()
    assert views.num_mapped == 1


def test_default_directory_is_writable(tmp_path: Path) -> None:
    assert os.access(default_directory(tmp_path), os.W_OK)
