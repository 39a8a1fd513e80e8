"""git, asked about the checkout that this package lies in."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


class GitError(ValueError):
    """git is not there, or refused: its message."""


def ask(*arguments: str) -> str:
    """What git prints.

    Raises:
        GitError: if it cannot be run, or its exit status is not 0.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        raise GitError(f"git: {error}") from None
    if done.returncode:
        raise GitError(done.stderr.strip())
    return done.stdout.strip()


def commit(ref: str) -> str:
    """The commit that a name stands for.

    Raises:
        GitError: if there is none of this name.
    """
    try:
        return ask("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except GitError:
        raise GitError(
            f"{ref!r} is not a commit of a git checkout of sparsekern at {ROOT}"
        ) from None


@functools.cache
def contains(newer: str, older: str) -> bool:
    """Whether one commit is, or comes after, another; not where git does not know both."""
    try:
        ask("merge-base", "--is-ancestor", older, newer)
    except GitError:
        return False
    return True
