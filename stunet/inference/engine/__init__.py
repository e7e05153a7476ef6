"""The network's side of prediction: windows, interpolation and export in bounded memory."""
