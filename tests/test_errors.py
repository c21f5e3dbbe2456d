"""What the user is told about names that are not known."""

from editlib.errors import unknown


def test_an_unknown_name_is_told_what_it_looks_like() -> None:
    message = "method 'c_rome' is unknown; did you mean c-rome? use one of rome, c-rome"
    assert str(unknown("method", "c_rome", ["rome", "c-rome"])) == message
    assert str(unknown("layer", 17, iter("ab"))) == "layer '17' is unknown; use one of a, b"
