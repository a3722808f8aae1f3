"""`bytes_per_tile`, by which tiles go together and hosts make room, against what a tile takes: counted, not run."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from resshift_core.peek import peek_config, without_weights


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations have made and that are still there, at their most. Works on the meta device."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


def storages_are_objects() -> bool:
    """Torch 2.1 wraps a storage anew each time it is asked for, so that nobody is told when it goes."""
    tensor = torch.zeros(1)
    return tensor.untyped_storage() is tensor.untyped_storage()


@pytest.mark.skipif(not storages_are_objects(), reason="this torch does not tell when a storage goes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["builtin", "builtin-real", "realsr_x4_s4", "faceir_s4"])
def test_the_estimate_is_an_upper_one(name, dtype):
    config = peek_config(name)
    model = without_weights(config)
    model.unet.to(dtype)
    model.autoencoder.to(dtype)
    tile = config.tile
    latent = tile * config.scale // config.autoencoder.factor
    with torch.device("meta"):  # not around the runs: masks of windows are kept for those who come after
        x, t = torch.empty(1, config.autoencoder.latent_channels, latent, latent), torch.empty(1)
        picture, lq = torch.empty(1, 3, tile * config.scale, tile * config.scale), torch.empty(1, 3, tile, tile)
    stages = {
        "encode": lambda: model.autoencoder.encode(picture),
        "network": lambda: model.unet(x, t, condition=model.unet.condition(lq)),
        "decode": lambda: model.autoencoder.decode(x),
    }
    for stage, run in stages.items():
        with torch.no_grad(), Peak() as peak:
            run()
        assert peak.most <= model.bytes_per_tile(tile, tile), stage
