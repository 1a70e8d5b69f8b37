"""For all tests: one computing thread, as nodes have by default, so that sums are split alike everywhere."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports PyTorch or NumPy's BLAS
