"""The pins of `make test-lowest` are the lower bounds of pyproject.toml."""

import sys

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.lowest import APART, OWN, PROJECT, pins

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

TEXT = PROJECT.read_text(encoding="utf-8")
TABLE = tomllib.loads(TEXT)["project"]


def expected(extra):
    """Bounds by package, as a parser of TOML and one of requirements see them."""
    found, lists = (
        {},
        [TABLE["optional-dependencies"][extra]] + [TABLE["dependencies"]] * (extra != APART),
    )
    for one in lists:
        for requirement in map(Requirement, one):
            if requirement.name == OWN:
                lists += [TABLE["optional-dependencies"][each] for each in requirement.extras - {APART}]
                continue
            [bound] = requirement.specifier
            assert bound.operator == ">="
            name = requirement.name + (f"[{','.join(requirement.extras)}]" if requirement.extras else "")
            found[name] = max(found.get(name, Version("0")), Version(bound.version))
    return {name: version for name, version in found.items() if name != "torch"}


@pytest.mark.parametrize("extra", ["test", APART])
def test_pins_are_the_lower_bounds(extra):
    found = {name: Version(version) for name, version in pins(extra, TEXT).items()}
    assert found == expected(extra)
    assert ("pytest" in found) == (extra == "test")


def test_of_two_bounds_the_higher_counts():
    text = TEXT.replace('"lightning>=2.4"', '"numpy>=1.100.1"')
    assert pins("test", text)["numpy"] == "1.100.1"


@pytest.mark.parametrize("found", ["lightning", "lightning<3", "lightning>=2.4,<3"])
def test_a_requirement_without_a_lower_bound_is_refused(found):
    with pytest.raises(ValueError, match=f"should be name>=version: found '{found}' in test"):
        pins("test", TEXT.replace('"lightning>=2.4"', f'"{found}"'))
