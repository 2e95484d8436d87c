"""Every error the compiler raises for its user, in one tree.

Each names the file, network or operator, the fact and the next step, in one line.
"""

from __future__ import annotations


class CompilerError(Exception):
    """Root of the tree: something the user can act on."""
