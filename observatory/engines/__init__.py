"""The engines that run the Pulumi program: the embedded engine and the Pulumi CLI; in-tree providers for both."""
