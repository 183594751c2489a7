"""What a trace says of its steps: parts, communication, operators, memory; a GPU's, written by hand, too."""

from __future__ import annotations

from typing import Any

import pytest

from convmlp_platform.training.profiling.profile_page import ProfileFacts, page
from convmlp_platform.training.profiling.trace_reading import REST, read_trace

MAIN, AUTOGRAD, STREAM = 1, 2, 7


def event(cat: str, name: str, begin: float, end: float, tid: int = MAIN, **args: Any) -> dict[str, Any]:
    """Milliseconds."""
    given = {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": 1e3 * begin, "dur": 1e3 * (end - begin)}
    return {**given, "args": args}


def memory(moment: float, held: int, device: int) -> dict[str, Any]:
    args = {"Total Allocated": held, "Bytes": 1, "Device Type": device}
    return {
        "ph": "i",
        "cat": "cpu_instant_event",
        "name": "[memory]",
        "tid": MAIN,
        "ts": 1e3 * moment,
        "args": args,
    }


STEP = [
    event("user_annotation", "ProfilerStep#3", 0, 100),
    event("user_annotation", "convmlp.data wait", 0, 10),
    event("user_annotation", "convmlp.rest of forward and backward", 10, 80),
    event("user_annotation", "convmlp.forward", 12, 30),
    event("user_annotation", "convmlp.backward", 30, 78),
    event("user_annotation", "convmlp.agreement of ranks", 80, 99),
    event("user_annotation", "convmlp.optimizer", 90, 98),
]
OPERATORS = [
    event(
        "cpu_op",
        "aten::conv2d",
        12,
        30,
        **{"External id": 1, "Input Dims": [[4, 3, 8, 8], [8, 3, 3, 3], [], [1]]},
    ),
    event("cpu_op", "aten::mkldnn_convolution", 13, 29, **{"External id": 2, "Input Dims": [[4, 3, 8, 8]]}),
    event(
        "cpu_op", "ConvolutionBackward0", 31, 77, AUTOGRAD, **{"External id": 3, "Input Dims": [[4, 8, 6, 6]]}
    ),
]


def test_parts_are_the_innermost_spans_and_add_up() -> None:
    facts = read_trace([*STEP, *OPERATORS])
    assert facts.steps == 1 and facts.seconds == pytest.approx(0.1)
    assert facts.parts == pytest.approx(
        {
            "data wait": 0.010,
            "forward": 0.018,
            "backward": 0.048,
            "rest of forward and backward": 0.004,
            "agreement of ranks": 0.011,
            "optimizer": 0.008,
            REST: 0.001,
        }
    )
    assert sum(facts.parts.values()) == pytest.approx(facts.seconds)
    assert not facts.device_parts


def test_an_operator_s_own_time_lacks_that_of_those_within() -> None:
    own = {operator.name: operator for operator in read_trace([*STEP, *OPERATORS]).operators}
    assert own["aten::conv2d"].self_s == pytest.approx(0.002)
    assert own["aten::conv2d"].shapes == "4x3x8x8 8x3x3x3 1"
    assert own["aten::mkldnn_convolution"].self_s == pytest.approx(0.016)
    assert own["ConvolutionBackward0"].self_s == pytest.approx(0.046)


def test_communication_is_told_from_what_computing_hides_of_it() -> None:
    gloo = [
        event("user_annotation", "gloo:all_reduce", 40, 60, 9),
        event("user_annotation", "gloo:all_reduce", 50, 78, 10),
        event("user_annotation", "gloo:all_reduce", 82, 88, 9),
    ]
    facts = read_trace([*STEP, *OPERATORS, *gloo])
    assert facts.communication_s == pytest.approx(0.038 + 0.006)
    assert facts.exposed_s == pytest.approx(0.001 + 0.006)  # an operator computes until 77


def test_a_kernel_is_of_the_part_that_launched_it_on_whichever_thread() -> None:
    gpu = [
        event("cuda_runtime", "cudaLaunchKernel", 14, 15, correlation=11),
        event("cuda_runtime", "cudaLaunchKernel", 40, 41, AUTOGRAD, correlation=12),
        event("cuda_runtime", "cudaLaunchKernel", 91, 92, correlation=13),
        event("cuda_driver", "cuLaunchKernelEx", 42, 43, AUTOGRAD, correlation=14),
        event("kernel", "sm90_conv", 20, 35, STREAM, correlation=11, **{"External id": 1}),
        event("kernel", "sm90_dgrad", 50, 85, STREAM, correlation=12, **{"External id": 3}),
        event("kernel", "multi_tensor_apply", 92, 97, STREAM, correlation=13, **{"External id": 99}),
        event("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 70, 90, 8, correlation=14),
    ]
    held = [memory(20, 300, 1), memory(60, 900, 1), memory(61, 5, 0)]
    facts = read_trace([*STEP, *OPERATORS, *gpu, *held])
    assert facts.device_parts == pytest.approx(
        {"forward": 0.015, "backward": 0.035, "optimizer": 0.005, "communication": 0.020}
    )
    assert facts.device_busy_s == pytest.approx(0.015 + 0.040 + 0.005)
    assert (facts.communication_s, facts.exposed_s) == pytest.approx((0.020, 0.005))
    assert [(one.name, one.device_s) for one in facts.operators[:2]] == [
        ("ConvolutionBackward0", pytest.approx(0.035)),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", pytest.approx(0.020)),
    ]
    assert facts.peaks == {"forward": 300, "backward": 900}  # the CPU's aren't the GPU's
    shown = page(
        ProfileFacts(
            "r", "m", (3, 4), 0, 1, "a GPU", "2", "ddp", "bf16", 4, None, 0.1, (1, 2), 900
        ),
        facts,
        ["trace.json.gz", "memory_snapshot.pickle"],
    )  # fmt: skip
    assert "| backward | 48.0 ms | 48.0 % | 35.0 ms | 35.0 % |" in shown
    assert "| communication |  |  | 20.0 ms | 20.0 % |" in shown
    assert "busy for 60% of the time" in shown and "memory viewer" in shown


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no step"):
        read_trace(OPERATORS)
