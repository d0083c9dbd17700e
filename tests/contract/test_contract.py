"""Every mixer of the table keeps every law."""

import pytest
from cases import all_cases, label
from laws import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", all_cases(), ids=label)
def test_mixer_keeps_law(case, law):
    law(case)
