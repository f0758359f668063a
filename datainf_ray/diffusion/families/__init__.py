"""The families of pipelines that text-to-image knows, one file each."""

from datainf_ray.diffusion.families.flux import FLUX
from datainf_ray.diffusion.families.sd import STABLE_DIFFUSION
from datainf_ray.diffusion.families.sd3 import STABLE_DIFFUSION_3
from datainf_ray.diffusion.families.sdxl import STABLE_DIFFUSION_XL

FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX)
