"""Contact sheets show the pictures they are given, in order, whatever kind of array these are."""

import io

import numpy as np
import pytest
from PIL import Image

from cleanscale.errors import DataError
from cleanscale.reporting import contact_sheets
from cleanscale.reporting.contact_sheets import AttendedClass, Suspect


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def plain(colour, shape=(8, 8)):
    return np.broadcast_to(np.array(colour, np.uint8), (*shape, len(colour))).copy()


def place(image, colour):
    """Middle of all pixels of a colour."""
    return np.argwhere((image == colour).all(axis=2)).mean(axis=0)


def test_suspects_are_shown_in_order_from_left_to_right():
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)]
    suspects = [Suspect(plain(c), "given", "better", 0.9) for c in colours]
    image = opened(contact_sheets.most_surely_wrong(suspects, columns=3, size=60))
    spots = [place(image, c) for c in colours]
    assert spots[0][0] == spots[1][0] == spots[2][0] < spots[3][0]
    assert spots[0][1] < spots[1][1] < spots[2][1]
    assert spots[3][1] == spots[0][1]
    assert ((image == colours[0]).all(axis=2)).sum() == 60 * 60


def test_pictures_keep_their_proportions():
    image = opened(contact_sheets.most_surely_wrong([Suspect(plain((1, 2, 250), (10, 40)), "a", None, 1.0)], size=80))
    rows, columns = np.where((image == (1, 2, 250)).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 80)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((9, 7), np.uint8), np.zeros((9, 7, 1), np.uint8), plain((0, 0, 0)), plain((0, 0, 0, 255))],
)
def test_grey_rgb_and_rgba_pictures_are_accepted(picture):
    image = opened(contact_sheets.most_surely_wrong([Suspect(picture, "a", "b", 0.5)], size=60))
    assert ((image == 0).all(axis=2)).sum() > 2000


def test_transparent_is_white():
    image = opened(contact_sheets.most_surely_wrong([Suspect(plain((0, 0, 0, 0)), "a", "b", 0.5)], size=60))
    assert ((image == 0).all(axis=2)).sum() < 100


def test_pictures_that_are_not_bytes_are_refused():
    with pytest.raises(DataError, match="float64 of shape"):
        contact_sheets.most_surely_wrong([Suspect(np.zeros((4, 4)), "a", "b", 0.5)])


def test_known_truth_adds_a_line_to_each_picture():
    suspect = Suspect(plain((9, 9, 9)), "a", "b", 0.5)
    without = opened(contact_sheets.most_surely_wrong([suspect]))
    known = opened(contact_sheets.most_surely_wrong([Suspect(suspect.picture, "a", "b", 0.5, True)]))
    assert known.shape[0] > without.shape[0]


def test_long_names_are_cut_to_the_room_there_is():
    fitted = contact_sheets._fit("garlic bread\nwith a very long name", 80, 12)
    assert fitted.endswith("…")
    assert contact_sheets._font(12).getlength(fitted) <= 80
    assert contact_sheets._fit("ramen", 80, 12) == "ramen"


@pytest.mark.parametrize(
    ("part", "text"), [(1.0, "100.0 %"), (0.99999, ">99.9 %"), (0.5, "50.0 %"), (0.0001, "<0.1 %"), (0.0, "0.0 %")]
)
def test_percents_are_not_rounded_to_certainty(part, text):
    assert contact_sheets._percent(part) == text


def test_most_attended_references_are_left_of_the_least_attended():
    most, least = (250, 10, 10), (10, 10, 250)
    shown = AttendedClass("cup cakes", [(plain(most), 0.9)], [(plain(least), 0.1)], references=2)
    image = opened(contact_sheets.attended_references([shown], size=50))
    assert place(image, most)[1] < place(image, least)[1]
    assert opened(contact_sheets.attended_references([shown, shown], size=50)).shape[0] > image.shape[0]


def test_empty_sheets_are_still_pictures():
    for png in (contact_sheets.most_surely_wrong([]), contact_sheets.attended_references([])):
        assert opened(png).shape[2] == 3
