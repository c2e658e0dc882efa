"""The HTTP faces: they translate between the wire and the services, and decide nothing."""
