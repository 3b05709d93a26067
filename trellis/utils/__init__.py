"""Names that users of the original package import; the work is done in `trellis.export` and `trellis.renderers`."""
