"""Wheels for a machine with a GPU, torch and little else: built and collected here, installed there.

    python -m benchmarks.wheels DIRECTORY [--present FILE] [--python 3.12]

Nothing but the standard library is imported before they are installed (`installed_and_restarted`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["DISTRIBUTIONS", "LIMIT", "WheelsError", "collect", "missing", "tree_bytes"]

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    "dgpo": ROOT,
    **{name: ROOT / "plugins" / name for name in ("dgpo-diffusers", "dgpo-lab", "dgpo-sd3", "dgpo-wan")},
}
"""What the session on a GPU needs of the project."""
EXTRAS = {"dgpo": ("lora",)}
PRESENT = frozenset({"torch", "triton", "numpy", "setuptools", "pip"})
"""Packages that every machine for torch has, and what they require; others are in a file that the user gives."""
LIMIT = 64 * 2**20
"""Bytes of all that travels: wheels and the tracked files of the project."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux1_x86_64")  # fmt: skip


class WheelsError(Exception):
    """Wheels cannot be built, collected or installed."""


def collect(
    directory: Path, present: Iterable[str] = PRESENT, python: str = "3.12", limit: int = LIMIT
) -> dict[str, int]:
    """Build the project's wheels and collect those of libraries that are not present, in the versions installed here.

    python: version on the other machine, a Linux on x86-64. Returns the bytes of each wheel. Raises WheelsError if one
    cannot be had, or if all of them and the tree exceed the limit.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.whl"):
        old.unlink()
    for source in DISTRIBUTIONS.values():
        _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(directory.resolve()), cwd=source)
    wanted = [f"{name}=={version}" for name, version in missing(present).items()]
    if wanted:
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        _run("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python,
             "--implementation", "cp", *platforms, "-d", str(directory.resolve()), *wanted, cwd=ROOT)  # fmt: skip
    found = {wheel.name: wheel.stat().st_size for wheel in sorted(directory.glob("*.whl"))}
    tree = tree_bytes()
    if sum(found.values()) + tree > limit:
        largest = ", ".join(
            f"{name} {size / 2**20:.1f}" for name, size in sorted(found.items(), key=lambda item: -item[1])[:5]
        )
        raise WheelsError(
            f"{directory}: {sum(found.values()) / 2**20:.1f} MiB of wheels and {tree / 2**20:.1f} of the tree exceed "
            f"{limit / 2**20:.0f} MiB (largest: {largest}); list what the other machine has in a file, as `pip list "
            "--format=freeze` prints it, and give it with --present"
        )
    return found


def missing(present: Iterable[str]) -> dict[str, str]:
    """Return the versions, as installed here, of libraries that the distributions require and that are not present.
    What is present is taken to have its own requirements."""
    there = {_normal(name) for name in present}
    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    pending: list[tuple[str, tuple[str, ...]]] = [(name, EXTRAS.get(name, ())) for name in DISTRIBUTIONS]
    while pending:
        name, extras = pending.pop()
        if (_normal(name), extras) in seen or _normal(name) in there:
            continue
        seen.add((_normal(name), extras))
        try:
            here = distribution(name)
        except PackageNotFoundError:
            raise WheelsError(f"{name} is required and not installed here; run `make test` or install it") from None
        if _normal(name) not in DISTRIBUTIONS:
            found[_normal(name)] = here.version
        pending += _requirements(here.requires or (), extras)
    return dict(sorted(found.items()))


def tree_bytes() -> int:
    """Return the bytes of the project's files that travel: tracked ones, and untracked ones that git does not ignore.
    Without a repository, of all files."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    files = [ROOT / name for name in told.stdout.decode().split("\0") if name] or list(ROOT.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _requirements(lines: Iterable[str], extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the (name, extras) of requirements that hold on Linux with these extras."""
    from packaging.requirements import Requirement

    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement.name, tuple(sorted(requirement.extras))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(*words: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise WheelsError(f"{' '.join(words[:4])} failed for {cwd.name}: {reason[-1]}")


def names_of(text: str) -> set[str]:
    """Return the package names of a list: one per line, with or without a version."""
    names = (re.match(r"[A-Za-z0-9][\w.-]*", line.strip()) for line in text.splitlines())
    return {match[0] for match in names if match}


def main(words: list[str] | None = None) -> None:
    """Build, collect, and print the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--present", type=Path, help="packages of the other machine: `pip list --format=freeze` there")
    parser.add_argument("--python", default="3.12", help="its version of Python (default: 3.12)")
    options = parser.parse_args(words)
    try:
        more = set() if options.present is None else names_of(options.present.read_text(encoding="utf-8"))
        found = collect(options.directory, PRESENT | more, options.python)
    except (OSError, WheelsError) as error:
        parser.exit(2, f"{error}\n")
    lines = [f"{size / 2**20:>8.2f} MiB  {name}" for name, size in found.items()]
    lines.append(f"{sum(found.values()) / 2**20:>8.2f} MiB  {len(found)} wheels, and {tree_bytes() / 2**20:.2f} of the "
                 f"tree, of {LIMIT / 2**20:.0f}")  # fmt: skip
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
