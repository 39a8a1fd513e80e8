"""The interface of the package torch_cka: ``from sparsekern.compat.torch_cka import CKA``.

Same constructor, ``compare``, ``export`` and ``plot_results``. Numbers agree with torch_cka's to
float32 rounding where torch_cka is right. They differ, on purpose, where it is not:

- Layers before an in-place module keep their own features.
- A last batch of fewer than four samples is merged with the one before it instead of ending in an
  error about NaN; features far from zero keep their digits.
- Rows are in the order of definition, as the exported names are; torch_cka numbers rows in the
  order of execution and names them in the order of definition.
- Two loaders must give the same samples; one loader is read once, so shuffling does no harm.
- Layer names that do not exist are an error. Without names, all modules that run and give a tensor
  are compared; the model as a whole and containers that never run have no row.
- A module that is called several times has a row for each call (torch_cka keeps the last call).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import analysis
from ..analysis import CKAResult
from ..analysis.layers import LayerSpec

_MANY_LAYERS = 150


class CKA:
    """Compares the layers of two models, with the methods of ``torch_cka.CKA``.

    Args:
        model1: the first network; put into evaluation mode and moved to ``device``.
        model2: the second.
        model1_name: its name in plots and exports; the class name if None.
        model2_name: the same for the second.
        model1_layers: names of layers, or None for all.
        model2_layers: the same for the second.
        device: where the models run.
    """

    def __init__(
        self,
        model1: nn.Module,
        model2: nn.Module,
        model1_name: str | None = None,
        model2_name: str | None = None,
        model1_layers: Sequence[str] | None = None,
        model2_layers: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        names = (
            type(model1).__name__ if model1_name is None else model1_name,
            type(model2).__name__ if model2_name is None else model2_name,
        )
        if names[0] == names[1]:
            warnings.warn(
                f"both models are called {names[0]!r}: give model1_name and model2_name to tell "
                "them apart in exports and plots",
                stacklevel=2,
            )
        for number, (model, layers) in enumerate(
            ((model1, model1_layers), (model2, model2_layers))
        ):
            count = sum(1 for _ in model.modules())
            if layers is None and count > _MANY_LAYERS:
                warnings.warn(
                    f"model{number + 1} has {count} modules and all are compared: "
                    f"model{number + 1}_layers chooses some",
                    stacklevel=2,
                )
        self.model1, self.model2, self.device = model1, model2, device
        self.model1_layers, self.model2_layers = model1_layers, model2_layers
        for model in (model1, model2):
            model.to(device).eval()
        specs: list[LayerSpec] = [
            "all" if layers is None else list(layers) for layers in (model1_layers, model2_layers)
        ]
        self._comparison = analysis.CKA(
            model1, model2, layers1=specs[0], layers2=specs[1], device=device, names=names
        )
        self.model1_info: dict[str, Any] = {"Name": names[0], "Layers": []}
        self.model2_info: dict[str, Any] = {"Name": names[1], "Layers": []}
        self.result: CKAResult | None = None

    def compare(self, dataloader1: Iterable[Any], dataloader2: Iterable[Any] | None = None) -> None:
        """Runs both models on the data and keeps the result.

        Args:
            dataloader1: gives ``(inputs, ...)``, tensors or mappings.
            dataloader2: the same samples for the second model; None for the same batches.
        """
        loaders = dataloader1, dataloader1 if dataloader2 is None else dataloader2
        self.result = self._comparison.compare(dataloader1, dataloader2)
        for info, loader, layers in zip(
            (self.model1_info, self.model2_info),
            loaders,
            (self.result.rows, self.result.columns),
            strict=True,
        ):
            info["Dataset"] = repr(getattr(loader, "dataset", loader)).split("\n")[0]
            info["Layers"] = layers

    @property
    def hsic_matrix(self) -> Tensor:
        """The CKA matrix, float32, by the name it has in torch_cka."""
        return self._done().matrix.float()

    def export(self) -> dict[str, Any]:
        """The matrix, with the names of models, layers and data sets."""
        result = self._done()
        return {
            "model1_name": self.model1_info["Name"],
            "model2_name": self.model2_info["Name"],
            "CKA": self.hsic_matrix,
            "model1_layers": list(result.rows),
            "model2_layers": list(result.columns),
            "dataset1_name": self.model1_info["Dataset"],
            "dataset2_name": self.model2_info["Dataset"],
        }

    def plot_results(self, save_path: str | None = None, title: str | None = None) -> None:
        """Draws the matrix, keeps the picture if a path is given, and shows it.

        Args:
            save_path: file of the picture.
            title: above it; the names of the models if None.
        """
        import matplotlib
        import matplotlib.pyplot as plt

        result = self._done()
        figure, axes = plt.subplots(layout="constrained")
        names = f"{self.model1_info['Name']} vs {self.model2_info['Name']}"
        result.plot(axes, colours="magma", title=names if title is None else title)
        axes.set_xlabel(f"Layers {self.model2_info['Name']}")
        axes.set_ylabel(f"Layers {self.model1_info['Name']}")
        if save_path is not None:
            figure.savefig(save_path, dpi=300)
        if matplotlib.get_backend().lower() != "agg":  # which can show nothing, and warns
            plt.show()
        plt.close(figure)

    def _done(self) -> CKAResult:
        if self.result is None:
            raise RuntimeError("there is no result yet: call compare(dataloader) first")
        return self.result
