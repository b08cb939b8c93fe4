"""NumPy meaning of the operations that stay float32 on CPU targets (`integer_program.FloatOp`), by kind.

Each function takes the operation's inputs and, as keywords, its attributes. Float results are compared with
the targets within a tolerance, integer ones never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FLOAT_OPS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
}
