"""NumPy meaning of the operations that stay float on CPU targets (`integer_program.FloatOp`), by kind.

The law of a FloatOp: `kind` is a Relax operator's name without ``relax.``; the operation's inputs are the Relax
call's tensor arguments in order (a tuple argument, as of concat, is spread out); `attributes` are all its other
arguments under the names of the Relax Python functions: ``relax.op.<kind>(*inputs, **attributes)`` rebuilds the call.
Here the positional parameters of a function are the inputs and its keyword-only parameters the attributes that
change its meaning. Sums run in float64 and are rounded once (average pools: in float32, in window order). Targets
match within a float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qcompiler.sim.float_ops.elementwise import ELEMENTWISE
from qcompiler.sim.float_ops.movement import MOVEMENT
from qcompiler.sim.float_ops.reductions import REDUCTIONS
from qcompiler.sim.float_ops.windows import WINDOWS

FLOAT_OPS: dict[str, Callable[..., Any]] = {**ELEMENTWISE, **REDUCTIONS, **WINDOWS, **MOVEMENT}

TUPLE_INPUT = frozenset({"concat", "stack", "einsum"})
"""Kinds whose Relax call takes all its tensors as one tuple."""
