"""What runs on a board. Python >= 3.8 and the standard library, numpy only in runtimes/."""
