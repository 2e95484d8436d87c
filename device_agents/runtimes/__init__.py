"""Inference runtimes behind one Protocol. The only place on a board that may import numpy."""
