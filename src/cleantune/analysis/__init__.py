"""What fine-tuning does to features, as numbers and as points in the plane."""

from cleantune.analysis.geometry import Geometry, geometry, linear_cka, neighbour_accuracy, plane, probe_accuracy

__all__ = ["Geometry", "geometry", "linear_cka", "neighbour_accuracy", "plane", "probe_accuracy"]
