"""What a network is shipped as: ONNX, TFLite, a native executable."""
