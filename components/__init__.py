"""What exists: the component resources that the Pulumi program declares."""
