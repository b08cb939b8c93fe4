"""ONNX data movement: shapes, slices, joins, look-ups, resizing. Shapes are static, so shape arithmetic is NumPy."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from qcompiler.frontend.onnx_node import Array, Node, Result, Shape, Unsupported, check_size, converter
from qcompiler.passes.rewrite import const, shape_of


@converter("Identity")
def identity(node: Node) -> Result:
    return node.tensor(0)


@converter("Shape")
def shape(node: Node) -> Result:
    return np.array(node.shape()[slice(node.attribute("start", 0), node.attribute("end"))], dtype=np.int64)


@converter("Size")
def size(node: Node) -> Result:
    return np.array(math.prod(node.shape()), dtype=np.int64)


@converter("Reshape")
def reshape(node: Node) -> Result:
    old = node.shape()
    target = list(node.attribute("shape") if node.opset < 5 else node.ints(1, "shape"))
    if not node.attribute("allowzero", 0):
        target = [old[i] if d == 0 and i < len(old) else d for i, d in enumerate(target)]
    if target.count(-1) == 1:
        known = math.prod(d for d in target if d != -1)
        target[target.index(-1)] = math.prod(old) // known if known else 0
    if math.prod(target) != math.prod(old):
        raise Unsupported(
            f"it turns the shape {old} into {tuple(target)}",
            "export the model with the batch size 1, or give the input shape that it was exported for (--shape)",
        )
    return R.reshape(node.tensor(0), tuple(target))


@converter("Flatten")
def flatten(node: Node) -> Result:
    old = node.shape()
    axis = int(node.attribute("axis", 1))
    axis += len(old) if axis < 0 else 0
    return R.reshape(node.tensor(0), (math.prod(old[:axis]), math.prod(old[axis:])))


def _axes(node: Node, rank: int) -> tuple[int, ...] | None:
    axes = node.attribute("axes") or (node.ints(1, "axes") if node.has(1) else None)
    return None if axes is None else tuple(sorted(int(a) % rank for a in axes))


@converter("Squeeze")
def squeeze(node: Node) -> Result:
    old = node.shape()
    axes = _axes(node, len(old))
    gone = {i for i, d in enumerate(old) if d == 1} if axes is None else set(axes)
    if any(old[i] != 1 for i in gone):
        raise Unsupported(f"it squeezes the axes {sorted(gone)} of the shape {old}")
    return R.reshape(node.tensor(0), tuple(d for i, d in enumerate(old) if i not in gone))


@converter("Unsqueeze")
def unsqueeze(node: Node) -> Result:
    old = list(node.shape())
    given = tuple(node.attribute("axes") or node.ints(1, "axes"))
    for axis in sorted(a % (len(old) + len(given)) for a in given):
        old.insert(axis, 1)
    return R.reshape(node.tensor(0), tuple(old))


@converter("Transpose")
def transpose(node: Node) -> Result:
    rank = len(node.shape())
    return R.permute_dims(node.tensor(0), list(node.attribute("perm") or reversed(range(rank))))


@converter("Concat")
def concat(node: Node) -> Result:
    parts = [node.tensor(i) for i in range(len(node.inputs)) if math.prod(node.shape(i))]
    return parts[0] if len(parts) == 1 else R.concat(parts, node.axis())


@converter("Split")
def split(node: Node) -> Result:
    old, axis = node.shape(), node.axis()
    count = len(node.outputs)
    if node.attribute("split"):
        parts = list(node.attribute("split"))
    elif node.has(1):
        parts = list(node.ints(1, "split"))
    else:  # equal parts, the last one smaller
        step = math.ceil(old[axis] / int(node.attribute("num_outputs", count)))
        parts = [min(step, old[axis] - i * step) for i in range(count)]
    if sum(parts) != old[axis] or len(parts) != count:
        raise Unsupported(f"it splits {old[axis]} elements into {count} parts of {parts}")
    ends = np.cumsum(parts).tolist()
    return [
        sliced(node.tensor(0), {axis: range(end - part, end)}) for part, end in zip(parts, ends, strict=True)
    ]  # fmt: skip


def sliced(x: relax.Expr, ranges: dict[int, range]) -> relax.Expr:
    """x restricted along some axes; ranges step forwards."""
    axes = sorted(ranges)
    if all(ranges[a] == range(shape_of(x)[a]) for a in axes):
        return x
    return R.strided_slice(
        x, axes=axes, begin=[ranges[a].start for a in axes], end=[ranges[a].stop for a in axes],
        strides=[ranges[a].step for a in axes],
    )  # fmt: skip


@converter("Slice")
def slice_(node: Node) -> Result:
    old = node.shape()
    if node.opset < 10:
        starts, ends = tuple(node.required("starts")), tuple(node.required("ends"))
        axes, steps = tuple(node.attribute("axes") or range(len(starts))), (1,) * len(starts)
    else:
        starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
        axes = node.ints(3, "axes") if node.has(3) else tuple(range(len(starts)))
        steps = node.ints(4, "steps") if node.has(4) else (1,) * len(starts)
    forward: dict[int, range] = {}
    x = node.tensor(0)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(old)
        # ONNX's most negative end, "beyond the front", is Python's None.
        stop = None if step < 0 and end < -old[axis] else end
        picked = range(old[axis])[slice(start, stop, step)]
        if not picked:
            raise Unsupported(
                f"it leaves nothing of axis {axis} (start {start}, end {end}, step {step}, size {old[axis]})"
            )
        if step > 0:
            forward[axis] = picked
        else:
            x = node.emit(R.take(x, const(np.array(picked, dtype=np.int64)), axis=axis), f"reversed{axis}")
    return sliced(x, forward) if forward else x


@converter("Pad")
def pad(node: Node) -> Result:
    old, rank = node.shape(), len(node.shape())
    value = 0.0
    if node.opset < 11:
        pads = list(node.required("pads"))
        value = float(node.attribute("value", 0.0))
    else:
        pads = list(node.ints(1, "pads"))
        if node.has(2):
            value = float(node.constant(2, "constant_value").reshape(()))
        if node.has(3):
            axes = [a % rank for a in node.ints(3, "axes")]
            full = [0] * (2 * rank)
            for i, axis in enumerate(axes):
                full[axis], full[axis + rank] = pads[i], pads[i + len(axes)]
            pads = full
    mode = node.attribute("mode", "constant")
    x = node.tensor(0)
    cut = {
        i: range(max(-pads[i], 0), old[i] - max(-pads[i + rank], 0))
        for i in range(rank)
        if min(pads[i], pads[i + rank]) < 0
    }
    if cut:
        x = sliced(x, cut)
        x = x if isinstance(x, relax.Var) else node.emit(x, "cropped")
    widths = [max(pads[i + side * rank], 0) for i in range(rank) for side in (0, 1)]
    if not any(widths):
        return x
    check_size([shape_of(x)[i] + widths[2 * i] + widths[2 * i + 1] for i in range(rank)])
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode != "constant":
        for i in range(rank):
            extent = shape_of(x)[i] - (mode == "reflect")
            if max(widths[2 * i], widths[2 * i + 1]) > extent and mode != "edge":
                raise Unsupported(f"its {mode} padding of axis {i} is wider than the tensor, {shape_of(x)}")
        for i in range(rank):  # one axis after the other, each by constant indices
            before, after = widths[2 * i], widths[2 * i + 1]
            if before or after:
                indices = np.pad(np.arange(shape_of(x)[i]), (before, after), mode=mode)  # type: ignore[call-overload]
                x = node.emit(R.take(x, const(indices.astype(np.int64)), axis=i), f"{names[mode]}{i}")
        return x
    return R.nn.pad(x, widths, "constant", value)


@converter("Expand")
def expand(node: Node) -> Result:
    old = node.shape()
    target = np.broadcast_shapes(old, node.ints(1, "shape"))
    return node.tensor(0) if target == old else R.broadcast_to(node.tensor(0), target)


@converter("Tile")
def tile(node: Node) -> Result:
    repeats = node.ints(1, "repeats")
    return node.tensor(0) if set(repeats) == {1} else R.tile(node.tensor(0), repeats)


@converter("Gather")
def gather(node: Node) -> Result:
    old, axis = node.shape(), node.axis()
    indices = node.value(1)
    if isinstance(indices, np.ndarray):
        picked = np.where(indices < 0, indices + old[axis], indices).astype(np.int64)
        if picked.size and not (0 <= picked.min() and picked.max() < old[axis]):
            raise Unsupported(f"its indices leave axis {axis} of the shape {old}")
        if picked.ndim == 0:
            one = node.emit(sliced(node.tensor(0), {axis: range(int(picked), int(picked) + 1)}), "slice") \
                if old[axis] > 1 else node.tensor(0)  # fmt: skip
            return R.reshape(one, old[:axis] + old[axis + 1 :])
        return R.take(node.tensor(0), const(picked), axis=axis)
    return R.take(node.tensor(0), indices, axis=axis)


@converter("DepthToSpace")
def depth_to_space(node: Node) -> Result:
    n, c, h, w = node.shape()
    b = int(node.required("blocksize"))
    x = node.tensor(0)
    if node.attribute("mode", "DCR") == "DCR":
        split, order = (n, b, b, c // (b * b), h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, order = (n, c // (b * b), b, b, h, w), [0, 1, 4, 2, 5, 3]
    blocks = node.emit(R.permute_dims(node.emit(R.reshape(x, split), "blocks"), order), "interleaved")
    return R.reshape(blocks, (n, c // (b * b), h * b, w * b))


@converter("SpaceToDepth")
def space_to_depth(node: Node) -> Result:
    n, c, h, w = node.shape()
    b = int(node.required("blocksize"))
    blocks = node.emit(R.reshape(node.tensor(0), (n, c, h // b, b, w // b, b)), "blocks")
    moved = node.emit(R.permute_dims(blocks, [0, 3, 5, 1, 2, 4]), "interleaved")
    return R.reshape(moved, (n, c * b * b, h // b, w // b))


# ------------------------------------------------------------------------------------------- resize
@converter("Upsample")
def upsample(node: Node) -> Result:
    scales = np.asarray(node.attribute("scales") if node.opset < 9 else node.constant(1, "scales"))
    sizes = tuple(math.floor(d * s) for d, s in zip(node.shape(), scales.tolist(), strict=True))
    return resized(node, sizes, scales, node.attribute("mode", "nearest"), "asymmetric", "floor")


@converter("Resize")
def resize(node: Node) -> Result:
    old, rank = node.shape(), len(node.shape())
    mode = node.attribute("mode", "nearest")
    if node.opset < 11:
        scales = node.constant(1, "scales").astype(np.float64)
        sizes = tuple(math.floor(d * s) for d, s in zip(old, scales.tolist(), strict=True))
        return resized(node, sizes, scales, mode, "asymmetric", "floor")
    axes = [a % rank for a in node.attribute("axes", range(rank))]
    scales, wanted = np.ones(rank), list(old)
    if node.has(2) and node.value(2).shape != (0,):
        scales[axes] = node.constant(2, "scales")
        wanted = [math.floor(d * s) for d, s in zip(old, scales.tolist(), strict=True)]
    else:
        if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("keep_aspect_ratio_policy is not stretch", "give the final sizes")
        for axis, value in zip(axes, node.ints(3, "sizes"), strict=True):
            wanted[axis] = value
        scales = np.array([a / b for a, b in zip(wanted, old, strict=True)])
    if node.attribute("antialias", 0) and np.any(scales < 1):
        raise Unsupported("antialias=1 is not supported", "resize without it")
    transform = node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    return resized(node, tuple(wanted), scales, mode, transform, rounding)


def resized(node: Node, sizes: Shape, scales: Array, mode: str, transform: str, rounding: str) -> Result:
    """Resize by constant scales. Only axes whose size or sampling changes are touched.

    Nearest is a look-up by constant indices and linear, where TVM's resize2d means something else, a product
    with the matrix of weights; both follow the ONNX definition of the coordinates.
    """
    old = node.shape()
    x = node.tensor(0)
    check_size(sizes)
    touched = [i for i in range(len(old)) if sizes[i] != old[i]]
    if not touched:
        return x
    mode = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic"}.get(mode, mode)
    exact = all(sizes[i] == old[i] * scales[i] for i in touched)
    if len(old) == 4 and touched[0] >= 2 and mode in ("linear", "cubic") and exact and transform in _TVM_TRANSFORMS:
        if mode == "cubic":
            options = {"cubic_alpha": float(node.attribute("cubic_coeff_a", -0.75)),
                       "cubic_exclude": int(node.attribute("exclude_outside", 0))}  # fmt: skip
        else:
            options = {}
        return R.image.resize2d(
            x, sizes[2:], layout="NCHW", method=mode, coordinate_transformation_mode=_TVM_TRANSFORMS[transform],
            rounding_method="", **options,
        )  # fmt: skip
    for i in touched:
        source = coordinates(old[i], sizes[i], float(scales[i]), transform)
        if mode == "nearest":
            index = np.clip(nearest(source, rounding), 0, old[i] - 1)
            x = node.emit(R.take(x, const(index), axis=i), f"nearest{i}")
        elif mode == "linear":
            low = np.floor(source)
            weight = source - low
            matrix = np.zeros((old[i], sizes[i]))
            column = np.arange(sizes[i])
            np.add.at(matrix, (np.clip(low, 0, old[i] - 1).astype(np.int64), column), 1 - weight)
            np.add.at(matrix, (np.clip(low + 1, 0, old[i] - 1).astype(np.int64), column), weight)
            order = [a for a in range(len(old)) if a != i] + [i]
            rows = node.emit(R.permute_dims(x, order), f"rows{i}")
            product = node.emit(R.matmul(rows, const(matrix)), f"linear{i}")
            x = node.emit(R.permute_dims(product, np.argsort(order).tolist()), f"image{i}")
        else:
            raise Unsupported(f"mode {mode!r} with {transform} coordinates, {old} to {sizes}, is not supported",
                              "use nearest or linear, or sizes that are the scales times the input")  # fmt: skip
    return x


_TVM_TRANSFORMS = {"half_pixel": "half_pixel", "align_corners": "align_corners", "asymmetric": "asymmetric",
                   "pytorch_half_pixel": "pytorch_half_pixel"}  # fmt: skip


def coordinates(old: int, new: int, scale: float, transform: str) -> Array:
    """Position in the input of every output element, [new]; ONNX Resize, coordinate_transformation_mode.

    In float32, as ONNX Runtime does: ties of nearest fall where they fall there.
    """
    i = np.arange(new, dtype=np.float32)
    half, scale = np.float32(0.5), np.float32(scale)
    if transform == "asymmetric":
        return i / scale
    if transform == "align_corners":
        return i * np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.zeros(new)
    if transform == "half_pixel" or (transform == "pytorch_half_pixel" and new > 1):
        return (i + half) / scale - half
    if transform == "pytorch_half_pixel":
        return np.zeros(new)
    if transform == "half_pixel_symmetric":
        offset = np.float32(old / 2) * (1 - np.float32(new) / (scale * np.float32(old)))
        return offset + (i + half) / scale - half
    if transform == "tf_half_pixel_for_nn":
        return (i + half) / scale
    raise Unsupported(f"coordinate_transformation_mode {transform!r} is not supported")


def nearest(source: Array, rounding: str) -> Array:
    """Rounded positions, int64; ONNX Resize, nearest_mode."""
    if rounding == "floor":
        return np.floor(source).astype(np.int64)
    if rounding == "ceil":
        return np.ceil(source).astype(np.int64)
    if rounding == "round_prefer_floor":
        return np.ceil(source - 0.5).astype(np.int64)
    if rounding == "round_prefer_ceil":
        return np.floor(source + 0.5).astype(np.int64)
    raise Unsupported(f"nearest_mode {rounding!r} is not supported")
