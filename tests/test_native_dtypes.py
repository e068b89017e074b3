"""Which devices multiply bfloat16 natively, and which changes speak against it."""

import pytest
import torch

from hf_tinybert.native_dtypes import check_dtype, multiplies_bfloat16, reason_against_bfloat16, target_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_a_cpu_by_its_instructions(cpu_capabilities, monkeypatch, capabilities, native):
    cpu_capabilities |= capabilities
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert multiplies_bfloat16(CPU) is native
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bfloat16(CPU)


def test_other_devices_count_as_not_native(cpu_capabilities):
    cpu_capabilities["avx512_bf16"] = True
    assert not any(multiplies_bfloat16(torch.device(name)) for name in ("mps", "xpu", "meta"))


@pytest.mark.parametrize("native", [True, False])
def test_cuda_is_asked_without_emulation(monkeypatch, native):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert multiplies_bfloat16(torch.device("cuda")) is native


def test_changes_from_a_thousandth_on_speak_against_it():
    assert reason_against_bfloat16({}) is None
    assert reason_against_bfloat16({"attention_loss": 0.00099, "task_loss": 0.0}) is None
    reason = reason_against_bfloat16({"attention_loss": 0.00312, "hidden_loss": 0.0005, "task_loss": 0.001})
    assert reason == "bfloat16 changes attention_loss by 0.312 %, task_loss by 0.1 %, and less than 0.1 % is allowed"
    for change in (float("nan"), float("inf")):
        assert str(change) in reason_against_bfloat16({"hidden_loss": change})


def test_auto_lowers_float32_alone(teacher):
    assert target_dtype("auto", teacher) == torch.bfloat16
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert target_dtype("auto", teacher.to(dtype)) is None
    assert target_dtype("float32", teacher) == torch.float32
    assert target_dtype("float32", teacher.float()) is None
    teacher.is_quantized = True
    assert target_dtype("auto", teacher) is None


def test_unknown_names_are_refused():
    for name in (None, "auto", "float32", "bfloat16", "float16"):
        check_dtype(name, "dtype")
    with pytest.raises(ValueError, match="dtype='int8': give one of auto, float32, bfloat16, float16"):
        check_dtype("int8", "dtype")
