"""Write the lock files of this folder, or check that one still resolves.

    lock.py write             both files; pins that still fit are kept
    lock.py write --upgrade   both files, at the newest versions
    lock.py check gpu         resolve against the index, download no wheel

A lock file pins every package of one kind of machine. The package index decides at
installation where a package comes from, so no index is named here.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The oldest Python that all of them install on, and the oldest system that has wheels.
_TARGET = ("--python-version", "3.11.5", "--python-platform", "x86_64-manylinux_2_28")
# The virtual environment brings its pip: pip must not replace itself while it installs.
_OUTPUT = ("--no-header", "--no-annotate", "--no-emit-package", "pip", "--quiet")
_WHAT = {"cpu": "CPUs alone", "gpu": "NVIDIA GPUs"}
KINDS = tuple(_WHAT)
_DEADLINE_S = 300.0
_UNREACHABLE = "error sending request"
"""What uv says when it cannot talk to the index."""
_FILE = "cluster/locks/{kind}.txt"
_HEAD = f"# Every package of a machine with {{what}}: pip install -c {_FILE} …\n"
_HEAD += "# Written by `make lock`.\n"


def _named(kind: str) -> str:
    return _FILE.format(kind=kind)


class IndexUnreachableError(Exception):
    """The package index cannot be reached from here."""


class UnresolvableError(Exception):
    """No set of packages satisfies pyproject.toml; the message is uv's."""


@dataclass(frozen=True)
class Resolver:
    """Resolves the packages of one project with uv.

    Example: `Resolver(ROOT).pins("gpu")` returns 326 lines such as "torch==2.13.0".
    """

    root: Path
    """Folder of pyproject.toml and cluster/locks/."""
    options: tuple[str, ...] = ()
    """Further options of `uv pip compile`."""

    def lock(self, kind: str) -> Path:
        """Return the path of the lock file of `kind`."""
        return self.root / "cluster" / "locks" / f"{kind}.txt"

    def pins(self, kind: str, *, upgrade: bool = False) -> list[str]:
        """Return a pin for every package; those of the lock file where they fit.

        Raises UnresolvableError or IndexUnreachableError.
        """
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml"]
        # Named, because uv would search the machine for a Python of that version.
        command += ["--python", sys.executable]
        for extra in (kind, "dev", "real"):
            command += ["--extra", extra]
        command += [*_TARGET, *_OUTPUT, *self.options]
        with tempfile.TemporaryDirectory() as folder:
            # uv prefers the versions that its output file names already.
            output = Path(folder) / "pins.txt"
            if self.lock(kind).is_file() and not upgrade:
                shutil.copy(self.lock(kind), output)
            self._run([*command, "--output-file", str(output)])
            return pinned(output.read_text())

    def _run(self, command: list[str]) -> None:
        try:
            subprocess.run(
                command,
                cwd=self.root,
                capture_output=True,
                text=True,
                timeout=_DEADLINE_S,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise IndexUnreachableError(f"no answer in {_DEADLINE_S:g} s") from None
        except subprocess.CalledProcessError as error:
            if _UNREACHABLE in error.stderr:
                raise IndexUnreachableError(error.stderr) from None
            raise UnresolvableError(error.stderr) from None


def pinned(text: str) -> list[str]:
    """Return the pins of a lock file's text, without comments and blank lines."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def write(resolver: Resolver, *, upgrade: bool) -> None:
    """Write both lock files."""
    for kind in KINDS:
        try:
            pins = resolver.pins(kind, upgrade=upgrade)
        except UnresolvableError as error:
            raise SystemExit(f"{_named(kind)} cannot be written:\n{error}") from None
        except IndexUnreachableError as error:
            raise SystemExit(f"the package index cannot be reached: {error}") from None
        head = _HEAD.format(kind=kind, what=_WHAT[kind])
        resolver.lock(kind).write_text(head + "\n".join(pins) + "\n")
        print(f"{_named(kind)}: {len(pins)} packages")


def check(resolver: Resolver, kind: str) -> str:
    """Return a sentence about the lock file of `kind`.

    Raises SystemExit where the packages do not resolve with its pins, or where it lacks
    or does not need one of them.
    """
    try:
        pins = resolver.pins(kind)
    except IndexUnreachableError:
        return f"{_named(kind)} not resolved: the package index cannot be reached"
    except UnresolvableError as error:
        raise SystemExit(
            f"{_named(kind)} does not resolve:\n{error}\n`make lock` writes it anew"
        ) from None
    held = pinned(resolver.lock(kind).read_text())
    changed = sorted(set(pins) ^ set(held))
    if changed:
        raise SystemExit(
            f"{_named(kind)} is not what pyproject.toml resolves to: differs in"
            f" {', '.join(changed)}; `make lock` writes it anew"
        )
    return f"{_named(kind)} resolves: {len(pins)} packages"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("write").add_argument("--upgrade", action="store_true")
    verbs.add_parser("check").add_argument("kind", choices=KINDS)
    asked = parser.parse_args()
    resolver = Resolver(ROOT)
    if asked.verb == "write":
        write(resolver, upgrade=asked.upgrade)
    else:
        print(check(resolver, asked.kind))


if __name__ == "__main__":
    main()
