"""vLLM engines, and the Ray actors that play episodes on them.

vLLM reads its environment while it is imported, so it is set here, before any module of this package
can import it. What the user has set stays, but for the engine core, which has to live in our process.
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
