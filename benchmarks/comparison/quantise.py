"""Runs in the peers' environment: quantises one model with one peer's own tool and default settings for CPUs.

python quantise.py (ort | nncf | tflite) MODEL.onnx DATA.npz OUTPUT

All see the same calibration samples ("input" of DATA.npz). Nothing else of this project is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def with_onnxruntime(model: Path, samples: np.ndarray, output: Path) -> None:
    """QDQ, u8 activations, s8 weights per channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"input": sample[None]}

    prepared = output.with_name(f"{output.stem}.prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    prepared.unlink()


def with_nncf(model: Path, samples: np.ndarray, output: Path) -> None:
    """Post-training quantisation for CPUs; transformers by NNCF's own scheme for them."""
    import nncf
    import openvino

    network = openvino.Core().read_model(model)
    attention = any(
        o.get_type_name() == "Softmax" and len(o.get_output_partial_shape(0)) == 4 for o in network.get_ops()
    )
    extra = {"model_type": nncf.ModelType.TRANSFORMER} if attention else {}
    data = nncf.Dataset(list(samples), lambda sample: {"input": sample[None]})
    quantised = nncf.quantize(
        network, data, subset_size=len(samples), target_device=nncf.TargetDevice.CPU, **extra
    )  # fmt: skip
    openvino.save_model(quantised, output)


def with_tensorflow(model: Path, samples: np.ndarray, output: Path) -> None:
    """The ONNX graph as TensorFlow operations (NHWC), through the TFLite converter: everything int8."""
    import tensorflow as tf
    from tensorflow_graph import function_of

    function, to_tensorflow = function_of(model)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([to_tensorflow(sample[None])] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    output.write_bytes(converter.convert())


TOOLS = {"ort": with_onnxruntime, "nncf": with_nncf, "tflite": with_tensorflow}

if __name__ == "__main__":
    tool, model, data, target = sys.argv[1], *map(Path, sys.argv[2:5])
    with np.load(data, allow_pickle=False) as archive:
        TOOLS[tool](model, archive["input"], target)
