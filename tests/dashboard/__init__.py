"""The dashboard in a real browser against a real gateway and worker, and the stream library by itself."""
