"""ONNX's own node tests, float path: import, canonical form, float program, reference interpreter."""

from __future__ import annotations

import fnmatch
from collections import Counter

import onnx_nodes
import pytest
from onnx_nodes import EXCLUDED, FLOAT_OPERATORS, QUANTISED_OPERATORS, Case, compare, excluded, failures, outside

from qcompiler.sim import reference
from qcompiler.sim.errors import QCompilerError


def check(case: Case) -> None:
    compare(case, reference.execute(onnx_nodes.program_of(case), case.inputs))


@pytest.mark.parametrize("operator", FLOAT_OPERATORS)
def test_node_cases(operator: str) -> None:
    cases = onnx_nodes.selected(operator)
    assert cases or operator in ("TopK",), "no case of this operator is left"
    failed = failures(cases, check)
    assert not failed, "\n".join(failed)


def test_no_exclusion_is_stale() -> None:
    """Every pattern matches a case, and no case that it matches would pass."""
    left_out = [c for o in (*FLOAT_OPERATORS, *QUANTISED_OPERATORS) for c in onnx_nodes.cases()[o] if excluded(c)]
    unused = [p for p in EXCLUDED if not any(fnmatch.fnmatchcase(c.name, p) for c in left_out)]
    assert not unused, "these patterns match nothing"
    passing = []
    for case in left_out:
        if case.operator in FLOAT_OPERATORS and outside(case) is None:
            try:
                check(case)
                passing.append(case.name)
            except (QCompilerError, AssertionError):
                pass
    assert not passing, "these pass now; take them out of EXCLUDED"


def test_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how much of the standard's cases for these operators runs, and asserts that it does not shrink."""
    reasons: Counter[str] = Counter()
    run = 0
    for operator in FLOAT_OPERATORS:
        for case in onnx_nodes.cases()[operator]:
            reason = outside(case) or excluded(case)
            run += reason is None
            if reason:
                reasons[reason] += 1
    with capsys.disabled():
        print(f"\nONNX node tests: {run} cases of {len(FLOAT_OPERATORS)} float operators run;")
        print("".join(f"  {count:4} left out: {reason}\n" for reason, count in reasons.most_common()))
    assert run > 700
    assert not set(FLOAT_OPERATORS) & set(QUANTISED_OPERATORS)
