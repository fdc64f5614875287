"""Second views of images, and the front of the network that pairs of views shape."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dq_cluster.images.features import open_features
from dq_cluster.images.views import another_view, choose_for_views
from dq_cluster.model.standardize import (
    add_moments,
    discriminative_components,
    moments,
    principal_components,
    view_moments,
)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_a_view_is_another_picture_and_always_the_same_one() -> None:
    for image in pictures(20):
        view = another_view(image, 0.4)
        assert view.shape == image.shape
        assert view.dtype == np.uint8
        assert (view != image).any()
        np.testing.assert_array_equal(view, another_view(image.copy(), 0.4))


def test_about_the_wanted_share_is_chosen_whatever_the_batch() -> None:
    many = pictures(2000)
    chosen = choose_for_views(many, 0.2)
    assert 0.16 < chosen.mean() < 0.24
    np.testing.assert_array_equal(chosen[500:600], choose_for_views(many[500:600], 0.2))
    assert not choose_for_views(many, 0.0).any()
    assert choose_for_views(many, 1.0).all()


def test_feature_files_tell_which_rows_have_views(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, views = (rng.normal(size=(50, 4)).astype(np.float16) for _ in range(2))
    absent = np.arange(50) % 3 > 0
    lists = pa.FixedSizeListArray.from_arrays
    pq.write_table(
        pa.table(
            {
                "id": pa.array(range(50), pa.int64()),
                "feature": lists(pa.array(features.ravel()), 4),
                "view": lists(pa.array(views.ravel()), 4, mask=pa.array(absent)),
            }
        ),
        tmp_path / "a.parquet",
        row_group_size=16,
    )
    found = open_features(str(tmp_path))
    assert found.viewed
    chosen, read = found.views(10, 40)
    np.testing.assert_array_equal(chosen, ~absent[10:40])
    np.testing.assert_array_equal(read, views[10:40][~absent[10:40]])


def test_directions_in_which_one_image_varies_are_left_out() -> None:
    """Two loud dimensions differ between views, two quiet ones only between images."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(4000, 2))
    noise = [3 * rng.normal(size=(4000, 2)) for _ in range(2)]
    one, other = (torch.from_numpy(np.hstack([signal, n])) for n in noise)
    found = moments(one)
    _, plain = principal_components(found, 2)
    _, shaped = discriminative_components(found, view_moments(one, other, found.mean), 2, 0.5)
    assert plain[:2].norm() < 0.2 * plain.norm()
    assert shaped[:2].norm() > 0.9 * shaped.norm()


def test_moments_of_parts_add_up() -> None:
    data = torch.randn(300, 5, dtype=torch.float64)
    whole, parts = moments(data), add_moments(moments(part) for part in data.split(70))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
