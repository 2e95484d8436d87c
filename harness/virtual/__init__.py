"""A rack in a box: boards that are not hardware, and say so wherever their numbers appear."""
