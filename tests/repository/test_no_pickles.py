"""Weights and settings are data: nothing that is read from a file is ever run, but for plain models, which are code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/steploom*/__init__.py"))

# Modules that run what they read.
CODE_READERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "jsonpickle", "shelve", "marshal"}
# Where torch.load reads what training itself has written, by the loader that takes tensors and plain values alone.
CHECKPOINTS = {"steploom_distill"}
# Calls that load code, and the modules that do so: plain models are programs, in a folder that is trusted as code is.
PROGRAM_READERS = {"torch.jit.load", "torch.export.load", "exec_module", "run_path"}
PROGRAMS = {"plain/python_program.py", "plain/torch_program.py"}


def named(node: ast.AST) -> str:
    """A dotted name, as torch.load; empty where it is none."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def says(call: ast.Call, keyword: str) -> bool:
    """Whether a call has `keyword=True`."""
    return any(item.arg == keyword and getattr(item.value, "value", None) is True for item in call.keywords)


def dangers(source: str, package: str, file: str = "") -> Iterator[str]:
    """What in a module could run what it reads; `file` is its path in the package."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: {item.name}" for item in node.names if item.name.split(".")[0] in CODE_READERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in CODE_READERS:
            yield f"{node.lineno}: {node.module}"
        elif isinstance(node, ast.Call):
            name = named(node.func)
            is_checkpoint = package in CHECKPOINTS and says(node, "weights_only")
            if name == "torch.load" and not is_checkpoint:
                yield f"{node.lineno}: torch.load"
            is_program = name in PROGRAM_READERS or name.rpartition(".")[2] in PROGRAM_READERS
            if is_program and file not in PROGRAMS:
                yield f"{node.lineno}: {name}"
            if name in ("eval", "exec", "compile", "__import__") or says(node, "allow_pickle"):
                yield f"{node.lineno}: {name}"
            if says(node, "trust_remote_code"):
                yield f"{node.lineno}: {name} with trust_remote_code"
        elif isinstance(node, ast.FunctionDef) and "tokenizer" not in node.name:
            yield from loads_without_safetensors(node)


def loads_without_safetensors(function: ast.FunctionDef) -> Iterator[str]:
    """`from_pretrained` takes pickles too where it is not told otherwise. Tokenizers have no weights."""
    loaders = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and "Tokenizer" not in named(node.value)
    ]
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    if sum(says(call, "use_safetensors") for call in calls) < len(loaders):
        yield f"{loaders[0].lineno}: from_pretrained without use_safetensors=True"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.name))
def test_nothing_that_is_read_is_run(package: Path) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{danger}"
        for file in sorted(package.rglob("*.py"))
        for danger in dangers(file.read_text(), package.name, str(file.relative_to(package)))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("import pickle", True),
        ("import joblib.parallel as p", True),
        ("def f():\n    from cloudpickle import loads", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("eval(text)", True),
        ("model.eval()", False),
        ("def f():\n    UNet.from_pretrained(path)", True),
        ("def f():\n    UNet.from_pretrained(path, use_safetensors=True)\n    VAE.from_pretrained(path)", True),
        ("def f():\n    UNet.from_pretrained(path, use_safetensors=True)", False),
        ("def f():\n    CLIPTokenizer.from_pretrained(path)", False),
        ("AutoModel.of(path, trust_remote_code=True)", True),
        ("torch.jit.load(path)", True),
        ("torch.export.load(path)", True),
        ("spec.loader.exec_module(module)", True),
    ],
)
def test_the_rule_itself(source: str, is_found: bool) -> None:
    assert any(dangers(source, "steploom_distill")) is is_found
    if "jit" in source or "exec_module" in source:
        assert not any(dangers(source, "steploom_engine_worker", "plain/torch_program.py"))
    if "weights_only=True" in source:
        assert any(dangers(source, "steploom_engine_worker"))
