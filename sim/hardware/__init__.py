"""Machines: their description, presets (the YAML files of this folder) and energy tables."""

from qcompiler.sim.hardware.machine import (
    ExternalMemory,
    Machine,
    Matrix,
    Scratchpad,
    Vector,
    ideal_memory,
    json_schema,
    load,
    loads,
    preset_names,
    to_yaml,
)  # fmt: skip

__all__ = [
    "ExternalMemory", "Machine", "Matrix", "Scratchpad", "Vector",
    "ideal_memory", "json_schema", "load", "loads", "preset_names", "to_yaml",
]  # fmt: skip
