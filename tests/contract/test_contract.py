"""Every mixer of the table keeps every law, in the form that runs on CPUs and in the one that runs everywhere."""

import pytest
from cases import all_cases, has_loops, label, pytorch_forms
from laws import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", all_cases(), ids=label)
def test_mixer_keeps_law(case, law):
    law(case)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", list(filter(has_loops, all_cases())), ids=label)
def test_mixer_keeps_law_without_compiled_loops(case, law):
    with pytorch_forms():
        law(case)
