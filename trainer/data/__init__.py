"""Label sets to batches: order, mixture, packing, decoding, collation."""
