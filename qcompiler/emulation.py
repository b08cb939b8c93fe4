"""A library compiled for another architecture, run here by qemu's user-mode emulation: right, but never timed.

The static library is linked with a small C program that reads inputs from a pipe and writes outputs to another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.artifact import Artifact
from qcompiler.codegen.host import host_architecture
from qcompiler.codegen.toolchain import TOOLCHAINS
from qcompiler.data import fit
from qcompiler.sim.errors import ArtifactError, TargetError

Array = npt.NDArray[Any]


LEVEL_BYTES = 32  # the name of the instruction set, which the runner writes before anything else
RUNNER = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

static int transfer(int (*move)(void *, size_t), void *const *buffers, const size_t *sizes, int count) {{
    for (int i = 0; i < count; i++)
        if (!move(buffers[i], sizes[i])) return 0;
    return 1;
}}
static int take(void *data, size_t bytes) {{ return fread(data, 1, bytes, stdin) == bytes; }}
static int give(void *data, size_t bytes) {{ return fwrite(data, 1, bytes, stdout) == bytes; }}

int main(void) {{
    static const size_t input_bytes[] = {{{inputs}}}, output_bytes[] = {{{outputs}}};
    void *in[{input_count}], *out[{output_count}], *workspace = malloc({workspace});
    char level[{level_bytes}] = {{0}};
    const char *isa = {prefix}_isa();
    if (isa != NULL) strncpy(level, isa, sizeof level - 1);
    give(level, sizeof level);
    fflush(stdout);
    for (int i = 0; i < {input_count}; i++) in[i] = malloc(input_bytes[i]);
    for (int i = 0; i < {output_count}; i++) out[i] = malloc(output_bytes[i]);
    while (transfer(take, in, input_bytes, {input_count})) {{
        int status = {prefix}_run((const void *const *)in, out, workspace);
        if (status) {{
            fprintf(stderr, "%s", {prefix}_error(status));
            return status;
        }}
        transfer(give, out, output_bytes, {output_count});
        fflush(stdout);
    }}
    return 0;
}}
"""


def emulates(architecture: str) -> bool:
    """Whether artefacts of that architecture are emulated here rather than loaded."""
    return (
        architecture != host_architecture() and architecture in TOOLCHAINS and bool(TOOLCHAINS[architecture].emulator)
    )


def missing_tool(architecture: str) -> str | None:
    """The first program that emulation lacks on this machine, or None; "qemu" for an architecture without any."""
    if not emulates(architecture):
        return "qemu"
    tools = TOOLCHAINS[architecture]
    return next((t for t in (tools.emulator[0], tools.compiler) if shutil.which(t) is None), None)


class Model:
    """Runs the artefact in an emulated process that lives as long as this object.

    isa: the instruction set that the library chose, "" if the core has none of those inside.
    cpu: which of qemu's cores to be (`qemu-aarch64 -cpu help`); by default one that has every level.
    Raises TargetError when qemu or the cross compiler is missing.
    """

    def __init__(self, artifact: Artifact, cpu: str = "") -> None:
        self.artifact, manifest = artifact, artifact.manifest
        tool = missing_tool(manifest.architecture)
        if tool is not None:
            packages = " ".join(TOOLCHAINS[manifest.architecture].packages) if emulates(manifest.architecture) else ""
            raise TargetError(
                f"{artifact.directory} was compiled for {manifest.architecture} (target {manifest.target}); running it "
                f"on {host_architecture()} needs {tool}, which is not on the PATH"
                + (f" (on Debian: apt-get install {packages})" if packages else "")
            )
        tools = TOOLCHAINS[manifest.architecture]
        command = [*tools.emulator[:-1], cpu or tools.emulator[-1]]
        self.emulator = " ".join(command)
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        program = Path(self._folder.name) / "runner"
        self._link(tools.compiler, program)
        self._errors = (Path(self._folder.name) / "errors").open("w+b")
        self._process = subprocess.Popen(
            [*command, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env={k: v for k, v in os.environ.items() if k != "QCOMPILER_ISA"},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.isa: str = self._process.stdout.read(LEVEL_BYTES).rstrip(b"\0").decode()

    def _link(self, compiler: str, program: Path) -> None:
        manifest = self.artifact.manifest
        source = program.with_suffix(".c")
        source.write_text(
            RUNNER.format(
                prefix=manifest.name, workspace=manifest.workspace_bytes, level_bytes=LEVEL_BYTES,
                input_count=len(manifest.inputs), inputs=", ".join(str(t.bytes) for t in manifest.inputs),
                output_count=len(manifest.outputs), outputs=", ".join(str(t.bytes) for t in manifest.outputs),
            ),
            encoding="ascii",
        )  # fmt: skip
        library = self.artifact.path("libmodel.a")
        command = [compiler, "-O1", "-static", f"-I{library.parent}", str(source), str(library), "-o", str(program)]
        result = subprocess.run([*command, "-lm", "-pthread"], capture_output=True, text=True)
        if result.returncode:
            raise ArtifactError(f"{library} cannot be linked by {compiler}: {result.stderr.strip()[-500:]}")

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs for these inputs (a missing leading axis of 1 is added). Raises CalibrationError, TargetError."""
        manifest = self.artifact.manifest
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            for tensor in manifest.inputs:
                value = fit(np.asarray(inputs[tensor.name]), tensor, f"input {tensor.name!r}")
                self._process.stdin.write(np.ascontiguousarray(value).tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        outputs = {}
        for tensor in manifest.outputs:
            data = self._process.stdout.read(tensor.bytes)
            if len(data) < tensor.bytes:
                raise self._failed()
            outputs[tensor.name] = np.frombuffer(data, tensor.dtype).reshape(tensor.shape).copy()
        return outputs

    def _failed(self) -> TargetError:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        why = said or f"it ended with status {self._process.returncode}"
        return TargetError(f"{self.artifact.directory}, emulated by {self.emulator}: {why}")

    def close(self) -> None:
        """End the emulated process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
