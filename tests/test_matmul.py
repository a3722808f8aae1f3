"""Products by oneDNN against torch's own in float64, and who takes them: on any processor that has the operator."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_core import matmul, winograd
from resshift_core.swin import WindowAttention
from resshift_core.vqgan import AttnBlock

from .test_winograd import error, layer, truth

KEPT = matmul._onednn, winograd.limits


@pytest.fixture(autouse=True)
def fresh():
    for function in KEPT:
        function.cache_clear()
    yield
    for function in KEPT:
        function.cache_clear()


@pytest.fixture
def calls(monkeypatch) -> list:
    """As on a Zen 4; the shapes that the operator was given."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(matmul, "_made_by_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    operator, seen = matmul._onednn(), []
    if operator is None:
        pytest.skip("this torch has no such operator")
    monkeypatch.setattr(matmul, "_onednn", lambda: lambda *args: seen.append((args[0].shape, args[1].shape)) or operator(*args))
    return seen


@pytest.mark.parametrize("shape, out", [((7, 130), 129), ((3, 5, 128), 256), ((1, 640), 160), ((2, 2, 33, 160), 480)])
def test_it_is_the_product(shape, out, calls):
    torch.manual_seed(0)
    linear = matmul.Linear(shape[-1], out).requires_grad_(False)
    x = torch.randn(shape)
    expected = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    assert error(linear(x), expected) < 2e-6 and len(calls) == 1
    assert torch.equal(linear(x), linear(x))


def test_what_learns_is_narrow_or_has_another_format_takes_torchs(calls):
    wide, x = matmul.Linear(128, 128), torch.randn(4, 128)
    wide(x).sum().backward()
    assert wide.weight.grad is not None
    with torch.inference_mode():
        for linear, given in (
            (matmul.Linear(127, 128), x[:, :127]),
            (matmul.Linear(128, 127), x),
            (wide.bfloat16(), x.bfloat16()),
        ):
            assert torch.equal(linear(given), F.linear(given, linear.weight, linear.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert matmul.Linear(128, 128)(x).dtype == torch.bfloat16
    assert not calls
    with torch.no_grad():
        matmul.Linear(128, 128)(x)
    assert len(calls) == 1


def test_other_ways_of_computing_are_torchs(calls):
    linear, x = matmul.Linear(128, 128).requires_grad_(False), torch.randn(4, 128)
    expected = F.linear(x, linear.weight, linear.bias)
    assert torch.allclose(torch.func.jvp(linear, (x,), (x,))[1], F.linear(x, linear.weight), atol=1e-5)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.allclose(linear(x), expected, atol=1e-5)
    for wrong in (x.double(), x[:, :100], torch.randn(4, 256)):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            linear(wrong)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert linear(mode.from_tensor(x)).shape == (4, 128)
    assert torch.allclose(torch.jit.trace(linear, x, check_trace=False)(x), expected, atol=1e-5)
    assert matmul.only_computing(x.detach()) and not matmul.only_computing(x.detach(), x.to("meta"))
    assert not calls


@pytest.mark.skipif(not hasattr(torch, "compile") or sys.platform == "win32", reason="torch.compile needs a compiler")
def test_compiled_layers_are_torchs(calls):
    torch.manual_seed(3)
    attention, conv = WindowAttention(160, 5, 8).requires_grad_(False), layer(256, 256)
    x, picture = torch.randn(2, 64, 160), torch.randn(1, 256, 64, 64)
    expected, filtered = attention(x), conv(picture)
    seen = len(calls)
    assert seen == 2 + 36
    assert error(torch.compile(attention, backend="eager")(x), expected) < 1e-5
    assert error(torch.compile(conv, backend="eager")(picture), filtered) < 1e-4
    assert len(calls) == seen


def test_attention_of_windows_and_filtered_convolutions_take_it(calls):
    with torch.inference_mode():
        WindowAttention(160, 5, 8)(torch.randn(3, 64, 160))
        assert [weight for _, weight in calls] == [(480, 160), (160, 160)]
        calls.clear()
        conv, x = layer(256, 256), torch.randn(1, 256, 64, 64)
        assert error(conv(x), truth(conv, x)) < 3e-5 and len(calls) == 36
        assert error(conv.of_doubled(x[..., :32, :32]), truth(conv, F.interpolate(x[..., :32, :32], scale_factor=2.0))) < 3e-5
        assert len(calls) == 36 + 25


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request, calls):
    """Those that oneDNN multiplies on this processor; a Zen 4 has both."""
    one = torch.ones(1, 1, dtype=request.param)
    try:
        matmul.product(one, one)
    except RuntimeError:
        assert request.param != torch.float32
        pytest.skip("oneDNN has no bf16 on this processor")
    calls.clear()
    return request.param


@pytest.mark.parametrize("scores", [1, 70 * 240, 4 << 20])
def test_attention_is_attention(dtype, scores, calls, monkeypatch):
    monkeypatch.setattr(matmul, "SCORES", scores)
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 1, 240, 128).to(dtype) * 3 for _ in range(3))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    got = matmul.attention(q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v)
    assert got.dtype == dtype and (got - expected).norm() < 1.3 * (theirs - expected).norm() < 0.01 * expected.norm()
    assert torch.equal(got[1:], matmul.attention(q[1:], k[1:], v[1:]))  # whatever else is in the batch
    assert len(calls) == 3 * 2 * {1: 4, 70 * 240: 4, 4 << 20: 1}[scores]


