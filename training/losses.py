"""What is minimised: the distance of the predicted x0, optionally LPIPS, spectra and a discriminator of the decoded picture."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import resshift_core as rs

from .chain import Chain, Points
from .metrics import LPIPS_FILES

CHARBONNIER_EPS = 1e-3
DETAIL_WINDOW, DETAIL_GAIN = 9, 4.0
SPECTRUM_WINDOW = 16  # pixels
SPECTRUM_EPS = 0.01  # amplitude: that of white noise of about 3 levels
PSNR_LIMIT = 46.0  # decibels; beyond, they count less and less


class OfflineError(RuntimeError):
    """Weights of a loss or metric are not on this machine and cannot be fetched."""


def make_lpips(net: str = "vgg", device: torch.device | str = "cpu") -> nn.Module:
    """LPIPS as torchmetrics has it: (B, 3, H, W) x 2 in [-1, 1] -> (B, 1, 1, 1). Frozen; gradients pass to the pictures.

    Raises:
        OfflineError: the backbone's weights are neither in torch's cache nor to be had.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net)
    except (URLError, OSError, RuntimeError) as error:
        raise OfflineError(
            f"LPIPS needs the weights of {net}, which torchvision fetches from the internet at first use, and that failed "
            f"({error}). Connect this machine once, or copy {LPIPS_FILES[net]} into {torch.hub.get_dir()}/checkpoints, or "
            "leave LPIPS out."
        ) from error
    return metric.net.eval().requires_grad_(False).to(device)


def distance(kind: str, prediction: torch.Tensor, target: torch.Tensor, psnr_limit: float = PSNR_LIMIT) -> torch.Tensor:
    """Mean over each sample, (B,). kind: "mse", "l1", "charbonnier", or "psnr", which is minus its decibels.

    With "mse" the crops of most error decide; the scores of super-resolution are means of decibels, in which every picture
    counts alike. So "psnr" is the logarithm of the mean square (Chen et al., "Simple Baselines for Image Restoration", ECCV
    2022), for values in [-1, 1]. A crop that is nearly right could become better without end: what it gains beyond
    `psnr_limit` counts less and less.
    """
    if kind == "psnr":
        mean_square = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)
        return 10 * torch.log10(mean_square / 4 + 10 ** (-psnr_limit / 10))
    if kind == "mse":
        values = F.mse_loss(prediction, target, reduction="none")
    elif kind == "l1":
        values = F.l1_loss(prediction, target, reduction="none")
    elif kind == "charbonnier":
        values = ((prediction - target).square() + CHARBONNIER_EPS**2).sqrt()
    else:
        raise ValueError(f"loss is {kind!r}; known are mse, l1, charbonnier and psnr.")
    return values.flatten(1).mean(1)


