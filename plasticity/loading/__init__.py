"""Training in Avalanche at the speed of a bare loop: data as tensors on the device, and no empty callbacks."""

from plasticity.loading.plugin import TensorLoaderPlugin
from plasticity.loading.precision import MixedPrecisionPlugin
from plasticity.loading.rows import NotTensorsError, Rows, Step
from plasticity.loading.tensors import dataset_rows, dataset_tensors

__all__ = [
    "MixedPrecisionPlugin",
    "NotTensorsError",
    "Rows",
    "Step",
    "TensorLoaderPlugin",
    "dataset_rows",
    "dataset_tensors",
]
