"""Code for phones that loads a mobile model and runs it with its real shapes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal

from deploy_runner.sdk import StageError

from ..model.bundles import Port

Runtime = Literal["lite", "executorch"]

_KOTLIN = {"float32": "FloatArray", "float64": "DoubleArray", "int64": "LongArray", "int32": "IntArray",
           "int8": "ByteArray", "uint8": "ByteArray"}  # fmt: skip
_SWIFT = {"float32": "Float", "float64": "Double", "int64": "Int64", "int32": "Int32", "int8": "Int8",
          "uint8": "UInt8"}  # fmt: skip
_CPP = {"float32": "float", "float64": "double", "int64": "int64_t", "int32": "int32_t", "int8": "int8_t",
        "uint8": "uint8_t"}  # fmt: skip
_ATEN = {"float32": "kFloat", "float64": "kDouble", "int64": "kLong", "int32": "kInt", "int8": "kChar",
         "uint8": "kByte"}  # fmt: skip


def write(folder: Path, runtime: Runtime, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Write Predict.kt and Predict.swift (and what Swift needs to call C++) into `folder`."""
    for port in (*inputs, outputs[0]):
        if port.dtype not in _KOTLIN:
            raise StageError(f"tensors on a phone don't support {port.dtype}, the type of {port.name!r}",
                             fix="convert it inside the model")  # fmt: skip
    folder.mkdir(exist_ok=True)
    files = {"Predict.kt": _kotlin(runtime, inputs, outputs)}
    if runtime == "lite":
        files |= {
            "TorchModule.mm": _bridge(inputs, outputs),
            "TorchModule.h": _header(inputs),
            "Predict.swift": _swift_lite(inputs),
        }
    else:
        files["Predict.swift"] = _swift(inputs, outputs)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _describe(ports: Sequence[Port]) -> str:
    """Return one comment line for each port: its name, type and shape."""
    return "\n".join(
        f"//   {p.name}: {p.dtype} [{', '.join(p.dynamic.get(i, str(n)) for i, n in enumerate(p.shape))}]"
        for p in ports
    )


