"""Train the bundled digit classifier and write its model and data into the package.

  pip install -r examples/digits/requirements.txt && python examples/digits/train.py

Data: scikit-learn's copy of the UCI handwritten digits (1,797 grey images of 8x8, values 0..16). The network has what
makes real networks awkward to quantise: BatchNormalization left unfolded, a depthwise-separable block and residual
additions.
Writes digits.onnx, calibration.npz (100 training images) and test.npz (360 images and labels nobody trained on).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

OUT = Path(__file__).resolve().parents[2] / "qcompiler" / "demo"
SEED, EPOCHS, BATCH = 0, 60, 64


def conv(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o))


class Digits(nn.Module):
    """[N, 1, 8, 8] in 0..1 to [N, 10] scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 16, 3)
        self.depthwise = conv(16, 16, 3, groups=16)
        self.pointwise = conv(16, 16, 1)
        self.down = conv(16, 32, 3, stride=2)
        self.wide = conv(32, 32, 3)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        x = torch.relu(self.down(x))
        x = torch.relu(x + self.wide(x))
        return self.classifier(x.mean((2, 3)))


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    net = Digits()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for batch in order[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: Digits) -> onnx.ModelProto:
    """The network as ONNX with its BatchNormalization nodes unfolded (PyTorch's own exporter folds them)."""
    nodes, constants = [], []

    def constant(name: str, tensor: torch.Tensor) -> str:
        constants.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def block(name: str, x: str) -> str:
        layer, norm = getattr(net, name)
        pad = layer.padding[0]
        y = node(
            "Conv", [x, constant(f"{name}.weight", layer.weight)], f"{name}.conv", group=layer.groups,
            kernel_shape=list(layer.kernel_size), strides=list(layer.stride), pads=[pad] * 4,
        )  # fmt: skip
        statistics = {"gamma": norm.weight, "beta": norm.bias, "mean": norm.running_mean, "variance": norm.running_var}
        parameters = [constant(f"{name}.{key}", value) for key, value in statistics.items()]
        return node("BatchNormalization", [y, *parameters], f"{name}.norm", epsilon=norm.eps)

    def relu(name: str, x: str) -> str:
        return node("Relu", [x], f"{name}.relu")

    x = relu("stem", block("stem", "image"))
    y = block("pointwise", relu("depthwise", block("depthwise", x)))
    x = relu("separable", node("Add", [x, y], "separable.add"))
    x = relu("down", block("down", x))
    x = relu("residual", node("Add", [x, block("wide", x)], "residual.add"))
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "features")
    linear = [constant("classifier.weight", net.classifier.weight), constant("classifier.bias", net.classifier.bias)]
    node("Gemm", [x, *linear], "scores", transB=1)
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="digits")
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=360, random_state=SEED, stratify=labels
    )
    net = train(train_x, train_y)
    with torch.no_grad():
        accuracy = (net(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean()
    print(f"float accuracy on {len(test_y)} test images: {accuracy:.4f}")
    OUT.mkdir(exist_ok=True)
    onnx.save(export(net), OUT / "digits.onnx")
    np.savez_compressed(OUT / "calibration.npz", image=train_x[:100])
    np.savez_compressed(OUT / "test.npz", image=test_x, labels=test_y)


if __name__ == "__main__":
    main()
