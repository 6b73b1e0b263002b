"""Measures of plasticity as Avalanche metrics, and loggers that write every metric, and what plugins report."""

from plasticity.metrics.asking import plasticity_metrics
from plasticity.metrics.histories import HistoryLogger
from plasticity.metrics.json_lines import JSONLinesLogger
from plasticity.metrics.plugin import PlasticityMetrics
from plasticity.metrics.results import learning_accuracies

__all__ = ["HistoryLogger", "JSONLinesLogger", "PlasticityMetrics", "learning_accuracies", "plasticity_metrics"]
