"""What articles about TensorRT show, and what is written today: names that are in both version 10 and version 11."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Replaced:
    """A name that articles show.

    Attributes:
        shown: class and member.
        gone_in: the first of versions 10 and 11 that has it no more; None where both still do.
        today: what to write.
        names: the names in that, class and member, which both versions have.
    """

    shown: str
    gone_in: int | None
    today: str
    names: tuple[str, ...] = ()


IN_THE_FILE = "nothing: the types in the ONNX file decide (convert it to float16)"
PAIRS = "nothing: pairs of QuantizeLinear and DequantizeLinear in the ONNX file"
BY_NAME = "tensors have names and no numbers: engine.get_tensor_name(i) for i in range(engine.num_io_tensors)"
ASYNC = "context.set_tensor_address(name, address) for each tensor, then context.execute_async_v3(stream)"
NAMED = ("ICudaEngine.get_tensor_name", "ICudaEngine.num_io_tensors")
RUN = ("IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3")
BUILD = "builder.build_serialized_network(network, config), which returns None where it fails"
SERIALIZED = ("Builder.build_serialized_network",)
WORKSPACE = ("IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE")
PROFILE = ("Builder.create_optimization_profile", "IOptimizationProfile.set_shape")
POOL = "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, bytes)"
RANGE = "an optimisation profile: profile.set_shape(name, smallest, usual, largest)"

REPLACED = (
    Replaced(
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        11,
        "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)); all batches are explicit",
        ("Builder.create_network", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
    ),
    Replaced("Builder.max_workspace_size", 10, POOL, WORKSPACE),
    Replaced("IBuilderConfig.max_workspace_size", 10, POOL, WORKSPACE),
    Replaced("Builder.max_batch_size", 10, RANGE, PROFILE),
    Replaced("Builder.build_engine", 10, BUILD, SERIALIZED),
    Replaced("Builder.build_cuda_engine", 10, BUILD, SERIALIZED),
    Replaced("Builder.fp16_mode", 10, IN_THE_FILE),
    Replaced("BuilderFlag.FP16", 11, IN_THE_FILE),
    Replaced("BuilderFlag.INT8", 11, PAIRS),
    Replaced("IBuilderConfig.int8_calibrator", 11, PAIRS),
    Replaced("IInt8EntropyCalibrator2", 11, PAIRS),
    Replaced("Builder.platform_has_fast_fp16", 11, "torch.cuda.get_device_capability()"),
    Replaced("Builder.platform_has_fast_int8", 11, "torch.cuda.get_device_capability()"),
    Replaced("ILayer.precision", 11, IN_THE_FILE),
    Replaced("ITensor.set_dynamic_range", 11, PAIRS),
    Replaced(
        "IBuilderConfig.algorithm_selector", 11, "an editable timing cache", ("BuilderFlag.EDITABLE_TIMING_CACHE",)
    ),
    Replaced("OnnxParser.supports_model", 11, "parser.supports_model_v2(model)", ("OnnxParser.supports_model_v2",)),
    Replaced("ICudaEngine.num_bindings", 10, "engine.num_io_tensors", ("ICudaEngine.num_io_tensors",)),
    Replaced("ICudaEngine.get_binding_index", 10, BY_NAME, NAMED),
    Replaced("ICudaEngine.get_binding_name", 10, "engine.get_tensor_name(i)", ("ICudaEngine.get_tensor_name",)),
    Replaced(
        "ICudaEngine.get_binding_shape",
        10,
        "engine.get_tensor_shape(name), or, for the batch in hand, context.get_tensor_shape(name)",
        ("ICudaEngine.get_tensor_shape", "IExecutionContext.get_tensor_shape"),
    ),
    Replaced("ICudaEngine.get_binding_dtype", 10, "engine.get_tensor_dtype(name)", ("ICudaEngine.get_tensor_dtype",)),
    Replaced(
        "ICudaEngine.binding_is_input",
        10,
        "engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT",
        ("ICudaEngine.get_tensor_mode", "TensorIOMode.INPUT"),
    ),
    Replaced("ICudaEngine.max_batch_size", 10, RANGE, PROFILE),
    Replaced(
        "ICudaEngine.device_memory_size", 11, "engine.device_memory_size_v2", ("ICudaEngine.device_memory_size_v2",)
    ),
    Replaced(
        "IExecutionContext.set_binding_shape",
        10,
        "context.set_input_shape(name, shape)",
        ("IExecutionContext.set_input_shape",),
    ),
    Replaced("IExecutionContext.execute", 10, ASYNC, RUN),
    Replaced("IExecutionContext.execute_async", 10, ASYNC, RUN),
    Replaced("IExecutionContext.execute_async_v2", 10, ASYNC, RUN),
    Replaced("IExecutionContext.execute_v2", None, f"still there, and waits for the result; else {ASYNC}", RUN),
)
