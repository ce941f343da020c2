"""Tokens with a meaning of their own, in the tokenizers that we train."""

PAD_TOKEN = "<|pad|>"
END_TOKEN = "<|end|>"
PERCEPT_TOKEN = "<|percept|>"
"""Stands in a prompt for one soft token of voice and face; published tokenizers get it as well."""
