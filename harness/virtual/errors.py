"""What can go wrong with a virtual rack, for a person to act on.

Input: nothing. Output: RackError, in the harness's tree.
Its text names the rack or board, the fact and the next step.
"""

from __future__ import annotations

from harness.errors import HarnessError


class RackError(HarnessError):
    """The virtual rack could not be brought up, reached or taken down."""
