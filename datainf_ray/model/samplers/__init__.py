"""Every example's gradient of a layer's tensors, from what hooks see of it: one function for each kind of layer."""

from datainf_ray.model.samplers import convolution, dora, embeddings, experts, linear, norms  # each registers its own
from datainf_ray.model.samplers.generic import generic, refused
from datainf_ray.model.samplers.linear import is_plain_linear
from datainf_ray.model.samplers.register import Call, CaptureError, Layout, Sampler, claimant, reads_output, sampler_of

__all__ = [
    "Call",
    "CaptureError",
    "Layout",
    "Sampler",
    "claimant",
    "convolution",
    "dora",
    "embeddings",
    "experts",
    "generic",
    "is_plain_linear",
    "linear",
    "norms",
    "reads_output",
    "refused",
    "sampler_of",
]
