"""The graph compiler: a model definition is recorded, improved by passes and lowered to a flat program.

`builder.Graph` records, `passes` improve, `plan` decides types and memory, `lower` makes the `program.Program`,
`encode` gives it the layout of the device header and `dump` prints it. `ops` is the op reference.
"""
