"""NvPanoptix3D: the network, a file per part, buildable alone at any width."""
