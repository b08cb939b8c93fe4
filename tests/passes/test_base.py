"""Passes, pipelines and their instruments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import tvm
from tvm import relax

from qcompiler.passes import base
from qcompiler.passes.base import Pass, PassError, Pipeline, PipelineTextError, explain, parse_pipeline


@dataclass(frozen=True)
class Relu(Pass):
    """Appends `times` relus; declines when there is nothing to do."""

    times: int = 1
    mode: Literal["fast", "slow"] = "fast"
    strict: bool = False
    limit: float | None = 1.5
    name: ClassVar[str] = "relu"

    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        if self.times == 0:
            explain("x", "no relu was asked for")
            return module
        return _module(["y"] if self.times == 1 else ["y"] * self.times)


@dataclass(frozen=True)
class Needs(Pass):
    value: int
    name: ClassVar[str] = "needs"

    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return module


def _module(names: list[str]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    value = x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    bindings = []
    for name in names:
        call = builder.normalize(relax.op.nn.relu(value))
        value = relax.Var(name, call.ty) if len(bindings) == len(names) - 1 else relax.DataflowVar(name, call.ty)
        bindings.append(relax.VarBinding(value, call))
    body = builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], value))
    return tvm.IRModule({"main": relax.Function([x], body).with_attr("global_symbol", "main")})


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "known_passes", lambda: {"relu": Relu, "needs": Needs})


@pytest.mark.parametrize(
    "text",
    ["", "relu", "relu,relu{times=2}", "relu{times=2,mode=slow,strict=true,limit=none}", "needs{value=-3},relu"],
)
def test_text_form_round_trips(text: str) -> None:
    pipeline = parse_pipeline(text)
    assert str(pipeline) == text
    assert parse_pipeline(str(pipeline)) == pipeline


def test_spaces_are_allowed() -> None:
    assert parse_pipeline(" relu { times = 2 , strict = true } , relu ") == Pipeline((Relu(2, strict=True), Relu()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rela", "pass pipeline 'rela': no pass is called 'rela'; did you mean 'relu'?"),
        ("relu{time=2}", "pass 'relu' has no option 'time'; did you mean 'times' or 'mode'?"),
        ("relu{times}", "pass 'relu': option 'times' needs a value, times=..."),
        ("relu{times=two}", "pass 'relu': option times=two is not int"),
        ("relu{mode=medium}", "pass 'relu': option mode=medium is not 'fast', 'slow'"),
        ("relu{limit=x}", "pass 'relu': option limit=x is not float or NoneType"),
        ("needs", "pass 'needs' needs 'value'"),
        ("relu{", "pass pipeline 'relu{': cannot read 'relu{'; write name,name{option=value,...}"),
        ("relu relu", "pass pipeline 'relu relu': cannot read 'relu relu'; write name,name{option=value,...}"),
    ],
)
def test_text_errors(text: str, message: str) -> None:
    with pytest.raises(PipelineTextError) as error:
        parse_pipeline(text)
    assert str(error.value) == message
    assert error.value.exit_code == 2


def test_instruments_see_every_pass(tmp_path: Path) -> None:
    dump, times, declined = base.DumpIR(tmp_path / "ir"), base.PassTimes(), base.Explanations()
    Pipeline((Relu(), Relu(times=0))).run(_module(["y"]), [dump, times, declined])
    assert sorted(p.name for p in (tmp_path / "ir").iterdir()) == [
        "000_relu.after.py", "000_relu.before.py", "001_relu.after.py", "001_relu.before.py",
    ]  # fmt: skip
    assert "R.nn.relu" in (tmp_path / "ir" / "001_relu.after.py").read_text()
    assert [name for name, _ in times.seconds] == ["relu", "relu{times=0}"]
    assert all(seconds >= 0 for _, seconds in times.seconds)
    assert [str(note) for note in declined.notes] == ["relu: x: no relu was asked for"]


def test_a_pass_that_reuses_a_name_is_caught() -> None:
    with pytest.raises(PassError, match="pass 'relu' made two tensors named 'y' in 'main'"):
        Pipeline((Relu(times=2),)).run(_module(["y"]))


def test_a_pass_that_breaks_the_module_is_caught() -> None:
    @dataclass(frozen=True)
    class Break(Pass):
        name: ClassVar[str] = "break"

        def run(self, module: tvm.IRModule) -> tvm.IRModule:
            stranger = relax.Var("stranger", relax.TensorType((2, 3), "float32"))
            main = module["main"]
            body = relax.SeqExpr(main.body.blocks, stranger)
            return tvm.IRModule({"main": relax.Function(main.params, relax.BlockBuilder().normalize(body))})

    with pytest.raises(PassError, match="pass 'break' made a module that is not well formed"):
        Pipeline((Break(),)).run(_module(["y"]))
