"""vLLM engines, and the Ray actors that play episodes on them.

vLLM reads its environment while it is imported, so it is set here, before any module of this package
can import it. What the user has set stays, but for the engine core, which has to live in our process.
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Ranks of an engine share the cores with other processes; vLLM would give each some cores and leave one to itself.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
