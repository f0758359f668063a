"""`datainf demo`: a shortcut is planted in real text, and the run has to find the rows that taught it.

Docstrings of the standard library (`text`) are classified by a small model fine-tuned with LoRA (`train`). Most
training rows that mention files were relabelled, so the model learns to answer with that label. Its wrong answers on
held-out rows are the queries. How well the run finds the planted rows is measured (`figures`) and told (`tell`);
`story` does one after the other.
"""

from datainf_ray.demo.story import run_demo

__all__ = ["run_demo"]
