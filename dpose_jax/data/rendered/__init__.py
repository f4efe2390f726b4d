"""Rendered 3-D people, made on the fly; needs the extra [render]."""
