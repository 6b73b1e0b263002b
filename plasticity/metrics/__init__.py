"""Measures of plasticity as Avalanche metrics, and a logger that writes every metric to a file."""

from plasticity.metrics.json_lines import JSONLinesLogger
from plasticity.metrics.plugin import PlasticityMetrics, plasticity_metrics
from plasticity.metrics.results import learning_accuracies

__all__ = ["JSONLinesLogger", "PlasticityMetrics", "learning_accuracies", "plasticity_metrics"]