def _head(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    return f"// inputs\n{_describe(inputs)}\n// outputs\n{_describe(outputs)}\n"


def _kotlin(runtime: Runtime, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    arguments = ", ".join(f"{_identifier(p.name)}: {_KOTLIN[p.dtype]}" for p in inputs)
    tensors = "\n".join(
        f"        val {_identifier(p.name)}Tensor = Tensor.fromBlob({_identifier(p.name)}, "
        f"longArrayOf({', '.join(map(str, p.shape))}))"
        for p in inputs
    )
    if runtime == "lite":
        values = ", ".join(f"IValue.from({_identifier(p.name)}Tensor)" for p in inputs)
        imports = "import org.pytorch.IValue\nimport org.pytorch.LiteModuleLoader\nimport org.pytorch.Tensor"
        load, call = "LiteModuleLoader.load(path)", f"module.forward({values})"
        first = _first_output(outputs)
        gradle = 'implementation("org.pytorch:pytorch_android_lite:2.1.0")'
    else:
        values = ", ".join(f"EValue.from({_identifier(p.name)}Tensor)" for p in inputs)
        names = ("EValue", "Module", "Tensor")
        imports = "\n".join(f"import org.pytorch.executorch.{name}" for name in names)
        load, call, first = "Module.load(path)", f"module.forward({values})", "[0].toTensor()"
        gradle = 'implementation("org.pytorch:executorch-android:1.0.0")'
    sizes = "\n".join(f"        require({_identifier(p.name)}.size == {prod(p.shape)})" for p in inputs)
    kind = _KOTLIN[outputs[0].dtype]
    return f"""// build.gradle.kts: {gradle}
{_head(inputs, outputs)}
{imports}

class Predictor(path: String) {{
    private val module = {load}

    fun predict({arguments}): {kind} {{
{sizes}
{tensors}
        return {call}{first}.dataAs{kind}
    }}
}}
"""


def _first_output(outputs: Sequence[Port]) -> str:
    if len(outputs) == 1 and outputs[0].name == "output":
        return ".toTensor()"
    if outputs[0].name.startswith("output_"):
        return ".toTuple()[0].toTensor()"
    return f'.toDictStringKey()["{outputs[0].name}"]!!.toTensor()'


def _first_in_cpp(outputs: Sequence[Port]) -> str:
    if len(outputs) == 1 and outputs[0].name == "output":
        return ".toTensor()"
    if outputs[0].name.startswith("output_"):
        return ".toTuple()->elements()[0].toTensor()"
    return f'.toGenericDict().at("{outputs[0].name}").toTensor()'


def _swift(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    arguments = ", ".join(f"{_identifier(p.name)}: [{_SWIFT[p.dtype]}]" for p in inputs)
    tensors = "\n".join(
        f"        let {_identifier(p.name)}Tensor = Tensor<{_SWIFT[p.dtype]}>({_identifier(p.name)}, "
        f"shape: [{', '.join(map(str, p.shape))}])"
        for p in inputs
    )
    values = ", ".join(f"{_identifier(p.name)}Tensor" for p in inputs)
    return f"""// Package.swift: https://github.com/pytorch/executorch
// with its products executorch, backend_xnnpack and kernels_optimized
// inputs
{_describe(inputs)}

import ExecuTorch

final class Predictor {{
    private let module: Module

    init(path: String) throws {{
        module = Module(filePath: path)
        try module.load("forward")
    }}

    func predict({arguments}) throws -> [{_SWIFT[outputs[0].dtype]}] {{
{tensors}
        let output: Tensor<{_SWIFT[outputs[0].dtype]}> = try module.forward([{values}])[0].tensor()!
        return output.scalars()
    }}
}}
"""


def _selector(inputs: Sequence[Port]) -> str:
    first, *others = (_identifier(p.name) for p in inputs)
    rest = "".join(f" {name}:(const void *){name}" for name in others)
    return f"- (nullable NSArray<NSNumber *> *)predict:(const void *){first}{rest}"


def _header(inputs: Sequence[Port]) -> str:
    return f"""// Name this file in the bridging header of your target.
#import <Foundation/Foundation.h>

@interface TorchModule : NSObject
- (nullable instancetype)initWithPath:(nonnull NSString *)path;
{_selector(inputs).replace("const void *", "nonnull const void *")};
@end
"""


def _bridge(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    tensors = "\n".join(
        f"    at::Tensor {_identifier(p.name)}Tensor = torch::from_blob((void *){_identifier(p.name)}, "
        f"{{{', '.join(map(str, p.shape))}}}, at::{_ATEN[p.dtype]});"
        for p in inputs
    )
    values = ", ".join(f"{_identifier(p.name)}Tensor" for p in inputs)
    return f"""// Podfile: pod 'LibTorch-Lite'
#import "TorchModule.h"
#import <Libtorch-Lite/Libtorch-Lite.h>

@implementation TorchModule {{
    torch::jit::mobile::Module _module;
}}

- (instancetype)initWithPath:(NSString *)path {{
    if ((self = [super init])) {{
        _module = torch::jit::_load_for_mobile(path.UTF8String);
    }}
    return self;
}}

{_selector(inputs)} {{
    c10::InferenceMode guard;
{tensors}
    at::Tensor output = _module.forward({{{values}}}){_first_in_cpp(outputs)}.contiguous();
    NSMutableArray<NSNumber *> *found = [NSMutableArray array];
    for (int64_t i = 0; i < output.numel(); i++) {{
        [found addObject:@(output.const_data_ptr<{_CPP[outputs[0].dtype]}>()[i])];
    }}
    return found;
}}

@end
"""


def _swift_lite(inputs: Sequence[Port]) -> str:
    names = [_identifier(p.name) for p in inputs]
    arguments = ", ".join(f"{n}: [{_SWIFT[p.dtype]}]" for n, p in zip(names, inputs, strict=True))
    labelled = ", ".join(n if i == 0 else f"{n}: {n}" for i, n in enumerate(names))
    checks = "\n".join(
        f"        precondition({n}.count == {prod(p.shape)})" for n, p in zip(names, inputs, strict=True)
    )
    return f"""// inputs
{_describe(inputs)}

import Foundation

final class Predictor {{
    private let module: TorchModule

    init?(path: String) {{
        guard let module = TorchModule(path: path) else {{ return nil }}
        self.module = module
    }}

    func predict({arguments}) -> [Float] {{
{checks}
        return (module.predict({labelled}) ?? []).map {{ $0.floatValue }}
    }}
}}
"""
