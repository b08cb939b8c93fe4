"""The command line in this process, the bundled example, and small models that are wrong in one way each."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qcompiler
from qcompiler.cli import main

DEMO = Path(qcompiler.__file__).parent / "demo"
DIGITS, CALIBRATION, TEST = DEMO / "digits.onnx", DEMO / "calibration.npz", DEMO / "test.npz"


@dataclass(frozen=True)
class Done:
    """What a command printed and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The message, without the lines of progress before it."""
        at = self.stderr.index("error: ")
        return self.stderr[at + len("error: ") :].rstrip("\n")


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """``command("compile", model, ...)`` runs the command line and says how it ended; a traceback fails the test."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["qcompiler", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled example, compiled for this machine."""
    out = tmp_path_factory.mktemp("digits") / "out"
    qcompiler.compile(DIGITS, calibration=CALIBRATION, output=out)
    return out


def make_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A float model whose output is "y"."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
