"""Estimates of the time left, with a clock of the test's own."""

import itertools

import pytest

from compiler.time_left import TimeLeft, show


def test_what_is_left_takes_as_long_as_what_was_done():
    left = TimeLeft(total=10, clock=itertools.count(100, 4).__next__)
    assert left.after(2) == pytest.approx(4 / 2 * 8)
    assert left.after(4) == pytest.approx(8 / 4 * 6)


def test_what_another_process_did_says_nothing_of_the_pace():
    left = TimeLeft(total=10, done=8, clock=itertools.count(0, 30).__next__)
    assert left.after(9) == pytest.approx(30)
    assert left.after(10) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, ""), (7.4, ", 7 s left"), (600.0, ", 10 min left"), (9000.0, ", 2.5 h left")],
)
def test_figures_of_an_epoch_in_one_line(seconds, words):
    figures = {"train_loss": 0.123456, "val_accuracy": 0.9, "seconds_left": seconds}
    assert show(figures) == "train_loss 0.1235, val_accuracy 0.9" + words
