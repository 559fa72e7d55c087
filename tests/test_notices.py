"""Announcements exist in both languages, with the same placeholders."""

import pytest

from huaben.errors import ConfigError
from huaben.notices import NOTICES, notice, placeholders


def test_both_languages_have_the_same_keys_and_placeholders():
    assert NOTICES["en"].keys() == NOTICES["zh"].keys()
    for code in NOTICES["en"]:
        assert placeholders(NOTICES["en"][code]) == placeholders(NOTICES["zh"][code]), code


def test_notice_refuses_unknown_codes_and_placeholders():
    with pytest.raises(ConfigError, match="no_such"):
        notice("no_such")
    with pytest.raises(ConfigError, match="name"):
        notice("character_absent", who="cat")


def test_values_may_differ_by_language():
    note = notice("character_colour", name="cat", expected=("red", "红色"), found=("blue", "蓝色"))
    assert "red" in note.text("en")
    assert "红色" in note.text("zh")
