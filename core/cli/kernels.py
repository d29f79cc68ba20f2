"""The check of every kernel against its reference, as lines of a report."""

from __future__ import annotations

from core.cli.terminal import clean, table
from core.errors import CoreError
from core.kernels import KernelCase, KernelReport, check_kernel, device, registered_kernels


def check_kernels(problems: list[str], *, full: bool) -> list[str]:
    """Checks the kernels constructed so far: one line in all, or with ``full`` a table of every case.

    On a CPU, where references take long, the line is of kernels that have a source for it.
    What is wrong is added to ``problems``.
    """
    reports = []
    only_sources = not full and getattr(device.current_device(), "language", None) == "cpu"
    for name, kernel in registered_kernels().items():
        if only_sources and kernel.cpu is None:
            continue
        try:
            reports.append(check_kernel(kernel))
        except Exception as error:  # whatever a plugin's kernel does, the report goes on
            said = str(error) if isinstance(error, CoreError) else f"{type(error).__name__}: {error}"
            problems.append(f"kernel {name} cannot be checked: {said}")
    problems += [
        f"kernel {report.name} of {report.module} {_fault(report)}" for report in reports if not _is_sound(report)
    ]
    return _table(reports) if full else [_line(reports)]


def _is_sound(report: KernelReport) -> bool:
    return report.status != "failed"


def _line(reports: list[KernelReport]) -> str:
    if not reports:
        return "none"
    sound = sum(map(_is_sound, reports))
    names = clean(", ".join(report.name for report in reports))
    return f"{sound} of {len(reports)} agree with their references ({names}; {_sources(reports)})"


def _sources(reports: list[KernelReport]) -> str:
    languages = {case.implementation for report in reports for case in report.cases} - {"reference"}
    if not languages:
        return "no fused source runs on this device"
    fused = sum(report.status == "ok" for report in reports)
    return f"{fused} of them fused in {', '.join(sorted(languages))}"


def _table(reports: list[KernelReport]) -> list[str]:
    rows: list[tuple[str, ...]] = [("KERNEL", "DTYPE", "SHAPES", "RUNS", "RESULT", "ERROR", "RELATIVE", "PROBLEM")]
    rows += [(clean(report.name), *_case(case)) for report in reports for case in report.cases]
    return table(rows)


def _case(case: KernelCase) -> tuple[str, ...]:
    result = "ok" if case.ok else "failed"
    errors = f"{case.max_absolute_error:.1e}", f"{case.max_relative_error:.1e}"
    return case.dtype, _shapes(case), case.implementation, result, *errors, clean(case.problem or "")


def _fault(report: KernelReport) -> str:
    failed = [case for case in report.cases if not case.ok]
    if not failed:
        return "has no case to check"
    first = failed[0]
    return (
        f"disagrees with its reference in {len(failed)} of {len(report.cases)} cases, "
        f"first in {first.dtype} {_shapes(first)} ({first.implementation}): {first.problem}"
    )


def _shapes(case: KernelCase) -> str:
    return ",".join(f"[{','.join(map(str, shape))}]" for shape in case.shapes)
