"""What exists: the component resources that the Pulumi program declares.

`platforms` selects `local` or `aws`; the other modules here are shared by both. `certificates` has the resources of
certificates, `observatory.security.certificates` issues them.
"""
