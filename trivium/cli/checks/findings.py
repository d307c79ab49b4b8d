"""What a check finds, and running all checks: a check that breaks is itself a finding, never a crash."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One observation.

    level: `ok`, `warn` (works, but something is slower or missing) or `fail` (training will not work).
    fix:   what to do; always given unless all is well.
    """

    name: str
    level: Level
    message: str
    fix: str | None = None

    def __post_init__(self) -> None:
        assert self.level == "ok" or self.fix, f"{self.name}: a finding without a fix helps nobody"

    def render(self) -> str:
        """`name  level  message`, and the fix below it."""
        line = f"{self.level:4}  {self.name:14}  {self.message}"
        return f"{line}\n{'':22}fix: {self.fix}" if self.fix else line


Check = Callable[[Path], Iterator[Finding]]
"""A check gets the folder of the runs."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and how long it took to make them."""

    findings: Sequence[Finding]
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether something must be mended before training."""
        return any(finding.level == "fail" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"findings": [asdict(finding) for finding in self.findings], "seconds": round(self.seconds, 2)}

    def render(self) -> str:
        """All findings, then how many of each level."""
        counts = {level: sum(finding.level == level for finding in self.findings) for level in ("ok", "warn", "fail")}
        last = f"{counts['ok']} fine, {counts['warn']} warnings, {counts['fail']} failures, {self.seconds:.1f} s"
        return "\n".join([*(finding.render() for finding in self.findings), last])


def diagnose(runs: Path) -> Diagnosis:
    """Runs every check."""
    from trivium.cli.checks import machine, selftest, software

    started = time.monotonic()
    findings: list[Finding] = []
    for check in (*software.CHECKS, *machine.CHECKS, *selftest.CHECKS):
        findings.extend(run_check(check, runs))
    return Diagnosis(findings, time.monotonic() - started)


def run_check(check: Check, runs: Path) -> list[Finding]:
    """The findings of one check."""
    name = check.__name__.removeprefix("check_")
    try:
        return list(check(runs))
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fix = f"see whether 'python -m pip check' complains; Python is {sys.executable}"
        return [Finding(name, "fail", f"the check itself failed: {words}", fix)]
