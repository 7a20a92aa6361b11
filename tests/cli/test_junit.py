"""A verification as CI systems read it."""

from xml.etree import ElementTree as ET

from observatory.cli.junit import junit_xml
from observatory.operations import StackCheck, StackVerification


def test_each_check_is_a_case_and_an_unknown_check_is_an_error() -> None:
    checks = (
        StackCheck(name="daemons", verdict="passed", detail="all 20 are ready", seconds=0.5),
        StackCheck(name="service", verdict="failed", detail='answered 503: "<busy>"', seconds=0.25),
        StackCheck(name="database", verdict="unknown", detail="cannot be looked at", seconds=1.0),
    )
    suite = ET.fromstring(junit_xml(StackVerification(stack="local", checks=checks)))  # noqa: S314 - our own
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "time")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "time": "1.750"}
    cases = {case.get("name"): [(each.tag, each.get("message") or each.text) for each in case] for case in suite}
    assert cases == {
        "daemons": [("system-out", "all 20 are ready")],
        "service": [("failure", 'answered 503: "<busy>"')],
        "database": [("error", "cannot be looked at")],
    }
