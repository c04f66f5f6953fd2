"""ONNX files: exported, checked, optimised, quantized."""
