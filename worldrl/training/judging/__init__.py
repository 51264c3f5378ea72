"""Judging policies without the real system."""
