"""What root does once on a board whose clock fleetcut may set, as a shell script.

Input: the agent's own helper. Output: PREPARED, for boards that benchmarks and tests start.
"""

from device_agents.privilege import HELPER, SUDOERS, SUDOERS_LINE, helper_source

PREPARED = f"""
set -e
cat > {HELPER} <<'END-OF-HELPER'
{helper_source().decode()}
END-OF-HELPER
chmod 0755 {HELPER}
echo '{SUDOERS_LINE}' > {SUDOERS}
chmod 0440 {SUDOERS}
"""
"""As docs/preparing-boards.md asks of a board."""
