"""A photo through an exported model, without torch: numpy, onnxruntime and Pillow are all that it
needs."""
