"""Where the command begins: what is imported here stays to the end.

So no collection has to look through it: not while it is imported, later, or at the exit.
"""

import gc
import sys


def main() -> int:
    """The command, see fleetcut.cli. Returns its exit status."""
    gc.disable()
    from fleetcut import cli

    gc.freeze()
    gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
