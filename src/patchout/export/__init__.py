"""Models as ONNX files: waveform in, scores out, for ONNX Runtime on any machine and in the browser."""
