"""One thread a test process: the suite runs one process a core, and threads on top of those only wait for each other.

Set here and not in tests/, since numpy and torch read it when they are first imported, and so that the plugins' tests
and whatever a test starts have it too.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
