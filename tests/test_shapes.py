"""What a data set must not get wrong: the same images every time, and labels that match them."""

from __future__ import annotations

import numpy as np
import pytest

from images import shapes


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return shapes.draw(shapes.CHUNK + 100, seed=0)  # crosses a chunk boundary


def test_types_and_shapes(drawn):
    images, labels = drawn
    count = shapes.CHUNK + 100
    assert images.shape == (count, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.int64


def test_labels_are_balanced_over_ten_named_classes(drawn):
    assert len(set(shapes.CLASSES)) == 10
    assert np.bincount(drawn[1]).tolist() == [len(drawn[1]) // 10] * 10


def test_same_seed_same_images(drawn):
    again = shapes.draw(len(drawn[1]), seed=0)
    assert np.array_equal(again[0], drawn[0]) and np.array_equal(again[1], drawn[1])


@pytest.mark.parametrize("count", [0, 1, 13, shapes.CHUNK, shapes.CHUNK + 1])
def test_a_shorter_draw_is_the_start_of_a_longer_one(drawn, count):
    images, labels = shapes.draw(count, seed=0)
    assert np.array_equal(images, drawn[0][:count]) and np.array_equal(labels, drawn[1][:count])


def test_no_two_images_are_the_same(drawn):
    # Neither inside a draw (chunks have streams of their own) nor between two seeds: a test set
    # that shared images with the train set would measure memory.
    images = np.concatenate([drawn[0], shapes.draw(shapes.CHUNK + 100, seed=1)[0]])
    assert len({image.tobytes() for image in images}) == len(images)


def test_drawing_leaves_the_global_random_state_alone():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    shapes.draw(5, seed=0)
    assert np.random.random() == expected  # noqa: NPY002


def test_the_label_shows_only_in_the_shape(monkeypatch):
    # With the shape drawn as nothing, the image a label gives must not depend on the label.
    monkeypatch.setattr(shapes, "_distance", lambda kind, u, v: np.full_like(u, 1e3))
    zeros = np.zeros(shapes.CHUNK, np.int64)
    assert np.array_equal(shapes._draw_chunk(0, 0, zeros), shapes._draw_chunk(0, 0, zeros + 7))


def _inside(name: str, turn: float = 0.0) -> np.ndarray:
    """Where an outline is filled, bool [101, 101] on the square from -1 to 1."""
    v, u = np.mgrid[-1:1:101j, -1:1:101j]
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    return shapes.OUTLINES[name](u, v) < 0


def test_outlines_fill_a_visible_part_and_stay_in_their_circle():
    v, u = np.mgrid[-1:1:101j, -1:1:101j]
    for name in shapes.CLASSES:
        inside = _inside(name)
        assert 0.1 < inside.mean() < 0.75, name
        assert not inside[np.hypot(u, v) > 1.1].any(), name


def test_outlines_differ_at_every_angle():
    # Shapes are turned at random, so a shape that is another one turned would be one class.
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for i, name in enumerate(shapes.CLASSES):
        for other in shapes.CLASSES[i + 1 :]:
            straight = _inside(name)
            least = min((straight ^ _inside(other, turn)).mean() for turn in turns)
            assert least > 0.04, (name, other)


def test_only_hollow_outlines_have_an_empty_centre():
    hollow = {name for name in shapes.CLASSES if not _inside(name)[50, 50]}
    assert hollow == {"ring", "frame", "crescent"}


def test_hue_is_a_turn_of_the_colour_wheel():
    # Red, green and blue lie a third of a turn apart.
    rng = np.random.default_rng(0)
    rgb = shapes._colour(np.array([0, 1, 2]) / 3, rng)
    assert rgb.shape == (3, 3, 1, 1) and rgb.min() >= 0 and rgb.max() <= 1
    assert rgb[:, :, 0, 0].argmax(1).tolist() == [0, 1, 2]
