"""What of the op families no mixer of the table uses yet keeps every law too."""

from unittest.mock import patch

import pytest
from families import FAMILIES
from laws import LAWS, Case

from llm.mixers import MIXERS


@pytest.fixture(autouse=True)
def table():
    with patch.dict(MIXERS, FAMILIES):
        yield


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_mixer_keeps_law(kind, law):
    law(Case(kind, ()))
