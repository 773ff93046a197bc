"""rba: close the gap between what a speech LLM answers and what its text teacher would answer."""

__version__ = "0.1.0"
