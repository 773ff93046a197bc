"""Words to the person who waits: on stderr, one line each."""

from __future__ import annotations

import sys


def tell(line: str) -> None:
    """One line on stderr: what is about to be fetched or converted, how large, under which licence."""
    sys.stderr.write(f"rba assets: {line}\n")
    sys.stderr.flush()


def megabytes(count: int) -> str:
    """Bytes as megabytes (10^6) with one decimal; kilobytes below a tenth of that."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
