"""dq_cluster: train product-quantized codes for a pile of images, encode it, serve it."""

__version__ = "0.1.0"
