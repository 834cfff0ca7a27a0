"""How fast the kernels are: against the machine's memory, against eager torch and against torch.compile."""
