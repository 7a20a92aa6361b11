"""A verification as a JUnit report, which CI systems display."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from observatory.operations import StackVerification

OUTCOMES = {"failed": "failure", "unknown": "error"}


def junit_xml(found: StackVerification) -> str:
    """Return one test suite with a case for each check; an unknown check is an error."""
    verdicts = [check.verdict for check in found.checks]
    suite = ET.Element(
        "testsuite",
        name=f"observatory verify {found.stack}",
        tests=str(len(verdicts)),
        failures=str(verdicts.count("failed")),
        errors=str(verdicts.count("unknown")),
        time=f"{sum(check.seconds for check in found.checks):.3f}",
    )
    for check in found.checks:
        case = ET.SubElement(suite, "testcase", classname=found.stack, name=check.name, time=f"{check.seconds:.3f}")
        if outcome := OUTCOMES.get(check.verdict):
            ET.SubElement(case, outcome, message=check.detail)
        else:
            ET.SubElement(case, "system-out").text = check.detail
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