def test_the_autoencoders_attention_takes_it(dtype, calls, monkeypatch):
    torch.manual_seed(2)
    block = AttnBlock(128).to(dtype)
    x = torch.randn(1, 128, 16, 16).to(dtype)
    with torch.inference_mode():
        ours = block(x)
        assert [weight for _, weight in calls] == [(256, 128), (128, 256)]
        monkeypatch.setattr(matmul, "_onednn", lambda: None)
        theirs = block(x)
    assert error(ours.double(), theirs.double()) < (1e-5 if dtype == torch.float32 else 0.02)
    block(x).float().sum().backward()  # learns by torch's
    assert len(calls) == 2


def right(a, b, bias, attribute, scalars, algorithm):
    return F.linear(a, b, bias)


@pytest.mark.parametrize(
    "capability, amd, operator, taken",
    [
        ("AVX512", True, right, True),
        ("AVX2", True, right, False),
        ("AVX512", False, right, False),
        ("AVX512", True, lambda a, b, *more: a @ b.mT, False),  # forgets the bias
        ("AVX512", True, lambda a, b: a @ b.mT, False),
        ("AVX512", True, None, False),
    ],
)
def test_elsewhere_and_where_it_is_not_what_it_was_torchs_is_taken(capability, amd, operator, taken, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(matmul, "_made_by_amd", lambda: amd)
    names = type("Names", (), {} if operator is None else {"_linear_pointwise": staticmethod(operator)})
    monkeypatch.setattr(torch.ops, "mkldnn", names, raising=False)
    assert matmul._onednn() is (right if taken else None)
    x, linear = torch.randn(2, 128), matmul.Linear(128, 128).requires_grad_(False)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_who_made_the_processor(monkeypatch):
    def told(text):
        def read(self):
            if text is None:
                raise FileNotFoundError(self)
            return text

        return read

    monkeypatch.setattr(matmul.Path, "read_bytes", told(b"processor : 0\nvendor_id : AuthenticAMD\n"))
    assert matmul._made_by_amd()
    monkeypatch.setattr(matmul.Path, "read_bytes", told(b"vendor_id : GenuineIntel\n"))
    assert not matmul._made_by_amd()
    monkeypatch.setattr(matmul.Path, "read_bytes", told(None))
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert matmul._made_by_amd()
    monkeypatch.delenv("PROCESSOR_IDENTIFIER")
    assert not matmul._made_by_amd()
