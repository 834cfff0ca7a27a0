"""The UNet as a GPU wants it: the weights and the results of diffusers' module, in fewer passes over memory."""
