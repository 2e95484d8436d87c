"""The front door: one command over the harness and the compiler."""
