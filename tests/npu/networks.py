"""Networks as integer programs with random weights: the shapes of the MLPerf Tiny models, MobileNetV2 and ResNet-50."""

from __future__ import annotations

from layer_builder import Builder

from qcompiler.sim.integer_program import IntegerProgram

SAME, SAME_STRIDED = (1, 1, 1, 1), (0, 0, 1, 1)


def digits(b: Builder) -> IntegerProgram:
    x = b.input((1, 8, 8, 1))
    y = b.max_pool(b.conv(x, 8))
    y = b.conv(b.depthwise(b.conv(y, 16)), 24, 1)
    return b.build(b.softmax(b.dense(b.mean(b.add(y, b.table(b.conv(y, 24)))), 10)))


def kws(b: Builder) -> IntegerProgram:
    y = b.conv(b.input((1, 49, 10, 1)), 64, (10, 4), 2)
    for _ in range(4):
        y = b.conv(b.depthwise(y), 64, 1)
    return b.build(b.softmax(b.dense(b.mean(y), 12)))


def resnet8(b: Builder) -> IntegerProgram:
    y = b.conv(b.input((1, 32, 32, 3)), 16)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        z = b.conv(b.conv(y, channels, 3, stride), channels)
        y = b.add(z, y if stride == 1 else b.conv(y, channels, 1, stride, (0, 0, 0, 0)))
    return b.build(b.softmax(b.dense(b.mean(y), 10)))


def vww(b: Builder) -> IntegerProgram:
    y = b.conv(b.input((1, 96, 96, 3)), 8, 3, 2, SAME_STRIDED)
    plan = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *(((128, 1),) * 5), (256, 2), (256, 1))
    for channels, stride in plan:
        y = b.conv(b.depthwise(y, 3, stride, padding=SAME if stride == 1 else SAME_STRIDED), channels, 1)
    return b.build(b.softmax(b.dense(b.mean(y), 2)))


def ad(b: Builder) -> IntegerProgram:
    y = b.input((1, 640))
    for units in (*(128,) * 4, 8, *(128,) * 4, 640):
        y = b.dense(y, units)
    return b.build(y)


def mobilenet_v2(b: Builder) -> IntegerProgram:
    y, channels = b.conv(b.input((1, 224, 224, 3)), 32, 3, 2, SAME_STRIDED), 32
    for expand, out, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(count):
            step = stride if i == 0 else 1
            z = y if expand == 1 else b.conv(y, channels * expand, 1)
            z = b.conv(b.depthwise(z, 3, step, padding=SAME if step == 1 else SAME_STRIDED), out, 1)
            y, channels = (b.add(z, y) if i else z), out
    return b.build(b.dense(b.mean(b.conv(y, 1280, 1)), 1000))


def resnet50(b: Builder) -> IntegerProgram:
    y = b.max_pool(b.conv(b.input((1, 224, 224, 3)), 64, 7, 2, (3, 3, 3, 3)), (3, 3), (2, 2), SAME)
    for channels, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            step = stride if i == 0 else 1
            z = b.conv(b.conv(y, channels, 1, step, (0, 0, 0, 0)), channels)
            y = b.add(b.conv(z, 4 * channels, 1), b.conv(y, 4 * channels, 1, step, (0, 0, 0, 0)) if i == 0 else y)
    return b.build(b.dense(b.mean(y), 1000))


NETWORKS = {f.__name__: f for f in (digits, kws, resnet8, vww, ad, mobilenet_v2, resnet50)}


def network(name: str) -> tuple[IntegerProgram, dict]:
    """The program and one set of inputs."""
    b = Builder(seed=1)
    return NETWORKS[name](b), b.feed()
