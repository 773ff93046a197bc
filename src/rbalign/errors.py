"""The error tree. Every error says what was given, what is allowed and what mends it; the CLI prints one line.

RbaError
├── UsageError      the user asked for something impossible: exit code 2
├── AssetError      a package, hash or cache entry is not what it should be
├── DataError       a dataset, clip or journal cannot be read as what it claims to be
├── RunError        a run directory refuses: another writer, a changed recipe
└── ServiceError    a teacher, voice, ASR or judge did not answer usably
"""

from __future__ import annotations


class RbaError(Exception):
    """An error with a cure. `str(error)` is one line: the problem, then the cure."""

    exit_code = 1

    def __init__(self, problem: str, cure: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.cure = " ".join(cure.split())
        super().__init__(self.problem + (f" → {self.cure}" if self.cure else ""))

    def __reduce__(self) -> tuple[type[RbaError], tuple[str, str]]:
        """A worker's error reaches its parent with problem and cure apart."""
        return type(self), (self.problem, self.cure)


class UsageError(RbaError, ValueError):
    """Unknown key, voice, family or file; a value out of bounds."""

    exit_code = 2


class AssetError(RbaError):
    """A download, hash, archive member or cached file is wrong or missing."""


class DataError(RbaError, ValueError):
    """A dataset, audio file or journal is damaged, too large or of another format."""


class RunError(RbaError):
    """A run directory refuses the request; its cure names the command that goes on."""


class ServiceError(RbaError):
    """A remote teacher, voice, ASR or judge failed after retries: the item stays unscored."""


def unknown(kind: str, given: str, allowed: object, cure: str = "") -> UsageError:
    """The one wording for a name that is not known. `allowed` is any iterable of names."""
    import difflib

    names = sorted(str(name) for name in allowed)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UsageError(f"unknown {kind} {given!r}; allowed: {', '.join(names) or 'none'}", f"{hint}{cure}".strip())
