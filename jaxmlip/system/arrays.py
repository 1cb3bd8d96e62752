"""The type of arrays in annotations."""

import jax
import numpy as np

Array = jax.Array | np.ndarray  # graphs are NumPy until a program takes them