def local_spectra(images: torch.Tensor, window: int = SPECTRUM_WINDOW) -> torch.Tensor:
    """Logarithm of the amplitudes in overlapping Hann windows: (B, C, H, W) -> (B, C, rows, columns, window, window / 2 + 1).

    Windows begin every window / 2 pixels; a last strip that fills none is in none. H and W are at least `window`.
    """
    taper = torch.hann_window(window, device=images.device)
    patches = images.unfold(2, window, window // 2).unfold(3, window, window // 2) * (taper[:, None] * taper)
    spectra = torch.fft.rfft2(patches, norm="ortho")
    return (spectra.real.square() + spectra.imag.square() + SPECTRUM_EPS**2).log() / 2


def spectrum_distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean distance of `local_spectra` over each sample, (B,), in nepers (1 = a factor of e). For values in [-1, 1].

    The mean of all pictures that fit a low-resolution one has too little energy at high frequencies everywhere. This asks for
    the energy that the truth has near that place, and leaves the phase open, which cannot be known. Amplitudes below
    SPECTRUM_EPS count less and less.
    """
    return (local_spectra(prediction) - local_spectra(target)).abs().flatten(1).mean(1)


def step_weights(schedule: rs.ShiftSchedule, device) -> torch.Tensor:
    """Eq. 8's w_t for t = 1..T, scaled to a mean of 1, (T,) float32.

    At t = 1 the posterior has no variance, and eq. 8 no weight; it gets that of t = 2. (`loss_weight` puts the variance of t = 2
    alone in its place, which for p of 1 and more would leave nothing for the others.)
    """
    weights = torch.tensor(schedule.loss_weight(), dtype=torch.float64)
    if schedule.steps > 1:
        weights[0] = weights[1]
    return (weights / weights.mean()).to(torch.float32).to(device)


def detail(images: torch.Tensor) -> torch.Tensor:
    """What is finer than DETAIL_WINDOW pixels, DETAIL_GAIN times as strong: the picture less its local mean. (B, C, H, W)."""
    margin = DETAIL_WINDOW // 2
    mean = F.avg_pool2d(F.pad(images, (margin,) * 4, mode="reflect"), DETAIL_WINDOW, 1)
    return DETAIL_GAIN * (images - mean)


class Discriminator(nn.Sequential):
    """Judges the detail of patches: (B, 3, H, W) in [-1, 1] -> (B, 1, H / 8, W / 8).

    Strided convolutions, with spectral norm but for the first and the last as in Real-ESRGAN's. It is shown `detail` alone:
    of whole pictures it learns nothing for a hundred updates and more, because colours and shading are most of what they
    hold, and these a network with a distance beside it gets right anyway.
    """

    def __init__(self, width: int = 48):
        layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)):
            kernel = 4 if stride == 2 else 3  # a multiple of the stride: every pixel is seen equally often
            layers += [spectral_norm(nn.Conv2d(before, after, kernel, stride, 1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))
        self.eval()  # in training mode every look would move the spectral norms: see `advance`

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(detail(images))

    @torch.no_grad()
    def advance(self) -> None:
        """One power iteration of the spectral norms, for an update. Within it they stay as they are, or every micro-batch, and
        every process, would be judged by another network.
        """
        self.train()
        for layer in self:
            if hasattr(layer, "parametrizations"):
                layer.weight  # noqa: B018  to look at it is to compute it
        self.eval()


def relativistic(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """How far judgements are from putting `better` above `worse`, patch by patch (Jolicoeur-Martineau, ICLR 2019).

    The discriminator's loss is that of (truth, prediction), the network's that of (prediction, truth). Both show the same
    content, so that how much detail a patch can have says nothing.
    """
    return F.softplus((worse - better).float()).mean()


@dataclass(frozen=True)
class LossSettings:
    """See TrainSettings."""

    kind: str = "mse"
    eq8_weight: bool = False
    lpips: float = 0.0
    spectrum: float = 0.0
    adversarial: float = 0.0
    psnr_limit: float = PSNR_LIMIT


class Objective:
    """loss(net, points) -> (loss, its parts, the decoded picture or None)."""

    def __init__(self, chain: Chain, settings: LossSettings, lpips: nn.Module | None = None):
        self.chain, self.settings, self.lpips = chain, settings, lpips
        self.discriminator: nn.Module | None = None
        self.weights = step_weights(chain.model.schedule, chain.device) if settings.eq8_weight else None

    def __call__(self, net, points: Points):
        settings = self.settings
        points = self.chain.roll_out(points)
        torch.clear_autocast_cache()  # torch before 2.10 takes the weights that it cast there, without gradients, again
        x0 = self.chain.predict_x0(net, points)
        per_sample = distance(settings.kind, x0, points.x0, settings.psnr_limit)
        told = per_sample.detach().mean() * (-1 if settings.kind == "psnr" else 1)  # what its name says, before any weights
        if self.weights is not None:
            per_sample = per_sample * self.weights[points.t]
        loss = per_sample.mean()
        parts, image = {settings.kind: told}, None
        if settings.lpips or settings.spectrum or settings.adversarial:
            image = self._decode(x0)
        if settings.lpips:
            perceptual = self.lpips(image, points.hr).mean()
            parts["lpips"] = perceptual.detach()
            loss = loss + settings.lpips * perceptual
        if settings.spectrum:
            spectra = spectrum_distance(image, points.hr).mean()
            parts["spectrum"] = spectra.detach()
            loss = loss + settings.spectrum * spectra
        if settings.adversarial:
            with torch.no_grad():  # its weights need no gradient here: see Trainer._backward
                truth = self.discriminator(points.hr)
            fooled = relativistic(self.discriminator(image), truth)
            parts["adversarial"] = fooled.detach()
            loss = loss + settings.adversarial * fooled
        return loss, parts, image

    def _decode(self, x0: torch.Tensor) -> torch.Tensor:
        """The picture of a latent; gradients pass straight through the quantiser, which must compare in float32."""
        autoencoder = self.chain.model.autoencoder
        if hasattr(autoencoder, "quantize"):
            with torch.autocast(x0.device.type, enabled=False):
                x0 = autoencoder.quantize(x0)
        return autoencoder.decode(x0, quantize=False).float()
