from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from splitinfer.errors import MasksExhaustedError, StateError
from splitinfer.masking import marks
from splitinfer.masking.fixed_point import fixed_matrix
from splitinfer.masking.layout import MaskLayout
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.prepare import prepare
from splitinfer.masking.ring import masked_product
from splitinfer.rounds import Operation
from tests.support.masking import WEIGHTS_SHA256, matrices, pool, reopened


def test_a_mask_and_its_products_fit_the_matrices(tmp_path: Path) -> None:
    made = pool(tmp_path)
    taken = made.take(made.reserve(1)[0])
    for key, place in made.layout.places.items():
        words = taken.words[place.input_at :][: place.inputs]
        expected = masked_product(matrices()[key].integers, words) % 2**48
        assert taken.products[place.output_at :][: place.outputs].tolist() == expected.tolist()


def test_no_mask_is_given_twice(tmp_path: Path) -> None:
    made = pool(tmp_path)
    (number,) = made.reserve(1)
    made.take(number)
    with pytest.raises(StateError, match="a second time"):
        made.take(number)
    assert reopened(tmp_path).reserve(1)[0] == number + 1


def test_a_mask_that_was_not_reserved_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not reserved"):
        pool(tmp_path).take(0)


def test_masks_reserved_before_a_crash_are_skipped(tmp_path: Path) -> None:
    assert list(pool(tmp_path).reserve(3)) == [0, 1, 2]
    assert list(reopened(tmp_path).reserve(3)) == [3, 4]


def test_a_reservation_is_durable_before_the_mask_is_given(tmp_path: Path) -> None:
    made = pool(tmp_path)
    made.reserve(2)
    for path in (tmp_path / "pool/mark", tmp_path / f"anchors/{made.pool_id}.json"):
        assert json.loads(path.read_text())["used"] == 2


def test_a_crash_between_both_marks_skips_masks_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, written = pool(tmp_path), []
    real = marks.write_small

    def crash(path: Path, data: bytes) -> None:
        if written:
            raise OSError(5, "lost power")
        written.append(path)
        real(path, data)

    monkeypatch.setattr(marks, "write_small", crash)
    with pytest.raises(StateError, match="lost power"):
        made.reserve(2)
    monkeypatch.undo()
    assert [path.name for path in written] == ["mark"]
    assert list(reopened(tmp_path).reserve(1)) == [2]


def test_an_empty_pool_says_what_to_do(tmp_path: Path) -> None:
    made = pool(tmp_path, tokens=2)
    assert (made.prepared, made.used, made.left) == (2, 0, 2)
    assert list(made.reserve(5)) == [0, 1]
    with pytest.raises(MasksExhaustedError, match="masks prepare"):
        made.reserve(1)
    prepare(made, matrices(), tokens=3, limit_bytes=1 << 20)
    assert list(made.reserve(9)) == [2, 3, 4]


def test_a_pool_that_was_put_back_is_refused(tmp_path: Path) -> None:
    made = pool(tmp_path)
    shutil.copytree(tmp_path / "pool", tmp_path / "earlier")
    made.reserve(2)
    shutil.rmtree(tmp_path / "pool")
    shutil.move(tmp_path / "earlier", tmp_path / "pool")
    with pytest.raises(MasksExhaustedError, match="2 of its masks are used, but it says 0"):
        reopened(tmp_path)


def test_a_copy_beside_the_pool_is_refused_once_the_pool_is_used(tmp_path: Path) -> None:
    made = pool(tmp_path)
    shutil.copytree(tmp_path / "pool", tmp_path / "copy")
    copy = MaskPool(tmp_path / "copy", anchors=tmp_path / "anchors")
    made.reserve(1)
    with pytest.raises(MasksExhaustedError, match="is a copy or was put back"):
        copy.reserve(1)


def test_a_pool_copied_to_another_machine_is_refused(tmp_path: Path) -> None:
    pool(tmp_path)
    with pytest.raises(MasksExhaustedError, match="not made on this machine"):
        MaskPool(tmp_path / "pool", anchors=tmp_path / "elsewhere")


def test_a_discarded_pool_is_gone_and_its_copies_are_refused(tmp_path: Path) -> None:
    made = pool(tmp_path)
    shutil.copytree(tmp_path / "pool", tmp_path / "copy")
    made.discard()
    assert not (tmp_path / "pool").exists()
    with pytest.raises(MasksExhaustedError, match="discarded after a wrong result"):
        MaskPool(tmp_path / "copy", anchors=tmp_path / "anchors")


@pytest.mark.parametrize("name", ["pool.json", "key", "secrets", "mark"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    pool(tmp_path)
    (tmp_path / "pool" / name).write_bytes(b"x")
    with pytest.raises(StateError, match=name):
        reopened(tmp_path).secrets()


def test_a_torn_row_of_products_is_prepared_again(tmp_path: Path) -> None:
    made = pool(tmp_path)
    products = tmp_path / "pool/products"
    whole = products.read_bytes()
    products.write_bytes(whole[:-1])
    assert made.prepared == 4
    assert prepare(made, matrices(), tokens=5, limit_bytes=1 << 20) == 1
    assert products.read_bytes() == whole


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    pool(tmp_path)
    for path in (tmp_path / "pool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((tmp_path / "pool").stat().st_mode) == 0o700


def test_a_limit_on_size_is_kept_before_anything_is_written(tmp_path: Path) -> None:
    made = pool(tmp_path)
    with pytest.raises(StateError, match="above the limit of 1,000"):
        prepare(made, matrices(), tokens=50, limit_bytes=1000)
    assert made.prepared == 5


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(pool(tmp_path), matrices(), tokens=150, limit_bytes=1 << 20, progress=lambda *at: seen.append(at))
    assert seen == [(64, 145), (128, 145), (145, 145)]


def test_another_models_matrices_are_refused(tmp_path: Path) -> None:
    other = {**matrices(), (0, Operation.O): fixed_matrix([[1.0]])}
    with pytest.raises(StateError, match="another model"):
        prepare(pool(tmp_path), other, tokens=9, limit_bytes=1 << 20)


def test_a_second_pool_in_one_folder_is_refused(tmp_path: Path) -> None:
    pool(tmp_path)
    with pytest.raises(StateError, match="already"):
        pool(tmp_path)


def test_a_folder_without_a_pool_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="masks prepare"):
        reopened(tmp_path)


def test_a_pool_is_bound_to_weights_and_layout(tmp_path: Path) -> None:
    made, again = pool(tmp_path), reopened(tmp_path)
    assert again.weights_sha256 == WEIGHTS_SHA256
    assert again.layout == made.layout == MaskLayout.of((k, m.integers.shape) for k, m in matrices().items())
    assert repr(again) == f"MaskPool({made.pool_id})"


def test_pools_have_ids_of_their_own(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "a")
    os.mkdir(tmp_path / "b")
    assert pool(tmp_path / "a").pool_id != pool(tmp_path / "b").pool_id
