"""CKASparsity on models under torch.compile, autocast, checkpointing, DataParallel and DDP."""

import copy
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsekern.regularizers import CKASparsity

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


def check_steps(run, reg, model, images, tools):
    """Trains through ``run`` and compares every second step with the definition."""
    for step in range(5):
        model.zero_grad()
        run(images + step)
        loss = reg()
        assert loss.requires_grad == (step % 2 == 0)
        if loss.requires_grad:
            expected, grads = tools.oracle(model, images + step)
            loss.backward()
            assert abs(loss.item() - expected.item()) < 1e-5
            assert tools.relative_error(tools.gradients(model), grads) < 1e-5


# --- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def counters():
    """Dynamo's counters over one test, from nothing compiled."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("order", ["wrapper", "inner, then compile", "compile, then inner"])
def test_compiled_model(model, images, tools, counters, order):
    """Whichever comes first: one whole graph for collecting steps and one for idle ones."""
    backend = "aot_eager" if order == "wrapper" else "eager"
    if order == "inner, then compile":
        reg = CKASparsity(model, every=2, beta=1.0)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    if order == "wrapper":
        reg = CKASparsity(compiled, every=2, beta=1.0)
    elif order == "compile, then inner":
        reg = CKASparsity(model, every=2, beta=1.0)
    check_steps(compiled, reg, model, images, tools)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_model_compiled_in_place_by_inductor(images, tools, counters):
    """One stage and one graph: what takes time here is the C++ compiler."""
    torch.manual_seed(0)
    net = nn.Sequential(tools.Residual(3, 3), tools.Residual(3, 3))
    exact = copy.deepcopy(net).double()
    seen = [exact[0](images.double())[:8], exact(images.double())[:8]]
    expected = tools.definition([seen])
    expected.backward()
    reg = CKASparsity(net, beta=1.0)
    net.compile(fullgraph=True)
    net(images)
    loss = reg()
    loss.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    assert tools.relative_error(tools.gradients(net), [p.grad for p in exact.parameters()]) < 1e-5


def test_compiled_model_in_eval_mode_and_after_remove(model, images, counters):
    compiled = torch.compile(model, backend="eager")
    reg = CKASparsity(compiled, every=1)
    compiled(images)
    compiled.eval()
    compiled(images)
    assert reg._collector.features == []
    assert reg().item() == 0
    compiled.train()
    compiled(images)
    assert reg().requires_grad
    reg.remove()
    compiled(images)
    assert reg._collector.features == []


def test_compiled_training_step(model, images, tools, counters):
    """The regulariser inside of the compiled function breaks the graph, and compiles once."""
    reg = CKASparsity(model, every=2, beta=1.0)

    @torch.compile(backend="eager")
    def step(batch):
        return model(batch).sum() * 0 + reg()

    for index in range(8):
        loss = step(images)
        expected = tools.oracle(model, images)[0].item() if index % 2 == 0 else 0
        assert abs(loss.item() - expected) < 1e-5
    assert reg.step == 8
    assert counters["stats"]["unique_graphs"] <= 4


def test_blocks_compiled_one_by_one(model, images, tools, counters):
    for stage in (model.layer1, model.layer2):
        for index, block in enumerate(stage):
            stage[index] = torch.compile(block, backend="eager")
    model(images)  # even after they ran: the hooks stand outside of what is compiled
    reg = CKASparsity(model, beta=1.0)
    plain = tools.SmallNet()
    clean = {k.replace("_orig_mod.", ""): v for k, v in model.state_dict().items()}
    plain.load_state_dict(clean)
    expected, grads = tools.oracle(plain, images)
    model(images)
    loss = reg()
    loss.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    assert tools.relative_error(tools.gradients(model), grads) < 1e-5


def test_attached_after_a_compiled_model_ran_it_warns(model, images, counters):
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    reg = CKASparsity(compiled)
    compiled(images)
    with pytest.warns(UserWarning, match="attach it before the compiled model first runs"):
        reg()


# --- autocast ------------------------------------------------------------------------------------


def test_autocast_features_are_compared_as_they_are(model, images, tools):
    """bfloat16 features, outside of autocast's reach; the gradient is that of bfloat16 too."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: seen.append(output.detach()[:8]))
        for stage in (model.layer1, model.layer2)
        for block in stage
    ]
    reg = CKASparsity(model, beta=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
        loss = reg()
    for hook in hooks:
        hook.remove()
    assert {feature.dtype for feature in seen} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    exact = [feature.double() for feature in seen]
    expected = tools.definition([exact[:2], exact[2:]]).item()
    assert abs(loss.item() - expected) < 1e-5
    loss.backward()
    _, grads = tools.oracle(model, images)
    assert tools.relative_error(tools.gradients(model), grads) < 0.1


def test_mixed_dtypes_take_the_widest(images, tools):
    class Cast(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.dtype, self.conv = dtype, nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.tanh(self.conv(x.float())).to(self.dtype)

    torch.manual_seed(0)
    net = nn.Sequential(Cast(torch.bfloat16), Cast(torch.float16), Cast(torch.float32))
    reg = CKASparsity(net, beta=1.0)
    net(images)
    loss = reg()
    with torch.no_grad():
        seen = [net[: depth + 1](images)[:8].double() for depth in range(3)]
    assert loss.dtype == torch.float32
    assert abs(loss.item() - tools.definition([seen]).item()) < 1e-5
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# --- activation checkpointing --------------------------------------------------------------------


def checkpointed(tools, use_reentrant):
    class Checkpointed(tools.SmallNet):
        def forward(self, x):
            for stage in (self.layer1, self.layer2):
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=use_reentrant)
            return self.fc(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    return Checkpointed()


def test_checkpointed_blocks(images, tools):
    """Blocks run again in backward, and are not collected there."""
    net, plain = checkpointed(tools, use_reentrant=False), tools.SmallNet()
    plain.load_state_dict(net.state_dict())
    reg = CKASparsity(net, every=2, beta=1.0)
    for step in range(4):
        net.zero_grad()
        out = net(images)
        loss = reg()
        (out.sum() * 0 + loss).backward()
        assert reg._collector.features == []
        if step % 2 == 0:
            expected, grads = tools.oracle(plain, images)
            assert abs(loss.item() - expected.item()) < 1e-5
            assert tools.relative_error(tools.gradients(net), grads) < 1e-5


def test_reentrant_checkpoints_are_told(images, tools):
    net = checkpointed(tools, use_reentrant=True)
    reg = CKASparsity(net, every=1)
    net(images.requires_grad_())
    with pytest.warns(UserWarning, match="use_reentrant=False"):
        loss = reg()
    assert not loss.requires_grad


def test_a_block_that_is_not_finite_is_named(model, images):
    reg = CKASparsity(model)
    with torch.no_grad():
        model.layer2[0].conv.bias[0] = torch.nan
    model(images)
    with pytest.raises(ValueError, match=r"output of block 'layer2\.0' holds values"):
        reg()


def test_frozen_blocks_are_constants_without_a_warning(model, images):
    model.layer1.requires_grad_(False)
    reg = CKASparsity(model, every=1)
    model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg().backward()
    assert model.layer2[0].conv.weight.grad is not None
    assert model.layer1[0].conv.weight.grad is None


# --- DataParallel and DDP ------------------------------------------------------------------------


@pytest.mark.parametrize("attach_to", ["wrapper", "inner"])
def test_data_parallel(model, tools, attach_to):
    """Over all GPUs there are, the first one's share of the batch; with none, the batch."""
    parallel = nn.DataParallel(model)
    device = torch.device("cuda", parallel.device_ids[0]) if parallel.device_ids else "cpu"
    model.to(device)
    images = torch.randn(8 * max(1, len(parallel.device_ids)), 3, 6, 6, device=device)
    reg = CKASparsity(parallel if attach_to == "wrapper" else model, every=2, beta=1.0)
    for step in range(3):
        model.zero_grad()
        parallel(images)
        loss = reg()
        assert loss.requires_grad == (step != 1)
        if loss.requires_grad:
            expected, grads = tools.oracle(model, images[:8])
            loss.backward()
            assert abs(loss.item() - expected.item()) < 1e-5
            assert tools.relative_error(tools.gradients(model), grads) < 1e-5


def test_data_parallel_takes_the_first_device(model, images, tools, monkeypatch):
    """Replicas as DataParallel makes them, in threads, on devices that are made up."""
    reg = CKASparsity(model, every=1, beta=1.0)
    current = threading.local()
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: current.index)
    monkeypatch.setattr("sparsekern.regularizers.cka_sparsity._device_index", lambda module: 0)
    barrier = threading.Barrier(2)

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter)
        for name, child in module._modules.items():
            replica._modules[name] = replicate(child)
        return replica

    def forward(index):
        current.index = index
        replica = replicate(model)
        barrier.wait()
        replica(images + index)

    threads = [threading.Thread(target=forward, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected, grads = tools.oracle(model, images)
    loss = reg()
    loss.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    assert tools.relative_error(tools.gradients(model), grads) < 1e-5


def test_distributed_data_parallel(model, images, tools, run_ranks, tmp_path):
    """Each rank compares its own batch; the gradient is the mean of the ranks' gradients."""
    world = 2
    torch.save((model.state_dict(), images), tmp_path / "input.pt")
    run_ranks(Path(__file__).with_name("distributed_worker.py"), world)
    exact = [tools.oracle(model, images + rank) for rank in range(world)]
    mean = [
        None if grads[0] is None else sum(grads) / world
        for grads in zip(*(grads for _, grads in exact), strict=True)
    ]
    for rank, (value, _) in enumerate(exact):
        losses, grads = torch.load(tmp_path / f"output{rank}.pt")
        assert abs(losses[0] - value.item()) < 1e-5
        assert losses[1] == 0
        assert losses[2] == pytest.approx(losses[0], abs=1e-5)
        assert tools.relative_error(grads, mean) < 1e-5
