"""Every method, with AP and without, together with every regulariser: exact, held, finite."""

import pytest
import torch

import sparsekern as sk

REGULARIZERS = {
    "ckasr": lambda net: sk.regularizers.CKASparsity(
        net, [["relu1", "relu2"]], beta=0.1, every=2, samples=8
    ),
    "augckasr": lambda net: sk.regularizers.CKASparsity(
        net, [["relu1"], ["relu2"]], pairs="all", estimator="biased", beta=0.1, samples=-1, every=1
    ),
    "hypersparse": lambda net: sk.regularizers.HyperSparse(net, 0.8, strength=1e-3),
    "layersparsity": lambda net: sk.regularizers.LayerSparsity(net, 0.01),
}


@pytest.mark.parametrize("regularizer", list(REGULARIZERS))
def test_any_method_with_any_regularizer(nets, model, method, regularizer):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    reg = REGULARIZERS[regularizer](model)
    pruner = nets.METHODS[method](0.8).attach(model, optimizer)
    own = getattr(getattr(pruner, "base", pruner), "penalty", lambda: 0.0)
    for epoch in range(nets.EPOCHS):
        for step in range(nets.STEPS_PER_EPOCH):
            optimizer.zero_grad()
            loss = nets.loss_of(model, nets.batch(epoch * nets.STEPS_PER_EPOCH + step))
            (loss + reg() + own()).backward()
            optimizer.step()
            if regularizer == "layersparsity":
                reg.prox_(0.05)
            pruner.step()
            for name, mask in pruner.masks.items():
                assert not model.get_parameter(name)[~mask].count_nonzero()
        pruner.epoch()
        if regularizer == "hypersparse":
            reg.epoch()
    assert pruner.kept == pruner.total - int(0.8 * pruner.total)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
