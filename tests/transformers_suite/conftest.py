"""Leaves out what `reasons.py` lists, fails what skips itself for a reason not listed there, and counts by reason."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .reasons import LEFT_OUT, SKIPPED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and (entry := LEFT_OUT.get(item.name)):
            classes, reason = entry
            if re.search(classes, item.parent.name):
                item.add_marker(pytest.mark.skip(reason))


def reason_of(report: pytest.TestReport) -> str | None:
    """The reason in `reasons.py` for a skipped test; `None` if there is none."""
    message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    message = message.removeprefix("Skipped: ")
    if message in {reason for _, reason in LEFT_OUT.values()}:
        return message
    return next((reason for reason, known in SKIPPED.items() if any(re.search(each, message) for each in known)), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if item.path.parent == HERE and report.skipped and reason_of(report) is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped for a reason that reasons.py does not list: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if f"{HERE.name}/" in report.nodeid]
    if not skipped:
        return
    terminalreporter.section("transformers' shared tests")
    counts = Counter(reason_of(report) for report in skipped)
    for name in ("passed", "failed", "error"):
        terminalreporter.line(f"{len(terminalreporter.stats.get(name, [])):5} {name}")
    for reason, count in counts.most_common():
        terminalreporter.line(f"{count:5} skipped: {reason}")
