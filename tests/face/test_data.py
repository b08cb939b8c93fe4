"""Calibration data: every way to give it, and every way to get it wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qcompiler.data import Samples, read_column
from qcompiler.sim.errors import CalibrationError
from qcompiler.sim.integer_program import Tensor

IMAGE = {"image": Tensor("image", (1, 2, 3), "float32")}
PAIR = {"left": Tensor("left", (1, 4), "float32"), "right": Tensor("right", (2, 2), "int64")}
VALUES = np.arange(30, dtype=np.float32).reshape(5, 2, 3)


def _same(samples: Samples, expected: np.ndarray) -> bool:
    """Read twice: every source must be readable again."""
    return all(np.array_equal(np.stack([s["image"][0] for s in samples]), expected) for _ in range(2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_sample_by_sample(tmp_path: Path, save) -> None:
    save(tmp_path / "data.npz", image=VALUES, labels=np.arange(5))
    samples = Samples(tmp_path / "data.npz", IMAGE)
    assert len(samples) == 5
    assert _same(samples, VALUES)


def test_a_batch_axis_of_one_may_be_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=VALUES[:, None])
    assert _same(Samples(tmp_path / "data.npz", IMAGE), VALUES)


def test_integers_and_doubles_become_the_models_type(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.float64, np.float16, np.int32):
        np.savez(tmp_path / "data.npz", image=VALUES.astype(dtype))
        sample = next(iter(Samples(tmp_path / "data.npz", IMAGE)))
        assert sample["image"].dtype == np.float32
        assert np.array_equal(sample["image"], VALUES[:1])


def test_folder_with_a_file_a_sample(tmp_path: Path) -> None:
    for i, value in enumerate(VALUES):
        np.save(tmp_path / f"{i:02d}.npy", np.asfortranarray(value) if i == 2 else value)
    assert _same(Samples(tmp_path, IMAGE), VALUES)


def test_folder_with_a_file_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "left.npy", np.ones((3, 4)))
    np.save(tmp_path / "right.npy", np.arange(12).reshape(3, 2, 2))
    samples = list(Samples(tmp_path, PAIR))
    assert len(samples) == 3
    assert np.array_equal(samples[2]["right"], [[8, 9], [10, 11]])


def test_iterables_of_dicts() -> None:
    assert _same(Samples([{"image": v} for v in VALUES], IMAGE), VALUES)


def test_a_generator_is_spooled_and_can_be_read_again() -> None:
    assert _same(Samples(({"image": v} for v in VALUES), IMAGE), VALUES)


def test_a_generator_left_half_way_is_continued() -> None:
    samples = Samples(({"image": v} for v in VALUES), IMAGE)
    next(iter(samples))
    assert _same(samples, VALUES)
    assert len(samples) == 5


def test_hash_depends_on_values_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=VALUES)
    from_file = Samples(tmp_path / "data.npz", IMAGE).sha256()
    assert from_file == Samples(({"image": v} for v in VALUES), IMAGE).sha256()
    assert from_file != Samples([{"image": v + 1} for v in VALUES], IMAGE).sha256()


def test_labels_column(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=VALUES, labels=np.arange(5))
    assert np.array_equal(read_column(tmp_path / "data.npz", "labels"), np.arange(5))


# -------------------------------------------------------------------------------------------- errors
def _message(source, inputs=IMAGE) -> str:
    with pytest.raises(CalibrationError) as caught:
        for _ in Samples(source, inputs):
            pass
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert _message(tmp_path / "no.npz") == f"{tmp_path}/no.npz does not exist"


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    assert _message(tmp_path / "text.npz") == (
        f"{tmp_path}/text.npz is not a readable .npz archive: File is not a zip file"
    )


def test_wrong_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=VALUES, labels=np.arange(5))
    assert _message(tmp_path / "data.npz") == (
        f"{tmp_path}/data.npz has no array 'image'; it holds 'images', 'labels'; did you mean 'images'?"
    )


def test_wrong_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((5, 3, 2)))
    assert _message(tmp_path / "data.npz") == (
        f"{tmp_path}/data.npz: sample 0 of input 'image' has shape 3x2; the model takes 2x3 or 1x2x3"
    )


def test_not_a_number() -> None:
    values = VALUES.copy()
    values[3, 1, 1] = np.nan
    assert _message([{"image": v} for v in values]) == (
        "the calibration samples: sample 3 of input 'image' holds NaN or infinity (1 of 6 values); remove or repair it"
    )


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=VALUES[:0])
    assert _message(tmp_path / "data.npz") == (
        f"{tmp_path}/data.npz: there are no calibration samples; give at least one"
    )
    wanted = "the calibration samples: there are no calibration samples; give at least one"
    assert _message([]) == wanted
    assert _message(iter([])) == wanted


def test_empty_folder(tmp_path: Path) -> None:
    assert _message(tmp_path) == f"{tmp_path}: the folder holds no .npy file"


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.array([{"a": 1}], dtype=object))
    assert _message(tmp_path / "data.npz") == f"{tmp_path}/data.npz: 'image' holds object, not numbers"


def test_text_is_refused() -> None:
    assert _message([{"image": np.full((2, 3), "x")}]) == (
        "the calibration samples: sample 0 of input 'image' is <U1; the model takes float32"
    )


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 2, 3)}
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("image.npy", stream.getvalue() + b"\0" * 100)
    assert _message(tmp_path / "data.npz") == (
        f"{tmp_path}/data.npz: 'image' is truncated: its header promises more samples than the file holds"
    )


def test_different_numbers_of_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", left=np.zeros((3, 4)), right=np.zeros((2, 2, 2), np.int64))
    assert _message(tmp_path / "data.npz", PAIR) == (
        f"{tmp_path}/data.npz: the inputs have different numbers of samples: 'left' 3, 'right' 2"
    )


def test_values_that_do_not_fit_an_integer_input() -> None:
    tiny = {"x": Tensor("x", (1,), "int8")}
    assert _message([{"x": np.array([300])}], tiny) == (
        "the calibration samples: sample 0 of input 'x': int64 values do not fit the model's int8"
    )


def test_a_sample_that_is_no_dict() -> None:
    assert _message([VALUES[0]]) == "the calibration samples: sample 0 is a ndarray, not a dict of input arrays"
