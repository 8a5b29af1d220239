"""What goes over the wire: one msgspec struct for each JSON object. They validate, encode, and become /openapi.json."""
