"""The workstation's side of measuring and deploying: everything that crosses the network."""
