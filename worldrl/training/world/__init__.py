"""The world of a run: learned, given, simulated, and what is learned beside it."""
