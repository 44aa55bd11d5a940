"""From photographs to expressions, with torch or onnxruntime."""
