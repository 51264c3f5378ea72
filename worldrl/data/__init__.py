"""Logged experience: validated episodes, readers, measures, export and collection."""

from worldrl.data.dataset import Dataset, Episode, Metadata, TransitionArrays, Windows, load

__all__ = ["Dataset", "Episode", "Metadata", "TransitionArrays", "Windows", "load"]
