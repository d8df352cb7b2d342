"""Linear autoencoder: the leading principal components of square patches, one convolution each way."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..config import PatchAutoencoderConfig

LOG_VARIANCE = -30.0  # the floor of the posterior's log variance: encoding is deterministic


def deterministic_moments(mean: torch.Tensor) -> torch.Tensor:
    """Means [N, C, s, s] -> moments [N, 2 C, s, s] with the constant log variance."""
    return torch.cat([mean, torch.full_like(mean, LOG_VARIANCE)], dim=1)


class PatchAutoencoder(nn.Module):
    """Encodes each patch by its principal components.

    The components, their scale and the mean of all patches are folded into the weights, so that latents have a mean of 0 and a
    root-mean-square of about 1 over all channels.
    """

    def __init__(self, config: PatchAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.to_latent = nn.Conv2d(3, config.channels, config.patch, stride=config.patch)
        self.to_pixels = nn.Conv2d(config.channels, 3 * config.patch**2, 1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, S, S] -> moments [N, 2 C, S / patch, S / patch]: mean, then the constant log variance."""
        return deterministic_moments(self.to_latent(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [N, C, s, s] -> images [N, 3, s * patch, s * patch]."""
        return F.pixel_shuffle(self.to_pixels(z), self.config.patch)


@torch.no_grad()
def fit_patches(config: PatchAutoencoderConfig, images: torch.Tensor) -> PatchAutoencoder:
    """Computes the autoencoder from images; no training.

    A channel's scale is the component's standard deviation to the power of `1 - config.whitening`: 0 leaves the components as they
    are, 1 gives every channel a variance of 1.

    Args:
        config: patch size and number of channels.
        images: normalized images [N, 3, S, S], S a multiple of the patch.
    """
    patch = config.patch
    patches = (
        F.unfold(images, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch**2).double()
    )  # [patches, 3 patch^2]
    mean = patches.mean(dim=0)
    centered = patches - mean
    variances, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    order = torch.argsort(variances, descending=True)[: config.channels]
    deviation, basis = variances[order].clamp_min(1e-12).sqrt(), vectors[:, order].T  # [C], [C, 3 patch^2]
    scale = (deviation / deviation[0]) ** (1 - config.whitening)
    scale = scale / scale.square().mean().sqrt()
    model = PatchAutoencoder(config)
    analysis = basis * (scale / deviation)[:, None]
    synthesis = basis * (deviation / scale)[:, None]
    model.to_latent.weight.copy_(analysis.view(config.channels, 3, patch, patch))
    model.to_latent.bias.copy_(-analysis @ mean)
    model.to_pixels.weight.copy_(synthesis.T[:, :, None, None])
    model.to_pixels.bias.copy_(mean)
    return model.eval()


def psnr(model: PatchAutoencoder, images: torch.Tensor, std: tuple[float, ...]) -> float:
    """Peak signal-to-noise ratio of the reconstruction in dB, on the 0..1 scale of the images before normalization by `std`."""
    with torch.inference_mode():
        moments = model.encode(images)
        error = (model.decode(moments.chunk(2, dim=1)[0]) - images) * torch.tensor(std).view(1, 3, 1, 1)
    return -10 * math.log10(float(error.square().mean()))
