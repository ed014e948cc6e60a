"""Wheels for a machine with a GPU, torch and little else: built and collected here, installed there.

    python -m benchmarks.wheels DIRECTORY [--present FILE] [--python 3.12]

Nothing but the standard library is imported before they are installed (`installed_and_restarted`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
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
MADE = "wheels.json"
"""File with the names of the wheels that were put into its directory, which may be replaced."""


class WheelsError(Exception):
    """Wheels cannot be built, collected or installed."""


def collect(
    directory: Path, present: Iterable[str] = PRESENT, python: str = "3.12", limit: int = LIMIT
) -> dict[str, int]:
    """Build the project's wheels and collect those of libraries that are not present, in the versions installed here.

    python: version on the other machine, a Linux on x86-64. Returns the bytes of each wheel. Raises WheelsError if one
    cannot be had, if all of them and the tree exceed the limit, or if the directory has wheels of somebody else, which
    would be installed too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = _made_before(directory)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=directory.resolve()) as made:
        for source in DISTRIBUTIONS.values():
            _run("-m", "hatchling", "build", "-t", "wheel", "-d", made, cwd=source)
        wanted = [f"{name}=={version}" for name, version in missing(present, python).items()]
        if wanted:
            platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
            _run("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python,
                 "--implementation", "cp", *platforms, "-d", made, *wanted, cwd=ROOT)  # fmt: skip
        new = sorted(Path(made).glob("*.whl"))
        (directory / MADE).write_text(json.dumps([wheel.name for wheel in [*old, *new]], indent=1) + "\n")
        for wheel in old:
            wheel.unlink()
        for wheel in new:
            wheel.replace(directory / wheel.name)
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


def _made_before(directory: Path) -> list[Path]:
    """Return the wheels that were put into a directory by earlier calls. Raises WheelsError if there are others."""
    try:
        names = json.loads((directory / MADE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = []
    except ValueError as error:
        raise WheelsError(f"{directory / MADE}: {error}; use an empty directory") from error
    found = sorted(directory.glob("*.whl"))
    others = [wheel.name for wheel in found if not isinstance(names, list) or wheel.name not in names]
    if others:
        more = f" and {len(others) - 1} others" if len(others) > 1 else ""
        raise WheelsError(f"{directory} has wheels that were not made here ({others[0]}{more}); use an empty directory")
    return found


def missing(present: Iterable[str], python: str) -> dict[str, str]:
    """Return the versions, as installed here, of libraries that the distributions require with a version of Python, and
    that are not present. What is present is taken to have its own requirements."""
    environment = _environment(python)
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
            raise WheelsError(
                f"{name} is required with Python {python} and not installed here; run `make test` or install it"
            ) from None
        if _normal(name) not in DISTRIBUTIONS:
            found[_normal(name)] = here.version
        pending += _requirements(here.requires or (), extras, environment)
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


def _environment(python: str) -> dict[str, str]:
    """Return the values of environment markers for CPython on Linux and x86-64."""
    return {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_version": f"{python}.0",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64",
    }  # fmt: skip


def _requirements(
    lines: Iterable[str], extras: tuple[str, ...], environment: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the (name, extras) of requirements that hold in an environment with these extras."""
    from packaging.requirements import Requirement

    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)):
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
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.exit(2, f"--python: {options.python!r} is no version of Python; give one such as 3.12\n")
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
