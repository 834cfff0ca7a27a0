"""Which TensorRT is found, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from steploom_engine_worker.tensorrt.flavour import Flavour, NoTensorRT, find_flavour


def loader(**found: object) -> Callable[[str], ModuleType]:
    """Imports what it is given: a version, or an error."""

    def load(name: str) -> ModuleType:
        item = found.get(name)
        if item is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if isinstance(item, Exception):
            raise item
        return cast(ModuleType, SimpleNamespace(__version__=item))

    return load


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"tensorrt": "10.9.0.34", "tensorrt_rtx": "1.7.1.116"}, "tensorrt 10.9.0.34"),
        ({"tensorrt_rtx": "1.7.1.116"}, "tensorrt_rtx 1.7.1.116"),
        ({"tensorrt": "8.6.0"}, "tensorrt 8.6.0"),
        ({"tensorrt": "8.5.3", "tensorrt_rtx": "1.7.1.116"}, "tensorrt_rtx 1.7.1.116"),
        ({"tensorrt": OSError("libcudart.so.12: no such file"), "tensorrt_rtx": "1.7.1"}, "tensorrt_rtx 1.7.1"),
    ],
)
def test_the_first_that_loads_is_taken(installed: dict[str, Any], expected: str) -> None:
    assert str(find_flavour(load=loader(**installed))) == expected


def test_without_any_it_says_what_to_install() -> None:
    with pytest.raises(NoTensorRT) as caught:
        find_flavour(load=loader())
    said = str(caught.value)
    assert "tensorrt is not installed; tensorrt_rtx is not installed" in said
    assert 'pip install "tensorrt>=10"' in said
    assert "pip install tensorrt-rtx-cu13" in said


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError("libcudart.so.12: cannot open"), "tensorrt does not load: libcudart.so.12: cannot open"),
        (ModuleNotFoundError("x", name="tensorrt_bindings"), "is not installed, which it needs: tensorrt_bindings"),
        ("8.5.3", "tensorrt 8.5.3 is too old, must be 8.6 or later"),
    ],
)
def test_one_that_does_not_load_is_named_with_the_reason(problem: object, words: str) -> None:
    with pytest.raises(NoTensorRT, match=words):
        find_flavour(load=loader(tensorrt=problem))


@pytest.mark.parametrize(
    ("name", "version", "is_strong", "precisions"),
    [
        ("tensorrt", "8.6.0", False, ["fp16"]),
        ("tensorrt", "10.9.0", True, ["fp16", "bf16", "fp8"]),
        ("tensorrt", "11.0.1", True, ["fp16", "bf16", "fp8"]),
        ("tensorrt_rtx", "1.7.1", True, ["fp16", "bf16", "fp8"]),
    ],
)
def test_types_are_the_graphs_but_with_the_oldest(name: str, version: str, is_strong: bool, precisions: object) -> None:
    flavour = Flavour(name, version, None)
    assert (flavour.is_strongly_typed, list(flavour.precisions)) == (is_strong, precisions)


def test_rtx_refuses_a_gpu_that_it_does_not_know() -> None:
    known = SimpleNamespace(ComputeCapability=SimpleNamespace(SM120=1, SM86=2, NONE=0, CURRENT=3))
    flavour = Flavour("tensorrt_rtx", "1.7.1", known)
    assert flavour.targets() == [(8, 6), (12, 0)]
    assert flavour.cannot_target((8, 6)) == ""
    said = flavour.cannot_target((9, 0))
    assert "does not support compute capability 9.0, only 8.6, 12.0" in said
    assert "tensorrt>=10" in said
    assert Flavour("tensorrt", "10.9.0", None).cannot_target((9, 0)) == ""
