"""Camera and codec damage for training frames."""

from __future__ import annotations

import torch
from torch import Tensor

_BANK_SIZE = 1 << 22


class Augmenter:
    """Adds brightness, contrast, chroma subsampling, blur, block and pixel noise.

    Approximates H.264 at crf 23..30 for training. Deterministic: everything is drawn from the
    generator passed to the call, the noise bank from the constructor's seed.
    """

    def __init__(self, *, seed: int) -> None:
        # Drawing a normal number per pixel and step costs more than the vision tower's forward.
        bank_generator = torch.Generator().manual_seed(seed)
        self._bank = torch.randn(_BANK_SIZE, generator=bank_generator)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Damage images in place.

        Args:
            images: [n, height, width, 3] float32 in -1..1; height and width multiples of 8.
            generator: Source of every draw of this call.

        Returns:
            `images`.
        """
        count = images.shape[0]
        images.add_(0.06 * torch.randn(count, 1, 1, 3, generator=generator))
        order = torch.randperm(count, generator=generator)
        if count > 1:
            self._damage_like_codec(images, order[: count * 6 // 10], generator)
        gain = 1 + 0.1 * torch.randn(count, generator=generator)
        sigma = 0.05 * torch.rand(count, generator=generator)
        pixels = images[0].numel()
        offset = torch.randint(0, _BANK_SIZE - pixels, (count,), generator=generator)
        for image, g, s, o in zip(
            images, gain.tolist(), sigma.tolist(), offset.tolist(), strict=True
        ):
            image.mul_(g).view(-1).add_(self._bank[o : o + pixels], alpha=s)
        return images

    @staticmethod
    def _damage_like_codec(images: Tensor, index: Tensor, generator: torch.Generator) -> None:
        x = images[index]
        count, height, width, _ = x.shape

        def amount(shape: tuple[int, ...]) -> Tensor:
            return torch.rand(count, *shape, generator=generator)

        # 4:2:0: colour differences at half resolution
        luma = x.mean(-1, keepdim=True)
        chroma = (x - luma).view(count, height // 2, 2, width // 2, 2, 3)
        x = luma + chroma.mean((2, 4), keepdim=True).expand_as(chroma).reshape(x.shape)
        blurred = x.clone()
        blurred[:, 1:-1] = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
        rows = blurred.clone()
        blurred[:, :, 1:-1] = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
        x = torch.lerp(x, blurred, (1.5 * amount((1, 1, 1))).clamp_max(1))
        blocks = x.view(count, height // 8, 8, width // 8, 8, 3)
        strength = 0.3 * amount((1, 1, 1, 1, 1))
        x = torch.lerp(blocks, blocks.mean((2, 4), keepdim=True).expand_as(blocks), strength)
        images[index] = x.reshape(images[index].shape)
