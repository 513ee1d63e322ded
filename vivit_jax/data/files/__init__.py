"""Files that hold frames or voxels: how each format is read, and prepared videos written (numpy only)."""
