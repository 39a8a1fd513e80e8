"""Functions of ckatorch against ckatorch itself."""

import inspect

import matplotlib
import pytest
import torch

from sparsekern.compat import ckatorch as ours

matplotlib.use("agg")
theirs = pytest.importorskip("ckatorch")
_FUNCTIONS = (
    "cka_base",
    "cka_batch",
    "hsic0",
    "hsic1",
    "linear_kernel",
    "rbf_kernel",
    "center_gram_matrix",
    "plot_cka",
)


def _pair(n=15, dtype=torch.float64):
    x = torch.randn(n, 6, dtype=dtype)
    return x, torch.cat([x[:, :2], torch.randn(n, 3, dtype=dtype)], dim=1)


def _grams(n=15):
    return [one @ one.T for one in _pair(n)]


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_arguments_are_the_same(name):
    parameters = [
        [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (ours, theirs)
    ]
    assert parameters[0] == parameters[1]


# With an odd n there is one median; with an even one ckatorch takes the lower of the middle two.
# Asked for the unbiased one by HSIC it computes the biased one.
@pytest.mark.parametrize(
    ("unbiased", "method"), [(False, "fro_norm"), (False, "hsic"), (True, "fro_norm")]
)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka_base(kernel, unbiased, method):
    x, y = _pair(dtype=torch.float32)
    arguments = {"kernel": kernel, "unbiased": unbiased, "threshold": 0.7, "method": method}
    one, two = ours.cka_base(x, y, **arguments), theirs.cka_base(x, y, **arguments)
    assert one.dtype == two.dtype
    torch.testing.assert_close(one, two, atol=1e-9, rtol=0)


def test_the_unbiased_one_does_not_depend_on_the_method():
    x, y = _pair()
    values = [ours.cka_base(x, y, unbiased=True, method=m) for m in ("fro_norm", "hsic")]
    assert torch.equal(*values)
    assert values[0] == pytest.approx(float(theirs.cka_base(x, y, unbiased=True)), abs=1e-9)


def test_cka_batch():
    x, y = torch.randn(4, 9, 6), torch.randn(4, 9, 5)
    torch.testing.assert_close(ours.cka_batch(x, y), theirs.cka_batch(x, y), atol=1e-9, rtol=0)
    assert ours.cka_batch(torch.ones(2, 9, 3), y[:2]) == 0


def test_hsic_of_gram_matrices():
    k, other = _grams()
    torch.testing.assert_close(ours.hsic0(k, other), theirs.hsic0(k, other), atol=1e-9, rtol=0)
    batches = torch.stack([k, other]), torch.stack([other, other])
    torch.testing.assert_close(ours.hsic1(*batches), theirs.hsic1(*batches), atol=1e-9, rtol=0)


@pytest.mark.parametrize("unbiased", [False, True])
def test_centring(unbiased):
    k = _grams()[0]
    before = k.clone()
    one, two = (m.center_gram_matrix(k, unbiased) for m in (ours, theirs))
    torch.testing.assert_close(one, two, atol=1e-9, rtol=0)
    assert torch.equal(k, before)


def test_kernels():
    x = _pair()[0]
    torch.testing.assert_close(ours.linear_kernel(x), theirs.linear_kernel(x))
    torch.testing.assert_close(ours.rbf_kernel(x, 0.5), theirs.rbf_kernel(x, 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.cka_base(*_pair(), kernel="poly"), "kernel must be 'linear' or 'rbf'"),
        (lambda: ours.cka_base(*_pair(), method="trace"), "method must be 'fro_norm' or 'hsic'"),
        (lambda: ours.hsic0(torch.randn(4, 4), torch.eye(4)), "gram_x must be symmetric"),
        (lambda: ours.hsic0(torch.eye(4), torch.eye(5)), r"gram_x has shape \(4, 4\) and gram_y"),
        (lambda: ours.hsic1(torch.eye(4), torch.eye(4)), r"must have one shape \(b, n, n\)"),
        (lambda: ours.hsic1(torch.ones(1, 3, 3), torch.ones(1, 3, 3)), "at least 4 samples, got 3"),
        (lambda: ours.cka_batch(torch.ones(2, 4, 3), torch.ones(2, 5, 3)), "x and y must have"),
        (lambda: ours.plot_cka(torch.eye(2), "ab", "ab", vmin=0.0), "vmin and vmax must be given"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("half", [False, True])
def test_pictures(half, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    ours.plot_cka(
        torch.rand(3, 3),
        ["a.b", "a.c", "a.d"],
        ["a.b", "a.c", "a.d"],
        "A B",
        "C",
        save_path=str(tmp_path),
        show_ticks_labels=True,
        short_tick_labels_splits=1,
        show_half_heatmap=half,
        vmin=0.0,
        vmax=1.0,
    )
    assert (tmp_path / "A_B_vs_C.png").stat().st_size > 10_000
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "c", "d"]
    assert sum(text.get_visible() for text in axes.texts) == (6 if half else 9)
    monkeypatch.undo()
    plt.close("all")
