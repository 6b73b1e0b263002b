"""Measures of plasticity: pure functions of unit statistics, of feature matrices and of models.

The field uses "dead", "dormant" and "stable rank" for several things each; a name here has the one meaning that its
docstring gives. Results are 0-dim tensors of float64 (float32 on MPS, which has no float64) on the device of what is
measured. Nothing is read back to the host, except inside a singular value decomposition, which on a GPU waits for its
own result, and to gather a sparse gradient; and to look at curvature, which takes the extra `curvature`.
"""

from plasticity.measures.curvature import gradient_effective_rank, largest_hessian_eigenvalue
from plasticity.measures.learning import sample_plasticity, trainability_gap
from plasticity.measures.ranks import effective_rank, participation_ratio, rank99, stable_rank
from plasticity.measures.units import (
    Gradients,
    Statistics,
    UnitCounts,
    UnitGradientMeans,
    by_layer,
    dead_fraction,
    dead_units,
    dormant_fraction,
    dormant_units,
    nonfinite_fraction,
    nonfinite_units,
    not_learning_fraction,
    not_learning_units,
    over_active_fraction,
    over_active_units,
)
from plasticity.measures.weights import (
    distance_by_layer,
    distance_from_initialisation,
    gradient_norm,
    gradient_norm_by_layer,
    weight_magnitude,
    weight_magnitude_by_layer,
)

__all__ = [
    "Gradients",
    "Statistics",
    "UnitCounts",
    "UnitGradientMeans",
    "by_layer",
    "dead_fraction",
    "dead_units",
    "distance_by_layer",
    "distance_from_initialisation",
    "dormant_fraction",
    "dormant_units",
    "effective_rank",
    "gradient_effective_rank",
    "gradient_norm",
    "gradient_norm_by_layer",
    "largest_hessian_eigenvalue",
    "nonfinite_fraction",
    "nonfinite_units",
    "not_learning_fraction",
    "not_learning_units",
    "over_active_fraction",
    "over_active_units",
    "participation_ratio",
    "rank99",
    "sample_plasticity",
    "stable_rank",
    "trainability_gap",
    "weight_magnitude",
    "weight_magnitude_by_layer",
]
