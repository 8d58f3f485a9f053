"""Errors can always be printed."""

from pressoir.errors import SourceError


def test_a_message_that_quotes_half_a_character_can_be_printed():
    error = SourceError("config.json: '\ud800', 'é', '😀' is unknown")
    assert str(error) == "config.json: '\\ud800', 'é', '😀' is unknown"
    assert str(error).encode()
