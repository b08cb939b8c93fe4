"""Layers of an integer program: geometries, fusion of element-wise tails, views, unique layers."""

from layer_builder import Builder

from qcompiler.sim import workload


def test_a_conv_takes_its_table_and_residual_add_with_it() -> None:
    b = Builder()
    x = b.input((1, 8, 8, 16))
    y = b.table(b.conv(x, 16))
    z = b.add(y, x)
    layers = workload.extract(b.build(b.table(z)))
    assert [len(layer.operations) for layer in layers] == [3, 1]
    g = layers[0].geometry
    assert (g.kind, g.tables, g.operands, g.macs, g.weight_bytes) == ("conv", 1, 1, 64 * 16 * 144, 16 * 144)
    assert layers[0].inputs == (x,)


def test_of_two_convolutions_that_meet_the_later_one_adds() -> None:
    b = Builder()
    x = b.input((1, 8, 8, 16))
    first, second = b.conv(x, 8, 1), b.conv(x, 8, 3)
    layers = workload.extract(b.build(b.add(first, second)))
    assert [[type(op).__name__ for op in layer.operations] for layer in layers] == [["Conv2d"], ["Conv2d", "Add"]]
    assert layers[1].inputs == (x, first)


def test_a_tensor_that_someone_else_reads_is_not_fused_away() -> None:
    b = Builder()
    x = b.input((1, 4, 4, 8))
    y = b.conv(x, 8)
    layers = workload.extract(b.build(b.table(y), y))
    assert [layer.geometry.kind for layer in layers] == ["conv", "table"]


def test_pointwise_convolutions_and_dense_layers_are_one_geometry() -> None:
    b = Builder()
    x = b.input((1, 5, 4, 8))
    y = b.conv(x, 12, 1)
    z = b.dense(b.reshape(x, (20, 8)), 12)
    layers = workload.extract(b.build(y, z))
    assert layers[0].geometry == layers[1].geometry == workload.Geometry("conv", (1, 20, 1, 8), (1, 20, 1, 12))
    assert workload.unique(layers) == {layers[0].geometry: [0, 1]}


def test_moves_that_keep_the_bytes_are_no_work() -> None:
    b = Builder()
    x = b.input((1, 1, 6, 8))
    y = b.transpose(b.reshape(x, (1, 6, 1, 8)), (0, 2, 1, 3))
    z = b.gather(y, None, None, range(6), None)
    assert workload.extract(b.build(b.table(z)))[0].operations[0].inputs == (z,)

    b = Builder()
    moved = b.transpose(b.input((1, 1, 6, 8)), (0, 1, 3, 2))
    assert [layer.geometry.kind for layer in workload.extract(b.build(moved))] == ["move"]


def test_a_mean_is_a_pool_over_what_it_sums() -> None:
    b = Builder()
    x = b.input((2, 3, 4, 8))
    layers = workload.extract(b.build(b.mean(x, (1, 2)), b.mean(x, (3,))))
    assert [layer.geometry.image for layer in layers] == [(1, 2, 12, 8), (1, 24, 8, 1)]
    assert [layer.geometry.reduction for layer in layers] == [12, 8]
